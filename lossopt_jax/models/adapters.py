"""A model as two pure functions, made from Flax Linen, Flax NNX or by hand."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .._types import Params, PyTree


class Apply(Protocol):
    """(params, model_state, inputs, *, key, train) -> (outputs, model_state)."""

    def __call__(self, params: Params, model_state: PyTree, inputs: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]: ...


class Model(NamedTuple):
    """A model without state of its own; to JAX it is a constant, so it passes through jit and vmap like a static argument.

    init: (key, inputs) -> (params, model_state). model_state is what changes without a gradient (batch statistics), often {}.
    apply: (params, model_state, inputs, *, key, train) -> (outputs, model_state). The key drives dropout.
    """

    init: Callable[[jax.Array, PyTree], tuple[Params, PyTree]]
    apply: Apply


jax.tree_util.register_static(Model)

# What a module's `__call__` may take to tell training from evaluation, and its value as a function of `train`.
_MODES: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}
# Collections that a module writes afresh on every call: carried along, their structure would grow.
_TRANSIENT = ("intermediates", "perturbations")


def from_linen(module: nn.Module) -> Model:
    """The model of a Linen module.

    `train=`, `deterministic=` or `use_running_average=` is passed only when the module's `__call__` takes it and the module has not
    set it as an attribute. Variables beside "params" (batch statistics) are the model state.

    >>> model = from_linen(nn.Dense(10))
    >>> params, model_state = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> outputs, _ = model.apply(params, model_state, jnp.ones((3, 4)), key=jax.random.key(1), train=False)
    >>> outputs.shape
    (3, 10)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen takes a module, such as nn.Dense(10), got {module!r}")

    def mode(train: bool) -> dict[str, Any]:
        return _mode(type(module), train, set_by_hand=[name for name in _MODES if getattr(module, name, None) is not None])

    def init(key: jax.Array, inputs: PyTree) -> tuple[Params, PyTree]:
        params_key, other_key = jax.random.split(key)
        variables = dict(module.init({"params": params_key, "dropout": other_key}, inputs, **mode(False)))
        params = variables.pop("params", {})
        return params, {name: value for name, value in variables.items() if name not in _TRANSIENT}

    def apply(params: Params, model_state: PyTree, inputs: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        # Linen falls back to the "params" stream for a stream it was not given, so modules with streams of their own work too.
        outputs, updated = module.apply(
            variables, inputs, rngs={"params": key, "dropout": key}, mutable=[*model_state, *_TRANSIENT], **mode(train)
        )
        if not train:
            return outputs, model_state
        # A collection that grew was sown into: it is written afresh on every call, and as a carry would grow without end.
        same = {name: _structure(value) == _structure(updated.get(name)) for name, value in model_state.items()}
        return outputs, {name: updated[name] if same[name] else value for name, value in model_state.items()}

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """The model of an NNX module, given as a function from its random streams to a fresh module.

    The module is split once; `apply` merges it inside the trace, puts it in train or eval mode, and seeds its random streams from the
    step's key. `params` is a plain nested dict of the `nnx.Param`s, `model_state` one of the other variables, random streams left out.

    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 10, rngs=rngs))
    >>> params, model_state = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> sorted(params)
    ['bias', 'kernel']
    """

    if isinstance(make, nnx.Module):
        raise TypeError("from_nnx takes a function that makes the module: lambda rngs: nnx.Linear(4, 10, rngs=rngs), not the module")

    def split(key: jax.Array) -> tuple[Any, ...]:
        graphdef, *parts = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, nnx.Intermediate, ...)
        return graphdef, parts[0], parts[1], parts[3]

    # Traced, not run: all that is kept is the graph and the shapes.
    graph: list[Any] = []

    def states(key: jax.Array) -> tuple[Any, Any, Any]:
        graphdef, *parts = split(key)
        graph[:] = [graphdef]
        return tuple(parts)

    abstract_params, abstract_streams, abstract_rest = jax.eval_shape(states, jax.random.key(0))
    (graphdef,) = graph

    def init(key: jax.Array, inputs: PyTree) -> tuple[Params, PyTree]:
        _, params, _, rest = split(key)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def apply(params: Params, model_state: PyTree, inputs: PyTree, *, key: jax.Array, train: bool) -> tuple[PyTree, PyTree]:
        module = nnx.merge(graphdef, _filled(abstract_params, params), _seeded(abstract_streams, key), _filled(abstract_rest, model_state))
        module.train() if train else module.eval()
        outputs = module(inputs, **_mode(type(module), train))
        if not train:
            return outputs, model_state
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))))

    return Model(init, apply)


def _mode(module: type, train: bool, set_by_hand: Sequence[str] = ()) -> dict[str, Any]:
    accepted = inspect.signature(module.__call__).parameters  # type: ignore[operator]
    return {name: f(train) for name, f in _MODES.items() if name in accepted and name not in set_by_hand}


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _filled(abstract: Any, values: PyTree) -> Any:
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(values))


def _seeded(streams: Any, key: jax.Array) -> Any:
    leaves, treedef = jax.tree.flatten(streams)

    def seed(i: int, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            own = jax.random.fold_in(key, i)
            return jax.random.split(own, leaf.shape) if leaf.shape else own
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.unflatten(treedef, [seed(i, leaf) for i, leaf in enumerate(leaves)])
