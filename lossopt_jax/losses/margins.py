"""Losses that ask for a margin, an order or a sparse answer."""

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, Vector, check_same_shape, to_float32
from ._labels import binary_targets, class_targets, label_targets, label_weights, optional_vector, read_by, weigh_classes, weighed_by
from ._stable import hot, peak_of, pick, softplus_pair, times

__all__ = ["hinge", "multi_margin", "multiclass_hinge", "ordinal", "sparsemax", "squared_hinge"]


def hinge(outputs: jax.Array, targets: jax.Array, *, margin: Scalar = 1.0) -> jax.Array:
    """max(0, margin - t y), elementwise.

    outputs: y [*b]; targets: t [*b], -1 or 1 (or bools; any other integer is NaN) -> [*b]. margin > 0, default 1.
    Cortes & Vapnik 1995 (doi:10.1007/BF00994018). optax: hinge_loss.

    >>> hinge(jnp.array([0.5, -2.0]), jnp.array([1, 1]))
    Array([0.5, 3. ], dtype=float32)
    """
    return jnp.maximum(_shortfall(outputs, targets, margin, "hinge"), 0)


def squared_hinge(outputs: jax.Array, targets: jax.Array, *, margin: Scalar = 1.0) -> jax.Array:
    """max(0, margin - t y)^2, elementwise.

    outputs: y [*b]; targets: t [*b], -1 or 1 (or bools; any other integer is NaN) -> [*b]. margin > 0, default 1.

    >>> squared_hinge(jnp.array([0.5, -2.0]), jnp.array([1, 1]))
    Array([0.25, 9.  ], dtype=float32)
    """
    return jnp.square(jnp.maximum(_shortfall(outputs, targets, margin, "squared_hinge"), 0))


@weighed_by(weigh_classes)
def multiclass_hinge(logits: jax.Array, labels: jax.Array, *, margin: Scalar = 1.0, ignore_index: int = -100) -> jax.Array:
    """By how much the label fails to lead the best of the others: max(0, margin + max_{j != y} z_j - z_y).

    logits: z [*b, c]; labels: y [*b] -> [*b]. margin > 0, default 1. ignore_index: see `cross_entropy`.
    Crammer & Singer 2001 (JMLR 2:265). optax: multiclass_hinge_loss. `multi_margin` sums over the others instead.

    >>> multiclass_hinge(jnp.array([[2.0, 1.5, 0.0]]), jnp.array([0]))
    Array([0.5], dtype=float32)
    """
    z, labels, counts = label_targets(logits, labels, loss="multiclass_hinge", ignore_index=ignore_index)
    rival = jnp.where(hot(labels, z.shape[-1]), -jnp.inf, z).max(-1)
    return counts * jnp.maximum(margin + rival - pick(z, labels), 0)


@weighed_by(weigh_classes)
def multi_margin(
    logits: jax.Array, labels: jax.Array, *, margin: Scalar = 1.0, class_weights: Vector | None = None, ignore_index: int = -100
) -> jax.Array:
    """By how much the label fails to lead each other class: w_y / c sum_{j != y} max(0, margin + z_j - z_y).

    logits: z [*b, c]; labels: y [*b] -> [*b]. margin > 0, default 1. class_weights: w [c] or None. ignore_index: see `cross_entropy`.
    Weston & Watkins 1999, over c. torch: MultiMarginLoss(p=1).

    >>> multi_margin(jnp.array([[2.0, 1.5, 1.25, 0.0]]), jnp.array([0]))
    Array([0.1875], dtype=float32)
    """
    z, labels, counts = label_targets(logits, labels, loss="multi_margin", ignore_index=ignore_index)
    w = optional_vector(class_weights, z.shape[-1], loss="multi_margin")
    over = jnp.maximum(margin + z - pick(z, labels)[..., None], 0)
    value = jnp.where(hot(labels, z.shape[-1]), 0, over).sum(-1) / z.shape[-1]
    return counts * (value if w is None else value * label_weights(w, labels))


@read_by(lambda z, labels: (z > 0).sum(-1) == labels, outputs=lambda shape: ((shape or (2,))[0] - 1,))
@weighed_by(weigh_classes)
def ordinal(logits: jax.Array, labels: jax.Array, *, ignore_index: int = -100) -> jax.Array:
    """For classes in order, one question for each step between two: sum_k BCE(z_k, y > k), k = 0 ... c - 2.

    logits: z [*b, c - 1], one per step; labels: y [*b], 0 to c - 1 -> [*b]. ignore_index: see `cross_entropy`.
    CORAL: Cao et al. 2020 (arXiv:1901.07884), where the logits share their weights and differ by a bias.

    >>> ordinal(jnp.array([[5.0, 0.0]]), jnp.array([1])).round(4)
    Array([0.6999], dtype=float32)
    """
    steps = (jnp.shape(logits) or (0,))[-1]
    z, labels, counts = label_targets(logits, labels, loss="ordinal", ignore_index=ignore_index, classes=steps + 1)
    step = lax.broadcasted_iota(labels.dtype, z.shape, z.ndim - 1)
    if_no, if_yes = softplus_pair(z)
    return counts * jnp.where(labels[..., None] > step, if_yes, if_no).sum(-1)


@weighed_by(weigh_classes)
def sparsemax(logits: jax.Array, targets: jax.Array, *, ignore_index: int = -100) -> jax.Array:
    """The loss of sparsemax(z), a softmax that reaches 0: (|q|^2 - |p|^2) / 2 + (p - q) . z; its gradient is p - q.

    With threshold tau and support S it is |p - q|^2 / 2 + sum_{j not in S} q_j (tau - z_j): terms >= 0, so nothing cancels.

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b]. ignore_index: see `cross_entropy`.
    Martins & Astudillo 2016 (arXiv:1602.02068). optax: sparsemax_loss (two classes); jaxopt: multiclass_sparsemax_loss.

    >>> sparsemax(jnp.array([[0.0, 0.0], [2.0, 0.0]]), jnp.array([0, 0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    given = class_targets(logits, targets, loss="sparsemax", ignore_index=ignore_index)
    z, q = given.logits, given.one_hot()
    z = z - peak_of(z)
    inside = _support(lax.stop_gradient(z))
    tau = (jnp.where(inside, z, 0).sum(-1, keepdims=True) - 1) / inside.sum(-1, keepdims=True, dtype=z.dtype)
    p = jnp.where(inside, z - tau, 0)
    missed = times(q, jnp.where(inside, 0, tau - z)).sum(-1)
    return given.counts * (jnp.square(p - q).sum(-1) / 2 + missed)


def _support(z: jax.Array) -> jax.Array:
    """[*b, c] bool: where the projection of z on the simplex is not 0."""
    ordered = -jnp.sort(-z, axis=-1)
    count = 1 + lax.broadcasted_iota(z.dtype, z.shape, z.ndim - 1)
    taus = (jnp.cumsum(ordered, -1) - 1) / count
    size = (ordered > taus).sum(-1, keepdims=True)
    return z > jnp.take_along_axis(taus, size - 1, -1)


def _shortfall(outputs: jax.Array, targets: jax.Array, margin: Scalar, loss: str) -> jax.Array:
    check_same_shape(outputs, targets, loss=loss)
    return margin - to_float32(outputs) * binary_targets(targets, loss=loss, low=-1)
