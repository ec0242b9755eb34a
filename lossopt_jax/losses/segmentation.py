"""Region losses for segmentation, of 2-D and 3-D images alike: how much of the predicted and the true region coincide.

Three kinds of outputs, three names. `dice`: classes that exclude one another (softmax over the last axis). `binary_dice`: one
region (sigmoid; every axis but the first is pixels). `multilabel_dice`: regions that may overlap (sigmoid; the last axis is labels).
All stand on `RegionStatistics`, whose sums add up: Dice of the batch is `batch_dice`, or `dice_from` of summed statistics.
"""

import jax
import jax.numpy as jnp

from .._types import Scalar
from ._regions import (
    dice_from,
    iou_from,
    region_statistics,
)

__all__ = ["dice", "iou"]


def dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """Soft Dice of each image and class, 1 - (2 I + smooth) / (P + T + smooth), with p = softmax(outputs).

    I = sum p t, P = sum p, T = sum t over pixels (sum p^2, sum t^2 where `squared`: V-Net, Milletari et al. 2016, arXiv:1606.04797).
    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial], or a distribution [b, *spatial, c] -> [b, c].
    smooth: default 1e-5; a class neither there nor predicted is perfect (0), also at smooth 0.
    empty_weight: what the loss of a class that is not in the image is multiplied with, default 1.
    include_background: False leaves class 0 out, -> [b, c - 1]. ignore_index: label of void pixels, in no sum, default -100.

    Other libraries' numbers: MONAI's DiceLoss(softmax=True, to_onehot_y=True) is the mean of these values at its smooth_nr = smooth_dr
    = 1e-5 (its `squared_pred` is `squared`, `batch=True` is `batch_dice`). segmentation_models_pytorch: the mean of `batch_dice` with
    smooth=0, empty_weight=0 (void pixels given as ignore_index add nothing there either). kornia's dice_loss: mean of `dice` with
    smooth=1e-8 (average="macro"). Keras' Dice on probabilities: `batch_dice` summed over classes as well, smooth=1e-7.

    >>> dice(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.2  , 0.333]], dtype=float32)
    """
    options = {"squared": squared, "include_background": include_background, "ignore_index": ignore_index}
    return dice_from(region_statistics(outputs, targets, loss="dice", **options), smooth=smooth, empty_weight=empty_weight)


def iou(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """Soft Jaccard of each image and class, 1 - (I + smooth) / (P + T - I + smooth), with p = softmax(outputs).

    Shapes, numbers and options as in `dice`: [b, *spatial, c], labels or distribution -> [b, c]. Rahman & Wang 2016.
    MONAI: DiceLoss(jaccard=True). segmentation_models_pytorch: JaccardLoss is over the batch, at smooth=0, empty_weight=0.

    >>> iou(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.333, 0.5  ]], dtype=float32)
    """
    options = {"include_background": include_background, "ignore_index": ignore_index}
    return iou_from(region_statistics(outputs, targets, loss="iou", **options), smooth=smooth, empty_weight=empty_weight)
