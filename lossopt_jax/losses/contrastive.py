"""Losses that pull together what belongs together, by pairs: outputs are tuples of embeddings, [b, d] each.

`targets` of the losses within a batch (info_nce, ntxent, clip, siglip) is None, or [b]: 0 for a pair that is padding, which then is
neither anchor nor candidate. A weight of 0 in the batch does the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._types import Scalar, as_array, check_same_shape, to_float32
from ._labels import check_among, class_targets, is_labels, weigh_classes, weighed_by
from ._stable import hot, label_nll, softplus_pair
from ._vectors import all_cosines, inverse_norms, norm, vectors

__all__ = ["arcface", "clip", "contrastive", "cosface", "cosine", "cosine_embedding", "info_nce", "ntxent", "siglip"]


def cosine(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - cos(outputs, targets) over the last axis, as |u - v|^2 / 2 of unit vectors, which keeps small angles.

    outputs, targets: [*b, d] -> [*b], 0 to 2; a zero vector has cosine 0 with all. optax: cosine_distance. Keras: CosineSimilarity less 1.

    >>> cosine(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[2.0, 0.0], [-1.0, 1.0]])).round(3)
    Array([0., 1.], dtype=float32)
    """
    check_same_shape(outputs, targets, loss="cosine")
    return _distance_or_cosine(to_float32(outputs), to_float32(targets), jnp.ones(jnp.shape(outputs)[:-1], bool))


def cosine_embedding(outputs: tuple[jax.Array, jax.Array], targets: jax.Array, *, margin: Scalar = 0.0) -> jax.Array:
    """1 - cos(x, y) of a pair that belongs together (target 1), max(0, cos(x, y) - margin) of one that does not (-1).

    outputs: (x, y), [*b, d] each; targets: [*b], 1 or -1 (or 0) -> [*b]. margin: a cosine, default 0. torch: CosineEmbeddingLoss.

    >>> cosine_embedding((jnp.array([[1.0, 0.0]] * 2), jnp.array([[1.0, 1.0]] * 2)), jnp.array([1, -1])).round(3)
    Array([0.293, 0.707], dtype=float32)
    """
    x, y = vectors(outputs, count=2, loss="cosine_embedding", what="(x, y)")
    same, counts = _labelled_pairs(targets, x, loss="cosine_embedding")
    value = _distance_or_cosine(x, y, same)
    return counts * jnp.where(same, value, jax.nn.relu(value - margin))


def contrastive(outputs: tuple[jax.Array, jax.Array], targets: jax.Array, *, margin: Scalar = 1.0, degree: Scalar = 2.0) -> jax.Array:
    """D^2 / 2 of a pair that belongs together (target 1), max(0, margin - D)^2 / 2 of one that does not (0), with D = |x - y|.

    outputs: (x, y), [*b, d] each; targets: [*b], 1 or 0 (or -1) -> [*b]. Hadsell et al. 2006 (doi:10.1109/CVPR.2006.100), whose Y is
    1 - target. margin: a distance, default 1. degree: of the norm, default 2. Two equal vectors that should differ have gradient 0.

    >>> contrastive((jnp.array([[3.0, 4.0]] * 2), jnp.zeros((2, 2))), jnp.array([1, 0]), margin=6.0)
    Array([12.5,  0.5], dtype=float32)
    """
    x, y = vectors(outputs, count=2, loss="contrastive", what="(x, y)")
    same, counts = _labelled_pairs(targets, x, loss="contrastive")
    distance = norm((x - y) * counts[..., None], degree)
    return jnp.square(jnp.where(same, distance, jax.nn.relu(margin - distance))) / 2


def weigh_pairs(targets: Any) -> jax.Array | None:
    """[b]: 1 for a pair that is real, 0 for padding; None where all are."""
    return None if targets is None else (jnp.asarray(targets) != 0).astype(jnp.float32)


@weighed_by(weigh_pairs, padding=0)  # type: ignore[arg-type]
def info_nce(outputs: tuple[jax.Array, jax.Array], targets: jax.Array | None = None, *, temperature: Scalar = 0.07) -> jax.Array:
    """-log softmax over the batch's keys of cos(query, key) / temperature, at the query's own key.

    outputs: (queries, keys), [b, d] each, i belongs to i; targets: see above -> [b]. temperature: default 0.07.
    van den Oord et al. 2018, arXiv:1807.03748; with cosines as in MoCo (He et al. 2020, arXiv:1911.05722).

    >>> info_nce((jnp.eye(3), jnp.eye(3)), temperature=0.5).round(4)
    Array([0.2395, 0.2395, 0.2395], dtype=float32)
    """
    queries, keys = vectors(outputs, count=2, loss="info_nce", what="(queries, keys)")
    real, queries, keys = _real_pairs(targets, queries, keys, loss="info_nce")
    return _own_nll(all_cosines(queries, keys) / temperature, real)


@weighed_by(weigh_pairs, padding=0)  # type: ignore[arg-type]
def ntxent(outputs: tuple[jax.Array, jax.Array], targets: jax.Array | None = None, *, temperature: Scalar = 0.5) -> jax.Array:
    """InfoNCE of two views against all other 2 b - 1 views of the batch, the mean of both directions.

    outputs: (first views, second views), [b, d] each; targets: see above -> [b]. temperature: default 0.5.
    SimCLR, Chen et al. 2020, arXiv:2002.05709. optax's ntxent takes the views as one array with labels.

    >>> ntxent((jnp.eye(2), jnp.eye(2))).round(4)
    Array([0.2395, 0.2395], dtype=float32)
    """
    first, second = vectors(outputs, count=2, loss="ntxent", what="(first views, second views)")
    real, first, second = _real_pairs(targets, first, second, loss="ntxent")
    b = first.shape[0]
    views = jnp.concatenate([first, second])
    own = jnp.concatenate([jnp.arange(b) + b, jnp.arange(b)])
    allowed = jnp.concatenate([real, real])[None, :] & ~jnp.eye(2 * b, dtype=bool)
    nll = _nll_among(all_cosines(views, views) / temperature, own, allowed)
    return jnp.where(real, (nll[:b] + nll[b:]) / 2, 0)


@weighed_by(weigh_pairs, padding=0)  # type: ignore[arg-type]
def clip(outputs: tuple[jax.Array, ...], targets: jax.Array | None = None, *, temperature: Scalar = 0.07) -> jax.Array:
    """Mean of InfoNCE from images to texts and from texts to images.

    outputs: (images, texts), [b, d] each, or (images, texts, scale) with a learned scale [] that then stands for 1 / temperature;
    targets: see above -> [b]. temperature: default 0.07. Radford et al. 2021, arXiv:2103.00020.

    >>> clip((jnp.eye(3), jnp.eye(3)), temperature=0.5).round(4)
    Array([0.2395, 0.2395, 0.2395], dtype=float32)
    """
    images, texts, *learned = _towers(outputs, most=3, loss="clip")
    real, images, texts = _real_pairs(targets, images, texts, loss="clip")
    logits = all_cosines(images, texts) * (learned[0] if learned else 1 / jnp.asarray(temperature, images.dtype))
    return (_own_nll(logits, real) + _own_nll(logits.T, real)) / 2


@weighed_by(weigh_pairs, padding=0)  # type: ignore[arg-type]
def siglip(
    outputs: tuple[jax.Array, ...], targets: jax.Array | None = None, *, temperature: Scalar = 0.1, bias: Scalar = -10.0
) -> jax.Array:
    """Sum over texts of -log sigmoid(+-(cos / temperature + bias)), + at the image's own text: each pair is a yes or a no.

    outputs: (images, texts), [b, d] each, or (images, texts, scale, bias) with both learned, []; targets: see above -> [b].
    temperature: default 0.1; bias: default -10 (both the paper's start). Zhai et al. 2023, arXiv:2303.15343.

    >>> siglip((jnp.eye(2), jnp.eye(2))).round(3)
    Array([0.693, 0.693], dtype=float32)
    """
    images, texts, *learned = _towers(outputs, most=4, loss="siglip")
    real, images, texts = _real_pairs(targets, images, texts, loss="siglip")
    scale, shift = learned if learned else (1 / jnp.asarray(temperature, images.dtype), bias)
    if_no, if_yes = softplus_pair(all_cosines(images, texts) * scale + shift)
    values = jnp.where(jnp.eye(images.shape[0], dtype=bool), if_yes, if_no)
    return jnp.where(real[:, None] & real[None, :], values, 0).sum(-1)


@weighed_by(weigh_classes)
def cosface(outputs: jax.Array, targets: jax.Array, *, scale: Scalar = 64.0, margin: Scalar = 0.35, ignore_index: int = -100) -> jax.Array:
    """Cross-entropy of scale * (cos - margin at the label): a margin on the cosine.

    outputs: cosines [*b, c] of an embedding with each class's vector; targets: labels [*b] -> [*b].
    scale: default 64; margin: default 0.35. Wang et al. 2018, arXiv:1801.09414.

    >>> cosface(jnp.array([[0.9, 0.1]]), jnp.array([0]), scale=4.0).round(4)
    Array([0.153], dtype=float32)
    """
    cosines, labels, counts = _cosines(outputs, targets, ignore_index, loss="cosface")
    return counts * label_nll(scale * jnp.where(hot(labels, cosines.shape[-1]), cosines - margin, cosines), labels)


@weighed_by(weigh_classes)
def arcface(outputs: jax.Array, targets: jax.Array, *, scale: Scalar = 64.0, margin: Scalar = 0.5, ignore_index: int = -100) -> jax.Array:
    """Cross-entropy of scale * cos(angle + margin at the label): a margin on the angle.

    outputs: cosines [*b, c] of an embedding with each class's vector; targets: labels [*b] -> [*b].
    Beyond angle = pi - margin, where cos would rise again, it goes on as cos - margin sin(margin), as the authors' code does.
    scale: default 64; margin: radians, 0 to pi / 2, default 0.5. Deng et al. 2019, arXiv:1801.07698.
    The slope of the sine, infinite at cos = +-1, is taken as 0 there.

    >>> arcface(jnp.array([[0.9, 0.1]]), jnp.array([0]), scale=4.0).round(3)
    Array([0.136], dtype=float32)
    """
    cosines, labels, counts = _cosines(outputs, targets, ignore_index, loss="arcface")
    cosines = jnp.where(jnp.abs(cosines) > 1, jnp.sign(cosines), cosines)  # not clip, whose gradient at 1 is a half
    margin = jnp.asarray(margin, cosines.dtype)
    square = (1 - cosines) * (1 + cosines)
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    turned = cosines * jnp.cos(margin) - sine * jnp.sin(margin)
    turned = jnp.where(cosines > -jnp.cos(margin), turned, cosines - margin * jnp.sin(margin))
    return counts * label_nll(scale * jnp.where(hot(labels, cosines.shape[-1]), turned, cosines), labels)


@jax.custom_jvp
def _distance_or_cosine(x: jax.Array, y: jax.Array, same: jax.Array) -> jax.Array:
    """1 - cos where `same`, as |u - v|^2 / 2 of unit vectors, elsewhere cos, as u.v: either with its own digits, and one sum for both."""
    (scale_x, inverse_x), (scale_y, inverse_y) = inverse_norms(x), inverse_norms(y)
    u, v = x * scale_x * inverse_x, y * scale_y * inverse_y
    total = jnp.where(same[..., None], jnp.square(u - v), u * v).sum(-1)
    zero = ((inverse_x == 0) | (inverse_y == 0))[..., 0]
    return jnp.where(same, jnp.where(zero, 1, total / 2), total)


@_distance_or_cosine.defjvp
def _distance_or_cosine_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x, y, same), (dx, dy, _) = primals, tangents
    (scale_x, inverse_x), (scale_y, inverse_y) = inverse_norms(x), inverse_norms(y)
    u, v = x * scale_x * inverse_x, y * scale_y * inverse_y
    value = _distance_or_cosine(x, y, same)
    zero, less = (inverse_x == 0) | (inverse_y == 0), jnp.where(same, value, 1 - value)[..., None]
    # d(1 - u.v) = -(v - (u.v) u) dx / |x|, written in the distance, so that nothing cancels at small angles.
    slope_x = jnp.where(zero, 0, (u - v - less * u) * inverse_x * scale_x)
    slope_y = jnp.where(zero, 0, (v - u - less * v) * inverse_y * scale_y)
    tangent = (slope_x * dx + slope_y * dy).sum(-1)
    return value, jnp.where(same, tangent, -tangent)


def _cosines(outputs: jax.Array, targets: jax.Array, ignore_index: int, *, loss: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    given = class_targets(outputs, targets, loss=loss, ignore_index=ignore_index)
    if given.labels is None:
        raise ValueError(f"{loss}: for outputs {jnp.shape(outputs)} targets must be integer labels, got {jnp.shape(targets)} floats")
    return given.logits, given.labels, given.counts


def _labelled_pairs(targets: jax.Array, x: jax.Array, *, loss: str) -> tuple[jax.Array, jax.Array]:
    """Which pairs belong together, and 1, or NaN where the target is none of 1, 0 and -1 (ValueError for a known integer)."""
    targets = as_array(targets, what=loss)
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"{loss}: for outputs {x.shape} targets must have shape {x.shape[:-1]}, got {targets.shape}")
    if targets.dtype == jnp.bool_:
        return targets, jnp.ones(targets.shape, x.dtype)
    if is_labels(targets):
        check_among(targets, (1, 0, -1), loss)
    targets = to_float32(targets)  # to uint8, -1 is 255
    # What is unknown goes with those that belong together: relu's slope of 0 would hide its NaN from the gradient.
    same = (targets != 0) & (targets != -1)
    return same, jnp.where(same & (targets != 1), jnp.nan, 1).astype(x.dtype)


def _real_pairs(targets: jax.Array | None, left: jax.Array, right: jax.Array, *, loss: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which pairs are real, and the embeddings with 0 where not: garbage there must not reach a product, not even times 0."""
    if left.ndim != 2:
        raise ValueError(f"{loss}: embeddings must be [b, d], got {left.shape}")
    if targets is None:
        return jnp.ones(left.shape[0], bool), left, right
    if jnp.shape(targets) != left.shape[:1]:
        raise ValueError(f"{loss}: for outputs {left.shape} targets must be None or have shape {left.shape[:1]}, got {jnp.shape(targets)}")
    real = jnp.asarray(targets) != 0
    return real, jnp.where(real[:, None], left, 0), jnp.where(real[:, None], right, 0)


def _towers(outputs: tuple[jax.Array, ...], *, most: int, loss: str) -> tuple[jax.Array, ...]:
    if isinstance(outputs, tuple | list) and len(outputs) == most:
        return (*vectors(outputs[:2], count=2, loss=loss, what="(images, texts)"), *map(to_float32, outputs[2:]))
    return vectors(outputs, count=2, loss=loss, what="(images, texts)")


def _own_nll(logits: jax.Array, real: jax.Array) -> jax.Array:
    """[b, b], [b] -> [b]: -log softmax among the real columns at the diagonal, 0 for a row that is not real."""
    b = logits.shape[0]
    nll = _nll_among(logits, jnp.arange(b), jnp.broadcast_to(real[None, :], (b, b)))
    return jnp.where(real, nll, 0)


def _nll_among(logits: jax.Array, own: jax.Array, allowed: jax.Array) -> jax.Array:
    if not own.size:
        return jnp.zeros(0, logits.dtype)
    # The own column stays in even for a row that is padding: a row of -inf alone would be NaN.
    own_column = own[:, None] == jnp.arange(logits.shape[1])[None, :]
    return label_nll(jnp.where(allowed | own_column, logits, -jnp.inf), own)
