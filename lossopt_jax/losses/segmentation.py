"""Region losses for segmentation, of 2-D and 3-D images alike: how much of the predicted and the true region coincide.

Three kinds of outputs, three names. `dice`: classes that exclude one another (softmax over the last axis). `binary_dice`: one
region (sigmoid; every axis but the first is pixels). `multilabel_dice`: regions that may overlap (sigmoid; the last axis is labels).
All stand on `RegionStatistics`, whose sums add up: Dice of the batch is `batch_dice`, or `dice_from` of summed statistics.
In a mean an image that is void all over counts for nothing; a class that is not in an image counts (see `empty_weight`).
"""

import jax
import jax.numpy as jnp  # noqa: F401  (the examples use it)

from .._types import Scalar
from ._labels import weighed_by
from ._regions import (
    dice_from,
    focal_power,
    generalized_dice_from,
    iou_from,
    over_batch,
    region_statistics,
    tversky_from,
    weigh_batch,
    weigh_images,
)
from ._special import log_cosh_of

__all__ = ["batch_dice", "batch_iou", "batch_tversky", "dice", "focal_tversky", "generalized_dice", "iou", "log_cosh_dice", "tversky"]


@weighed_by(weigh_images)
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

    Other libraries' numbers, on the same logits and labels:
    MONAI's DiceLoss(softmax=True, to_onehot_y=True): the mean of these values (its squared_pred is `squared`, batch=True `batch_dice`).
    segmentation_models_pytorch's DiceLoss("multiclass"): the mean of `batch_dice` with smooth=0, empty_weight=0.
    kornia's dice_loss: average="macro" is the mean with smooth=0; its default "micro" is `generalized_dice` with power=0, smooth=0.
    Keras' Dice takes probabilities and is one number: `generalized_dice_from` of the statistics `over_batch`, with power=0, smooth=0.

    >>> dice(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.2  , 0.333]], dtype=float32)
    """
    return dice_from(
        region_statistics(outputs, targets, loss="dice", squared=squared, include_background=include_background, ignore_index=ignore_index),
        smooth=smooth,
        empty_weight=empty_weight,
    )


@weighed_by(weigh_images)
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
    MONAI: DiceLoss(jaccard=True), whose smooth is twice this one. segmentation_models_pytorch: `batch_iou` with smooth=0, empty_weight=0.

    >>> iou(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.333, 0.5  ]], dtype=float32)
    """
    return iou_from(
        region_statistics(outputs, targets, loss="iou", include_background=include_background, ignore_index=ignore_index),
        smooth=smooth,
        empty_weight=empty_weight,
    )


@weighed_by(weigh_images)
def tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """Dice with its two errors weighed apart, 1 - (I + smooth) / (I + alpha FP + beta FN + smooth), of each image and class.

    FP = sum p (1 - t), FN = sum (1 - p) t. Shapes and options as in `dice`: -> [b, c]. Salehi et al. 2017, arXiv:1706.05721.
    alpha: weight of false positives, default 0.3; beta: of false negatives, default 0.7 (the paper's best).
    (0.5, 0.5) is `dice` of twice the smooth, (1, 1) is `iou`. MONAI and segmentation_models_pytorch: same letters, defaults 0.5 and 0.5.
    Keras' Tversky: alpha weighs false negatives there.

    >>> tversky(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(4)
    Array([[0.1304, 0.4118]], dtype=float32)
    """
    statistics = region_statistics(outputs, targets, loss="tversky", include_background=include_background, ignore_index=ignore_index)
    return tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_images)
def focal_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    gamma: Scalar = 0.75,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """`tversky` to the power gamma, of each image and class.

    Shapes and options as in `dice`: -> [b, c]. Abraham & Khan 2019, arXiv:1810.07842, whose text has the power 1 / gamma with gamma
    4 / 3; this gamma is the power itself, > 0, default 0.75. 1 is `tversky`. segmentation_models_pytorch: its gamma is the power of
    the mean over classes instead.
    The slope at a perfect score, infinite for gamma < 1, is taken as 0.

    >>> focal_tversky(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(4)
    Array([[0.217, 0.514]], dtype=float32)
    """
    statistics = region_statistics(outputs, targets, loss="focal_tversky", include_background=include_background, ignore_index=ignore_index)
    return focal_power(tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight), gamma)


@weighed_by(weigh_images)
def log_cosh_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """log(cosh(`dice`)), of each image and class: its slope tends to 0 with the loss.

    Shapes, numbers and options as in `dice`: -> [b, c]. Jadon 2020, arXiv:2006.14822.

    >>> log_cosh_dice(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([[0.02 , 0.055]], dtype=float32)
    """
    statistics = region_statistics(
        outputs, targets, loss="log_cosh_dice", squared=squared, include_background=include_background, ignore_index=ignore_index
    )
    return log_cosh_of(dice_from(statistics, smooth=smooth, empty_weight=empty_weight))


@weighed_by(weigh_images)
def generalized_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    power: Scalar = 2.0,
    smooth: Scalar = 1e-5,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """One Dice over all classes of an image, the rare ones weighing more.

    1 - (2 sum_c w_c I_c + smooth) / (sum_c w_c (P_c + T_c) + smooth), with p = softmax(outputs).
    Shapes and options as in `dice`, but -> [b]. Sudre et al. 2017, arXiv:1707.03237.
    power: w_c = T_c^-power, default 2 (the paper's); 1 is MONAI's w_type="simple", 0 its "uniform". A class that is not in the image
    has the weight of the rarest that is (as MONAI's). Weights are relative to that largest one, so that smooth means the same at any
    image size; MONAI's number is this one at smooth 0.

    >>> generalized_dice(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]])).round(3)
    Array([0.25], dtype=float32)
    """
    return generalized_dice_from(
        region_statistics(outputs, targets, loss="generalized_dice", include_background=include_background, ignore_index=ignore_index),
        power=power,
        smooth=smooth,
    )


@weighed_by(weigh_batch)
def batch_dice(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """`dice` of each class over all images of the batch as if they were one: -> [c].

    A mean of these over micro-batches is not the batch's. Add up `region_statistics` and take `dice_from` for that:

    >>> z, y = jnp.array([[[9.0, -9.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]]), jnp.array([[0, 1], [0, 0]])
    >>> halves = [over_batch(region_statistics(z[i : i + 1], y[i : i + 1])) for i in (0, 1)]
    >>> batch_dice(z, y).round(2), dice_from(jax.tree.map(jnp.add, *halves)).round(2)
    (Array([0.31, 0.62], dtype=float32), Array([0.31, 0.62], dtype=float32))

    MONAI: batch=True. segmentation_models_pytorch: its DiceLoss is this with smooth=0, empty_weight=0.
    """
    statistics = over_batch(
        region_statistics(
            outputs, targets, loss="batch_dice", squared=squared, include_background=include_background, ignore_index=ignore_index
        )
    )
    return dice_from(statistics, smooth=smooth, empty_weight=empty_weight)


@weighed_by(weigh_batch)
def batch_iou(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """`iou` of each class over all images of the batch as if they were one: -> [c]. See `batch_dice`.

    >>> batch_iou(jnp.array([[[9.0, -9.0]], [[0.0, 0.0]]]), jnp.array([[0], [1]])).round(3)
    Array([0.333, 0.5  ], dtype=float32)
    """
    return iou_from(
        over_batch(region_statistics(outputs, targets, loss="batch_iou", include_background=include_background, ignore_index=ignore_index)),
        smooth=smooth,
        empty_weight=empty_weight,
    )


@weighed_by(weigh_batch)
def batch_tversky(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    smooth: Scalar = 1e-5,
    empty_weight: Scalar = 1.0,
    include_background: bool = True,
    ignore_index: int = -100,
) -> jax.Array:
    """`tversky` of each class over all images of the batch as if they were one: -> [c]. See `batch_dice`.

    >>> batch_tversky(jnp.array([[[9.0, -9.0]], [[0.0, 0.0]]]), jnp.array([[0], [1]])).round(4)
    Array([0.1304, 0.4118], dtype=float32)
    """
    statistics = over_batch(
        region_statistics(outputs, targets, loss="batch_tversky", include_background=include_background, ignore_index=ignore_index)
    )
    return tversky_from(statistics, alpha=alpha, beta=beta, smooth=smooth, empty_weight=empty_weight)
