"""Identities that stay exact where the textbook formula does not: each names what it avoids.

All take float32 (or float64) arrays. Their derivatives are written out (`custom_jvp`, so forward, reverse and second order
work) because the derivative that autodiff finds cancels, or is wrong at a kink that the function does not have.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ._linear_map import linear_map


@jax.custom_jvp
def softplus_pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(-log sigmoid(-x), -log sigmoid(x)) = (log(1 + e^x), log(1 + e^-x)), from one exponential."""
    tail = _log1p_of_part(jnp.exp(-jnp.abs(x)))
    return jnp.maximum(x, 0) + tail, jnp.maximum(-x, 0) + tail


@softplus_pair.defjvp
def _softplus_pair_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,), (dx,) = primals, tangents
    p, not_p = sigmoid_pair(x)
    return softplus_pair(x), (p * dx, -not_p * dx)


@jax.custom_jvp
def binary_nll(x: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """-yes log sigmoid(x) - no log sigmoid(-x); a weight of 0 silences a logit that is infinite.

    With m = |x| on the side that x speaks against it is weight m + (yes + no) log(1 + e^-|x|), terms of one sign.
    """
    against = jnp.where(x > 0, no, yes)
    tail = (yes + no) * _log1p_of_part(jnp.exp(-jnp.abs(x)))
    # One choice, and last: what XLA would sum are otherwise several arrays, each written and read.
    return jnp.where(against == 0, tail, against * jnp.abs(x) + tail)


def _binary_nll_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, yes, no), (dx, dyes, dno) = primals, tangents
    out = binary_nll(x, yes, no)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        p, not_p = sigmoid_pair(x)
        tangent += (no * p - yes * not_p) * dx
    if not isinstance(dyes, SymbolicZero):
        tangent += _silenced(yes, softplus_pair(x)[1]) * dyes
    if not isinstance(dno, SymbolicZero):
        tangent += _silenced(no, softplus_pair(x)[0]) * dno
    return out, tangent


binary_nll.defjvp(_binary_nll_jvp, symbolic_zeros=True)


def _log1p_of_part(e: jax.Array) -> jax.Array:
    """log(1 + e) for 0 <= e <= 1, to within 2 ulp, as 2 artanh(s), s = e / (2 + e) <= 1/3, by its series.

    On CPU it takes a third of the time of XLA's log1p, which is most of that of a loss. Not for differentiation.
    """
    if e.dtype == jnp.float64:
        return jnp.log1p(e)
    s = e / (2 + e)
    square, series = s * s, jnp.zeros_like(s)
    for n in range(15, 1, -2):
        series = (series + 1 / n) * square
    return 2 * s * (1 + series)


def sigmoid_pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sigmoid(x), sigmoid(-x)), both to full relative precision: 1 - sigmoid(x) has none left beyond x = 17."""
    # Not -|x|: its slope at 0 is 0, and the second derivative there would be 0 too.
    e = jnp.exp(jnp.where(x < 0, x, -x))
    large = 1 / (1 + e)
    small = e * large
    return jnp.where(x < 0, small, large), jnp.where(x < 0, large, small)


def hot(labels: jax.Array, classes: int) -> jax.Array:
    """[*b, c] bool: whether class j is the label; as a comparison it fuses into what uses it."""
    return labels[..., None] == lax.broadcasted_iota(labels.dtype, (*labels.shape, classes), labels.ndim)


@jax.custom_jvp
def pick(x: jax.Array, labels: jax.Array) -> jax.Array:
    """x[..., label]: [*b, c], [*b] -> [*b]. A gather whose transpose is a comparison, not a scatter."""
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")[..., 0]


@pick.defjvp
def _pick_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    x, labels = primals
    return pick(x, labels), jnp.where(hot(labels, x.shape[-1]), tangents[0], 0).sum(-1)


@jax.custom_jvp
def counted_pick(x: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """counts * x[..., label], 0 for a label of -1 whatever lies there; a count that is NaN makes the whole gradient NaN."""
    return counts * jnp.where(labels < 0, 0, pick(x, labels))


def _counted_pick_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, labels, counts), (dx, _, dcounts) = primals, tangents
    out = counted_pick(x, labels, counts)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        slope = jnp.where(hot(labels, x.shape[-1]), counts[..., None], (counts - counts)[..., None])
        tangent += (slope * dx).sum(-1)
    if not isinstance(dcounts, SymbolicZero):
        tangent += counted_pick(x, labels, dcounts)
    return out, tangent


counted_pick.defjvp(_counted_pick_jvp, symbolic_zeros=True)


@jax.custom_jvp
def label_nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], [*b, c], [*b] -> [*b], exact also where the label is nearly certain; 0 for a label of -1.

    With m the largest logit, a = logit[label] - m and rest = sum_{j != label} e^(logit_j - m), it is
    log1p(rest + expm1(a)) - a: two terms >= 0, so nothing cancels. The gradient is p_j off the label and -rest / total on it.
    """
    _, a, _, rest = _label_parts(logits, labels)
    return _label_value(a, rest)


@label_nll.defjvp
def _label_nll_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    logits, labels = primals
    _, a, e, rest = _label_parts(logits, labels)
    scale = 1 / (rest + jnp.exp(a))
    slope = _slope(labels, -rest * scale, e, scale)
    return label_nll(logits, labels), (slope * tangents[0]).sum(-1)


@jax.custom_jvp
def smooth_label_nll(logits: jax.Array, labels: jax.Array, on: jax.Array, off: jax.Array, weights: jax.Array) -> jax.Array:
    """on * nll[label] + off * sum_j weights_j nll_j, where nll = -log softmax(logits), in one pass over the logits each way.

    logits: [*b, c]; labels: [*b], -1 for one to leave out; on: [] or [*b]; off: []; weights: [c].
    The sum is (sum weights) lse - sum_j weights_j (logit_j - m), again two terms >= 0. With off = 0 it is left out, even where
    a class is masked out by a logit of -inf, and costs nothing if the 0 is a constant.
    """
    peak, a, _, rest = _label_parts(logits, labels)
    spread = _spread(logits, labels, peak, weights, _label_value(a, rest) + a)
    return on * _label_value(a, rest) + jnp.where(off == 0, 0, off * spread)


def _smooth_label_nll_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    logits, labels, on, off, weights = primals
    dlogits, _, don, doff, dweights = tangents
    peak, a, e, rest = _label_parts(logits, labels)
    out = smooth_label_nll(logits, labels, on, off, weights)
    tangent = jnp.zeros_like(out)
    if not isinstance(dlogits, SymbolicZero):
        scale = 1 / (rest + jnp.exp(a))
        total = off * weights.sum()
        on_label = (total * jnp.exp(a) - on * rest) * scale
        off_label = (on + total) * scale
        slope = _slope(labels, on_label, e, off_label) - off * lead(weights, logits)
        tangent += (slope * dlogits).sum(-1)
    # The rest is for gradients in the numbers themselves.
    if not isinstance(don, SymbolicZero):
        tangent += don * label_nll(logits, labels)
    if not isinstance(doff, SymbolicZero):
        tangent += doff * _spread(logits, labels, peak, weights, label_nll(logits, labels) + a)
    if not isinstance(dweights, SymbolicZero):
        shifted = jnp.where((labels < 0)[..., None], 0, logits - peak[..., None])
        tangent += off * (lead(dweights, logits) * ((label_nll(logits, labels) + a)[..., None] - shifted)).sum(-1)
    return out, tangent


smooth_label_nll.defjvp(_smooth_label_nll_jvp, symbolic_zeros=True)


def _slope(labels: jax.Array, on_label: jax.Array, e: jax.Array, off_label: jax.Array) -> jax.Array:
    skip = hot(labels, e.shape[-1]) | (labels < 0)[..., None]
    return jnp.where(skip, on_label[..., None], e * off_label[..., None])


def _spread(logits: jax.Array, labels: jax.Array, peak: jax.Array, weights: jax.Array, lse: jax.Array) -> jax.Array:
    weights_of = lead(weights, logits)
    below = jnp.where(weights_of == 0, 0, (logits - peak[..., None]) * weights_of).sum(-1)
    return jnp.where(labels < 0, 0, weights.sum() * lse - below)


def _label_value(a: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.log1p(rest + jnp.expm1(a)) - a


def _label_parts(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """m, a, e^(logit - m) off the label and 0 on it, and its sum; of a row whose label is -1 only e is what lies there."""
    # Rows are left out after each reduction, not before: to reduce the logits as they lie costs no copy of them.
    ignored = labels < 0
    peak = jnp.where(ignored, 0, peak_of(logits)[..., 0])
    a = jnp.where(ignored, 0, pick(logits, labels) - peak)
    e = jnp.where(hot(labels, logits.shape[-1]), 0, jnp.exp(logits - peak[..., None]))
    return peak, a, e, jnp.where(ignored, 0, e.sum(-1))


@jax.custom_jvp
def soft_nll(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """-sum_j weights_j log softmax(logits)_j, [*b, c], [*b, c] -> [*b]; a weight of 0 silences a logit of -inf.

    It is W lse - sum_j weights_j (logit_j - m), W = sum weights: two terms >= 0. Its gradient is `soft_slope`.
    """
    more = top_parts(logits)[2]
    peak = -peak_of(logits)

    def careful() -> jax.Array:
        return times(weights, logits + peak).sum(-1)

    # The difference is not written as in `top_parts`: XLA would keep what both have in common as an array, as large as the logits.
    below = (weights * (logits + peak)).sum(-1)
    # A weight of 0 makes NaN of a logit of -inf. To choose for each element is a pass of its own, so only where that has happened.
    below = lax.cond(jnp.isnan(below).any(), careful, lambda: below)
    return weights.sum(-1) * jnp.log1p(more)[..., 0] - below


def _soft_nll_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (logits, weights), (dlogits, dweights) = primals, tangents
    out = soft_nll(logits, weights)
    tangent = jnp.zeros_like(out)
    if not isinstance(dlogits, SymbolicZero):
        tangent += (soft_slope(logits, weights) * dlogits).sum(-1)
    if not isinstance(dweights, SymbolicZero):
        tangent += (dweights * nll_of_all(logits)).sum(-1)
    return out, tangent


soft_nll.defjvp(_soft_nll_jvp, symbolic_zeros=True)


def soft_slope(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """(sum weights) softmax(logits) - weights, [*b, c], exact for a one-hot too: W e - weights is, and what is left is a product."""
    _, e, more = top_parts(logits)
    return ((weights.sum(-1, keepdims=True) * e - weights) - weights * more) * (1 / (1 + more))


@jax.custom_jvp
def nll_of_all(logits: jax.Array) -> jax.Array:
    """-log softmax over the last axis, [*b, c], to full relative precision where a class is nearly certain."""
    shifted, _, more = top_parts(logits)
    return jnp.log1p(more) - shifted


@nll_of_all.defjvp
def _nll_of_all_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (logits,), (dlogits,) = primals, tangents
    _, e, more = top_parts(logits)
    # p_y - 1 of a label y that is nearly certain is -more / (1 + more): e - 1 is 0 first, which the call keeps together backwards too.
    return nll_of_all(logits), (_from_average(e, dlogits) - more * dlogits) * (1 / (1 + more))


@jax.jit
def _from_average(e: jax.Array, x: jax.Array) -> jax.Array:
    return (e * x).sum(-1, keepdims=True) - x


@jax.custom_jvp
def softmax_pair(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, 1 - p) for p = softmax(logits), both to full relative precision."""
    _, e, more = top_parts(logits)
    # p by the plain sum, which has digits enough for it, so that who uses p alone pays for no other.
    return e * (1 / e.sum(-1, keepdims=True)), (more + (1 - e)) * (1 / (1 + more))


@softmax_pair.defjvp
def _softmax_pair_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    p, not_p = softmax_pair(*primals)
    dp = linear_map(_softmax_slope, _softmax_slope, p, tangents[0])
    return (p, not_p), (dp, -dp)


def _softmax_slope(p: jax.Array, x: jax.Array) -> jax.Array:
    """p (x - sum p x), its own transpose. Of a class that is nearly certain (1 - p) x is left of that, and no digits; but a common part of
    x changes nothing, so what the class of more than half has of it, whose p rounds to 1, is taken off first."""
    x = x - (jnp.round(p) * x).sum(-1, keepdims=True)
    return p * (x - (p * x).sum(-1, keepdims=True))


def top_parts(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """logit - m, its exponential e, and sum e - 1, whose digits survive because the ones of the top are counted apart."""
    shifted = logits - peak_of(logits)
    e = jnp.exp(shifted)
    # The fractions of all, and by the difference to the plain sum how many ones there are: half the time of two sums over floors.
    rest = (e - jnp.floor(e)).sum(-1, keepdims=True)
    return shifted, e, jnp.round(e.sum(-1, keepdims=True) - rest) - 1 + rest


def excess(logits: jax.Array) -> jax.Array:
    """log sum_j e^(z_j - m), [*b, c] -> [*b]: by how much the normaliser is above the largest logit m."""
    return jnp.log1p(top_parts(logits)[2])[..., 0]


def log_or(x: jax.Array, at_zero: float) -> jax.Array:
    """log x, or `at_zero` where x is 0, with a finite slope there."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), at_zero)


def log_mix(t: jax.Array, log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    """log(t a + (1 - t) b), from logarithms; t in [0, 1]."""
    return jnp.logaddexp(log_or(t, -1e30) + log_a, log_or(1 - t, -1e30) + log_b)


def lead(vector: jax.Array, like: jax.Array) -> jax.Array:
    """[c] -> [1, ..., 1, c], to meet the last axis of `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, and 0 where the weight is 0 though the value be infinite."""
    return weight * _silenced(weight, value)


def _silenced(weight: jax.Array, value: jax.Array) -> jax.Array:
    # Only where infinite, so that the derivative in a weight of 0 is still the value.
    return jnp.where((weight == 0) & jnp.isinf(value), 0, value)


def peak_of(logits: jax.Array) -> jax.Array:
    """[*b, 1]: the largest logit, a constant to differentiation (what is subtracted from all cancels)."""
    return lax.stop_gradient(logits).max(-1, keepdims=True)
