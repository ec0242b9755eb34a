"""A linear function and its transpose, each written by hand, as one thing that JAX can differentiate both ways and vmap.

`custom_vjp` has no forward mode, a `custom_jvp` leaves the transpose to JAX, which would keep every block of a loop, and
`jax.custom_derivatives.linear_call` has no batching and no derivative in what it holds fixed. This has all three.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from .._types import PyTree

Flat = Callable[[list[jax.Array], list[jax.Array]], list[jax.Array]]


class _Pair(NamedTuple):
    forward: Flat
    transposed: Flat

    def swapped(self) -> "_Pair":
        return _Pair(self.transposed, self.forward)


def linear_map(
    forward: Callable[[PyTree, PyTree], PyTree], transposed: Callable[[PyTree, PyTree], PyTree], fixed: PyTree, linear: PyTree
) -> PyTree:
    """forward(fixed, linear), which reverse mode transposes into transposed(fixed, cotangents).

    forward: linear in `linear`, and differentiable by JAX in `fixed`. transposed: takes what looks like forward's output and
    returns what looks like `linear`. Neither closes over a traced array.
    """
    fixed_leaves, fixed_tree = jax.tree.flatten(fixed)
    linear_leaves, linear_tree = jax.tree.flatten(linear)
    out_tree = jax.tree.structure(jax.eval_shape(forward, fixed, linear))

    def flat(fn: Callable[[PyTree, PyTree], PyTree], tree: Any) -> Flat:
        return lambda held, given: jax.tree.leaves(fn(jax.tree.unflatten(fixed_tree, held), jax.tree.unflatten(tree, given)))

    outs = _apply(_Pair(flat(forward, linear_tree), flat(transposed, out_tree)), fixed_leaves, linear_leaves)
    return jax.tree.unflatten(out_tree, outs)


def _apply(pair: _Pair, fixed: list[Any], linear: list[Any]) -> list[Any]:
    held = len(fixed)
    jaxpr = jax.make_jaxpr(lambda *args: pair.forward(list(args[:held]), list(args[held:])))(*fixed, *linear)
    return linear_map_p.bind(*fixed, *linear, pair=pair, held=held, jaxpr=jaxpr)


def _run(*args: Any, pair: _Pair, held: int, jaxpr: Any) -> list[Any]:
    return jaxpr_as_fun(jaxpr)(*args)


def _jvp(primals: Any, tangents: Any, *, pair: _Pair, held: int, jaxpr: Any) -> tuple[list[Any], list[Any]]:
    fixed, linear = list(primals[:held]), list(primals[held:])
    outs = linear_map_p.bind(*primals, pair=pair, held=held, jaxpr=jaxpr)
    tangents_out = []
    if not all(isinstance(t, ad.Zero) for t in tangents[held:]):
        tangents_out.append(_apply(pair, fixed, [ad.instantiate_zeros(t) for t in tangents[held:]]))
    moved = [i for i, t in enumerate(tangents[:held]) if not isinstance(t, ad.Zero)]
    if moved:

        def of_moved(*values: Any) -> list[Any]:
            replaced = dict(zip(moved, values, strict=True))
            return pair.forward([replaced.get(i, x) for i, x in enumerate(fixed)], linear)

        tangents_out.append(jax.jvp(of_moved, tuple(fixed[i] for i in moved), tuple(tangents[i] for i in moved))[1])
    return outs, [sum(parts[1:], parts[0]) for parts in zip(*tangents_out, strict=True)]


def _transpose(cotangents: Any, *args: Any, pair: _Pair, held: int, jaxpr: Any) -> list[Any]:
    given = [ad.instantiate_zeros(ct) for ct in cotangents]
    outs = _apply(pair.swapped(), list(args[:held]), given)
    return [None] * held + [out if ad.is_undefined_primal(x) else None for x, out in zip(args[held:], outs, strict=True)]


def _batch(args: Any, dims: Any, *, pair: _Pair, held: int, jaxpr: Any) -> tuple[list[Any], list[int]]:
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    # What is linear gets the axis in any case: its cotangent will have it.
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    linear = [jnp.broadcast_to(x[None], (size, *x.shape)) if d is None else x for x, d in zip(moved[held:], dims[held:], strict=True)]
    axes = ([None if d is None else 0 for d in dims[:held]], 0)
    lanes = _Pair(jax.vmap(pair.forward, in_axes=axes), jax.vmap(pair.transposed, in_axes=axes))
    outs = _apply(lanes, moved[:held], linear)
    return outs, [0] * len(outs)


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True
linear_map_p.def_impl(_run)
linear_map_p.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
mlir.register_lowering(linear_map_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
