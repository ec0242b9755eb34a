"""The rate finder against theory (a quadratic), against planted failures, and the range test's rules against hand-worked curves."""

import math
import tomllib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax import lr_finder, range_test
from lossopt_jax.lr_finder import find_lr
from lossopt_jax.range_test import lr_range_test
from lossopt_jax.report import tables

CURVATURES = np.array([4.0, 0.5], np.float32)
CONSTANT = lo.bind(lo.schedules.constant, value=0.1)
RUN = lo.Run(steps=40, batch_size=8)
PLAN = lo.LanePlan(devices=2, width=8)


def quadratic(start=1.0):
    """Parameters [2] from `start`; with `energy` the loss is (4 p0**2 + 0.5 p1**2) / 2, whatever the batch."""
    init = lambda key, inputs: ({"p": jnp.full(2, start)}, {})  # noqa: E731
    apply = lambda params, state, inputs, *, key, train: (params["p"][None] * inputs[:, :1], state)  # noqa: E731
    return lo.Model(init, apply)


def energy(outputs, targets):
    return 0.5 * (jnp.asarray(CURVATURES)[None] * outputs**2).sum(-1)


QUADRATIC = quadratic()
ONES = np.ones((16, 1), np.float32), np.zeros(16, np.float32)


def recipe(loss=energy, optimizer=lo.optimizers.sgd, schedule=CONSTANT, **optimizer_numbers):
    return lo.Recipe(lo.bind(loss), lo.bind(optimizer, **optimizer_numbers), schedule)


def find(which=None, model=QUADRATIC, train=ONES, run=RUN, **kw):
    return find_lr(model, which or recipe(), train=train, run=run, **{"plan": PLAN, "seeds": 1, "count": 16, **kw})


def theory(rate, steps=40):
    """The loss of gradient descent after so many steps: each coordinate shrinks by 1 - rate curvature a step."""
    return 0.5 * (CURVATURES * (1 - rate * CURVATURES) ** (2 * steps)).sum()


@pytest.fixture(scope="module")
def found():
    return find(low=1e-3, high=10.0, count=40)


def test_on_a_quadratic_the_best_rate_and_the_edge_are_theirs(found):
    """Gradient descent diverges above 2 / 4; the rate that is best after 40 steps is where both coordinates shrink alike, near 2 / 4.5."""
    rates = np.geomspace(1e-3, 10.0, 40)
    stable = rates[[theory(rate) < theory(0.0) for rate in rates]]
    assert stable.max() < 0.5 < found.edge < 0.5 * (rates[1] / rates[0]) ** 2
    best = stable[np.argmin([theory(rate) for rate in stable])]
    assert 0.5 * best <= found.suggested <= best
    assert found.range[0] <= found.suggested <= found.range[1] < found.edge
    assert found.metric == "train_loss"
    assert found.start == pytest.approx(theory(1e-3, 0), rel=1e-5)


def test_each_rate_is_an_honest_run_from_the_same_parameters(found):
    for row in found.table()[:24]:
        expected = np.mean([theory(row["learning_rate"], steps) for steps in range(35, 40)])  # the last eighth of 40 steps
        assert row["loss"] == pytest.approx(expected, rel=1e-3)
    assert [row["region"] for row in found.table()] == sorted(
        [row["region"] for row in found.table()], key=["too low", "just right", "too high"].index
    )


def test_the_suggestion_goes_into_the_schedules_own_number(found):
    def placed(schedule):
        return lr_finder.judged(recipe(schedule=schedule), found.rates, found.swept)

    rate = found.suggested
    s = lo.schedules
    for schedule, path in (
        (lo.bind(s.warmup_cosine, peak=1.0, warmup=5, total=40), "schedule.peak"),
        (lo.bind(s.cosine, init=1.0, total=40), "schedule.init"),
        (CONSTANT, "schedule.value"),
    ):
        finding = placed(schedule)
        assert finding.path == path
        assert finding.recipe.schedule.fn is schedule.fn
        assert float(lo.numbers(finding.recipe)[path]) == pytest.approx(rate, rel=1e-6)
        assert finding.config_line.partition("  #")[0] == f"{path.removeprefix('schedule.')} = {lr_finder.short(rate)}"
        assert "  # in [schedule]" in finding.config_line
        assert lr_finder.override(finding.path, finding.recipe, recipe(schedule=schedule)) == f"{path}={lr_finder.short(rate)}"
    stairs = placed(lo.bind(s.piecewise_constant, boundaries=[10], values=[1.0, 0.1]))
    np.testing.assert_allclose(stairs.recipe.schedule.hparams["values"], [rate, rate / 10], rtol=1e-6)
    assert stairs.config_line == f"values = [{lr_finder.short(rate)}, {lr_finder.short(rate / 10)}]  # in [schedule]"
    given = recipe(schedule=lo.bind(s.join, schedules=(CONSTANT, CONSTANT), boundaries=[10]))
    joined = placed(given.schedule)
    assert joined.recipe.schedule == lo.bind(s.constant, value=rate)
    assert joined.config_line == f'value = {lr_finder.short(rate)}  # in [schedule], whose name is "constant"'
    change = lr_finder.override(joined.path, joined.recipe, given)
    assert tomllib.loads(change) == {"schedule": {"name": "constant", "value": pytest.approx(rate, rel=0.05)}}


@pytest.mark.parametrize(("rate", "text"), [(0.00324, "3.2e-3"), (0.1, "0.1"), (3.16e-5, "3.2e-5"), (1e-7, "1e-7"), (123.0, "120.0")])
def test_short_rates_are_toml_floats(rate, text):
    assert lr_finder.short(rate) == text
    assert tomllib.loads(f"x = {text}")["x"] == pytest.approx(rate, rel=0.05)
    assert isinstance(tomllib.loads(f"x = {text}")["x"], float)


def planted(found, training, held_out=None):
    """The finding of losses [rates] of steps, [40, steps], as if `found`'s sweep had come to them."""
    training = np.asarray(training, np.float32)
    finite = np.isfinite(training)
    evaluations = {} if held_out is None else {"loss": np.asarray(held_out, np.float32)[:, None]}
    diverged_at = np.where(finite.all(1), -1, finite.argmin(1))
    swept = replace(found.swept, history={"loss": training}, evaluations=evaluations, diverged_at=diverged_at)
    return lr_finder.judged(recipe(), found.rates, swept)


def test_what_is_wrong_is_said(found):
    fallen = np.exp(-np.linspace(0, 6, 40))[None]  # a run that has learnt what there is
    bowl = np.minimum(0.1 + 0.1 * np.arange(-20, 20)[:, None] ** 2, 1.0)
    fine = planted(found, bowl + (1 - bowl) * fallen)
    assert fine.verdicts == {}
    assert fine.suggested == found.rates[20]
    for bad, kind in (
        (planted(found, np.full((40, 40), np.nan)), "not_finite_at_start"),
        (planted(found, np.where(np.arange(40)[None] < 30 - np.arange(40)[:, None] // 2, 1.0, np.nan)), "all_diverge"),
        (planted(found, np.where(np.arange(40) < 7, 1.0, np.nan)[None] + np.zeros((40, 1))), "not_finite_data"),
        (planted(found, bowl + (1 - bowl) * fallen, held_out=np.linspace(1.005, 1.0, 40)), "nothing_held_out"),
        (planted(found, bowl + (1 - bowl) * fallen, held_out=np.full(40, np.nan)), "not_finite_held_out"),
        (planted(found, np.ones((40, 40)) + 1e-3 * bowl), "nothing_learnt"),
    ):
        assert bad.verdicts.keys() == {kind}
        assert math.isnan(bad.suggested)
        assert bad.config_line == ""
        assert bad.recipe == recipe()
        assert {row["region"] for row in bad.table()} == {""}
        assert tables.finding_lines(bad) == ["no learning rate to suggest", f"note: {bad.verdicts[kind]}"]
    level = np.minimum(0.1 + np.arange(40)[:, None] / 20, 1.0)
    falling, rising = planted(found, level[::-1] + (1 - level[::-1]) * fallen), planted(found, level + (1 - level) * fallen)
    assert falling.verdicts.keys() == {"range_too_low"}
    assert falling.suggested == found.rates[-1]
    assert rising.verdicts.keys() == {"range_too_high"}
    assert rising.suggested == found.rates[0]
    steady = planted(found, 1 - (1 - bowl) * np.linspace(0, 1, 40)[None])
    assert steady.verdicts.keys() == {"budget_too_short"}
    # Windows of 8 steps, 8/39 apart; from the mean of the first two steps (0.5/39) to that of the last eight (35.5/39): 8/35 = 23 %.
    assert "23% of all that it learnt" in steady.verdicts["budget_too_short"]


def test_data_that_is_not_finite_and_a_range_too_low_end_to_end():
    nan = find(train=(np.full((16, 1), np.nan, np.float32), ONES[1]))
    assert nan.verdicts.keys() == {"not_finite_at_start"}
    low = find(low=1e-5, high=1e-2)
    assert low.verdicts.keys() == {"range_too_low", "budget_too_short"}
    assert low.suggested == pytest.approx(1e-2)


def test_no_steps_and_wrong_arguments(tmp_path):
    empty = find(run=lo.Run(steps=0))
    assert empty.verdicts.keys() == {"no_steps"}
    assert math.isnan(empty.suggested)
    empty.plot(tmp_path / "empty.png")
    for wrong, message in (
        ({"low": 0.0}, "low must be above 0"),
        ({"low": float("nan")}, "low must be above 0"),
        ({"low": 1.0, "high": 1.0}, "high must be above low"),
        ({"high": math.inf}, "high must be above low and finite"),
        ({"count": 2}, "count must be at least 3"),
        ({"seeds": 0}, "seeds must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            find(**wrong)
    with pytest.raises(TypeError, match=r"recipe\.loss must be bound"):
        find(lo.Recipe(energy, lo.bind(lo.optimizers.sgd), CONSTANT))
    with pytest.raises(ValueError, match="low must be above 0 and high above low"):
        lr_range_test(QUADRATIC, recipe(), train=ONES, run=RUN, low=1.0, high=0.1)
    with pytest.raises(ValueError, match=r"run\.steps must be at least 2"):
        lr_range_test(QUADRATIC, recipe(), train=ONES, run=lo.Run(steps=1))


def test_the_rule_on_planted_losses():
    """Of [count, seeds] losses alone: a seed that fails, an offset between seeds, a cliff, losses below and at 0."""
    rates = np.geomspace(1e-4, 1.0, 33)
    bowl = 1.0 + 0.5 * (np.log10(rates) + 2) ** 2

    def best(losses, start=5.0):
        excess, _, _ = lr_finder.capped_excess(losses, start)
        return rates[(lr_finder.smoothing(rates) @ excess).mean(1).argmin()]

    assert best(bowl[:, None]) == pytest.approx(1e-2)
    # One seed starts far above the other: where each of them is best counts all the same.
    assert best(np.stack([bowl, bowl + 3.0], 1)) == pytest.approx(1e-2)
    one_fails = np.stack([bowl, np.where(rates > 4e-3, np.nan, bowl)], 1)
    assert best(one_fails) < 4e-3
    cliff = np.where(rates > 1.2e-2, 1e9, 2.0 - 0.2 * np.arange(33) / 33)
    assert 2e-3 < best(cliff[:, None]) < 1e-2  # a step back from the edge
    assert best(bowl[:, None] - 3.0, start=2.0) == pytest.approx(1e-2)
    assert best((bowl - 1.0)[:, None], start=2.0) == pytest.approx(1e-2)
    assert np.isnan(lr_finder.capped_excess(np.full((5, 2), np.nan))[2])


def test_nothing_of_the_callers_is_touched_and_ctrl_c_stops():
    mine = recipe(schedule=lo.bind(lo.schedules.cosine, init=0.1, total=40))
    x, y = jnp.asarray(ONES[0]), jnp.asarray(ONES[1])
    steps = []
    find(mine, train=(x, y), on_chunk=[lambda progress: steps.append(progress.step)])
    assert steps == [40]
    assert mine == recipe(schedule=lo.bind(lo.schedules.cosine, init=0.1, total=40))
    np.testing.assert_array_equal(x, ONES[0])

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(mine, on_chunk=[interrupt])


def test_the_recipes_other_numbers_stay_and_prodigy_has_a_factor():
    finding = find(recipe(optimizer=lo.optimizers.prodigy, initial_distance=0.1)._replace(clip_norm=1.0), low=1e-3, high=100.0)
    assert 0.1 < finding.suggested < 10
    for lane in finding.swept.trials.recipes:
        assert lane.clip_norm == 1.0
        assert lane.optimizer.hparams["initial_distance"] == pytest.approx(0.1)


def test_seeds_say_how_sure():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    data = x, x @ np.ones(3, np.float32)

    def init(key, inputs):
        return {"w": jax.random.normal(key, (3,))}, {}

    def apply(params, state, inputs, *, key, train):
        return (inputs * params["w"][None]).sum(-1), state

    finding = find(recipe(lo.losses.mse), lo.Model(init, apply), data, evaluate=data, seeds=3, low=1e-3, count=16)
    assert finding.metric == "held_out_loss"
    assert finding.losses.shape == (16, 3)
    assert finding.seed_rates.shape == (3,)
    assert finding.seed_rates.min() <= finding.suggested <= finding.seed_rates.max()
    row = finding.table()[8]
    assert row["loss"] == pytest.approx(finding.losses[8].mean())
    assert row["loss_std"] == pytest.approx(finding.losses[8].std(ddof=1))
    lines = tables.finding_lines(finding)
    assert lines[0] == finding.config_line
    assert any("how sure: the 3 seeds" in line for line in lines)
    assert any("most seeds diverge" in line for line in lines)


def test_one_that_was_killed_goes_on_to_the_same_finding_and_a_folder_gives_it_back(found, tmp_path):
    def die(progress):
        raise KeyboardInterrupt

    given = {"low": 1e-3, "high": 10.0, "count": 40, "run": replace(RUN, chunk=10), "checkpoint": tmp_path / "state", "save_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        find(**given, on_chunk=die)
    assert list((tmp_path / "state").glob("*/state-*10"))
    again = find(**given)
    assert again.losses.tobytes() == found.losses.tobytes()
    loaded = lo.load(lo.save(again, tmp_path / "kept"))
    assert loaded.losses.tobytes() == found.losses.tobytes()
    for name in ("suggested", "range", "edge", "metric", "start", "path", "config_line", "verdicts"):
        assert getattr(loaded, name) == getattr(found, name)


def test_the_picture_is_drawn_for_every_kind_of_finding(found, tmp_path):
    from lossopt_jax.report import lr_plot

    figure = lr_plot.finding_figure(found)
    axis = figure.axes[0]
    words = {text.get_text().replace("\n", " ") for text in axis.texts}
    assert words == {"too low", "just right", "too high"}
    assert figure.get_suptitle() == f"Learning rate {found.suggested:.2g}   (value = {lr_finder.short(found.suggested)})"
    assert axis.get_xscale() == "log"
    for name, finding in (("found", found), ("diverged", planted(found, np.full((40, 40), np.nan)))):
        finding.plot(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_range_test_is_one_run_of_a_growing_rate():
    test = lr_range_test(QUADRATIC, recipe(), train=ONES, run=lo.Run(steps=60), low=1e-4, high=10.0)
    rates = np.geomspace(1e-4, 10.0, 60)
    np.testing.assert_allclose(test.rates, rates[: len(test.rates)])
    params = np.ones(2)
    for rate, loss in zip(rates, test.losses, strict=False):
        assert loss == pytest.approx(0.5 * (CURVATURES * params**2).sum(), rel=1e-4)
        params = params * (1 - rate * CURVATURES)
    # Stopped where the running mean left four times its least behind, after the rate had passed 2 / 4.
    assert test.rates[-1] > 0.5
    assert len(test.rates) < 60
    assert (test.smoothed <= 4 * np.minimum.accumulate(test.smoothed)).all()
    assert test.rates[6] <= test.valley < 0.5
    assert test.rates[6] <= test.steep < 0.5


def test_the_range_tests_rules_by_hand():
    rates = np.geomspace(1e-3, 1.0, 10)
    # The longest falling subsequence is 9, 8, 6, 4, 3 and ends at index 7: from 7 - 5 = 2, a third is 1.67, so index 2 + 1 + 0.
    losses = np.array([9.0, 8, 10, 6, 7, 4, 5, 3, 20, 30])
    assert range_test.valley(rates, losses) == rates[3]
    assert range_test.steep(rates, losses) == rates[2]  # falls by 4, from 10 to 6
    assert math.isnan(range_test.valley(rates[:0], losses[:0]))
    assert math.isnan(range_test.steep(rates[:1], losses[:1]))
    # Debiased: the mean of a constant is the constant, and the second of 1, 2 is (0.98 * 0.02 + 0.02 * 2) / (1 - 0.98**2).
    np.testing.assert_allclose(range_test.running_mean(np.full(5, 3.0)), 3.0)
    assert range_test.running_mean(np.array([1.0, 2.0]))[1] == pytest.approx((0.98 + 2) / 1.98)


def test_rates_that_are_all_worse_than_none_teach_nothing():
    """Above the edge at 0.5 nothing but the loss of the first batch, before any update, tells that all of it is far too high."""
    far = find(low=0.51, high=0.53)
    assert math.isnan(far.suggested)
    assert far.start == pytest.approx(theory(1.0, 0), rel=1e-5)
    assert "far above where it began: lower low" in far.verdicts["nothing_learnt"]


def test_the_range_of_a_loss_below_zero_is_of_what_was_learnt():
    """An offset changes no gradient, so it must not make rates good that learn nothing."""
    below = find(recipe(lambda outputs, targets: energy(outputs, targets) - 100.0), low=1e-3, high=10.0, count=40)
    assert 0.02 < below.range[0] <= below.suggested <= below.range[1] < below.edge
    nothing = find(recipe(lambda outputs, targets: 0.0 * energy(outputs, targets)))
    assert list(nothing.verdicts) == ["nothing_learnt"]


def test_one_row_that_is_not_finite_is_told_from_rates_that_are_too_high():
    x, y = ONES[0].copy(), ONES[1]
    order = lo.data.batch_indices(16, 4, seed=0, first=0, count=4)
    x[order[3, 0]] = np.nan  # in the batch of step 3
    bad = find(train=(x, y), run=lo.Run(steps=20, batch_size=4))
    assert bad.verdicts.keys() == {"not_finite_data"}
    assert "not finite from step 3 on, whatever the rate: look for NaN" in bad.verdicts["not_finite_data"]
    assert find(low=1e25, high=1e30).verdicts.keys() == {"all_diverge"}
    assert find(low=1e25, high=1e30, seeds=2).verdicts.keys() == {"all_diverge"}
    # Of a batch whose loss is twice another's, and of seeds that meet the row in step 0 or 1 while others do not.
    told = lr_finder._whatever_the_rate
    easy_first, at_once = np.full((3, 1, 9), 1.0), np.full((3, 2, 9), 1.0)
    easy_first[:, :, 4], easy_first[:, :, 5:] = 2.0, np.nan
    at_once[:, 0, 5:], at_once[:, 1, 1:] = np.nan, np.nan
    assert told(easy_first, np.full((3, 1), 5), 1.0)
    assert told(at_once, np.array([[5, 1]] * 3), 1.0)
    assert not told(at_once[:, 1:], np.array([[1]] * 3), 1.0)  # a rate may do that
    at_once[:, 1] = np.nan
    assert told(at_once, np.array([[5, 0]] * 3), 1.0)
    easy_first[:, 0, 4] = 2.0, 4.0, 8.0  # in proportion to the rate
    assert not told(easy_first, np.full((3, 1), 5), 1.0)


def test_the_shortest_budgets_are_said_to_be_short():
    for steps in (2, 5, 9):
        assert "too few to judge a rate by" in find(run=lo.Run(steps=steps, batch_size=8)).verdicts["budget_too_short"]
    assert "too few" not in str(find(run=lo.Run(steps=10, batch_size=8)).verdicts)


def test_a_held_out_loss_that_learns_nothing_has_no_rate(found):
    """What the initial outputs settle by, a hundredth or two, is nothing where the training loss falls to nothing."""
    fallen, bowl = np.exp(-np.linspace(0, 6, 40))[None], np.minimum(0.01 + 0.1 * np.arange(-20, 20)[:, None] ** 2, 1.0)
    training = bowl + (1 - bowl) * fallen

    def held_out(fall):
        return 1.0 - fall + 0.1 * np.square(np.arange(40) / 10 - 1.5) * (np.arange(40) > 15)

    for fall, kinds in ((0.005, {"nothing_held_out"}), (0.02, {"nothing_held_out"}), (0.2, set())):
        ends = held_out(fall)
        ends[:5] = 1.0
        assert planted(found, training, held_out=ends).verdicts.keys() == kinds
    # A weak signal that the training loss falls by no more for is learnt.
    weak = 1 - 0.05 * (1 - training)
    ends = held_out(0.02)
    ends[:5] = 1.0
    assert planted(found, weak, held_out=ends).verdicts == {}
    ends = held_out(0.005)
    ends[:5] = 1.0
    longer = lr_finder.judged(recipe(), found.rates, planted(found, training, held_out=ends).swept, early=True)
    assert math.isfinite(longer.suggested)  # as `tune` looks, before a longer run


def test_a_weak_signal_after_an_easy_first_batch_is_learnt(found):
    """Losses about 1 whose batches differ by 0.2, the first of them 0.7; the best rate learns a twentieth, at once."""
    bowl = np.minimum(0.1 * np.arange(-20, 20)[:, None] ** 2, 1.0)
    batches = np.where(np.arange(40) == 0, -0.3, np.where(np.arange(40) % 2, 0.2, -0.2))[None]
    weak = planted(found, 1 - 0.05 * (1 - bowl) * (np.arange(40) > 0) + batches, held_out=0.95 + 0.05 * bowl[:, 0])
    assert weak.verdicts == {}
    assert weak.suggested == found.rates[20]
    assert planted(found, np.ones((40, 40)) + batches).verdicts.keys() == {"nothing_learnt"}
    # A held-out loss that falls by little where the training loss falls by little more.
    for learnt, kinds in ((0.02, set()), (0.2, {"nothing_held_out"})):
        training = 1 - learnt * (1 - bowl) * (np.arange(40) > 0)
        assert planted(found, training, held_out=0.992 + 0.008 * bowl[:, 0]).verdicts.keys() == kinds


def test_a_range_test_says_what_is_wrong_with_it():
    def test_of(train=ONES, which=None, steps=100, **range_):
        return lr_range_test(QUADRATIC, which or recipe(), train=train, run=lo.Run(steps=steps, batch_size=8), **range_)

    assert test_of(low=1e-4).verdicts == {}
    nothing = test_of(which=recipe(lambda outputs, targets: 0 * energy(outputs, targets) + 1))
    nan = test_of(train=(np.full((16, 1), np.nan, np.float32), ONES[1]))
    once = test_of(low=100.0, high=1e4)
    narrow = test_of(low=1e-7, high=1e-6)
    for test, kind in ((nothing, "nothing_learnt"), (nan, "not_finite_at_start"), (once, "diverges_at_once"), (narrow, "nothing_learnt")):
        assert test.verdicts.keys() == {kind}
        assert math.isnan(test.valley)
        assert math.isnan(test.steep)
    assert "after 1 of 100 steps, at a rate of 1e+02: lower low" in once.verdicts["diverges_at_once"]
    assert test_of(low=1e-5, high=1e-2).verdicts.keys() == {"range_too_low"}
    assert test_of(low=3e-2, high=10.0).verdicts.keys() == {"range_too_high"}
    assert test_of(low=1e-4, steps=30).verdicts.keys() == {"budget_too_short"}
