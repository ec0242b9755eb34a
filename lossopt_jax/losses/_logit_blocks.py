"""What a loss over a vocabulary needs of logits = cap(hidden @ kernel + bias), a block of tokens by a block of words at a time.

The logits never exist. Going forward the log-sum-exp runs along (Milakov & Gimelshein 2018, arXiv:1805.02867); the derivative
makes each block once more (Wijmans et al. 2025, arXiv:2411.09009), since the cotangent of a value per token is not known before.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ._linear_map import linear_map

T = TypeVar("T")


class Operands(NamedTuple):
    """hidden: [n, d]; kernel: [d, v]; bias: [v]; soft_cap: []; class_weights: [v]; the last three may be None."""

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    soft_cap: jax.Array | None
    class_weights: jax.Array | None


class Labels(NamedTuple):
    """own: [n], the label's place among this kernel's columns, outside of them where it is elsewhere. keep: [n], False where ignored."""

    own: jax.Array
    keep: jax.Array


class Statistics(NamedTuple):
    """Of each token's logits z, [n]: m = max z, log sum e^(z - m), -log softmax(z)[label], sum_j w_j (-log softmax(z)_j).

    m counts as a constant to differentiation; the derivative of the log-sum-exp is all in `log_total`.
    """

    peak: jax.Array
    log_total: jax.Array
    nll: jax.Array
    spread: jax.Array


class Plan(NamedTuple):
    """Structure: tokens and words a block, the mesh axis over which the words are spread, whether `Statistics.spread` is wanted or 0."""

    tokens: int
    words: int
    axis: str | None
    spread: bool

    def sum(self, x: T) -> T:
        return x if self.axis is None else lax.psum(x, self.axis)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def statistics(plan: Plan, operands: Operands, labels: Labels) -> Statistics:
    """The statistics, with a derivative whose memory is that of a block."""
    peak, rest, own, below = _running(plan, operands, labels)
    if plan.axis is not None:
        top = lax.pmax(peak, plan.axis)
        weight = operands.kernel.shape[1] if operands.class_weights is None else operands.class_weights.sum()
        rest = plan.sum(rest * jnp.exp(peak - top))
        below = plan.sum(below + weight * (top - peak))
        own = plan.sum(own)
        peak = top
    a = jnp.where(labels.keep, own - peak, 0)
    log_total = jnp.log1p(rest + jnp.expm1(a))  # the label counted apart: exact also where it is nearly certain
    spread = total_weight(plan, operands) * log_total + below if plan.spread else jnp.zeros_like(log_total)
    return Statistics(peak, log_total, log_total - a, spread)


def _statistics_jvp(plan: Plan, primals: Any, tangents: Any) -> tuple[Statistics, Statistics]:
    operands, labels = primals
    out = statistics(plan, operands, labels)
    moved = {name: t for name, t in tangents[0]._asdict().items() if t is not None and not isinstance(t, SymbolicZero)}
    if not moved:
        return out, jax.tree.map(jnp.zeros_like, out)
    fixed = operands, labels, out, total_weight(plan, operands)
    local = linear_map(partial(_tangents, plan), partial(_cotangents, plan, tuple(moved)), fixed, moved)
    return out, Statistics(jnp.zeros_like(out.peak), *plan.sum(local))


statistics.defjvp(_statistics_jvp, symbolic_zeros=True)


def total_weight(plan: Plan, operands: Operands) -> jax.Array:
    """The sum of all class weights, [], which are 1 where none are given."""
    if operands.class_weights is not None:
        return plan.sum(operands.class_weights.sum())
    devices = 1 if plan.axis is None else lax.axis_size(plan.axis)
    return jnp.asarray(operands.kernel.shape[1] * devices, accumulator(operands.hidden, operands.kernel))


def accumulator(hidden: jax.Array, kernel: jax.Array) -> Any:
    """float32, or float64 where an operand is."""
    return jnp.promote_types(jnp.result_type(hidden, kernel), jnp.float32)


class _Span(NamedTuple):
    """A block of an axis. The last one starts early enough to be whole; `fresh`, [size] or None, is False where one has been before."""

    start: jax.Array
    size: int
    fresh: jax.Array | None

    def of(self, x: jax.Array, axis: int = 0) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, self.start, self.size, axis)

    def put(self, x: jax.Array, block: jax.Array, axis: int = 0) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(x, block, self.start, axis)


def _over(length: int, size: int, body: Callable[[_Span, Any], Any], start: Any) -> Any:
    """`body` over the blocks of an axis; a scan, so that it can be differentiated again."""

    def step(i: jax.Array, carry: Any) -> Any:
        if size == 0 or length % size == 0:
            return body(_Span(i * size, size, None), carry)
        first = jnp.minimum(i * size, length - size)
        return body(_Span(first, size, first + lax.iota(jnp.int32, size) >= i * size), carry)

    return lax.fori_loop(0, -(-length // size) if length else 0, step, start)


class _Block(NamedTuple):
    """A block of logits [t, w] after capping, its slope in the raw logits and in the cap (None without one), and what it is made of."""

    logits: jax.Array
    slope: jax.Array | None
    cap_slope: jax.Array | None
    hidden: jax.Array
    kernel: jax.Array


def _block(operands: Operands, labels: Labels, tokens: _Span, words: _Span) -> _Block:
    dtype = jnp.result_type(operands.hidden, operands.kernel)
    # What lies in an ignored row, NaN included, is 0 here, a block at a time, which spares a copy of all rows.
    hidden = jnp.where(tokens.of(labels.keep)[:, None], tokens.of(operands.hidden), 0).astype(dtype)
    kernel = words.of(operands.kernel, 1).astype(dtype)
    z = _dot(hidden, kernel, 1, 0, accumulator(operands.hidden, operands.kernel))
    if operands.bias is not None:
        z += words.of(operands.bias).astype(z.dtype)[None]
    if operands.soft_cap is None:
        return _Block(z, None, None, hidden, kernel)
    u = z / operands.soft_cap
    bent = jnp.tanh(u)
    tail = jnp.exp(-2 * jnp.abs(u))
    slope = 4 * tail / jnp.square(1 + tail)  # sech^2; 1 - tanh^2 has no digits left where the cap holds
    return _Block(operands.soft_cap * bent, slope, bent - u * slope, hidden, kernel)


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int, dtype: Any) -> jax.Array:
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=dtype)


def _full(like: jax.Array, shape: tuple[int, ...], value: Any, dtype: Any = jnp.float32) -> jax.Array:
    return lax.full_like(like, value, dtype, shape)  # varies over the mesh as `like` does, as a loop's carry must


def _running(plan: Plan, operands: Operands, labels: Labels) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """m, sum_{j != label} e^(z_j - m), z[label] (0 where it is elsewhere), sum_j w_j (m - z_j): [n] each."""
    (n, _), v, dtype = operands.hidden.shape, operands.kernel.shape[1], accumulator(operands.hidden, operands.kernel)

    def of_tokens(tokens: _Span, out: jax.Array) -> jax.Array:
        label = tokens.of(labels.own)

        def of_words(words: _Span, carry: Any) -> Any:
            peak, rest, own, below, seen = carry
            z = _block(operands, labels, tokens, words).logits
            place = label - words.start
            top = jnp.maximum(peak, z.max(-1))
            counted = ~_is_label(place, z) if words.fresh is None else ~_is_label(place, z) & words.fresh[None]
            rest = rest * jnp.exp(peak - top) + jnp.where(counted, jnp.exp(z - top[:, None]), 0).sum(-1)
            if plan.spread:
                weights = _weights(operands, words, z)
                weights = weights if words.fresh is None else jnp.where(words.fresh[None], weights, 0)
                below += seen * (top - peak) + jnp.where(weights == 0, 0, weights * (top[:, None] - z)).sum(-1)
                seen += weights[0].sum()
            picked = jnp.take_along_axis(z, jnp.clip(place, 0, words.size - 1)[:, None], axis=1)[:, 0]
            own = jnp.where((place >= 0) & (place < words.size), picked, own)
            return top, rest, own, below, seen

        # The lowest number, not -inf: a whole block of logits may be -inf.
        start = [_full(label, label.shape, value, dtype) for value in (jnp.finfo(dtype).min, 0, 0, 0)]
        *found, _ = _over(v, plan.words, of_words, (*start, _full(label, (), 0, dtype)))
        return tokens.put(out, jnp.stack(found), 1)

    return tuple(_over(n, plan.tokens, of_tokens, _full(labels.own, (4, n), 0, dtype)))


def _is_label(place: jax.Array, z: jax.Array) -> jax.Array:
    return place[:, None] == lax.broadcasted_iota(place.dtype, z.shape, 1)


def _weights(operands: Operands, words: _Span, z: jax.Array) -> jax.Array:
    """[1, w]."""
    if operands.class_weights is None:
        return _full(z, (1, words.size), 1, z.dtype)
    return words.of(operands.class_weights)[None]


def _tangents(plan: Plan, fixed: Any, moved: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tangents of log_total, nll and spread along `moved`, tangents of some operands by name."""
    operands, labels, stats, weight = fixed
    (n, _), v, dtype = operands.hidden.shape, operands.kernel.shape[1], accumulator(operands.hidden, operands.kernel)

    def of_tokens(tokens: _Span, out: jax.Array) -> jax.Array:
        peak, log_total, nll = (tokens.of(x)[:, None] for x in (stats.peak, stats.log_total, stats.nll))

        def of_words(words: _Span, sums: jax.Array) -> jax.Array:
            block = _block(operands, labels, tokens, words)
            below = block.logits - peak - log_total
            p, is_label = jnp.exp(below), _is_label(tokens.of(labels.own) - words.start, below)
            d = jnp.zeros_like(p)
            if "hidden" in moved:
                hidden = jnp.where(tokens.of(labels.keep)[:, None], tokens.of(moved["hidden"]), 0).astype(block.hidden.dtype)
                d += _dot(hidden, block.kernel, 1, 0, dtype)
            if "kernel" in moved:
                d += _dot(block.hidden, words.of(moved["kernel"], 1).astype(block.kernel.dtype), 1, 0, dtype)
            if "bias" in moved:
                d += words.of(moved["bias"]).astype(dtype)[None]
            d = d if block.slope is None else d * block.slope
            if "soft_cap" in moved:
                assert block.cap_slope is not None
                d += moved["soft_cap"] * block.cap_slope
            w = _weights(operands, words, p)
            dspread = weight * p * d - w * d
            if "class_weights" in moved:
                dspread -= words.of(moved["class_weights"])[None] * below
            parts = jnp.stack([p * d, jnp.where(is_label, jnp.expm1(-nll), p) * d, dspread])
            return sums + (parts if words.fresh is None else jnp.where(words.fresh[None, None], parts, 0)).sum(-1)

        return tokens.put(out, _over(v, plan.words, of_words, _full(labels.own, (3, tokens.size), 0, dtype)), 1)

    return tuple(_over(n, plan.tokens, of_tokens, _full(labels.own, (3, n), 0, dtype)))


def _cotangents(plan: Plan, names: tuple[str, ...], fixed: Any, given: Any) -> dict[str, jax.Array]:
    """The cotangents of the operands `names` from those of log_total, nll and spread: the transpose of `_tangents`."""
    operands, labels, stats, weight = fixed
    (n, d), v, dtype = operands.hidden.shape, operands.kernel.shape[1], accumulator(operands.hidden, operands.kernel)
    of_log_total, of_nll, of_spread = given
    of_all = of_log_total + weight * of_spread
    # The slope on the label by itself, since p - 1 would cancel: 1 - p = -expm1(-nll).
    on_label = of_nll * jnp.expm1(-stats.nll) + of_all * jnp.exp(-stats.nll)
    # Half the range of float16 is lost to a cotangent of 1 / n; bfloat16 has float32's range.
    operand = jnp.result_type(operands.hidden, operands.kernel)
    operand = dtype if operand == jnp.float16 else operand

    def of_tokens(words: _Span, tokens: _Span, sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def rows(x: jax.Array) -> jax.Array:
            x = tokens.of(x)
            return (x if tokens.fresh is None else jnp.where(tokens.fresh, x, 0))[:, None]

        block = _block(operands, labels, tokens, words)
        below = block.logits - tokens.of(stats.peak)[:, None] - tokens.of(stats.log_total)[:, None]
        is_label = _is_label(tokens.of(labels.own) - words.start, below)
        slope = jnp.where(is_label, rows(on_label), jnp.exp(below) * rows(of_nll + of_all))
        if plan.spread:
            slope -= _weights(operands, words, below) * rows(of_spread)
        if words.fresh is not None:
            slope = jnp.where(words.fresh[None], slope, 0)
        out = dict(sums)
        if "soft_cap" in names:
            assert block.cap_slope is not None
            out["soft_cap"] += (slope * block.cap_slope).sum()
        slope = slope if block.slope is None else slope * block.slope
        if "class_weights" in names:
            out["class_weights"] -= (rows(of_spread) * below).sum(0)
        if "bias" in names:
            out["bias"] += slope.sum(0)
        slope = slope.astype(operand)
        if "hidden" in names:
            more = _dot(slope, block.kernel.astype(operand), 1, 1, dtype)
            out["hidden"] = tokens.put(sums["hidden"], tokens.of(sums["hidden"]) + more)
        if "kernel" in names:
            out["kernel"] += _dot(block.hidden.astype(operand), slope, 0, 0, dtype)
        return out

    def of_words(words: _Span, totals: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shapes = {"kernel": (d, words.size), "bias": (words.size,), "class_weights": (words.size,)}
        start = {name: _full(labels.own, shapes[name], 0, dtype) if name in shapes else totals[name] for name in names}
        sums = _over(n, plan.tokens, partial(of_tokens, words), start)
        for name in shapes.keys() & set(names):
            axis, block = len(shapes[name]) - 1, sums[name].astype(totals[name].dtype)
            if words.fresh is not None:
                block = jnp.where(words.fresh.reshape((1,) * axis + (-1,)), block, words.of(totals[name], axis))
            sums[name] = words.put(totals[name], block, axis)
        return sums

    kinds = {"hidden": dtype, "soft_cap": dtype}  # summed over all blocks of words, so in full until the end
    likes = {name: getattr(operands, name) for name in names}
    zeros = {name: _full(labels.own, like.shape, 0, kinds.get(name, like.dtype)) for name, like in likes.items()}
    totals = _over(v, plan.words, of_words, zeros)
    return {name: total.astype(likes[name].dtype) for name, total in totals.items()}
