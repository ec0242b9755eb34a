"""Connectionist temporal classification: a transcript against the frames that spell it, with all its digits at any loss.

The sum over all alignments lacks digits where nearly all that softmax can say is the transcript: a small loss would be the difference
of two large sums, and its slope that of two probabilities near 1 (4e-3 of the slope was lost at a loss of 1e-3). There what is lacking
is summed instead (`_small_nll`, `_small_slope`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._types import as_array, to_float32
from ._labels import signed
from ._readings import Alive, Reading, alignment_shares, alive, examples, log_alignments, paths_of, reading
from ._stable import top_parts

__all__ = ["ctc"]

GROUP = 8  # examples whose lack is summed at once
# Below these the plain sum over all alignments lacks digits: for the value, and for the slope, which is as small as the value by frame.
NEAR_0, NOT_FAR, NOT_FAR_BY_FRAME = 1.0, 8.0, 1 / 8


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
    values = _spelling_nll(z, labels, frames, counts, blank, 0.0 if zero_infinity else float("inf"))
    return values.reshape(jnp.shape(logits)[:-2])


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
@partial(jax.jit, static_argnums=(4, 5))  # op by op it would take seconds
def _spelling_nll(z: jax.Array, labels: jax.Array, frames: jax.Array, counts: jax.Array, blank: int, if_impossible: float) -> jax.Array:
    """[b], times the counts: where they are NaN the slope is too, though there be no alignment."""
    shifted, spread = _shifted(z, frames)
    given = reading(*_scores(shifted, labels, blank), labels, frames)

    def better(first: jax.Array, size: int, _: jax.Array) -> jax.Array:
        part = examples(given, first, size)
        return _small_nll(alive(part, paths_of(part)), _softmax(_rows(shifted, first, size)), part, blank)

    value = _less(spread, paths_of(given).total(given.stop).log())
    value = _improved(value < NEAR_0, better, value)
    return counts * jnp.where(jnp.isposinf(value), if_impossible, value)


@_spelling_nll.defjvp
def _spelling_nll_jvp(blank, if_impossible, primals, tangents):  # type: ignore[no-untyped-def]
    z, labels, frames, counts = primals
    value, slope = _nll_and_slope(z, labels, frames, blank)
    value = counts * jnp.where(jnp.isposinf(value), if_impossible, value)
    return value, (counts[:, None, None] * slope * tangents[0]).sum((1, 2))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
@partial(jax.jit, static_argnums=3)
def _nll_and_slope(z: jax.Array, labels: jax.Array, frames: jax.Array, blank: int) -> tuple[jax.Array, jax.Array]:
    """[b] and [b, t, k]: softmax less the share of the alignments that pass there, 0 where there is none."""
    shifted, spread = _shifted(z, frames)
    given = reading(*_scores(shifted, labels, blank), labels, frames)
    found, at_blank, at_label, paths = alignment_shares(given)
    value, p, b = _less(spread, found), _softmax(shifted), z.shape[0]
    keep = _is_real(z, frames) & ~jnp.isposinf(value)[:, None, None]
    shares = _at_classes(jnp.swapaxes(at_label, 0, 1), labels, p).at[..., blank].set(at_blank.T)

    def better(first: jax.Array, size: int, plain: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        value, shares, _ = plain
        part, p = examples(given, first, size), _softmax(_rows(shifted, first, size))
        ahead, behind = (alive(*examples(paths, first + skip, size)) for skip in (0, b))
        fits, slope = _small_slope(ahead, behind, p, part.labels, blank)
        value = jnp.where(value < NEAR_0, _small_nll(ahead, p, part, blank), value)
        return value, jnp.where(fits, slope, shares), fits

    near, none = value < NOT_FAR + NOT_FAR_BY_FRAME * frames, jnp.zeros_like(keep)
    value, shares, fits = _improved(near, better, (value, shares, none))
    return value, jnp.where(keep, jnp.where(fits, shares, p - shares), 0)


@_nll_and_slope.defjvp
def _nll_and_slope_jvp(blank, primals, tangents):  # type: ignore[no-untyped-def]
    z, labels, frames = primals
    value, slope = _nll_and_slope(z, labels, frames, blank)

    def plain(z: jax.Array) -> jax.Array:
        value = _plain_nll(z, labels, frames, blank)
        return jnp.where(jnp.isposinf(value), 0, value).sum()

    return (value, slope), ((slope * tangents[0]).sum((1, 2)), jax.jvp(jax.grad(plain), (z,), tangents[:1])[1])


def _plain_nll(z: jax.Array, labels: jax.Array, frames: jax.Array, blank: int) -> jax.Array:
    shifted, spread = _shifted(z, frames)
    return _less(spread, log_alignments(*_scores(shifted, labels, blank), labels, frames))


def _less(spread: jax.Array, found: jax.Array) -> jax.Array:
    possible = ~jnp.isneginf(found)
    return jnp.where(possible, spread - jnp.where(possible, found, 0), jnp.inf)


def _small_nll(before: Alive, p: jax.Array, given: Reading, blank: int) -> jax.Array:
    """-log of what is alive at the end, which every frame has multiplied by 1 - lost: a sum of -log(1 - lost), digits and all."""
    lost = (p * _misses(before.off, before.on, given.labels, p).at[..., blank].set(0)).sum(-1)
    return -jnp.where(given.read[..., 0].T, jnp.log1p(-lost), 0).sum(-1) - jnp.log1p(-before.unfinished)


def _small_slope(ahead: Alive, behind: Alive, p: jax.Array, labels: jax.Array, blank: int) -> tuple[jax.Array, jax.Array]:
    """softmax less share, as p (misfit of the class - mean misfit) / (1 - mean misfit), where most fits.

    Misfit is what of the alive before and after a frame, read backwards, is not the transcript with the class between them.
    """
    off, on, _, others = (x[:, ::-1, ::-1] for x in behind[:4])
    misses = _misses(ahead.off + ahead.on * off, ahead.on * on, labels, p)
    misfit = p * misses.at[..., blank].set((ahead.either * others).sum(-1))
    mean = misfit.sum(-1, keepdims=True)
    fits = mean < 0.5
    return fits, (misfit - p * mean) / jnp.where(fits, 1 - mean, 1)


def _misses(off: jax.Array, on: jax.Array, labels: jax.Array, p: jax.Array) -> jax.Array:
    """[b, t, k]: 1 - the sum of what is on where a class is a label, [b, t, n], with the digits of off, 1 - on."""
    sure = off < 0.5  # of the labels of a class no two are
    return (1 - _at_classes(sure.astype(p.dtype), labels, p)) + _at_classes(jnp.where(sure, off, -on), labels, p)


def _at_classes(at_label: jax.Array, labels: jax.Array, p: jax.Array) -> jax.Array:
    """[b, t, n] to [b, t, k], labels of one class added up."""
    hot = (labels[..., None] == jnp.arange(p.shape[-1])[None, None, :]).astype(p.dtype)
    return jnp.einsum("btn,bnk->btk", at_label, hot, precision=lax.Precision.HIGHEST)


def _shifted(z: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z less the largest of its frame, and the sum over frames [b] of the logarithms of what then is softmax's divisor."""
    real = _is_real(z, frames)
    shifted, _, more = top_parts(jnp.where(real, z, 0))
    return shifted, jnp.where(real, jnp.log1p(more), 0).sum((1, 2))


def _softmax(shifted: jax.Array) -> jax.Array:
    e = jnp.exp(shifted)
    return e * (1 / e.sum(-1, keepdims=True))


def _is_real(z: jax.Array, frames: jax.Array) -> jax.Array:
    return (jnp.arange(z.shape[1])[None, :] < frames[:, None])[..., None]


def _scores(shifted: jax.Array, labels: jax.Array, blank: int) -> tuple[jax.Array, jax.Array]:
    return shifted[..., blank], jnp.take_along_axis(shifted, jnp.maximum(labels, 0)[:, None, :], -1, mode="clip")


def _improved(near: jax.Array, better: Callable[..., Any], plain: Any) -> Any:
    """`plain`, [b, ...] each, with `better(first, size, plain)` of some rows in its place for the examples that are near.

    By few rows at a time, which needs little memory, in a loop that ends before it begins if none is near, where a `cond` under vmap
    would do both.
    """
    b = near.shape[0]
    if not b:
        return plain
    size = min(b, GROUP)
    firsts = jnp.minimum(jnp.arange(0, b, size), b - size)
    has_near = near[firsts[:, None] + jnp.arange(size)[None, :]].any(-1)
    firsts = firsts[jnp.argsort(~has_near)]

    def step(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        i, done = carry
        first = firsts[i]
        chosen, old = _rows(near, first, size), jax.tree.map(lambda x: _rows(x, first, size), done)
        new = jax.tree.map(lambda x, y: jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, y), better(first, size, old), old)
        return i + 1, jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, first, 0), done, new)

    return lax.while_loop(lambda carry: carry[0] < has_near.sum(), step, (jnp.zeros((), jnp.int32), plain))[1]


def _rows(x: jax.Array, first: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, first, size)


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
    labels, frames = signed(labels), signed(frames)
    if not labels.shape[-1]:  # no labels are one that is padding, which spares every loop over them its empty case
        labels = jnp.full((*labels.shape[:-1], 1), ignore_index, labels.dtype)
    padding = labels == ignore_index
    is_class = padding | ((labels >= 0) & (labels < k) & (labels != blank))
    is_length = (frames == ignore_index) | ((frames >= 0) & (frames <= t))  # masked by a weight, it is of no length
    _check_known("label", labels, is_class, f"not a class to spell: 0 to {k - 1} without the blank, {blank}, or {ignore_index} for padding")
    _check_known("number of frames", frames, is_length, f"not in 0 to {t}")
    counts = jnp.where(is_class.all(-1) & is_length, 1, jnp.nan).astype(z.dtype)
    labels = jnp.where(padding, -1, jnp.where(is_class, labels, 0))
    labels = jnp.take_along_axis(labels, jnp.argsort(padding, axis=-1, stable=True), -1)  # padding wherever it lay
    frames = jnp.clip(frames, 0, t).astype(jnp.int32)
    b = math.prod(frames.shape)  # not -1: of no frames there are no numbers to tell it by
    return z.reshape(b, t, k), labels.reshape(b, labels.shape[-1]), frames.reshape(b), counts.reshape(b)


def _check_known(what: str, given: jax.Array, valid: jax.Array, why: str) -> None:
    if not isinstance(valid, jax.core.Tracer) and not (ok := np.asarray(valid)).all():
        raise ValueError(f"ctc: {what} {np.asarray(given)[~ok].flat[0]} is {why}")
