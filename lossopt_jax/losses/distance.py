"""Losses by distance to the true border: they see how far an error is, not only how large.

The distances are exact Euclidean ones, found in JAX and constant to differentiation. Void pixels belong to no region.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, Vector, to_float32
from ._labels import weighed_by
from ._regions import Regions, binary_regions, class_regions, focal_power, weigh_images

__all__ = ["binary_boundary", "binary_hausdorff", "boundary", "hausdorff"]


@weighed_by(weigh_images)
def boundary(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    spacing: Vector | None = None,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """Mean over pixels of p phi, with p = softmax(outputs) and phi the signed distance to the true region, of each image and class.

    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial], or a distribution, cut at 1/2 -> [b, c]; it may be negative.
    phi: `signed_distance` of the region, 0 where a class is not in the image or fills it. Kervadec et al. 2019, arXiv:1812.07032.
    spacing: size of a pixel along each spatial axis, default 1. include_background: False leaves class 0 out (the paper does).
    ignore_index: label of void pixels, default -100. Meant to be added to a region loss such as `generalized_dice`.

    >>> boundary(jnp.array([[[0.0, 0.0], [0.0, 0.0], [0.0, 9e9]]]), jnp.array([[0, 0, 1]])).round(2)
    Array([[-0.17,  0.5 ]], dtype=float32)
    """
    regions = class_regions(outputs, targets, include_background=include_background, ignore_index=ignore_index, loss="boundary")
    return _boundary(regions, spacing)


@weighed_by(weigh_images)
def binary_boundary(outputs: jax.Array, targets: jax.Array, *, spacing: Vector | None = None, ignore_index: int = -100) -> jax.Array:
    """`boundary` of one region with p = sigmoid(outputs): [b, *spatial], targets of that shape -> [b].

    >>> binary_boundary(jnp.zeros((1, 4)), jnp.array([[0, 0, 1, 1]]))
    Array([0.25], dtype=float32)
    """
    return _boundary(binary_regions(outputs, targets, ignore_index=ignore_index, loss="binary_boundary"), spacing)[:, 0]


@weighed_by(weigh_images)
def hausdorff(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 2.0,
    spacing: Vector | None = None,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """Mean over pixels of (p - t)^2 (d_p^alpha + d_t^alpha), a smooth relative of the Hausdorff distance, of each image and class.

    d_t: distance to the border of the true region, d_p: to that of the predicted one, p = softmax(outputs) > 1/2 (`border_distance`).
    Shapes and options as in `boundary`: -> [b, c]. Karimi & Salcudean 2019, arXiv:1904.10030.
    alpha: power of the distances, > 0, default 2. MONAI: HausdorffDTLoss.

    >>> hausdorff(jnp.array([[[9.0, -9.0], [-9.0, 9.0], [-9.0, 9.0]]]), jnp.array([[0, 0, 1]])).round(4)
    Array([[0.6667, 0.6667]], dtype=float32)
    """
    regions = class_regions(outputs, targets, include_background=include_background, ignore_index=ignore_index, loss="hausdorff")
    return _hausdorff(regions, alpha, spacing)


@weighed_by(weigh_images)
def binary_hausdorff(
    outputs: jax.Array, targets: jax.Array, *, alpha: Scalar = 2.0, spacing: Vector | None = None, ignore_index: int = -100
) -> jax.Array:
    """`hausdorff` of one region with p = sigmoid(outputs): [b, *spatial], targets of that shape -> [b].

    >>> binary_hausdorff(jnp.array([[9.0, 9.0, -9.0, -9.0]]), jnp.array([[1, 0, 0, 0]])).round(3)
    Array([0.5], dtype=float32)
    """
    regions = binary_regions(outputs, targets, ignore_index=ignore_index, loss="binary_hausdorff")
    return _hausdorff(regions, alpha, spacing)[:, 0]


def distance_transform(mask: jax.Array, *, spacing: Vector | None = None) -> jax.Array:
    """Exact Euclidean distance from each pixel to the nearest one that is False; inf where an image has none.

    mask: bool [b, *spatial] -> [b, *spatial]. spacing: size of a pixel along each spatial axis, a number or one for each, default 1.
    The squared distance is separable, d^2(i) = min_j d'^2(j) + (i - j)^2 one axis after another (Felzenszwalb & Huttenlocher 2012,
    doi:10.4086/toc.2012.v008a019), here over all j: n steps of vector work for an axis of n. scipy: ndimage.distance_transform_edt.

    >>> distance_transform(jnp.array([[True, True, False, True]]))
    Array([[2., 1., 0., 1.]], dtype=float32)
    """
    squared = jnp.where(mask, jnp.inf, 0.0)
    steps = jnp.broadcast_to(to_float32(jnp.asarray(1.0 if spacing is None else spacing)), (squared.ndim - 1,))
    for axis in range(1, squared.ndim):
        squared = _nearest_along(squared, axis, steps[axis - 1])
    return jnp.sqrt(squared)


def signed_distance(mask: jax.Array, *, spacing: Vector | None = None) -> jax.Array:
    """Distance to a region: > 0 outside it, 0 on its own border pixels, < 0 within; all 0 where it is empty or everything.

    mask: bool [b, *spatial] -> [b, *spatial]. The convention of Kervadec et al. 2019: 1 (one smallest spacing) is added within.

    >>> signed_distance(jnp.array([[False, False, True, True, True]]))
    Array([[ 2.,  1.,  0., -1., -2.]], dtype=float32)
    """
    pixel = 1.0 if spacing is None else to_float32(jnp.asarray(spacing)).min()
    within, outside = distance_transform(mask, spacing=spacing), distance_transform(~mask, spacing=spacing)
    return jnp.where(_has_border(mask), jnp.where(mask, pixel - within, outside), 0)


def border_distance(mask: jax.Array, *, spacing: Vector | None = None) -> jax.Array:
    """Distance from each pixel to the nearest one on the other side of a region's border; all 0 where there is no border.

    mask: bool [b, *spatial] -> [b, *spatial].

    >>> border_distance(jnp.array([[False, False, True, True, True]]))
    Array([[2., 1., 1., 2., 3.]], dtype=float32)
    """
    within, outside = distance_transform(mask, spacing=spacing), distance_transform(~mask, spacing=spacing)
    return jnp.where(_has_border(mask), jnp.where(mask, within, outside), 0)


def _nearest_along(squared: jax.Array, axis: int, step: jax.Array) -> jax.Array:
    lines = jnp.moveaxis(squared, axis, 0)
    place = jnp.arange(lines.shape[0]).reshape(-1, *(1,) * (lines.ndim - 1))

    def nearer(best: jax.Array, source: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        line, at = source
        return jnp.minimum(best, line[None] + jnp.square((place - at) * step)), None

    best, _ = lax.scan(nearer, jnp.full_like(lines, jnp.inf), (lines, jnp.arange(lines.shape[0])))
    return jnp.moveaxis(best, 0, axis)


def _has_border(mask: jax.Array) -> jax.Array:
    pixels = tuple(range(1, mask.ndim))
    return mask.any(pixels, keepdims=True) & ~mask.all(pixels, keepdims=True)


def _boundary(regions: Regions, spacing: Vector | None) -> jax.Array:
    phi = lax.stop_gradient(_by_region(lambda mask: signed_distance(mask, spacing=spacing), regions.true)).astype(regions.p.dtype)
    return regions.mean(regions.p * phi)


def _hausdorff(regions: Regions, alpha: Scalar, spacing: Vector | None) -> jax.Array:
    predicted = lax.stop_gradient(regions.p) > 0.5
    to_true, to_predicted = (_by_region(lambda mask: border_distance(mask, spacing=spacing), mask) for mask in (regions.true, predicted))
    weights = focal_power(lax.stop_gradient(to_true), alpha) + focal_power(lax.stop_gradient(to_predicted), alpha)
    error = regions.p - regions.t.astype(regions.p.dtype)
    return regions.mean(jnp.square(error) * weights.astype(error.dtype))


def _by_region(transform: Callable[[jax.Array], jax.Array], masks: jax.Array) -> jax.Array:
    """A map of [b, *spatial] applied to each of the last axis of [b, *spatial, c]."""
    return jax.vmap(transform, in_axes=-1, out_axes=-1)(masks)
