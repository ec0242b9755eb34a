"""Losses between numbers; each is elementwise: outputs y_hat [*b], targets y [*b] -> values [*b], with e = y_hat - y."""

import jax
import jax.numpy as jnp

from .._types import Scalar, Vector, check_same_shape, to_float32
from ._labels import read_by
from ._special import expm1_over, huber_of, log_cosh_of, magnitude, not_exp
from ._stable import lead

__all__ = [
    "adaptive_robust",
    "charbonnier",
    "expectile",
    "huber",
    "log_cosh",
    "mae",
    "mape",
    "mse",
    "msle",
    "quantile",
    "smooth_l1",
    "wing",
]


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error, e^2, without the half (optax's l2_loss has one).

    outputs, targets: [*b] -> [*b]. torch: MSELoss. optax: squared_error.

    >>> mse(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([4., 0.], dtype=float32)
    """
    return jnp.square(_error(outputs, targets, "mse"))


def mae(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Absolute error, |e|; its gradient where the two are equal is 0.

    outputs, targets: [*b] -> [*b]. torch: L1Loss.

    >>> mae(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([2., 0.], dtype=float32)
    """
    return magnitude(_error(outputs, targets, "mae"))


def huber(outputs: jax.Array, targets: jax.Array, *, delta: Scalar = 1.0) -> jax.Array:
    """Quadratic near, linear far: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).

    outputs, targets: [*b] -> [*b]. delta > 0, in units of the targets, default 1. Huber 1964 (doi:10.1214/aoms/1177703732).
    torch: HuberLoss; optax: huber_loss. `smooth_l1` is this over delta.

    >>> huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]), delta=1.0)
    Array([0.125, 2.5  ], dtype=float32)
    """
    x, y = _pair(outputs, targets, "huber")
    return huber_of(x, y, jnp.asarray(delta, x.dtype))


def smooth_l1(outputs: jax.Array, targets: jax.Array, *, beta: Scalar = 1.0) -> jax.Array:
    """Quadratic near, of slope 1 far: e^2 / (2 beta) where |e| < beta, else |e| - beta / 2.

    outputs, targets: [*b] -> [*b]. beta >= 0, in units of the targets, default 1; at 0 it is `mae`.
    Girshick 2015 (arXiv:1504.08083). torch: SmoothL1Loss.

    >>> smooth_l1(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]), beta=2.0)
    Array([0.0625, 2.    ], dtype=float32)
    """
    e = _error(outputs, targets, "smooth_l1")
    near = jnp.abs(e) < beta
    c = jnp.where(near, e, 0)
    return jnp.where(near, c * c / (2 * jnp.where(beta == 0, 1, beta)), magnitude(e) - beta / 2)


def log_cosh(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """log cosh e: e^2 / 2 near, |e| - log 2 far, smooth between; its gradient is tanh e.

    outputs, targets: [*b] -> [*b]. optax: log_cosh, whose float32 is 0 at e = 1e-4; this one is exact there.

    >>> log_cosh(jnp.array([0.0, 30.0]), jnp.array([0.0, 0.0])).round()
    Array([ 0., 29.], dtype=float32)
    """
    return log_cosh_of(_error(outputs, targets, "log_cosh"))


@read_by(None)
def quantile(outputs: jax.Array, targets: jax.Array, *, level: Vector = 0.5) -> jax.Array:
    """Pinball loss: level (y - y_hat) where y >= y_hat, else (1 - level) (y_hat - y); least at the quantile of that level.

    level: a number in (0, 1), default 0.5 (half of `mae`): outputs, targets [*b] -> [*b];
    or a vector [q] of levels learned side by side: outputs [*b, q], targets [*b] -> [*b, q].
    Koenker & Bassett 1978 (doi:10.2307/1913643).

    >>> quantile(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]), level=0.75)
    Array([0.75, 0.25], dtype=float32)
    """
    level = to_float32(level)
    if level.ndim:
        if level.ndim > 1 or jnp.shape(outputs) != (*jnp.shape(targets), level.size):
            raise ValueError(
                f"quantile: with levels {level.shape} outputs must be targets' shape and an axis of that length, "
                f"got outputs {jnp.shape(outputs)} and targets {jnp.shape(targets)}"
            )
        targets = jnp.broadcast_to(jnp.asarray(targets)[..., None], jnp.shape(outputs))
        level = lead(level, jnp.asarray(outputs))
    e = _error(outputs, targets, "quantile")
    return jnp.where(e > 0, (1 - level) * e, -level * e)


def expectile(outputs: jax.Array, targets: jax.Array, *, level: Scalar = 0.5) -> jax.Array:
    """Asymmetric square: level e^2 where y >= y_hat, else (1 - level) e^2; least at the expectile of that level.

    outputs, targets: [*b] -> [*b]. level: in (0, 1), default 0.5 (half of `mse`). Newey & Powell 1987 (doi:10.2307/1911031).

    >>> expectile(jnp.array([1.0, 4.0]), jnp.array([2.0, 2.0]), level=0.75)
    Array([0.75, 1.  ], dtype=float32)
    """
    e = _error(outputs, targets, "expectile")
    return jnp.where(e > 0, 1 - level, level) * jnp.square(e)


def mape(outputs: jax.Array, targets: jax.Array, *, epsilon: Scalar = 1e-7) -> jax.Array:
    """Absolute relative error, |e| / max(|y|, epsilon), as a fraction (Keras gives it times 100).

    outputs, targets: [*b] -> [*b]. epsilon: the least size of a target, in its units, default 1e-7 (Keras's).

    >>> mape(jnp.array([3.0, 5.0]), jnp.array([2.0, -4.0]))
    Array([0.5 , 2.25], dtype=float32)
    """
    e = _error(outputs, targets, "mape")
    return magnitude(e) / jnp.maximum(jnp.abs(to_float32(targets)), epsilon)


def msle(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error of logarithms, (log(1 + y_hat) - log(1 + y))^2, for near ones as log1p(e / (1 + y))^2, where nothing cancels.

    outputs, targets: [*b], above -1 (else NaN; Keras clips at 0, which stops the gradient) -> [*b].

    >>> msle(jnp.array([0.0, 3.0]), jnp.array([0.0, 3.0]))
    Array([0., 0.], dtype=float32)
    """
    y_hat, y = _pair(outputs, targets, "msle")
    base = 1 + y
    ratio = (y_hat - y) / jnp.where(base > 0, base, jnp.nan)
    far = ratio < -0.5
    return jnp.square(jnp.where(far, jnp.log1p(y_hat) - jnp.log1p(y), jnp.log1p(jnp.where(far, 0, ratio))))


def charbonnier(outputs: jax.Array, targets: jax.Array, *, epsilon: Scalar = 1e-3) -> jax.Array:
    """A smooth absolute error, sqrt(e^2 + epsilon^2).

    outputs, targets: [*b] -> [*b]. epsilon >= 0: the value at e = 0, in units of the targets, default 1e-3.
    Charbonnier et al. 1994 (doi:10.1109/ICIP.1994.413553), as in Lai et al. 2017 (arXiv:1704.03915).

    >>> charbonnier(jnp.array([0.0, 4.0]), jnp.array([0.0, 0.0]), epsilon=3.0)
    Array([3., 5.], dtype=float32)
    """
    square = jnp.square(_error(outputs, targets, "charbonnier")) + jnp.square(epsilon)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def wing(outputs: jax.Array, targets: jax.Array, *, width: Scalar = 10.0, epsilon: Scalar = 2.0) -> jax.Array:
    """Steep near, linear far: w log(1 + |e| / epsilon) where |e| < w, else |e| - w + w log(1 + w / epsilon).

    outputs, targets: [*b] -> [*b]. width: w > 0, in units of the targets (pixels, in the paper), default 10.
    epsilon > 0: how sharply it bends at 0, default 2. Feng et al. 2018 (arXiv:1711.06753).

    >>> wing(jnp.array([2.0, 20.0]), jnp.array([0.0, 0.0])).round(1)
    Array([ 6.9, 27.9], dtype=float32)
    """
    a = magnitude(_error(outputs, targets, "wing"))
    return jnp.where(a < width, width * jnp.log1p(a / epsilon), a - width + width * jnp.log1p(width / epsilon))


def adaptive_robust(outputs: jax.Array, targets: jax.Array, *, alpha: Scalar = 1.0, scale: Scalar = 1.0) -> jax.Array:
    """One family by its shape: (b / alpha) ((x^2 / b + 1)^(alpha / 2) - 1), with x = e / scale and b = |alpha - 2|.

    alpha: 2 is x^2 / 2, 1 Charbonnier less its floor (the default), 0 Cauchy, -2 Geman-McClure, -inf Welsch; its limits
        are taken exactly, so it may be swept across them, or learned.
    outputs, targets: [*b] -> [*b]. scale > 0: where it bends, in units of the targets, default 1.
    Barron 2019 (arXiv:1701.03077).

    >>> adaptive_robust(jnp.array([1.0]), jnp.array([0.0]), alpha=jnp.array(2.0))
    Array([0.5], dtype=float32)
    """
    square = jnp.square(_error(outputs, targets, "adaptive_robust") / scale)
    alpha = jnp.asarray(alpha, square.dtype)
    welsch = jnp.isneginf(alpha)
    alpha = jnp.where(welsch, 1, alpha)
    b = jnp.abs(alpha - 2)
    # expm1(k L) / k with L = log1p(x^2 / b) has alpha = 0 inside it, and loses no digits near it
    general = b / 2 * expm1_over(alpha / 2, jnp.log1p(square / jnp.where(b == 0, 1, b)))
    return jnp.where(welsch, not_exp(square / 2), jnp.where(b == 0, square / 2, general))


def _error(outputs: jax.Array, targets: jax.Array, loss: str) -> jax.Array:
    x, y = _pair(outputs, targets, loss)
    return x - y


def _pair(outputs: jax.Array, targets: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    check_same_shape(outputs, targets, loss=loss)
    return to_float32(outputs), to_float32(targets)
