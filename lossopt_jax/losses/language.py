"""Losses over sequences and of language models: alignments (CTC), the scale of logits, a teacher's distribution, preferences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._types import Scalar, as_array, check_same_shape, to_float32
from ._alignments import log_alignments
from ._divergences import relative_entropy
from ._labels import class_targets, label_targets, weigh_classes, weighed_by
from ._stable import binary_nll, excess, label_nll, nll_of_all, peak_of, times

__all__ = ["ctc", "distillation", "dpo", "ipo", "z_loss"]


def ctc(logits: jax.Array, targets: Any, *, blank: int = 0, ignore_index: int = -100, zero_infinity: bool = False) -> jax.Array:
    """-log of the probability that frames spell a transcript: of all ways to read it with repeats and blanks, p = softmax(z),

    -log sum over alignments a of prod_t p_t[a_t], where dropping repeats and then blanks from a leaves the labels.

    logits: z [*b, t, k]; targets: labels, integers [*b, n], or (labels, frames) with frames, integers [*b], how many of the t are real
    (default all) -> [*b]. ignore_index pads labels, default -100; an empty transcript is silence, and counts. blank: its class, default 0.
    A label that is the blank or no class, or a number of frames not in 0 ... t, is NaN for its example (ValueError where it is known).
    Too few frames for the labels: inf with gradient 0, or 0 with `zero_infinity`. What lies behind the last frame changes no bit.
    Graves et al. 2006 (doi:10.1145/1143844.1143891). torch: CTCLoss of log-probabilities [t, b, k] (gradient NaN where it is inf), whose
    reduction="mean" divides each value by its number of labels first. optax: ctc_loss with paddings, 1e5 where this has inf.

    Of 8 readings of 3 frames 6 say "1", 001 010 011 100 110 111; two frames have no room for "11", which needs a blank between:

    >>> ctc(jnp.zeros((2, 3, 2)), (jnp.array([[1, -100], [1, 1]]), jnp.array([3, 2]))).round(4)
    Array([0.2877,    inf], dtype=float32)
    """
    z, labels, frames, counts = _transcripts(logits, targets, blank=blank, ignore_index=ignore_index)
    values = counts * _spelling_nll(z, labels, frames, blank, 0.0 if zero_infinity else float("inf"))
    return values.reshape(jnp.shape(logits)[:-2])


@partial(jax.jit, static_argnums=(3, 4))  # op by op it would take seconds
def _spelling_nll(z: jax.Array, labels: jax.Array, frames: jax.Array, blank: int, if_impossible: float) -> jax.Array:
    real = jnp.arange(z.shape[1])[None, :] < frames[:, None]
    z = jnp.where(real[..., None], z, 0)
    shifted = z - peak_of(z)
    scores = jnp.take_along_axis(shifted, jnp.maximum(labels, 0)[:, None, :], -1, mode="clip")
    found = log_alignments(shifted[..., blank], scores, labels, frames)
    possible = ~jnp.isneginf(found)
    spread = jnp.where(real, excess(z), 0).sum(-1)
    return jnp.where(possible, spread - jnp.where(possible, found, 0), if_impossible)


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


def _transcripts(logits: Any, targets: Any, *, blank: int, ignore_index: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Logits [b, t, k], labels [b, n] with -1 behind the last, frames [b], and NaN for an example that is none, else 1, [b]."""
    z = to_float32(logits)
    labels, frames = targets if isinstance(targets, tuple | list) else (targets, None)
    labels = as_array(labels, what="ctc")
    frames = jnp.full(z.shape[:-2], z.shape[-2] if z.ndim > 1 else 0) if frames is None else as_array(frames, what="ctc")
    integers = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (labels, frames))
    if z.ndim < 2 or labels.shape[:-1] != z.shape[:-2] or labels.ndim != z.ndim - 1 or frames.shape != z.shape[:-2] or not integers:
        raise ValueError(
            "ctc: logits must be (*b, t, k), targets integer labels (*b, n), or (labels, frames) with integer frames (*b), "
            f"got logits {z.shape}, labels {labels.shape} of {labels.dtype} and frames {frames.shape} of {frames.dtype}"
        )
    t, k = z.shape[-2:]
    if not 0 <= blank < k:
        raise ValueError(f"ctc: blank must be one of the {k} classes, got {blank}")
    labels, frames = (x if x.dtype == jnp.int64 else x.astype(jnp.int32) for x in (labels, frames))
    padding = labels == ignore_index
    is_class = padding | ((labels >= 0) & (labels < k) & (labels != blank))
    is_length = (frames == ignore_index) | ((frames >= 0) & (frames <= t))  # masked by a weight, it is of no length
    _check_known("label", labels, is_class, f"not a class to spell: 0 to {k - 1} without the blank, {blank}, or {ignore_index} for padding")
    _check_known("number of frames", frames, is_length, f"not in 0 to {t}")
    counts = jnp.where(is_class.all(-1) & is_length, 1, jnp.nan).astype(z.dtype)
    labels = jnp.where(padding, -1, jnp.where(is_class, labels, 0))
    labels = jnp.take_along_axis(labels, jnp.argsort(padding, axis=-1, stable=True), -1)  # padding wherever it lay
    frames = jnp.clip(frames, 0, t).astype(jnp.int32)
    return z.reshape(-1, t, k), labels.reshape(-1, labels.shape[-1]), frames.reshape(-1), counts.reshape(-1)


def _check_known(what: str, given: jax.Array, valid: jax.Array, why: str) -> None:
    if not isinstance(valid, jax.core.Tracer) and not (ok := np.asarray(valid)).all():
        raise ValueError(f"ctc: {what} {np.asarray(given)[~ok].flat[0]} is {why}")


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
