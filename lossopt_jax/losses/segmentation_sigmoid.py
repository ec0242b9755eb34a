"""Region losses with a sigmoid: `binary_*` for one region an image, `multilabel_*` for regions that may overlap.

binary: logits [b, *spatial] and targets of that shape -> [b]; every axis but the first is pixels, so a last axis of 1 is welcome.
multilabel: logits [b, *spatial, c] and targets of that shape -> [b, c], or [c] over the batch.
Targets are 0 or 1 (integers, bools or floats) or between; an integer `ignore_index` is void, in no sum; any other integer makes its
image NaN. Formulas, numbers and other libraries' names: `segmentation`. To leave a background label out, slice it off.
"""

import jax
import jax.numpy as jnp  # noqa: F401  (the examples use it)

from .._types import Scalar
from ._labels import weighed_by
from ._regions import (
    binary_region_statistics,
    dice_from,
    focal_power,
    iou_from,
    multilabel_region_statistics,
    over_batch,
    tversky_from,
    weigh_batch,
    weigh_images,
    weigh_labels,
)
from ._special import log_cosh_of

__all__ = [
    "batch_multilabel_dice",
    "batch_multilabel_iou",
    "binary_dice",
    "binary_focal_tversky",
    "binary_iou",
    "binary_log_cosh_dice",
    "binary_tversky",
    "multilabel_dice",
    "multilabel_focal_tversky",
    "multilabel_iou",
    "multilabel_tversky",
]


@weighed_by(weigh_images)
def binary_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """Soft Dice of one region, 1 - (2 I + smooth) / (P + T + smooth) with p = sigmoid(outputs): [b, *spatial] -> [b].

    MONAI: DiceLoss(sigmoid=True) on one channel. segmentation_models_pytorch's "binary" mode: `batch_multilabel_dice` of outputs [..., 1]
    with smooth=0, empty_weight=0. Keras' Dice: the same with smooth=0 (its 1e-7 is below only).

    >>> binary_dice(jnp.array([[9.0, 0.0, -9.0]]), jnp.array([[1, 1, 0]])).round(3)
    Array([0.143], dtype=float32)
    """
    statistics = binary_region_statistics(outputs, targets, squared=squared, ignore_index=ignore_index, loss="binary_dice")
    return dice_from(statistics, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_images)
def binary_iou(
    outputs: jax.Array, targets: jax.Array, *, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0, ignore_index: int = -100
) -> jax.Array:
    """Soft Jaccard of one region, 1 - (I + smooth) / (P + T - I + smooth) with p = sigmoid(outputs): [b, *spatial] -> [b].

    >>> binary_iou(jnp.array([[9.0, 0.0, -9.0]]), jnp.array([[1, 1, 0]])).round(3)
    Array([0.25], dtype=float32)
    """
    statistics = binary_region_statistics(outputs, targets, ignore_index=ignore_index, loss="binary_iou")
    return iou_from(statistics, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_images)
def binary_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    ignore_index: int = -100,
) -> jax.Array:
    """`tversky` of one region with p = sigmoid(outputs), alpha on false positives: [b, *spatial] -> [b].

    >>> binary_tversky(jnp.array([[9.0, 0.0, -9.0]]), jnp.array([[1, 1, 0]])).round(4)
    Array([0.1893], dtype=float32)
    """
    statistics = binary_region_statistics(outputs, targets, ignore_index=ignore_index, loss="binary_tversky")
    return tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_images)
def binary_focal_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    gamma: Scalar = 0.75,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    ignore_index: int = -100,
) -> jax.Array:
    """`binary_tversky` to the power gamma: [b, *spatial] -> [b].

    >>> binary_focal_tversky(jnp.array([[9.0, 0.0, -9.0]]), jnp.array([[1, 1, 0]])).round(3)
    Array([0.287], dtype=float32)
    """
    statistics = binary_region_statistics(outputs, targets, ignore_index=ignore_index, loss="binary_focal_tversky")
    return focal_power(tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight), gamma)


@weighed_by(weigh_images)
def binary_log_cosh_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """log(cosh(`binary_dice`)): [b, *spatial] -> [b].

    >>> binary_log_cosh_dice(jnp.array([[9.0, 0.0, -9.0]]), jnp.array([[1, 1, 0]])).round(3)
    Array([0.01], dtype=float32)
    """
    statistics = binary_region_statistics(outputs, targets, squared=squared, ignore_index=ignore_index, loss="binary_log_cosh_dice")
    return log_cosh_of(dice_from(statistics, smooth=smooth, empty_weight=empty_weight))


@weighed_by(weigh_labels)
def multilabel_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """Soft Dice of each label, 1 - (2 I + smooth) / (P + T + smooth) with p = sigmoid(outputs): [b, *spatial, c] -> [b, c].

    MONAI: DiceLoss(sigmoid=True).

    >>> multilabel_dice(jnp.array([[[9.0, 0.0], [0.0, -9.0]]]), jnp.array([[[1, 1], [1, 0]]])).round(3)
    Array([[0.143, 0.333]], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, squared=squared, ignore_index=ignore_index, loss="multilabel_dice")
    return dice_from(statistics, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_labels)
def multilabel_iou(
    outputs: jax.Array, targets: jax.Array, *, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0, ignore_index: int = -100
) -> jax.Array:
    """Soft Jaccard of each label, 1 - (I + smooth) / (P + T - I + smooth) with p = sigmoid(outputs): [b, *spatial, c] -> [b, c].

    >>> multilabel_iou(jnp.array([[[9.0, 0.0], [0.0, -9.0]]]), jnp.array([[[1, 1], [1, 0]]])).round(3)
    Array([[0.25, 0.5 ]], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, ignore_index=ignore_index, loss="multilabel_iou")
    return iou_from(statistics, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_labels)
def multilabel_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    ignore_index: int = -100,
) -> jax.Array:
    """`tversky` of each label with p = sigmoid(outputs), alpha on false positives: [b, *spatial, c] -> [b, c].

    >>> multilabel_tversky(jnp.array([[[9.0, 0.0], [0.0, -9.0]]]), jnp.array([[[1, 1], [1, 0]]])).round(4)
    Array([[0.1892, 0.4118]], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, ignore_index=ignore_index, loss="multilabel_tversky")
    return tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_labels)
def multilabel_focal_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    gamma: Scalar = 0.75,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    ignore_index: int = -100,
) -> jax.Array:
    """`multilabel_tversky` to the power gamma: [b, *spatial, c] -> [b, c].

    >>> multilabel_focal_tversky(jnp.array([[[9.0, 0.0], [0.0, -9.0]]]), jnp.array([[[1, 1], [1, 0]]])).round(3)
    Array([[0.287, 0.514]], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, ignore_index=ignore_index, loss="multilabel_focal_tversky")
    return focal_power(tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight), gamma)


@weighed_by(weigh_batch)
def batch_multilabel_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    ignore_index: int = -100,
) -> jax.Array:
    """`multilabel_dice` of each label over all images of the batch as if they were one: [b, *spatial, c] -> [c]; see `batch_dice`.

    >>> batch_multilabel_dice(jnp.array([[[9.0, 0.0]], [[0.0, -9.0]]]), jnp.array([[[1, 1]], [[1, 0]]])).round(3)
    Array([0.143, 0.333], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, squared=squared, ignore_index=ignore_index, loss="batch_multilabel_dice")
    return dice_from(over_batch(statistics), smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_batch)
def batch_multilabel_iou(
    outputs: jax.Array, targets: jax.Array, *, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0, ignore_index: int = -100
) -> jax.Array:
    """`multilabel_iou` of each label over all images of the batch as if they were one: [b, *spatial, c] -> [c]; see `batch_dice`.

    >>> batch_multilabel_iou(jnp.array([[[9.0, 0.0]], [[0.0, -9.0]]]), jnp.array([[[1, 1]], [[1, 0]]])).round(3)
    Array([0.25, 0.5 ], dtype=float32)
    """
    statistics = multilabel_region_statistics(outputs, targets, ignore_index=ignore_index, loss="batch_multilabel_iou")
    return iou_from(over_batch(statistics), smooth=smooth, empty_weight=empty_weight)
