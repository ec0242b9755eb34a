"""Search: which trials are tried and which are stopped early."""

import importlib.util
import re
import shutil

import jax
import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.sweep import run as sweep_run
from lossopt_jax.sweep.metrics import Caution
from lossopt_jax.sweep.plan import MeasuredPlan

TASK = lo.data.digits()
LINEAR = lo.Model(lambda key, x: (jax.random.normal(key, (64, 10)) * 0.01, {}), lambda params, state, x, *, key, train: (x @ params, state))
RECIPE = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adamw), lo.bind(lo.schedules.cosine, init=0.1, total=27))
WARM = lo.bind(lo.schedules.warmup_cosine, peak=0.1, warmup=5, total=27)
SPACE = {"schedule.init": lo.log_uniform(1e-3, 1e3)}
KW = {"train": TASK.train, "evaluate": TASK.evaluate, "run": lo.Run(27, 32, chunk=3), "plan": lo.LanePlan(2, 1)}
nan = np.nan


class Cut(Exception):
    pass


def same(a, b):
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# Rules, against tables worked by hand.
def test_halving_keeps_the_best_third_and_counts_what_failed_as_worst():
    rule = lo.halving(reduction=3, rungs=3)
    assert rule.steps(90) == (10, 30)
    out = rule.stopped(0, np.array([5.0, nan, 1.0, 3.0, np.inf, 1.0, 2.0, 9.0, 4.0]), np.zeros(9, bool))
    assert np.flatnonzero(~out).tolist() == [2, 5, 6]
    again = rule.stopped(1, np.array([nan, nan, 1.0, nan, nan, 1.0, 7.0, nan, nan]), out)
    assert np.flatnonzero(~again).tolist() == [2]  # of equals the earlier
    # Of two that can go on one has failed, and is still better than what is out.
    out = rule.stopped(1, np.array([0.1, nan, nan, *[0.2] * 15]), np.array([True, False, False] + [True] * 15))
    assert np.flatnonzero(~out).tolist() == [1, 2]
    assert np.flatnonzero(~rule.stopped(0, np.full(2, nan), np.zeros(2, bool))).tolist() == [0]  # never none
    assert lo.halving().living(64) == [64, 21, 7, 2]
    assert lo.halving().lane_steps(27, 27) == 27 + 9 * 2 + 3 * 6 + 18


def test_hyperband_deals_its_shares_to_brackets_that_halve_by_themselves():
    rule = lo.hyperband(reduction=3, rungs=3)
    brackets = rule.brackets(33)
    assert np.bincount(brackets).tolist() == [18, 9, 6]  # 9 x 3/3 : 3 x 3/2 : 1 x 3/1 as in the paper, of 16.5
    scores = np.arange(33.0)[::-1]
    out = rule.stopped(0, scores, np.zeros(33, bool))
    assert [int((~out)[brackets == b].sum()) for b in range(3)] == [6, 9, 6]
    assert np.flatnonzero(~out & (brackets == 0)).tolist() == np.flatnonzero(brackets == 0)[-6:].tolist()
    out = rule.stopped(1, scores, out)
    assert [int((~out)[brackets == b].sum()) for b in range(3)] == [2, 3, 6]


def test_asha_compares_with_all_that_have_come():
    rule = lo.asha(reduction=2, rungs=2)
    not_here = np.array([False] * 4 + [True] * 2)
    assert np.flatnonzero(~rule.stopped(0, np.array([4.0, 3, 2, 1, 0, 0]), not_here)).tolist() == [2, 3]
    assert np.flatnonzero(~rule.stopped(0, np.array([4.0, 3, 2, 1, 0, 0]), np.zeros(6, bool))).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: lo.halving(reduction=1), "halving: reduction must be above 1, got 1"),
        (lambda: lo.halving("3"), "halving: reduction must be above 1, got '3'"),
        (lambda: lo.asha(rungs=1), "asha: rungs must be an integer of at least 2 .*, got 1"),
        (lambda: lo.hyperband(rungs=5).steps(30), "hyperband: 30 steps are too few for 5 rungs"),
    ],
)
def test_wrong_rules_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


# In a sweep.
def expected(full, rule, seeds=1):
    """[trials]: where `rule` stops each, from a sweep that stopped none."""
    rungs, out = rule.steps(27), np.zeros(full.lanes // seeds, bool)
    stopped_at = np.full(len(out), -1)
    for k, rung in enumerate(rungs):
        scores = full.evaluations["loss"][:, full.evaluation_steps.tolist().index(rung)].reshape(-1, seeds).mean(1)
        after = rule.stopped(k, np.where(out, nan, scores), out)
        stopped_at[after & ~out] = rung
        out = after
    return np.where(full.diverged_at.reshape(-1, seeds).max(1) >= 0, -1, stopped_at)


def check(swept, full, rule):
    np.testing.assert_array_equal(swept.stopped_at, expected(full, rule))
    ran = np.where(swept.stopped_at < 0, 27, swept.stopped_at)[:, None] > np.arange(27)
    np.testing.assert_array_equal(swept.history["loss"], np.where(ran, full.history["loss"], nan))
    assert {row["status"] for row in swept.table()} == {"ok", "stopped", "diverged"}


# Of two structures, some lanes diverge; every step is looked at, so that any rung can be worked out.
TRIALS = [*lo.sample(RECIPE, SPACE, count=10).recipes,
          *lo.sample(RECIPE._replace(optimizer=lo.bind(lo.optimizers.sgd)), SPACE, count=8).recipes,
          RECIPE._replace(schedule=lo.bind(lo.schedules.cosine, init=nan, total=27))]  # fmt: skip


@pytest.fixture(scope="module")
def waves_of_four():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "lanes_at_once", lambda model, recipe, trials, seeds, data, plan: 4 * seeds)
        yield


@pytest.fixture(scope="module")
def full(waves_of_four):
    return lo.sweep(LINEAR, TRIALS, **KW | {"run": lo.Run(27, 32, evaluate_every=3)})


def test_halving_is_over_all_trials_of_all_structures_and_waves(full):
    rule = lo.halving(reduction=3, rungs=3)
    swept = lo.sweep(LINEAR, TRIALS, stop=rule, **KW)
    check(swept, full, rule)
    assert (swept.stopped_at < 0).sum() == 2 + 1  # and the one that diverged at once
    assert swept.evaluation_steps.tolist() == [3, 9, 27]
    assert swept.lane_steps == rule.lane_steps(19, 27) - 2
    jax.tree.map(np.testing.assert_array_equal, swept.state(best := swept.best_trial()).params, full.state(best).params)


def test_hyperband_and_asha_in_waves(full):
    rule = lo.hyperband(reduction=3, rungs=3)
    check(lo.sweep(LINEAR, TRIALS, stop=rule, **KW), full, rule)
    # Wave by wave against all that have come: hand-worked from the full sweep.
    rule = lo.asha(reduction=3, rungs=2)
    scores, stopped_at = full.evaluations["loss"][:, 2], np.full(19, -1)
    order = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 18], [10, 11, 12, 13], [14, 15, 16, 17]]
    come = []
    for wave in order:
        come += wave
        best = sorted(come, key=lambda i: (not np.isfinite(scores[i]), scores[i], i))[: max(1, len(come) // 3)]
        stopped_at[[i for i in wave if i not in best]] = 9
    stopped_at[full.diverged_at >= 0] = -1
    np.testing.assert_array_equal(lo.sweep(LINEAR, TRIALS, stop=rule, **KW).stopped_at, stopped_at)


def test_seeds_live_or_die_as_one_and_without_held_out_data_the_train_loss_decides():
    run = lo.Run(27, 32, history_every=2)
    trials = lo.sample(RECIPE, SPACE, count=6)
    swept = lo.sweep(LINEAR, trials, train=TASK.train, run=run, seeds=2, plan=KW["plan"], stop=lo.halving(reduction=3, rungs=2))
    loss = swept.history["loss"][:, :5].astype(np.float64)  # of steps 0, 2 ... 8, before the rung at 9
    best = np.argsort(loss.mean(1).reshape(-1, 2).mean(1))[:2]
    assert set(np.flatnonzero(swept.stopped_at < 0)) == {2 * best[0], 2 * best[0] + 1, 2 * best[1], 2 * best[1] + 1}
    assert set(swept.stopped_at) == {9, -1}


@pytest.mark.parametrize("rule", [lo.halving(reduction=3, rungs=3), pytest.param(lo.asha(reduction=3, rungs=3), marks=pytest.mark.slow)])
def test_a_resumed_halving_is_one_that_was_never_cut(rule, waves_of_four, tmp_path):
    whole, folder = lo.sweep(LINEAR, TRIALS, stop=rule, **KW), tmp_path / rule.name
    cuts = 0
    while True:
        seen = []

        def tell(progress, seen=seen, cuts=cuts):
            seen.append(progress)
            if sum(p.metrics["loss"].size > 0 for p in seen) > 6 + cuts:  # restored waves tell where they are
                raise Cut

        try:
            again = lo.sweep(LINEAR, TRIALS, stop=rule, checkpoint=folder, save_every=0, on_chunk=tell, **KW)
            break
        except Cut:
            cuts += 1
    assert cuts > 2
    same(whole.history, again.history)
    same(whole.evaluations, again.evaluations)
    np.testing.assert_array_equal(whole.stopped_at, again.stopped_at)
    np.testing.assert_array_equal(whole.diverged_at, again.diverged_at)
    for lane in range(19):
        jax.tree.map(np.testing.assert_array_equal, whole.state(lane).params, again.state(lane).params)
    with pytest.raises(ValueError, match=r"of another run: not the same stop$"):
        lo.sweep(LINEAR, TRIALS, stop=lo.halving(reduction=2, rungs=3), checkpoint=tmp_path / rule.name, **KW)


# Spaces and samplers.
FAMILIES = {
    "schedule.init": lo.log_uniform(1e-4, 1e-1),
    "optimizer": lo.choice(
        [
            lo.bind(lo.optimizers.sgd),
            lo.variant(lo.optimizers.adamw, weight_decay=lo.log_uniform(1e-5, 1e-1), b1=0.8),
            lo.variant(lo.optimizers.adamw, mask=lo.optimizers.decay_matrices_only, weight_decay=lo.fixed(0.5)),
        ]
    ),
}


def test_a_parts_own_numbers_exist_only_for_it():
    trials = lo.sample(RECIPE, FAMILIES, count=24)
    assert list(trials.space) == ["schedule.init", "optimizer", "adamw.weight_decay", "adamw-2.weight_decay"]
    rows = [trials.values(i) for i in range(24)]
    assert min(sum(row["optimizer"] == label for row in rows) for label in ("sgd", "adamw", "adamw-2")) >= 7
    for row, recipe in zip(rows, trials.recipes, strict=True):
        own = {"sgd": nan, "adamw": row["adamw.weight_decay"], "adamw-2": 0.5}[row["optimizer"]]
        assert np.isnan(row["adamw.weight_decay"]) == (row["optimizer"] != "adamw")
        assert np.isnan(row["adamw-2.weight_decay"]) == (row["optimizer"] != "adamw-2")
        if row["optimizer"] == "sgd":
            assert recipe.optimizer.fn is lo.optimizers.sgd
        else:
            assert recipe.optimizer.hparams["weight_decay"] == np.float32(own)
        assert recipe.schedule.hparams["init"] == np.float32(row["schedule.init"])
    assert trials.recipes[[row["optimizer"] for row in rows].index("adamw")].optimizer.hparams["b1"] == np.float32(0.8)


def test_a_sweep_of_parts_is_ranked_said_and_kept(tmp_path):
    import io

    from rich.console import Console

    from lossopt_jax.report import plots, results

    swept = lo.sweep(LINEAR, lo.sample(RECIPE, FAMILIES, count=9), stop=lo.halving(reduction=3, rungs=2), **KW)
    assert set(swept.importance()) == set(swept.trials.space)
    assert set(swept.edges()) <= set(swept.trials.space) - {"optimizer"}
    if importlib.util.find_spec("optuna"):
        assert set(swept.fanova()) == {"schedule.init", "optimizer"}
    console = Console(file=io.StringIO(), width=100)
    results.show_sweep(swept, console)
    text = console.file.getvalue()
    assert "6 stopped early" in text
    assert re.search(r"\n *1 .*\b(sgd|adamw-2|adamw)\b", text)[1] == swept.table()[0]["optimizer"]
    assert "one of 3" in text
    assert len(re.findall(r" 9 *\n", text)) == 6  # the step at which they were stopped
    plots.sweep_figure(swept.table(), swept.trials.space)
    again = lo.load(lo.save(swept, tmp_path / "kept"))
    assert repr(again.table()) == repr(swept.table())
    assert again.trials.space == swept.trials.space


def test_samplers_and_distributions_stay_inside_cover_and_repeat():
    space = {"schedule.init": lo.normal(0.5, 0.1), "optimizer.b1": lo.fixed(0.7)}
    for sampler in (lo.samplers.sobol, lo.samplers.halton, lo.samplers.random):
        trials = [lo.sample(RECIPE, space, count=100, seed=seed, sampler=sampler) for seed in (3, 3, 4)]
        values = np.array([[t.values(i)["schedule.init"] for i in range(100)] for t in trials])
        np.testing.assert_array_equal(values[0], values[1])
        assert (values[0] != values[2]).any()
        assert (abs(values - 0.5) < 0.3).all()
        assert abs(values.mean(1) - 0.5).max() < 0.03
        assert abs(values.std(1) - 0.1).max() < 0.03
        assert trials[0].values(7)["optimizer.b1"] == np.float32(0.7)
    # Even: of 64 Sobol points each of 8 x 8 boxes has one; of 27 Halton points each of 3 x 9 equal parts of the second axis three.
    boxes = (lo.samplers.sobol(64, 2, 0) * 8).astype(int) @ [8, 1]
    assert sorted(boxes) == list(range(64))
    assert np.bincount((lo.samplers.halton(27, 2, 0)[:, 1] * 9).astype(int)).tolist() == [3] * 9


def test_a_grid_of_parts():
    trials = lo.grid(RECIPE, {"optimizer": [lo.bind(lo.optimizers.sgd), lo.bind(lo.optimizers.adam)], "schedule.init": [0.1, 0.2]})
    assert [(v["optimizer"], round(v["schedule.init"], 6)) for v in map(trials.values, range(4))] == [
        ("sgd", 0.1), ("sgd", 0.2), ("adam", 0.1), ("adam", 0.2)]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: lo.normal(0, 0), ValueError, "normal: mean must be finite and std finite and above 0, got mean 0 and std 0"),
        (lambda: lo.choice([lo.bind(lo.optimizers.sgd), 0.1]), TypeError, r"each must be a lo.bind\(...\) or lo.variant\(...\), got 0.1"),
        (lambda: lo.choice({1, 2}), TypeError, "choice: needs a list of values, got {1, 2}"),
        (lambda: lo.choice([lo.optimizers.adam]), TypeError, r"each must be bound: lo.bind\(adam\)"),
        (lambda: lo.choice([jax.nn.relu]), TypeError, "of anything else values must be finite numbers, or all words, or all lists"),
        (lambda: lo.sample(RECIPE, SPACE, count=1, sampler="sobol"), TypeError, "a function such as lo.samplers.sobol, got 'sobol'"),
        (lambda: lo.sample(RECIPE, SPACE, count=1, seed=-1), ValueError, "seed must be a whole number of at least 0, got -1"),
        (
            lambda: lo.sample(RECIPE, {"optimizer": lo.choice([lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 1.5))])}, count=1),
            ValueError,
            "'optimizer.beta' must be at least 0 and below 1, got uniform from 0.5 to 1.5",
        ),
        (
            lambda: lo.sample(RECIPE._replace(schedule=WARM), {"schedule.warmup": lo.uniform(0, 100)}, count=1),
            ValueError,
            r"schedule.warmup must be at most schedule.total \(27\), got 100",
        ),
        (lambda: lo.variant(lo.optimizers.adamw, nesterov=lo.uniform(0, 1)), TypeError, "has no parameter 'nesterov'"),
        (lambda: lo.sample(RECIPE, {**FAMILIES, "optimizer.b1": lo.fixed(0.9)}, count=1), ValueError, "'optimizer.b1' is of a part"),
        (lambda: lo.sample(RECIPE, {"clip_norm": FAMILIES["optimizer"]}, count=1), KeyError, "for loss, optimizer or schedule"),
        (lambda: lo.grid(RECIPE, {"optimizer": [FAMILIES["optimizer"].variants[1]]}), TypeError, "must be bound to numbers"),
    ],
)
def test_wrong_parts_are_named(wrong, error, words):
    with pytest.raises(error, match=words):
        wrong()


CONFIG = {
    "name": "families",
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "loss": {"name": "cross_entropy"},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "warmup_cosine", "peak": 0.01, "warmup": 5},
    "run": {"steps": 81},
    "sweep": {
        "count": 12,
        "sampler": "halton",
        "stop": {"name": "hyperband", "rungs": 3},
        "space": {
            "schedule": {"peak": {"normal": [0.1, 0.01]}},
            "optimizer": [
                {"name": "adamw", "weight_decay": {"log_uniform": [1e-5, 0.1]}, "b2": {"fixed": 0.99}},
                {"name": "adamw", "mask": "decay_matrices_only"},
                {"name": "momentum", "beta": {"choice": [0.8, 0.9]}},
            ],
        },
    },
}


def config(**sweep):
    from lossopt_jax.config import experiment

    return experiment(CONFIG | {"sweep": CONFIG["sweep"] | sweep})


def test_a_config_says_the_same_and_reproduces_itself():
    import tomllib

    import tomli_w

    from lossopt_jax.config import experiment

    first = config()
    assert list(first.trials.space) == ["schedule.peak", "optimizer", "adamw.weight_decay", "adamw.b2", "momentum.beta"]
    assert first.stop == lo.hyperband(rungs=3)
    again = experiment(tomllib.loads(tomli_w.dumps(first.resolved)))
    assert again.resolved == first.resolved
    assert all(a == b for a, b in zip(first.trials.recipes, again.trials.recipes, strict=True))


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"stop": "halving"}, r"sweep.stop must be a table such as { name = \"halving\" }, got 'halving'"),
        ({"stop": {"name": "halfing"}}, "sweep.stop.name = 'halfing' is unknown; did you mean 'halving'"),
        ({"stop": {"name": "asha", "rungs": 1}}, "sweep.stop: asha: rungs must be an integer of at least 2"),
        ({"stop": {"name": "asha", "rungs": 9}}, "sweep.stop: asha: 81 steps are too few for 9 rungs"),
        ({"stop": {"name": "asha", "eta": 9}}, r"\[sweep.stop\] has no key 'eta'; valid: reduction, rungs"),
        ({"stop": {"name": "population"}}, "sweep.stop.every is missing: population needs it"),
        ({"stop": {"name": "population", "every": 81}}, "sweep.stop: population: every must be below the 81 steps of the run, got 81"),
        (
            {"stop": {"name": "population", "every": 9}, "sampler": "tpe", "rounds": 3},
            "sweep.stop: a population changes the numbers that tpe asks for",
        ),
        (
            {"sampler": "sobel"},
            r"sweep.sampler = 'sobel' is unknown; did you mean 'sobol'\? Valid: cmaes, gp, grid, halton, random, sobol, tpe",
        ),
        ({"rounds": 3}, "sweep.rounds goes with sweep.sampler = tpe, cmaes, gp, not halton"),
        (
            {"sampler": "tpe", "count": 10},
            r"sweep.count must be a multiple of sweep.rounds \(4 unless given\), got 10: try sweep.count = 8",
        ),
        ({"sampler": "cmaes", "rounds": 3}, "sweep.space.optimizer is a choice, of which cmaes knows nothing: take sweep.sampler = tpe"),
        (
            {"sampler": "grid", "count": 3, "space": {"schedule": {"peak": {"choice": [0.1, 0.2]}}}},
            "sweep.count: a grid is all 2 combinations of what is listed, got 3",
        ),
        ({"space": {"optimizer": []}}, r"sweep.space.optimizer must list at least one part, such as .*adamw.*, got \[\]"),
        ({"space": {"optimizer": {"name": {"choice": ["adam", "sgd"]}}}}, r"sweep.space.optimizer.name is no number: list the parts"),
        ({"sampler": "tpe", "rounds": 5}, "sweep.rounds must be an integer that divides sweep.count, 12, got 5"),
        ({"space": {"schedule": {"peak": {"normal": [0.1, 0.1]}}}}, "sweep.space.schedule.peak must be at least 0, got -0.2"),
        (
            {"space": {"optimizer": [{"name": "adamw", "b1": {"uniform": [0.5, 1.0]}}]}},
            "optimizer.b1 must be at least 0 and below 1, got 1",
        ),
        ({"space": {"optimizer": ["adamw"]}}, r"sweep.space.optimizer\[0\] must be a table such as"),
        ({"space": {"optimizer": [{"name": "adamw", "mask": {"uniform": [0, 1]}}]}}, "optimizer.*mask"),
    ],
)
def test_wrong_configs_are_named(sweep, words):
    with pytest.raises(ValueError, match=words):
        config(**sweep)


# Search.
WIDE = {"schedule.init": lo.log_uniform(1e-3, 1e6), "optimizer.b1": lo.choice([0.8, 0.9]), "optimizer.b2": lo.fixed(0.99)}


def search(**kw):
    return lo.search(LINEAR, RECIPE, WIDE, count=12, rounds=3, **{"stop": lo.halving(reduction=2, rungs=2), **KW, **kw})


def test_a_search_asks_in_rounds_and_tells_the_sampler_what_failed_and_what_was_stopped(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/x.db"
    swept = search(storage=storage, name="mine")
    assert swept.trials.recipes[:4] == lo.sample(RECIPE, WIDE, count=4).recipes
    assert len(swept.trials) == swept.lanes == 12
    told = optuna.load_study(study_name="mine", storage=storage).trials
    rows = sorted(swept.table(), key=lambda row: row["trial"])
    assert {"ok", "stopped", "diverged"} == {row["status"] for row in rows}
    for trial, row in zip(told, rows, strict=True):
        assert trial.params["schedule.init"] == pytest.approx(row["schedule.init"], rel=1e-6)
        assert trial.params["optimizer.b1"] == pytest.approx(row["optimizer.b1"], rel=1e-6)
        assert "optimizer.b2" not in trial.params
        if row["status"] == "diverged":
            assert trial.value == np.inf
            assert trial.user_attrs == {"diverged": True}
        elif row["status"] == "stopped":
            assert trial.state.name == "PRUNED"
            assert trial.intermediate_values == {row["stopped_at"]: pytest.approx(row["held_out_loss"])}
        else:
            assert trial.value == pytest.approx(row["held_out_loss"])
    best = swept.best_trial()
    assert swept.state(best).params.shape == (64, 10)
    assert optuna.load_study(study_name="mine", storage=storage).best_trial.params["schedule.init"] == pytest.approx(
        swept.trials.values(best)["schedule.init"], rel=1e-6
    )

    with pytest.raises(ValueError, match="the storage has a study 'mine' already, with 12 trials of another search: give another name"):
        search(storage=storage, name="mine", seed=1)
    with pytest.raises(Cut):
        search(checkpoint=tmp_path / "kept", storage=storage, name="again", save_every=0, on_chunk=cut_in_the_second_round)
    again = search(checkpoint=tmp_path / "kept", storage=storage, name="again")
    same(swept.history, again.history)
    np.testing.assert_array_equal(swept.stopped_at, again.stopped_at)
    assert len(optuna.load_study(study_name="again", storage=storage).trials) == 12
    other = optuna.create_study(study_name="other", storage=storage, direction="maximize")
    other.add_trials(told)
    with pytest.raises(ValueError, match="a study 'other' already, with 12 trials of another search"):
        search(checkpoint=tmp_path / "kept", storage=storage, name="other")  # a checkpoint that has not written to it
    shutil.rmtree(tmp_path / "kept")  # as --overwrite does: the study of the folder makes room, and is kept
    search(checkpoint=tmp_path / "kept", storage=storage, name="again", seed=1)
    studies = {name: optuna.load_study(study_name=name, storage=storage).trials for name in ("again", "again-1")}
    assert [trial.value for trial in studies["again-1"]] == [trial.value for trial in told]
    assert [trial.params for trial in studies["again"]] != [trial.params for trial in told]


def test_a_search_that_goes_on_keeps_the_width_it_began_with(tmp_path):
    """On another number of devices, or where another width was measured today, for the rounds that had not begun too."""
    pytest.importorskip("optuna")
    how = {"plan": MeasuredPlan(lo.LanePlan(2, 1), "", 0.0), "stop": None}
    whole = search(**how)
    with pytest.raises(Cut):
        search(**how, checkpoint=tmp_path, save_every=0, on_chunk=cut_in_the_second_round)
    again = search(**how | {"plan": MeasuredPlan(lo.LanePlan(1, 4), "", 0.0)}, checkpoint=tmp_path)
    assert again.plan == lo.LanePlan(1, 1)
    same(whole.history, again.history)
    same(whole.evaluations, again.evaluations)


def cut_in_the_second_round(progress):
    if progress.wave == 1 and progress.step > 6:
        raise Cut


def test_a_diverged_trial_is_no_best_though_all_that_come_later_are_worse_than_any_number_told():
    """Rates that diverge all at first, then one that comes to a loss of 5e9: of told numbers none is safe."""
    optuna = pytest.importorskip("optuna")
    from lossopt_jax.sweep.search import _told

    trials = lo.grid(RECIPE, {"schedule.init": [0.1, 0.2]})
    rows, space = [{"schedule.init": 0.1}, {"schedule.init": 0.2}], {"schedule.init": lo.uniform(0, 1)}
    study = optuna.create_study()
    for losses, diverged in (([nan, nan], [0, 0]), ([5e9, nan], [-1, 3])):
        column = np.array(losses)[:, None]
        rest = {"states": [], "places": [None] * 2, "plan": lo.LanePlan(1, 1), "seconds": 1.0, "compile_seconds": 1.0}
        ends = {"evaluation_steps": np.array([4]), "diverged_at": np.array(diverged), "stopped_at": np.full(2, -1)}
        study.add_trials(_told(optuna, space, rows, lo.Swept(trials, 1, {"loss": column}, {"loss": column}, **ends, **rest)))
    assert study.best_value == 5e9
    assert sum(trial.user_attrs.get("diverged", False) for trial in study.trials) == 3


def test_a_normal_number_is_searched_by_its_quantile():
    optuna = pytest.importorskip("optuna")
    from scipy import stats

    from lossopt_jax.sweep.search import _params, _suggested

    space = {"schedule.init": lo.normal(0.5, 0.1)}
    row = _suggested(optuna.trial.FixedTrial({"schedule.init (quantile)": 0.2}), space)
    assert row["schedule.init"] == pytest.approx(stats.truncnorm(-3, 3, 0.5, 0.1).ppf(0.2), rel=1e-12)
    assert _params(optuna, space, row)[0] == {"schedule.init (quantile)": pytest.approx(0.2, rel=1e-12)}


def test_a_sampler_that_is_exhausted_ends_the_search_with_what_was_found():
    optuna = pytest.importorskip("optuna")
    sampler = optuna.samplers.GridSampler({"schedule.init": [1e-3, 1e-2, 1e-1, 1.0]})
    with pytest.warns(Caution, match="GridSampler .* 8 of 12 trials were run"):
        swept = lo.search(LINEAR, RECIPE, {"schedule.init": lo.log_uniform(1e-4, 1e4)}, count=12, rounds=3, sampler=sampler, **KW)
    assert len(swept.trials) == 8
    grid = sorted(swept.trials.values(i)["schedule.init"] for i in range(4, 8))
    np.testing.assert_allclose(grid, [1e-3, 1e-2, 1e-1, 1.0], rtol=1e-6)


def test_a_search_of_losses_that_do_not_compare_says_so_with_one_trial_a_round_too():
    pytest.importorskip("optuna")
    x = np.ones((8, 3), np.float32)
    model = lo.Model(lambda key, x: (np.zeros(3, np.float32), {}), lambda params, state, x, *, key, train: (x @ params, state))
    recipe, space = RECIPE._replace(loss=lo.bind(lo.losses.huber)), {"loss.delta": lo.uniform(0.1, 1)}
    with pytest.warns(Caution, match="loss.delta is swept") as said:
        lo.search(model, recipe, space, count=3, rounds=3, train=(x, x[:, 0]), run=lo.Run(2, 8), plan=lo.LanePlan(1, 1))
    assert [warning.filename for warning in said] == [__file__]  # once, at the caller's line


def test_wrong_searches_are_named():
    pytest.importorskip("optuna")
    for wrong in ({"rounds": "2"}, {"count": 4.0}, {"seeds": 1.5}):
        with pytest.raises(TypeError, match=f"search: {next(iter(wrong))} must be a whole number, got"):
            lo.search(LINEAR, RECIPE, WIDE, **{"count": 4, "rounds": 2, **KW, **wrong})
    with pytest.raises(ValueError, match="count must be a multiple of rounds, got count=12 and rounds=5"):
        lo.search(LINEAR, RECIPE, WIDE, count=12, rounds=5, **KW)
    with pytest.raises(ValueError, match="search: cannot open the storage 'nowhere'"):
        lo.search(LINEAR, RECIPE, WIDE, count=12, rounds=3, storage="nowhere", **KW)
