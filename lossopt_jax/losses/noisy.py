"""Classification where labels are wrong, classes are rare, or the answer should say how sure it is."""

import math

import jax
import jax.numpy as jnp

from .._types import Scalar, Vector, to_float32
from ._labels import class_vector, label_targets, raw_class_targets, weigh_classes, weighed_by
from ._special import expm1_over, not_exp, stirling_rest
from ._stable import hot, lead, log_or, peak_of, soft_nll, softmax_pair, softplus_pair
from .classification import cross_entropy

__all__ = ["class_balanced", "evidential", "generalized_cross_entropy", "logit_adjusted", "symmetric_cross_entropy"]


@weighed_by(weigh_classes)
def symmetric_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.1,
    beta: Scalar = 1.0,
    log_zero: Scalar = -4.0,
    ignore_index: int = -100,
) -> jax.Array:
    """Cross-entropy and its reverse: alpha CE(q, p) + beta CE(p, q) = -sum_j (alpha q_j log p_j + beta p_j log q_j), p = softmax(z).

    logits: z [*b, c]; targets: integer labels [*b], or a distribution q [*b, c] -> [*b]. ignore_index: see `cross_entropy`.
    alpha, beta >= 0, defaults 0.1 and 1 (the paper's for CIFAR-10; 6 and 0.1 for CIFAR-100). log_zero: A < 0, what log q_j
    is at the least, default -4. Wang et al. 2019 (arXiv:1908.06112).

    >>> symmetric_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([0])).round(4)
    Array([2.0693], dtype=float32)
    """
    given = raw_class_targets(logits, targets, loss="symmetric_cross_entropy", ignore_index=ignore_index)
    if given.probs is None:
        return given.average(lambda n: alpha * n - beta * log_zero * not_exp(n))
    log_q, (p, _) = jnp.maximum(log_or(given.probs, -1e30), log_zero), softmax_pair(given.logits)
    middle = (p * log_q).sum(-1)
    # The second part is 0. Its slope, of the distance to the middle, has digits where most log q are A and that of the middle has none.
    reverse = -middle - (p * (log_q - middle[..., None])).sum(-1)
    return alpha * soft_nll(given.logits, given.probs) + beta * reverse


@weighed_by(weigh_classes)
def generalized_cross_entropy(logits: jax.Array, targets: jax.Array, *, q: Scalar = 0.7, ignore_index: int = -100) -> jax.Array:
    """Between cross-entropy (q = 0) and a mean absolute error (q = 1), which forgives wrong labels: (1 - p_y^q) / q, p = softmax(z).

    logits: z [*b, c]; targets: integer labels [*b], or a distribution [*b, c], over which it is averaged -> [*b].
    q: in [0, 1], default 0.7; at 0 it is `cross_entropy`, exactly. ignore_index: see `cross_entropy`.
    Zhang & Sabuncu 2018 (arXiv:1805.07836).

    >>> generalized_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([0]), q=1.0)
    Array([0.5], dtype=float32)
    """
    given = raw_class_targets(logits, targets, loss="generalized_cross_entropy", ignore_index=ignore_index)
    return given.average(lambda n: expm1_over(-jnp.asarray(q, n.dtype), n))


@weighed_by(weigh_classes)
def logit_adjusted(logits: jax.Array, targets: jax.Array, *, priors: Vector, tau: Scalar = 1.0, ignore_index: int = -100) -> jax.Array:
    """Cross-entropy of z + tau log(priors), which trains z itself to be right for classes seen rarely.

    logits: z [*b, c]; targets: integer labels [*b], or a distribution [*b, c] -> [*b]. priors: [c], how often each class occurs, > 0, as
    counts or shares (a common factor changes nothing). tau >= 0, default 1; 0 is `cross_entropy`. ignore_index: see `cross_entropy`.
    Menon et al. 2021 (arXiv:2007.07314).

    >>> logit_adjusted(jnp.array([[0.0, 0.0]]), jnp.array([1]), priors=jnp.array([3.0, 1.0])).round(4)
    Array([1.3863], dtype=float32)
    """
    z = to_float32(logits)
    priors = class_vector(priors, z.shape[-1] if z.ndim else 0, loss="logit_adjusted", name="priors")
    # The largest logit goes first: beside 1e4 a log prior has three digits.
    adjusted = (z - peak_of(z)) + tau * lead(jnp.log(jnp.maximum(priors, jnp.finfo(priors.dtype).tiny)), z)
    return cross_entropy(adjusted, targets, ignore_index=ignore_index)


def class_balanced_weights(class_counts: Vector, *, beta: Scalar = 0.9999) -> jax.Array:
    """Class weights by effective number of examples: w_j = (1 - beta) / (1 - beta^n_j), scaled to sum to c.

    class_counts: n [c]; a class with none gets 0. -> [c]. beta: in [0, 1], default 0.9999; 0 weighs all alike, 1 by 1 / n_j.
    In float32, 1 - beta has but three digits at the default, and the weights no more. Cui et al. 2019 (arXiv:1901.05555).

    >>> class_balanced_weights(jnp.array([1.0, 3.0]), beta=1.0)
    Array([1.5, 0.5], dtype=float32)
    """
    counts = to_float32(class_counts)
    log_beta = jnp.log(jnp.maximum(jnp.asarray(beta, counts.dtype), jnp.finfo(counts.dtype).tiny))
    seen = counts > 0
    w = jnp.where(seen, 1 / expm1_over(log_beta, jnp.where(seen, counts, 1)), 0)
    return w * counts.size / w.sum()


def _weigh_balanced(
    targets: jax.Array, *, class_counts: Vector | None = None, beta: Scalar = 0.9999, ignore_index: int = -100
) -> jax.Array:
    w = None if class_counts is None else class_balanced_weights(class_counts, beta=beta)
    return weigh_classes(targets, class_weights=w, ignore_index=ignore_index)


@weighed_by(_weigh_balanced)
def class_balanced(
    logits: jax.Array, targets: jax.Array, *, class_counts: Vector, beta: Scalar = 0.9999, ignore_index: int = -100
) -> jax.Array:
    """Cross-entropy with the class weights of `class_balanced_weights(class_counts, beta=beta)`.

    logits: z [*b, c]; targets: integer labels [*b], or a distribution [*b, c] -> [*b]. class_counts: [c], examples of each class.
    beta: in [0, 1], default 0.9999. ignore_index: see `cross_entropy`. The mean divides by the weights' sum; the authors' code
    divides by the number of examples. Cui et al. 2019 (arXiv:1901.05555).

    >>> class_balanced(jnp.array([[0.0, 0.0]]), jnp.array([0]), class_counts=jnp.array([1.0, 3.0]), beta=1.0).round(4)
    Array([1.0397], dtype=float32)
    """
    counts = class_vector(class_counts, jnp.shape(logits)[-1] if jnp.ndim(logits) else 0, loss="class_balanced", name="class_counts")
    return cross_entropy(logits, targets, class_weights=class_balanced_weights(counts, beta=beta), ignore_index=ignore_index)


@weighed_by(weigh_classes)
def evidential(logits: jax.Array, labels: jax.Array, *, kl_weight: Scalar = 0.1, ignore_index: int = -100) -> jax.Array:
    """Squared error expected under a Dirichlet whose evidence is softplus(z), and a pull of what speaks for other classes to none:

    sum_j ((q_j - p_j)^2 + p_j (1 - p_j) / (S + 1)) + kl_weight KL(Dir(a~) | Dir(1)), with a = 1 + softplus(z), S = sum a, p = a / S,
    q the one-hot label and a~ = q + (1 - q) a.

    logits: z [*b, c]; labels: [*b] -> [*b]. kl_weight >= 0, default 0.1 (the paper raises it from 0 to 1 over ten epochs: bind a schedule).
    ignore_index: see `cross_entropy`. Sensoy et al. 2018 (arXiv:1806.01768), whose evidence is relu(z), of no gradient below 0.

    >>> evidential(jnp.array([[0.0, 0.0]]), jnp.array([0]), kl_weight=0.0).round(3)
    Array([0.614], dtype=float32)
    """
    z, labels, counts = label_targets(logits, labels, loss="evidential", ignore_index=ignore_index)
    evidence = softplus_pair(z)[0]
    a = 1 + evidence
    label = hot(labels, a.shape[-1])
    total = a.sum(-1, keepdims=True)
    p = a / total
    # 1 - p of the label from the sum of the others: the difference would have no digits left when it is nearly certain
    not_p = jnp.where(label, jnp.where(label, 0, p).sum(-1, keepdims=True), 1 - p)
    risk = jnp.square(jnp.where(label, not_p, p)) + p * not_p / (total + 1)
    return counts * (risk.sum(-1) + kl_weight * _kl_from_flat(jnp.where(label, 0, evidence)))


def _kl_from_flat(evidence: jax.Array) -> jax.Array:
    """KL(Dir(1 + evidence) | Dir(1)), evidence >= 0: [*b, c] -> [*b].

    The log-gammas are of order a log a and cancel to order log a. So each is taken as Stirling's formula and a small rest,
    log G(x) = (x - 1/2) log x - x + log(2 pi) / 2 + r(x), digamma(x) = log x - 1 / (2 x) - s(x), and less its value without evidence,
    where all of it is 0: the large parts cancel on paper.
    """
    classes = evidence.shape[-1]
    a, more = 1 + evidence, evidence.sum(-1)
    total = classes + more
    r, s = stirling_rest(a)
    r_total, s_total = stirling_rest(total)
    r_flat = math.lgamma(classes) - (classes - 0.5) * math.log(classes) + classes - math.log(2 * math.pi) / 2
    r_one = 1 - math.log(2 * math.pi) / 2
    logs = (classes - 0.5) * jnp.log1p(more / classes) - jnp.log1p(evidence).sum(-1) / 2
    slopes = more * (0.5 / total + s_total) - (evidence * (0.5 / a + s)).sum(-1)
    return logs + (r_total - r_flat) - (r - r_one).sum(-1) + slopes
