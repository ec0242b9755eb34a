"""Losses between numbers; each is elementwise: outputs [*b], targets [*b] -> values [*b]."""

import jax
import jax.numpy as jnp

from .._types import Scalar, check_same_shape, to_float32

__all__ = ["huber", "mae", "mse"]


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error, (y_hat - y)^2, without the half (optax's l2_loss has one).

    outputs, targets: [*b] -> [*b]. torch: MSELoss.

    >>> mse(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([4., 0.], dtype=float32)
    """
    return jnp.square(_error(outputs, targets, "mse"))


def mae(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Absolute error, |y_hat - y|; its gradient where the two are equal is 0.

    outputs, targets: [*b] -> [*b]. torch: L1Loss.

    >>> mae(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([2., 0.], dtype=float32)
    """
    return jnp.abs(_error(outputs, targets, "mae"))


def huber(outputs: jax.Array, targets: jax.Array, *, delta: Scalar = 1.0) -> jax.Array:
    """Quadratic near, linear far: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), with e = y_hat - y.

    outputs, targets: [*b] -> [*b]. delta > 0, in units of the targets, default 1. Huber 1964 (doi:10.1214/aoms/1177703732).
    torch: HuberLoss; smooth_l1 is this over delta.

    >>> huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]), delta=1.0)
    Array([0.125, 2.5  ], dtype=float32)
    """
    e = _error(outputs, targets, "huber")
    c = jnp.clip(e, -delta, delta)
    return c * (e - c / 2)  # one expression for both parts, whose gradient in e is c


def _error(outputs: jax.Array, targets: jax.Array, loss: str) -> jax.Array:
    check_same_shape(outputs, targets, loss=loss)
    return to_float32(outputs) - to_float32(targets)
