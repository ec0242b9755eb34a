"""Learning to rank: scores [*b, n] of the n items of a list against their relevance, -> [*b].

targets: relevance [*b, n] >= 0, floats or integers; below 0 marks an item as padding (as in TensorFlow Ranking), whatever its score.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from .._types import Scalar, check_same_shape, to_float32
from ._labels import binary_targets
from ._stable import nll_of_all, soft_nll, soft_slope, softplus_pair, times
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
    return _listwise(s, to_float32(targets).astype(s.dtype), jnp.asarray(temperature, s.dtype))


def pairwise_logistic(outputs: jax.Array, targets: jax.Array, *, sigma: Scalar = 1.0) -> jax.Array:
    """Sum over the pairs of a list with y_i > y_j of log(1 + exp(-sigma (s_i - s_j))).

    outputs: s [*b, n]; targets: y [*b, n], < 0 is padding -> [*b]. sigma: slope, default 1.
    RankNet, Burges et al. 2005 (doi:10.1145/1102351.1102363).

    >>> pairwise_logistic(jnp.array([[2.0, 0.0, 7.0]]), jnp.array([[1, 0, -1]])).round(3)
    Array([0.127], dtype=float32)
    """
    s, y, real = _lists(outputs, targets, loss="pairwise_logistic")
    values, better = _pair_losses(s, y, real, sigma)
    return jnp.where(better, values, 0).sum((-2, -1))


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
    values, better = _pair_losses(s, y, real, sigma)
    gain = jnp.where(real, jnp.expm1(y * jnp.log(2.0).astype(y.dtype)), 0)
    discount = _discount(_ranks(jnp.where(real, s, -jnp.inf)), top, s.dtype)
    ideal = (gain * _discount(_ranks(gain), top, s.dtype)).sum(-1)[..., None, None]
    swap = jnp.abs(gain[..., :, None] - gain[..., None, :]) * jnp.abs(discount[..., :, None] - discount[..., None, :])
    weights = lax.stop_gradient(swap / jnp.where(ideal == 0, 1, ideal))
    return jnp.where(better, weights * values, 0).sum((-2, -1))


def margin_ranking(outputs: tuple[jax.Array, jax.Array], targets: jax.Array, *, margin: Scalar = 0.0) -> jax.Array:
    """max(0, margin - y (s_1 - s_2)): the first of two scores should be above the second (y = 1) or below (-1), by the margin.

    outputs: (s_1, s_2), [*b] each; targets: y [*b] (any other integer is NaN) -> [*b]. margin: default 0. torch: MarginRankingLoss.

    >>> margin_ranking((jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5])), jnp.array([1, -1]), margin=1.0)
    Array([0.5, 1.5], dtype=float32)
    """
    first, second = vectors(outputs, count=2, loss="margin_ranking", what="(first scores, second scores)")
    check_same_shape(first, targets, loss="margin_ranking")
    return jax.nn.relu(margin - binary_targets(targets, loss="margin_ranking", low=-1) * (first - second))


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
    s = jnp.where(jnp.isnan(y), jnp.nan, jnp.where(real, s, 0))  # an unknown relevance is loud
    return s, jnp.where(real, y, 0).astype(s.dtype), real


def _pair_losses(s: jax.Array, y: jax.Array, real: jax.Array, sigma: Scalar) -> tuple[jax.Array, jax.Array]:
    """[*b, n, n]: the logistic loss of i above j, and whether i is the better one."""
    _, if_above = softplus_pair(sigma * (s[..., :, None] - s[..., None, :]))
    better = ~(y[..., :, None] <= y[..., None, :]) & real[..., :, None] & real[..., None, :]
    return if_above, better


def _ranks(x: jax.Array) -> jax.Array:
    """Place of each in falling order, from 1; of equals the first in the list comes first."""
    return jnp.argsort(jnp.argsort(-lax.stop_gradient(x), -1, stable=True), -1) + 1


def _discount(ranks: jax.Array, top: int | None, dtype: jnp.dtype) -> jax.Array:
    discount = 1 / jnp.log2(1 + ranks.astype(dtype))
    return discount if top is None else jnp.where(ranks <= top, discount, 0)
