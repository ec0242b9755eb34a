"""The reduction: a mean over pieces is the mean over the whole, value and gradient, whatever is masked and wherever it is computed."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lossopt_jax as lo
from lossopt_jax import losses
from lossopt_jax.reduce import (
    Total,
    add,
    grad_total,
    loss_total,
    masked,
    mean,
    mean_and_grad,
    value_and_grad_over,
    weighted_total,
)

RNG = np.random.default_rng(1)
X, Y = RNG.normal(size=(4, 16, 3)).astype(np.float32), RNG.normal(size=(4, 16)).astype(np.float32)
Y[1] += 2  # the long piece and the short one differ
VALID = np.arange(16)[None] < np.array([0, 16, 11, 0])[:, None]
PARAMS = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array(0.25)}


def squares(params, piece):
    """The pair of a linear model's squared errors over a piece; under a mask lies NaN."""
    x, y, valid = piece
    x, y = jnp.where(valid[:, None], x, 0), jnp.where(valid, y, jnp.nan)
    return loss_total(losses.mse, x @ params["w"] + params["b"], y, valid)


def whole():
    """Mean and gradient over the 27 valid items at once, in float64."""
    x, y = X[VALID].astype(np.float64), Y[VALID].astype(np.float64)
    error = x @ np.asarray(PARAMS["w"], np.float64) + 0.25 - y
    return np.square(error).mean(), {"w": 2 * (error[:, None] * x).mean(0), "b": 2 * error.mean()}


def assert_whole(value, grads):
    expected, expected_grads = whole()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6), grads, expected_grads)


def test_the_mean_in_pieces_is_the_mean_whole_value_and_gradient():
    """Pieces of 0, 16, 11 and 0 valid items, scanned; then as a list of pieces cut to their length."""
    assert_whole(*jax.jit(functools.partial(value_and_grad_over, squares))(PARAMS, (X, Y, VALID)))
    ragged = [(X[i, :n], Y[i, :n], VALID[i, :n]) for i, n in enumerate([0, 16, 11, 0])]
    assert_whole(*value_and_grad_over(squares, PARAMS, ragged))
    assert_whole(*value_and_grad_over(squares, PARAMS, iter(ragged)))
    means = [mean(squares(PARAMS, jax.tree.map(lambda leaf, i=i: leaf[i], (X, Y, VALID)))) for i in range(4)]
    assert abs(np.mean(means) / whole()[0] - 1) > 0.4  # the mean of means counts the two empty pieces


def test_multi_steps_of_optax_averages_means():
    """Slopes 7, (6, 7) and none: 20 / 3 is right; averaging the means 7, 6.5 and 0 gives 4.5."""
    f = lambda w, piece: weighted_total(w * piece[0], piece[1])  # noqa: E731
    slopes, valid = jnp.array([[7.0, 0.0], [6.0, 7.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    tx = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=3)
    params, state = jnp.float32(1), tx.init(jnp.float32(1))
    update = jax.jit(lambda piece, state: tx.update(jax.grad(lambda w: mean(f(w, piece)))(params), state, params))
    for piece in zip(slopes, valid, strict=True):
        change, state = update(piece, state)
    assert -float(change) == pytest.approx(4.5)
    assert float(value_and_grad_over(f, params, (slopes, valid))[1]) == pytest.approx(20 / 3)


@pytest.mark.parametrize("check_vma", [True, False])
def test_two_devices_add_their_pairs(check_vma):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    over_pieces = lambda params, pieces: mean_and_grad(jax.lax.psum(grad_total(squares, params, pieces), "d"), params)  # noqa: E731
    sharded = jax.shard_map(over_pieces, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=check_vma)
    order = np.array([1, 0, 2, 3])  # 16 and 0 valid items on one device, 11 and 0 on the other
    assert_whole(*jax.jit(sharded)(PARAMS, (X[order], Y[order], VALID[order])))


def test_devices_whose_weight_is_a_constant():
    """Without a mask the weight is the same known number on each device, which must count once for each."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    f = lambda w, x: weighted_total(w * x)  # noqa: E731
    over = lambda w, x: mean_and_grad(jax.lax.psum(grad_total(f, w, [x]), "d"), w)  # noqa: E731
    value, grad = jax.shard_map(over, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())(jnp.float32(2), jnp.arange(4.0))
    assert (float(value), float(grad)) == (3.0, 1.5)


def test_lanes_and_devices_by_vmap():
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    values, grads = jax.jit(jax.vmap(lambda p: value_and_grad_over(squares, p, (X, Y, VALID))))(lanes)
    assert_whole(values[0], jax.tree.map(lambda g: g[0], grads))
    assert float(values[1]) != pytest.approx(float(values[0]))
    over = lambda piece: mean_and_grad(jax.lax.psum(grad_total(squares, PARAMS, [piece]), "d"), PARAMS)  # noqa: E731
    values, grads = jax.jit(jax.vmap(over, axis_name="d"))((X, Y, VALID))
    assert_whole(values[3], jax.tree.map(lambda g: g[3], grads))


def test_nothing_that_counts_is_0_with_gradient_0():
    value, grads = jax.jit(functools.partial(value_and_grad_over, squares))(PARAMS, (X, Y, np.zeros_like(VALID)))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
    pair = grad_total(squares, PARAMS, [(X[0], Y[0], np.zeros(16, bool))])
    assert (pair.total, pair.weight) == (0, 0)


def test_aux_comes_along_and_dtypes_are_kept():
    f = lambda w, x: (weighted_total(w.astype(jnp.float32) * x), x.sum())  # noqa: E731
    (value, aux), grad = value_and_grad_over(f, jnp.bfloat16(1), jnp.arange(6.0).reshape(3, 2), has_aux=True)
    assert (float(value), aux.tolist(), float(grad), grad.dtype) == (2.5, [1, 5, 9], 2.5, jnp.bfloat16)
    (_, aux), _ = value_and_grad_over(f, jnp.float32(1), [jnp.ones(2), jnp.ones(3)], has_aux=True)
    assert [float(a) for a in aux] == [2, 3]
    with pytest.raises(ValueError, match="no pieces"):
        value_and_grad_over(f, jnp.float32(1), [], has_aux=True)


def test_a_partial_has_the_weigh_of_its_function():
    logits, labels = jnp.eye(3), jnp.array([0, -100, 2])
    pair = loss_total(functools.partial(losses.cross_entropy, label_smoothing=0.1), logits, labels)
    assert float(pair.weight) == 2
    assert pair == loss_total(lo.bind(losses.cross_entropy, label_smoothing=0.1), logits, labels)


def test_pairs_add_over_ragged_pieces_value_and_gradient():
    rng = np.random.default_rng(1)
    outputs, targets = rng.normal(size=(4, 16)), rng.normal(size=(4, 16))
    weights = np.arange(16)[None] < np.array([0, 16, 11, 0])[:, None]

    def in_pieces(outputs):
        return mean(
            add(*(loss_total(losses.mse, o, jnp.asarray(t), jnp.asarray(w)) for o, t, w in zip(outputs, targets, weights, strict=True)))
        )

    value, grads = jax.value_and_grad(in_pieces)(jnp.asarray(outputs, jnp.float32))
    squares = np.square(outputs - targets)
    np.testing.assert_allclose(value, squares[weights].mean(), rtol=1e-6)
    np.testing.assert_allclose(grads, np.where(weights, 2 * (outputs - targets) / 27, 0), rtol=1e-5, atol=1e-7)


def test_reduction_of_nothing_is_zero_with_gradient_zero():
    assert mean(weighted_total(jnp.full(3, jnp.nan), jnp.zeros(3))) == 0
    assert mean(Total(jnp.zeros(()), jnp.zeros(()))) == 0
    masked = jax.grad(lambda x: mean(loss_total(losses.mse, x, jnp.ones(3) * jnp.nan, jnp.zeros(3))))(jnp.ones(3))
    assert masked.tolist() == [0, 0, 0]


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"weights \(4,\) .* \(3,\)"):
        weighted_total(jnp.ones(3), jnp.ones(4))


def test_weights_of_leading_axes_mask_what_the_values_have_of_them():
    """NaN at masked positions that have two axes more than the weights; and weights [b, c] over as many rows of pixels mask none."""
    w = jnp.ones((2, 3)).at[0, 1].set(0)
    x = jnp.ones((2, 3, 4, 2)).at[0, 1].set(jnp.nan)
    value, grad = jax.value_and_grad(lambda x: mean(loss_total(losses.mse, x, jnp.zeros((2, 3, 4, 2)), w)))(x)
    assert value == 1
    np.testing.assert_allclose(grad, jnp.where(w == 0, 0, 2 / 40)[..., None, None] * jnp.ones(x.shape), rtol=1e-6)
    z = jnp.zeros((2, 3, 4, 2, 5)).at[0, 1].set(jnp.inf)
    value, grad = jax.value_and_grad(lambda z: mean(loss_total(losses.cross_entropy, z, jnp.zeros((2, 3, 4, 2), int), w)))(z)
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)
    assert np.isfinite(grad).all()
    logits, labels = jnp.arange(2.0 * 3 * 20 * 3).reshape(2, 3, 4, 5, 3) % 7, jnp.arange(120).reshape(2, 3, 4, 5) % 3
    values = losses.dice(logits, labels)
    np.testing.assert_allclose(mean(loss_total(losses.dice, logits, labels, w)), (values * w).sum() / 5, rtol=1e-6)


def test_a_loss_that_looks_at_its_numbers_is_weighed():
    def loss(outputs, targets):
        return jnp.square(outputs - targets) if float(targets.max()) < 5 else outputs

    assert loss_total(loss, jnp.ones((4, 5)), jnp.zeros((4, 5)), jnp.ones((4, 5))) == (20, 20)


def test_masks_fit_the_array_or_fall_back_to_whole_examples():
    x = jnp.ones((2, 3, 3, 3))
    assert masked(x, jnp.array([1.0, 0.0])).sum() == 27
    assert (masked(x, jnp.eye(3)[:2]) == x).all()  # [b, c] over [b, h, w, c]: nothing says which axis, and both examples have weight
    assert masked(x[..., 0, 0], jnp.eye(3)[:2]).tolist() == jnp.eye(3)[:2].tolist()
    assert masked(x[..., 0], jnp.eye(3)[:2]).sum() == 6
    assert masked(jnp.array([4, 5]), jnp.array([0.0, 1.0]), -100).tolist() == [-100, 5]


def test_masked_labels_are_no_class():
    weights = jnp.array([1.0, 1.0, 0.0])
    labels = jnp.array([0, 1, 7])  # 7 is no class at all
    pair = loss_total(lo.bind(losses.cross_entropy), jnp.eye(3), labels, weights)
    expected = float(np.log(np.e + 2) - 1)
    assert float(mean(pair)) == pytest.approx(expected, rel=1e-6)
    assert float(pair.weight) == 2


def test_class_weights_divide_by_the_weights_that_counted():
    class_weights = [1.0, 3.0, 1.0]
    pair = loss_total(
        lo.bind(losses.cross_entropy, class_weights=class_weights), jnp.eye(3) * jnp.array([[1.0], [2.0], [1.0]]), jnp.array([0, 1, 0])
    )
    values = [np.log(np.e + 2) - 1, np.log(np.e**2 + 2) - 2, np.log(np.e + 2)]
    assert float(mean(pair)) == pytest.approx(np.average(values, weights=[1, 3, 1]), rel=1e-6)


def test_both_conventions_of_the_class_weighted_mean_are_torchs():
    """By the weights' sum (torch, for labels), and by the number of examples (torch, for a distribution; Keras)."""
    reference = np.load(pathlib.Path(__file__).parent / "references" / "losses_torch.npz")
    logits, labels, probs = (jnp.asarray(reference[name]) for name in ("logits", "labels", "probs"))
    numbers = {"label_smoothing": 0.1, "class_weights": [0.5, 1.0, 2.0, 0.25, 1.5]}
    by_weight = mean(loss_total(lo.bind(losses.cross_entropy, **numbers), logits, labels))
    np.testing.assert_allclose(by_weight, reference["cross_entropy_mean.value"], rtol=2e-6)

    def by_number(logits, targets, *, label_smoothing: lo.Scalar, class_weights: lo.Vector):
        return losses.cross_entropy(logits, targets, label_smoothing=label_smoothing, class_weights=class_weights)

    own = lo.bind(by_number, **numbers)
    np.testing.assert_allclose(mean(loss_total(own, logits, probs)), reference["cross_entropy_probs.value"].mean(), rtol=2e-6)
    counted = reference["labels"] != -100
    expected = reference["cross_entropy_smooth.value"][counted].mean()
    np.testing.assert_allclose(mean(weighted_total(own(logits, labels), labels != -100)), expected, rtol=2e-6)
    assert abs(float(by_weight) / expected - 1) > 0.05


# Region losses: name -> whether logits have classes, and whether targets have an axis of labels.
IMAGES = RNG.normal(size=(4, 4, 3, 3)).astype(np.float32)
MASKS = RNG.integers(0, 2, (4, 4, 3, 3)).astype(np.int32)
VOID = np.zeros((4, 4, 3), bool)
VOID[1], VOID[2, :2], VOID[3, 0] = True, True, True
KEPT = np.array([0, 2, 3])
REGIONS = [
    name
    for name in losses.__all__
    if name.endswith(("dice", "iou", "tversky", "boundary", "hausdorff", "dice_cross_entropy", "dice_focal")) or name.startswith("lovasz")
]
FAST = {"dice", "multilabel_dice", "batch_dice"}


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in REGIONS])
def test_an_image_that_is_void_all_over_is_as_if_it_were_not_there(name):
    """By its labels, by pixel weights and by a weight of its own; what lies there is NaN, and the gradient is that of the others."""
    loss, multilabel = lo.bind(getattr(losses, name)), "multilabel" in name
    single = name.startswith("binary") or name == "lovasz_hinge"
    z, y = (IMAGES[..., 0] if single else IMAGES), (MASKS if multilabel else MASKS[..., 0])
    void = VOID[..., None] if multilabel else VOID
    labels = np.where(void, -100, y)
    spoilt = np.where(VOID if single else VOID[..., None], np.nan, z)

    @jax.jit
    def run(z, y, weights):
        def total(z):
            pair = loss_total(loss, z, y, weights)
            return mean(pair), pair.weight

        return jax.value_and_grad(total, has_aux=True)(z)

    # Values and gradients of the images that are left, given weights that are equal, by hand.
    (value, weight), grad = run(z[KEPT], labels[KEPT], np.ones(3, np.float32))
    assert weight == jax.eval_shape(loss, z[KEPT], labels[KEPT]).size
    weights = [np.ones(4), np.where(np.arange(4) == 1, 0, 2.0), (~VOID).astype(float), 2.0 * ~VOID]
    targets = [labels, labels, y, y]
    for w, t in zip(weights, targets, strict=True):
        (got, got_weight), got_grad = run(spoilt, t, np.float32(w))
        np.testing.assert_allclose(got, value, rtol=2e-6)
        assert got_weight == weight * w.max()
        np.testing.assert_allclose(got_grad[KEPT], grad, rtol=2e-5, atol=1e-7)
        assert (got_grad[1] == 0).all()
    (got, got_weight), got_grad = run(spoilt, y, np.zeros(4, np.float32))
    assert (got, got_weight) == (0, 0)
    assert (got_grad == 0).all()


def test_a_class_that_is_not_in_an_image_counts_and_a_label_that_is_void_does_not():
    y = MASKS.copy()
    y[0, ..., 2] = -100  # void to one label alone
    y[1, ..., 1] = 0  # a label that is not in the image
    assert losses.multilabel_dice.weigh(jnp.asarray(y)).tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    pair = jax.jit(loss_total)(lo.bind(losses.multilabel_dice, empty_weight=0.0), IMAGES, y)
    values = jax.jit(losses.multilabel_dice)(IMAGES, y)
    assert pair.weight == 11
    np.testing.assert_allclose(pair.total, values.sum() - values[1, 1] - values[0, 2], rtol=1e-6)


def test_pixel_weights_that_cannot_be_a_mask_are_named():
    for loss, targets in (
        (losses.dice, jax.nn.softmax(IMAGES)),
        (losses.binary_dice, MASKS[..., 0] == 1),
        (losses.multilabel_soft_margin, MASKS),
    ):
        outputs = IMAGES[..., 0] if loss is losses.binary_dice else IMAGES
        weights = jnp.ones(MASKS.shape if loss is losses.multilabel_soft_margin else VOID.shape)
        with pytest.raises(ValueError, match=r"weights \(4, 4, 3.* must be a leading part .* unless .* integer labels"):
            jax.eval_shape(functools.partial(loss_total, loss), outputs, targets, weights)


def test_pixels_of_an_image_with_as_many_classes():
    """[b, n] pixel weights for values [b, c] with n = c are a mask of pixels all the same."""
    z, y, void = IMAGES[:, 0], MASKS[:, 0, :, 0], np.array([[0, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    total = jax.jit(functools.partial(loss_total, losses.dice))
    pair, expected = total(z, y, ~void), total(z, np.where(void, -100, y))
    np.testing.assert_allclose(jnp.array(pair), jnp.array(expected), rtol=1e-6)


def test_masks_of_labels_that_have_no_room_for_the_mark():
    weights, logits = jnp.array([1.0, 1.0, 0.0]), np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for loss in (losses.cross_entropy, losses.z_loss):
        expected = loss(logits[:2], np.array([0, 1])).mean()
        found = mean(loss_total(loss, logits, jnp.array([0, 1, 2], jnp.uint8), weights))  # uint8 has no -100
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(mean(loss_total(losses.hinge, jnp.ones(3), jnp.array([1, -1, 1]), weights)), 1.0)  # 0 would be no side


@pytest.mark.parametrize("loss", [losses.ntxent, losses.info_nce, losses.clip, losses.siglip], ids=lambda loss: loss.__name__)
def test_a_pair_of_weight_0_is_no_candidate(loss):
    first, second = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    expected = mean(loss_total(loss, (first[:3], second[:3]), None))
    first[3] = np.nan
    np.testing.assert_allclose(mean(loss_total(loss, (first, second), None, jnp.array([1.0, 1.0, 1.0, 0.0]))), expected, rtol=1e-6)
