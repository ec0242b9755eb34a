"""Matrix products in the form that XLA's CPU backend runs fastest, for a function as it stands.

The gradient of a matrix is a product over the examples, x [n, i] and y [n, o] -> [i, o], whose left side lies across. XLA gives such a
product to another library than its own and, of one lane, leaves the result across as well, so that the optimizer reads it against the
grain. Made from a transposed copy, a step of a network of two layers of 512 takes half the time (`tests/benchmarks/step.py`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core

F = TypeVar("F", bound=Callable[..., Any])


def with_products_along(f: F) -> F:
    """`f` (arrays, or trees of them, in and out) with each product over the leading axes of two arrays made from a transposed copy."""

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), _evaluate(closed, *jax.tree.leaves(args)))

    return rewritten  # type: ignore[return-value]


def _evaluate(closed: Any, *args: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    for eqn in jaxpr.eqns:
        into = [read(var) for var in eqn.invars]
        if _lies_across(eqn):
            out = _product_along(*into, **eqn.params)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            functions, params = params if isinstance(params, tuple) else ((), params)  # as JAX before 0.10 has it
            out = eqn.primitive.bind(*functions, *into, **_inside(params))
        values |= zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True)
    return [read(var) for var in jaxpr.outvars]


def _inside(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an equation, with such products in the function that it calls or scans rewritten, if there are any."""
    closed = params.get("jaxpr")
    if not isinstance(closed, core.ClosedJaxpr) or not _has_any(closed.jaxpr):
        return params
    inside = jax.make_jaxpr(partial(_evaluate, closed))(*closed.in_avals)
    return params | {"jaxpr": inside} if inside.out_avals == closed.out_avals else params


def _has_any(jaxpr: Any) -> bool:
    inner = (eqn.params.get("jaxpr") for eqn in jaxpr.eqns)
    return any(map(_lies_across, jaxpr.eqns)) or any(_has_any(j.jaxpr) for j in inner if isinstance(j, core.ClosedJaxpr))


def _lies_across(eqn: Any) -> bool:
    """Whether it is a product of two arrays over all axes of both but the last."""
    if eqn.primitive.name != "dot_general" or eqn.params.get("out_sharding") is not None:
        return False
    (left, right), batch = eqn.params["dimension_numbers"]
    leading = tuple(range(len(left)))
    return batch == ((), ()) and tuple(left) == tuple(right) == leading != () and {v.aval.ndim for v in eqn.invars} == {len(leading) + 1}


def _product_along(x: jax.Array, y: jax.Array, *, precision: Any, preferred_element_type: Any, **_: Any) -> jax.Array:
    x, y = (a.reshape(math.prod(a.shape[:-1]), a.shape[-1]) for a in (x, y))

    def of_turned(a: jax.Array, b: jax.Array) -> jax.Array:  # a^T b; without the barrier XLA would take the copy back
        return lax.dot_general(lax.optimization_barrier(a.T), b, (((1,), (0,)), ((), ())), precision, preferred_element_type)

    # JAX asks for a gradient as (dy^T x)^T, so what is made from the second lies right. Patches of a convolution cost more to turn than dy.
    return of_turned(y, x).T if y.size <= x.size + x.shape[1] * y.shape[1] else of_turned(x, y)
