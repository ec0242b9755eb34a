"""Verdicts against theory (a quadratic), on planted curves, and on what sweeps, runs and folders hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.diagnose.curves import Given, as_lanes, given_of, measure
from lossopt_jax.diagnose.rules import KINDS
from lossopt_jax.diagnose.verdicts import judged

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
    assert 1e-4 * 83 < float(diagnosis.verdicts[0][0].advice.removeprefix("schedule.value = ")) < 1e-4 * 90
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
