"""What region losses stand on: sums over pixels that add up over micro-batches and devices, and one ratio of such sums."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._types import Scalar, as_array, check_same_shape, to_float32
from ._labels import binary_targets, class_targets, is_labels, signed
from ._stable import hot, softmax_pair

FEW_CLASSES = 64  # up to which a product of classes x classes a pixel is cheaper than three sums over arrays of the logits' size


class RegionStatistics(NamedTuple):
    """Sums over pixels of p t, p (1 - t) and (1 - p) t; add two with `jax.tree.map(jnp.add, a, b)`, over devices with `lax.psum`.

    Kept as errors rather than as the totals `predicted` and `true`, since 1 - 2 I / (P + T) cancels where a prediction is good.
    """

    intersection: jax.Array
    false_positives: jax.Array
    false_negatives: jax.Array

    @property
    def predicted(self) -> jax.Array:
        """Sum of p (of p^2 where squared)."""
        return self.intersection + self.false_positives

    @property
    def true(self) -> jax.Array:
        """Sum of t (of t^2 where squared)."""
        return self.intersection + self.false_negatives


def region_statistics(
    outputs: jax.Array,
    targets: jax.Array,
    *,
    squared: bool = False,
    include_background: bool = True,
    ignore_index: int = -100,
    loss: str = "region_statistics",
) -> RegionStatistics:
    """Statistics of p = softmax(outputs) over the pixels of each image and class.

    outputs: logits [b, *spatial, c]; targets: integer labels [b, *spatial], or a distribution [b, *spatial, c] -> [b, c] each.
    squared: predicted and true sum p^2 and t^2. include_background: False leaves class 0 out (c - 1 columns).
    ignore_index: pixels with this label are in none of the sums. Any other label that is no class makes its image NaN.

    >>> s = region_statistics(jnp.array([[[9.0, -9.0], [0.0, 0.0]]]), jnp.array([[0, 1]]))
    >>> s.intersection.round(3), s.false_positives.round(3), s.true.round(3)
    (Array([[1. , 0.5]], dtype=float32), Array([[0.5, 0. ]], dtype=float32), Array([[1., 1.]], dtype=float32))
    """
    regions = class_regions(outputs, targets, include_background=True, ignore_index=ignore_index, loss=loss)
    in_rows = regions.p.ndim > 3 and regions.p.shape[-1] <= FEW_CLASSES
    if in_rows and regions.t.dtype == jnp.bool_ and not squared:
        statistics = _from_confusion(regions)
    else:
        statistics = _statistics(regions, squared, pixels=tuple(range(1, regions.p.ndim - 1)))
    return jax.tree.map(lambda x: x[:, 0 if include_background else 1 :], statistics)


def binary_region_statistics(
    outputs: jax.Array, targets: jax.Array, *, squared: bool = False, ignore_index: int = -100, loss: str = "binary_region_statistics"
) -> RegionStatistics:
    """Statistics of p = sigmoid(outputs) over all pixels of each image: all axes but the first are pixels.

    outputs: logits [b, *spatial]; targets: the same shape, 0 or 1, or between -> [b] each.
    squared, ignore_index: as in `region_statistics`.
    """
    outputs, targets = _binary(outputs, targets, loss=loss)
    # A last axis of 1 would be XLA's innermost loop, one number long.
    flat = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (outputs, targets))
    return _statistics(_sigmoid_regions(*flat, ignore_index=ignore_index, loss=loss), squared, pixels=(1,))


def multilabel_region_statistics(
    outputs: jax.Array, targets: jax.Array, *, squared: bool = False, ignore_index: int = -100, loss: str = "multilabel_region_statistics"
) -> RegionStatistics:
    """Statistics of p = sigmoid(outputs) over the pixels of each image and label: a pixel may carry several labels, or none.

    outputs: logits [b, *spatial, c]; targets: the same shape, 0 or 1, or between -> [b, c] each.
    squared, ignore_index: as in `region_statistics`.
    """
    regions = multilabel_regions(outputs, targets, ignore_index=ignore_index, loss=loss)
    return _statistics(regions, squared, pixels=tuple(range(1, regions.p.ndim - 1)))


def over_batch(statistics: RegionStatistics) -> RegionStatistics:
    """The statistics of all images together: [b, ...] -> [...]."""
    return jax.tree.map(lambda x: x.sum(0), statistics)


def dice_from(statistics: RegionStatistics, *, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0) -> jax.Array:
    """1 - (2 I + smooth) / (P + T + smooth), in the shape of the statistics; see `dice`."""
    tp, fp, fn = statistics
    return _weigh_empty(share(fp + fn, 2 * tp + smooth), statistics, empty_weight)


def iou_from(statistics: RegionStatistics, *, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0) -> jax.Array:
    """1 - (I + smooth) / (P + T - I + smooth), in the shape of the statistics; see `iou`."""
    tp, fp, fn = statistics
    return _weigh_empty(share(fp + fn, tp + smooth), statistics, empty_weight)


def tversky_from(
    statistics: RegionStatistics, *, alpha: Scalar = 0.3, beta: Scalar = 0.7, smooth: Scalar = 1e-5, empty_weight: Scalar = 1.0
) -> jax.Array:
    """1 - (I + smooth) / (I + alpha FP + beta FN + smooth), in the shape of the statistics; see `tversky`."""
    tp, fp, fn = statistics
    return _weigh_empty(share(alpha * fp + beta * fn, tp + smooth), statistics, empty_weight)


def generalized_dice_from(statistics: RegionStatistics, *, power: Scalar = 2.0, smooth: Scalar = 1e-5) -> jax.Array:
    """One Dice over the last axis, classes weighed by their size to -power; see `generalized_dice`."""
    tp, fp, fn = statistics
    true = jax.lax.stop_gradient(statistics.true)
    present = true > 0
    rarest = jnp.where(present, true, jnp.inf).min(-1, keepdims=True)
    weights = jnp.where(present, jnp.where(present, rarest / jnp.where(present, true, 1), 1) ** power, 1)
    return share((weights * (fp + fn)).sum(-1), 2 * (weights * tp).sum(-1) + smooth)


def weigh_images(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """[b]: 1, or 0 where every pixel of the image is void. A class that is not in an image counts all the same: see `empty_weight`."""
    return _any_counts(targets, ignore_index, lambda counts: counts.any(tuple(range(1, counts.ndim))))


def weigh_labels(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """[b, c]: 1, or 0 where every pixel of the image is void to the label."""
    return _any_counts(targets, ignore_index, lambda counts: counts.any(tuple(range(1, counts.ndim - 1))))


def weigh_batch(targets: Any, *, ignore_index: int = -100) -> jax.Array:
    """A scalar, since the images are one to the loss: 1, or 0 where every pixel is void."""
    return _any_counts(targets, ignore_index, jnp.any)


def _any_counts(targets: Any, ignore_index: int, over_pixels: Callable[[jax.Array], jax.Array]) -> jax.Array:
    targets = jnp.asarray(targets)
    labelled = is_labels(targets) and targets.dtype != jnp.bool_
    counts = signed(targets) != ignore_index if labelled else jnp.ones(targets.shape, bool)
    return over_pixels(counts).astype(jnp.float32)


def focal_power(x: jax.Array, gamma: Scalar) -> jax.Array:
    """x^gamma for x >= 0, with slope 0 at 0."""
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** gamma)


@jax.custom_jvp
def share(error: jax.Array, agreement: jax.Array) -> jax.Array:
    """error / (error + agreement), which is 1 - agreement / (error + agreement) without the cancellation; 0 where both are 0."""
    total = error + agreement
    return error / jnp.where(total == 0, 1, total)


@share.defjvp
def _share_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    # Autodiff's 1 / total - error / total^2 is rounding noise where there is nearly no agreement: a class that is not in the image.
    (error, agreement), (derror, dagreement) = primals, tangents
    total = error + agreement
    scale = 1 / jnp.where(total == 0, 1, total)
    good, bad = agreement * scale, error * scale
    return bad, scale * (good * derror - bad * dagreement)


def _weigh_empty(values: jax.Array, statistics: RegionStatistics, empty_weight: Scalar) -> jax.Array:
    return jnp.where(statistics.true == 0, empty_weight * values, values)


class Regions(NamedTuple):
    """Outputs and targets that passed the contract: p, 1 - p and t [b, *spatial, c] (t may be bool), counts [b, *spatial, 1 or c].

    counts: 1, or 0 where void, or NaN where the label is no class.
    """

    p: jax.Array
    not_p: jax.Array
    t: jax.Array
    counts: jax.Array

    @property
    def true(self) -> jax.Array:
        """The region as bools, soft targets cut at 1/2, void pixels out."""
        return (self.t if self.t.dtype == jnp.bool_ else self.t > 0.5) & (self.counts != 0)

    def sum(self, x: jax.Array) -> jax.Array:
        """Over the pixels that count: [b, *spatial, c] -> [b, c]."""
        return (self.counts * x).sum(tuple(range(1, x.ndim - 1)))

    def mean(self, x: jax.Array) -> jax.Array:
        """Over the pixels that count, 0 where none do: [b, *spatial, c] -> [b, c]."""
        counted = self.sum(jnp.ones_like(x))
        return self.sum(x) / jnp.where(counted == 0, 1, counted)


def class_regions(outputs: jax.Array, targets: jax.Array, *, include_background: bool, ignore_index: int, loss: str) -> Regions:
    """Regions of p = softmax(outputs) against integer labels or a distribution."""
    given = class_targets(outputs, targets, loss=loss, ignore_index=ignore_index)
    z = given.logits
    if z.ndim < 3:
        raise ValueError(f"{loss}: outputs must be [b, *spatial, c] with at least one spatial axis, got {z.shape}")
    t = hot(given.labels, z.shape[-1]) if given.labels is not None else given.probs
    assert t is not None
    first = 0 if include_background else 1
    p, not_p = softmax_pair(z)
    return Regions(p[..., first:], not_p[..., first:], t[..., first:], given.counts[..., None])


def binary_regions(outputs: jax.Array, targets: jax.Array, *, ignore_index: int, loss: str) -> Regions:
    """One region of p = sigmoid(outputs) an image, all axes but the first its pixels; c is 1."""
    outputs, targets = _binary(outputs, targets, loss=loss)
    return _sigmoid_regions(outputs[..., None], targets[..., None], ignore_index=ignore_index, loss=loss)


def _binary(outputs: jax.Array, targets: jax.Array, *, loss: str) -> tuple[jax.Array, jax.Array]:
    outputs, targets = jnp.asarray(outputs), as_array(targets, what=loss)
    check_same_shape(outputs, targets, loss=loss)
    if outputs.ndim < 2:
        raise ValueError(f"{loss}: outputs must be [b, *spatial] with at least one spatial axis, got {outputs.shape}")
    return to_float32(outputs), targets


def multilabel_regions(outputs: jax.Array, targets: jax.Array, *, ignore_index: int, loss: str) -> Regions:
    """Regions of p = sigmoid(outputs), one for each of the last axis."""
    outputs, targets = jnp.asarray(outputs), as_array(targets, what=loss)
    check_same_shape(outputs, targets, loss=loss)
    if outputs.ndim < 3:
        raise ValueError(f"{loss}: outputs must be [b, *spatial, c] with at least one spatial axis, got {outputs.shape}")
    return _sigmoid_regions(outputs, targets, ignore_index=ignore_index, loss=loss)


def _sigmoid_regions(outputs: jax.Array, targets: jax.Array, *, ignore_index: int, loss: str) -> Regions:
    x, counts, labelled = to_float32(outputs), jnp.ones((1,) * outputs.ndim), is_labels(targets) and targets.dtype != jnp.bool_
    if labelled:
        void = signed(targets) == ignore_index
        x, targets, counts = jnp.where(void, 0, x), jnp.where(void, 0, targets), jnp.where(void, 0.0, 1.0)
    t = binary_targets(targets, loss=loss)
    counts = jnp.where(jnp.isnan(t), jnp.nan, counts) if labelled else counts
    return Regions(*sigmoid_pair_of(x), t.astype(x.dtype), counts.astype(x.dtype))


def _statistics(regions: Regions, squared: bool, pixels: tuple[int, ...]) -> RegionStatistics:
    p, not_p, t, counts = regions
    # The pixel's weight meets the target first: of that no derivative is taken, and each sum is one product.
    if t.dtype == jnp.bool_:
        zero = jnp.zeros((), p.dtype)
        yes, no = jnp.where(t, counts, zero), jnp.where(t, zero, counts)
    else:
        yes, no = counts * t, counts * (1 - t)
    products = p * yes, p * no, not_p * yes
    if squared:
        error = p * (1 - t) - not_p * t  # p - t, exact for both kinds of pixel
        products = p * yes, p * counts * error, -yes * error
    return RegionStatistics(*(x.sum(pixels) for x in products))


def _from_confusion(regions: Regions) -> RegionStatistics:
    """From the probability that the pixels of class k give to class j, one matrix product: off its diagonal all is error."""
    p, _, t, counts = regions
    c, zero = p.shape[-1], jnp.zeros((), p.dtype)
    # A product for each row of pixels, then their sum: one product of all would add up a million numbers one after another.
    rows = p.shape[0], math.prod(p.shape[1:-2]), *p.shape[-2:]
    labelled = jnp.where(t, counts, zero).reshape(rows)
    confusion = jnp.einsum("brnk,brnj->brkj", labelled, p.reshape(rows), precision=lax.Precision.HIGHEST).sum(1)
    own = jnp.eye(c, dtype=bool)[None]
    errors = jnp.where(own, 0, confusion)
    return RegionStatistics(jnp.where(own, confusion, 0).sum(2), errors.sum(1), errors.sum(2))


@jax.custom_jvp
def sigmoid_pair_of(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, 1 - p) for p = sigmoid(x); its tangent is p (1 - p), with nothing to cancel.

    By two exponentials, not by the one of `sigmoid_pair`, which pays where a value takes it too: XLA does not sum up a choice as it goes.
    """
    return 1 / (1 + jnp.exp(-x)), 1 / (1 + jnp.exp(x))


@sigmoid_pair_of.defjvp
def _sigmoid_pair_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (x,), (dx,) = primals, tangents
    p, not_p = sigmoid_pair_of(x)
    dp = p * not_p * dx
    return (p, not_p), (dp, -dp)
