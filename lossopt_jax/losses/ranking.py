"""Learning to rank: scores [*b, n] of the n items of a list against their relevance, -> [*b].

targets: relevance [*b, n] >= 0, floats or integers; below 0 marks an item as padding (as in TensorFlow Ranking), whatever its score.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .._types import Scalar, check_same_shape, to_float32
from ._labels import binary_targets
from ._stable import lead, nll_of_all, soft_nll, soft_slope, softplus_pair, times
from ._vectors import vectors

T = TypeVar("T")

__all__ = ["lambdarank", "listwise_softmax", "margin_ranking", "pairwise_logistic"]


def listwise_softmax(outputs: jax.Array, targets: jax.Array, *, temperature: Scalar = 1.0) -> jax.Array:
    """-sum_i y_i log softmax(s / temperature)_i over the items of a list.

    outputs: s [*b, n]; targets: y [*b, n], < 0 is padding -> [*b]. temperature: default 1.
    ListNet's top-one form, Cao et al. 2007 (doi:10.1145/1273496.1273513), with y as it is: to have all lists weigh the same divide it by
    its sum. optax: ranking_softmax_loss.

    >>> listwise_softmax(jnp.array([[2.0, 0.0, 7.0]]), jnp.array([[1, 0, -1]])).round(3)
    Array([0.127], dtype=float32)
    """
    _check(outputs, targets, loss="listwise_softmax")
    s = to_float32(outputs)
    if not s.shape[-1]:
        return s.sum(-1)  # 0, of a list without a largest score
    return _listwise(s, to_float32(targets).astype(s.dtype), jnp.asarray(temperature, s.dtype))


def pairwise_logistic(outputs: jax.Array, targets: jax.Array, *, sigma: Scalar = 1.0) -> jax.Array:
    """Sum over the pairs of a list with y_i > y_j of log(1 + exp(-sigma (s_i - s_j))).

    outputs: s [*b, n]; targets: y [*b, n], < 0 is padding -> [*b]. sigma: slope, default 1.
    RankNet, Burges et al. 2005 (doi:10.1145/1102351.1102363).

    >>> pairwise_logistic(jnp.array([[2.0, 0.0, 7.0]]), jnp.array([[1, 0, -1]])).round(3)
    Array([0.127], dtype=float32)
    """
    s, y, real = _lists(outputs, targets, loss="pairwise_logistic")
    return _pair_losses(s, y, real, sigma).sum((-2, -1))


def lambdarank(outputs: jax.Array, targets: jax.Array, *, sigma: Scalar = 1.0, top: int | None = None) -> jax.Array:
    """`pairwise_logistic` with each pair weighed by how much NDCG would change if the two were swapped.

    |2^y_i - 2^y_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / ideal DCG, with r the rank by the present scores, from 1, held constant.
    outputs: s [*b, n]; targets: y [*b, n], < 0 is padding -> [*b]; 0 where nothing is relevant. sigma: slope, default 1.
    top: NDCG at this rank, structure, default all. Burges et al. 2006 (LambdaRank); as a loss, Wang et al. 2018
    (doi:10.1145/3269206.3271784).

    >>> lambdarank(jnp.array([[2.0, 0.0, 7.0]]), jnp.array([[1, 0, -1]])).round(3)
    Array([0.047], dtype=float32)
    """
    s, y, real = _lists(outputs, targets, loss="lambdarank")
    discount, rest = _discounts(s.shape[-1], top, s.dtype)
    gain = _gains(y)
    ideal = (jnp.sort(gain, descending=True) * lead(discount, gain)).sum(-1, keepdims=True)
    gain = gain / jnp.where(ideal == 0, 1, ideal)
    place = _places(jnp.where(real, s, -jnp.inf))
    swap = _of_pairs(gain) * (_of_pairs(discount[place]) + _of_pairs(rest[place]))
    return (lax.stop_gradient(jnp.abs(swap)) * _pair_losses(s, y, real, sigma)).sum((-2, -1))


def margin_ranking(outputs: tuple[jax.Array, jax.Array], targets: jax.Array, *, margin: Scalar = 0.0) -> jax.Array:
    """max(0, margin - y (s_1 - s_2)): the first of two scores should be above the second (y = 1) or below (-1), by the margin.

    outputs: (s_1, s_2), [*b] each; targets: y [*b] (any other integer is NaN) -> [*b]. margin: default 0. torch: MarginRankingLoss.

    >>> margin_ranking((jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5])), jnp.array([1, -1]), margin=1.0)
    Array([0.5, 1.5], dtype=float32)
    """
    first, second = vectors(outputs, count=2, loss="margin_ranking", what="(first scores, second scores)")
    check_same_shape(first, targets, loss="margin_ranking")
    y = binary_targets(targets, loss="margin_ranking", low=-1)
    short = margin - y * (first - second)
    return jnp.where(short <= 0, 0, short)  # not relu, whose slope at NaN is 0: a wrong target is loud in forward mode too


@jax.custom_jvp
def _listwise(s: jax.Array, y: jax.Array, temperature: jax.Array) -> jax.Array:
    return _without_padding(soft_nll, s, y, temperature)


def _listwise_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    _, y, temperature = primals
    ds, dy, dtemperature = tangents
    # Value and slope from one branch: they share most of the work.
    out, slope = _without_padding(lambda z, y: (soft_nll(z, y), soft_slope(z, y)), *primals)
    tangent = jnp.zeros_like(out)
    if not isinstance(ds, SymbolicZero):
        tangent += (slope / temperature * ds).sum(-1)
    if not isinstance(dy, SymbolicZero):
        tangent += (_without_padding(lambda z, _: nll_of_all(z), *primals) * jnp.where(y < 0, 0, dy)).sum(-1)
    if not isinstance(dtemperature, SymbolicZero):
        along = _without_padding(lambda z, y: times(soft_slope(z, y), z).sum(-1), *primals)
        tangent -= along / temperature * dtemperature
    return out, tangent


_listwise.defjvp(_listwise_jvp, symbolic_zeros=True)


def _without_padding(f: Callable[[jax.Array, jax.Array], T], s: jax.Array, y: jax.Array, temperature: jax.Array) -> T:
    """f(s / temperature, y) with the lowest logit and no relevance for padding; lists that have none are not copied for that."""

    def padded(s: jax.Array, y: jax.Array) -> T:
        s, y, real = _padding_apart(s, y)
        return f(jnp.where(real, s / temperature, jnp.finfo(s.dtype).min), y)

    return lax.cond(y.min(initial=0) >= 0, lambda s, y: f(s / temperature, y), padded, s, y)


def _check(outputs: jax.Array, targets: jax.Array, *, loss: str) -> None:
    check_same_shape(outputs, targets, loss=loss)
    if jnp.ndim(outputs) == 0:
        raise ValueError(f"{loss}: outputs must have a last axis of items, got a scalar")


def _lists(outputs: jax.Array, targets: jax.Array, *, loss: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores and relevance in float32, 0 where padding, and where not."""
    _check(outputs, targets, loss=loss)
    return _padding_apart(to_float32(outputs), to_float32(targets))


def _padding_apart(s: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    real = ~(y < 0)
    s, y = jnp.where(real, s, 0), jnp.where(real, y, 0).astype(s.dtype)
    # An unknown relevance, found by the sum, which is faster than to look at each, is loud in the gradient of all scores.
    return s * jnp.where(jnp.isnan(y.sum(-1, keepdims=True)), jnp.nan, 1), y, real


def _pair_losses(s: jax.Array, y: jax.Array, real: jax.Array, sigma: Scalar) -> jax.Array:
    """[*b, n, n]: the logistic loss of i above j where i is the better one, else 0."""
    apart = _of_pairs(s)
    better = ~(y[..., :, None] <= y[..., None, :]) & real[..., :, None] & real[..., None, :]
    # Chosen before the loss too: what two scores of -inf differ by is NaN, and an infinite lead, which costs nothing, times a slope of 0.
    matters = better & (apart != jnp.inf)
    _, if_above = softplus_pair(sigma * jnp.where(matters, apart, 0))
    return jnp.where(matters, if_above, 0)


def _of_pairs(x: jax.Array) -> jax.Array:
    """[*b, n] -> [*b, n, n]: x_i - x_j."""
    return x[..., :, None] - x[..., None, :]


def _gains(y: jax.Array) -> jax.Array:
    """(2^y - 1) / 2^(max y), which no relevance makes overflow: NDCG is a ratio of gains."""
    return jnp.exp2(y - y.max(-1, keepdims=True, initial=0)) * -jnp.expm1(-y * jnp.log(2.0).astype(y.dtype))


def _places(x: jax.Array) -> jax.Array:
    """Place of each in falling order, from 0; of equals the first in the list comes first."""
    return jnp.argsort(jnp.argsort(-lax.stop_gradient(x), -1, stable=True), -1)


def _discounts(n: int, top: int | None, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """1 / log2(1 + r) at the ranks r = 1 ... n, rounded, and what is lost by that: neighbours far down differ in few digits of it."""
    ranks = np.arange(1, n + 1)
    exact = np.where(ranks <= (n if top is None else top), 1 / np.log2(1 + ranks), 0)
    rounded = exact.astype(dtype)
    return jnp.asarray(rounded), jnp.asarray((exact - rounded).astype(dtype))
