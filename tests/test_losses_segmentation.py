"""Region, border and topology losses against textbook formulas in float64, set-function definitions and scipy.

The formulas are written in the direct way (1 - 2 I / (P + T)), not as the library has them, in NumPy, which knows nothing of the
library's arithmetic; their gradients by complex steps, f'(x) = Im f(x + i h) / h, exact to float64.
"""

import functools
import itertools

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
LABELS = RNG.integers(0, 3, size=(3, 5, 4)).astype(np.int32)
LABELS[1][LABELS[1] == 2] = 0  # a class that is not in the image
SOFT = RNG.dirichlet(np.ones(3), size=(3, 5, 4)).astype(np.float32)
MASKS = RNG.integers(0, 2, size=(3, 5, 4, 3)).astype(np.int32)
VOLUME, VOLUME_LABELS = RNG.normal(size=(2, 3, 4, 2, 3)).astype(np.float32), RNG.integers(0, 3, size=(2, 3, 4, 2)).astype(np.int32)
X, MASK = LOGITS[..., 0], MASKS[..., 0]


@functools.cache
def program(name, options):
    """A loss's values and the gradient of a weighed sum of them, compiled once for all tests of a shape."""

    def weighed(z, y, numbers):
        values = getattr(losses, name)(z, y, **dict(options), **numbers)
        return (jnp.arange(1.0, values.size + 1, dtype=values.dtype).reshape(values.shape) * values).sum(), values

    def run(z, y, numbers):
        gradient, values = jax.grad(weighed, has_aux=True)(z, y, numbers)
        return values, gradient

    return jax.jit(run)


def run(name, z, y, options=(), **numbers):
    return jax.tree.map(np.asarray, program(name, tuple(options))(np.asarray(z), np.asarray(y), numbers))


def value(name, z, y, options=(), **numbers):
    return run(name, z, y, options=options, **numbers)[0]


def sigmoid_64(z):
    return 1 / (1 + np.exp(-z))


def softmax_64(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def hot_64(y, z):
    return y.astype(np.float64) if y.ndim == z.ndim else (y[..., None] == np.arange(z.shape[-1])).astype(np.float64)


def sums_64(z, y, sigmoid=False, squared=False, batch=False):
    """Sums I, P, T over pixels, [b, c] each."""
    p, t = sigmoid_64(z) if sigmoid else softmax_64(z), hot_64(y, z)
    pixels = tuple(range(1, z.ndim - 1))
    sums = (p * t).sum(pixels), (p * p if squared else p).sum(pixels), (t * t if squared else t).sum(pixels)
    return tuple(x.sum(0) for x in sums) if batch else sums


def dice_64(z, y, s=1e-5, **kind):
    i, p, t = sums_64(z, y, **kind)
    return 1 - (2 * i + s) / (p + t + s)


def tversky_64(z, y, a=0.3, b=0.7, s=1e-5, **kind):
    i, p, t = sums_64(z, y, **kind)
    return 1 - (i + s) / (i + a * (p - i) + b * (t - i) + s)


iou_64 = functools.partial(tversky_64, a=1, b=1)


def generalized_64(z, y, power=2, s=1e-5):
    i, p, t = sums_64(z, y)
    smallest = np.where(t > 0, t, np.inf).min(-1, keepdims=True)
    w = (smallest / np.where(t > 0, t, smallest)) ** power
    return 1 - (2 * (w * i).sum(-1) + s) / ((w * (p + t)).sum(-1) + s)


def one(formula):
    """The formula for one region an image, from the one for several."""
    return lambda z, y: formula(z[..., None], y[..., None], sigmoid=True)[..., 0]


def many(formula, **kind):
    return lambda z, y: formula(z, y, sigmoid=True, **kind)


def nll_64(z, y):
    return -np.log(np.take_along_axis(softmax_64(z), y[..., None], -1)).reshape(z.shape[0], -1)


def pixel_bce_64(z, y):
    return -np.log(np.where(y == 1, sigmoid_64(z), 1 - sigmoid_64(z))).reshape(z.shape[0], -1)


def focal_64(nll):
    return (1 - np.exp(-nll)) ** 2 * nll


SQUARED = (("squared", True),)
CASES = {  # loss, options, numbers, formula, outputs, targets
    "dice": ("dice", (), {}, dice_64, LOGITS, LABELS),
    "dice, soft targets": ("dice", (), {}, dice_64, LOGITS, SOFT),
    "dice, volume": ("dice", (), {}, dice_64, VOLUME, VOLUME_LABELS),
    "dice, line": ("dice", (), {}, dice_64, LOGITS[:, :, 0], LABELS[:, :, 0]),
    "dice, squared": ("dice", SQUARED, {}, functools.partial(dice_64, squared=True), LOGITS, LABELS),
    "dice, squared, soft": ("dice", SQUARED, {}, functools.partial(dice_64, squared=True), LOGITS, SOFT),
    "iou": ("iou", (), {}, iou_64, LOGITS, LABELS),
    "tversky": ("tversky", (), {}, tversky_64, LOGITS, LABELS),
    "focal_tversky": ("focal_tversky", (), {}, lambda z, y: tversky_64(z, y) ** 0.75, LOGITS, LABELS),
    "log_cosh_dice": ("log_cosh_dice", (), {}, lambda z, y: np.log(np.cosh(dice_64(z, y))), LOGITS, LABELS),
    "generalized_dice": ("generalized_dice", (), {}, generalized_64, LOGITS, LABELS),
    "batch_dice": ("batch_dice", (), {}, functools.partial(dice_64, batch=True), LOGITS, LABELS),
    "batch_iou": ("batch_iou", (), {}, functools.partial(iou_64, batch=True), LOGITS, LABELS),
    "batch_tversky": ("batch_tversky", (), {}, functools.partial(tversky_64, batch=True), LOGITS, LABELS),
    "binary_dice": ("binary_dice", (), {}, one(dice_64), X, MASK),
    "binary_dice, soft": ("binary_dice", (), {}, one(dice_64), X, SOFT[..., 0]),
    "binary_iou": ("binary_iou", (), {}, one(iou_64), X, MASK),
    "binary_tversky, bools": ("binary_tversky", (), {}, one(tversky_64), X, MASK == 1),
    "binary_focal_tversky": ("binary_focal_tversky", (), {}, lambda z, y: one(tversky_64)(z, y) ** 0.75, X, MASK),
    "binary_log_cosh_dice": ("binary_log_cosh_dice", (), {}, lambda z, y: np.log(np.cosh(one(dice_64)(z, y))), X, MASK),
    "multilabel_dice": ("multilabel_dice", (), {}, many(dice_64), LOGITS, MASKS),
    "multilabel_iou": ("multilabel_iou", (), {}, many(iou_64), LOGITS, MASKS),
    "multilabel_tversky": ("multilabel_tversky", (), {}, many(tversky_64), LOGITS, MASKS),
    "multilabel_focal_tversky": ("multilabel_focal_tversky", (), {}, lambda z, y: many(tversky_64)(z, y) ** 0.75, LOGITS, MASKS),
    "batch_multilabel_dice": ("batch_multilabel_dice", (), {}, many(dice_64, batch=True), LOGITS, MASKS),
    "batch_multilabel_iou": ("batch_multilabel_iou", (), {}, many(iou_64, batch=True), LOGITS, MASKS),
    "dice_cross_entropy": (
        "dice_cross_entropy",
        (),
        {"dice_weight": 0.3},
        lambda z, y: 0.3 * dice_64(z, y).mean(-1) + nll_64(z, y).mean(-1),
        LOGITS,
        LABELS,
    ),
    "dice_focal": (
        "dice_focal",
        (),
        {"focal_weight": 2.0},
        lambda z, y: dice_64(z, y).mean(-1) + 2 * focal_64(nll_64(z, y)).mean(-1),
        LOGITS,
        LABELS,
    ),
    "binary_dice_cross_entropy": (
        "binary_dice_cross_entropy",
        (),
        {},
        lambda z, y: one(dice_64)(z, y) + pixel_bce_64(z, y).mean(-1),
        X,
        MASK,
    ),
    "binary_dice_focal": (
        "binary_dice_focal",
        (),
        {},
        lambda z, y: one(dice_64)(z, y) + focal_64(pixel_bce_64(z, y)).mean(-1),
        X,
        MASK,
    ),
}


def assert_close(got, want, rtol=2e-6):
    # Relative to the largest entry: a gradient that vanishes is not asked for digits that float32 has not.
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_formula(case):
    name, options, numbers, formula, z, y = CASES[case]
    values, gradient = run(name, z, y, options, **numbers)
    assert values.dtype == np.float32
    wide, h = z.astype(np.float64), 1e-30
    want = formula(wide, y)
    assert_close(values, want)
    weights = np.arange(1.0, want.size + 1).reshape(want.shape)
    steps = 1j * h * np.eye(z.size).reshape(z.size, *z.shape)
    assert_close(gradient.reshape(-1), [(weights * formula(wide + step, y)).sum().imag / h for step in steps])


def test_float64_stays_float64():
    with jax.enable_x64(True):
        for case in ("dice, squared", "generalized_dice"):
            name, options, _, formula, z, y = CASES[case]
            got = value(name, z.astype(np.float64), y, options)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, formula(z.astype(np.float64), y), rtol=1e-12)


@pytest.mark.parametrize("name", ["dice", "iou", "js_divergence"])
@pytest.mark.parametrize("apart", [3.0, 10.0, 20.0])
def test_a_confident_pixel_keeps_its_slope_right_or_wrong(name, apart):
    """dL/dz_j = sum_k p_j p_k (g_j - g_k), g = dL/dp, pixel by pixel in float64: of sure pixels p_j (g_j - sum_k p_k g_k) has no digits."""
    labels, sure = RNG.integers(0, 3, (2, 30)), RNG.integers(0, 3, (2, 30))
    z = (RNG.normal(size=(2, 30, 3)) + apart * np.eye(3)[sure]).astype(np.float32)
    t, p = np.eye(3)[labels], np.exp(z - z.astype(float).max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    hit, both = (p * t).sum(1, keepdims=True), (p + t).sum(1, keepdims=True)
    smooth, middle = 1e-5, (p + t) / 2
    of_p = {
        "dice": -(2 * t * (both + smooth) - (2 * hit + smooth)) / (both + smooth) ** 2,
        "iou": -(t * (both - hit + smooth) - (hit + smooth) * (1 - t)) / (both - hit + smooth) ** 2,
        "js_divergence": np.log(p / middle) / 2,
    }[name]
    expected = (p[..., :, None] * p[..., None, :] * (of_p[..., :, None] - of_p[..., None, :])).sum(-1)
    targets = jnp.asarray(t, jnp.float32) if name == "js_divergence" else jnp.asarray(labels)
    found = jax.jit(jax.grad(lambda z: getattr(losses, name)(z, targets).sum()))(jnp.asarray(z))
    np.testing.assert_allclose(np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1), 0, atol=1e-5)


def test_a_confident_prediction_keeps_its_digits():
    # 1 - 2 I / (P + T) in float32 has hardly a digit left here: the loss is 6e-7.
    z = np.where(LABELS[..., None] == np.arange(3), 15.0, 0.0)
    np.testing.assert_allclose(value("dice", z.astype(np.float32), LABELS)[0], dice_64(z, LABELS)[0], rtol=2e-6)


CLASSES = [
    *("dice", "iou", "tversky", "focal_tversky", "log_cosh_dice", "generalized_dice", "batch_dice", "dice_cross_entropy", "dice_focal"),
    *("lovasz_softmax", "boundary", "hausdorff", "cl_dice"),
]
BINARY = [
    *("binary_dice", "binary_iou", "binary_focal_tversky", "binary_log_cosh_dice", "binary_dice_cross_entropy", "binary_dice_focal"),
    *("lovasz_hinge", "binary_boundary", "binary_hausdorff", "binary_cl_dice"),
]
TRUE = LABELS[..., None] == np.arange(3)


def assert_extremes(name, right, y):
    perfect, gradient = run(name, right, y)
    assert np.isfinite(gradient).all()
    if "boundary" in name:  # the mean of the signed distance over the region
        assert (perfect <= 0).all()
    else:
        np.testing.assert_array_equal(perfect, 0)
    wrong, gradient = run(name, -right, y)
    for x in (wrong, gradient):
        assert np.isfinite(x).all()
    return wrong


@pytest.mark.parametrize("name", CLASSES)
def test_logits_of_1e4(name):
    wrong = assert_extremes(name, np.where(TRUE, 1e4, -1e4).astype(np.float32), LABELS)
    formulas = {"dice": dice_64, "iou": iou_64, "tversky": tversky_64}
    if name in formulas:  # no true pixel is found and the two other classes share it, as they do at -500 and 0
        np.testing.assert_allclose(wrong, formulas[name](np.where(TRUE, -500.0, 0.0), LABELS), rtol=1e-5)
    if name == "dice_cross_entropy":
        np.testing.assert_allclose(wrong, 2e4, rtol=1e-4)


@pytest.mark.parametrize("name", BINARY)
def test_binary_logits_of_1e4(name):
    wrong = assert_extremes(name, np.where(MASK == 1, 1e4, -1e4).astype(np.float32), MASK)
    if name == "lovasz_hinge":  # all are wrong by the same 1 + 1e4, and their slopes sum to the Jaccard loss of all, 1
        np.testing.assert_allclose(wrong, 1e4 + 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_float32_on_the_rounded_inputs(dtype):
    z = np.asarray(jnp.asarray(LOGITS, dtype))
    for name in ("dice", "lovasz_softmax"):
        got = value(name, z, LABELS)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, value(name, z.astype(np.float32), LABELS), err_msg=name)


def test_float16_at_512_by_512():
    # 262144 pixels are beyond float16 (65504). All logits are equal, so p = 1/2: Dice of the class that fills it 2 (n / 2) / (n / 2 + n).
    z, y = jnp.zeros((1, 512, 512, 2), jnp.float16), jnp.zeros((1, 512, 512), jnp.int32)
    np.testing.assert_allclose(jax.jit(losses.dice)(z, y), [[1 - 1 / 1.5, 1.0]], rtol=1e-6)


def test_limits():
    tversky = functools.partial(value, "tversky", LOGITS, LABELS)
    np.testing.assert_allclose(tversky(alpha=0.5, beta=0.5, smooth=0.5e-2), value("dice", LOGITS, LABELS, smooth=1e-2), rtol=1e-6)
    np.testing.assert_allclose(tversky(alpha=1.0, beta=1.0, smooth=1e-5), value("iou", LOGITS, LABELS), rtol=1e-6)
    focal = value("focal_tversky", LOGITS, LABELS, alpha=0.4, beta=0.2, smooth=0.1, gamma=1.0)
    np.testing.assert_allclose(focal, tversky(alpha=0.4, beta=0.2, smooth=0.1), rtol=1e-6)
    np.testing.assert_allclose(value("multilabel_dice", LOGITS, MASKS)[:, 0], value("binary_dice", X, MASK), rtol=1e-6)


def test_alpha_weighs_false_positives():
    # All predicted, half true: FP = 2, FN = 0, TP = 2.
    z, y = jnp.full((1, 4), 1e4), jnp.array([[1, 1, 0, 0]])
    np.testing.assert_allclose(losses.binary_tversky(z, y, alpha=0.25, beta=9.0, smooth=0.0), [1 - 2 / (2 + 0.25 * 2)], rtol=1e-6)


def test_an_empty_target_with_an_empty_prediction_is_perfect():
    empty = np.zeros_like(LABELS)
    z = np.broadcast_to(np.array([1e4, -1e4, -1e4], np.float32), LOGITS.shape)
    for smooth in (0.0, 1e-5):
        for name in ("dice", "focal_tversky", "generalized_dice"):
            for x in run(name, z, empty, options=(("include_background", False),), smooth=smooth):
                np.testing.assert_array_equal(x, 0, err_msg=name)
        for name in ("binary_iou", "binary_cl_dice"):
            for x in run(name, z[..., 1], empty, smooth=smooth):
                np.testing.assert_array_equal(x, 0, err_msg=name)


def test_the_gradient_of_a_class_that_is_not_there_is_not_noise():
    # T = 0: L = P / (P + s), so dL/dp = s / (P + s)^2, far below the rounding of 1 / (P + s) - P / (P + s)^2.
    z, y, s = np.zeros((1, 64, 64), np.float32), np.zeros((1, 64, 64), np.int32), 1e-5
    np.testing.assert_allclose(run("binary_dice", z, y, smooth=s)[1], 0.25 * s / (2048 + s) ** 2, rtol=1e-5)


def test_empty_weight_is_what_an_absent_class_counts():
    absent = np.zeros((3, 3), bool)
    absent[1, 2] = True
    for name in ("dice", "lovasz_softmax"):
        plain = value(name, LOGITS, LABELS)
        np.testing.assert_allclose(value(name, LOGITS, LABELS, empty_weight=0.25), np.where(absent, plain / 4, plain), rtol=1e-6)


def test_background_out_is_the_other_columns():
    for name in ("dice", "lovasz_softmax"):
        out = value(name, LOGITS, LABELS, (("include_background", False),))
        np.testing.assert_allclose(out, value(name, LOGITS, LABELS)[:, 1:], rtol=1e-6)


VOID = RNG.random((3, 5, 4)) < 0.3


@pytest.mark.parametrize("name", CLASSES)
def test_what_lies_under_void_changes_no_bit(name):
    y = np.where(VOID, -100, LABELS).astype(np.int32)
    first, *others = [run(name, np.where(VOID[..., None], garbage, LOGITS), y) for garbage in np.float32([3.0, np.nan, np.inf])]
    assert np.isfinite(first[0]).all()
    np.testing.assert_array_equal(first[1][VOID], 0)
    for other in others:
        for x, same in zip(other, first, strict=True):
            np.testing.assert_array_equal(x, same)


@pytest.mark.parametrize("name", BINARY)
def test_what_lies_under_binary_void_changes_no_bit(name):
    y = np.where(VOID, -100, MASK).astype(np.int32)
    first, other = (run(name, np.where(VOID, garbage, X), y) for garbage in np.float32([3.0, np.nan]))
    assert np.isfinite(first[0]).all()
    np.testing.assert_array_equal(first[1][VOID], 0)
    for x, same in zip(other, first, strict=True):
        np.testing.assert_array_equal(x, same)


def test_void_may_be_255_in_uint8():
    y = np.where(VOID, 255, MASK).astype(np.uint8)
    got = value("binary_dice", X, y, (("ignore_index", 255),))
    np.testing.assert_array_equal(got, value("binary_dice", X, np.where(VOID, -100, MASK).astype(np.int32)))
    y = np.where(VOID, 255, LABELS).astype(np.uint8)
    got = value("dice", LOGITS, y, (("ignore_index", 255),))
    np.testing.assert_array_equal(got, value("dice", LOGITS, np.where(VOID, -100, LABELS).astype(np.int32)))


def test_void_pixels_count_as_if_they_were_cut_out():
    keep = np.array([0, 2, 4])
    cut = np.isin(np.arange(5), keep, invert=True)[:, None]
    y, m = np.where(cut, -100, LABELS).astype(np.int32), np.where(cut, -100, MASK).astype(np.int32)
    for name in ("lovasz_softmax", "dice_focal"):
        np.testing.assert_allclose(value(name, LOGITS, y), value(name, LOGITS[:, keep], LABELS[:, keep]), rtol=2e-6, err_msg=name)
    for name in ("lovasz_hinge", "binary_dice_cross_entropy"):
        np.testing.assert_allclose(value(name, X, m), value(name, X[:, keep], MASK[:, keep]), rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", [n for n in CLASSES if n != "batch_dice"])
def test_a_label_that_is_no_class_is_loud(name):
    for wrong in (-1, 3, 255):
        y = LABELS.copy()
        y[1, 2, 3] = wrong
        with pytest.raises(ValueError, match=f"label {wrong} "):
            getattr(losses, name)(LOGITS, y)
        for x in run(name, LOGITS, y):
            assert np.isnan(x[1]).all()
            assert np.isfinite(x[[0, 2]]).all()


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_target_that_is_neither_is_loud(name):
    y = MASK.copy()
    y[1, 2, 3] = 7
    with pytest.raises(ValueError, match="7"):
        getattr(losses, name)(X, y)
    values, gradient = run(name, X, y)
    for x in (values, gradient):
        assert np.isnan(x[1]).any()
        assert np.isfinite(x[[0, 2]]).all()


@pytest.mark.parametrize("target", [7, 0.5, np.nan])
def test_lovasz_hinge_is_loud_also_where_a_margin_is_kept(target):
    """The pixel of the wrong target costs nothing, so that its own slope is 0; float targets between 0 and 1 are wrong too."""
    x, y = np.float32([[-5, 5, -5], [0.5, 2, -5]]), np.array([[target, 1, 0], [1, 1, 0]])
    values, gradient = run("lovasz_hinge", x, y)
    np.testing.assert_array_equal(np.isnan(values), [True, False])
    np.testing.assert_array_equal(np.isnan(gradient), [[True] * 3, [False] * 3])
    pushed = jax.jit(lambda x, y: jax.jvp(lambda x: losses.lovasz_hinge(x, y), (x,), (jnp.ones_like(x),))[1])(x, y)
    np.testing.assert_array_equal(np.isnan(pushed), [True, False])


def test_statistics_add_up_over_micro_batches():
    whole = value("batch_dice", LOGITS, LABELS)
    pieces = [losses.over_batch(losses.region_statistics(LOGITS[i:j], LABELS[i:j])) for i, j in ((0, 2), (2, 2), (2, 3))]
    total = jax.tree.map(lambda *x: sum(x), *pieces)
    np.testing.assert_allclose(losses.dice_from(total), whole, rtol=1e-6)
    np.testing.assert_allclose(losses.iou_from(total), value("batch_iou", LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(losses.tversky_from(total), value("batch_tversky", LOGITS, LABELS), rtol=1e-6)
    np.testing.assert_allclose(total.true, np.bincount(LABELS.ravel()), rtol=1e-6)
    np.testing.assert_allclose(total.predicted, softmax_64(LOGITS.astype(np.float64)).sum((0, 1, 2)), rtol=1e-6)
    means = np.mean([losses.dice_from(piece) for piece in (pieces[0], pieces[2])], 0)
    assert np.abs(means - whole).max() > 1e-3  # which is why the statistics are what is added


def test_statistics_add_up_over_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("b",))
    z, y = np.concatenate([LOGITS, LOGITS[:1] + 1]), np.concatenate([LABELS, LABELS[:1]])

    def sharded(z, y):
        local = losses.over_batch(losses.region_statistics(z, y))
        return losses.dice_from(jax.tree.map(lambda x: jax.lax.psum(x, "b"), local))

    over_devices = jax.shard_map(sharded, mesh=mesh, in_specs=(P("b"), P("b")), out_specs=P())
    weights = np.arange(1.0, 4.0, dtype=np.float32)
    values, gradient = jax.jit(lambda z, y: (over_devices(z, y), jax.grad(lambda z: (weights * over_devices(z, y)).sum())(z)))(z, y)
    want = run("batch_dice", z, y)
    np.testing.assert_allclose(values, want[0], rtol=1e-6)
    assert_close(gradient, want[1])


def test_the_reduction_takes_the_values():
    z = LOGITS.copy()
    z[2] = np.nan
    pair = jax.jit(functools.partial(loss_total, losses.dice))(z, LABELS, np.float32([1.0, 2.0, 0.0]))
    values = value("dice", LOGITS, LABELS).mean(-1)
    np.testing.assert_allclose(mean(pair), (values[0] + 2 * values[1]) / 3, rtol=1e-6)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.permutations(range(20)), st.permutations(range(3)))
def test_pixels_and_classes_have_no_order(pixels, classes):
    z, y = LOGITS.reshape(3, 20, 3), LABELS.reshape(3, 20)
    inverse = np.argsort(classes).astype(np.int32)
    for name in ("dice", "generalized_dice", "lovasz_softmax"):
        want = value(name, z, y)
        np.testing.assert_allclose(value(name, z[:, list(pixels)], y[:, list(pixels)]), want, rtol=2e-6)
        got = value(name, z[..., list(classes)], inverse[y])
        np.testing.assert_allclose(got, want[:, list(classes)] if want.ndim == 2 else want, rtol=2e-6)


def jaccard_loss(wrong, region):
    """1 - J of a prediction that is wrong on a set of pixels: |wrong| / |region or wrong|."""
    union = (region | wrong).sum()
    return wrong.sum() / union if union else 0.0


def lovasz_extension(errors, region):
    """The integral over levels of the Jaccard loss of the set of errors above the level: its definition."""
    levels = np.unique(np.concatenate([[0.0], errors]))
    return sum((high - low) * jaccard_loss(errors > low, region) for low, high in itertools.pairwise(levels))


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(3, 20, 3)).astype(np.float32), rng.integers(0, rng.integers(1, 4), (3, 20)).astype(np.int32)
    p = softmax_64(z.astype(np.float64))
    want = [[lovasz_extension(np.abs((y[i] == c) - p[i, :, c]), y[i] == c) for c in range(3)] for i in range(3)]
    np.testing.assert_allclose(value("lovasz_softmax", z, y), want, rtol=2e-6)
    t = y == 1
    errors = np.maximum(1 - z[..., 0].astype(np.float64) * np.where(t, 1, -1), 0)
    want = [lovasz_extension(e, region) for e, region in zip(errors, t, strict=True)]
    np.testing.assert_allclose(value("lovasz_hinge", z[..., 0], t), want, rtol=2e-6)


def test_lovasz_at_binary_predictions_is_one_minus_jaccard():
    predicted = LOGITS.argmax(-1)
    z = np.where(predicted[..., None] == np.arange(3), 1e4, -1e4).astype(np.float32)
    want = [[jaccard_loss((predicted[i] == c) != (LABELS[i] == c), LABELS[i] == c) for c in range(3)] for i in range(3)]
    np.testing.assert_allclose(value("lovasz_softmax", z, LABELS), want, rtol=1e-6)


def test_lovasz_hinge_is_convex():
    other = RNG.normal(size=X.shape).astype(np.float32) * 2
    (at_x, gradient), at_other = run("lovasz_hinge", X, MASK), value("lovasz_hinge", other, MASK)
    assert (value("lovasz_hinge", (X + other) / 2, MASK) <= (at_x + at_other) / 2 + 1e-6).all()
    plane = at_x + (gradient * (other - X)).sum((1, 2)) / np.arange(1, 4)  # the gradient is of the sum weighed by 1, 2, 3
    assert (at_other >= plane - 1e-5).all()


def test_lovasz_slopes_keep_their_digits_on_many_pixels():
    # As differences of Jaccard losses they lose up to a tenth at this size in float32.
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(1, 1 << 16)).astype(np.float32), rng.integers(0, 2, (1, 1 << 16)).astype(np.int32)
    sign = np.where(t[0] == 1, 1, -1)
    errors = 1 - x[0] * sign.astype(np.float32)  # in float32, so that the order is the same
    order = np.argsort(-errors, kind="stable")
    hit = t[0][order].astype(np.float64)
    loss = 1 - (hit.sum() - np.cumsum(hit)) / (hit.sum() + np.cumsum(1 - hit))
    want = np.empty_like(loss)
    want[order] = np.diff(loss, prepend=0)
    np.testing.assert_allclose(run("lovasz_hinge", x, t)[1][0], np.where(errors > 0, -sign * want, 0), rtol=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), [((2, 17, 11), None), ((1, 8, 9, 5), (1.0, 0.5, 3.0)), ((2, 40), None)])
def test_distance_transform_is_scipys(shape, spacing):
    mask = np.random.default_rng(1).random(shape) < 0.85
    want = [ndi.distance_transform_edt(m, sampling=spacing) for m in mask]
    transform = jax.jit(losses.distance_transform)
    np.testing.assert_allclose(transform(mask, spacing=spacing), want, rtol=1e-6)
    assert np.isinf(transform(np.ones(shape, bool), spacing=spacing)).all()


def scipy_border(mask):
    return ndi.distance_transform_edt(mask) + ndi.distance_transform_edt(~mask) if mask.any() and not mask.all() else np.zeros(mask.shape)


def scipy_signed(mask):
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    return ndi.distance_transform_edt(~mask) - np.where(mask, ndi.distance_transform_edt(mask) - 1, 0)


def per_region(transform, regions):
    """A map of [*spatial] over [b, *spatial, c]."""
    return np.stack([np.stack([transform(regions[i, ..., c]) for c in range(regions.shape[-1])], -1) for i in range(len(regions))])


def test_boundary_and_hausdorff_with_scipys_distances():
    p, t, alpha = softmax_64(LOGITS.astype(np.float64)), hot_64(LABELS, LOGITS), 1.7
    assert_close(value("boundary", LOGITS, LABELS), (p * per_region(scipy_signed, t == 1)).mean((1, 2)))
    weights = per_region(scipy_border, t == 1) ** alpha + per_region(scipy_border, p > 0.5) ** alpha
    assert_close(value("hausdorff", LOGITS, LABELS, alpha=alpha), ((p - t) ** 2 * weights).mean((1, 2)))
    q, m = sigmoid_64(X.astype(np.float64)), MASK[..., None] == 1
    signed, at = per_region(scipy_signed, m)[..., 0], np.arange(1, 4)[:, None, None]
    values, gradient = run("binary_boundary", X, MASK)
    assert_close(values, (q * signed).mean((1, 2)))
    assert_close(gradient, at * signed * q * (1 - q) / 20)  # the distances are constants
    weights = (per_region(scipy_border, m) ** 2 + per_region(scipy_border, q[..., None] > 0.5) ** 2)[..., 0]
    values, gradient = run("binary_hausdorff", X, MASK)
    assert_close(values, ((q - MASK) ** 2 * weights).mean((1, 2)))
    assert_close(gradient, at * 2 * (q - MASK) * weights * q * (1 - q) / 20)


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


def scipy_cl_dice(q, t, s):
    a, b = scipy_skeleton(q, 3), scipy_skeleton(t, 3)
    precision, sensitivity = ((a * t).sum() + s) / (a.sum() + s), ((b * q).sum() + s) / (b.sum() + s)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 5, 6, 4)])
def test_cl_dice_with_scipys_morphology(shape):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=shape).astype(np.float32) * 3, rng.integers(0, 2, shape).astype(np.int32)
    q, t, h = sigmoid_64(x.astype(np.float64)), y.astype(np.float64), 1e-6
    values, gradient = run("binary_cl_dice", x, y, smooth=1.0)
    np.testing.assert_allclose(values, [scipy_cl_dice(*pair, 1.0) for pair in zip(q, t, strict=True)], rtol=2e-6)
    # No complex steps through an ordering: central differences, good to 1e-8 here.
    for pixel in ((0,) * len(shape), tuple(n // 2 for n in shape)):
        up, down = x[pixel[0]].astype(np.float64), x[pixel[0]].astype(np.float64)
        up[pixel[1:]] += h
        down[pixel[1:]] -= h
        slope = (scipy_cl_dice(sigmoid_64(up), t[pixel[0]], 1.0) - scipy_cl_dice(sigmoid_64(down), t[pixel[0]], 1.0)) / (2 * h)
        np.testing.assert_allclose(gradient[pixel], slope * (pixel[0] + 1), rtol=1e-5, atol=1e-8)


def test_cl_dice_sees_a_cut_that_dice_forgives():
    y = np.zeros((2, 7, 21), np.int32)
    y[:, 2:5] = 1
    x = np.where(y == 1, 20.0, -20.0).astype(np.float32)
    x[0, 2:5, 10:12] = -20.0  # cut in two: 6 pixels
    x[1, 2, :6] = -20.0  # thinner at one end: 6 pixels as well
    dice, topology = losses.binary_dice(x, y), value("binary_cl_dice", x, y)
    np.testing.assert_allclose(dice[0], dice[1], rtol=1e-6)
    assert topology[0] > 1.5 * topology[1]


def test_other_libraries_numbers():
    """The recipes in the docstrings, against each library's formula as its source has it."""
    i, ps, ts = sums_64(LOGITS.astype(np.float64), LABELS)
    # MONAI's DiceLoss(softmax=True, to_onehot_y=True), the same with jaccard=True, and its GeneralizedDiceLoss at smooth 0
    np.testing.assert_allclose(value("dice", LOGITS, LABELS).mean(), (1 - (2 * i + 1e-5) / (ps + ts + 1e-5)).mean(), rtol=1e-6)
    monai = (1 - (2 * i + 1e-1) / (2 * (ps + ts - i) + 1e-1)).mean()
    np.testing.assert_allclose(value("iou", LOGITS, LABELS, smooth=0.5e-1).mean(), monai, rtol=1e-6)
    w = np.where(ts > 0, 1 / np.maximum(ts, 1) ** 2, 0)
    w = np.where(ts > 0, w, w.max(-1, keepdims=True))
    monai = 1 - 2 * (w * i).sum(-1) / (w * (ps + ts)).sum(-1)
    np.testing.assert_allclose(value("generalized_dice", LOGITS, LABELS, power=2.0, smooth=0.0), monai, rtol=1e-6)
    # kornia's dice_loss, micro and macro
    micro = 1 - 2 * i.sum(-1) / (ps.sum(-1) + ts.sum(-1) + 1e-8)
    np.testing.assert_allclose(value("generalized_dice", LOGITS, LABELS, power=0.0, smooth=0.0), micro, rtol=1e-6)
    np.testing.assert_allclose(value("dice", LOGITS, LABELS, smooth=0.0), 1 - 2 * i / (ps + ts + 1e-8), rtol=1e-6)
    # Keras' Dice(axis=None)
    total = losses.over_batch(losses.region_statistics(LOGITS, LABELS))
    keras = 1 - 2 * i.sum() / (ps.sum() + ts.sum() + 1e-7)
    np.testing.assert_allclose(losses.generalized_dice_from(total, power=0.0, smooth=0.0), keras, rtol=1e-6)
    # segmentation_models_pytorch's DiceLoss("multiclass"): over the batch, and a class that is nowhere counts 0
    y = np.where(LABELS == 2, 0, LABELS)
    i, ps, ts = sums_64(LOGITS.astype(np.float64), y, batch=True)
    smp = ((1 - 2 * i / np.maximum(ps + ts, 1e-7)) * (ts > 0)).mean()
    np.testing.assert_allclose(value("batch_dice", LOGITS, y, smooth=0.0, empty_weight=0.0).mean(), smp, rtol=1e-6)


def test_shapes_are_checked():
    for name in ("dice", "lovasz_softmax", "boundary", "cl_dice", "dice_cross_entropy"):
        with pytest.raises(ValueError, match=r"\(3, 5, 4, 3\).*\(3, 5\)"):
            getattr(losses, name)(LOGITS, LABELS[..., 0])
    for name in ("binary_dice", "multilabel_dice", "lovasz_hinge", "binary_hausdorff", "binary_dice_focal"):
        with pytest.raises(ValueError, match=r"\(3, 5, 4, 3\).*\(3, 5, 4, 1\)"):
            getattr(losses, name)(LOGITS, MASKS[..., :1])
    with pytest.raises(ValueError, match="spatial"):
        losses.dice(LOGITS[:, 0, 0], LABELS[:, 0, 0])
    with pytest.raises(ValueError, match="spatial"):
        losses.binary_dice(X[:, 0, 0], MASK[:, 0, 0])
    with pytest.raises(ValueError, match="integer labels"):
        losses.lovasz_softmax(LOGITS, SOFT)


def test_no_images():
    assert losses.dice(LOGITS[:0], LABELS[:0]).shape == (0, 3)
    assert losses.lovasz_hinge(X[:0], MASK[:0]).shape == (0,)


def test_images_without_pixels():
    for shape in ((2, 0, 3), (2, 3, 0)):
        y = np.zeros(shape, np.int32)
        for name in ("cl_dice", "dice", "lovasz_softmax"):
            values, gradient = run(name, np.zeros((*shape, 2), np.float32), y)
            np.testing.assert_array_equal(values, np.zeros((2, 1 if name == "cl_dice" else 2)))
            assert gradient.shape == (*shape, 2)
        for name in ("binary_cl_dice", "binary_dice", "lovasz_hinge"):
            values, gradient = run(name, y.astype(np.float32), y)
            np.testing.assert_array_equal(values, [0, 0])
            assert gradient.shape == shape


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_but_void_is_0(name):
    for x in run(name, LOGITS, np.full_like(LABELS, -100)):
        np.testing.assert_array_equal(x, 0)


def test_second_derivatives_are_finite():
    x, y = jnp.asarray(X[0, :2, :2].reshape(1, 4)), jnp.array([[1, 0, 1, 1]])
    for name in ("binary_focal_tversky", "lovasz_hinge", "binary_cl_dice"):
        hessian = jax.jit(jax.hessian(lambda x, name=name: getattr(losses, name)(x, y).sum()))(x)
        assert np.isfinite(hessian).all(), name
