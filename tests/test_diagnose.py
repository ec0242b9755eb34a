"""Verdicts against theory (a quadratic), on planted curves, and on what sweeps, runs and folders hold."""

from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lossopt_jax as lo
from lossopt_jax.diagnose.curves import Given, as_lanes, given_of, measure, plain_of
from lossopt_jax.diagnose.rules import KINDS
from lossopt_jax.diagnose.targets import constant_loss
from lossopt_jax.diagnose.verdicts import judged

DIGITS = str(Path(__file__).parents[1] / "configs" / "digits_mlp.toml")
STEPS = 200
CURVATURES = np.array([4.0, 0.5], np.float32)


def descent(rates):
    """Gradient descent on (4 p0**2 + 0.5 p1**2) / 2 from (1, 1), as a history [lanes, steps] in closed form."""
    shrink = 1 - np.asarray(rates)[:, None, None] * CURVATURES[None, None].astype(float)
    params = shrink ** np.arange(STEPS)[None, :, None]
    with np.errstate(over="ignore"):
        grad_norm = np.sqrt(((CURVATURES * params) ** 2).sum(-1))
        loss = 0.5 * (CURVATURES * params**2).sum(-1)
    rate = np.broadcast_to(np.asarray(rates)[:, None], loss.shape)
    return {"loss": loss, "grad_norm": grad_norm, "update_norm": rate * grad_norm, "learning_rate": rate}


def kinds(what, **kw):
    return [lane[0].kind for lane in lo.diagnose(what, **kw).verdicts]


def test_on_a_quadratic_what_diverges_is_what_lies_above_two_over_the_largest_curvature():
    assert kinds(descent([0.4, 0.49, 0.51, 0.6, 5.0, 1e-4])) == ["right", "right", "diverged", "diverged", "diverged", "too low"]


def test_a_real_sweep_of_a_quadratic_and_its_folder(tmp_path):
    init = lambda key, inputs: ({"p": jnp.ones(2)}, {})  # noqa: E731
    apply = lambda params, state, inputs, *, key, train: (params["p"][None] * inputs[:, :1], state)  # noqa: E731

    def energy(outputs, targets):
        return 0.5 * (jnp.asarray(CURVATURES)[None] * outputs**2).sum(-1)

    rates = [1e-4, 0.4, 0.6, 1e6]
    recipe = lo.Recipe(lo.bind(energy), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    trials = [recipe._replace(schedule=lo.bind(lo.schedules.constant, value=rate)) for rate in rates]
    data = np.ones((16, 1), np.float32), np.zeros(16, np.float32)
    swept = lo.sweep(lo.Model(init, apply), trials, train=data, run=lo.Run(STEPS, 8), plan=lo.LanePlan(devices=1, width=4))
    diagnosis = lo.diagnose(swept)
    assert [lane[0].kind for lane in diagnosis.verdicts] == ["too low", "right", "diverged", "diverged"]
    assert diagnosis.counts() == {"diverged": 2, "too low": 1, "right": 1}
    assert list(diagnosis.counts()) == ["diverged", "too low", "right"]
    assert diagnosis.best == 1
    assert np.isnan(diagnosis.losses[3])
    assert "not finite from step" in diagnosis.verdicts[3][0].measured
    assert diagnosis.verdicts[3][0].advice.startswith("schedule.value = 1e+05")
    # 200 steps of 1e-4 * 16.25 / 2.25 promise a little less than 0.144 e-folds; 12 would take 83 times the rate, or a little more.
    assert 1e-4 * 83 < float(diagnosis.verdicts[0][0].advice.removeprefix("schedule.value = ").split(",")[0]) < 1e-4 * 90
    assert lo.diagnose(lo.save(swept, tmp_path / "kept")).verdicts == diagnosis.verdicts
    # What is measured is what theory says: an update promises rate |g|**2 against 0.5 (4 p0**2 + 0.5 p1**2).
    (lane, *_) = as_lanes(given_of(swept))
    assert measure(lane).leap == pytest.approx(1e-4 * (16 + 0.25) / 2.25, rel=1e-3)


def test_infinite_is_never_mistaken_for_staying_at_the_first_loss():
    stuck = {"loss": np.full(100, 2.3)}
    gone = {"loss": np.where(np.arange(100) < 3, 2.3, np.nan)}
    overflown = {"loss": np.where(np.arange(100) < 50, 2.3, np.inf)}
    assert kinds(gone) == kinds(overflown) == ["diverged"]
    assert kinds(stuck) != ["diverged"]
    assert lo.diagnose(overflown).verdicts[0][0].measured == "not finite from step 50 of 100 on"
    assert kinds({"loss": np.full(100, np.nan)}) == ["diverged"]


def curve(loss, rate, grad=None, update=None):
    """A history of gradient descent; the gradient is that of a quadratic, whose square goes with the loss, unless it is given."""
    rate = np.broadcast_to(rate, (STEPS,)).astype(float)
    grad = np.sqrt(loss) if grad is None else np.broadcast_to(grad, (STEPS,))
    update = rate * grad if update is None else update
    return {
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": grad,
        "update_norm": np.broadcast_to(update, (STEPS,)),
    }


def planted():
    at, rng = np.arange(STEPS), np.random.default_rng(0)
    noise = 1 + 0.02 * rng.normal(size=STEPS)
    learnt = (0.1 + 0.9 * np.exp(-at / 20)) * noise
    cosine = lambda total: 0.1 * 0.5 * (1 + np.cos(np.pi * np.minimum(at / total, 1)))  # noqa: E731
    yield "right", "", curve(learnt, 0.1)
    yield "right", "", curve(learnt, cosine(STEPS))
    yield "stalled", "initialisation", curve(noise, 0.1, update=3e-3)
    yield "stalled", "initialisation", curve(np.ones(STEPS) * 2.3, 0.1, grad=1e-6)
    yield "unstable", "schedule.peak = 0.025", curve(2.3 * noise, 0.1, update=6.0)
    yield "unstable", "schedule.peak = 0.025", curve(np.ones(STEPS) * 2.3, 0.1, grad=np.where(at < 9, 1.0, 1e-6))  # units died
    yield "unstable", "schedule.peak = 0.025", curve(learnt * np.where(at % 50 == 49, 40, 1), 0.1, update=1.0)
    yield "unstable", "schedule.peak = 0.025", curve((0.5 + 0.5 * np.exp(-at / 5)) * noise, 0.1, update=6.0)
    yield "noisy", "schedule.peak = 0.033", curve((0.5 + 0.5 * np.exp(-at / 5)) * noise, 0.1, update=0.6)
    stairs = np.where(at < 120, 0.1, 0.001)
    yield "noisy", "schedule.peak = 0.033", curve(np.where(at < 120, 0.4 + 0.6 * np.exp(-at / 5), 0.1) * noise, stairs)
    yield "too low", "schedule.peak = 1", curve(1 - 1e-3 * at, 0.1, update=0.004)
    yield "too low", "schedule.peak = 10", curve(np.where(at == 0, 0.6, 1.0) * noise, 0.1, update=1e-5)  # an easy first batch
    yield "too low", "run.steps = 400", curve(1 - 0.9 * at / STEPS, 0.1)
    yield "ends early", "schedule.total = 200", curve(np.maximum(1 - at / 40, 0.5) * noise, cosine(20))
    yield "ends late", "schedule.total = 200", curve(learnt, cosine(3 * STEPS))
    yield "ends late", "schedule.warmup = 10", curve(learnt, 0.1 * (at + 1) / STEPS)


def test_a_held_out_loss_that_falls_all_the_time_is_of_a_slow_run_and_one_that_does_not_of_a_sleeping_one():
    """Batches blur the loss by a fifth; the updates promise 3 % of it, of which a twentieth comes, or nothing."""
    rng = np.random.default_rng(0)
    history = curve(1 + 0.2 * rng.normal(size=STEPS), 0.1, grad=1.0, update=1.5e-4)
    falling, asleep = np.linspace(1.0, 0.9985, 10), 1 + 1e-4 * rng.normal(size=10)
    for held_out, kind in ((falling, "too low"), (asleep, "stalled")):
        given = Given({k: v[None] for k, v in history.items()}, {"loss": held_out[None]}, np.arange(20, 201, 20), np.array([-1]), None)
        assert judged(given).verdicts[0][0].kind == kind


@pytest.mark.parametrize(("kind", "advice", "history"), list(planted()))
def test_planted_curves(kind, advice, history):
    recipe = lo.Recipe(
        lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.warmup_cosine, peak=0.1, warmup=0, total=STEPS)
    )
    verdict = lo.diagnose(history, recipe=recipe).verdicts[0][0]
    assert verdict.kind == kind, verdict
    assert advice in verdict.advice
    assert verdict.meaning == KINDS[kind]


def test_labels_fitted_as_amounts():
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    history = curve(0.1 + 0.9 * np.exp(-np.arange(STEPS) / 20), 0.1)
    labels = np.arange(50) % 10
    verdict = lo.diagnose(history, recipe=recipe, targets=labels).verdicts[0][0]
    assert (verdict.kind, verdict.advice) == ("loss does not fit", 'loss.name = "cross_entropy"')
    assert 'loss.name = "binary_cross_entropy"' in lo.diagnose(history, recipe=recipe, targets=labels % 2).verdicts[0][0].advice
    for fitting in (labels + 0.5, 7 * labels, labels + 3):
        assert kinds(history, recipe=recipe, targets=fitting) == ["right"]
    assert kinds(history, recipe=recipe._replace(loss=lo.bind(lo.losses.cross_entropy)), targets=labels) == ["right"]


def test_what_turned_and_what_was_stopped_and_what_is_no_result():
    loss = 0.1 + 0.9 * np.exp(-np.arange(0, STEPS, 2) / 20)  # every second step recorded
    held_out = np.stack([np.where(np.arange(10) < 5, 1.0, 2.0), np.where(np.arange(10) < 5, 1.0, np.nan)])
    given = Given(
        history={"loss": np.stack([loss, np.where(np.arange(100) < 50, loss, np.nan)])},
        evaluations={"loss": held_out},
        evaluation_steps=np.arange(20, 201, 20),
        diverged_at=np.array([-1, -1]),
        stopped_at=np.array([-1, 100]),
    )
    diagnosis = judged(given)
    assert [lane[0].kind for lane in diagnosis.verdicts] == ["over-fits", "right"]
    # Means of three: the least, 1.0, first about step 40; the last three have 2.0.
    assert diagnosis.verdicts[0][0].advice == "run.steps = 40, or more weight decay"
    assert diagnosis.losses.tolist() == [2.0, 1.0]
    with pytest.raises(TypeError, match="a history with a loss, got dict"):
        lo.diagnose({"los": loss})


@pytest.mark.parametrize(
    ("history", "kind"),
    [
        ({"loss": np.ones(200)}, "stalled"),
        ({"loss": -np.ones(200)}, "stalled"),
        ({"loss": np.zeros(200)}, "right"),  # there is nothing to learn
        ({"loss": np.zeros(0)}, "too short"),
        ({"loss": np.ones(1)}, "too short"),
        ({"loss": np.ones(200), "finite": np.arange(200) < 50}, "diverged"),
        ({"loss": np.ones(200), "update_norm": np.where(np.arange(200) < 199, 1, np.inf)}, "diverged"),
        ({"loss": np.ones(1), "finite": np.zeros(1, bool)}, "diverged"),
    ],
)
def test_a_history_that_says_nothing_is_not_right_and_what_became_infinite_diverged(history, kind):
    assert lo.diagnose(history).verdicts[0][0].kind == kind


def test_columns_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"diagnose: update_norm has the shape \(3,\) and loss \(200,\)"):
        lo.diagnose({"loss": np.ones(200), "update_norm": np.ones(3)})


def test_no_lane_is_told_to_go_both_ways():
    """A loss that jumps at the edge and still falls; one that falls while the held-out loss rises."""
    steps, noise = np.arange(STEPS), np.random.default_rng(0).normal(size=STEPS)
    edge = {"loss": 3 - steps / 100 + 0.01 * noise, "grad_norm": np.full(STEPS, 10.0), "update_norm": np.full(STEPS, 1.0)}
    assert [verdict.kind for verdict in lo.diagnose(edge).verdicts[0]] == ["unstable"]
    turned = Given({"loss": (3 - steps / 100)[None]}, {"loss": np.linspace(1, 2, 10)[None]}, np.arange(20, 201, 20), np.array([-1]), None)
    assert [verdict.kind for verdict in judged(turned).verdicts[0]] == ["over-fits"]


@pytest.mark.parametrize("labels", [np.arange(10) % 5, (np.arange(10) % 5).astype(np.float32)[:, None], np.arange(10) % 2 == 0])
def test_labels_under_a_loss_for_amounts_are_seen_in_any_dtype(labels):
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    history = {"loss": np.linspace(1, 0, STEPS)}
    assert lo.diagnose(history, recipe=recipe, targets=labels).verdicts[0][0].kind == "loss does not fit"
    assert lo.diagnose(history, recipe=recipe, targets=labels + 0.5).verdicts[0][0].kind != "loss does not fit"


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ({"loss": np.ones((2, 3, 4))}, r"loss must be \[steps\] or \[lanes, steps\], got the shape \(2, 3, 4\)"),
        ({"loss": ["a", "b"]}, "loss must be numbers, got"),
    ],
)
def test_histories_that_are_none_are_named(history, words):
    with pytest.raises((ValueError, TypeError), match=words):
        lo.diagnose(history)
    with pytest.raises(TypeError, match=r"a recipe must be a lo.Recipe\(loss, optimizer, schedule\), got int"):
        lo.diagnose({"loss": np.ones(20)}, recipe=3)


def gradient_descent(curvatures, start, rate, steps=STEPS, added=0.0):
    """On the quadratic with these curvatures, in closed form: parts shrink by 1 - rate curvature a step."""
    at, curvatures = np.arange(steps)[:, None], np.array(curvatures)
    params = (1 - rate * curvatures) ** at * np.array(start, float)
    grad = np.sqrt(((curvatures * params) ** 2).sum(-1))
    loss = added + 0.5 * (curvatures * params**2).sum(-1)
    return {"loss": loss, "learning_rate": np.full(steps, rate), "grad_norm": grad, "update_norm": rate * grad}


@pytest.mark.parametrize("share", [0.5, 1.0, 1.98])
def test_a_minimum_whose_loss_is_not_0_is_right(share):
    """A tenth of the loss, or a thousandth, can be learnt; the gradient goes to 0 as on any quadratic."""
    for added in (4.5, 1000.0):
        assert kinds(gradient_descent([1.0, 0.5], [1.0, 0.2], share, added=added)) == ["right"]


def weak(learnt, evaluations=20, batch=64, seed=0):
    """Labels that one column tells a little of, P(y) = sigmoid(0.7 a), under logistic regression by gradient descent, or a dead network.

    Returns the history, the held-out losses and accuracies, and the labels.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4000, 3))
    y = (rng.random(4000) < 1 / (1 + np.exp(-0.7 * x[:, 0] - 0.8))).astype(int)
    x = np.concatenate([x if learnt else 0 * x, np.ones((4000, 1))], 1)
    w, history, held_out = np.zeros(4), {"loss": [], "grad_norm": [], "update_norm": [], "learning_rate": []}, {"loss": [], "accuracy": []}
    value = lambda z, y: np.logaddexp(0, z) - y * z  # noqa: E731
    for step in range(STEPS):
        i = rng.permutation(3000)[:batch] if batch < 3000 else np.arange(3000)
        z = x[i] @ w
        grad = ((1 / (1 + np.exp(-z)) - y[i])[:, None] * x[i]).mean(0)
        for name, number in (("loss", value(z, y[i]).mean()), ("grad_norm", np.linalg.norm(grad)), ("learning_rate", 0.5)):
            history[name].append(number)
        history["update_norm"].append(0.5 * history["grad_norm"][-1])
        w = w - 0.5 * grad
        if (step + 1) % (STEPS // evaluations) == 0:
            z = x[3000:] @ w
            held_out["loss"].append(value(z, y[3000:]).mean())
            held_out["accuracy"].append(((z > 0) == y[3000:]).mean())
    return {k: np.array(v) for k, v in history.items()}, {k: np.array(v) for k, v in held_out.items()}, y[:3000]


@pytest.mark.parametrize("batch", [64, 3000])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_learnt_of_noisy_labels_is_told_from_units_that_are_dead(batch, seed):
    """Of both the loss falls by less than a fifth, and then no more; dead units do no better than the share of the labels."""
    for learnt, kind in ((True, "right"), (False, "stalled")):
        history, held_out, labels = weak(learnt, batch=batch, seed=seed)
        columns = {k: v[None] for k, v in history.items()}, {k: v[None] for k, v in held_out.items()}
        given = Given(*columns, np.arange(10, 201, 10), np.array([-1]), None, losses=("binary_cross_entropy",))
        assert judged(given, labels).verdicts[0][0].kind == kind
        if batch == 64 or learnt:  # without labels the one accuracy tells
            assert judged(given).verdicts[0][0].kind == kind
    assert "is not below that of a constant output" in judged(given, labels).verdicts[0][0].measured


def test_a_constant_output_s_loss_of_a_loss_with_weights_is_not_known():
    """Under pos_weight the loss of a network that learns lies above the entropy of the labels."""
    history, held_out, labels = weak(True)
    given = Given(
        {k: (v * 2 if k == "loss" else v)[None] for k, v in history.items()},
        {k: v[None] for k, v in held_out.items()},
        np.arange(10, 201, 10),
        np.array([-1]),
        None,
        losses=("binary_cross_entropy",),
    )
    assert judged(given, labels).verdicts[0][0].kind == "stalled"
    assert judged(given._replace(plain=(False,)), labels).verdicts[0][0].kind == "right"
    loss = lo.bind(lo.losses.binary_cross_entropy)
    recipe = lo.Recipe(loss, lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.5))
    assert [plain_of(recipe._replace(loss=loss.replace(**numbers))) for numbers in ({}, {"pos_weight": 2.0}, {"label_smoothing": 0.1})] == [
        True,
        False,
        False,
    ]


def test_constant_losses():
    """Of three zeros and a one: the entropy of 3/4 and 1/4, the variance 3/16; of amounts by column."""
    labels, entropy = np.array([0, 0, 1, 0]), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert constant_loss("cross_entropy", labels) == pytest.approx(entropy)
    assert constant_loss("binary_cross_entropy", labels.astype(float)) == pytest.approx(entropy)
    assert constant_loss("mse", np.stack([labels, 2 * labels], 1)) == pytest.approx((3 / 16 + 4 * 3 / 16) / 2)
    for loss, targets in (("huber", labels), ("cross_entropy", np.eye(2)[labels]), ("cross_entropy", None), ("mse", np.array(["a"]))):
        assert np.isnan(constant_loss(loss, targets))


def test_units_that_a_step_put_to_sleep_leave_batches_without_gradients():
    """The loss still varies from batch to batch, and the gradient, smoothly or at once, is gone."""
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=STEPS)
    for grad in (0.1 * 0.8 ** np.arange(STEPS) + 1e-9, np.where(np.arange(STEPS) < 5, 0.1, 0.0)):
        history = curve(np.where(np.arange(STEPS) < 3, 1.04, 1.0) * noise, 0.1, grad=grad)
        assert kinds(history) == ["unstable"]


def test_lanes_stopped_by_halving_are_judged_by_what_they_ran():
    """Under a cosine over 200 steps, cut at 66: nothing was over. A schedule longer than the run is too long for every lane."""
    at = np.arange(STEPS)
    history = curve(0.1 + 0.9 * np.exp(-at / 20), 0.05 * (1 + np.cos(np.pi * at / STEPS)))
    warming = curve(0.1 + 0.9 * np.exp(-at / 20), 0.1 * (at + 1) / STEPS)
    for columns in (history, warming):
        cut = {k: np.where(at < 66, v, np.nan)[None] for k, v in columns.items()}
        held_out = {"loss": np.where(np.arange(10, 201, 10) <= 66, 1.0, np.nan)[None]}
        given = Given(cut, held_out, np.arange(10, 201, 10), np.array([-1]), np.array([66]), totals=(200.0,))
        assert judged(given).verdicts[0][0].kind == "right"
        long = judged(given._replace(totals=(600.0,))).verdicts[0][0]
        assert (long.kind, long.advice) == ("ends late", "schedule.total = 200") if columns is history else long.kind == "right"


def test_a_schedule_of_which_the_run_is_a_thousandth_ends_late():
    """The recorded rate is constant to 1e-6 of itself; the recipe's total is what tells."""
    schedule = lo.bind(lo.schedules.cosine, init=0.1, total=1000 * STEPS)
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), schedule)
    history = curve(0.1 + 0.9 * np.exp(-np.arange(STEPS) / 20), np.asarray(recipe.schedule.at(0)(np.arange(STEPS))))
    (verdict, *_) = lo.diagnose(history, recipe=recipe).verdicts[0]
    assert (verdict.kind, verdict.advice) == ("ends late", "schedule.total = 200")
    assert "takes 200000 steps and the run 200" in verdict.measured
    fitting = recipe._replace(schedule=schedule.replace(total=STEPS))
    assert kinds(history, recipe=fitting) == ["right"]


@pytest.mark.parametrize("name", ["held_out_loss", "val_loss"])
def test_a_held_out_loss_in_a_history_is_used(name):
    at = np.arange(STEPS)
    history = {"loss": np.exp(-at / 20), name: 0.5 + np.abs(at - 60) / 100}
    (verdict,) = lo.diagnose(history).verdicts[0]
    assert verdict.kind == "over-fits"
    assert verdict.advice.startswith("run.steps = 61")  # measured after step 60, the 61st
    seldom = history | {name: np.where(at % 10 == 0, history[name], np.nan)}
    assert kinds(seldom) == ["over-fits"]
    assert lo.diagnose(history).losses == pytest.approx([0.5 + 1.39])


def test_a_column_that_no_history_has_is_named_with_those_near():
    with pytest.raises(ValueError, match=r"a history has no column 'grad_nrom'; did you mean 'grad_norm'"):
        lo.diagnose({"loss": np.ones(STEPS), "grad_nrom": np.ones(STEPS)})
    assert kinds({"loss": np.zeros(STEPS), "loss.delta": np.ones(STEPS), "optimizer.b1": np.ones(STEPS)}) == ["right"]


def test_negative_losses_whose_first_is_the_least():
    """A rise by a fiftieth, as of a positive loss, is none to infinity; one by more than the first is from 0 is a divergence."""
    assert kinds({"loss": np.linspace(-5, -4.9, 100)}) == ["unstable"]
    assert kinds({"loss": np.r_[-1.0, np.full(99, -0.999)]}) == ["right"]
    (verdict,) = lo.diagnose({"loss": np.linspace(-5, 5, 100)}).verdicts[0]
    assert verdict.kind == "diverged"
    assert verdict.measured == "the loss ends at 4.55 and began at -5 (threshold: 5 above that)"
    assert kinds({"loss": -5 + 4 * np.exp(-np.arange(STEPS) / 20)}) == ["right"]
    assert kinds({"loss": np.linspace(0, 1, 100)}) == ["diverged"]


@pytest.mark.parametrize(
    ("curvatures", "start", "share", "steps"),
    [
        ([1.0, 1e-3], [0.01, 100], 2.05, 100),
        ([1.0, 1e-3], [0.01, 100], 2.02, 100),
        ([1.0, 1e-3], [0.01, 100], 2.02, 300),
        ([1000.0, 1, 1], [1e-4, 1, 1], 2.05, 100),
        ([100.0, 1], [1e-3, 1], 2.02, 100),
    ],
)
def test_above_the_limit_a_steep_direction_that_starts_small_is_unstable(curvatures, start, share, steps):
    history = gradient_descent(curvatures, start, share / curvatures[0], steps)
    assert lo.diagnose(history).verdicts[0][0].kind in ("unstable", "diverged")
    below = gradient_descent(curvatures, start, 1.98 / curvatures[0], steps)
    assert lo.diagnose(below).verdicts[0][0].kind in ("right", "too low")


def test_the_curvature_along_the_gradients_bounds_the_advice():
    """At 1.5 / the largest curvature, whose direction the first gradient has: to 2 / it the rate may grow by a third, and a tenth less."""
    verdict = lo.diagnose(gradient_descent([1.0, 1e-4], [1.0, 1e3], 1.5)).verdicts[0][0]
    assert verdict.kind == "too low"
    assert float(verdict.advice.removeprefix("the learning rate = ").split(",")[0]) < 2


def test_advice_is_a_line_of_a_config_or_says_how_much():
    assert lo.diagnose({"loss": np.ones(3)}).verdicts[0][0].advice == "run.steps = 100"
    assert lo.diagnose({"loss": np.linspace(1, 3, 100)}).verdicts[0][0].advice == "the learning rate 10 times lower"
    assert "the learning rate 3 times as high" in lo.diagnose({"loss": np.linspace(1, 0.9, 100)}).verdicts[0][0].advice


def test_one_hot_targets_are_labels_of_many():
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    history = {"loss": np.linspace(1, 0, STEPS)}
    labels = np.eye(3)[np.arange(12) % 3]
    advice = {
        name: lo.diagnose(history, recipe=recipe, targets=y).verdicts[0][0].advice for name, y in (("one", labels), ("many", 1 - labels))
    }
    assert advice == {"one": 'loss.name = "cross_entropy"', "many": 'loss.name = "binary_cross_entropy"'}


def test_outputs_that_found_the_mean_and_nothing_else_are_stalled():
    """Targets about 10 with variance 1: the loss falls from 101 by 0.64 a step, as gradient descent at 0.1 does, to what is learnt."""
    rng = np.random.default_rng(0)
    targets, noise = rng.normal(size=3000), 1 + 0.2 * rng.normal(size=STEPS)
    targets = (targets - targets.mean()) / targets.std() + 10
    for least, kind in ((1.0, "stalled"), (0.7, "right")):
        above = 100 * 0.64 ** np.arange(STEPS)
        history = curve((least + above) * noise, 0.1, grad=2 * np.sqrt(above) + 0.5)
        held_out = least + above[9::10] + 0.01 * rng.normal(size=20)
        columns = {k: v[None] for k, v in history.items()}, {"loss": held_out[None]}
        given = Given(*columns, np.arange(10, 201, 10), np.array([-1]), None, losses=("mse",))
        assert judged(given, targets).verdicts[0][0].kind == kind


def test_a_slow_run_on_all_the_data_has_levelled_out_unless_its_rate_was_brought_down():
    """Gradient descent from 0.99 to 0.9 in half-lives of 20 steps: the last fifth brings 1 %; under a falling rate that says nothing."""
    at = np.arange(STEPS)
    loss = 0.9 + 0.09 * 0.5 ** (at / 40)
    assert kinds(curve(loss, 0.01, grad=0.07 * 0.5 ** (at / 80))) == ["right"]
    falling = 0.01 * 0.5 * (1 + np.cos(np.pi * at / STEPS))
    assert kinds(curve(loss, falling, grad=0.07)) == ["too low"]


def test_what_stalled_is_said_by_the_number_that_decided():
    """The held-out loss falls at every evaluation, but all of it at first: its last quarter brings exp(-7) of the whole."""
    rng = np.random.default_rng(0)
    history = curve(1 + 0.2 * rng.normal(size=STEPS), 0.1, grad=1.0, update=1.5e-4)
    held_out = 1 - 1e-3 * (1 - np.exp(-np.arange(10.0)))
    given = Given({k: v[None] for k, v in history.items()}, {"loss": held_out[None]}, np.arange(20, 201, 20), np.array([-1]), None)
    verdict = judged(given).verdicts[0][0]
    assert verdict.kind == "stalled"
    assert verdict.measured.startswith("the last quarter brought 0.1% of all that the held-out loss fell by (threshold: 3%), ")


def test_a_jump_of_a_negative_loss_is_said_in_its_own_numbers():
    """From -1 to -2, with a dip to -3 and a jump to 0.5: 3.5 above the least, where the first was 2 above it."""
    at = np.arange(STEPS)
    loss = np.select([at == 0, at == 20, at == 100], [-1.0, -3.0, 0.5], -2.0)
    (verdict, *_) = lo.diagnose(curve(loss, 0.1, grad=1.0, update=np.where(at == 50, 3.0, 1e-3))).verdicts[0]
    assert verdict.kind == "unstable"
    assert verdict.measured == "the loss jumped to 0.5 after a tenth of the steps, and began at -1 (threshold: 0)"


def test_the_loss_alone_tells_a_rise_a_leap_and_a_two_cycle_from_noise():
    at, noise = np.arange(500), np.random.default_rng(0).normal(size=(50, 500))
    for loss in (
        np.linspace(1, 1.02, 500),  # it only ever rises
        np.r_[2.3, 300.0 * np.exp(-at[:40] / 4) + 2.3, np.full(459, 2.3)],  # a leap in the first steps, and back
        0.6 + 0.5 * (-1.0) ** at,  # to and fro over a valley
    ):
        assert kinds({"loss": loss})[0] == "unstable"
    found = Counter(lane[0].kind for lane in lo.diagnose({"loss": 2.3 + 0.3 * noise}).verdicts)  # goes nowhere, by chance up or down
    assert found["unstable"] == 0
    verdict = lo.diagnose({"loss": np.exp(-at / 50)}).verdicts[0][0]
    assert verdict.kind == "right"
    assert "the loss alone" in verdict.measured


def test_a_held_out_loss_that_only_looks_as_if_it_had_turned():
    at, rng = np.arange(400), np.random.default_rng(0)
    loss = np.geomspace(1, 0.05, 400)
    for deviation in (0.02, 0.1, 0.3):  # of single evaluations: the more of them, the luckier the best
        held_out = (0.3 + 0.7 * np.exp(-at / 60)) * (1 + deviation * rng.normal(size=(20, 400)))
        found = lo.diagnose({"loss": np.tile(loss, (20, 1)), "val_loss": held_out})
        assert found.counts() == {"right": 20}
    turned = 0.3 + 0.7 * np.exp(-at / 60) + 0.4 * np.maximum(0, at / 400 - 0.4)
    assert kinds({"loss": loss, "val_loss": turned * (1 + 0.02 * rng.normal(size=400))}) == ["over-fits"]
    rising = np.r_[np.geomspace(1, 0.05, 200), np.geomspace(0.05, 0.4, 200)]  # so does the training loss: that is no over-fitting
    assert "over-fits" not in kinds({"loss": rising, "val_loss": 1.1 * rising})


def test_a_held_out_loss_that_is_not_finite_is_not_right():
    half = np.geomspace(1, 0.1, 250)
    found = lo.diagnose({"loss": np.geomspace(1, 0.01, 500), "held_out_loss": np.r_[half, np.full(250, np.inf)]})
    assert found.verdicts[0][0].kind == "diverged"
    assert found.verdicts[0][0].measured.startswith("the held-out loss was not finite after 251 of 500 steps")
    assert found.best is None
    sparse = np.full(500, np.nan)
    sparse[9::10] = np.geomspace(1, 0.1, 50)  # NaN where there was no evaluation
    assert kinds({"loss": np.geomspace(1, 0.01, 500), "held_out_loss": sparse}) == ["right"]
    x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    wrong = np.where(np.arange(64)[:, None] == 3, np.nan, x).astype(np.float32)
    fitted = lo.fit(lo.from_linen(nn.Dense(1)), recipe, train=(x, x), evaluate=(wrong, x), run=lo.Run(steps=50, batch_size=16))
    assert lo.diagnose(fitted).verdicts[0][0].kind == "diverged"


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match=r"is of a folder's history\.npz: give the folder"):
        lo.diagnose({"loss": np.ones(50), "evaluation_steps": np.arange(5)})
    with pytest.raises(ValueError, match="targets are for what the loss makes of them, which is not known here: give the recipe too"):
        lo.diagnose({"loss": np.ones(50)}, targets=np.arange(5))


def test_a_finding_of_fewer_steps_than_the_config_has_is_judged_by_its_constant_rates(tmp_path, lossopt):
    found = lossopt("find-lr", DIGITS, "--count", "8", "--seeds", "1", "--steps", "40", "--out", "found")
    assert found.returncode == 0, found.stderr
    folder, result = lo.diagnose(tmp_path / "found"), lo.diagnose(lo.load(tmp_path / "found"))
    assert folder.counts() == result.counts()
    assert "ends late" not in folder.counts()


def test_a_rate_of_zero_is_too_low_and_not_a_dead_network():
    still = {"loss": np.full(500, 1.0), "learning_rate": np.zeros(500), "grad_norm": np.ones(500), "update_norm": np.zeros(500)}
    verdict = lo.diagnose(still).verdicts[0][0]
    assert verdict.kind == "too low"
    assert verdict.advice.startswith("the learning rate above 0")
