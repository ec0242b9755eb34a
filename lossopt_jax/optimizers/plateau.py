"""A learning rate that falls when the loss stops falling: it needs the loss, not only the step, so it is no schedule."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._types import Params, PyTree, Scalar
from ._common import LearningRate, as_numbers, at, float32_chain
from .adam import adam


class PlateauState(NamedTuple):
    """best: best mean so far, in the sense of min; bad: means since; scale: factor on the learning rate; cooldown: means left to wait.

    total, finite, seen: sum and number of this mean's finite values, and of all values; step: updates made; inner: the optimizer's state.
    """

    best: jax.Array
    bad: jax.Array
    scale: jax.Array
    cooldown: jax.Array
    total: jax.Array
    finite: jax.Array
    seen: jax.Array
    step: jax.Array
    inner: PyTree


def reduce_on_plateau(
    learning_rate: LearningRate,
    *,
    optimizer: Callable[[Any], optax.GradientTransformation] = adam,
    factor: Scalar = 0.1,
    patience: Scalar = 10,
    cooldown: Scalar = 0,
    rtol: Scalar = 1e-4,
    atol: Scalar = 0.0,
    min_scale: Scalar = 0.0,
    accumulation: Scalar = 1,
    mode: Literal["min", "max"] = "min",
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` at learning_rate times a scale, which starts at 1 and falls by `factor` when `value` has stopped improving.

    Takes the loss as `update(grads, opt_state, params, value=loss)`. Every `accumulation` updates the mean of their values, non-finite ones
    left out, improves if it is below best - (rtol |best| + atol) (above best + ... in mode "max"). After `patience` means in a row
    without improvement, scale <- max(scale factor, min_scale), from this update on; then the next `cooldown` means count nothing.
    A window without a finite value is no improvement. `optimizer`: a learning rate to a transformation, e.g. lo.bind(optimizers.adamw).

    The scale is on the learning rate itself, so decay, trust ratios and averages follow it. torch's ReduceLROnPlateau waits for
    patience + 1 bad epochs, optax.contrib.reduce_on_plateau and Keras for patience, as here. The relative rule of torch and optax,
    best (1 - rtol), takes a worse value for a better one when values are negative.

    >>> tx, params = reduce_on_plateau(0.1, patience=1), jnp.ones(2)
    >>> opt_state = tx.init(params)
    >>> updates, opt_state = tx.update(2 * params, opt_state, params, value=1.0)
    >>> updates, opt_state = tx.update(2 * params, opt_state, params, value=1.0)
    >>> print(updates.round(3))
    [-0.01 -0.01]
    """
    if mode not in ("min", "max"):
        raise ValueError(f"reduce_on_plateau: mode must be 'min' or 'max', got {mode!r}")
    numbers = as_numbers(factor, patience, cooldown, rtol, atol, min_scale, accumulation)

    def inner(scale: jax.Array, count: jax.Array) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(optimizer(scale * at(learning_rate, count)))

    def init(params: Params) -> PlateauState:
        zero, one, none = jnp.float32(0), jnp.float32(1), jnp.int32(0)
        return PlateauState(jnp.float32(jnp.inf), none, one, zero, zero, none, none, none, inner(one, none).init(params))

    def update(
        grads: PyTree, state: PlateauState, params: Params | None = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, PlateauState]:
        if value is None:
            raise TypeError("reduce_on_plateau: the loss is needed: update(grads, opt_state, params, value=loss)")
        value = jnp.asarray(value, jnp.float32)
        state = _observed(state, value if mode == "min" else -value, *numbers)
        tx = inner(state.scale, state.step)
        updates, inner_state = tx.update(grads, state.inner, params, value=value, **extra_args)
        return updates, state._replace(step=optax.safe_increment(state.step), inner=inner_state)

    return float32_chain(optax.GradientTransformationExtraArgs(init, update))


def _observed(
    state: PlateauState,
    value: jax.Array,
    factor: jax.Array,
    patience: jax.Array,
    cooldown: jax.Array,
    rtol: jax.Array,
    atol: jax.Array,
    min_scale: jax.Array,
    accumulation: jax.Array,
) -> PlateauState:
    """The state after one more value; every number may be fractional or traced, so counts are compared with >=, never ==."""
    is_finite = jnp.isfinite(value)
    total, finite, seen = state.total + jnp.where(is_finite, value, 0), state.finite + is_finite, state.seen + 1
    closed = seen >= accumulation
    mean = total / jnp.maximum(finite, 1)
    margin = rtol * jnp.abs(state.best) + atol
    # The first best is infinite, and inf - inf is no margin.
    improved = (finite > 0) & (jnp.isinf(state.best) | (mean < state.best - margin))
    waiting = state.cooldown > 0
    bad = jnp.where(improved | waiting, 0, state.bad + 1)
    reduce = (bad > 0) & (bad >= patience)
    scale = jnp.where(reduce, jnp.maximum(state.scale * factor, min_scale), state.scale)
    left = jnp.where(waiting, state.cooldown - 1, jnp.where(reduce, cooldown, 0))
    best = jnp.where(improved, mean, state.best)
    return state._replace(
        best=jnp.where(closed, best, state.best),
        bad=jnp.where(closed, jnp.where(reduce, 0, bad), state.bad),
        scale=jnp.where(closed, scale, state.scale),
        cooldown=jnp.where(closed, left, state.cooldown),
        total=jnp.where(closed, 0, total),
        finite=jnp.where(closed, 0, finite),
        seen=jnp.where(closed, 0, seen),
    )
