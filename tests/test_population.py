"""Population-based training: who goes on as whose copy, with which numbers, and that nothing of it is lost."""

import math

import jax
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.sweep import Copy
from lossopt_jax.sweep import run as sweep_run
from lossopt_jax.sweep.population import lineage, perturbed, scheduled

TASK = lo.data.digits()
LINEAR = lo.Model(lambda key, x: (jax.random.normal(key, (64, 10)) * 0.01, {}), lambda params, state, x, *, key, train: (x @ params, state))
RECIPE = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.cosine, init=0.1, total=24))
SPACE = {  # of the rates many are so high that the lane diverges
    "schedule.init": lo.log_uniform(1e-3, 1e38),
    "optimizer": lo.choice([lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.99))]),
}
TRIALS = lo.sample(RECIPE, SPACE, count=16)
KW = {"train": TASK.train, "evaluate": TASK.evaluate, "run": lo.Run(24, 32, chunk=4), "plan": lo.LanePlan(2, 1)}
RULE = lo.population(every=6, fraction=0.25)
nan = np.nan


class Cut(Exception):
    pass


# The rule, by hand.
def test_the_worst_and_all_that_failed_become_copies_of_the_best():
    rule, space = lo.population(every=10), {"schedule.init": lo.log_uniform(0.1, 10)}
    assert rule.steps(40) == (10, 20, 30)
    scores, failed = np.array([3.0, nan, 1.0, 9.0, 2.0, np.inf, 4, 5, 6, 7]), np.full(10, -1)
    failed[1] = 8
    rows = [{"schedule.init": 1.0 + i} for i in range(10)]
    copies = rule.copied(10, scores, failed, rows, space, [0, 10])
    assert copies == rule.copied(10, scores, failed, rows, space, [0, 10])
    assert [(copy.to, copy.diverged_at) for copy in copies] == [(1, 8), (5, -1)]  # a fifth of ten: 1 and 5, not 3
    assert {copy.source for copy in copies} <= {2, 4}
    for copy in copies:
        before, after = rows[copy.source]["schedule.init"], copy.after["schedule.init"]
        assert copy.before == rows[copy.to]
        assert after in (np.float32(0.8 * before), np.float32(1.2 * before))
    scores[[0, 6, 7]] = nan
    assert [copy.to for copy in rule.copied(10, scores, failed, rows, space, [0])] == [0, 1, 5, 6, 7]
    assert rule.copied(10, np.full(10, nan), failed, rows, space, [0]) == []  # none to copy from
    assert rule.copied(10, scores[:1], failed[:1], rows[:1], space, [0]) == []
    drawn = [
        copy.after["schedule.init"]
        for copy in lo.population(10, 0.5, 1.0).copied(10, np.arange(40.0), np.full(40, -1), rows * 4, space, [0])
    ]
    assert len(set(drawn)) == 20
    assert min(drawn) >= 0.1
    assert max(drawn) <= 10


@pytest.mark.parametrize(
    ("value", "space", "down", "up"),
    [
        (10.0, lo.log_uniform(1, 11), 8, 11),
        (0.9, lo.uniform(0.9, 0.99), 0.9, 0.918),  # a fifth of the range
        (-0.5, lo.uniform(-1, 1), -0.6, -0.4),
        (2.0, lo.int_uniform(1, 9), 1, 3),
        (8.0, lo.int_uniform(0, 20), 6, 10),
        (4.0, lo.choice([16, 4, 8]), 4, 8),
        (3.0, lo.fixed(3), 3, 3),
    ],
)
def test_numbers_go_by_a_fifth_and_stay_within_their_ends(value, space, down, up):
    np.testing.assert_allclose([perturbed(value, space, False), perturbed(value, space, True)], [down, up], rtol=1e-12)


def test_a_lineage_goes_back_through_all_copies_and_becomes_a_schedule():
    def copy(step, to, source, before, after):
        return Copy(step, to, source, -1, {"schedule.init": before}, {"schedule.init": after})

    copies = [copy(5, 0, 1, 1.0, 2.5), copy(10, 2, 0, 3.0, 2.0), copy(15, 0, 2, 2.5, 9.0), copy(20, 1, 2, 2.0, 2.0)]
    own = {0: {"schedule.init": 9.0}, 1: {"schedule.init": 2.0}, 2: {"schedule.init": 2.0}, 3: {"schedule.init": 4.0}}
    parts = lineage(copies, 1, own)  # 1 to 20 in place 2, from 10 there as what was in place 0 from 5 on as what was in place 1
    assert [(step, place, row["schedule.init"]) for step, place, row in parts] == [(0, 1, 2.0), (5, 0, 2.5), (10, 2, 2.0), (20, 1, 2.0)]
    followed = scheduled(RECIPE, parts).schedule.hparams["init"]
    assert followed == lo.bind(lo.schedules.piecewise_constant, boundaries=[5, 10], values=[2.0, 2.5, 2.0])
    assert lineage(copies, 3, own) == [(0, 3, own[3])]
    assert scheduled(RECIPE, lineage(copies, 3, own)) == RECIPE._replace(schedule=RECIPE.schedule.replace(init=4.0))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: lo.population(every=0), "every must be an integer of at least 1 .*, got 0"),
        (lambda: lo.population(every=5, fraction=0.6), "fraction must be a number above 0 and at most 0.5, got 0.6"),
        (lambda: lo.population(every=5, fraction="a"), "fraction must be a number above 0 and at most 0.5, got 'a'"),
        (lambda: lo.population(every=5, resample=2), "resample must be a number from 0 to 1, got 2"),
        (lambda: lo.sweep(LINEAR, TRIALS, stop=lo.population(every=24), **KW), "every must be below the 24 steps of the run, got 24"),
        (lambda: lo.sweep(LINEAR, TRIALS.recipes, stop=RULE, **KW), "population needs trials of lo.sample or lo.grid"),
        (lambda: lo.search(LINEAR, RECIPE, SPACE, stop=RULE, **KW), "search: a population changes the numbers"),
    ],
)
def test_wrong_populations_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


# In a sweep of three waves.
@pytest.fixture(scope="module")
def waves_of_six():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "lanes_at_once", lambda model, recipe, trials, seeds, data, plan: 6 * seeds)
        yield


@pytest.fixture(scope="module")
def whole(waves_of_six):
    return lo.sweep(LINEAR, TRIALS, stop=RULE, **KW)


def test_a_copy_goes_on_from_its_source_and_a_lane_that_had_diverged_lives(whole):
    plain = lo.sweep(LINEAR, TRIALS, **KW)
    assert {copy.step for copy in whole.copies} == {6, 12, 18}
    back = [copy for copy in whole.copies if copy.diverged_at >= 0]
    assert back
    assert (whole.diverged_at[[copy.to for copy in back if copy.step == 18]] == -1).all()
    for copy in back:
        loss = whole.history["loss"][copy.to]
        assert np.isnan(loss[copy.diverged_at + 1 : copy.step]).all()
        assert np.isfinite(loss[copy.step])
        assert whole.history["learning_rate"][copy.to][copy.step] < 1e38
    assert all(copy.to // 6 == copy.source // 6 and copy.after["optimizer"] == "momentum" for copy in whole.copies)
    for trial in range(16):  # until it is copied over a lane is what it is without
        first = min((copy.step for copy in whole.copies if copy.to == trial), default=24)
        np.testing.assert_array_equal(whole.history["loss"][trial, :first], plain.history["loss"][trial, :first])
    # The rate that was taken is that of the numbers that are said to have been.
    shape = np.asarray(lo.bind(lo.schedules.cosine, init=1.0, total=24)(np.arange(24)))
    best = whole.best_trial()
    way = whole.lineage(best)
    assert len(way) > 1
    assert way[-1]["schedule.init"] == whole.table()[0]["schedule.init"]
    for row, end in zip(way, [*[row["step"] for row in way[1:]], 24], strict=True):
        taken = whole.history["learning_rate"][row["trial"], row["step"] : end]
        np.testing.assert_array_equal(whole.inherited()[0]["learning_rate"][best, row["step"] : end], taken)
        np.testing.assert_allclose(taken, row["schedule.init"] * shape[row["step"] : end], rtol=1e-5)


def test_the_bests_recipe_by_itself_trains_to_the_bests_state(whole):
    fitted = lo.fit(LINEAR, whole.best(), train=TASK.train, run=KW["run"])
    np.testing.assert_allclose(fitted.state.params, whole.state(whole.best_lane()).params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_structures_do_not_mix_and_all_is_kept_and_can_be_audited(tmp_path):
    adamw = [lo.variant(lo.optimizers.adamw, b1=b1, weight_decay=lo.log_uniform(1e-5, 0.1)) for b1 in (0.8, 0.9)]  # of one structure
    space = {"schedule.init": lo.log_uniform(1e-3, 1e3), "optimizer": lo.choice([lo.bind(lo.optimizers.sgd), *adamw])}
    trials = lo.sample(RECIPE, space, count=24)
    whole = lo.sweep(LINEAR, trials, stop=RULE, **KW)
    of = [trials.values(i)["optimizer"] for i in range(24)]
    assert all((of[copy.to] == "sgd") == (of[copy.source] == "sgd") for copy in whole.copies)
    assert any(copy.before["optimizer"] != copy.after["optimizer"] for copy in whole.copies)
    for recipe, row in zip(whole.trials.recipes, whole.trials.drawn, strict=True):
        b1 = {"sgd": None, "adamw": 0.8, "adamw-2": 0.9}[row["optimizer"]]
        assert recipe.optimizer.hparams.get("b1") == (b1 if b1 is None else np.float32(b1))
        assert math.isnan(row["adamw.weight_decay"]) == (b1 != 0.8)
    again = lo.load(lo.save(whole, tmp_path))
    assert again.copies == whole.copies
    assert again.lineage(3) == whole.lineage(3)
    assert again.trials.recipes == whole.trials.recipes
    (row,) = lo.audit(LINEAR, whole, **{key: KW[key] for key in ("train", "evaluate", "run")}, count=1)
    assert row["difference"] == 0


def test_a_resumed_population_is_one_that_was_never_cut(whole, waves_of_six, tmp_path):
    cuts = 0
    while True:  # each time a bit further
        new = 0

        def tell(progress, cuts=cuts):
            nonlocal new
            new += progress.metrics["loss"].size > 0  # a restored wave tells where it is
            if new > 1 + cuts % 3:
                raise Cut

        try:
            again = lo.sweep(LINEAR, TRIALS, stop=RULE, checkpoint=tmp_path, save_every=0, on_chunk=tell, **KW)
            break
        except Cut:
            cuts += 1
    assert cuts > 5
    assert again.copies == whole.copies
    assert again.trials.recipes == whole.trials.recipes
    for mine, its in ((again.history, whole.history), (again.evaluations, whole.evaluations)):
        for name in its:
            np.testing.assert_array_equal(mine[name], its[name])
    np.testing.assert_array_equal(again.diverged_at, whole.diverged_at)
    assert all(isinstance(state.params, np.ndarray) for state in whole.states)  # those of three waves are not left on the device
    for lane in range(16):
        np.testing.assert_array_equal(again.state(lane).params, whole.state(lane).params)


def test_a_record_of_copies_that_could_not_be_written_is_written_before_the_next_state(whole, waves_of_six, tmp_path):
    """What is in its way, as a full disk would be, goes away before a state is saved that goes on from the copies."""
    in_the_way = tmp_path / "copies-0000.json"
    in_the_way.mkdir()

    def tell(progress):
        if progress.wave == 0 and 6 < progress.step < 12 and in_the_way.is_dir():
            in_the_way.rmdir()
        if progress.wave == 0 and progress.step >= 12:
            raise Cut

    with pytest.raises(Cut):
        lo.sweep(LINEAR, TRIALS, stop=RULE, checkpoint=tmp_path, save_every=0, on_chunk=tell, **KW)
    assert in_the_way.is_file()
    again = lo.sweep(LINEAR, TRIALS, stop=RULE, checkpoint=tmp_path, **KW)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    assert again.copies == whole.copies


@pytest.mark.slow
def test_seeds_are_copied_together():
    trials = lo.sample(RECIPE, {"schedule.init": lo.log_uniform(1e-3, 1.0)}, count=5)
    swept = lo.sweep(LINEAR, trials, seeds=2, stop=lo.population(every=12), train=TASK.train, run=KW["run"], plan=KW["plan"])
    (copy,) = swept.copies
    assert copy.to == int(np.nanargmax(swept.history["loss"][:, :12].astype(np.float64).mean(1).reshape(5, 2).mean(1)))
    rates = swept.history["learning_rate"].reshape(5, 2, 24)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    ratio = rates[copy.to, 0, 12:] / rates[copy.source, 0, 12:]
    assert math.isclose(ratio[0], 0.8, rel_tol=1e-5) or math.isclose(ratio[0], 1.2, rel_tol=1e-5)
