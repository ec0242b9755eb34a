"""The plan of lanes: short runs take the usual one, longer ones are measured once and remembered, and none outgrows the memory."""

import numpy as np
import pytest
from flax import linen as nn

import lossopt_jax as lo
from lossopt_jax.sweep import plan as planning

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
MODEL = lo.from_linen(nn.Dense(1))
RECIPE = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
TRIALS = lo.grid(RECIPE, {"schedule.value": list(np.geomspace(1e-3, 0.1, 32))})
SWEEP = {"train": (X, X[:, :1]), "run": lo.Run(steps=20, batch_size=8)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lossopt_jax" / "plans.json"


def test_a_short_run_takes_the_usual_plan_and_leaves_no_file(cache):
    plan = lo.plan_lanes(MODEL, TRIALS, **SWEEP)
    assert plan == lo.LanePlan(2, 8)
    assert "the usual plan" in str(plan)
    assert "MB a lane" in str(plan)
    assert not cache.exists()


@pytest.mark.slow
def test_other_widths_are_measured_once_and_what_was_compiled_is_what_runs(cache, monkeypatch):
    plan = lo.plan_lanes(MODEL, TRIALS, **SWEEP, seconds=60.0)
    assert "times one at a time" in str(plan)
    assert all(f"at {measured}" in str(plan) for measured in ("1 x 1", "2 x 2", "2 x 4", "2 x 8"))
    assert cache.exists()
    monkeypatch.setattr(planning.Group, "rate", lambda *_: pytest.fail("measured again"))
    again = lo.plan_lanes(MODEL, TRIALS, **SWEEP)
    assert again == plan
    assert str(again) == str(plan)
    assert again.seconds < plan.seconds
    swept = lo.sweep(MODEL, TRIALS, **SWEEP, plan=plan)
    assert swept.plan == plan
    assert swept.compile_seconds >= plan.seconds  # what planning compiled is counted


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_broken_file_of_plans_is_as_none(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert lo.plan_lanes(MODEL, TRIALS, **SWEEP) == lo.LanePlan(2, 8)


def test_a_cache_folder_that_cannot_be_made_costs_only_the_memory(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    group = planning.Group(MODEL, TRIALS.recipes, lo.data.as_batch(SWEEP["train"], "train"), None, SWEEP["run"], 1)
    planning._remember(group, lo.LanePlan(2, 8), "why")
    assert planning._remembered(group) is None


def test_what_is_remembered_is_taken_as_it_is(cache, monkeypatch):
    group = planning.Group(MODEL, TRIALS.recipes, lo.data.as_batch(SWEEP["train"], "train"), None, SWEEP["run"], 1)
    planning._remember(group, lo.LanePlan(2, 4), "as measured before")
    monkeypatch.setattr(planning.Group, "rate", lambda *_: pytest.fail("measured again"))
    plan = lo.plan_lanes(MODEL, TRIALS, **SWEEP)
    assert plan == lo.LanePlan(2, 4)
    assert str(plan).endswith("side by side, as measured before")


def test_the_width_shrinks_until_the_program_fits(cache, monkeypatch):
    whole = planning.Group(MODEL, TRIALS.recipes, lo.data.as_batch(SWEEP["train"], "train"), None, SWEEP["run"], 1)
    needs = {}
    for width in (8, 4):
        plan = lo.LanePlan(2, width)
        compiled = planning.compiled_for(MODEL, whole.lanes(plan), whole.data, None, whole.run, plan, 32).result()
        needs[width] = compiled.bytes
    assert needs[4] < needs[8]
    monkeypatch.setattr(planning, "free_bytes", lambda: (needs[4] + needs[8]) / 2 / planning.ROOM)
    assert lo.plan_lanes(MODEL, TRIALS, **SWEEP) == lo.LanePlan(2, 4)
    monkeypatch.setattr(planning, "free_bytes", lambda: 1.0)
    assert "too large for the free memory" in str(lo.plan_lanes(MODEL, TRIALS, **SWEEP))


def test_structures_of_their_own_are_not_confused(cache):
    def key(recipe, **run):
        return planning._key(planning.Group(MODEL, [recipe], lo.data.as_batch(SWEEP["train"], "train"), None, lo.Run(20, **run), 1))

    other = RECIPE._replace(optimizer=lo.bind(lo.optimizers.adam))
    keys = {key(RECIPE, batch_size=8), key(RECIPE, batch_size=4), key(other, batch_size=8)}
    assert len(keys) == 3
    assert key(RECIPE._replace(schedule=lo.bind(lo.schedules.constant, value=0.3)), batch_size=8) in keys


def test_a_sweep_that_stops_lanes_is_narrower_for_the_few_that_live():
    """64 trials of 500 steps: 64 to step 19, 21 to 56, 7 to 167, 2 to 500. At 2 x 8 each turn has 16 places, at 2 x 2 four."""
    group = planning.Group(MODEL, [RECIPE] * 64, lo.data.as_batch(SWEEP["train"], "train"), None, lo.Run(500), 1, lo.halving())
    assert group.places(lo.LanePlan(2, 8)) == 64 * 19 + 32 * 37 + 16 * 111 + 16 * 333
    assert group.places(lo.LanePlan(2, 2)) == 64 * 19 + 24 * 37 + 8 * 111 + 4 * 333
    assert group._replace(stop=None).places(lo.LanePlan(2, 8)) == 64 * 500
    assert lo.plan_lanes(MODEL, [RECIPE] * 64, train=SWEEP["train"], run=lo.Run(500), stop=lo.halving()).width == 2
