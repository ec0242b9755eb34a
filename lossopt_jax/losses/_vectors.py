"""Norms, cosines and distances whose gradient is finite where the textbook one is not: at zero."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .._types import Scalar, to_float32


@jax.custom_jvp
def norm(x: jax.Array, degree: Scalar = 2.0) -> jax.Array:
    """(sum |x|^degree)^(1 / degree) over the last axis, [*b, d] -> [*b]; degree > 0, may be traced or infinite; the gradient at 0 is 0."""
    degree = jnp.asarray(degree, x.dtype)

    def power(size: jax.Array) -> jax.Array:  # a product costs a fraction of a power
        return lax.cond(degree == 2, jnp.square, lambda s: s**degree, size)

    def finite(x: jax.Array) -> jax.Array:
        size, huge, total = _scaled_sum(x, lambda x: power(jnp.abs(x)))
        root = lax.cond(degree == 2, jnp.sqrt, lambda t: t ** (1 / degree), jnp.where(total == 0, 1, total))
        return (jnp.where(total == 0, 0, root) * size * huge)[..., 0]

    return lax.cond(jnp.isinf(degree), lambda x: jnp.abs(x).max(-1, initial=0), finite, x)


def _norm_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, degree), (dx, ddegree) = primals, tangents
    degree = jnp.asarray(degree, x.dtype)
    length = norm(x, degree)
    huge = jnp.where(length > jnp.finfo(x.dtype).max / 8, jnp.asarray(8, x.dtype), 1)  # see `_scaled_sum`
    unit = x / huge[..., None] / (jnp.where(length == 0, 1, length) / huge)[..., None]
    tangent = jnp.zeros_like(length)
    if not isinstance(dx, SymbolicZero):
        tangent += (lax.cond(degree == 2, lambda u: u, lambda u: _slope(u, degree), unit) * dx).sum(-1)
    if not isinstance(ddegree, SymbolicZero):
        size = jnp.where(unit == 0, 1, jnp.abs(unit))
        powers = jnp.where(unit == 0, 0, size**degree)
        total = powers.sum(-1)
        tangent += length / (degree * jnp.where(total == 0, 1, total)) * (powers * jnp.log(size)).sum(-1) * ddegree
    return length, tangent


norm.defjvp(_norm_jvp, symbolic_zeros=True)


def _slope(unit: jax.Array, degree: jax.Array) -> jax.Array:
    """unit |unit|^(degree - 2): at 0 it is 0, and so is its own slope. Of an infinite degree the largest share it."""
    zero, size = unit == 0, jnp.abs(unit)
    largest = (size > 0) & (size >= size.max(-1, keepdims=True, initial=0))
    shared = jnp.sign(unit) * largest / largest.sum(-1, keepdims=True).clip(1)
    return jnp.where(jnp.isinf(degree), shared, unit * jnp.where(zero, 0, jnp.where(zero, 1, size) ** (degree - 2)))


def unit_vectors(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; 0 where x is 0, with gradient 0."""
    scale, inverse = inverse_norms(x)
    return x * scale * inverse


def inverse_norms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 / |x| as two factors, [*b, 1] each, since it may overflow, and x times one of them does not; (1, 0) where x is 0."""
    size, huge, square = _scaled_sum(x, jnp.square)
    return 1 / size, jnp.where(square == 0, 0, lax.rsqrt(jnp.where(square == 0, 1, square))) / huge


def _scaled_sum(x: jax.Array, of: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(size, huge, the sum of `of(x / huge / size)`), [*b, 1] each: 1 and 1, unless the sum has overflown or lost digits to underflow.

    Then their product is the largest there is in the vector, a constant to differentiation; huge is 8 where 1 / that is too small a
    number to be kept. The sum is 0 for the vector 0 alone.
    """
    plain, extremes = of(x).sum(-1, keepdims=True), jnp.finfo(x.dtype)
    least, most = extremes.tiny * 1e10, extremes.max
    # By the least and the largest sum: XLA adds up floats much faster than it goes through bools.
    all_ordinary = (plain.min(initial=1) > least) & (plain.max(initial=1) <= most)

    def by_the_largest() -> tuple[jax.Array, jax.Array, jax.Array]:
        ordinary = (plain > least) & (plain <= most)
        largest = lax.stop_gradient(jnp.abs(x)).max(-1, keepdims=True, initial=0)
        size = jnp.where(ordinary | (largest == 0), 1, jnp.maximum(largest, extremes.tiny))
        huge = jnp.where(size > extremes.max / 8, jnp.asarray(8, x.dtype), 1)
        return size / huge, huge, of(x / huge / (size / huge)).sum(-1, keepdims=True)

    # Ordinary vectors cost one pass; to look for the largest first would be another.
    return lax.cond(all_ordinary, lambda: (jnp.ones_like(plain), jnp.ones_like(plain), plain), by_the_largest)


def all_cosines(left: jax.Array, right: jax.Array) -> jax.Array:
    """Cosine of each with each: [b, d], [k, d] -> [b, k], the product in full float32 also where the backend's default is less."""
    return jnp.matmul(unit_vectors(left), unit_vectors(right).T, precision=lax.Precision.HIGHEST)


def all_distances(x: jax.Array, degree: Scalar = 2.0) -> jax.Array:
    """Distance of each from each: [b, d] -> [b, b], from differences, since |x|^2 + |y|^2 - 2 x y cancels for near neighbours."""
    return norm(x[:, None, :] - x[None, :, :], degree)


def vectors(outputs: Any, *, count: int, loss: str, what: str) -> tuple[jax.Array, ...]:
    """`count` arrays of one shape [*b, d] from a tuple, in float32; anything else raises with the shapes."""
    if not isinstance(outputs, tuple | list) or len(outputs) != count:
        got = f"{len(outputs)} arrays" if isinstance(outputs, tuple | list) else f"one array {jnp.shape(outputs)}"
        raise ValueError(f"{loss}: outputs must be {what}, a tuple of {count} arrays [*b, d], got {got}")
    shapes = [jnp.shape(x) for x in outputs]
    if len(set(shapes)) != 1 or not shapes[0]:
        raise ValueError(f"{loss}: outputs must be {what}, arrays of one shape [*b, d], got shapes {' and '.join(map(str, shapes))}")
    return tuple(to_float32(x) for x in outputs)
