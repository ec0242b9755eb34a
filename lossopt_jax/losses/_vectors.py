"""Norms, cosines and distances whose gradient is finite where the textbook one is not: at zero."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .._types import Scalar, to_float32


@jax.custom_jvp
def norm(x: jax.Array, degree: Scalar = 2.0) -> jax.Array:
    """(sum |x|^degree)^(1 / degree) over the last axis, [*b, d] -> [*b]; degree > 0, may be traced or infinite; the gradient at 0 is 0."""
    size = jnp.abs(x)
    # Measured from the largest, a constant since the norm is homogeneous: no overflow, and powers of ordinary numbers.
    largest = lax.stop_gradient(size.max(-1, keepdims=True, initial=0))
    unit = size / jnp.where(largest == 0, 1, largest)
    powers = jnp.where(unit == 0, 0, jnp.where(unit == 0, 1, unit) ** degree)
    total = powers.sum(-1)
    return largest[..., 0] * jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / jnp.asarray(degree, x.dtype)))


def _norm_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, degree), (dx, ddegree) = primals, tangents
    length = norm(x, degree)
    unit = x / jnp.where(length == 0, 1, length)[..., None]
    zero = unit == 0
    size, tangent = jnp.where(zero, 1, jnp.abs(unit)), jnp.zeros_like(length)
    powers = jnp.where(zero, 0, size**degree)
    total = powers.sum(-1)  # 1, but for its rounding and where the degree is infinite
    total = jnp.where(total == 0, 1, total)
    if not isinstance(dx, SymbolicZero):
        # The slope x |x|^(degree - 2): at 0 it is 0, and so is its own, unless the degree is 2.
        slope = unit * jnp.where(zero, degree == 2, size ** (degree - 2))
        tangent += (slope * dx).sum(-1) / total
    if not isinstance(ddegree, SymbolicZero):
        tangent += length / (degree * total) * (powers * jnp.log(size)).sum(-1) * ddegree
    return length, tangent


norm.defjvp(_norm_jvp, symbolic_zeros=True)


def unit_vectors(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; 0 where x is 0, with gradient 0."""
    peak = largest(x)
    x = x / jnp.where(peak == 0, 1, peak)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square == 0, 1, square))


def largest(x: jax.Array) -> jax.Array:
    """The largest size in a vector, [*b, 1]: 0 for the vector 0 alone. A constant to differentiation."""
    return lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True, initial=0))


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
