"""What every loss promises, run over `losses.__all__`: a new loss is an entry in EXAMPLES, and fails here until it is one.

Each loss is compiled once for its values and derivatives, and once for lanes of its numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses
from lossopt_jax.recipe import Bound, bind, numbers
from lossopt_jax.reduce import loss_total

RNG = np.random.default_rng(11)
NUMBERS = RNG.normal(size=(6,)).astype(np.float32), RNG.normal(size=(6,)).astype(np.float32)
PAIRS = RNG.normal(size=(6, 2)).astype(np.float32)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 4, 3])
PROBS = RNG.dirichlet(np.ones(5), 6).astype(np.float32)
BITS = RNG.integers(0, 2, (6, 5))
SIGNS = np.array([1, -1, 1, 1, -1, -1])
IMAGES = RNG.normal(size=(2, 6, 5, 3)).astype(np.float32)
CLASS_MASKS = RNG.integers(0, 3, (2, 6, 5))
BIT_MASKS = RNG.integers(0, 2, (2, 6, 5, 3))
EMBEDDINGS = RNG.normal(size=(3, 6, 4)).astype(np.float32)
WEIGHTS = [0.5, 1.0, 2.0, 0.25, 1.5]


def _each(names, example):
    return dict.fromkeys(names.split(), example)


_regression = _each("adaptive_robust charbonnier expectile huber log_cosh mae mape mse quantile smooth_l1 wing", (*NUMBERS, {}))
_likelihood = {
    "gaussian_nll": (PAIRS, NUMBERS[1], {}),
    "laplace_nll": (PAIRS, NUMBERS[1], {}),
    "student_t_nll": (PAIRS, NUMBERS[1], {}),
    "poisson_nll": (NUMBERS[0], np.abs(NUMBERS[1]), {}),
    "tweedie": (NUMBERS[0], np.abs(NUMBERS[1]), {}),
    "msle": (np.abs(NUMBERS[0]), np.abs(NUMBERS[1]), {}),
}
_classification = {
    **_each("asymmetric binary_cross_entropy binary_focal", (NUMBERS[0], SIGNS // 2 + 1, {})),
    **_each("cross_entropy nll poly focal multi_margin", (LOGITS, LABELS, {"class_weights": WEIGHTS})),
    **_each("evidential generalized_cross_entropy multiclass_hinge symmetric_cross_entropy", (LOGITS, LABELS, {})),
    **_each("js_divergence kl_divergence sparsemax", (LOGITS, PROBS, {})),
    **_each("hinge squared_hinge", (NUMBERS[0], SIGNS, {})),
    "multilabel_soft_margin": (LOGITS, BITS, {"class_weights": WEIGHTS}),
    "ordinal": (LOGITS[:, :4], LABELS, {}),
    "logit_adjusted": (LOGITS, LABELS, {"priors": WEIGHTS}),
    "class_balanced": (LOGITS, LABELS, {"class_counts": [3.0, 10.0, 5.0, 20.0, 1.0], "beta": 0.75}),
}
_segmentation = {
    **_each("dice iou tversky focal_tversky generalized_dice log_cosh_dice", (IMAGES, CLASS_MASKS, {})),
    **_each("batch_dice batch_iou batch_tversky lovasz_softmax cl_dice", (IMAGES, CLASS_MASKS, {})),
    **_each("boundary hausdorff dice_cross_entropy dice_focal", (IMAGES, CLASS_MASKS, {})),
    **_each(
        "binary_dice binary_iou binary_tversky binary_focal_tversky binary_log_cosh_dice lovasz_hinge binary_cl_dice binary_boundary "
        "binary_hausdorff binary_dice_cross_entropy binary_dice_focal",
        (IMAGES[..., 0], BIT_MASKS[..., 0], {}),
    ),
    **_each(
        "multilabel_dice multilabel_iou multilabel_tversky multilabel_focal_tversky batch_multilabel_dice batch_multilabel_iou",
        (IMAGES, BIT_MASKS, {}),
    ),
}
_contrastive = {
    **_each("arcface cosface", (np.tanh(LOGITS), LABELS, {})),
    **_each("clip siglip info_nce ntxent", (tuple(EMBEDDINGS[:2]), None, {})),
    "contrastive": (tuple(EMBEDDINGS[:2]), SIGNS // 2 + 1, {}),
    "cosine": (*EMBEDDINGS[:2], {}),
    "cosine_embedding": (tuple(EMBEDDINGS[:2]), SIGNS, {}),
    "triplet": (tuple(EMBEDDINGS), None, {}),
    **_each("supervised_contrastive triplet_batch_hard triplet_semi_hard", (EMBEDDINGS[0], LABELS // 2, {})),
    "margin_ranking": (NUMBERS, SIGNS, {}),
    **_each("lambdarank listwise_softmax pairwise_logistic", (LOGITS, BITS * 1.0, {})),
}
_HEAD = losses.Head(NUMBERS[0].reshape(6, 1) * PAIRS, PAIRS[:5].T.copy(), LOGITS[0])
_language = {"linear_cross_entropy": (_HEAD, LABELS, {"class_weights": WEIGHTS, "soft_cap": 3.0, "z_loss": 0.5})}
_language |= {
    "ctc": (RNG.normal(size=(6, 4, 5)).astype(np.float32), np.array([[1, 2], [3, 3], [4, -100], [-100, -100], [1, 4], [2, 2]]), {}),
    "z_loss": (LOGITS, LABELS, {}),
    "distillation": (LOGITS, np.log(PROBS), {}),
    **_each("dpo ipo", (NUMBERS, tuple(PAIRS.T), {})),
}
_tasks = {"losses": (bind(losses.cross_entropy, label_smoothing=0.1), bind(losses.huber)), "weights": [2.0, 0.5]}
_combined = {
    "weighted_sum": (IMAGES, CLASS_MASKS, {"losses": (bind(losses.dice), bind(losses.cross_entropy)), "weights": [1.0, 0.5]}),
    "weighted_tasks": ((LOGITS, PAIRS), (LABELS, PAIRS[::-1]), _tasks),
    "uncertainty_weighted": (((LOGITS, PAIRS), LOGITS[:, :2]), (LABELS, PAIRS[::-1]), _tasks),
}
# name -> (outputs, targets, numbers to bind). A room's author adds a table of theirs.
EXAMPLES = {**_regression, **_likelihood, **_classification, **_segmentation, **_contrastive, **_language, **_combined}

# Where the true value or slope at logits of 1e4 has no float32: e^1e4, or divided by e^-1e4.
OVERFLOWS = {"poisson_nll", "tweedie", "gaussian_nll", "laplace_nll", "uncertainty_weighted"}
# Integers that say which belong together, so any will do; and those of which -1 is one of the two.
IDENTITIES = {"supervised_contrastive", "triplet_batch_hard", "triplet_semi_hard"}
SIGNED = {"hinge", "squared_hinge", "contrastive", "cosine_embedding", "margin_ranking"}


def test_every_loss_has_an_example():
    assert sorted(EXAMPLES) == sorted(losses.__all__)
    assert len(set(losses.__all__)) == len(losses.__all__)


@functools.cache
def bound(name) -> Bound:
    return bind(getattr(losses, name), **EXAMPLES[name][2])


@functools.cache
def program(name):
    """Values, gradient of their weighted sum, and the pair; the list counts traces."""
    traces = []

    @jax.jit
    def program_of(loss, outputs, targets, weights):
        traces.append(1)

        def total(outputs):
            pair = loss_total(loss, outputs, targets, weights)
            return pair.total, pair

        grads, pair = jax.grad(total, has_aux=True)(outputs)
        return loss(outputs, targets), grads, pair

    def run(loss, outputs, targets, weights=None):
        weights = np.ones(batch_size(name)) if weights is None else weights
        return program_of(loss, outputs, targets, np.float32(weights))

    return run, traces


def batch_size(name):
    return len(jax.tree.leaves(EXAMPLES[name][0])[0])


def lanes(loss):
    """The loss with each of its numbers changed in turn, and as it is."""
    leaves, structure = jax.tree.flatten(loss)
    changed = [np.where(value == 0, np.float32(0.125), value * np.float32(0.75)) for value in leaves]
    return [loss, *(jax.tree.unflatten(structure, [*leaves[:i], value, *leaves[i + 1 :]]) for i, value in enumerate(changed))]


@pytest.mark.parametrize("name", losses.__all__)
def test_lanes_one_trace_and_extremes(name):
    """Lanes equal a loop over each number, one trace serves all numbers."""
    outputs, targets, _ = EXAMPLES[name]
    run, traces = program(name)
    one_by_one = [run(loss, outputs, targets) for loss in lanes(bound(name))]
    assert len(traces) == 1
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(one_by_one[0][1]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves]), *lanes(bound(name)))
    together = jax.jit(jax.vmap(lambda loss: loss(outputs, targets)))(stacked) if bound(name).hparams else one_by_one[0][0][None]
    np.testing.assert_allclose(together, [values for values, *_ in one_by_one], rtol=2e-6, atol=1e-6)
    for i, number in enumerate(numbers(bound(name))):
        assert np.isfinite(together[i + 1]).all(), number
    # Here, so that the program is compiled once however the tests are spread over processes.
    check_extremes(name)
    check_masks(name)
    check_labels_that_are_no_class(name)


def check_extremes(name):
    """Values and derivatives are finite for logits at 1e4 of either sign in any mixture, all equal, and all 0."""
    outputs, targets, _ = EXAMPLES[name]
    run, _ = program(name)
    rng = np.random.default_rng(1)
    sign = (lambda x: np.ones_like(x)) if name == "msle" else (lambda x: rng.choice([-1, 0, 1], np.shape(x)).astype(np.float32))
    for extreme in (lambda x: 1e4 * sign(x), lambda x: np.full_like(x, 1e4), np.zeros_like):
        if name in OVERFLOWS and extreme is not np.zeros_like:
            continue
        for part in jax.tree.leaves(run(bound(name), jax.tree.map(lambda x, f=extreme: f(x).astype(np.float32), outputs), targets)):
            assert np.isfinite(part).all()


def check_masks(name):
    """What lies under a weight of 0, NaN and labels of no class included, changes no bit; a batch of nothing else is 0 of 0."""
    outputs, targets, _ = EXAMPLES[name]
    run, _ = program(name)
    kept = np.arange(batch_size(name)) % 3 != 1
    each = getattr(outputs, "map_examples", lambda fn: jax.tree.map(fn, outputs))
    wanted = None
    for garbage, label in ((0, 0), (np.nan, 255), (np.inf, -1), (-np.inf, -100)):

        def spoilt(x, rows=kept, garbage=garbage, label=label):
            x = np.asarray(x)
            return np.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), x, np.asarray(label if x.dtype.kind == "i" else garbage, x.dtype))

        _, grads, pair = run(bound(name), each(spoilt), jax.tree.map(spoilt, targets), kept * 1.5)
        found = jax.tree.leaves((grads, pair))
        wanted = wanted or found
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got, want)
        assert np.isfinite(pair.total)
        assert pair.weight > 0
    nothing = np.zeros_like(kept)
    _, grads, pair = run(bound(name), each(lambda x: spoilt(x, nothing)), jax.tree.map(lambda x: spoilt(x, nothing), targets), nothing)
    assert pair == (0, 0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def check_labels_that_are_no_class(name):
    """An integer that is no class makes value and gradient of its example NaN, and changes no bit of the others'."""
    outputs, targets, _ = EXAMPLES[name]
    if not hasattr(targets, "dtype") or targets.dtype.kind != "i" or name in IDENTITIES:
        return
    run, _ = program(name)
    good, good_grads, *_ = run(bound(name), outputs, targets)
    for label in (255,) if name in SIGNED else (-1, 255):
        wrong = np.array(targets)
        wrong[(1, *(0,) * (wrong.ndim - 1))] = label
        values, grads, pair = run(bound(name), outputs, wrong)
        assert np.isnan(pair.total)
        if name.startswith("batch_"):  # one image to the loss
            assert np.isnan(values).any()
            continue
        assert np.isnan(values[1]).any()
        np.testing.assert_array_equal(np.delete(values, 1, 0), np.delete(good, 1, 0))
        for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(good_grads), strict=True):
            if len(got) == len(values):  # what all examples share has all their gradients in it
                assert np.isnan(got[1]).any()
                np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(want, 1, 0))


@pytest.mark.parametrize("name", losses.__all__)
def test_values_are_one_per_example_in_float32(name):
    outputs, targets, _ = EXAMPLES[name]
    batch = jax.tree.leaves(outputs)[0].shape[0]

    def summed(outputs):
        values = bound(name)(outputs, targets)
        return values.sum(), values

    for dtype in (jnp.bfloat16, jnp.float32):
        given = jax.tree.map(lambda x, dtype=dtype: jax.ShapeDtypeStruct(np.shape(x), dtype), outputs)
        grads, values = jax.eval_shape(jax.grad(summed, has_aux=True), given)
        assert values.dtype == jnp.float32
        assert values.ndim >= 1
        assert values.shape[0] == batch or name.startswith("batch_")
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", losses.__all__)
def test_shapes_that_do_not_match_raise(name):
    """(n,) against (n, 1) would be (n, n) unseen."""
    outputs, targets, _ = EXAMPLES[name]
    if targets is None:
        outputs = (outputs[0][:-1], *outputs[1:])
    else:
        targets = jax.tree.map(lambda t: np.asarray(t)[..., None], targets)
    with pytest.raises(ValueError, match=r"\(.*\).*\(.*\)"):
        jax.eval_shape(bound(name), outputs, targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.__all__)
def test_jit_equals_eager(name):
    """To rounding, not bit for bit: XLA contracts a product and a sum that it fuses. Slow, since eager code compiles op by op."""
    outputs, targets, _ = EXAMPLES[name]
    values, *_ = program(name)[0](bound(name), outputs, targets)
    np.testing.assert_allclose(values, bound(name)(outputs, targets), rtol=2e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.__all__)
def test_gradients_in_float64(name):
    """Along a direction, against central differences of the values and in reverse mode, for outputs and for each number, in float64."""
    outputs, targets, _ = EXAMPLES[name]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (bound(name), outputs))
        rng = np.random.default_rng(4)
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), wide)
        values = jax.jit(lambda at: at[0](at[1], targets))
        slope = jax.jit(lambda at, d: jax.jvp(lambda at: at[0](at[1], targets), (at,), (d,))[1])(wide, direction)
        grads = jax.jit(jax.grad(lambda at: at[0](at[1], targets).sum()))(wide)
        products = jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope.sum(), rtol=1e-9, atol=1e-9)
        h = 1e-6
        ahead, behind = (values(jax.tree.map(lambda x, d, s=s: x + s * h * d, wide, direction)) for s in (1, -1))
        assert values(wide).dtype == jnp.float64
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_whole_numbers_that_jax_would_cut_are_no_other_class():
    """2**32 + 1 is 1 in 32 bits, and the label that NumPy makes of a NaN is 0."""
    with pytest.raises(ValueError, match="cross_entropy: -9223372036854775808 does not fit into the 32 bits"):
        losses.cross_entropy(LOGITS[:2], np.array([-(2**63), 1]))
    for name, (outputs, targets, numbers_of) in EXAMPLES.items():
        if not isinstance(targets, np.ndarray) or targets.dtype.kind != "i":
            continue
        beyond = targets.astype(np.int64)
        beyond.flat[0] += 2**32
        with pytest.raises(ValueError, match="does not fit into the 32 bits"):
            bind(getattr(losses, name), **numbers_of)(outputs, beyond)
    np.testing.assert_allclose(losses.mse(np.zeros(1), np.array([2**33])), [2.0**66], rtol=1e-6)
