"""Divergences that keep their digits where the two distributions nearly agree: their terms cancel to second order one by one.

Summed as they are written, the terms are of the first order in the difference, and only their rounding would be left.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ._stable import nll_of_all, peak_of, soft_slope, top_parts


@jax.custom_jvp
def kl_of(logits: jax.Array, q: jax.Array) -> jax.Array:
    """KL(q | softmax(logits)) = sum_j q_j log q_j + q_j nll_j, q >= 0 of any sum: [*b, c], [*b, c] -> [*b]."""
    _, e, more = top_parts(logits)
    # `nll_of_all`, whose exponential is at hand. Not by the difference as `top_parts` has it, which XLA would then keep as an array.
    minus_log_p = jnp.log1p(more) - (logits + -peak_of(logits))
    mass = q.sum(-1) - 1
    # What q has beside a distribution's mass counts by the formula; what is rounding of its sum does not.
    surplus = jnp.where(jnp.abs(mass) < 8 * jnp.finfo(q.dtype).eps, 0, mass)
    return relative_entropy(q, e * (1 / (1 + more)), minus_log_p) + surplus


def _kl_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (logits, q), (dlogits, dq) = primals, tangents
    out = kl_of(logits, q)
    tangent = jnp.zeros_like(out)
    if not isinstance(dlogits, SymbolicZero):
        tangent += (soft_slope(logits, q) * dlogits).sum(-1)
    if not isinstance(dq, SymbolicZero):
        tangent += ((log_least(q) + nll_of_all(logits) + 1) * dq).sum(-1)
    return out, tangent


kl_of.defjvp(_kl_jvp, symbolic_zeros=True)


def log_least(q: jax.Array) -> jax.Array:
    """log q, and the least logarithm there is where q is 0."""
    return jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny))


def relative_entropy(q: jax.Array, p: jax.Array, minus_log_p: jax.Array, log_ratio: jax.Array | None = None) -> jax.Array:
    """sum_j q_j d_j - q_j + p_j, d = log(q / p): terms >= 0, [*b, c] -> [*b]; log_ratio: d, where it is known to more digits.

    Of two distributions it is sum_j q_j d_j, whose terms are of the first order in d and cancel to the second. Infinite where p alone is 0.
    """
    most = jnp.finfo(q.dtype).max
    d = jnp.minimum(log_least(q) + minus_log_p if log_ratio is None else log_ratio, most)  # times a q of 0 it is 0
    near = jnp.abs(d) < 0.5
    total = jnp.where(near, q * _above_tangent(jnp.where(near, d, 0)), q * (d - 1) + p).sum(-1)
    return jnp.where(total > most * 1e-8, jnp.inf, total)


def _above_tangent(d: jax.Array) -> jax.Array:
    """d + e^-d - 1 for |d| < 1/2, by its series, to within the rounding of d's type."""
    total = jnp.zeros_like(d)
    for n in range(14 if d.dtype == jnp.float64 else 9, 1, -1):
        total = total * d + (-1) ** n / math.factorial(n)
    return total * jnp.square(d)


@jax.custom_jvp
def js_terms(p: jax.Array, not_p: jax.Array, q: jax.Array) -> jax.Array:
    """(p log(p / m) + q log(q / m)) / 2 with m = (p + q) / 2, and not_p = 1 - p: what Jensen and Shannon's divergence sums.

    With t = (p - q) / (p + q) it is m ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2, in which the first order in t cancels on paper.
    """
    total, t = _js_parts(p, not_p, q)
    small, size = jnp.abs(t) < 0.5, jnp.abs(t)
    inner, rest = jnp.where(small, size, 0), 2 * jnp.minimum(p, q) / total
    near = inner * (jnp.log1p(inner) - jnp.log1p(-inner)) + jnp.log1p(-jnp.square(inner))
    far = (1 + size) * jnp.log1p(size) + rest * jnp.log(jnp.where(rest > 0, rest, 1))
    return total * jnp.where(small, near, far) / 4


def _js_terms_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (p, not_p, q), (dp, _, dq) = primals, tangents
    total, t = _js_parts(p, not_p, q)
    out = js_terms(p, not_p, q)
    tangent = jnp.zeros_like(out)
    for part, above, d in ((p, t, dp), (q, -t, dq)):
        if not isinstance(d, SymbolicZero):
            low = above < -0.5  # where 1 + t has lost digits that the part has
            share = jnp.where(low & (part > 0), 2 * part / total, 1)
            tangent += jnp.where(low, jnp.log(share), jnp.log1p(jnp.where(low, 0, above))) / 2 * d
    return out, tangent


js_terms.defjvp(_js_terms_jvp, symbolic_zeros=True)


def _js_parts(p: jax.Array, not_p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.where(p + q > 0, p + q, 1)
    return total, jnp.where(q > 0.5, (1 - q) - not_p, p - q) / total
