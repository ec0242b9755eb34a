"""Functions of one number that keep their digits, and whose derivatives do, where the textbook formula does not.

Derivatives are written out (`custom_jvp`), so forward, reverse and second order work. Softmax and sigmoid are in `_stable`.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def huber_of(x: jax.Array, y: jax.Array, delta: jax.Array) -> jax.Array:
    """c (|e| - c / 2) with c = min(|e|, delta), e = x - y: both parts of Huber's loss in one expression, of slope clip(e, -delta, delta).

    Written so that XLA on a CPU sums it without a temporary: it takes absolute values and minima into its sums, but no clamp, and
    nothing that the gradient has too, hence y - x and the halves.
    """
    size = jnp.abs(y - x)
    half = jnp.minimum(size / 2, delta / 2)
    return (half + half) * (size - half)


def _huber_of_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, y, delta), (dx, dy, ddelta) = primals, tangents
    out = huber_of(x, y, delta)
    e = x - y
    c = jnp.clip(e, -delta, delta)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += c * dx
    if not isinstance(dy, SymbolicZero):
        tangent -= c * dy
    if not isinstance(ddelta, SymbolicZero):
        tangent += jnp.abs(e - c) * ddelta
    return out, tangent


huber_of.defjvp(_huber_of_jvp, symbolic_zeros=True)


@jax.custom_jvp
def magnitude(x: jax.Array) -> jax.Array:
    """|x|, whose slope at 0 is 0; that of `jnp.abs` is 1 there (jax 0.10)."""
    return jnp.abs(x)


@magnitude.defjvp
def _magnitude_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    return magnitude(*primals), jnp.sign(primals[0]) * tangents[0]


@jax.custom_jvp
def expm1_over(k: jax.Array, x: jax.Array) -> jax.Array:
    """(e^(k x) - 1) / k, which is x at k = 0: Box-Cox, and what many families of losses turn on."""
    least = jnp.finfo(x.dtype).tiny / jnp.finfo(x.dtype).eps
    zero = (k == 0) | (jnp.abs(k * x) < least)  # also where the product is flushed to 0
    return jnp.where(zero, x, jnp.expm1(k * x) / jnp.where(k == 0, 1, k))


def _expm1_over_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (k, x), (dk, dx) = primals, tangents
    out = expm1_over(k, x)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += jnp.exp(k * x) * dx
    if not isinstance(dk, SymbolicZero):
        # x^2 sum_n (n + 1) (k x)^n / (n + 2)!, where (x e^(k x) - out) / k would cancel
        u = k * x
        near = jnp.abs(u) < 0.5
        small = jnp.where(near, u, 0)
        series = sum((n + 1) / math.factorial(n + 2) * small**n for n in range(9))
        safe = jnp.where(near, 1, k)
        tangent += jnp.where(near, jnp.square(x) * series, (x * jnp.exp(u) - out) / safe) * dk
    return out, tangent


expm1_over.defjvp(_expm1_over_jvp, symbolic_zeros=True)


def not_exp(x: jax.Array) -> jax.Array:
    """1 - e^-x; the derivative that JAX has for expm1 is 1 + expm1, which has no digits where e^-x is small."""
    return expm1_over(jnp.full((), -1, x.dtype), x)


@jax.custom_jvp
def focal_of(nll: jax.Array, gamma: jax.Array) -> jax.Array:
    """(1 - p)^gamma (-log p) of p = e^-nll. Its slope in nll is (1 - p)^gamma (1 + gamma nll / expm1(nll)).

    Autodiff would divide by 1 - p, which for gamma < 1 is inf times 0 at p = 1.
    """
    return jnp.exp(gamma * _log_not_p(nll)) * nll


def _focal_of_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (nll, gamma), (dnll, dgamma) = primals, tangents
    out = focal_of(nll, gamma)
    tangent = jnp.zeros_like(out)
    log_u = _log_not_p(nll)
    if not isinstance(dnll, SymbolicZero):
        near = nll < 1e-2
        some = jnp.clip(nll, 1e-2, 80)
        ratio = jnp.where(near, 1 - nll / 2 + jnp.square(nll) / 12, some / jnp.expm1(some))
        tangent += jnp.exp(gamma * log_u) * (1 + gamma * ratio) * dnll
    if not isinstance(dgamma, SymbolicZero):
        tangent += out * log_u * dgamma
    return out, tangent


focal_of.defjvp(_focal_of_jvp, symbolic_zeros=True)


def _log_not_p(nll: jax.Array) -> jax.Array:
    low = nll < 0.5
    some = jnp.maximum(jnp.where(low, nll, 0.5), jnp.finfo(nll.dtype).tiny)
    return jnp.where(low, jnp.log(-jnp.expm1(-some)), jnp.log1p(-jnp.exp(-jnp.maximum(nll, 0.5))))


@jax.custom_jvp
def log_cosh_of(x: jax.Array) -> jax.Array:
    """log cosh x = log1p(E^2 / (2 (1 + E))), E = expm1(|x|), whose terms are >= 0; from 20 on it is |x| - log 2 to the last digit."""
    a = jnp.abs(x)
    near = jnp.minimum(a, 20)
    e = jnp.expm1(near)
    return jnp.log1p(e * (e / (2 * (1 + e)))) + (a - near)


@log_cosh_of.defjvp
def _log_cosh_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    return log_cosh_of(*primals), jnp.tanh(primals[0]) * tangents[0]


def stirling_rest(x: jax.Array, shifts: int = 8) -> tuple[jax.Array, jax.Array]:
    """r and s in log G(x) = (x - 1/2) log x - x + log(2 pi) / 2 + r(x), digamma(x) = log x - 1 / (2 x) - s(x); x > 0.

    Each is a few differences up to x + 8 and the asymptotic series there. Where large log-gammas are subtracted, only these are left.
    """
    y = x[..., None] + jnp.arange(shifts, dtype=x.dtype).reshape((1,) * x.ndim + (shifts,))
    step = jnp.log1p(1 / y)
    r = ((y + 0.5) * step - 1).sum(-1)
    s = ((1 / y + 1 / (y + 1)) / 2 - step).sum(-1)
    inverse = 1 / (x + shifts)
    v = jnp.square(inverse)
    r = r + inverse * (1 / 12 - v * (1 / 360 - v * (1 / 1260 - v * (1 / 1680 - v / 1188))))
    s = s + v * (1 / 12 - v * (1 / 120 - v * (1 / 252 - v * (1 / 240 - v / 132))))
    return r, s
