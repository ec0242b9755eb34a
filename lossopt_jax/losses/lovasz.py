"""The convex surrogates of the Jaccard index by its Lovász extension (Berman et al. 2018, arXiv:1705.08790).

With the errors m of an image's pixels sorted from large to small, the loss is sum_i m_i g_i, where g_i is what the i-th pixel adds
to the Jaccard loss of the set of pixels that are wrong. g is constant between kinks, so the gradient is g.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, as_array, check_same_shape, to_float32
from ._labels import binary_targets, class_targets, is_labels, signed, weighed_by
from ._regions import weigh_images
from ._stable import hot, softmax_pair

__all__ = ["lovasz_hinge", "lovasz_softmax"]


@weighed_by(weigh_images)
def lovasz_softmax(
    outputs: jax.Array, targets: jax.Array, *, empty_weight: Scalar = 1.0, include_background: bool = True, ignore_index: int = -100
) -> jax.Array:
    """Lovász-Softmax of each image and class, with the errors |t - p| of p = softmax(outputs).

    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial] -> [b, c]. At one-hot p it is 1 - Jaccard exactly.
    empty_weight: what the loss of a class that is not in the image is multiplied with, default 1 (the authors' classes="all").
    include_background: False leaves class 0 out, -> [b, c - 1]. ignore_index: label of void pixels, that count nowhere, default -100.
    The authors' per_image=True, classes="present" is the mean, image by image, over classes that are there.

    >>> lovasz_softmax(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.25, 0.5 ]], dtype=float32)
    """
    if not is_labels(targets):
        raise ValueError(
            f"lovasz_softmax: for outputs {jnp.shape(outputs)} targets must be integer labels, got {jnp.shape(targets)} floats"
        )
    given = class_targets(outputs, targets, loss="lovasz_softmax", ignore_index=ignore_index)
    z, counts = given.logits, given.counts
    if z.ndim < 3:
        raise ValueError(f"lovasz_softmax: outputs must be [b, *spatial, c] with at least one spatial axis, got {z.shape}")
    assert given.labels is not None
    first, pixels = 0 if include_background else 1, math.prod(z.shape[1:-1])
    p, not_p = softmax_pair(z)
    true = hot(given.labels, z.shape[-1]) & (counts != 0)[..., None]
    errors = jnp.where(true, not_p, p)
    errors, true = (jnp.moveaxis(x.reshape(x.shape[0], pixels, x.shape[-1])[..., first:], -1, 1) for x in (errors, true))
    counts = counts.reshape(counts.shape[0], 1, pixels)
    values = _lovasz(errors, true, jnp.broadcast_to(counts, errors.shape))
    return jnp.where(true.any(-1), values, empty_weight * values)


@weighed_by(weigh_images)
def lovasz_hinge(outputs: jax.Array, targets: jax.Array, *, ignore_index: int = -100) -> jax.Array:
    """Lovász hinge of one region, with the errors max(0, 1 - x (2 t - 1)) of the logits x: [b, *spatial] -> [b].

    targets: the same shape, 0 or 1 (integers, bools or floats; anything else makes its image NaN); every axis but the first is pixels.
    ignore_index: integer target of void pixels, that count nowhere, default -100. The authors' per_image=True.

    >>> lovasz_hinge(jnp.array([[2.0, -0.5, -3.0]]), jnp.array([[1, 1, 0]]))
    Array([0.75], dtype=float32)
    """
    outputs, targets = jnp.asarray(outputs), as_array(targets, what="lovasz_hinge")
    check_same_shape(outputs, targets, loss="lovasz_hinge")
    x, counts = to_float32(outputs), jnp.ones(outputs.shape, jnp.float32)
    if is_labels(targets) and targets.dtype != jnp.bool_:
        void = signed(targets) == ignore_index
        x, targets, counts = jnp.where(void, 0, x), jnp.where(void, 0, targets), jnp.where(void, 0.0, 1.0)
    t, pixels = binary_targets(targets, loss="lovasz_hinge"), (x.shape[0], math.prod(x.shape[1:]))
    counts = jnp.where((t == 0) | (t == 1), counts, jnp.nan).astype(x.dtype)
    x, true, counts = (part.reshape(pixels) for part in (x, t == 1, counts))
    x = x * _loud(counts)[..., None]  # before relu as well as behind it: its slope of 0 would hide NaN from the gradient
    return _lovasz(jax.nn.relu(1 - jnp.where(true, x, -x)), true, counts)


def _lovasz(errors: jax.Array, true: jax.Array, counts: jax.Array) -> jax.Array:
    """[..., n] errors, whether in the region, 1 or 0 (void) or NaN (no class) -> [...]."""
    slopes = _slopes(jnp.where(counts == 0, -1, lax.stop_gradient(errors)), true, counts != 0)
    return (errors * jnp.where(counts == 0, 0, slopes) * counts).sum(-1) * _loud(counts)


def _loud(counts: jax.Array) -> jax.Array:
    """[..., n] -> [...]: 1, or NaN where any pixel is of no class."""
    return jnp.where(jnp.isnan(counts).any(-1), jnp.nan, 1)


def _slopes(errors: jax.Array, true: jax.Array, valid: jax.Array) -> jax.Array:
    """What each pixel adds to the Jaccard loss 1 - I / U, taken in order of falling error; 0 or less where not valid."""
    place = lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    _, hit, counted, place = lax.sort((-errors, true.astype(jnp.int32), valid.astype(jnp.int32), place), dimension=-1, num_keys=1)
    size = hit.sum(-1, keepdims=True)
    left = (size - jnp.cumsum(hit, -1)).astype(errors.dtype)
    union = size + jnp.cumsum(counted * (1 - hit), -1)
    before = jnp.maximum(union - 1, 1).astype(errors.dtype)
    union = jnp.maximum(union, 1).astype(errors.dtype)
    # The difference of two Jaccard losses in closed form: as a difference it loses 5 % at 512 x 512 in float32.
    added = jnp.where(hit == 1, 1 / union, left / (before * union))
    alone = (jnp.cumsum(counted, -1) == 1) & (counted == 1)  # an empty region: all the loss is in the first wrong pixel
    added = jnp.where(size == 0, alone.astype(errors.dtype), added)
    _, slopes = lax.sort((place, added), dimension=-1, num_keys=1)
    return slopes
