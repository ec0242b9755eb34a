import jax
import numpy as np
import pytest
from flax import linen as nn

import lossopt_jax as lo


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(16)(x)))


MODEL = lo.from_linen(MLP())
LINEAR = lo.from_linen(nn.Dense(10))
TASK = lo.data.digits()
PLAN = lo.LanePlan(devices=2, width=2)


def recipe(**optimizer):
    schedule = lo.bind(lo.schedules.warmup_cosine, peak=1e-2, warmup=20, total=200)
    return lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adamw, **optimizer), schedule)


def trials(count=6):
    space = {"schedule.peak": lo.log_uniform(1e-4, 1e-2), "optimizer.weight_decay": lo.log_uniform(1e-5, 1e-1)}
    return lo.sample(recipe(), space, count=count)


def run_sweep(which, steps=20, plan=PLAN, **kw):
    return lo.sweep(MODEL, which, train=TASK.train, evaluate=TASK.evaluate, run=lo.Run(steps=steps, batch_size=32), plan=plan, **kw)


def test_a_lane_equals_the_run_alone():
    which = trials(5)
    swept = run_sweep(which, steps=200)
    for lane in (0, 4):
        alone = lo.fit(MODEL, which.recipes[lane], train=TASK.train, evaluate=TASK.evaluate, run=lo.Run(steps=200, batch_size=32))
        for name in alone.history:
            np.testing.assert_allclose(swept.history[name][lane], alone.history[name], rtol=1e-5)
        assert swept.evaluation["loss"][lane] == pytest.approx(alone.evaluation["loss"], rel=1e-5)
        assert swept.evaluation["accuracy"][lane] == pytest.approx(alone.evaluation["accuracy"], abs=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), swept.state(lane).params, alone.state.params)


def test_a_diverged_lane_is_flagged_and_changes_no_bit_of_another():
    which = list(trials(6).recipes)
    clean = run_sweep(which)
    poisoned = which.copy()
    poisoned[1] = which[1]._replace(schedule=which[1].schedule.replace(peak=1e30))
    poisoned[2] = which[2]._replace(schedule=which[2].schedule.replace(peak=float("nan")))
    swept = run_sweep(poisoned)
    assert swept.diverged_at.tolist()[2] == 0
    assert swept.diverged_at[1] > 0
    assert np.isnan(swept.history["loss"][1, swept.diverged_at[1] + 1 :]).all()
    assert np.isnan(swept.evaluation["loss"][1:3]).all()
    for lane in (0, 3, 4, 5):
        assert swept.diverged_at[lane] == -1
        np.testing.assert_array_equal(swept.history["loss"][lane], clean.history["loss"][lane])
        np.testing.assert_array_equal(swept.evaluation["loss"][lane], clean.evaluation["loss"][lane])
    rows = swept.table()
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["diverged"] * 2
    assert {row["trial"] for row in rows[4:]} == {1, 2}


def test_a_lane_does_not_depend_on_the_number_order_or_neighbours_of_the_lanes():
    which = list(trials(6).recipes)
    whole = run_sweep(which).history["loss"]
    np.testing.assert_array_equal(run_sweep(which[::-1]).history["loss"], whole[::-1])
    np.testing.assert_array_equal(run_sweep(which[2:5]).history["loss"], whole[2:5])
    np.testing.assert_allclose(run_sweep(which, plan=lo.LanePlan(1, 2)).history["loss"], whole, rtol=1e-6)


@pytest.mark.slow  # compiled as users do, since without XLA's optimisation it was the same always
@pytest.mark.parametrize("rows", [8, 32])
def test_what_few_rows_held_out_say_does_not_depend_on_them_either(rows):
    """One group of lanes on a device, two, or a lane alone: the evaluation of so few rows once was compiled another way in each."""
    x = np.random.default_rng(0).normal(size=(64 + rows, 12)).astype(np.float32)
    y = np.abs(x[:, :3]).argmax(1)
    rates = [lo.bind(lo.schedules.constant, value=0.01 * (i + 1)) for i in range(7)]
    recipes = [lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.momentum), rate) for rate in rates]
    model = lo.from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)]))

    def held_out(which, devices):
        data = {"train": (x[:64], y[:64]), "evaluate": (x[64:], y[64:]), "run": lo.Run(steps=12, batch_size=16, evaluate_every=6)}
        return lo.sweep(model, which, plan=lo.LanePlan(devices, 4), **data).evaluations["loss"]

    whole = held_out(recipes, 1)
    np.testing.assert_array_equal(held_out(recipes, 2), whole)
    np.testing.assert_array_equal(held_out(recipes[3:4], 1), whole[3:4])


def test_an_audit_finds_a_lane_the_same_alone_and_a_forged_one_not():
    which = list(trials(4).recipes)
    which[1] = which[1]._replace(schedule=which[1].schedule.replace(peak=1e30))
    data = {"train": TASK.train, "run": lo.Run(steps=20, batch_size=32)}
    swept = lo.sweep(MODEL, which, plan=PLAN, seeds=2, **data)
    rows = lo.audit(MODEL, swept, count=99, **data)
    assert [(row["lane"], row["trial"], row["seed"]) for row in rows] == [(i, i // 2, i % 2) for i in range(8)]
    assert [row["difference"] for row in rows] == [0] * 8
    swept.history["loss"][5, 3] *= 1.5
    swept.history["loss"][6, 4:] = np.nan
    assert [row["difference"] for row in lo.audit(MODEL, swept, count=99, **data)] == [0, 0, 0, 0, 0, pytest.approx(0.5), np.inf, 0]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        lo.audit(MODEL, swept, count=0, **data)
    held_out = lo.sweep(MODEL, which[:1], plan=PLAN, evaluate=TASK.evaluate, **data)
    held_out.evaluations["accuracy"][0, -1] *= 1.25
    assert lo.audit(MODEL, held_out, evaluate=TASK.evaluate, count=1, **data)[0]["difference"] == pytest.approx(0.25)


def test_structures_run_in_groups_and_come_back_in_order():
    """Of other functions, other metrics (a number that is a schedule) and vectors of other lengths."""
    plain, other = recipe(), recipe()._replace(optimizer=lo.bind(lo.optimizers.momentum))
    falling = recipe(weight_decay=lo.bind(lo.schedules.linear, init=0.1, total=6))
    steps = [
        other._replace(schedule=lo.bind(lo.schedules.piecewise_constant, boundaries=b, values=v))
        for b, v in (([3], [0.1, 0.01]), ([3, 5], [0.1, 0.05, 0.01]))
    ]
    run = {"train": TASK.train, "run": lo.Run(steps=6, batch_size=32)}
    swept = lo.sweep(LINEAR, [plain, other, plain, falling, *steps], plan=PLAN, **run)
    np.testing.assert_array_equal(swept.history["loss"][0], swept.history["loss"][2])
    alone = lo.fit(LINEAR, other, **run)
    np.testing.assert_allclose(swept.history["loss"][1], alone.history["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), swept.state(1).opt_state, alone.state.opt_state)
    assert np.isnan(swept.history["optimizer.weight_decay"][0]).all()
    np.testing.assert_allclose(swept.history["optimizer.weight_decay"][3], 0.1 * (1 - np.arange(6) / 6), rtol=1e-5)
    np.testing.assert_allclose(swept.history["learning_rate"][4:, 4], [0.01, 0.05], rtol=1e-6)


def test_seeds_run_each_recipe_and_give_mean_and_spread():
    swept = run_sweep(trials(2), seeds=3)
    assert swept.history["loss"].shape == (6, 20)
    for lane, seed in ((0, 0), (5, 2)):
        alone = lo.fit(MODEL, swept.trials.recipes[lane // 3], train=TASK.train, run=lo.Run(steps=20, batch_size=32, seed=seed))
        np.testing.assert_allclose(swept.history["loss"][lane], alone.history["loss"], rtol=1e-5)
    row = next(row for row in swept.table() if row["trial"] == 1)
    losses = swept.evaluation["loss"][3:]
    assert row["held_out_loss"] == pytest.approx(losses.mean())
    assert row["held_out_loss_sem"] == pytest.approx(losses.std(ddof=1) / np.sqrt(3))


def test_best_and_table_agree_and_edges_are_said():
    swept = run_sweep(lo.grid(recipe(), {"schedule.peak": [1e-5, 1e-3, 1e-1]}))
    assert swept.best() is swept.trials.recipes[swept.table()[0]["trial"]]
    assert float(swept.best().schedule.hparams["peak"]) == pytest.approx(0.1)
    assert swept.edges() == {"schedule.peak": "high"}
    with pytest.raises(ValueError, match="no metric 'held_out_los'; did you mean 'held_out_loss'"):
        swept.best("held_out_los")
    assert swept.best("held_out_accuracy") is swept.trials.recipes[int(swept.evaluation["accuracy"].argmax())]


def test_sweeping_the_loss_ranks_by_accuracy():
    swept = run_sweep(lo.grid(recipe(), {"loss.label_smoothing": [0.0, 0.5]}))
    assert swept.default_metric() == "held_out_accuracy"
    assert swept.table()[0]["held_out_accuracy"] == swept.evaluation["accuracy"].max()


def test_all_diverged_is_an_answer():
    swept = run_sweep(lo.grid(recipe(), {"schedule.peak": [1e30, 1e32]}))
    assert [row["status"] for row in swept.table()] == ["diverged"] * 2
    with pytest.raises(ValueError, match=r"every lane diverged; the smallest learning rate was 9.5e\+29: try 0.001 to 0.1"):
        swept.best()


def test_one_lane():
    swept = run_sweep([recipe()], plan=None)
    assert swept.history["loss"].shape == (1, 20)


def test_one_trace_whatever_the_numbers_and_the_count_of_lanes():
    traces = []

    def apply(params, model_state, inputs, *, key, train):
        traces.append(train)
        return inputs @ params, model_state

    model = lo.Model(lambda key, inputs: (jax.random.normal(key, (64, 10)) * 0.01, {}), apply)
    lo.sweep(model, trials(12), train=TASK.train, run=lo.Run(steps=30, batch_size=8, chunk=7), plan=PLAN)
    assert len(traces) == 1  # however many chunks, turns and lanes


def test_a_plan_beyond_the_machine_is_refused():
    with pytest.raises(ValueError, match=r"devices must be 1 to 2 .* devices=3"):
        run_sweep(trials(2), plan=lo.LanePlan(3, 1))


def test_lanes_that_make_large_arrays_lie_one_at_a_time_on_cpu():
    from lossopt_jax.models import CNN, MLP, RNN
    from lossopt_jax.sweep import default_plan

    images = lo.data.digits_images().train[0]
    assert default_plan(lo.from_linen(CNN()), images, 64, 64) == lo.LanePlan(2, 1)  # patches [64, 4, 4, 144]: 576 KiB
    assert default_plan(lo.from_linen(CNN()), images, 16, 64) == lo.LanePlan(2, 8)
    assert default_plan(lo.from_linen(nn.Conv(4, (3, 3))), images, 16, 64) == lo.LanePlan(2, 1)  # it becomes a grouped one
    assert default_plan(lo.from_linen(RNN()), images, 64, 64) == lo.LanePlan(2, 8)
    wide = lo.from_linen(MLP((512, 512), dropout=0.1))
    assert default_plan(wide, TASK.train[0], 127, 64) == lo.LanePlan(2, 8)  # its parameters are large, not what a batch becomes
    assert default_plan(wide, TASK.train[0], 128, 64) == lo.LanePlan(2, 1)
    halves = lo.from_linen(nn.Dense(512, dtype=jax.numpy.bfloat16))
    assert default_plan(halves, np.zeros((1, 512), np.float32), 64, 64) == lo.LanePlan(2, 8)  # a copy of the kernel has 512 KiB
    assert default_plan(MODEL, TASK.train[0], 64, 6) == lo.LanePlan(2, 3)
    assert default_plan(MODEL, TASK.train[0], 64, 1) == lo.LanePlan(1, 1)


# Spaces.
def test_samples_stay_inside_cover_and_repeat():
    space = {
        "schedule.peak": lo.log_uniform(1e-5, 1.0),
        "schedule.warmup": lo.int_uniform(0, 3),
        "optimizer.b1": lo.choice([0.8, 0.9]),
        "optimizer.weight_decay": lo.uniform(0.0, 0.1),
    }
    drawn = lo.sample(recipe(), space, count=100, seed=5)
    values = [drawn.values(i) for i in range(100)]
    peaks = np.log10([v["schedule.peak"] for v in values])
    assert np.histogram(peaks, 5, (-5, 0))[0].min() >= 15
    assert {v["schedule.warmup"] for v in values} == {0, 1, 2, 3}
    assert {round(v["optimizer.b1"], 6) for v in values} == {0.8, 0.9}
    assert all(0 <= v["optimizer.weight_decay"] <= 0.1 for v in values)
    assert all(a == b for a, b in zip(drawn.recipes, lo.sample(recipe(), space, count=100, seed=5).recipes, strict=True))
    assert any(a != b for a, b in zip(drawn.recipes, lo.sample(recipe(), space, count=100, seed=6).recipes, strict=True))


def test_grid_is_every_combination():
    drawn = lo.grid(recipe(), {"schedule.peak": [1e-3, 1e-2], "loss.label_smoothing": [0.0, 0.1]})
    values = [tuple(drawn.values(i).values()) for i in range(len(drawn))]
    np.testing.assert_allclose(values, [(1e-3, 0), (1e-3, 0.1), (1e-2, 0), (1e-2, 0.1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: lo.log_uniform(0, 1), ValueError, "low must be above 0, got 0"),
        (lambda: lo.log_uniform("1e-3", 1), ValueError, "both finite numbers, got low '1e-3' and high 1"),
        (lambda: lo.normal(0, "1"), ValueError, "got mean 0 and std '1'"),
        (lambda: lo.int_uniform(0, 2**24 + 2), ValueError, "every integer only up to 16777216, got 0 and 16777218"),
        (lambda: lo.uniform(1, 0), ValueError, "low must be at most high"),
        (lambda: lo.uniform(0, float("inf")), ValueError, "finite"),
        (lambda: lo.choice([]), ValueError, "at least one value"),
        (lambda: lo.choice("abc"), TypeError, "needs a list of values, got 'abc'"),
        (lambda: lo.choice([1, "a"]), ValueError, "all words"),
        (lambda: lo.choice([1, float("nan")]), ValueError, "finite numbers"),
        (lambda: lo.int_uniform(0, 1.5), ValueError, "integers"),
        (lambda: lo.int_uniform(0, float("inf")), ValueError, "integers"),
        (lambda: lo.sample(recipe(), {}, count=2.5), ValueError, "a whole number of at least 1, got 2.5"),
        (lambda: run_sweep([recipe()], seeds=1.5), ValueError, "seeds=1.5"),
        (lambda: run_sweep([recipe()], plan="devices=2"), TypeError, "plan must be a lo.LanePlan"),
        (lambda: run_sweep([recipe()], stop=lo.halving), TypeError, "a rule such as lo.halving()"),
        (lambda: lo.sample(recipe(), {"schedule.peek": lo.uniform(0, 1)}, count=1), KeyError, "did you mean 'schedule.peak'"),
        (lambda: lo.sample(recipe(), {"schedule.peak": 0.1}, count=1), TypeError, "needs a distribution"),
        (lambda: lo.sample(recipe(), {"schedule.peak": lo.normal(0.0, 1.0)}, count=2), ValueError, "at least 0, got normal from -3"),
        (lambda: lo.grid(recipe(), {"optimizer.b1": [0.9, 1.7]}), ValueError, "'optimizer.b1' must be at least 0 and below 1"),
        (lambda: lo.sample(recipe(), {}, count=0), ValueError, "count must be a whole number of at least 1, got 0"),
        (lambda: run_sweep([]), ValueError, "at least one trial"),
    ],
)
def test_wrong_spaces_are_named(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


def test_what_is_no_list_of_recipes_is_named():
    run = lo.Run(steps=2, batch_size=8)
    with pytest.raises(TypeError, match="a list of recipes, got one Recipe"):
        lo.sweep(LINEAR, recipe(), train=TASK.train, run=run)
    with pytest.raises(TypeError, match="got Bound"):
        lo.sweep(LINEAR, list(recipe()), train=TASK.train, run=run)
    with pytest.raises(TypeError, match="train: arrays must be numbers, got one of <U3"):
        lo.sweep(LINEAR, [recipe()], train=(TASK.train[0], np.full(len(TASK.train[0]), "oak")), run=run)


def test_large_seeds_are_the_same_run():
    run = lo.Run(steps=5, batch_size=8, seed=2**31 + 5)
    swept = lo.sweep(LINEAR, [recipe()], train=TASK.train, run=run, plan=PLAN)
    np.testing.assert_allclose(swept.history["loss"][0], lo.fit(LINEAR, recipe(), train=TASK.train, run=run).history["loss"], rtol=1e-5)
