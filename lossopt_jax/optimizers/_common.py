"""What every optimizer here does to optax's parts: numbers, parameters and gradients in float32, dtypes kept at the door."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from .._types import Params, PyTree, cast_like, to_float32

# A number, a traced array, or a schedule: step -> number, which optax then counts itself.
LearningRate: TypeAlias = ArrayLike | Callable[[Any], ArrayLike]
# Which leaves: a pytree of bool, or a function of the params that gives one; None means all.
Mask: TypeAlias = Callable[[Params], PyTree] | PyTree | None
Factory = TypeVar("Factory", bound=Callable[..., Any])


def elementwise(factory: Factory) -> Factory:
    """Say of an optimizer that, without a mask, it treats each number by itself: in whatever arrays they lie, the updates are the same.

    What it keeps is then either shared by all parameters or a tree of arrays of their shapes.
    """
    factory.elementwise = factory  # type: ignore[attr-defined]  # itself: `functools.wraps` hands it on to what may be another optimizer
    return factory


def as_numbers(*values: ArrayLike) -> tuple[jax.Array, ...]:
    """Each number as a float32 array (float64 stays): Python's, NumPy's and traced numbers then make the same program."""
    return tuple(to_float32(value) for value in values)


def at(learning_rate: LearningRate, count: jax.Array) -> jax.Array:
    """The learning rate after `count` updates."""
    return to_float32(learning_rate(count) if callable(learning_rate) else learning_rate)


def float32_chain(*parts: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.chain` of `parts`, computed and remembered in float32 when parameters or gradients are in half precision.

    Updates come back in the dtype of the gradients. The state keeps the dtypes that `init` gave it, whatever numbers are traced.
    """
    tx = optax.chain(*parts) if len(parts) > 1 else optax.with_extra_args_support(parts[0])

    def init(params: Params) -> PyTree:
        # A copy of its own for every leaf, or a donated state would give away the same buffer twice (prodigy keeps the parameters); and
        # no weak types, or the second step would compile again.
        return jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype), tx.init(widen(params)))

    def update(updates: PyTree, state: PyTree, params: Params | None = None, **extra_args: Any) -> tuple[PyTree, PyTree]:
        new_updates, new_state = tx.update(widen(updates), state, widen(params), **extra_args)
        return cast_like(new_updates, updates), cast_like(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


def widen(tree: PyTree) -> PyTree:
    """Half-precision leaves in float32; the others (float32, float64, complex) as they are."""

    def leaf(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32 else x

    return jax.tree.map(leaf, tree)


def by_learning_rate(learning_rate: LearningRate) -> optax.GradientTransformation:
    """updates -> -learning_rate updates."""
    if callable(learning_rate):
        return optax.scale_by_learning_rate(lambda count: at(learning_rate, count))
    return optax.scale_by_learning_rate(to_float32(learning_rate))


def decayed(weight_decay: ArrayLike, mask: Mask) -> optax.GradientTransformation:
    """updates -> updates + weight_decay params, on the leaves where `mask` is true."""
    if mask is None and type(weight_decay) in (int, float) and weight_decay == 0:
        # A literal 0 needs no params, so that plain `sgd(0.1).update(grads, opt_state)` works; the (empty) state is the same.
        return optax.identity()
    return optax.add_decayed_weights(to_float32(weight_decay), mask)


def zeros(params: Params) -> PyTree:
    """A tree of zeros."""
    return jax.tree.map(jnp.zeros_like, params)


def ema(new: PyTree, old: PyTree, decay: jax.Array) -> PyTree:
    """decay old + (1 - decay) new."""
    return jax.tree.map(lambda n, o: decay * o + (1 - decay) * n, new, old)


def squares(tree: PyTree) -> PyTree:
    """x**2 of every leaf."""
    return jax.tree.map(jnp.square, tree)


def one_minus_power(decay: jax.Array, count: jax.Array) -> jax.Array:
    """1 - decay**count without cancellation: as a float32 difference, 1 - 0.999**2 is off by 1e-5 of itself."""
    return -jnp.expm1(count * jnp.log1p(decay - 1))
