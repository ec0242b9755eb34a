"""clDice: overlap of centre lines, so that a vessel or a road that is cut in two costs more than one that is a little thin."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar
from ._labels import weighed_by
from ._regions import Regions, binary_regions, class_regions, share, weigh_images

__all__ = ["binary_cl_dice", "cl_dice"]


@weighed_by(weigh_images)
def cl_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    iterations: int = 3,
    include_background: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """1 - 2 Tp Ts / (Tp + Ts) of soft skeletons S, of each image and class: the precision and the sensitivity of topology.

    Tp = (sum S(p) t + smooth) / (sum S(p) + smooth),  Ts = (sum S(t) p + smooth) / (sum S(t) + smooth),  p = softmax(outputs).
    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial], or a distribution [b, *spatial, c] -> [b, c], or
    [b, c - 1] with the background out (default, as the authors have it). Shit et al. 2021, arXiv:2003.07311.
    iterations: of the thinning (`soft_skeleton`), at least the largest radius in pixels; structure, default 3.
    smooth: default 1e-5 (the authors' code: 1). ignore_index: label of void pixels, default -100.
    The paper's soft-Dice-clDice is (1 - a) `dice` + a `cl_dice`, both without background.

    >>> y = jnp.array([[[0, 0, 0], [1, 1, 1], [0, 0, 0]]])
    >>> cl_dice(jax.nn.one_hot(y, 2) * 20, y).round(3)
    Array([[0.]], dtype=float32)
    """
    regions = class_regions(outputs, targets, include_background=include_background, ignore_index=ignore_index, loss="cl_dice")
    return _cl_dice(regions, smooth, iterations)


@weighed_by(weigh_images)
def binary_cl_dice(
    outputs: jax.Array, targets: jax.Array, *, smooth: Scalar = 1e-5, iterations: int = 3, ignore_index: int = -100
) -> jax.Array:
    """`cl_dice` of one region with p = sigmoid(outputs): [b, *spatial], targets of that shape -> [b].

    >>> y = jnp.array([[[0, 0, 0], [1, 1, 1], [0, 0, 0]]])
    >>> binary_cl_dice(jnp.where(y == 1, 20.0, -20.0).at[0, 1, 1].set(-20.0), y).round(3)
    Array([0.2], dtype=float32)
    """
    return _cl_dice(binary_regions(outputs, targets, ignore_index=ignore_index, loss="binary_cl_dice"), smooth, iterations)[:, 0]


def soft_skeleton(image: jax.Array, *, iterations: int = 3) -> jax.Array:
    """What opening (erosion, then dilation) removes, collected over repeated erosion: the centre lines of a soft region.

    image: [b, *spatial, c] in [0, 1] -> the same shape. Erosion takes the least of the neighbours along each axis (a cross), dilation
    the largest of the full neighbourhood, as in the authors' code.

    >>> soft_skeleton(jnp.array([0.0, 1, 1, 1, 0])[None, :, None])[0, :, 0]
    Array([0., 0., 1., 0., 0.], dtype=float32)
    """
    if not image.size:
        return image  # an axis without pixels has no edges to repeat
    axes = range(1, image.ndim - 1)

    def thinner(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        image, skeleton = state
        eroded = _eroded(image, axes)
        removed = jax.nn.relu(image - _dilated(eroded, axes))
        return (eroded, skeleton + jax.nn.relu(removed - skeleton * removed)), None

    (_, skeleton), _ = lax.scan(thinner, (image, jnp.zeros_like(image)), length=iterations + 1)
    return skeleton


def _cl_dice(regions: Regions, smooth: Scalar, iterations: int) -> jax.Array:
    p, not_p, t, counts = regions
    t = jnp.where(counts == 0, 0, t.astype(p.dtype))
    p = jnp.where(counts == 0, 0, p)
    skeleton_p, skeleton_t = soft_skeleton(p, iterations=iterations), soft_skeleton(t, iterations=iterations)
    # 1 - Tp and 1 - Ts as shares, so that nothing cancels near a perfect score
    wrong = share(regions.sum(skeleton_p * (1 - t)), regions.sum(skeleton_p * t) + smooth)
    missed = share(regions.sum(skeleton_t * not_p), regions.sum(skeleton_t * p) + smooth)
    precision, sensitivity = 1 - wrong, 1 - missed
    agreement = 2 * precision * sensitivity
    nothing = precision + sensitivity == 0
    return jnp.where(nothing, 1, share(precision * missed + sensitivity * wrong, agreement))


def _dilated(x: jax.Array, axes: range) -> jax.Array:
    for axis in axes:
        x = _over_neighbours(jnp.maximum, x, axis)
    return x


def _eroded(x: jax.Array, axes: range) -> jax.Array:
    least = [_over_neighbours(jnp.minimum, x, axis) for axis in axes]
    return functools.reduce(jnp.minimum, least)


def _over_neighbours(pick: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, axis: int) -> jax.Array:
    """`pick` over each pixel and the two beside it along an axis (at an edge, over itself).

    Slices, since pooling has no second derivative. The barrier keeps XLA from fusing one into the next: each reads three of the last, so a
    fused chain of n does 3^n work (and takes 15 s to compile).
    """
    x = lax.optimization_barrier(x)
    first, last = (lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, 1), (x.shape[axis] - 1, x.shape[axis])))
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, x.shape[axis], axis=axis), last], axis)
    return pick(pick(before, x), after)
