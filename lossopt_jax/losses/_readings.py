"""The likelihood of all alignments of a transcript to frames (CTC), in numbers m 2^e whose exponent e is an integer beside them.

Sums and products of positive numbers keep their digits, where sums of logarithms lose those that the size of the log-likelihood takes
(a float32 has 4e-5 left beside 600); nothing underflows; and a step has neither exponentials nor logarithms in it.

Where softmax says little else than the transcript, what else it says counts, and keeps its digits as a sum of its own (`alive`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
        return Wide(self.m * _power_of_2(-shift, self.m.dtype), jnp.maximum(self.e + shift, LOWEST))

    def where(self, keep: jax.Array, other: "Wide") -> "Wide":
        return Wide(jnp.where(keep, self.m, other.m), jnp.where(keep, self.e, other.e))

    def scaled(self, e: jax.Array) -> jax.Array:
        return self.m * _power_of_2(self.e - e, self.m.dtype)

    def log(self) -> jax.Array:
        return jnp.where(self.m == 0, -jnp.inf, jnp.log(jnp.where(self.m == 0, 1, self.m)) + self.e.astype(self.m.dtype) * LOG_2)


def wide_exp(x: jax.Array) -> Wide:
    """e^x for x <= 0, -inf included, to full relative precision down to x = -1e4."""
    low = jnp.isneginf(x)
    x = jnp.maximum(x, -1e8)
    k = lax.stop_gradient(jnp.floor(x / LOG_2))
    # log 2 in two parts, of which the first has so few digits that its product with k is exact (Cody & Waite 1980).
    rest = (x - k * 0.693359375) + k * 2.121944400546905827679e-4
    return Wide(jnp.where(low, 0, jnp.exp(rest)), jnp.where(low, LOWEST, k.astype(jnp.int32)))


class Reading(NamedTuple):
    """What is read of each frame, e^score of the blank [t, b, 1] and of each label [t, b, n], and whether it is, [t, b, 1].

    labels: [b, n], -1 behind the last. start, stop: [b], how many of them have been read before the frames and are behind.
    """

    at_blank: Wide
    at_label: Wide
    read: jax.Array
    labels: jax.Array
    start: jax.Array
    stop: jax.Array

    def both_ways(self) -> "Reading":
        """And, in a batch twice as large, everything reversed: the paths from a state are then the paths to it."""
        n = self.labels.shape[-1]
        at_blank, at_label = (Wide(*(jnp.concatenate([x, x[::-1, :, ::-1]], 1) for x in at)) for at in (self.at_blank, self.at_label))
        read, labels = jnp.concatenate([self.read, self.read[::-1]], 1), jnp.concatenate([self.labels, self.labels[:, ::-1]])
        start, stop = jnp.concatenate([self.start, n - self.stop]), jnp.concatenate([self.stop, n - self.start])
        return Reading(at_blank, at_label, read, labels, start, stop)

    def fresh(self) -> jax.Array:
        """[b, n + 1]: whether the label after the j-th is another one."""
        n = self.labels.shape[-1]
        return jnp.pad(self.labels[:, 1:] != self.labels[:, :-1], ((0, 0), (1, 1)), constant_values=True)[:, : n + 1]


class Paths(NamedTuple):
    """What leads to each state at each frame, before the frame is read: blank and label [t, b, n + 1]; to those at the end [b, n + 1]."""

    blank: Wide
    label: Wide
    end: Wide

    def total(self, stop: jax.Array) -> Wide:
        return self.end.map(lambda x: jnp.take_along_axis(x, stop[:, None], -1)[:, 0])


def reading(blank: jax.Array, scores: jax.Array, labels: jax.Array, frames: jax.Array) -> Reading:
    """Arguments as in `log_alignments`."""
    no_label = (labels < 0)[:, None, :]
    at_label = wide_exp(scores)
    at_label = Wide(jnp.where(no_label, 0, at_label.m), jnp.where(no_label, LOWEST, at_label.e)).map(lambda x: jnp.moveaxis(x, 1, 0))
    count = (labels >= 0).sum(-1).astype(jnp.int32)
    read = (jnp.arange(blank.shape[1])[:, None] < frames[None, :])[..., None]
    return Reading(wide_exp(blank.T[..., None]), at_label, read, labels, jnp.zeros_like(count), count)


@jax.custom_jvp
def log_alignments(blank: jax.Array, scores: jax.Array, labels: jax.Array, frames: jax.Array) -> jax.Array:
    """log of the sum over all alignments of the product over frames of e^score, [b]; -inf where there is no alignment.

    blank: [b, t], scores of the blank; scores: [b, t, n], of each label; both <= 0. labels: [b, n], -1 behind the last.
    frames: [b], how many are real. Graves et al. 2006 (doi:10.1145/1143844.1143891).
    """
    given = reading(blank, scores, labels, frames)
    return paths_of(given).total(given.stop).log()


@log_alignments.defjvp
def _log_alignments_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    found, at_blank, at_label, _ = alignment_shares(reading(*primals))
    dblank, dscores = (jnp.moveaxis(tangent, 1, 0) for tangent in tangents[:2])
    return found, (at_blank * dblank).sum(0) + (at_label * dscores).sum((0, 2))


def alignment_shares(given: Reading) -> tuple[jax.Array, jax.Array, jax.Array, tuple[Reading, Paths]]:
    """`log_alignments`, and its slopes in the scores, [t, b] and [t, b, n]: the shares of the alignments that pass there.

    A share is paths to there, times it, times paths from there, over all. And those paths, of `both_ways`.
    """
    both, b = given.both_ways(), given.labels.shape[0]
    to = paths_of(both)
    total = to.total(both.stop).map(lambda x: x[:b])

    def share(paths: Wide, at: Wide) -> jax.Array:
        product = paths.map(lambda x: x[:, :b]).times(paths.map(lambda x: x[::-1, b:, ::-1])).times(at)
        m = product.m / jnp.where(total.m == 0, 1, total.m)[None, :, None]
        return jnp.where(given.read, m * _power_of_2(jnp.minimum(product.e - total.e[None, :, None], 8), m.dtype), 0)

    at_label = share(to.label.map(lambda x: x[..., 1:]), given.at_label)
    return total.log(), share(to.blank, given.at_blank).sum(-1), at_label, (both, to)


def paths_of(given: Reading) -> Paths:
    """With j labels read, blank_j is what ends in a blank and label_j what ends in label j: a frame turns them into

    blank_j (blank_j + label_j) and label_j (label_j + blank_{j-1} + label_{j-1}), without the last term for a label that repeats.
    """
    (b, n), dtype = given.labels.shape, given.at_label.m.dtype
    fresh = given.fresh()

    def step(carry: tuple[Wide, Wide], frame: tuple[Wide, Wide, jax.Array]) -> tuple[tuple[Wide, Wide], tuple[Wide, Wide]]:
        (blank, label), (at_blank, at_label, read) = carry, frame
        either = blank.plus(label)
        to_label = label.plus(_front(either.where(fresh, blank).map(lambda x: x[:, :-1])))
        moved = either.times(at_blank).normal(), to_label.times(_front(at_label)).normal()
        kept = jax.tree.map(lambda new, old: jnp.where(read, new, old), moved, carry)
        return kept, (either, to_label)

    begun = jnp.arange(n + 1)[None, :] == given.start[:, None]
    nothing = Wide(jnp.zeros((b, n + 1), dtype), jnp.full((b, n + 1), LOWEST, jnp.int32))
    begin = Wide(begun.astype(dtype), jnp.where(begun, 0, LOWEST)), nothing
    (blank, label), (to_blank, to_label) = lax.scan(step, begin, (given.at_blank, given.at_label, given.read))
    return Paths(to_blank, to_label, blank.plus(label))


def examples(tree: Any, first: jax.Array, size: int) -> Any:
    """Of readings and paths those of `size` examples."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size, max(x.ndim - 2, 0)), tree)


class Alive(NamedTuple):
    """Before each frame, of what can still become the transcript, the share that no longer can if it reads label j, and that can.

    off, on: these, [b, t, n].
    either, others: [b, t, n + 1], the share with j labels read, and without. unfinished: [b], what at the end is not the transcript.
    All are sums of positive numbers, so that little has its digits, and of 1 - x where that is no less than x.
    """

    off: jax.Array
    on: jax.Array
    either: jax.Array
    others: jax.Array
    unfinished: jax.Array


def alive(given: Reading, paths: Paths) -> Alive:
    by_example = partial(jnp.swapaxes, axis1=0, axis2=1)
    to_blank, to_label = paths.blank.map(by_example), paths.label.map(lambda x: by_example(x)[..., 1:])
    top = to_blank.e.max(-1, keepdims=True)

    def ended(to: Wide, at: Wide) -> jax.Array:
        """What the frame before makes of the paths, from the second frame on."""
        return to.times(at.map(by_example)).map(lambda x: x[:, :-1]).scaled(top[:, 1:])

    either, on = to_blank.scaled(top), to_label.scaled(top)
    repeated = jnp.where(given.fresh()[:, None, 1:-1], 0, ended(to_label, given.at_label)[..., :-1])
    off = ended(to_blank, given.at_blank)[..., 1:] + jnp.pad(repeated, ((0, 0), (0, 0), (1, 0)))
    # Before the first frame that is read all paths end as if in a blank.
    off = jnp.concatenate([either[:, :1, 1:], jnp.where(by_example(given.read)[:, :-1], off, either[:, 1:, 1:])], 1)
    total = either.sum(-1, keepdims=True)
    either, on, off = (x / jnp.where(total > 0, total, 1) for x in (either, on, off))
    others, other_pairs = _all_but(either)
    end = paths.end.scaled(paths.end.e.max(-1, keepdims=True))
    unfinished = jnp.where(jnp.arange(end.shape[-1])[None, :] == given.stop[:, None], 0, end).sum(-1) / end.sum(-1)
    return Alive(off + other_pairs, on, either, others, unfinished)


def _all_but(shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of shares [..., n + 1], the sum of all but one, and of all but a pair of neighbours, [..., n]."""
    at = lax.broadcasted_iota(jnp.int32, shares.shape, shares.ndim - 1)
    top = jnp.where(shares == shares.max(-1, keepdims=True), at, 0).max(-1, keepdims=True)

    def without(first: int, last: int) -> jax.Array:
        return jnp.where((at < top + first) | (at > top + last), shares, 0).sum(-1, keepdims=True)

    right = at[..., 1:] - top
    pairs = jnp.where(right == 1, without(0, 1), 1 - (shares[..., :-1] + shares[..., 1:]))
    return jnp.where(at == top, without(0, 0), 1 - shares), jnp.where(right == 0, without(-1, 0), pairs)


def _front(wide: Wide) -> Wide:
    """With a 0 in front, along the last axis."""
    return Wide(jnp.pad(wide.m, ((0, 0), (1, 0))), jnp.pad(wide.e, ((0, 0), (1, 0)), constant_values=LOWEST))


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
