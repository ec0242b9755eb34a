"""Triplets and other losses on labelled embeddings; `targets` are labels [b], any integers, where equal means together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, as_array, to_float32
from ._labels import read_by, signed, weighed_by
from ._stable import nll_of_all
from ._vectors import all_cosines, all_distances, norm, vectors

__all__ = ["supervised_contrastive", "triplet", "triplet_batch_hard", "triplet_semi_hard"]


def triplet(
    outputs: tuple[jax.Array, jax.Array, jax.Array],
    targets: Any = None,
    *,
    margin: Scalar = 1.0,
    degree: Scalar = 2.0,
    swap: bool = False,
) -> jax.Array:
    """max(0, |a - p| - |a - n| + margin), with |x| = (sum |x_i|^degree)^(1 / degree).

    outputs: (anchor, positive, negative), [*b, d] each; targets: not looked at -> [*b].
    margin: a distance, default 1; degree: of the norm, > 0, default 2. swap: the nearer of |a - n| and |p - n| counts (Balntas et al.
    2016), default False. Schroff et al. 2015, arXiv:1503.03832, has squared distances.
    torch: TripletMarginLoss, which adds eps 1e-6 to each difference; here the gradient at distance 0 is 0 instead.

    >>> triplet((jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[-4.0, 0.0]])))
    Array([2.], dtype=float32)
    """
    anchor, positive, negative = vectors(outputs, count=3, loss="triplet", what="(anchor, positive, negative)")
    apart = norm(anchor - negative, degree)
    if swap:
        apart = jnp.minimum(apart, norm(positive - negative, degree))
    return jax.nn.relu(norm(anchor - positive, degree) - apart + margin)


def weigh_anchors(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """[b]: 1 for an anchor that has a positive and a negative in the batch, else 0."""
    same, other = _pairs(jnp.asarray(targets), ignore_index)
    return (same.any(-1) & other.any(-1)).astype(jnp.float32)


def weigh_positives(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """[b]: 1 for an anchor that has a positive in the batch, else 0."""
    return _pairs(jnp.asarray(targets), ignore_index)[0].any(-1).astype(jnp.float32)


@read_by(None)
@weighed_by(weigh_anchors)
def triplet_batch_hard(
    outputs: jax.Array, targets: jax.Array, *, margin: Scalar = 0.2, degree: Scalar = 2.0, ignore_index: int = -100
) -> jax.Array:
    """`triplet` of each example with its farthest positive and its nearest negative in the batch.

    outputs: embeddings [b, d]; targets: labels [b] -> [b], 0 (and weight 0 in the mean) without a positive or a negative.
    margin: a distance, default 0.2. ignore_index: label of what is in no pair, default -100. Hermans et al. 2017, arXiv:1703.07737.

    >>> triplet_batch_hard(jnp.array([[0.0], [1.0], [3.0], [9.0]]), jnp.array([0, 0, 1, 1]))
    Array([0. , 0. , 4.2, 0. ], dtype=float32)
    """
    distances, labels = _labelled(outputs, targets, degree, ignore_index, loss="triplet_batch_hard")
    mined = mine_batch_hard(distances, labels, ignore_index=ignore_index)
    farthest, nearest = (jnp.take_along_axis(distances, i[:, None], 1)[:, 0] for i in mined[:2])
    return jnp.where(mined.valid, jax.nn.relu(farthest - nearest + margin), 0)


@read_by(None)
@weighed_by(weigh_anchors)
def triplet_semi_hard(
    outputs: jax.Array, targets: jax.Array, *, margin: Scalar = 1.0, degree: Scalar = 2.0, ignore_index: int = -100
) -> jax.Array:
    """Mean over each example's positives of `triplet` with the nearest negative that is farther than the positive.

    outputs: embeddings [b, d]; targets: labels [b] -> [b], 0 (and weight 0 in the mean) without a positive or a negative.
    Where no negative is farther, the farthest one is taken (as TensorFlow Addons does, which has squared distances too).
    margin: a distance, default 1. ignore_index: as in `triplet_batch_hard`. FaceNet, Schroff et al. 2015, arXiv:1503.03832.

    >>> triplet_semi_hard(jnp.array([[0.0], [1.0], [1.5], [4.0]]), jnp.array([0, 0, 1, 1]))
    Array([0.5, 0. , 2. , 0.5], dtype=float32)
    """
    distances, labels = _labelled(outputs, targets, degree, ignore_index, loss="triplet_semi_hard")
    negatives, positive = mine_semi_hard(distances, labels, ignore_index=ignore_index)
    values = jax.nn.relu(distances - jnp.take_along_axis(distances, negatives, 1) + margin)
    count = positive.sum(-1).astype(values.dtype)
    return jnp.where(positive, values, 0).sum(-1) / jnp.maximum(count, 1)


@read_by(None)
@weighed_by(weigh_positives)
def supervised_contrastive(outputs: jax.Array, targets: jax.Array, *, temperature: Scalar = 0.1, ignore_index: int = -100) -> jax.Array:
    """Mean over an example's positives of -log softmax over all others of cos / temperature.

    outputs: embeddings [b, d] (normalised here); targets: labels [b] -> [b], 0 (and weight 0 in the mean) without a positive.
    temperature: default 0.1. ignore_index: label of what is in no pair, default -100. Khosla et al. 2020, arXiv:2004.11362, L_out
    (the authors' code multiplies by temperature / 0.07).

    >>> supervised_contrastive(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0, 1]), temperature=0.5).round(3)
    Array([0.127, 0.127, 0.   ], dtype=float32)
    """
    x, labels = _embeddings(outputs, targets, ignore_index, loss="supervised_contrastive")
    if not labels.size:
        return jnp.zeros(0, x.dtype)
    same, other = _pairs(labels, ignore_index)
    logits = all_cosines(x, x) / temperature
    among = same | other
    among |= ~among.any(-1, keepdims=True)  # a row of -inf alone would be NaN
    nll = nll_of_all(jnp.where(among, logits, -jnp.inf))
    count = same.sum(-1).astype(logits.dtype)
    return jnp.where(same, nll, 0).sum(-1) / jnp.maximum(count, 1)


class HardTriplets(NamedTuple):
    """Indices [b] of each anchor's positive and negative, and whether it has both."""

    positives: jax.Array
    negatives: jax.Array
    valid: jax.Array


def mine_batch_hard(distances: jax.Array, labels: jax.Array, *, ignore_index: int = -100) -> HardTriplets:
    """The farthest positive and the nearest negative of each anchor: distances [b, b], labels [b]."""
    same, other = _pairs(labels, ignore_index)
    if not labels.size:
        return HardTriplets(labels, labels, labels == 0)
    distances = lax.stop_gradient(distances)
    positives = jnp.where(same, distances, -jnp.inf).argmax(-1)
    negatives = jnp.where(other, distances, jnp.inf).argmin(-1)
    return HardTriplets(positives, negatives, same.any(-1) & other.any(-1))


def mine_semi_hard(distances: jax.Array, labels: jax.Array, *, ignore_index: int = -100) -> tuple[jax.Array, jax.Array]:
    """For anchor i and positive j the nearest negative farther than j, else the farthest: indices [b, b], and where i, j is such a pair."""
    same, other = _pairs(labels, ignore_index)
    distances = lax.stop_gradient(distances)
    away = jnp.where(other, distances, jnp.inf)
    order = jnp.argsort(away, -1)
    ordered = jnp.take_along_axis(away, order, 1)
    beyond = jax.vmap(lambda row, of: jnp.searchsorted(row, of, side="right"))(ordered, distances)
    last = jnp.maximum(other.sum(-1, keepdims=True) - 1, 0)
    negatives = jnp.take_along_axis(order, jnp.minimum(beyond, last), 1)
    return negatives, same & other.any(-1, keepdims=True)


def _pairs(labels: jax.Array, ignore_index: int) -> tuple[jax.Array, jax.Array]:
    """[b] -> whether i, j share a label and are not one, whether they do not share one; neither where one is ignored."""
    counts = signed(labels) != ignore_index
    both = counts[:, None] & counts[None, :]
    equal = labels[:, None] == labels[None, :]
    return both & equal & ~jnp.eye(labels.shape[0], dtype=bool), both & ~equal


def _embeddings(outputs: jax.Array, targets: jax.Array, ignore_index: int, *, loss: str) -> tuple[jax.Array, jax.Array]:
    outputs, targets = jnp.asarray(outputs), as_array(targets, what=loss)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"{loss}: outputs must be [b, d] and targets integer labels [b], got outputs {outputs.shape} and targets "
            f"{targets.shape} of {targets.dtype}"
        )
    # Garbage in what is ignored must not reach a product, not even times 0.
    return jnp.where((signed(targets) == ignore_index)[:, None], 0, to_float32(outputs)), targets


def _labelled(outputs: jax.Array, targets: jax.Array, degree: Scalar, ignore_index: int, *, loss: str) -> tuple[jax.Array, jax.Array]:
    x, labels = _embeddings(outputs, targets, ignore_index, loss=loss)
    return all_distances(x, degree), labels
