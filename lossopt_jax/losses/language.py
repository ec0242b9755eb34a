"""Losses over sequences and of language models: alignments (CTC), the scale of logits, a teacher's distribution, preferences."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, check_same_shape, to_float32
from ._divergences import relative_entropy
from ._labels import class_targets, label_targets, weigh_classes, weighed_by
from ._stable import binary_nll, excess, label_nll, nll_of_all, peak_of, times

__all__ = ["distillation", "dpo", "ipo", "z_loss"]


def weigh_tokens(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """[*b]: 0 where the label is to be ignored, else 1."""
    return weigh_classes(targets, ignore_index=ignore_index)


@weighed_by(weigh_tokens)
def z_loss(logits: jax.Array, targets: jax.Array, *, ignore_index: int = -100) -> jax.Array:
    """The square of the logits' normaliser, (log sum_j e^z_j)^2 over the last axis: keeps them from drifting off.

    logits: z [*b, c]; targets: labels [*b], which only say what to ignore (or a distribution [*b, c]) -> [*b]. ignore_index: -100.
    PaLM adds it to cross-entropy with weight 1e-4 (Chowdhery et al. 2022, arXiv:2204.02311), ST-MoE's router with 1e-3 (Zoph et al.
    2022, arXiv:2202.08906): weighted_sum(z, y, losses=(cross_entropy, z_loss), weights=(1.0, 1e-4)).

    >>> z_loss(jnp.array([[3.0, -1e4], [1e4, 1e4]]), jnp.array([1, -100]))
    Array([9., 0.], dtype=float32)
    """
    given = class_targets(logits, targets, loss="z_loss", ignore_index=ignore_index)
    return given.counts * jnp.square(peak_of(given.logits)[..., 0] + excess(given.logits))


def distillation(logits: jax.Array, targets: jax.Array, *, temperature: Scalar = 2.0) -> jax.Array:
    """How far a student is from its teacher, softened: T^2 KL(softmax(teacher / T) | softmax(student / T)), over the last axis.

    logits: the student's [*b, c]; targets: the teacher's logits [*b, c] -> [*b]. temperature: T > 0, default 2. By T^2 the gradient keeps
    its size whatever T. Hinton et al. 2015 (arXiv:1503.02531), who add cross-entropy on the labels; targets being two, that is
    weighted_tasks((z, z), (teacher, labels), losses=(distillation, cross_entropy), weights=(0.5, 0.5)).

    >>> distillation(jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]]), temperature=1.0).round(4)
    Array([0.3278], dtype=float32)
    """
    check_same_shape(logits, targets, loss="distillation")
    student, teacher = to_float32(logits), to_float32(targets)
    if student.ndim == 0 or not jnp.issubdtype(jnp.asarray(targets).dtype, jnp.floating):
        raise ValueError(f"distillation: targets must be the teacher's logits [*b, c], got {student.shape} of {jnp.asarray(targets).dtype}")
    minus_log_q, minus_log_p = nll_of_all(teacher / temperature), nll_of_all(student / temperature)
    q = jnp.exp(-minus_log_q)
    minus_log_q = jnp.minimum(minus_log_q, jnp.finfo(q.dtype).max)
    # log q - log p from the difference of the logits, of which little is left where the two nearly agree, and not of the logarithms
    apart = (teacher - student) / temperature
    apart -= lax.stop_gradient(times(q, apart).sum(-1, keepdims=True))
    near = (jnp.abs(apart) < 20).all(-1, keepdims=True)
    apart = jnp.where(near, apart, 0)
    shift = jnp.log1p((q * jnp.expm1(-apart)).sum(-1, keepdims=True))
    ratio = jnp.where(near, apart + shift, minus_log_p - minus_log_q)
    return jnp.square(jnp.asarray(temperature, q.dtype)) * relative_entropy(q, jnp.exp(-minus_log_p), minus_log_p, ratio)


def dpo(
    outputs: tuple[jax.Array, jax.Array], targets: tuple[jax.Array, jax.Array], *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.0
) -> jax.Array:
    """-(1 - a) log sigmoid(beta h) - a log sigmoid(-beta h), h = (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected).

    outputs: (chosen, rejected), the policy's log-probabilities of the two answers [*b] each; targets: the reference model's, likewise
    -> [*b]. `sequence_log_probs` makes them. beta: how much a step away from the reference costs, default 0.1. label_smoothing: a, the
    share of pairs believed to be the wrong way round, default 0. Rafailov et al. 2023 (arXiv:2305.18290); with a > 0 conservative DPO
    (Mitchell 2023). TRL: loss_type "sigmoid".

    >>> dpo((jnp.array([-10.0]), jnp.array([-30.0])), (jnp.array([-15.0]), jnp.array([-20.0]))).round(4)
    Array([0.2014], dtype=float32)
    """
    h = _preference(outputs, targets, loss="dpo")
    h *= jnp.asarray(beta, h.dtype)
    a = jnp.asarray(label_smoothing, h.dtype)
    return binary_nll(h, jnp.broadcast_to(1 - a, h.shape), jnp.broadcast_to(a, h.shape))


def ipo(outputs: tuple[jax.Array, jax.Array], targets: tuple[jax.Array, jax.Array], *, beta: Scalar = 0.1) -> jax.Array:
    """(h - 1 / (2 beta))^2 with h of `dpo`: the margin is led to a value, where `dpo` pushes it without end.

    outputs, targets: as in `dpo` -> [*b]. beta: tau of the paper, default 0.1. Azar et al. 2023 (arXiv:2310.12036).
    TRL: loss_type "ipo", of log-probabilities averaged over tokens.

    >>> ipo((jnp.array([-10.0]), jnp.array([-30.0])), (jnp.array([-15.0]), jnp.array([-20.0])))
    Array([100.], dtype=float32)
    """
    h = _preference(outputs, targets, loss="ipo")
    return jnp.square(h - 1 / (2 * jnp.asarray(beta, h.dtype)))


def sequence_log_probs(logits: jax.Array, labels: jax.Array, *, ignore_index: int = -100) -> jax.Array:
    """Log-probability of a sequence of tokens, sum_t log softmax(z_t)[label_t] over what is not ignored, for `dpo`.

    logits: z [*b, t, v]; labels: [*b, t], of what each position is to predict (so shifted already) -> [*b]. ignore_index: prompt and
    padding, default -100. Without materialised logits: -linear_cross_entropy(head, labels).sum(-1).

    >>> sequence_log_probs(jnp.zeros((1, 3, 2)), jnp.array([[-100, 0, 1]])).round(4)
    Array([-1.3863], dtype=float32)
    """
    z, known, counts = label_targets(logits, labels, loss="sequence_log_probs", ignore_index=ignore_index)
    return -(counts * label_nll(z, known)).sum(-1)


def _preference(outputs: Any, targets: Any, *, loss: str) -> jax.Array:
    """By how much more the policy prefers the chosen answer than the reference does, [*b]."""
    pairs = [x if isinstance(x, tuple | list) else (x,) for x in (outputs, targets)]
    shapes = [tuple(jnp.shape(x) for x in pair) for pair in pairs]
    if [len(pair) for pair in pairs] != [2, 2] or len({*shapes[0], *shapes[1]}) != 1:
        raise ValueError(
            f"{loss}: outputs and targets must each be (chosen, rejected) log-probabilities, four arrays of one shape, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    (chosen, rejected), (reference_chosen, reference_rejected) = ([to_float32(x) for x in pair] for pair in pairs)
    return (chosen - reference_chosen) - (rejected - reference_rejected)
