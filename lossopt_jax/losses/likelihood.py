"""Negative log-likelihoods of numbers: the outputs are the parameters of a distribution over each target.

A location and a scale are the two entries of the outputs' last axis, the scale as a logarithm: outputs [*b, 2],
targets y [*b] -> values [*b].
"""

import math

import jax
import jax.numpy as jnp

from .._types import Scalar, check_same_shape, to_float32
from ._labels import read_by
from ._special import magnitude, stirling_rest

__all__ = ["gaussian_nll", "laplace_nll", "poisson_nll", "student_t_nll", "tweedie"]


@read_by(None, outputs=lambda shape: (*shape, 2))
def gaussian_nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Of a normal with mean mu and variance e^s: (s + (y - mu)^2 e^-s) / 2, up to the constant log(2 pi) / 2 = 0.9189.

    outputs: [*b, 2], mu and s (the log of the variance); targets: [*b] -> [*b].
    Nix & Weigend 1994 (doi:10.1109/ICNN.1994.374138). torch: GaussianNLLLoss, which takes the variance and clips it at 1e-6.

    >>> gaussian_nll(jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([3.0, 1.0]))
    Array([2., 1.], dtype=float32)
    """
    residual, log_variance = _residual(outputs, targets, "gaussian_nll")
    return (log_variance + jnp.square(_over_scale(residual, log_variance / 2))) / 2


@read_by(None, outputs=lambda shape: (*shape, 2))
def laplace_nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Of a Laplace distribution with location mu and scale e^s: |y - mu| e^-s + s + log 2.

    outputs: [*b, 2], mu and s (the log of the scale); targets: [*b] -> [*b].

    >>> laplace_nll(jnp.array([[1.0, 0.0]]), jnp.array([3.0])).round(4)
    Array([2.6931], dtype=float32)
    """
    residual, log_scale = _residual(outputs, targets, "laplace_nll")
    return magnitude(_over_scale(residual, log_scale)) + log_scale + math.log(2)


@read_by(None, outputs=lambda shape: (*shape, 2))
def student_t_nll(outputs: jax.Array, targets: jax.Array, *, df: Scalar = 4.0) -> jax.Array:
    """Of Student's t: (df + 1) / 2 log(1 + x^2 / df) + s - log G((df + 1) / 2) + log G(df / 2) + log(pi df) / 2, x = (y - mu) e^-s.

    outputs: [*b, 2], mu and s (the log of the scale); targets: [*b] -> [*b].
    df > 0: degrees of freedom, default 4; 1 is Cauchy, and as it grows a normal. Lange et al. 1989 (doi:10.2307/2290063).

    >>> student_t_nll(jnp.array([[1.0, 0.0]]), jnp.array([1.0])).round(4)
    Array([0.9808], dtype=float32)
    """
    residual, log_scale = _residual(outputs, targets, "student_t_nll")
    df = jnp.asarray(df, residual.dtype)
    # Beyond x = 1e9 the 1 is lost in x^2 / df, and its logarithm is taken without x, which may overflow.
    zero = residual == 0
    log_x = jnp.log(jnp.where(zero, 1, jnp.abs(residual))) - log_scale
    far = ~zero & (log_x > math.log(1e9))
    x = _over_scale(jnp.where(far, 0, residual), jnp.where(far, 0, log_scale))
    tail = jnp.where(far, 2 * jnp.where(far, log_x, 0) - jnp.log(df), jnp.log1p(jnp.square(x) / df))
    return (df + 1) / 2 * tail + log_scale + _student_normaliser(df / 2)


def poisson_nll(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Of a count y with rate e^z: e^z - y z, up to the constant log y!.

    outputs: z [*b], the log of the rate; targets: y >= 0 [*b] -> [*b]. Beyond z = 88 the rate has no float32, and the value is inf.
    torch: PoissonNLLLoss(log_input=True, full=False).

    >>> poisson_nll(jnp.array([0.0, 0.0]), jnp.array([3.0, 0.0]))
    Array([1., 1.], dtype=float32)
    """
    check_same_shape(outputs, targets, loss="poisson_nll")
    z = to_float32(outputs)
    return jnp.exp(z) - to_float32(targets) * z


def tweedie(outputs: jax.Array, targets: jax.Array, *, power: Scalar = 1.5) -> jax.Array:
    """Of a compound Poisson-gamma with mean e^z: -y e^((1 - p) z) / (1 - p) + e^((2 - p) z) / (2 - p), up to a constant in z.

    outputs: z [*b], the log of the mean; targets: y >= 0 [*b], zeros welcome -> [*b]. power: 1 < p < 2, default 1.5.
    Jorgensen 1987 (doi:10.1111/j.2517-6161.1987.tb01685.x); XGBoost's and LightGBM's tweedie objective.

    >>> tweedie(jnp.array([0.0]), jnp.array([1.0]))
    Array([4.], dtype=float32)
    """
    check_same_shape(outputs, targets, loss="tweedie")
    z, y = to_float32(outputs), to_float32(targets)
    # At y = 0 the factor, which may be infinite, has nothing to multiply.
    shrinking = jnp.exp(jnp.where(y == 0, 0, (1 - power) * z))
    return y * shrinking / (power - 1) + jnp.exp((2 - power) * z) / (2 - power)


def _student_normaliser(a: jax.Array) -> jax.Array:
    """log G(a) - log G(a + 1/2) + log(2 pi a) / 2, by Stirling's formula with its rest: log-gammas grow, their difference does not."""
    return (math.log(2 * math.pi) + 1) / 2 - a * jnp.log1p(0.5 / a) + stirling_rest(a)[0] - stirling_rest(a + 0.5)[0]


def _residual(outputs: jax.Array, targets: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    if jnp.shape(outputs) != (*jnp.shape(targets), 2):
        raise ValueError(
            f"{loss}: outputs must be the targets' shape and a last axis of 2 (location, log of the scale), "
            f"got outputs {jnp.shape(outputs)} and targets {jnp.shape(targets)}"
        )
    outputs = to_float32(outputs)
    return to_float32(targets) - outputs[..., 0], outputs[..., 1]


def _over_scale(residual: jax.Array, log_scale: jax.Array) -> jax.Array:
    """residual / e^log_scale, and 0 for a residual of 0 though the scale be none."""
    return residual * jnp.exp(-jnp.where((residual == 0) & (log_scale < -80), 0, log_scale))
