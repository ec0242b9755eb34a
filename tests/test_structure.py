"""Swept structure that is not of the recipe: the batch size and the model's own numbers."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import lossopt_jax as lo
from lossopt_jax.models import MLP
from lossopt_jax.sweep import by_structure, program

TASK = lo.data.digits()
PLAN = lo.LanePlan(devices=2, width=2)
RECIPE = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=1e-2))
SPACE = {"schedule.value": [1e-3, 1e-2], "run.batch_size": [8, 32], "model.widths": [(8,), (8, 4)]}
DATA = {"train": TASK.train, "evaluate": TASK.evaluate, "run": lo.Run(steps=18, chunk=5)}


def build(widths):
    return lo.from_linen(MLP(widths, output_shape=(10,)))


@pytest.fixture(scope="module")
def swept():
    compiled = program._compiled.cache_info().misses
    found = lo.sweep(build, lo.grid(RECIPE, SPACE), plan=PLAN, **DATA)
    assert program._compiled.cache_info().misses == compiled + 4
    return found


def test_each_model_and_batch_size_is_compiled_once_and_its_lanes_are_those_of_the_run_alone(swept):
    compiled = program._compiled.cache_info().misses
    trials = swept.trials
    assert by_structure(trials) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert trials.labels(3) == "batch_size 32, widths [8, 4]"
    for trial in (0, 7):
        model, run = trials.setup(trial, build, DATA["run"])
        assert run.batch_size == (8, 32)[trial % 4 // 2]
        alone = lo.sweep(model, [trials.recipes[trial]], **{**DATA, "run": run}, plan=PLAN)
        np.testing.assert_array_equal(alone.history["loss"][0], swept.history["loss"][trial])
        jax.tree.map(np.testing.assert_array_equal, alone.state(0).params, swept.state(trial).params)
    alone = lo.fit(model, trials.recipes[7], **{**DATA, "run": run})
    np.testing.assert_allclose(alone.history["loss"], swept.history["loss"][7], rtol=1e-5)
    assert all(row["difference"] == 0 for row in lo.audit(build, swept, **DATA, count=2))
    assert program._compiled.cache_info().misses == compiled  # the very same programs


def test_the_values_are_in_the_table_and_come_back_from_a_folder(swept, tmp_path):
    (row,) = [row for row in swept.table() if row["trial"] == 3]
    assert (row["run.batch_size"], row["model.widths"]) == (32, "[8, 4]")
    assert set(swept.importance()) == set(SPACE)
    again = lo.load(lo.save(swept, tmp_path))
    assert again.table() == swept.table()
    assert [again.trials.structure(i) for i in range(8)] == [swept.trials.structure(i) for i in range(8)]
    assert again.trials.structure(3) == {"run.batch_size": 32, "model.widths": (8, 4)}


def test_halving_compares_over_all_and_a_killed_sweep_goes_on(tmp_path):
    trials, how = lo.grid(RECIPE, SPACE), {"plan": PLAN, "stop": lo.halving(reduction=2, rungs=2)}
    whole = lo.sweep(build, trials, **DATA, **how)
    assert (whole.stopped_at >= 0).sum() == 4

    def killed(progress):
        if progress.wave == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lo.sweep(build, trials, **DATA, **how, checkpoint=tmp_path, save_every=0.0, on_chunk=killed)
    resumed = lo.sweep(build, trials, **DATA, **how, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    np.testing.assert_array_equal(resumed.stopped_at, whole.stopped_at)
    with pytest.raises(ValueError, match="not the same models and batch sizes"):
        lo.sweep(build, lo.grid(RECIPE, {**SPACE, "run.batch_size": [8, 16]}), **DATA, **how, checkpoint=tmp_path)


def test_a_search_asks_for_them_and_a_population_leaves_them():
    space = {"schedule.value": lo.log_uniform(1e-3, 1e-1), "run.batch_size": lo.choice([8, 32]), "model.widths": lo.choice([(8,), (8, 4)])}
    found = lo.search(build, RECIPE, space, **DATA, count=8, rounds=2, plan=PLAN)
    assert len(found.table()) == 8
    assert {row["model.widths"] for row in found.table()} == {"[8]", "[8, 4]"}
    assert {row["run.batch_size"] for row in found.table()} <= {8, 32}
    drawn = lo.sample(RECIPE, space, count=8)
    grown = lo.sweep(build, drawn, **DATA, plan=PLAN, stop=lo.population(every=6, fraction=0.5))
    assert grown.copies
    assert [grown.trials.structure(i) for i in range(8)] == [drawn.structure(i) for i in range(8)]


def sweep_of(model, space, **how):
    return lo.sweep(model, lo.grid(RECIPE, space), **{**DATA, **how}, plan=PLAN)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: lo.grid(RECIPE, {"run.batch_size": [8.5]}), ValueError, "whole number of at least 1, got 8.5"),
        (lambda: lo.grid(RECIPE, {"run.batch_size": [0]}), ValueError, "at least 1, got 0"),
        (lambda: lo.grid(RECIPE, {"run.batchsize": [8]}), KeyError, "only run.batch_size"),
        (lambda: lo.sample(RECIPE, {"run.batch_size": lo.uniform(8, 64)}, count=2), TypeError, "list them"),
        (lambda: lo.grid(RECIPE, {"schedule.value": [(1, 2)]}), TypeError, "must be of numbers"),
        (lambda: sweep_of(build, {"model.width": [8]}), KeyError, "no keyword 'width'; did you mean 'widths'"),
        (lambda: sweep_of(build([8]), {"model.widths": [(8,)]}), TypeError, "function of widths"),
        (lambda: sweep_of(lambda widths: nn.Dense(10), {"model.widths": [(8,)]}), TypeError, "must give a Model"),
        (lambda: sweep_of(build([8]), {"run.batch_size": [8, 10**6]}), ValueError, "at most the 1438 examples there are, got 1000000"),
    ],
)
def test_errors_say_what_is_valid(wrong, error, said):
    with pytest.raises(error, match=said):
        wrong()


def test_a_structure_of_larger_arrays_is_narrower_under_a_plan_that_was_chosen():
    from lossopt_jax.sweep.plan import MeasuredPlan
    from lossopt_jax.sweep.run import prepared

    trials = lo.grid(RECIPE, {"schedule.value": np.geomspace(1e-3, 1e-1, 16).tolist(), "run.batch_size": [8, 1024]})
    job = [build((8,)), trials, TASK.train, None, DATA["run"], 1]
    chosen, asked = (prepared(*job, plan, None, 30.0).waves for plan in (MeasuredPlan(lo.LanePlan(2, 8), "", 0.0), lo.LanePlan(2, 8)))
    assert [wave.plan for wave in chosen] == [(2, 8), (2, 1)]  # a batch of 1,024 examples of 64 numbers has 256 KiB
    assert [wave.plan for wave in asked] == [(2, 8), (2, 8)]
