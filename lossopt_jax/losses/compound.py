"""Region loss plus pixel loss, the two that most segmentation networks are trained with: one value for each image.

The region part is the mean over an image's classes, the pixel part the mean over its pixels that count (0 where none do).
"""

import jax
import jax.numpy as jnp

from .._types import Scalar, Vector, to_float32
from ._labels import is_labels, signed, weighed_by
from ._regions import weigh_images
from .classification import binary_cross_entropy, binary_focal, cross_entropy, focal
from .segmentation import dice
from .segmentation_sigmoid import binary_dice

__all__ = ["binary_dice_cross_entropy", "binary_dice_focal", "dice_cross_entropy", "dice_focal"]


@weighed_by(weigh_images)
def dice_cross_entropy(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    dice_weight: Scalar = 1.0,
    cross_entropy_weight: Scalar = 1.0,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    class_weights: Vector | None = None,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """dice_weight * mean of `dice` + cross_entropy_weight * mean of `cross_entropy`, of each image.

    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial], or a distribution [b, *spatial, c] -> [b].
    Both weights default 1; the rest as in `dice` (include_background is for Dice alone) and `cross_entropy`; class weights multiply
    a pixel's cross-entropy and do not divide. nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z). MONAI: DiceCELoss.

    >>> dice_cross_entropy(jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]])).round(4)
    Array([1.1931], dtype=float32)
    """
    outputs = to_float32(outputs)  # here, so that the gradients of both parts add up in float32
    region = dice(
        outputs,
        targets,
        smooth=smooth,
        empty_weight=empty_weight,
        squared=squared,
        include_background=include_background,
        ignore_index=ignore_index,
    )
    pixels = cross_entropy(outputs, targets, label_smoothing=label_smoothing, class_weights=class_weights, ignore_index=ignore_index)
    return region.mean(-1) * dice_weight + _mean_of_image(pixels, targets, ignore_index) * cross_entropy_weight


@weighed_by(weigh_images)
def dice_focal(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    dice_weight: Scalar = 1.0,
    focal_weight: Scalar = 1.0,
    gamma: Scalar = 2.0,
    alpha: Vector | None = None,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """dice_weight * mean of `dice` + focal_weight * mean of `focal`, of each image: [b, *spatial, c] -> [b].

    Both weights default 1; the rest as in `dice` and `focal`. MONAI: DiceFocalLoss, whose focal part uses sigmoids unless told.

    >>> dice_focal(jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]])).round(1)
    Array([0.7], dtype=float32)
    """
    outputs = to_float32(outputs)  # here, so that the gradients of both parts add up in float32
    region = dice(
        outputs,
        targets,
        smooth=smooth,
        empty_weight=empty_weight,
        squared=squared,
        include_background=include_background,
        ignore_index=ignore_index,
    )
    pixels = focal(outputs, targets, gamma=gamma, alpha=alpha, ignore_index=ignore_index)
    return region.mean(-1) * dice_weight + _mean_of_image(pixels, targets, ignore_index) * focal_weight


@weighed_by(weigh_images)
def binary_dice_cross_entropy(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    dice_weight: Scalar = 1.0,
    cross_entropy_weight: Scalar = 1.0,
    pos_weight: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """dice_weight * `binary_dice` + cross_entropy_weight * mean of `binary_cross_entropy`, of each image: [b, *spatial] -> [b].

    Both weights default 1; the rest as in those two.

    >>> binary_dice_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0, 0, 1, 1]])).round(4)
    Array([1.1931], dtype=float32)
    """
    outputs = to_float32(outputs)
    region = binary_dice(outputs, targets, smooth=smooth, empty_weight=empty_weight, squared=squared, ignore_index=ignore_index)
    x, t = _without_void(outputs, targets, ignore_index)
    pixels = binary_cross_entropy(x, t, pos_weight=pos_weight, label_smoothing=label_smoothing)
    return region * dice_weight + _mean_of_image(pixels, targets, ignore_index) * cross_entropy_weight


@weighed_by(weigh_images)
def binary_dice_focal(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    dice_weight: Scalar = 1.0,
    focal_weight: Scalar = 1.0,
    gamma: Scalar = 2.0,
    alpha: Scalar | None = None,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """dice_weight * `binary_dice` + focal_weight * mean of `binary_focal`, of each image: [b, *spatial] -> [b].

    Both weights default 1; the rest as in those two.

    >>> binary_dice_focal(jnp.zeros((1, 4)), jnp.array([[0, 0, 1, 1]])).round(1)
    Array([0.7], dtype=float32)
    """
    outputs = to_float32(outputs)
    region = binary_dice(outputs, targets, smooth=smooth, empty_weight=empty_weight, squared=squared, ignore_index=ignore_index)
    x, t = _without_void(outputs, targets, ignore_index)
    pixels = binary_focal(x, t, gamma=gamma, alpha=alpha)
    return region * dice_weight + _mean_of_image(pixels, targets, ignore_index) * focal_weight


def _void(targets: jax.Array, ignore_index: int) -> jax.Array:
    targets = jnp.asarray(targets)
    if not is_labels(targets) or targets.dtype == jnp.bool_:
        return jnp.zeros(targets.shape, bool)
    return signed(targets) == ignore_index


def _without_void(outputs: jax.Array, targets: jax.Array, ignore_index: int) -> tuple[jax.Array, jax.Array]:
    void = _void(targets, ignore_index)
    return jnp.where(void, 0, outputs), jnp.where(void, 0, targets)


def _mean_of_image(pixels: jax.Array, targets: jax.Array, ignore_index: int) -> jax.Array:
    """[b, *spatial] -> [b], over the pixels that are not void."""
    void = _void(targets, ignore_index)
    counts = jnp.ones_like(pixels) if void.ndim > pixels.ndim else jnp.where(void, 0, jnp.ones_like(pixels))
    axes = tuple(range(1, pixels.ndim))
    counted = counts.sum(axes)
    return jnp.where(counts == 0, 0, pixels).sum(axes) / jnp.where(counted == 0, 1, counted)
