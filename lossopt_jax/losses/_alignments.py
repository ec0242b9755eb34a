"""The likelihood of all alignments of a transcript to frames (CTC), in numbers m 2^e whose exponent e is an integer beside them.

Sums and products of positive numbers keep their digits, where sums of logarithms lose those that the size of the log-likelihood takes
(a float32 has 4e-5 left beside 600); nothing underflows; and a step has neither exponentials nor logarithms in it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LOG_2 = math.log(2)
LOWEST = -(2**29)  # an exponent, and the sum of two, has room in 32 bits


class Wide(NamedTuple):
    """m 2^e: m >= 0 a float, e int32. In what is carried m is 0 or in [1, 2)."""

    m: jax.Array
    e: jax.Array

    def map(self, fn: Callable[[jax.Array], jax.Array]) -> "Wide":
        return Wide(fn(self.m), fn(self.e))

    def plus(self, other: "Wide") -> "Wide":
        top, dtype = jnp.maximum(self.e, other.e), self.m.dtype
        return Wide(self.m * _power_of_2(self.e - top, dtype) + other.m * _power_of_2(other.e - top, dtype), top)

    def times(self, other: "Wide") -> "Wide":
        return Wide(self.m * other.m, self.e + other.e)

    def normal(self) -> "Wide":
        """m brought to [1, 2); a 0 has the lowest exponent, so that it never decides what is too small to be added."""
        shift = _exponent(self.m)
        zero = self.m == 0
        return Wide(self.m * _power_of_2(-shift, self.m.dtype), jnp.where(zero, LOWEST, jnp.maximum(self.e + shift, LOWEST)))

    def where(self, keep: jax.Array, other: "Wide") -> "Wide":
        return Wide(jnp.where(keep, self.m, other.m), jnp.where(keep, self.e, other.e))

    def log(self) -> jax.Array:
        return jnp.where(self.m == 0, -jnp.inf, jnp.log(jnp.where(self.m == 0, 1, self.m)) + self.e.astype(self.m.dtype) * LOG_2)


def wide_exp(x: jax.Array) -> Wide:
    """e^x for x <= 0, -inf included, to full relative precision down to x = -1e4."""
    low = jnp.isneginf(x)
    x = jnp.where(low, 0, jnp.maximum(x, -1e8))
    k = lax.stop_gradient(jnp.floor(x / LOG_2))
    # log 2 in two parts, of which the first has so few digits that its product with k is exact (Cody & Waite 1980).
    rest = (x - k * 0.693359375) + k * 2.121944400546905827679e-4
    return Wide(jnp.where(low, 0, jnp.exp(rest)), jnp.where(low, LOWEST, k.astype(jnp.int32)))


class Paths(NamedTuple):
    """What leads to each state at each frame, before the frame is read: blank and label [t, b, n + 1]; and all of it [b]."""

    blank: Wide
    label: Wide
    total: Wide


@jax.custom_jvp
def log_alignments(blank: jax.Array, scores: jax.Array, labels: jax.Array, frames: jax.Array) -> jax.Array:
    """log of the sum over all alignments of the product over frames of e^score, [b]; -inf where there is no alignment.

    blank: [b, t], scores of the blank; scores: [b, t, n], of each label; both <= 0. labels: [b, n], -1 behind the last.
    frames: [b], how many are real. Graves et al. 2006 (doi:10.1145/1143844.1143891).
    """
    return _paths(*_emissions(blank, scores, labels), labels, frames, _count(labels)).total.log()


@log_alignments.defjvp
def _log_alignments_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    """The slope in a score is the share of the alignments that pass there: paths to it, times it, times paths from it, over all."""
    blank, scores, labels, frames = primals
    at_blank, at_label = _emissions(blank, scores, labels)
    # Paths from a state are the paths to it of everything reversed: half of a batch twice as large, in one loop.
    both = [Wide(*(jnp.concatenate([x, x[::-1, :, ::-1]], 1) for x in wide)) for wide in (at_blank, at_label)]
    n, b = labels.shape[-1], labels.shape[0]
    count = _count(labels)
    mirrored = jnp.concatenate([labels, labels[:, ::-1]])
    start = jnp.concatenate([jnp.zeros_like(count), n - count])
    read = jnp.arange(blank.shape[1])[:, None] < frames[None, :]
    to = _paths(*both, mirrored, frames, jnp.concatenate([count, jnp.full_like(count, n)]), start, jnp.concatenate([read, read[::-1]], 1))
    total = to.total.map(lambda x: x[None, :b, None])

    def share(paths: Wide, at: Wide) -> jax.Array:
        product = paths.map(lambda x: x[:, :b]).times(paths.map(lambda x: x[::-1, b:, ::-1])).times(at)
        m = product.m / jnp.where(total.m == 0, 1, total.m)
        return jnp.where(read[..., None], m * _power_of_2(jnp.minimum(product.e - total.e, 8), m.dtype), 0)

    labels_only = to.label.map(lambda x: x[..., 1:])
    dblank, dscores = (jnp.moveaxis(tangent, 1, 0) for tangent in tangents[:2])
    tangent = (share(to.blank, at_blank).sum(-1) * dblank).sum(0) + (share(labels_only, at_label) * dscores).sum((0, 2))
    return to.total.map(lambda x: x[:b]).log(), tangent


def _emissions(blank: jax.Array, scores: jax.Array, labels: jax.Array) -> tuple[Wide, Wide]:
    """[t, b, 1] and [t, b, n], the latter 0 behind the last label."""
    scores = jnp.where((labels < 0)[:, None, :], -jnp.inf, scores)
    return wide_exp(blank.T[..., None]), wide_exp(jnp.moveaxis(scores, 1, 0))


def _paths(
    at_blank: Wide,
    at_label: Wide,
    labels: jax.Array,
    frames: jax.Array,
    stop: jax.Array,
    start: jax.Array | None = None,
    read: jax.Array | None = None,
) -> Paths:
    """From `start` labels read (default none) to `stop`, over the frames that are `read` [t, b] (default the first `frames`).

    With j labels read, blank_j is what ends in a blank and label_j what ends in label j: a frame turns them into
    blank_j (blank_j + label_j) and label_j (label_j + blank_{j-1} + label_{j-1}), without the last term for a label that repeats.
    """
    t, (b, n), dtype = at_label.m.shape[0], labels.shape, at_label.m.dtype
    start = jnp.zeros((b,), jnp.int32) if start is None else start
    read = jnp.arange(t)[:, None] < frames[None, :] if read is None else read
    # Whether the label after the j-th is another, at j.
    fresh = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (1, 1)), constant_values=True)[:, : n + 1]
    nothing = Wide(jnp.zeros((b, n + 1), dtype), jnp.full((b, n + 1), LOWEST, jnp.int32))
    begun = jnp.arange(n + 1)[None, :] == start[:, None]
    begin = Wide(begun.astype(dtype), jnp.where(begun, 0, LOWEST)), nothing

    def step(carry: tuple[Wide, Wide], frame: tuple[Wide, Wide, jax.Array]) -> tuple[tuple[Wide, Wide], tuple[Wide, Wide]]:
        (blank, label), (at_blank, at_label, read) = carry, frame
        either = blank.plus(label)
        to_label = label.plus(_front(either.where(fresh, blank).map(lambda x: x[:, :-1])))
        moved = either.times(at_blank).normal(), to_label.times(_front(at_label)).normal()
        kept = jax.tree.map(lambda new, old: jnp.where(read[:, None], new, old), moved, carry)
        return kept, (either, to_label)

    (blank, label), (to_blank, to_label) = lax.scan(step, begin, (at_blank, at_label, read))
    total = blank.plus(label).map(lambda x: jnp.take_along_axis(x, stop[:, None], -1)[:, 0])
    return Paths(to_blank, to_label, total)


def _front(wide: Wide) -> Wide:
    """With a 0 in front, along the last axis."""
    return Wide(jnp.pad(wide.m, ((0, 0), (1, 0))), jnp.pad(wide.e, ((0, 0), (1, 0)), constant_values=LOWEST))


def _count(labels: jax.Array) -> jax.Array:
    return (labels >= 0).sum(-1).astype(jnp.int32)


def _layout(dtype: jnp.dtype) -> tuple[int, int, jnp.dtype]:
    """Bits of the mantissa, the exponent's bias, and the integers of that size."""
    info = jnp.finfo(dtype)
    return info.nmant, 1 - int(info.minexp), jnp.dtype(f"int{info.bits}")


def _power_of_2(k: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """2^k from its bits; 0 where that is less than the smallest normal number."""
    digits, bias, integer = _layout(dtype)
    return lax.bitcast_convert_type(jnp.maximum(k + bias, 0).astype(integer) << digits, dtype)


def _exponent(m: jax.Array) -> jax.Array:
    """floor(log2 m) from the bits of m > 0."""
    digits, bias, integer = _layout(m.dtype)
    return (lax.bitcast_convert_type(lax.stop_gradient(m), integer) >> digits).astype(jnp.int32) - bias
