"""Losses made of losses: against sums of the parts written out, through the recipe, the step, a sweep and a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lossopt_jax as lo
from lossopt_jax import losses
from lossopt_jax.config import ConfigError, experiment
from lossopt_jax.reduce import add, loss_total, mean

RNG = np.random.default_rng(5)
Z = RNG.normal(size=(4, 3, 5, 2)).astype(np.float32)
LABELS = RNG.integers(0, 2, (4, 3, 5)).astype(np.int32)
VOID = LABELS.copy()
VOID[1] = -100
VOID[2, :2] = -100


def of(*parts, weights, **options):
    return lo.weighted_sum(*parts, weights=weights, **options)


def test_parts_of_one_shape_are_added_value_by_value():
    """So tokens keep the mean over tokens, and equal class weights the mean over the weights' sum."""
    w = [0.5, 2.0]
    parts = lo.bind(losses.cross_entropy, class_weights=w), lo.bind(losses.poly, class_weights=w)
    loss = of(*parts, weights=[0.5, 2.0])

    @jax.jit  # all in one program
    def run(y):
        return loss(Z, y), [part(Z, y) for part in parts], [loss_total(x, Z, y) for x in (loss, *parts, of(parts[0], weights=[1.0]))]

    values, of_parts, (pair, first, second, alone) = run(VOID)
    np.testing.assert_allclose(values, 0.5 * of_parts[0] + 2 * of_parts[1], rtol=1e-6)
    np.testing.assert_allclose(pair.weight, first.weight, rtol=1e-6)
    np.testing.assert_allclose(mean(pair), 0.5 * mean(first) + 2 * mean(second), rtol=1e-6)
    np.testing.assert_allclose(jnp.array(alone), jnp.array(first), rtol=1e-6)


def test_parts_of_different_shapes_are_averaged_within_the_example():
    """Dice [b, c] and cross-entropy [b, h, w] are the compound loss written for them, void and class weights included."""
    loss = of(lo.bind(losses.dice), lo.bind(losses.cross_entropy, class_weights=[0.5, 2.0]), weights=[0.7, 0.3])
    compound = lo.bind(losses.dice_cross_entropy, dice_weight=0.7, cross_entropy_weight=0.3, class_weights=[0.5, 2.0])
    for y in (LABELS, VOID):
        pair, expected = (jax.jit(loss_total)(x, Z, jnp.asarray(y)) for x in (loss, compound))
        np.testing.assert_allclose(jnp.array(pair), jnp.array(expected), rtol=1e-6)
    assert float(pair.weight) == 3  # the image that is void all over does not count
    kept = np.array([0, 2, 3])
    np.testing.assert_allclose(mean(pair), loss(Z[kept], VOID[kept]).mean(), rtol=1e-6)


def test_a_part_that_knows_no_void_is_kept_from_it():
    loss = of(lo.bind(losses.binary_dice), lo.bind(losses.binary_cross_entropy), weights=[1.0, 1.0])
    value, grad = jax.jit(jax.value_and_grad(lambda z: mean(loss_total(loss, z, jnp.asarray(VOID)))))(np.where(VOID < 0, np.nan, Z[..., 0]))
    expected = loss_total(lo.bind(losses.binary_dice_cross_entropy), jnp.asarray(Z[..., 0]), jnp.asarray(VOID))
    np.testing.assert_allclose(value, mean(expected), rtol=1e-6)
    assert np.isfinite(grad).all()
    assert (np.asarray(grad)[VOID < 0] == 0).all()


@pytest.mark.parametrize(
    "parts", [(losses.dice, losses.cross_entropy), pytest.param((losses.focal, losses.cross_entropy), marks=pytest.mark.slow)]
)
def test_masks_of_examples_and_of_pixels_and_micro_batches(parts):
    """A mask is as void labels are, garbage under it is nothing, and pairs of micro-batches add up."""
    loss, y = of(*map(lo.bind, parts), weights=[1.0, 0.5]), jnp.asarray(LABELS)
    total = jax.jit(loss_total)
    expected = total(loss, Z, jnp.asarray(VOID))
    spoilt = np.where(VOID[..., None] < 0, np.nan, Z)
    np.testing.assert_array_equal(jnp.array(total(loss, spoilt, y, jnp.float32(VOID >= 0))), jnp.array(expected))
    by_example = total(loss, spoilt, jnp.asarray(VOID), jnp.array([1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(jnp.array(by_example), jnp.array(expected))
    halves = [total(loss, Z[i : i + 1], jnp.asarray(VOID[i : i + 1])) for i in range(4)]
    np.testing.assert_allclose(jnp.array(add(*halves)), jnp.array(expected), rtol=1e-6)
    assert total(loss, spoilt, y, jnp.zeros(4)) == (0, 0)


def test_every_number_has_a_path_and_may_follow_a_schedule():
    falling = lo.bind(lo.schedules.linear, init=1.0, total=10)
    loss = of(lo.bind(losses.dice), lo.bind(losses.cross_entropy, label_smoothing=falling), weights=[falling, 0.5])
    recipe = lo.Recipe(loss, lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    paths = {"loss.losses.0.smooth", "loss.losses.1.label_smoothing.init", "loss.weights.0.init", "loss.weights.1", "schedule.value"}
    assert paths <= set(lo.numbers(recipe))
    with pytest.raises(TypeError, match="weights is a schedule"):
        loss(Z, LABELS)
    at = loss.at(4)
    assert [float(w) for w in at.hparams["weights"]] == pytest.approx([0.6, 0.5])
    assert float(at.hparams["losses"][1].hparams["label_smoothing"]) == pytest.approx(0.6)
    assert {name: float(v) for name, v in loss.scheduled(5).items()} == {"weights.0": pytest.approx(0.5)}
    plain = of(lo.bind(losses.dice), lo.bind(losses.cross_entropy, label_smoothing=0.6), weights=[0.6, 0.5])
    run = jax.jit(lambda loss: loss(Z, jnp.asarray(LABELS)))
    np.testing.assert_allclose(run(at), run(plain), rtol=1e-6)
    changed = lo.with_numbers(recipe, {"loss.weights.1": 0.25, "loss.losses.0.smooth": 1.0})
    assert float(changed.loss.hparams["weights"][1]) == 0.25
    assert jax.tree.structure(changed) == jax.tree.structure(recipe)


MODEL = lo.from_linen(nn.Dense(2))
INPUTS = RNG.normal(size=(32, 3)).astype(np.float32)
CLASSES = (INPUTS[:, 0] > 0).astype(np.int32)


@pytest.mark.slow
def test_a_sweep_over_weights_is_one_program_whose_lanes_are_the_runs():
    loss = of(lo.bind(losses.cross_entropy), lo.bind(losses.focal), weights=[lo.bind(lo.schedules.linear, init=1.0, total=20), 1.0])
    recipe = lo.Recipe(loss, lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.05))
    trials = lo.grid(recipe, {"loss.weights.1": [0.0, 1.0], "loss.losses.1.gamma": [1.0, 2.0]})
    run = lo.Run(steps=20, batch_size=8)
    swept = lo.sweep(MODEL, trials, train=(INPUTS, CLASSES), run=run, plan=lo.LanePlan(1, 4))
    alone = lo.fit(MODEL, trials.recipes[3], train=(INPUTS, CLASSES), run=run)
    np.testing.assert_allclose(np.asarray(swept.history["loss"])[3].ravel(), alone.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(alone.history["loss.weights.0"], 1 - np.arange(20) / 20, rtol=1e-6)


def test_tasks_have_their_own_outputs_targets_and_gaps():
    outputs = jnp.asarray(Z[:, 0, 0]), jnp.asarray(Z[:, 0, :, 0])
    targets = jnp.array([0, -100, 1, -100]), jnp.asarray(Z[:, 1, :, 0])
    tasks = lo.bind(losses.weighted_tasks, losses=(lo.bind(losses.cross_entropy), lo.bind(losses.mse)), weights=[2.0, 0.5])
    expected = 2 * losses.cross_entropy(outputs[0], targets[0]) + 0.5 * losses.mse(outputs[1], targets[1]).mean(-1)
    np.testing.assert_allclose(jax.jit(lambda at: tasks(*at))((outputs, targets)), expected, rtol=1e-6)
    assert jax.jit(loss_total)(tasks, outputs, targets).weight == 4
    labels_alone = lo.bind(losses.weighted_tasks, losses=(lo.bind(losses.cross_entropy),), weights=[1.0])
    assert loss_total(labels_alone, outputs[:1], targets[:1]).weight == 2


def test_uncertainty_is_the_formula_and_a_gap_moves_nothing():
    outputs = (jnp.asarray(Z[:, 0, 0]), jnp.asarray(Z[:, 0, :, 0])), jnp.asarray(Z[:, 2, 0])
    targets = jnp.array([0, -100, 1, -100]), jnp.asarray(Z[:, 1, :, 0])
    loss = lo.bind(losses.uncertainty_weighted, losses=(lo.bind(losses.cross_entropy), lo.bind(losses.mse)), weights=[2.0, 1.0])
    (classes, numbers), s = outputs
    parts = np.stack([losses.cross_entropy(classes, targets[0]), losses.mse(numbers, targets[1]).mean(-1)], -1).astype(np.float64)
    terms = np.array([2.0, 1.0]) * np.exp(-np.asarray(s, np.float64)) * parts + np.asarray(s)
    terms[[1, 3], 0] = 0
    np.testing.assert_allclose(jax.jit(lambda at: loss(*at))((outputs, targets)), terms.sum(-1), rtol=1e-6)
    grads = jax.jit(jax.grad(lambda s: loss_total(loss, (outputs[0], s), targets).total))(s)
    assert grads[1, 0] == grads[3, 0] == 0
    np.testing.assert_allclose(grads[:, 1], 1 - np.exp(-s[:, 1]) * parts[:, 1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(4, 2\), got \(2,\)"):
        loss((outputs[0], s[0]), targets)


@pytest.mark.parametrize("garbage", [-100.0, 100.0, np.nan, -np.inf, np.inf])
def test_what_lies_in_the_log_variance_of_a_gap_is_nothing(garbage):
    per_task = jnp.asarray(Z[:, 0, 0]), jnp.asarray(Z[:, 0, :, 0])
    targets = jnp.array([0, -100, 1, -100]), jnp.asarray(Z[:, 1, :, 0])
    loss = lo.bind(losses.uncertainty_weighted, losses=(lo.bind(losses.cross_entropy), lo.bind(losses.mse)))

    @jax.jit
    def run(s):
        values, pushed = jax.jvp(lambda s: loss((per_task, s), targets), (s,), (jnp.ones_like(s),))
        return values, pushed, jax.grad(lambda at: loss(at, targets).sum())((per_task, s))

    plain = Z[:, 2, 0]
    spoilt = np.where(np.array([[False, False], [True, False]] * 2), np.float32(garbage), plain)
    for got, want in zip(jax.tree.leaves(run(spoilt)), jax.tree.leaves(run(plain)), strict=True):
        np.testing.assert_array_equal(got, want)
    assert (np.asarray(run(spoilt)[2][1])[[1, 3], 0] == 0).all()


def test_a_task_without_loss_costs_its_log_variance():
    # exp(-s) L + s at L = (z - y)^2 = 0: s, with slope 1 in s and exp(-s) 2 (z - y) = 0 in z, though e^100 be no float32.
    loss = lo.bind(losses.uncertainty_weighted, losses=(lo.bind(losses.mse),), weights=[2.0])
    z, s = jnp.array([1.0, -2.0, 0.5]), jnp.array([[-100.0], [-1e4], [3.0]])
    value, slopes = jax.jit(jax.value_and_grad(lambda at: loss(((at[0],), at[1]), (z,)).sum()))((z, s))
    np.testing.assert_allclose(value, -10097.0, rtol=1e-6)
    np.testing.assert_array_equal(slopes[0], np.zeros(3))
    np.testing.assert_array_equal(slopes[1], np.ones((3, 1)))


class TwoHeads(nn.Module):
    """A class and a number from the same inputs, and a log-variance for each task, the same for all examples."""

    @nn.compact
    def __call__(self, inputs):
        h = nn.relu(nn.Dense(16)(inputs))
        s = self.param("log_variances", nn.initializers.zeros, (2,))
        return (nn.Dense(2)(h), nn.Dense(1)(h)[:, 0]), jnp.broadcast_to(s, (len(inputs), 2))


@pytest.mark.slow
def test_two_heads_learn_their_log_variances():
    """At the optimum each s is the log of its task's loss: of a target with noise of variance 0.09, log 0.09 = -2.4."""
    x = RNG.normal(size=(512, 3)).astype(np.float32)
    number = x[:, 1] + 0.3 * RNG.normal(size=512).astype(np.float32)
    flipped = RNG.random(512) < 0.2  # so that the classes' loss tends to 0.5, not to 0
    targets = ((x[:, 0] > 0) ^ flipped).astype(np.int32), number
    loss = lo.bind(losses.uncertainty_weighted, losses=(lo.bind(losses.cross_entropy), lo.bind(losses.mse)))
    recipe = lo.Recipe(loss, lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.cosine, init=0.03, total=400))
    fitted = lo.fit(lo.from_linen(TwoHeads()), recipe, train=(x, targets), run=lo.Run(steps=400, batch_size=64))
    assert fitted.diverged_at is None
    (classes, numbers), s = TwoHeads().apply({"params": fitted.state.params}, x)
    task_losses = np.array([losses.cross_entropy(classes, targets[0]).mean(), losses.mse(numbers, targets[1]).mean()])
    np.testing.assert_allclose(s[0], np.log(task_losses), atol=0.1)  # s follows batches of 64, whose losses scatter by a tenth
    assert task_losses[0] < 0.6
    assert task_losses[1] < 0.12


def test_a_config_names_the_parts_and_resolves_to_itself():
    config = {
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "loss": {
            "name": "weighted_sum",
            "losses": [{"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "focal", "gamma": {"name": "linear", "init": 2.0}}],
            "weights": [1.0, {"name": "cosine", "init": 0.5}],
        },
        "optimizer": {"name": "adam"},
        "schedule": {"name": "constant", "value": 0.1},
        "run": {"steps": 100},
        "sweep": {
            "count": 4,
            "space": {"loss": {"weights": {"0": {"uniform": [0.5, 1.5]}}, "losses.0.label_smoothing": {"uniform": [0.0, 0.2]}}},
        },
    }
    made = experiment(config)
    assert made.recipe.loss == of(
        lo.bind(losses.cross_entropy, label_smoothing=0.1),
        lo.bind(losses.focal, gamma=lo.bind(lo.schedules.linear, init=2.0, total=100)),
        weights=[1.0, lo.bind(lo.schedules.cosine, init=0.5, total=100)],
    )
    assert set(made.trials.space) == {"loss.weights.0", "loss.losses.0.label_smoothing"}
    again = experiment(made.resolved)
    assert again.recipe == made.recipe
    assert again.resolved == made.resolved
    for wrong, words in (
        ({"weights": 1.0}, "loss.weights must be a list of numbers"),
        ({"weights": [1.0, "x"]}, r"loss.weights\[1\] must be a number"),
        ({"losses": [{"name": "dise"}], "weights": [1.0]}, r"loss.losses\[0\].name = 'dise' is unknown; did you mean 'dice'"),
        ({"weights": [1.0]}, "loss.weights must have a number for each of the 2 losses, got 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            experiment({**config, "loss": {**config["loss"], **wrong}})


def test_what_cannot_be_summed_is_named():
    with pytest.raises(ValueError, match="2 losses need as many weights, got 1"):
        of(losses.dice, losses.cross_entropy, weights=[1.0])
    with pytest.raises(ValueError, match="whole batch"):
        of(losses.batch_dice, losses.cross_entropy, weights=[1.0, 1.0])(Z, LABELS)
    with pytest.raises(ValueError, match=r"ignore_index -100 is not that of its part .*255"):
        of(lo.bind(losses.dice, ignore_index=255), losses.cross_entropy, weights=[1.0, 1.0])(Z, LABELS)
    with pytest.raises(TypeError, match="weights must be a list"):
        lo.bind(losses.weighted_sum, losses=(lo.bind(losses.dice),), weights=1.0)
    with pytest.raises(ValueError, match="needs at least one loss"):
        losses.weighted_sum(Z, LABELS, losses=(), weights=())
    with pytest.raises(ValueError, match="need as many outputs"):
        losses.weighted_tasks((Z,), (LABELS, LABELS), losses=(losses.dice, losses.dice), weights=(1.0, 1.0))
