"""Region, border and topology losses against textbook formulas in float64, set-function definitions and scipy.

The textbook formulas below are written in the direct way (1 - 2 I / (P + T)), not as the library has them, and run in float64, gradient too.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage as ndi
from jax.sharding import PartitionSpec as P

from lossopt_jax import losses
from lossopt_jax.reduce import loss_total, mean

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 4, 3)).astype(np.float32) * 2
LABELS = RNG.integers(0, 3, size=(3, 5, 4))
LABELS[1][LABELS[1] == 2] = 0  # a class that is not in the image
SOFT = RNG.dirichlet(np.ones(3), size=(3, 5, 4)).astype(np.float32)
MASKS = RNG.integers(0, 2, size=(3, 5, 4, 3))
VOLUME, VOLUME_LABELS = RNG.normal(size=(2, 3, 4, 2, 3)).astype(np.float32), RNG.integers(0, 3, size=(2, 3, 4, 2))


def regions(z, y, sigmoid, squared=False):
    """p, t and the sums I, P, T over pixels, [b, c] each."""
    p = jax.nn.sigmoid(z) if sigmoid else jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True)
    t = y.astype(z.dtype) if y.ndim == z.ndim else (y[..., None] == np.arange(z.shape[-1]).reshape((1,) * y.ndim + (-1,))).astype(z.dtype)
    pixels = tuple(range(1, z.ndim - 1))
    power = 2 if squared else 1
    return (p * t).sum(pixels), (p**power).sum(pixels), (t**power).sum(pixels)


def dice_64(z, y, s=1e-5, sigmoid=False, squared=False, batch=False):
    i, p, t = (x.sum(0) if batch else x for x in regions(z, y, sigmoid, squared))
    return 1 - (2 * i + s) / (p + t + s)


def tversky_64(z, y, a=0.3, b=0.7, s=1e-5, sigmoid=False, batch=False):
    i, p, t = (x.sum(0) if batch else x for x in regions(z, y, sigmoid))
    return 1 - (i + s) / (i + a * (p - i) + b * (t - i) + s)


def generalized_64(z, y, power=2, s=1e-5):
    i, p, t = regions(z, y, False)
    smallest = jnp.where(t > 0, t, np.inf).min(-1, keepdims=True)
    w = (smallest / jnp.where(t > 0, t, smallest)) ** power
    return 1 - (2 * (w * i).sum(-1) + s) / ((w * (p + t)).sum(-1) + s)


def one(loss_64):
    """The formula for one region an image, from the one for several."""
    return lambda z, y, **kw: loss_64(z[..., None], y[..., None], sigmoid=True, **kw)[..., 0]


def nll_64(z, y):
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(z), y[..., None], -1))[..., 0].reshape(z.shape[0], -1)


def pixel_bce_64(z, y):
    p = jax.nn.sigmoid(z)
    return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p)).reshape(z.shape[0], -1)


MULTI = functools.partial(dice_64, sigmoid=True), functools.partial(tversky_64, sigmoid=True)
CASES = {
    "dice": (losses.dice, dice_64, LOGITS, LABELS),
    "dice, soft targets": (losses.dice, dice_64, LOGITS, SOFT),
    "dice, volume": (losses.dice, dice_64, VOLUME, VOLUME_LABELS),
    "dice, line": (losses.dice, dice_64, LOGITS[:, :, 0], LABELS[:, :, 0]),
    "dice, squared": (functools.partial(losses.dice, squared=True), functools.partial(dice_64, squared=True), LOGITS, LABELS),
    "dice, squared soft": (functools.partial(losses.dice, squared=True), functools.partial(dice_64, squared=True), LOGITS, SOFT),
    "iou": (losses.iou, functools.partial(tversky_64, a=1, b=1), LOGITS, LABELS),
    "tversky": (losses.tversky, tversky_64, LOGITS, LABELS),
    "tversky, volume": (losses.tversky, tversky_64, VOLUME, VOLUME_LABELS),
    "focal_tversky": (losses.focal_tversky, lambda z, y: tversky_64(z, y) ** 0.75, LOGITS, LABELS),
    "log_cosh_dice": (losses.log_cosh_dice, lambda z, y: jnp.log(jnp.cosh(dice_64(z, y))), LOGITS, LABELS),
    "generalized_dice": (losses.generalized_dice, generalized_64, LOGITS, LABELS),
    "batch_dice": (losses.batch_dice, functools.partial(dice_64, batch=True), LOGITS, LABELS),
    "batch_iou": (losses.batch_iou, functools.partial(tversky_64, a=1, b=1, batch=True), LOGITS, LABELS),
    "batch_tversky": (losses.batch_tversky, functools.partial(tversky_64, batch=True), LOGITS, LABELS),
    "binary_dice": (losses.binary_dice, one(dice_64), LOGITS[..., 0], MASKS[..., 0]),
    "binary_dice, soft": (losses.binary_dice, one(dice_64), LOGITS[..., 0], SOFT[..., 0]),
    "binary_iou": (losses.binary_iou, one(functools.partial(tversky_64, a=1, b=1)), LOGITS[..., 0], MASKS[..., 0]),
    "binary_tversky": (losses.binary_tversky, one(tversky_64), LOGITS[..., 0], MASKS[..., 0] == 1),
    "binary_focal_tversky": (losses.binary_focal_tversky, lambda z, y: one(tversky_64)(z, y) ** 0.75, LOGITS[..., 0], MASKS[..., 0]),
    "binary_log_cosh_dice": (
        losses.binary_log_cosh_dice,
        lambda z, y: jnp.log(jnp.cosh(one(dice_64)(z, y))),
        LOGITS[..., 0],
        MASKS[..., 0],
    ),
    "multilabel_dice": (losses.multilabel_dice, MULTI[0], LOGITS, MASKS),
    "multilabel_iou": (losses.multilabel_iou, functools.partial(MULTI[1], a=1, b=1), LOGITS, MASKS),
    "multilabel_tversky": (losses.multilabel_tversky, MULTI[1], LOGITS, MASKS),
    "multilabel_focal_tversky": (losses.multilabel_focal_tversky, lambda z, y: MULTI[1](z, y) ** 0.75, LOGITS, MASKS),
    "batch_multilabel_dice": (losses.batch_multilabel_dice, functools.partial(MULTI[0], batch=True), LOGITS, MASKS),
    "batch_multilabel_iou": (losses.batch_multilabel_iou, functools.partial(MULTI[1], a=1, b=1, batch=True), LOGITS, MASKS),
    "dice_cross_entropy": (
        functools.partial(losses.dice_cross_entropy, dice_weight=0.3),
        lambda z, y: 0.3 * dice_64(z, y).mean(-1) + nll_64(z, y).mean(-1),
        LOGITS,
        LABELS,
    ),
    "dice_focal": (
        functools.partial(losses.dice_focal, focal_weight=2.0),
        lambda z, y: dice_64(z, y).mean(-1) + 2 * ((1 - jnp.exp(-nll_64(z, y))) ** 2 * nll_64(z, y)).mean(-1),
        LOGITS,
        LABELS,
    ),
    "binary_dice_cross_entropy": (
        losses.binary_dice_cross_entropy,
        lambda z, y: one(dice_64)(z, y) + pixel_bce_64(z, y).mean(-1),
        LOGITS[..., 0],
        MASKS[..., 0],
    ),
    "binary_dice_focal": (
        losses.binary_dice_focal,
        lambda z, y: one(dice_64)(z, y) + ((1 - jnp.exp(-pixel_bce_64(z, y))) ** 2 * pixel_bce_64(z, y)).mean(-1),
        LOGITS[..., 0],
        MASKS[..., 0],
    ),
}


def value_and_gradients(loss, outputs, targets, direction):
    """Values, the gradient of a weighed sum of them, and their directional derivative."""

    def run(z, dz):
        values, tangents = jax.jvp(lambda z: loss(z, targets), (z,), (dz,))
        weights = jnp.arange(1.0, values.size + 1, dtype=values.dtype).reshape(values.shape)
        return values, jax.grad(lambda z: (weights * loss(z, targets)).sum())(z), tangents

    return jax.jit(run)(outputs, direction)


def assert_close(got, want, rtol=2e-6):
    # Relative to the largest entry: a gradient that vanishes is not asked for digits that float32 has not.
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_tangent_are_the_formula(name):
    loss, formula, z, y = CASES[name]
    direction = RNG.normal(size=z.shape).astype(np.float32)
    got = value_and_gradients(loss, z, y, direction)
    assert got[0].dtype == jnp.float32
    with jax.enable_x64(True):
        wide = y.astype(np.float64) if y.dtype == np.float32 else y
        want = value_and_gradients(formula, z.astype(np.float64), wide, direction.astype(np.float64))
        assert want[0].dtype == jnp.float64
    for g, w in zip(got, want, strict=True):
        assert_close(g, w)


def test_float64_stays_float64():
    for name in ("dice, squared", "generalized_dice", "binary_focal_tversky"):
        loss, formula, z, y = CASES[name]
        with jax.enable_x64(True):
            got = loss(z.astype(np.float64), y)
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, formula(z.astype(np.float64), y), rtol=1e-12)


def test_a_confident_prediction_keeps_its_digits():
    # 1 - 2 I / (P + T) in float32 has no digit left here: P + T is 40, the loss about 1e-6.
    z = np.where(LABELS[..., None] == np.arange(3), 15.0, 0.0)
    with jax.enable_x64(True):
        want = dice_64(z, LABELS, s=0.0)
    np.testing.assert_allclose(losses.dice(z.astype(np.float32), LABELS, smooth=0.0)[0], want[0], rtol=2e-6)


CLASSES = [
    "dice",
    "iou",
    "tversky",
    "focal_tversky",
    "log_cosh_dice",
    "generalized_dice",
    "batch_dice",
    "lovasz_softmax",
    "boundary",
    "hausdorff",
    "cl_dice",
]
BINARY = [
    "binary_dice",
    "binary_iou",
    "binary_tversky",
    "binary_focal_tversky",
    "binary_log_cosh_dice",
    "binary_boundary",
    "binary_hausdorff",
    "binary_cl_dice",
]


def all_finite(loss, z, y):
    values, gradient, tangents = value_and_gradients(loss, z, y, jnp.ones_like(z))
    assert np.isfinite(gradient).all()
    assert np.isfinite(tangents).all()
    return values


@pytest.mark.parametrize("name", CLASSES)
def test_logits_of_1e4(name):
    loss = getattr(losses, name)
    right = jnp.where(LABELS[..., None] == np.arange(3), 1e4, -1e4).astype(jnp.float32)
    perfect = all_finite(loss, right, LABELS)
    if name == "boundary":  # the mean of the signed distance over the region: not above 0
        assert (perfect <= 0).all()
    else:
        np.testing.assert_array_equal(perfect, 0)
    wrong = all_finite(loss, -right, LABELS)
    assert np.isfinite(wrong).all()
    if name in ("dice", "iou", "tversky"):  # no true pixel is found, but the two other classes share it: p = 1/2 each
        with jax.enable_x64(True):
            formula = {"dice": dice_64, "iou": functools.partial(tversky_64, a=1, b=1), "tversky": tversky_64}[name]
            np.testing.assert_allclose(wrong, formula(np.where(LABELS[..., None] == np.arange(3), -500.0, 0.0), LABELS), rtol=1e-5)


@pytest.mark.parametrize("name", BINARY)
def test_binary_logits_of_1e4(name):
    loss, y = getattr(losses, name), MASKS[..., 0]
    right = jnp.where(y == 1, 1e4, -1e4).astype(jnp.float32)
    perfect = all_finite(loss, right, y)
    assert (perfect <= 0).all() if name == "binary_boundary" else (perfect == 0).all()
    assert np.isfinite(all_finite(loss, -right, y)).all()


def test_lovasz_hinge_of_1e4():
    right = jnp.where(MASKS[..., 0] == 1, 1e4, -1e4)
    np.testing.assert_array_equal(all_finite(losses.lovasz_hinge, right, MASKS[..., 0]), 0)
    # All are wrong by the same 1 + 1e4, and the slopes of all pixels sum to the Jaccard loss of all, 1.
    np.testing.assert_allclose(all_finite(losses.lovasz_hinge, -right, MASKS[..., 0]), 1e4 + 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_float32_on_the_rounded_inputs(dtype):
    z = jnp.asarray(LOGITS, dtype)
    for name in ("dice", "lovasz_softmax", "hausdorff", "cl_dice", "dice_cross_entropy"):
        loss = jax.jit(getattr(losses, name))
        got = loss(z, LABELS)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, loss(z.astype(jnp.float32), LABELS))


def test_float16_at_512_by_512():
    # Sums of 262144 pixels overflow float16 (65504); all logits equal, so p = 1/2: 2 I / (P + T) = n / (n / 2 * 2 + ...) by hand.
    z, y = jnp.zeros((1, 512, 512, 2), jnp.float16), jnp.zeros((1, 512, 512), jnp.int32)
    np.testing.assert_allclose(losses.dice(z, y, smooth=0.0), [[1 - 2 * 0.5 / 1.5, 1.0]], rtol=1e-6)


def test_limits():
    dice = losses.dice(LOGITS, LABELS, smooth=1e-2)
    np.testing.assert_allclose(losses.tversky(LOGITS, LABELS, alpha=0.5, beta=0.5, smooth=0.5e-2), dice, rtol=1e-6)
    np.testing.assert_allclose(losses.tversky(LOGITS, LABELS, alpha=1.0, beta=1.0), losses.iou(LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(losses.focal_tversky(LOGITS, LABELS, gamma=1.0), losses.tversky(LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(losses.multilabel_dice(LOGITS, MASKS)[:, 1], losses.binary_dice(LOGITS[..., 1], MASKS[..., 1]), rtol=1e-6)
    iou = losses.iou(LOGITS, LABELS, smooth=0.0)
    np.testing.assert_allclose(losses.dice(LOGITS, LABELS, smooth=0.0), iou / (2 - iou), rtol=1e-6)  # Dice = 2 J / (1 + J)


def test_alpha_weighs_false_positives():
    # All predicted, half true: FP = 2, FN = 0, TP = 2.
    z, y = jnp.full((1, 4), 1e4), jnp.array([[1, 1, 0, 0]])
    np.testing.assert_allclose(losses.binary_tversky(z, y, alpha=0.25, beta=9.0, smooth=0.0), [1 - 2 / (2 + 0.25 * 2)], rtol=1e-6)


@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_an_empty_target_with_an_empty_prediction_is_perfect(smooth):
    y = jnp.zeros((1, 4, 4), jnp.int32)
    z = jnp.broadcast_to(jnp.array([1e4, -1e4]), (1, 4, 4, 2))
    names = ("dice", "iou", "tversky", "focal_tversky", "log_cosh_dice", "generalized_dice", "batch_dice", "cl_dice")
    for name in names:
        loss = functools.partial(getattr(losses, name), smooth=smooth, include_background=False)
        values, gradient, _ = value_and_gradients(loss, z, y, z)
        np.testing.assert_array_equal(values, 0, err_msg=name)
        np.testing.assert_array_equal(gradient, 0, err_msg=name)
    for name in ("binary_dice", "binary_iou", "binary_tversky", "binary_focal_tversky", "binary_cl_dice"):
        loss = functools.partial(getattr(losses, name), smooth=smooth)
        values, gradient, _ = value_and_gradients(loss, z[..., 1], y, z[..., 1])
        np.testing.assert_array_equal(values, 0, err_msg=name)
        np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_the_gradient_of_a_class_that_is_not_there_is_not_noise():
    # T = 0: L = P / (P + s), so dL/dp = s / (P + s)^2, far below the rounding of 1 / (P + s) - P / (P + s)^2.
    z, y, s = jnp.zeros((1, 64, 64)), jnp.zeros((1, 64, 64), jnp.int32), 1e-5
    gradient = jax.grad(lambda z: losses.binary_dice(z, y, smooth=s).sum())(z)
    np.testing.assert_allclose(gradient, 0.25 * s / (2048 + s) ** 2, rtol=1e-5)


def test_empty_weight_is_what_an_absent_class_counts():
    plain, off = losses.dice(LOGITS, LABELS), losses.dice(LOGITS, LABELS, empty_weight=0.0)
    absent = np.zeros((3, 3), bool)
    absent[1, 2] = True
    np.testing.assert_array_equal(off, np.where(absent, 0, plain))
    np.testing.assert_array_equal(
        losses.lovasz_softmax(LOGITS, LABELS, empty_weight=0.5)[1, 2], losses.lovasz_softmax(LOGITS, LABELS)[1, 2] / 2
    )


def test_background_out_is_the_other_columns():
    for name in ("dice", "iou", "tversky", "lovasz_softmax", "boundary", "hausdorff"):
        loss = getattr(losses, name)
        np.testing.assert_array_equal(loss(LOGITS, LABELS, include_background=False), loss(LOGITS, LABELS)[:, 1:])


VOID = RNG.random((3, 5, 4)) < 0.3


@pytest.mark.parametrize("name", [*CLASSES, "dice_cross_entropy", "dice_focal"])
def test_what_lies_under_void_changes_no_bit(name):
    loss, y = getattr(losses, name), np.where(VOID, -100, LABELS)
    results = [
        value_and_gradients(loss, jnp.where(VOID[..., None], garbage, LOGITS), y, jnp.ones_like(LOGITS))
        for garbage in (3.0, jnp.nan, jnp.inf)
    ]
    for values, gradient, _ in results:
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])
        np.testing.assert_array_equal(np.asarray(gradient)[VOID], 0)


@pytest.mark.parametrize("name", [*BINARY, "lovasz_hinge", "binary_dice_cross_entropy", "binary_dice_focal"])
@pytest.mark.parametrize(("dtype", "void"), [(np.int32, -100), (np.uint8, 255)])
def test_what_lies_under_binary_void_changes_no_bit(name, dtype, void):
    loss = functools.partial(getattr(losses, name), ignore_index=void)
    y = np.where(VOID, void, MASKS[..., 0]).astype(dtype)
    results = [value_and_gradients(loss, jnp.where(VOID, garbage, LOGITS[..., 0]), y, jnp.ones((3, 5, 4))) for garbage in (3.0, jnp.nan)]
    for values, gradient, _ in results:
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])


def test_void_pixels_count_as_if_they_were_cut_out():
    keep = np.ones(5, bool)
    keep[[1, 3]] = False
    y = np.where(keep[:, None], LABELS, -100)
    for name in ("dice", "iou", "tversky", "generalized_dice", "lovasz_softmax", "dice_cross_entropy", "dice_focal"):
        loss = getattr(losses, name)
        np.testing.assert_allclose(loss(LOGITS, y), loss(LOGITS[:, keep], LABELS[:, keep]), rtol=2e-6, err_msg=name)
    for name in ("binary_dice", "lovasz_hinge", "binary_dice_cross_entropy"):
        loss, t = getattr(losses, name), np.where(keep[:, None], MASKS[..., 0], -100)
        np.testing.assert_allclose(loss(LOGITS[..., 0], t), loss(LOGITS[:, keep, :, 0], MASKS[:, keep, :, 0]), rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_a_label_that_is_no_class_is_loud(wrong):
    y = LABELS.copy()
    y[1, 2, 3] = wrong
    for name in ("dice", "generalized_dice", "lovasz_softmax", "hausdorff", "cl_dice", "dice_cross_entropy"):
        loss = getattr(losses, name)
        with pytest.raises(ValueError, match=str(wrong)):
            loss(LOGITS, y)
        values, gradient = jax.jit(lambda z, y, loss=loss: jax.vjp(lambda z: loss(z, y), z))(LOGITS, y)
        gradient = jax.jit(jax.grad(lambda z, y, loss=loss: loss(z, y).sum()))(LOGITS, y)
        for x in (values, gradient):
            assert np.isnan(x[1]).all(), name
            assert np.isfinite(np.delete(x, 1, 0)).all(), name
    t = MASKS[..., 0].copy()
    t[1, 2, 3] = 7
    for name in ("binary_dice", "lovasz_hinge"):
        values = jax.jit(getattr(losses, name))(LOGITS[..., 0], t)
        assert np.isnan(values[1])
        assert np.isfinite(values[[0, 2]]).all() if isinstance(values, np.ndarray) else np.isfinite(np.asarray(values)[[0, 2]]).all()


def test_statistics_add_up_over_micro_batches():
    whole = losses.batch_dice(LOGITS, LABELS)
    pieces = [losses.over_batch(losses.region_statistics(LOGITS[i:j], LABELS[i:j])) for i, j in ((0, 2), (2, 2), (2, 3))]
    total = jax.tree.map(lambda *x: sum(x), *pieces)
    np.testing.assert_allclose(losses.dice_from(total), whole, rtol=1e-6)
    np.testing.assert_allclose(losses.iou_from(total), losses.batch_iou(LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(losses.tversky_from(total), losses.batch_tversky(LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(total.true, [(LABELS == c).sum() for c in range(3)])
    means = np.mean([losses.batch_dice(LOGITS[i:j], LABELS[i:j]) for i, j in ((0, 2), (2, 3))], 0)
    assert np.abs(means - whole).max() > 1e-3  # which is why the statistics are what is added


def test_statistics_add_up_over_devices():
    mesh = jax.make_mesh((2,), ("b",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    z, y = jnp.concatenate([LOGITS, LOGITS[:1] + 1]), jnp.concatenate([LABELS, LABELS[:1]])

    def gradient(z, y):
        def loss(z, y):
            local = losses.over_batch(losses.region_statistics(z, y))
            return losses.dice_from(jax.tree.map(lambda x: jax.lax.psum(x, "b"), local)).sum()

        return jax.grad(jax.shard_map(loss, mesh=mesh, in_specs=(P("b"), P("b")), out_specs=P()))(z, y)

    assert_close(jax.jit(gradient)(z, y), jax.grad(lambda z: losses.batch_dice(z, y).sum())(z))


def test_the_reduction_takes_the_values():
    z = LOGITS.copy()
    z[2] = np.nan
    pair = loss_total(losses.dice, jnp.asarray(z), jnp.asarray(LABELS), jnp.array([1.0, 2.0, 0.0]))
    values = np.asarray(losses.dice(LOGITS, LABELS)).mean(-1)
    np.testing.assert_allclose(pair.total / 3, values[0] + 2 * values[1], rtol=1e-6)
    assert np.isfinite(mean(pair))


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.permutations(range(20)), st.permutations(range(3)))
def test_pixels_and_classes_have_no_order(pixels, classes):
    z, y = LOGITS.reshape(3, 20, 3), LABELS.reshape(3, 20)
    inverse = np.argsort(classes)
    for name in ("dice", "generalized_dice", "lovasz_softmax"):
        loss = JITTED[name]
        want = np.asarray(loss(z, y))
        np.testing.assert_allclose(loss(z[:, list(pixels)], y[:, list(pixels)]), want, rtol=2e-6)
        got = loss(z[..., list(classes)], inverse[y])
        np.testing.assert_allclose(got, want[:, list(classes)] if want.ndim == 2 else want, rtol=2e-6)


JITTED = {name: jax.jit(getattr(losses, name)) for name in ("dice", "generalized_dice", "lovasz_softmax", "lovasz_hinge")}


def jaccard_loss(wrong, region):
    """1 - J of a prediction that is wrong on a set of pixels: |wrong| / |region or wrong|."""
    union = (region | wrong).sum()
    return wrong.sum() / union if union else 0.0


def lovasz_extension(errors, region):
    """The integral over levels of the Jaccard loss of the set of errors above the level: its definition."""
    levels = np.unique(np.concatenate([[0.0], errors]))
    return sum((high - low) * jaccard_loss(errors > low, region) for low, high in zip(levels, levels[1:], strict=False))


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(2, 12, 3)).astype(np.float32), rng.integers(0, rng.integers(1, 4), (2, 12))
    p = np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(-1, keepdims=True)
    want = [[lovasz_extension(np.abs((y[i] == c) - p[i, :, c]), y[i] == c) for c in range(3)] for i in range(2)]
    np.testing.assert_allclose(JITTED["lovasz_softmax"](z, y), want, rtol=2e-6)
    t = y == 1
    errors = np.maximum(1 - z[..., 0].astype(np.float64) * np.where(t, 1, -1), 0)
    np.testing.assert_allclose(
        JITTED["lovasz_hinge"](z[..., 0], t), [lovasz_extension(e, r) for e, r in zip(errors, t, strict=True)], rtol=2e-6
    )


def test_lovasz_at_binary_predictions_is_one_minus_jaccard():
    predicted = np.argmax(LOGITS, -1)
    z = jnp.where(predicted[..., None] == np.arange(3), 1e4, -1e4)
    want = [[jaccard_loss((predicted[i] == c) != (LABELS[i] == c), LABELS[i] == c) for c in range(3)] for i in range(3)]
    np.testing.assert_allclose(losses.lovasz_softmax(z, LABELS), want, rtol=1e-6)


def test_lovasz_hinge_is_convex_and_its_gradient_right():
    x = RNG.normal(size=(3, 5, 4)).astype(np.float32) * 2
    y = MASKS[..., 0]
    f, middle = JITTED["lovasz_hinge"], (LOGITS[..., 0] + x) / 2
    assert (f(middle, y) <= (f(x, y) + f(LOGITS[..., 0], y)) / 2 + 1e-6).all()
    # Convex, so its gradient is a plane below: f(x) >= f(a) + g (x - a).
    gradient = jax.grad(lambda z: f(z, y).sum())(x)
    assert f(LOGITS[..., 0], y).sum() >= f(x, y).sum() + (gradient * (LOGITS[..., 0] - x)).sum() - 1e-5
    with jax.enable_x64(True):
        step = 1e-6 * RNG.normal(size=x.shape)
        wide = x.astype(np.float64)
        difference = (f(wide + step, y).sum() - f(wide - step, y).sum()) / 2
        np.testing.assert_allclose((np.asarray(gradient, np.float64) * step).sum(), difference, rtol=2e-6)


def test_lovasz_slopes_keep_their_digits_on_many_pixels():
    # As a difference of Jaccard losses they lose up to 5 % at this size in float32.
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(1, 1 << 16)).astype(np.float32), rng.integers(0, 2, (1, 1 << 16))
    gradient = np.asarray(jax.jit(jax.grad(lambda x: losses.lovasz_hinge(x, t).sum()))(x))[0]
    errors = 1 - x[0] * np.where(t[0] == 1, 1, -1).astype(np.float32)  # in float32, so that the order is the same
    order = np.argsort(-errors, kind="stable")
    hit = t[0][order].astype(np.float64)
    loss = 1 - (hit.sum() - np.cumsum(hit)) / (hit.sum() + np.cumsum(1 - hit))
    want = np.empty_like(loss)
    want[order] = np.diff(loss, prepend=0)
    want = np.where(errors > 0, -np.where(t[0] == 1, 1, -1) * want, 0)
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((2, 17, 11), None), ((2, 6, 9, 7), None), ((1, 8, 9, 5), (1.0, 0.5, 3.0)), ((2, 40), None)]
)
def test_distance_transform_is_scipys(shape, spacing):
    mask = np.random.default_rng(1).random(shape) < 0.85
    want = [ndi.distance_transform_edt(m, sampling=spacing) for m in mask]
    np.testing.assert_allclose(losses.distance_transform(mask, spacing=spacing), want, rtol=1e-6)
    assert np.isinf(losses.distance_transform(jnp.ones(shape, bool))).all()


def scipy_border(mask):
    return ndi.distance_transform_edt(mask) + ndi.distance_transform_edt(~mask) if mask.any() and not mask.all() else np.zeros(mask.shape)


def scipy_signed(mask):
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    return ndi.distance_transform_edt(~mask) - np.where(mask, ndi.distance_transform_edt(mask) - 1, 0)


def test_boundary_and_hausdorff_with_scipys_distances():
    p = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    t = (LABELS[..., None] == np.arange(3)).astype(np.float64)
    signed = np.array([[scipy_signed(t[i, ..., c] == 1) for c in range(3)] for i in range(3)])
    want = (np.moveaxis(p, -1, 1) * signed).mean((2, 3))
    np.testing.assert_allclose(losses.boundary(LOGITS, LABELS), want, rtol=2e-6, atol=1e-7)
    alpha = 1.7
    weights = np.array(
        [[scipy_border(t[i, ..., c] == 1) ** alpha + scipy_border(p[i, ..., c] > 0.5) ** alpha for c in range(3)] for i in range(3)]
    )
    want = (np.moveaxis((p - t) ** 2, -1, 1) * weights).mean((2, 3))
    np.testing.assert_allclose(losses.hausdorff(LOGITS, LABELS, alpha=alpha), want, rtol=2e-6)
    x, m = LOGITS[..., 0], MASKS[..., 0]
    q = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(
        losses.binary_boundary(x, m), [(q[i] * scipy_signed(m[i] == 1)).mean() for i in range(3)], rtol=2e-6, atol=1e-7
    )
    want = [((q[i] - m[i]) ** 2 * (scipy_border(m[i] == 1) ** 2 + scipy_border(q[i] > 0.5) ** 2)).mean() for i in range(3)]
    np.testing.assert_allclose(losses.binary_hausdorff(x, m), want, rtol=2e-6)
    # The distances are constants: the gradient is that of p phi alone.
    gradient = jax.grad(lambda x: losses.binary_boundary(x, m).sum())(x)
    assert_close(gradient, np.array([scipy_signed(m[i] == 1) for i in range(3)]) * q * (1 - q) / 20)


def scipy_skeleton(image, iterations):
    cross, full = ndi.generate_binary_structure(image.ndim, 1), np.ones((3,) * image.ndim)

    def opened(x):
        return ndi.grey_dilation(ndi.grey_erosion(x, footprint=cross, mode="nearest"), footprint=full, mode="nearest")

    skeleton = np.maximum(image - opened(image), 0)
    for _ in range(iterations):
        image = ndi.grey_erosion(image, footprint=cross, mode="nearest")
        removed = np.maximum(image - opened(image), 0)
        skeleton = skeleton + np.maximum(removed - skeleton * removed, 0)
    return skeleton


@pytest.mark.parametrize("shape", [(2, 9, 8), (1, 5, 6, 4)])
def test_cl_dice_with_scipys_morphology(shape):
    rng = np.random.default_rng(2)
    x, y, s = rng.normal(size=shape).astype(np.float32) * 3, rng.integers(0, 2, shape), 1.0
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    want = []
    for q, t in zip(p, y.astype(np.float64), strict=True):
        a, b = scipy_skeleton(q, 3), scipy_skeleton(t, 3)
        precision, sensitivity = ((a * t).sum() + s) / (a.sum() + s), ((b * q).sum() + s) / (b.sum() + s)
        want.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    np.testing.assert_allclose(losses.binary_cl_dice(x, y, smooth=s), want, rtol=2e-6)
    np.testing.assert_allclose(losses.soft_skeleton(jnp.asarray(p)[..., None])[..., 0], [scipy_skeleton(q, 3) for q in p], atol=1e-6)


def test_cl_dice_sees_a_cut_that_dice_forgives():
    y = np.zeros((2, 7, 21), np.int32)
    y[:, 2:5] = 1
    x = np.where(y == 1, 20.0, -20.0).astype(np.float32)
    x[0, 2:5, 10:12] = -20.0  # cut in two: 6 pixels
    x[1, 2, :6] = -20.0  # thinner at one end: 6 pixels as well
    dice, topology = losses.binary_dice(x, y), losses.binary_cl_dice(x, y)
    np.testing.assert_allclose(dice[0], dice[1], rtol=1e-6)
    assert topology[0] > 1.5 * topology[1]


def test_other_libraries_numbers():
    """The recipes in the docstrings, against each library's formula as its source has it."""
    z, y = LOGITS.astype(np.float64), LABELS
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    t = (y[..., None] == np.arange(3)).astype(np.float64)
    i, ps, ts = (x.sum((1, 2)) for x in (p * t, p, t))
    # MONAI's DiceLoss(softmax=True, to_onehot_y=True), with jaccard=True, and its GeneralizedDiceLoss at smooth 0
    np.testing.assert_allclose(losses.dice(LOGITS, y).mean(), (1 - (2 * i + 1e-5) / (ps + ts + 1e-5)).mean(), rtol=1e-6)
    monai = (1 - (2 * i + 1e-5) / (2 * (ps + ts - i) + 1e-5)).mean()
    np.testing.assert_allclose(losses.iou(LOGITS, y, smooth=0.5e-5).mean(), monai, rtol=1e-6)
    w = np.where(ts > 0, 1 / np.maximum(ts, 1) ** 2, 0)
    w = np.where(ts > 0, w, w.max(-1, keepdims=True))
    monai = 1 - 2 * (w * i).sum(-1) / (w * (ps + ts)).sum(-1)
    np.testing.assert_allclose(losses.generalized_dice(LOGITS, y, smooth=0.0), monai, rtol=1e-6)
    # segmentation_models_pytorch's DiceLoss("multiclass"): over the batch, classes that are nowhere count 0
    score = 2 * i[1:2].sum(0) / np.maximum(ps[1:2].sum(0) + ts[1:2].sum(0), 1e-7)
    smp = ((1 - score) * (ts[1:2].sum(0) > 0)).mean()
    np.testing.assert_allclose(losses.batch_dice(LOGITS[1:2], y[1:2], smooth=0.0, empty_weight=0.0).mean(), smp, rtol=1e-6)
    # kornia's dice_loss, micro and macro
    micro = (1 - 2 * i.sum(-1) / (ps.sum(-1) + ts.sum(-1) + 1e-8)).mean()
    np.testing.assert_allclose(losses.generalized_dice(LOGITS, y, power=0.0, smooth=0.0).mean(), micro, rtol=1e-6)
    np.testing.assert_allclose(losses.dice(LOGITS, y, smooth=0.0).mean(), (1 - 2 * i / (ps + ts + 1e-8)).mean(), rtol=1e-6)
    # Keras' Dice(axis=None)
    keras = 1 - 2 * i.sum() / (ps.sum() + ts.sum() + 1e-7)
    total = losses.over_batch(losses.region_statistics(LOGITS, y))
    np.testing.assert_allclose(losses.generalized_dice_from(total, power=0.0, smooth=0.0), keras, rtol=1e-6)


def test_shapes_are_checked():
    for name in ("dice", "lovasz_softmax", "boundary", "cl_dice", "dice_cross_entropy"):
        with pytest.raises(ValueError, match=r"\(3, 5, 4, 3\).*\(3, 5\)"):
            getattr(losses, name)(LOGITS, LABELS[..., 0])
    for name in ("binary_dice", "multilabel_dice", "lovasz_hinge", "binary_hausdorff", "binary_dice_focal"):
        with pytest.raises(ValueError, match=r"\(3, 5, 4, 3\).*\(3, 5, 4, 1\)"):
            getattr(losses, name)(LOGITS, MASKS[..., :1])
    with pytest.raises(ValueError, match="spatial"):
        losses.dice(LOGITS[:, 0, 0], LABELS[:, 0, 0])
    with pytest.raises(ValueError, match="integer labels"):
        losses.lovasz_softmax(LOGITS, SOFT)


def test_no_images_and_no_void_left():
    assert losses.dice(LOGITS[:0], LABELS[:0]).shape == (0, 3)
    assert losses.lovasz_hinge(LOGITS[:0, ..., 0], MASKS[:0, ..., 0]).shape == (0,)
    for name in ("dice", "generalized_dice", "lovasz_softmax", "boundary", "hausdorff", "cl_dice", "dice_cross_entropy"):
        values, gradient, _ = value_and_gradients(getattr(losses, name), LOGITS, np.full_like(LABELS, -100), LOGITS)
        np.testing.assert_array_equal(values, 0, err_msg=name)
        np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_second_derivatives_are_finite():
    x, y = jnp.asarray(LOGITS[0, :2, :2, 0].reshape(1, 4)), jnp.array([[1, 0, 1, 1]])
    for name in ("binary_dice", "binary_focal_tversky", "lovasz_hinge", "binary_cl_dice", "binary_hausdorff"):
        hessian = jax.hessian(lambda x, name=name: getattr(losses, name)(x, y).sum())(x)
        assert np.isfinite(hessian).all(), name
