"""Losses over classes, from logits: cross-entropies, margins and divergences."""

import jax
import jax.numpy as jnp

from .._types import Scalar, Vector, check_same_shape, to_float32
from ._divergences import js_terms, kl_of
from ._labels import (
    binary_targets,
    check_classes,
    class_vector,
    label_weights,
    last_axis,
    optional_vector,
    raw_class_targets,
    weigh_classes,
    weighed_by,
)
from ._special import focal_of, not_exp
from ._stable import (
    binary_nll,
    counted_pick,
    lead,
    log_mix,
    sigmoid_pair,
    smooth_label_nll,
    soft_nll,
    softmax_pair,
    softplus_pair,
    times,
)

__all__ = [
    "asymmetric",
    "binary_cross_entropy",
    "binary_focal",
    "cross_entropy",
    "focal",
    "js_divergence",
    "kl_divergence",
    "multilabel_soft_margin",
    "nll",
    "poly",
]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array, *, pos_weight: Vector = 1.0, label_smoothing: Scalar = 0.0) -> jax.Array:
    """Negative log-likelihood of a coin with logit x: -w t log sigmoid(x) - (1 - t) log sigmoid(-x), elementwise.

    logits: [*b]; targets: [*b], 0 or 1 or between (any other integer is NaN) -> [*b].
    pos_weight: w, a number or one per entry of the last axis, default 1.
    label_smoothing: a, moves targets to t (1 - a) + a / 2, default 0 (Keras has this one, torch has none).
    torch: BCEWithLogitsLoss.

    >>> binary_cross_entropy(jnp.array([0.0, 1e4, -1e4]), jnp.array([1, 1, 1])).round(4)
    Array([6.931e-01, 0.000e+00, 1.000e+04], dtype=float32)
    """
    check_same_shape(logits, targets, loss="binary_cross_entropy")
    x, t = to_float32(logits), binary_targets(targets, loss="binary_cross_entropy")
    t = t * (1 - label_smoothing) + label_smoothing / 2
    yes = t * last_axis(pos_weight, x, what="binary_cross_entropy: pos_weight")
    return binary_nll(x, yes, 1 - t)


@weighed_by(weigh_classes)
def cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: Scalar = 0.0, class_weights: Vector | None = None, ignore_index: int = -100
) -> jax.Array:
    """Negative log-likelihood under a softmax: -sum_j w_j q_j log softmax(z)_j, over the last axis.

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b].
    label_smoothing: a moves q to (1 - a) q + a / c, default 0 (Szegedy et al. 2016, arXiv:1512.00567; torch's convention).
    class_weights: w [c] or None. ignore_index: the label that counts for nothing, in value, gradient and mean, default -100.
    Any other label that is no class is NaN in value and gradient, for its example alone (ValueError where its value is known).

    Two conventions of the weighted mean. By the weights' sum, sum w v / sum w over what counted: torch's reduction="mean" for labels, and
    what `loss_total` and a recipe do, by this function's `weigh`. By the number of examples, sum w v / n (Keras; torch, for a
    distribution): a function of one's own that calls this one has no `weigh`, so its mean is over all, or is
    `weighted_total(values, labels != ignore_index)`.
    torch: CrossEntropyLoss(reduction="none"). optax: softmax_cross_entropy(_with_integer_labels).

    >>> cross_entropy(jnp.array([[2.0, 0.0], [1e4, 1e4]]), jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    z, labels, probs, counts = raw_class_targets(logits, targets, loss="cross_entropy", ignore_index=ignore_index)
    w = jnp.ones(z.shape[-1], z.dtype) if class_weights is None else class_vector(class_weights, z.shape[-1], loss="cross_entropy")
    on, off = 1 - label_smoothing, label_smoothing / z.shape[-1]
    if probs is not None:
        return soft_nll(z, (on * probs + off) * lead(w, z))
    assert labels is not None
    on = on if class_weights is None else on * label_weights(w, labels)
    return counts * smooth_label_nll(z, labels, jnp.asarray(on, z.dtype), jnp.asarray(off, z.dtype), w)


@weighed_by(weigh_classes)
def nll(log_probs: jax.Array, targets: jax.Array, *, class_weights: Vector | None = None, ignore_index: int = -100) -> jax.Array:
    """Negative log-likelihood of log-probabilities that a model gives itself: -sum_j w_j q_j log p_j, over the last axis.

    log_probs: [*b, c]; targets: integer labels [*b], or a distribution [*b, c] -> [*b]. class_weights, ignore_index: see `cross_entropy`.
    torch: NLLLoss.

    >>> nll(jnp.array([[-0.5, -1.0]]), jnp.array([1]))
    Array([1.], dtype=float32)
    """
    given = raw_class_targets(log_probs, targets, loss="nll", ignore_index=ignore_index)
    w = optional_vector(class_weights, given.logits.shape[-1], loss="nll")
    if given.labels is None:
        q = given.one_hot() if w is None else given.one_hot() * lead(w, given.logits)
        return times(q, -given.logits).sum(-1)
    counts = given.counts if w is None else given.counts * label_weights(w, given.labels)
    return -counted_pick(given.logits, given.labels, counts)


@weighed_by(weigh_classes)
def focal(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma: Scalar = 2.0,
    alpha: Vector | None = None,
    class_weights: Vector | None = None,
    ignore_index: int = -100,
) -> jax.Array:
    """Cross-entropy with easy examples turned down: -sum_j alpha_j q_j (1 - p_j)^gamma log p_j, p = softmax(z).

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b]. gamma >= 0, default 2; 0 is `cross_entropy`.
    alpha: a factor per class [c], or None for none; it scales values alone. class_weights count in the mean as well.
    ignore_index: see `cross_entropy`. Lin et al. 2017 (arXiv:1708.02002); `binary_focal` is the sigmoid form of the paper.

    >>> focal(jnp.array([[0.0, 0.0]]), jnp.array([0]), gamma=2.0).round(4)
    Array([0.1733], dtype=float32)
    """
    given = raw_class_targets(logits, targets, loss="focal", ignore_index=ignore_index)
    classes, dtype = given.logits.shape[-1], given.logits.dtype
    w = optional_vector(class_weights, classes, loss="focal")
    if alpha is not None:
        factor = class_vector(alpha, classes, loss="focal", name="alpha")
        w = factor if w is None else w * factor
    return given.average(lambda n: focal_of(n, jnp.asarray(gamma, dtype)), w)


def binary_focal(logits: jax.Array, targets: jax.Array, *, gamma: Scalar = 2.0, alpha: Scalar | None = None) -> jax.Array:
    """Binary cross-entropy with easy examples turned down: alpha_t (1 - p_t)^gamma BCE, p_t = t p + (1 - t) (1 - p), elementwise.

    logits: [*b], p = sigmoid(logit); targets: t [*b], 0 or 1 or between -> [*b]. gamma >= 0, default 2.
    alpha: alpha_t = alpha t + (1 - alpha) (1 - t), in (0, 1), or None for none (torchvision's default is 0.25, the paper's best).
    Lin et al. 2017 (arXiv:1708.02002). torchvision: sigmoid_focal_loss. optax: sigmoid_focal_loss.

    >>> binary_focal(jnp.array([0.0, -1e4]), jnp.array([1, 1])).round(4)
    Array([1.733e-01, 1.000e+04], dtype=float32)
    """
    check_same_shape(logits, targets, loss="binary_focal")
    t = binary_targets(targets, loss="binary_focal")
    if_no, if_yes = softplus_pair(to_float32(logits))
    # log(1 - p_t) from log(1 - p) = -if_no and log p = -if_yes: (1 - p_t)^gamma then has no infinite slope at p_t = 1
    modulator = jnp.exp(gamma * log_mix(t, -if_no, -if_yes))
    value = modulator * (times(t, if_yes) + times(1 - t, if_no))
    return value if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * value


def asymmetric(
    logits: jax.Array, targets: jax.Array, *, gamma_pos: Scalar = 1.0, gamma_neg: Scalar = 4.0, margin: Scalar = 0.05
) -> jax.Array:
    """Focal with its own exponent for negatives, and easy negatives dropped: elementwise, for many labels at once,

    -t (1 - p)^gamma_pos log p - (1 - t) p_m^gamma_neg log(1 - p_m), with p = sigmoid(logit) and p_m = max(p - margin, 0).

    logits, targets: [*b] (0 or 1) -> [*b]. gamma_pos, gamma_neg >= 0, defaults 1 and 4 (the authors' code's). margin: m >= 0, a
    probability, default 0.05. The gradient flows through the exponentiated factors too (the authors' code may stop it).
    Ridnik et al. 2021 (arXiv:2009.14119).

    >>> asymmetric(jnp.array([0.0, -3.0]), jnp.array([1, 0])).round(4)
    Array([0.3466, 0.    ], dtype=float32)
    """
    check_same_shape(logits, targets, loss="asymmetric")
    x, t = to_float32(logits), binary_targets(targets, loss="asymmetric")
    margin = jnp.asarray(margin, x.dtype)
    if_no, if_yes = softplus_pair(x)
    p = sigmoid_pair(x)[0]
    shifted = jnp.maximum(p - margin, 0)
    # -log(1 - p_m): from p_m while it is small, from log(e^-if_no + m) where 1 - p_m has no digits left
    small = shifted < 0.5
    near = -jnp.log1p(-jnp.where(small, shifted, 0))
    log_margin = jnp.log(jnp.where(margin > 0, margin, 1))
    far = jnp.where(margin > 0, -jnp.logaddexp(-if_no, log_margin), if_no)
    keep = shifted > 0
    power = jnp.where(keep, jnp.exp(gamma_neg * jnp.log(jnp.where(keep, shifted, 1))), 0)
    return times(t, jnp.exp(-gamma_pos * if_no) * if_yes) + times(1 - t, power * jnp.where(small, near, far))


@weighed_by(weigh_classes)
def poly(
    logits: jax.Array, targets: jax.Array, *, epsilon: Scalar = 1.0, class_weights: Vector | None = None, ignore_index: int = -100
) -> jax.Array:
    """Cross-entropy with its first polynomial term turned up: sum_j w_j q_j (-log p_j + epsilon (1 - p_j)), p = softmax(z).

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b]. epsilon >= -1, default 1; 0 is
    `cross_entropy`, whose class_weights and ignore_index these are. Leng et al. 2022 (arXiv:2204.12511). optax: poly_loss_cross_entropy.

    >>> poly(jnp.array([[0.0, 0.0]]), jnp.array([0])).round(4)
    Array([1.1931], dtype=float32)
    """
    given = raw_class_targets(logits, targets, loss="poly", ignore_index=ignore_index)
    w = optional_vector(class_weights, given.logits.shape[-1], loss="poly")
    if given.probs is None:
        return given.average(lambda n: n + epsilon * not_exp(n), w)
    q = given.probs if w is None else given.probs * lead(w, given.probs)
    return soft_nll(given.logits, q) + epsilon * given.average(not_exp, w)


def kl_divergence(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """How far the prediction is from a distribution: sum_j q_j (log q_j - log softmax(z)_j), over the last axis; 0 log 0 = 0.

    logits: z [*b, c], or log-probabilities, which softmax leaves as they are; targets: q [*b, c], >= 0 -> [*b].
    Where the sum of q is 1 to within its rounding (8 eps), it counts as 1: of nearly equal distributions that is most of the value.
    Kullback & Leibler 1951. torch: KLDivLoss of log-probabilities, summed over the last axis.

    >>> kl_divergence(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])).round(4)
    Array([0.6931], dtype=float32)
    """
    z, q = _distributions(logits, targets, "kl_divergence")
    return kl_of(z, q)


def js_divergence(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence: KL(p | m) / 2 + KL(q | m) / 2 with p = softmax(z), m = (p + q) / 2, over the last axis.

    logits: z [*b, c], or log-probabilities; targets: q [*b, c], >= 0 -> [*b], between 0 and log 2.
    Lin 1991 (doi:10.1109/18.61115).

    >>> js_divergence(jnp.array([[1e4, 0.0]]), jnp.array([[0.0, 1.0]])).round(4)
    Array([0.6931], dtype=float32)
    """
    z, q = _distributions(logits, targets, "js_divergence")
    return js_terms(*softmax_pair(z), q).sum(-1)


def multilabel_soft_margin(logits: jax.Array, targets: jax.Array, *, class_weights: Vector | None = None) -> jax.Array:
    """Mean over classes of one binary cross-entropy each: -(1 / c) sum_j w_j (t_j log s(z_j) + (1 - t_j) log s(-z_j)), s the sigmoid.

    logits: z [*b, c]; targets: t [*b, c], 0 or 1 or between -> [*b]. class_weights: w [c] or None. torch: MultiLabelSoftMarginLoss.

    >>> multilabel_soft_margin(jnp.array([[0.0, 1e4]]), jnp.array([[1, 1]])).round(4)
    Array([0.3466], dtype=float32)
    """
    values = binary_cross_entropy(logits, targets)
    check_classes(values.shape, loss="multilabel_soft_margin")
    w = optional_vector(class_weights, values.shape[-1], loss="multilabel_soft_margin")
    return (values if w is None else values * lead(w, values)).mean(-1)


def _distributions(logits: jax.Array, targets: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    check_same_shape(logits, targets, loss=loss)
    if not jnp.issubdtype(jnp.asarray(targets).dtype, jnp.floating):
        raise ValueError(f"{loss}: targets must be a distribution over the last axis, got {jnp.asarray(targets).dtype}")
    check_classes(jnp.shape(logits), loss=loss)
    return to_float32(logits), to_float32(targets)
