"""What is kept of a result: folders that load again, how sure the best is, where to look further, runs compared, disks that fail."""

import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import sys

import jax
import numpy as np
import pytest
import tomli_w
from flax import linen as nn
from rich.console import Console
from scipy import stats

import lossopt_jax as lo
from lossopt_jax import checkpoint, config
from lossopt_jax.cli import main
from lossopt_jax.compare import compare
from lossopt_jax.plain import from_plain, to_plain
from lossopt_jax.report import folder, plots, results, tables
from lossopt_jax.sweep.metrics import Caution
from lossopt_jax.sweep.statistics import chances_of_best, smaller_rates, smallest_rate, wider

X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
MODEL = lo.from_linen(nn.Dense(1))
DATA = {"train": (X, 3 * X), "evaluate": (X, 3 * X)}
RUN = lo.Run(steps=30, batch_size=8, evaluate_every=10, history_every=4)
RECIPE = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
CONFIG = {
    "name": "small",
    "data": {"name": "diabetes"},
    "model": {"name": "mlp", "widths": [4]},
    "loss": {"name": "huber"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "constant", "value": 0.1},
    "run": {"steps": 5, "batch_size": 8},
}


@pytest.fixture(scope="module")
def swept():
    """Six rates, the last far too great, under three seeds."""
    trials = lo.grid(RECIPE, {"schedule.value": [1e-3, 1e-2, 1e-1, 0.3, 0.5, 1e9]})
    return lo.sweep(MODEL, trials, **DATA, run=RUN, seeds=3)


@pytest.fixture(scope="module")
def fitted():
    return lo.fit(MODEL, RECIPE, **DATA, run=RUN)


@pytest.fixture(scope="module")
def saved(swept, tmp_path_factory):
    return lo.save(swept, tmp_path_factory.mktemp("results") / "saved")


def made_up(trials, held_out):
    """A sweep of one step that came to these held-out losses, [trials] or [trials, seeds]."""
    losses = np.asarray(held_out, np.float32).reshape(len(trials), -1)
    column, none, seeds = losses.reshape(-1, 1), np.full(losses.size, -1), losses.shape[1]
    at = {"evaluation_steps": np.array([1]), "diverged_at": none, "stopped_at": none}
    rest = {"states": [], "places": [None] * losses.size, "plan": lo.LanePlan(1, 1), "seconds": 1.0, "compile_seconds": 1.0}
    return lo.Swept(trials=trials, seeds=seeds, history={"loss": column}, evaluations={"loss": column}, **at, **rest)


def no_pictures(monkeypatch):
    """They take most of the time and are tested elsewhere."""
    for name in ("write_curves", "write_sweep"):
        monkeypatch.setattr(plots, name, lambda *_, **__: None)


def same(a, b):
    """Equal, NaN to NaN."""
    np.testing.assert_equal(a, b)
    return True


# Folders


def test_a_held_out_loss_that_is_not_finite_at_the_end_is_not_that_of_before(swept):
    loss = swept.evaluations["loss"].copy()
    loss[4, -1] = np.nan
    metrics = dataclasses.replace(swept, evaluations={**swept.evaluations, "loss": loss}).lane_metrics()
    assert np.isnan(metrics["held_out_loss"][4])
    assert metrics["best_held_out_loss"][4] == np.nanmin(loss[4])
    assert metrics["held_out_loss"][3] == loss[3, -1]


def test_results_are_a_line_each(swept, fitted):
    best = swept.table()[0]["held_out_loss"]
    assert repr(swept).startswith(f"Swept({len(swept.trials)} trials x {swept.seeds} seeds, {swept.steps} steps, ")
    assert repr(swept).endswith(f"best held_out_loss {best:.4g})")
    assert repr(swept.trials).startswith(f"Trials({len(swept.trials)} recipes over ")
    assert repr(fitted).startswith(f"Fitted({fitted.evaluation_steps[-1]} steps, train loss ")


def test_a_sweep_comes_back_from_its_folder(swept, saved):
    again = lo.load(saved)
    assert again.trials.space == swept.trials.space
    assert all(a == b for a, b in zip(again.trials.recipes, swept.trials.recipes, strict=True))
    for field in dataclasses.fields(swept):
        if field.name not in ("trials", "states", "places"):
            assert same(getattr(again, field.name), getattr(swept, field.name)), field.name
    assert same(again.table(), swept.table())
    assert same(again.lane_rows(), swept.lane_rows())
    assert again.best() == swept.best()
    for method in ("importance", "chance_best", "edges", "wider", "best_lane"):
        assert getattr(again, method)() == getattr(swept, method)(), method
    assert [again.top(3, by=by) for by in ("mean", "median", "worst")] == [swept.top(3, by=by) for by in ("mean", "median", "worst")]
    kept, state = again.state(swept.best_lane()), swept.state(swept.best_lane())
    jax.tree.map(np.testing.assert_array_equal, kept.params, state.params)
    assert kept.step == RUN.steps
    np.testing.assert_array_equal(jax.random.key_data(kept.key), jax.random.key_data(state.key))
    with pytest.raises(ValueError, match=r"state of the best lane only .*not that of lane 0"):
        again.state(0)


def test_recipes_of_several_structures_come_back(tmp_path, monkeypatch):
    no_pictures(monkeypatch)
    falling = lo.bind(lo.optimizers.momentum, beta=lo.bind(lo.schedules.linear, init=0.9, total=6))
    steps = [lo.bind(lo.schedules.piecewise_constant, boundaries=b, values=v) for b, v in (([3], [0.1, 0.01]), ([2, 4], [0.1, 0.05, 0.01]))]
    recipes = [RECIPE, RECIPE._replace(optimizer=falling, clip_norm=np.float32(1 / 3)), *[RECIPE._replace(schedule=s) for s in steps]]
    swept = made_up(lo.Trials((*recipes, *recipes), {}), np.arange(8.0))
    again = lo.load(lo.save(swept, tmp_path))
    assert again.trials.recipes == swept.trials.recipes
    assert same(again.table(), swept.table())
    assert len(json.loads((tmp_path / "recipes.json").read_text())["structures"]) == 4


def test_a_run_comes_back_from_its_folder(fitted, tmp_path):
    again = lo.load(lo.save(fitted, tmp_path))
    for field in dataclasses.fields(fitted):
        if field.name != "state":
            assert same(getattr(again, field.name), getattr(fitted, field.name)), field.name
    jax.tree.map(np.testing.assert_array_equal, again.state.params, fitted.state.params)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(0, 30, 4))


def test_what_the_command_writes_comes_back_with_the_best_as_a_config(tmp_path, monkeypatch):
    no_pictures(monkeypatch)
    swept = write(tmp_path, {}, [[3.0, 3.0], [1.0, 1.5]])
    assert same(lo.load(tmp_path).table(), swept.table())
    best = config.load(tmp_path / "best.toml")
    assert (best.recipe, best.trials) == (swept.best(), None)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"]["trial"] == 1
    assert summary["chance_best"] == [{"trial": 1, "chance": 1.0}]
    assert summary["wider"] == {path: list(ends) for path, ends in swept.wider().items()}


def test_tables_in_every_form_hold_the_same(swept, saved):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    rows = swept.table()
    for frame in (swept.to_pandas().to_dict("records"), swept.to_polars().to_dicts()):
        assert [row["trial"] for row in frame] == [row["trial"] for row in rows]
        assert same([row["held_out_loss_sem"] for row in frame], [row["held_out_loss_sem"] for row in rows])
    parquet = polars.read_parquet(saved / "trials.parquet").to_dicts()
    assert same(parquet, swept.lane_rows())
    assert {key for key, value in parquet[0].items() if value is None} == {"diverged_at", "stopped_at"}
    read = pandas.read_csv(saved / "trials.csv")
    assert read["held_out_loss"].tolist()[:3] == [row["held_out_loss"] for row in swept.lane_rows()][:3]
    assert len((saved / "trials.csv").read_text().splitlines()) == 1 + swept.lanes


def test_tables_of_two_sweeps_have_the_same_types_and_say_what_a_trial_does_not_have(tmp_path, monkeypatch):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    no_pictures(monkeypatch)
    # More rows than the 100 that polars looks at, the first of them whole numbers, and steps at which later ones were stopped.
    trials = lo.grid(RECIPE, {"model.dropout": [0, 0.25], "schedule.value": np.linspace(0.01, 0.1, 110).tolist()})
    plain = made_up(trials, np.arange(220.0))
    stopped = dataclasses.replace(plain, stopped_at=np.where(np.arange(220) < 150, -1, 1), evaluation_steps=np.array([5]))
    for swept in (plain, stopped):
        frame = swept.to_polars()
        assert frame["model.dropout"].sum() == pytest.approx(110 * 0.25)
        assert frame["stopped_at"].dtype == polars.Int64
        other = swept.to_pandas()
        assert {str(other[name].dtype) for name in ("trial", "stopped_at", "diverged")} == {"Int64"}
        assert {str(other[name].dtype) for name in ("model.dropout", "held_out_loss")} == {"float64"}
        assert other["stopped_at"].isna().sum() == frame["stopped_at"].null_count()
    places = [lo.save(swept, tmp_path / name) / "trials.parquet" for name, swept in (("a", plain), ("b", stopped))]
    both = polars.read_parquet(places)
    assert both.schema["diverged_at"] == both.schema["stopped_at"] == polars.Int64
    assert (len(both), both["stopped_at"].null_count()) == (440, 220 + 150)

    parts = lo.choice([lo.bind(lo.optimizers.sgd), lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.9))])
    swept = made_up(lo.sample(RECIPE, {"optimizer": parts}, count=8), [np.nan, *range(7)])
    place = lo.save(swept, tmp_path / "c")
    without = sum(swept.trials.values(i)["optimizer"] == "sgd" for i in range(8))
    for frame in (swept.to_polars(), polars.read_parquet(place / "trials.parquet"), polars.read_csv(place / "trials.csv")):
        assert frame["momentum.beta"].null_count() == without
        assert frame["held_out_loss"].is_nan().sum() == 1  # a metric that is not a number stays one
    assert swept.to_pandas()["momentum.beta"].isna().sum() == without
    assert len(pandas.read_csv(place / "trials.csv")) == 8
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for way in (swept.to_polars, swept.to_pandas):
        with pytest.raises(ImportError, match=r"needs (polars|pandas): pip install 'lossopt_jax\[tables\]'"):
            way()


def test_a_result_equals_what_comes_back_and_no_other(swept, saved):
    assert swept == lo.load(saved)
    assert swept == dataclasses.replace(swept, seconds=9.0, compile_seconds=9.0, plan=lo.LanePlan(1, 3))
    assert swept != dataclasses.replace(swept, stopped_at=np.arange(18))
    assert swept != dataclasses.replace(swept, trials=lo.Trials(swept.trials.recipes[::-1], swept.trials.space, swept.trials.drawn[::-1]))
    assert swept != 3


def test_a_config_that_is_written_draws_the_same_trials(tmp_path):
    """A list of parts stays behind the numbers that were listed before it: the order decides which column of the sequence is whose."""
    parts = [{"name": "sgd"}, {"name": "momentum", "beta": {"uniform": [0.5, 0.9]}, "weight_decay": {"log_uniform": [1e-5, 1e-2]}}]
    space = {
        "schedule.value": {"log_uniform": [1e-4, 1]},
        "optimizer": parts,
        "run.batch_size": {"choice": [8, 16]},
        "loss.delta": {"fixed": 2},
    }
    made = config.experiment(
        CONFIG | {"sweep": {"count": 4, "space": space, "stop": {"name": "halving", "rungs": 2}}, "name": 'a "b\\'[:1]}
    )
    results.write_config(tmp_path, made.resolved)
    again = config.load(tmp_path / "config.toml")
    assert again.resolved == made.resolved
    assert list(again.trials.space) == list(made.trials.space)
    assert again.trials.recipes == made.trials.recipes
    assert '"schedule.value" = { log_uniform = [0.0001, 1.0] }' in (tmp_path / "config.toml").read_text()


def test_parquet_by_pyarrow_where_there_is_no_polars(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(folder, "find_spec", lambda name: name == "pyarrow")
    folder.write_parquet(tmp_path / "a.parquet", [{"a": 1.5, "b": None}, {"a": np.float32(2), "c": "x"}])
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == [{"a": 1.5, "b": None, "c": None}, {"a": 2.0, "b": None, "c": "x"}]
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    folder.write_parquet(tmp_path / "b.parquet", [{"a": 1}])
    assert not (tmp_path / "b.parquet").exists()


def test_recipes_keep_their_bits_and_name_what_cannot_be_imported():
    odd = np.float32(0.1) + np.spacing(np.float32(0.1))
    recipe = RECIPE._replace(schedule=lo.bind(lo.schedules.constant, value=odd), clip_norm=np.float32("nan"))
    read = from_plain(json.loads(json.dumps(to_plain(recipe), allow_nan=False)))
    assert read.schedule.hparams["value"] == odd
    assert np.isnan(read.clip_norm)
    masked = RECIPE._replace(optimizer=lo.bind(lo.optimizers.adamw, mask=lo.optimizers.decay_matrices_only))
    assert from_plain(to_plain(masked)) == masked
    local = from_plain(to_plain(RECIPE._replace(loss=lo.bind(lambda outputs, targets: outputs))))
    assert "<lambda>" in repr(local.loss)
    assert local == from_plain(to_plain(local))
    with pytest.raises(TypeError, match=r"<lambda> was part of a saved recipe and cannot be imported here"):
        local.loss(X, X)


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (shutil.rmtree, FileNotFoundError, "there is no folder"),
        (lambda place: (shutil.rmtree(place), place.touch()), FileNotFoundError, "is a file, not the folder of a run"),
        (lambda place: [path.unlink() for path in place.iterdir()], ValueError, "holds no run"),
        (lambda place: (place / "summary.json").unlink(), ValueError, "without its summary.json: it is damaged"),
        (lambda place: ((place / "summary.json").unlink(), (place / "state").mkdir()), ValueError, "not finished: .*--resume"),
        (lambda place: (place / "history.npz").unlink(), ValueError, "damaged: history.npz is missing"),
        (lambda place: (place / "history.npz").write_bytes((place / "history.npz").read_bytes()[:-99]), ValueError, "damaged"),
        (lambda place: (place / "recipes.json").write_text("{"), ValueError, "damaged"),
        (lambda place: (place / "best_params.msgpack").write_bytes(b"\x81"), ValueError, "damaged"),
        (lambda place: change(place / "recipes.json", lambda plain: plain["trials"].pop()), ValueError, "15 lanes and history.npz has not"),
        (lambda place: change(place / "summary.json", lambda plain: plain.update(format=2)), ValueError, "in format 2 by .*reads format 1"),
        (lambda place: change(place / "summary.json", lambda plain: plain.pop("format")), ValueError, "without a format"),
        (lambda place: change(place / "summary.json", lambda plain: plain.update(what="x")), ValueError, "neither a sweep, a run nor"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_one_clear_error(saved, tmp_path, harm, error, words):
    place = shutil.copytree(saved, tmp_path / "run")
    harm(place)
    with pytest.raises(error, match=words) as failed:
        lo.load(place)
    assert str(place) in str(failed.value)
    assert "\n" not in str(failed.value)


def change(path, edit):
    plain = json.loads(path.read_text())
    edit(plain)
    path.write_text(json.dumps(plain))


def test_save_takes_results_and_leaves_other_files_alone(swept, saved):
    with pytest.raises(FileExistsError, match="is not empty"):
        lo.save(swept, saved)
    with pytest.raises(TypeError, match="must be a Swept, a Fitted or an LRFinding, got dict"):
        lo.save({}, saved)


# How sure, what mattered, where to look


def test_chances_equal_the_whole_bootstrap_distribution():
    values = np.array([[1.0, 2.0, 4.0], [1.5, 2.5, 3.5]])
    means = values.mean(1, keepdims=True)
    scaled = means + math.sqrt(3 / 2) * (values - means)  # so that the resampled mean's variance is s^2 / 3
    first, second = ([np.mean(draw) for draw in itertools.product(row, repeat=3)] for row in scaled)
    wins = np.mean([1.0 if a < b - 1e-12 else 0.5 if abs(a - b) <= 1e-12 else 0.0 for a in first for b in second])
    np.testing.assert_allclose(chances_of_best(values), [wins, 1 - wins], atol=4 * 0.5 / math.sqrt(4000))
    assert chances_of_best(np.array([[1.0, 2.0], [1.0, 2.0], [9.0, 9.1]]))[2] == 0
    np.testing.assert_array_equal(chances_of_best(values), chances_of_best(values))


def test_the_chance_that_the_best_is_best(swept):
    chances = swept.chance_best()
    assert sum(chances.values()) == pytest.approx(1)
    assert next(iter(chances)) == swept.best_trial()
    assert 5 not in chances  # it diverged
    row = next(row for row in swept.table() if row["trial"] == 2)
    final = swept.evaluation["loss"].reshape(6, 3)[2]
    assert row["held_out_loss_sem"] == pytest.approx(stats.sem(final))
    assert swept.best_lane() == 3 * swept.best_trial() + int(np.argmin(swept.evaluation["loss"].reshape(6, 3)[swept.best_trial()]))
    with pytest.raises(ValueError, match="needs at least two seeds"):
        dataclasses.replace(swept, seeds=1).chance_best()


def of_losses(losses, distribution, values):
    """A sweep of one number with these held-out losses."""
    recipes = tuple(lo.with_numbers(RECIPE, {"schedule.value": value}) for value in values)
    return made_up(lo.Trials(recipes, {"schedule.value": distribution}), losses)


def test_importance_sees_a_valley_and_not_what_does_nothing():
    rng = np.random.default_rng(0)
    places = rng.random(64)
    valley = of_losses((places - 0.5) ** 2, lo.log_uniform(1e-4, 1.0), 1e-4 ** (1 - places))
    assert valley.importance()["schedule.value"] > 0.95
    idle = of_losses(rng.random(64), lo.uniform(0, 1), places)
    assert idle.importance()["schedule.value"] < 0.3
    assert tables.importance_line(idle.importance(), "held_out_loss", 64).startswith("what mattered: the held-out loss follows none")
    line = tables.importance_line({"schedule.value": 0.93, "loss.delta": 0.1}, "held_out_loss", 64)
    assert line.startswith("what mattered: schedule.value (rank correlation 0.93)")
    assert line.endswith("no effect seen of loss.delta")


def test_fanova_gives_the_number_that_decides_the_variance():
    pytest.importorskip("optuna")
    rng = np.random.default_rng(0)
    rates, decays = 10 ** rng.uniform(-4, 0, 40), rng.choice([0.0, 0.1], 40)
    values = [{"schedule.value": rate, "optimizer.weight_decay": decay} for rate, decay in zip(rates, decays, strict=True)]
    space = {"schedule.value": lo.log_uniform(1e-4, 1.0), "optimizer.weight_decay": lo.choice([0.0, 0.1])}
    swept = made_up(lo.Trials(tuple(lo.with_numbers(RECIPE, own) for own in values), space), (np.log10(rates) + 2) ** 2)
    shares = swept.fanova()
    assert shares["schedule.value"] > 0.9
    assert shares["optimizer.weight_decay"] < 0.05
    for alike in (np.ones(40), np.r_[1.0, np.full(39, np.nan)], np.full(40, np.nan)):  # nothing that varies
        assert made_up(swept.trials, alike).fanova() == {"schedule.value": 0, "optimizer.weight_decay": 0}


def test_what_mattered_of_a_choice_of_parts():
    momentum = lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.99))
    space = {"optimizer": lo.choice([lo.bind(lo.optimizers.sgd), momentum]), "schedule.value": lo.log_uniform(1e-3, 1.0)}
    trials = lo.sample(RECIPE, space, count=32)
    swept = made_up(trials, [trials.values(i)["optimizer"] == "sgd" for i in range(32)])
    assert swept.importance()["optimizer"] == pytest.approx(1)
    assert swept.fanova()["optimizer"] > 0.9
    assert any(line.startswith("what mattered: optimizer (rank correlation 1.00, fANOVA ") for line in shown(swept))


@pytest.mark.parametrize(
    ("path", "distribution", "end", "expected"),
    [
        ("schedule.peak", lo.log_uniform(1e-5, 1.0), "high", (1e-5, 10)),
        ("schedule.peak", lo.log_uniform(1e-5, 1.0), "low", (1e-6, 1)),
        ("schedule.warmup", lo.uniform(0, 300), "high", (0, 500)),  # no longer than the schedule
        ("schedule.warmup", lo.uniform(0, 300), "low", None),
        ("optimizer.b1", lo.uniform(0.5, 0.99), "high", (0.5, 0.995)),  # below 1
        ("optimizer.b1", lo.uniform(0.5, 0.99), "low", (0.01, 0.99)),
        ("loss.delta", lo.uniform(0.5, 1), "low", (0.25, 1)),  # above 0
        ("loss.label_smoothing", lo.uniform(0, 0.8), "high", (0, 1)),
        ("loss.gamma", lo.int_uniform(1, 8), "high", (1, 16)),
        ("loss.gamma", lo.choice([1, 2, 3]), "high", None),
    ],
)
def test_the_wider_range_to_try_is_one_that_a_config_takes(path, distribution, end, expected):
    recipe = RECIPE._replace(schedule=lo.bind(lo.schedules.warmup_cosine, peak=0.1, warmup=10, total=500))
    assert wider("momentum.beta", lo.uniform(0.5, 0.99), "high", recipe._replace(optimizer=lo.bind(lo.optimizers.momentum))) == (0.5, 0.995)
    assert wider(path, distribution, end, recipe) == (None if expected is None else pytest.approx(expected))


def test_a_best_at_the_edge_is_said_with_what_to_try():
    rates = np.geomspace(1e-3, 1e-1, 20)
    edge = of_losses(1 - rates, lo.log_uniform(1e-3, 1e-1), rates)
    assert (edge.edges(), edge.wider()) == ({"schedule.value": "high"}, {"schedule.value": (1e-3, 1.0)})
    assert shown(edge)[-2].startswith("schedule.value: the best, 0.1, lies at the high end of its range 0.001 to 0.1: try 0.001 to 1")


def test_of_listed_numbers_only_the_first_and_the_last_are_at_an_edge():
    listed = [10.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0]  # in any order
    for best, expected in ((1e-2, {}), (1e-3, {}), (1e-4, {"schedule.value": "low"}), (10.0, {"schedule.value": "high"})):
        swept = of_losses([abs(math.log10(value / best)) for value in listed], lo.choice(listed), listed)
        assert swept.edges() == expected
    distribution = lo.choice(listed)
    assert [distribution.position(np.float32(value)) for value in sorted(listed)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    # Farther from the best by its place in the order, and so worse: a correlation of 1, which linear distance does not see.
    values = [1e-4, 1e-3, 1e-2, 0.1, 1.0]
    valley = of_losses([2.0, 1.0, 0.0, 1.0, 2.0] * 4, lo.choice(values), values * 4)
    assert valley.importance()["schedule.value"] == pytest.approx(1)


def test_trials_of_different_losses_are_not_said_to_be_ranked(tmp_path, monkeypatch):
    rates = np.geomspace(1e-3, 1e-1, 20)
    huber = RECIPE._replace(loss=lo.bind(lo.losses.huber))
    recipes = tuple(lo.with_numbers(huber, {"loss.delta": rate, "schedule.value": rate}) for rate in rates)
    swept = made_up(lo.Trials(recipes, {"loss.delta": lo.uniform(1e-3, 1e-1), "schedule.value": lo.uniform(1e-3, 1e-1)}), 1 - rates)
    words = (
        "loss.delta is swept: values of different losses cannot be compared, and there is no accuracy to rank by; give the recipe a metric"
    )
    assert swept.incomparable().startswith(words)
    assert repr(swept).endswith("; of different losses, see incomparable())")
    lines = shown(swept)
    assert any(line.startswith(words) for line in lines)
    assert not any("mattered" in line or "lies at" in line for line in lines)
    no_pictures(monkeypatch)
    summary = json.loads((lo.save(swept, tmp_path) / "summary.json").read_text())
    assert summary["incomparable"].startswith(words)
    assert summary["importance"] == summary["edges"] == summary["wider"] == {}
    assert swept.edges() == {"schedule.value": "high"}
    parts = lo.sample(RECIPE, {"loss": lo.choice([lo.bind(lo.losses.mse), lo.variant(lo.losses.huber, delta=lo.uniform(1, 2))])}, count=4)
    assert made_up(parts, range(4)).incomparable().startswith("loss, huber.delta are swept: ")
    assert made_up(lo.Trials((RECIPE, huber), {}), [1.0, 2.0]).incomparable().startswith("values of different losses")
    assert of_losses(1 - rates, lo.uniform(1e-3, 1e-1), rates).incomparable() is None
    assert made_up(lo.sample(huber, {"loss.delta": lo.fixed(2.0)}, count=4), range(4)).incomparable() is None
    losses = {"loss": swept.evaluations["loss"], "accuracy": swept.evaluations["loss"]}
    assert dataclasses.replace(swept, evaluations=losses).incomparable() is None
    with pytest.warns(Caution, match="loss.delta is swept"):
        lo.sweep(MODEL, swept.trials, **DATA, run=lo.Run(steps=4, batch_size=8), stop=lo.halving(reduction=2, rungs=2))


def test_a_diverged_trial_is_no_best_by_what_it_was_before():
    best = np.array([[3.0, np.nan], [1.0, np.nan], [4.0, 2.0]])
    trials = lo.grid(RECIPE, {"schedule.value": [0.1, 0.2, 0.3]})
    swept = dataclasses.replace(
        made_up(trials, [0, 0, 0]), evaluations={"loss": best}, evaluation_steps=np.array([1, 2]), diverged_at=np.array([1, 1, -1])
    )
    assert swept.top(3, "best_held_out_loss") == [2]
    dead = dataclasses.replace(swept, diverged_at=np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="every lane diverged"):
        dead.best("best_held_out_loss")
    with pytest.raises(TypeError, match=r"top: k must be a whole number, got 1\.5"):
        swept.top(1.5)


def test_what_labels_of_one_name_stand_for():
    masked = lo.variant(lo.optimizers.adamw, mask=lo.optimizers.decay_matrices_only, weight_decay=lo.uniform(0, 0.5))
    several = [lo.variant(lo.optimizers.adamw, weight_decay=lo.uniform(0, 0.1)), masked, lo.bind(lo.optimizers.adamw, b1=0.5)]
    trials = lo.sample(RECIPE, {"optimizer": lo.choice(several)}, count=8)
    lines = shown(made_up(trials, range(8)))
    assert "adamw-2: adamw with mask=decay_matrices_only" in lines
    assert "adamw-3: adamw with b1=0.5" in lines
    assert "what mattered: 8 recipes that can be ranked are too few to tell, of 16 on it is said" in lines


def test_a_label_says_what_is_its_own_where_the_first_sweeps_it_or_was_never_drawn():
    def lines(parts, drawn):
        every = lo.sample(RECIPE, {"optimizer": lo.choice(parts)}, count=16)
        kept = [i for i in range(16) if every.values(i)["optimizer"] in drawn]
        trials = lo.Trials(tuple(every.recipes[i] for i in kept), every.space, tuple(every.drawn[i] for i in kept))
        return [line for line in shown(made_up(trials, range(len(kept)))) if re.match(r"\w+-\d: ", line)]

    swept, momentum = lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.9)), lo.optimizers.momentum
    both = {"momentum", "momentum-2"}
    assert lines([swept, lo.bind(momentum, beta=0.95)], both) == ["momentum-2: momentum with beta=0.95"]
    assert lines([swept, lo.bind(momentum)], both) == ["momentum-2: momentum with beta=0.9"]  # the default
    assert lines([lo.bind(momentum), swept], both) == ["momentum-2: momentum with its own numbers"]
    three = [lo.bind(lo.optimizers.adamw, **own) for own in ({}, {"b1": 0.5}, {"b1": 0.7})]
    assert lines(three, {"adamw-2", "adamw-3"}) == ["adamw-2: adamw with b1=0.5", "adamw-3: adamw with b1=0.7"]
    assert lines(three[::-1], {"adamw", "adamw-3"}) == ["adamw-3: adamw with b1=0.9"]


def shown(swept):
    file = io.StringIO()
    results.show_sweep(swept, Console(file=file, width=100))
    return file.getvalue().splitlines()


def test_why_nothing_ran_to_the_end(swept, tmp_path, monkeypatch):
    no_pictures(monkeypatch)
    assert swept.failure() is None
    alike = dataclasses.replace(swept, diverged_at=np.full(18, 3))
    assert alike.failure().startswith("every lane diverged, all at step 3, as where the data holds what is not finite; the smallest")
    dead = dataclasses.replace(swept, diverged_at=np.arange(18) // 9 + 3)
    assert dead.failure() == "every lane diverged; the smallest learning rate was 0.001: try 1e-06 to 0.0001"
    assert dead.failure() in shown(dead)
    assert lo.load(lo.save(dead, tmp_path)).failure() == dead.failure()
    assert json.loads((tmp_path / "summary.json").read_text())["failure"] == dead.failure()
    assert not (tmp_path / "best_params.msgpack").exists()
    with pytest.raises(ValueError, match="every lane diverged; the smallest"):
        dead.best()
    one_seed = dataclasses.replace(swept, diverged_at=np.tile([3, -1, -1], 6))
    assert one_seed.failure().startswith("every recipe diverged under one of its seeds at least (6 of 18 lanes); the smallest")
    mixed = dataclasses.replace(swept, stopped_at=np.where(swept.diverged_at < 0, 10, -1))
    assert mixed.failure() == "no recipe ran to the end: 1 of 6 diverged, 5 were stopped early"
    bad = dataclasses.replace(dead, history={**swept.history, "loss": np.full((18, 8), np.nan)})
    assert "not finite before any update: look at the data" in bad.failure()
    unknown = dataclasses.replace(swept, diverged_at=np.full(18, -1), evaluations={"loss": np.full_like(swept.evaluations["loss"], np.nan)})
    assert unknown.failure() == "no recipe has a finite held_out_loss, though training went on to the end: look at the held-out data"
    assert unknown.failure() in shown(unknown)
    with pytest.raises(ValueError, match="k must be at least 1, got -1"):
        swept.top(-1)


def test_the_spread_of_huge_losses_is_a_number(swept):
    """Their squares are beyond float32, and a warning is an error here."""
    held_out = swept.evaluations["loss"]
    huge = dataclasses.replace(
        swept, evaluations={"loss": np.linspace(1, 2, held_out.size, dtype=np.float32).reshape(held_out.shape) * 1e25}
    )
    assert all(0 < row["held_out_loss_sem"] < 1e26 for row in huge.table() if row["status"] == "ok")


def test_what_to_try_after_divergence():
    assert smaller_rates(1e-2) == "the smallest learning rate was 0.01: try 1e-05 to 0.001"
    assert smaller_rates(1e30).endswith("try 0.001 to 0.1")
    assert "look at the data" in smaller_rates(1e-8)
    assert smaller_rates(math.inf) == "no learning rate was above 0 and finite"
    warm = lo.bind(lo.schedules.warmup_cosine, peak=0.5, warmup=10, total=500)
    nan = RECIPE._replace(schedule=lo.bind(lo.schedules.constant, value=np.nan))
    assert smallest_rate([RECIPE._replace(schedule=warm), nan], 500) == pytest.approx(0.5)


# Comparisons


def write(place, changes, held_out):
    """Write the folder of a sweep of two recipes that a config gave, with made-up held-out losses [2 recipes, seeds]."""
    table = {"count": 2, "seeds": len(held_out[0]), "space": {"schedule": {"value": {"uniform": [0.1, 0.2]}}}}
    experiment = config.experiment(CONFIG | changes | {"sweep": table})
    swept = made_up(experiment.trials, held_out)
    place.mkdir(exist_ok=True)
    results.write_sweep(place, experiment, swept)
    return swept


def test_comparing_says_what_differs_and_how_sure_it_is(tmp_path, monkeypatch, capsys):
    no_pictures(monkeypatch)
    first, second, close = (tmp_path / name for name in "abc")
    write(first, {}, [[1.0, 1.1, 1.2], [3.0, 3.0, 3.0]])
    write(second, {"optimizer": {"name": "momentum"}}, [[9.0, 9.0, 9.0], [1.3, 1.5, 1.4]])
    write(close, {}, [[1.0, 1.3, 1.2], [3.0, 3.0, 3.0]])
    found = compare([first, second])
    assert found.metric == "held_out_loss"
    assert found.differ["optimizer.name"] == ["sgd", "momentum"]
    assert found.differ["schedule.value"] == [pytest.approx(lo.load(p).table()[0]["schedule.value"]) for p in (first, second)]
    assert "run.steps" not in found.differ
    # By hand: means 1.1 and 1.4, variances 0.01 each, so t = 0.3 / sqrt(0.02 / 3) with 4 degrees of freedom.
    p = stats.t.sf(0.3 / math.sqrt(0.02 / 3), 4)
    assert found.lines == [
        f"{first} is better than {second}: held-out loss 1.1 against 1.4, 0.3 ± 0.08165 apart; "
        f"sure to {100 * (1 - p):.3g}% (Welch's t-test over 3 seeds each)"
    ]
    assert "seems better than" in compare([close, first]).lines[0]
    monkeypatch.setattr(sys, "argv", ["lossopt", "compare", str(first), str(second)])
    with pytest.raises(SystemExit) as exited:
        main()
    assert not exited.value.code
    printed = capsys.readouterr().out
    assert found.lines[0] in printed
    assert "1.1000 ±0.0577" in printed
    assert "momentum" in printed


def test_runs_of_other_tasks_or_losses_are_not_compared_by_loss(tmp_path, monkeypatch, swept, fitted):
    no_pictures(monkeypatch)
    one, other, third = (tmp_path / name for name in "abc")
    write(one, {}, [[1.0], [2.0]])
    write(other, {"loss": {"name": "mse"}}, [[1.0], [2.0]])
    write(third, {"data": {"name": "digits"}, "loss": {"name": "cross_entropy"}}, [[1.0], [2.0]])
    assert compare([one, third]).lines == [f"losses of different tasks cannot be compared: {one} is of diabetes, {third} is of digits"]
    assert compare([one, other]).metric is None
    assert "values of different losses cannot be compared" in compare([one, other]).lines[0]
    assert "have the same held-out loss" in compare([one, one]).lines[0]
    kept = [lo.save(swept, tmp_path / "swept"), lo.save(fitted, tmp_path / "fitted")]
    lines = compare(kept).lines
    assert "does not say what data or loss it was" in lines[0]
    with pytest.raises(ValueError, match="at least two folders, got 1"):
        compare([one])


def test_recipes_of_different_losses_are_ranked_by_the_metric_that_they_share(tmp_path, monkeypatch):
    no_pictures(monkeypatch)
    losses = [lo.bind(lo.losses.mse), lo.bind(lo.losses.mae), lo.bind(lo.losses.huber, delta=0.1)]
    y = 3 * X + np.float32(5) * (np.arange(len(X)) % 7 == 0)[:, None].astype(np.float32)
    base = RECIPE._replace(metric=lo.bind(lo.losses.mae))
    trials = lo.sample(base, {"loss": lo.choice(losses), "schedule.value": lo.log_uniform(1e-3, 1.0)}, count=8)
    run = lo.Run(steps=40, batch_size=16)
    swept = lo.sweep(MODEL, trials, train=(X, y), evaluate=(X, y), run=run)
    assert swept.default_metric() == "held_out_mae"
    assert swept.incomparable() is None
    for trial in range(len(trials)):  # each lane's own outputs, by the definition
        outputs = MODEL.apply(swept.state(trial).params, {}, X, key=jax.random.key(0), train=False)[0]
        assert swept.evaluation["mae"][trial] == pytest.approx(np.abs(np.asarray(outputs, np.float64) - y).mean(), rel=1e-5)
    assert swept.best_trial() == np.argmin(swept.evaluation["mae"])
    assert {"held_out_loss", "held_out_mae", "best_held_out_mae"} <= swept.table()[0].keys()
    back = lo.load(lo.save(swept, tmp_path / "swept"))
    assert back == swept
    assert back.trials.recipes[0].metric == base.metric
    stopped = lo.sweep(MODEL, trials, train=(X, y), evaluate=(X, y), run=run, stop=lo.halving(reduction=2, rungs=2))
    # Half of them go on past the half of the run: those with the least metric there, whatever their losses say.
    half = lo.sweep(MODEL, trials, train=(X, y), evaluate=(X, y), run=dataclasses.replace(run, steps=stopped.stopped_at.max()))
    kept = np.flatnonzero(stopped.stopped_at < 0)
    assert set(kept) == set(np.argsort(half.evaluation["mae"])[: len(kept)])
    with pytest.raises(ValueError, match="all recipes must have the same metric"):
        lo.Trials((base, RECIPE), {})
    with pytest.raises(ValueError, match="all recipes must have the same metric"):
        lo.sample(base._replace(metric=losses[2]), {"metric.delta": lo.uniform(0.1, 1.0)}, count=2)
    with pytest.raises(TypeError, match=r"recipe\.metric must be bound"):
        lo.fit(MODEL, base._replace(metric=lo.losses.mae), train=(X, y), run=run)

    def accuracy(outputs, targets):
        return (outputs == targets).astype(np.float32)

    with pytest.raises(ValueError, match="of a metric less is better, and the name 'accuracy' is taken"):
        lo.fit(MODEL, base._replace(metric=lo.bind(accuracy)), train=(X, y), run=run)


def test_runs_of_different_losses_are_compared_by_the_metric_of_their_configs(tmp_path, monkeypatch):
    no_pictures(monkeypatch)
    table = {"data": {"name": "diabetes"}, "model": {"name": "mlp"}, "optimizer": {"name": "adam"}}
    table |= {"schedule": {"name": "constant", "value": 0.01}, "run": {"steps": 20, "batch_size": 32}}
    for name, loss, metric in (("a", "mse", "mae"), ("b", "huber", "mae"), ("c", "huber", "log_cosh")):
        made = config.experiment(table | {"loss": {"name": loss}, "metric": {"name": metric}})
        (tmp_path / name).mkdir()
        fitted = lo.fit(made.model, made.recipe, train=made.task.train, evaluate=made.task.evaluate, run=made.run)
        results.write_run(tmp_path / name, made, fitted)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.metric == "held_out_mae"
    assert "held-out mae" in found.lines[-1]
    assert compare([tmp_path / "b", tmp_path / "c"]).metric == "held_out_loss"
    assert compare([tmp_path / "a", tmp_path / "c"]).metric is None


@pytest.mark.parametrize("name", ["config.toml", "summary.json"])
def test_what_is_damaged_is_named_where_a_run_is_to_go_on(name, tmp_path):
    (tmp_path / "config.toml").write_text("name = 'a'")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / name).write_text('{"name": "a')
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*cannot be gone on with; --overwrite it"):
        results.finished(tmp_path, {"name": "a"}, {"what": "sweep"})


# Disks that fail


def test_a_run_goes_on_where_it_cannot_be_saved(fitted, tmp_path, monkeypatch):
    def no_space(*_):
        monkeypatch.setattr(checkpoint, "open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115

    place = tmp_path / "run"
    with pytest.warns(
        checkpoint.NotSaved, match=r"cannot write .*record.*No space left on device; the run goes on, saved up to step 10"
    ) as told:
        run = lo.fit(MODEL, RECIPE, **DATA, run=RUN, checkpoint=place, save_every=0, on_chunk=no_space)
    assert len(told) == 1
    np.testing.assert_array_equal(run.history["loss"], fitted.history["loss"])


def test_a_folder_that_vanishes_is_made_again(fitted, tmp_path):
    place = tmp_path / "run"
    run = lo.fit(
        MODEL, RECIPE, **DATA, run=RUN, checkpoint=place, save_every=0, on_chunk=lambda _: shutil.rmtree(place, ignore_errors=True)
    )
    np.testing.assert_array_equal(run.history["loss"], fitted.history["loss"])


def test_a_state_that_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint._write_state(tmp_path / "state-1", [np.zeros(3)])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.toml").write_text(tomli_w.dumps(CONFIG))
    (tmp_path / "out" / "curves.png").mkdir(parents=True)  # in the way of a picture
    monkeypatch.setattr(sys, "argv", ["lossopt", "train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--overwrite"])
    with pytest.raises(SystemExit) as exited:
        main()
    out, err = capsys.readouterr()
    assert exited.value.code == 1
    assert "held-out loss" in out
    assert err.startswith("lossopt: cannot write to the folder")
    assert "what was found is printed above, and --resume" in err
    assert len(err.splitlines()) == 1
