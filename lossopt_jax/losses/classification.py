"""Losses over classes, from logits: cross-entropies, margins and divergences."""

import jax
import jax.numpy as jnp

from .._types import Scalar, Vector, check_same_shape, to_float32
from ._labels import binary_targets, class_targets, class_vector, label_weights, last_axis, weigh_classes, weighed_by
from ._stable import lead, smooth_label_nll, soft_nll, softplus_pair, times

__all__ = ["binary_cross_entropy", "cross_entropy"]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, *, pos_weight: Vector = 1.0, label_smoothing: Scalar = 0.0) -> jax.Array:
    """Negative log-likelihood of a coin with logit x: -w t log sigmoid(x) - (1 - t) log sigmoid(-x), elementwise.

    logits: [*b]; targets: [*b], 0 or 1 or between (any other integer is NaN) -> [*b].
    pos_weight: w, a number or one per entry of the last axis, default 1.
    label_smoothing: a, moves targets to t (1 - a) + a / 2, default 0 (Keras has this one, torch has none).
    torch: BCEWithLogitsLoss.

    >>> binary_cross_entropy(jnp.array([0.0, 1e4, -1e4]), jnp.array([1, 1, 1])).round(4)
    Array([6.9310e-01, 0.0000e+00, 1.0000e+04], dtype=float32)
    """
    check_same_shape(logits, targets, loss="binary_cross_entropy")
    x, t = to_float32(logits), binary_targets(targets, loss="binary_cross_entropy")
    t = t * (1 - label_smoothing) + label_smoothing / 2
    if_no, if_yes = softplus_pair(x)
    return times(t * last_axis(pos_weight, x, what="binary_cross_entropy: pos_weight"), if_yes) + times(1 - t, if_no)


@weighed_by(weigh_classes)
def cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: Scalar = 0.0, class_weights: Vector | None = None, ignore_index: int = -100
) -> jax.Array:
    """Negative log-likelihood under a softmax: -sum_j w_j q_j log softmax(z)_j, over the last axis.

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b].
    label_smoothing: a moves q to (1 - a) q + a / c, default 0 (Szegedy et al. 2016, arXiv:1512.00567; torch's convention).
    class_weights: w [c] or None. ignore_index: the label that counts for nothing, in value, gradient and mean, default -100.
    Any other label that is no class is NaN in value and gradient, for its example alone (ValueError where its value is known).

    The mean divides by the sum of class weights of what counted, as torch does for labels. To divide by the number
    of examples instead (torch, for a distribution; Keras) average these values yourself.
    torch: CrossEntropyLoss(reduction="none"). optax: softmax_cross_entropy(_with_integer_labels).

    >>> cross_entropy(jnp.array([[2.0, 0.0], [1e4, 1e4]]), jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    z, labels, probs, counts = class_targets(logits, targets, loss="cross_entropy", ignore_index=ignore_index)
    w = jnp.ones(z.shape[-1], z.dtype) if class_weights is None else class_vector(class_weights, z.shape[-1], loss="cross_entropy")
    on, off = 1 - label_smoothing, label_smoothing / z.shape[-1]
    if labels is None:
        return soft_nll(z, (on * probs + off) * lead(w, z))
    on = on if class_weights is None else on * label_weights(w, labels)
    return counts * smooth_label_nll(z, labels, jnp.asarray(on, z.dtype), jnp.asarray(off, z.dtype), w)
