"""Tuning: its stages, its budget, that it is honest about the recipe it was given, and that it goes on where it was cut off."""

import importlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import lossopt_jax as lo

TASK = lo.data.digits()
LINEAR = lo.Model(lambda key, x: (jax.random.normal(key, (64, 10)) * 0.01, {}), lambda params, state, x, *, key, train: (x @ params, state))
RUN = lo.Run(steps=40, batch_size=32, chunk=10)
SLOW = lo.Recipe(lo.bind(lo.losses.cross_entropy), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.cosine, init=1e-6, total=40))
DATA = {"train": TASK.train, "evaluate": TASK.evaluate, "run": RUN}


@pytest.fixture(scope="module")
def tuned():
    stages = []
    families = [SLOW.optimizer, lo.bind(lo.optimizers.momentum)]
    found = lo.tune(LINEAR, SLOW, **DATA, families=families, lane_steps=40 * 20, on_stage=lambda stage: stages.append(stage) or ())
    return found, stages


def test_a_rate_that_crawls_is_found_and_beaten(tuned):
    found, stages = tuned
    assert [stage.name for stage in stages] == ["rates", "sweep", "final"]
    assert found.improved
    assert [row["which"] for row in found.table()] == ["tuned", "as given"]
    assert found.table()[0]["held_out_loss"] < 0.5 * found.table()[1]["held_out_loss"]
    assert found.recipe is found.final.trials.recipes[0]
    assert found.recipe is not SLOW


def test_the_stages_stay_within_the_budget_and_say_what_they_took(tuned):
    found, stages = tuned
    assert sum(found.lane_steps.values()) <= 40 * 20
    assert found.lane_steps["sweep"] == stages[1].lane_steps == found.swept.lane_steps
    assert found.lane_steps["final"] == 6 * 40


def test_what_was_tuned_prints_as_one_line(tuned):
    found, _ = tuned
    assert repr(found) == f"Tuned({found.recipe!r}, improved=True, lane_steps={found.lane_steps})"
    assert "\n" not in repr(found)
    assert len(repr(found)) < 1000


def test_all_stages_of_an_optimizer_run_one_program():
    program = importlib.import_module("lossopt_jax.sweep.program")
    compiled = program._compiled.cache_info().misses
    smaller = {**DATA, "run": replace(RUN, batch_size=16)}  # so that nothing here has been compiled before
    lo.tune(LINEAR, SLOW, **smaller, families=[SLOW.optimizer], lane_steps=40 * 15)
    assert program._compiled.cache_info().misses == compiled + 1


def test_a_lane_of_a_stage_is_the_recipe_by_itself(tuned):
    final = tuned[0].final
    alone = lo.fit(LINEAR, SLOW, **{**DATA, "run": replace(RUN, seed=2)})
    assert final.trials.recipes[1] is SLOW
    np.testing.assert_allclose(final.history["loss"][final.seeds + 1], alone.history["loss"], rtol=1e-6)


def test_a_larger_budget_has_finalists_and_then_seeds(monkeypatch):
    monkeypatch.setattr(importlib.import_module("lossopt_jax.tune"), "MANY", 40)
    found = lo.tune(LINEAR, SLOW, **DATA, families=[SLOW.optimizer], lane_steps=40 * 60)
    # Of 2,400 lane-steps three tenths are the last stage's: 6 recipes x 3 seeds x 40. 16 x 4 are the rates', and 538 are left for each of
    # 3 seeds of the sweep. With rungs at 4, 13 and 40 steps n trials take 4 n + 9 (n / 3) + 27 (n / 9): 500 where n = 53, 540 where 54.
    assert (found.swept.seeds, found.final.seeds, len(found.final.trials)) == (3, 3, 6)
    assert len(found.swept.trials) == 53
    assert found.final.trials.recipes == (*(found.swept.trials.recipes[i] for i in found.swept.top(5)), SLOW)
    assert sum(found.lane_steps.values()) <= 40 * 60
    assert [row["which"] for row in found.table()] == ["tuned", *["finalist"] * 4, "as given"]
    assert [row["trial"] for row in found.table()] == found.final.top(6)
    fresh = lo.fit(LINEAR, SLOW, **{**DATA, "run": replace(RUN, seed=3)})  # the sweep had 0, 1 and 2
    np.testing.assert_allclose(found.final.history["loss"][5 * 3], fresh.history["loss"], rtol=1e-6)


def test_trials_lie_around_the_rate_of_their_own_optimizer(tuned):
    found, _ = tuned
    trials = found.swept.trials
    rows = [trials.values(i) for i in range(len(trials))]
    assert {row["optimizer"] for row in rows} == {"adam", "momentum"}
    for row, recipe in zip(rows, trials.recipes, strict=True):
        rate = found.findings[row["optimizer"]].suggested
        assert rate / 20.01 <= row["schedule.init"] <= rate * 4.01
        assert recipe.optimizer.fn.__name__ == row["optimizer"]
        assert float(recipe.schedule.hparams["init"]) == pytest.approx(row["schedule.init"], rel=1e-6)
        if row["optimizer"] == "momentum":
            assert float(recipe.optimizer.hparams["weight_decay"]) == pytest.approx(row["momentum.weight_decay"], rel=1e-6)
        else:  # adam here has no decay
            assert np.isnan(row["momentum.weight_decay"])


def test_cut_off_it_goes_on_to_the_same_bits(tuned, tmp_path):
    class Cut(Exception):
        pass

    def cut(progress):
        if progress.step >= 20:
            raise Cut

    how = {**DATA, "families": [SLOW.optimizer, lo.bind(lo.optimizers.momentum)], "lane_steps": 40 * 20, "checkpoint": tmp_path}
    for name in ("sweep", "final"):
        with pytest.raises(Cut):
            lo.tune(LINEAR, SLOW, **how, save_every=0, on_stage=lambda stage, name=name: cut if stage.name == name else ())
    again, whole = lo.tune(LINEAR, SLOW, **how), tuned[0]
    np.testing.assert_array_equal(again.swept.history["loss"], whole.swept.history["loss"])
    np.testing.assert_array_equal(again.final.history["loss"], whole.final.history["loss"])


def test_where_nothing_learns_the_recipe_is_the_one_given():
    x, y = TASK.train
    found = lo.tune(LINEAR, SLOW, train=(x * np.nan, y), run=RUN, families=[SLOW.optimizer])
    assert (found.recipe, found.swept, found.final, found.improved, found.table()) == (SLOW, None, None, False, [])


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"lane_steps": 1, "minutes": 1.0}, ValueError, "lane_steps or minutes, not both"),
        ({"minutes": 0.0}, ValueError, "must be above 0 and finite, got 0.0"),
        ({"lane_steps": -5}, ValueError, "must be above 0 and finite, got -5"),
        ({"run": lo.Run(steps=0)}, ValueError, "tune: run.steps must be at least 1, got 0"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
        ({"families": []}, ValueError, "at least one optimizer"),
        ({"families": [lo.optimizers.adam]}, TypeError, "families must be bound optimizers"),
        (
            {"lane_steps": 350, "families": [SLOW.optimizer]},
            ValueError,
            "lane_steps must be at least 394, got 350: 64 for",
        ),
    ],
)
def test_what_cannot_be_tuned_is_named(wrong, error, words):
    with pytest.raises(error, match=words):
        lo.tune(LINEAR, SLOW, **{**DATA, **wrong}, on_stage=lambda stage: pytest.fail("something ran"))


def test_the_command_writes_what_it_found(tmp_path, lossopt):
    config = Path(__file__).parents[1] / "configs" / "digits_mlp.toml"
    small = ["--set", "run.steps=30", "--set", "schedule.total=30", "--set", "schedule.warmup=2"]
    small += ["--set", "sweep.space.run.batch_size={choice=[32,64]}"]
    done = lossopt("tune", str(config), *small, "--set", "sweep.space.schedule.warmup={uniform=[0,10]}", "--seeds", "2", "--out", "here")
    assert done.returncode == 0, done.stderr
    assert "not tuned: run.batch_size, a structure of its own for each value" in done.stdout
    assert "rates in a tenth of the steps: adamw " in done.stdout
    here = tmp_path / "here"
    assert {path.name for path in here.iterdir()} == {
        *("config.toml", "best.toml", "best_params.msgpack", "rates.csv", "tuned.csv", "summary.json", "curves.png", "sweep"),
        *("find_lr-adamw.png", "find_lr-momentum.png"),
    }
    summary = json.loads((here / "summary.json").read_text())
    assert summary["what"] == "tune"
    assert sum(summary["lane_steps"].values()) <= 20 * 30
    assert sorted(row["which"] for row in summary["recipes"]) == ["as given", "finalist", "tuned"]  # two seeds leave room for a second one
    asked = ["tune", str(config), *small, "--set", "sweep.space.schedule.warmup={uniform=[0,10]}", "--out", "here", "--resume"]
    assert "is finished; nothing to do" in lossopt(*asked, "--seeds", "2").stdout
    for other, words in (
        (["--seeds", "3"], "--seeds is 3 and was 2"),
        (["--seeds", "2", "--minutes", "1"], "--minutes is 1.0 and was not set"),
        (["--seeds", "2", "--lane-steps", "900"], "--lane-steps is 900 and was not set"),
    ):
        failed = lossopt(*asked, *other)
        assert (failed.returncode, words in failed.stderr) == (2, True), failed.stderr
    diagnosed = lossopt("diagnose", "here")
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert diagnosed.stdout.startswith("the sweep of the tuning, here/sweep\nof ")
    assert lo.load(here / "sweep").lanes == len((here / "sweep" / "trials.csv").read_text().splitlines()) - 1


def test_what_a_config_lacks_is_what_recommend_has_for_its_data(lossopt, tmp_path):
    (tmp_path / "bare.toml").write_text('[data]\nname = "digits"\n[model]\nname = "mlp"\n[run]\nsteps = 20\n')
    done = lossopt("tune", "bare.toml", "--set", "optimizer={name='sgd'}", "--lane-steps", "600", "--seeds", "1", "--out", "here")
    assert done.returncode == 0, done.stderr
    found = "as lossopt recommend has it for multiclass, mlp: loss cross_entropy, schedule warmup_cosine"
    assert f"not in bare.toml, so {found}" in done.stdout
    config = tomllib.loads((tmp_path / "here" / "config.toml").read_text())
    assert [config[part]["name"] for part in ("model", "loss", "optimizer", "schedule")] == ["mlp", "cross_entropy", "sgd", "warmup_cosine"]
    assert config["schedule"]["warmup"] <= 10  # of 20 steps
    (tmp_path / "visits.csv").write_text("a,n\n" + "".join(f"{i % 7},{i % 3}\n" for i in range(60)))
    counts = '[data]\nname = "csv"\npath = "visits.csv"\ntarget = "n"\nkind = "counts"\n[run]\nsteps = 20\n'
    (tmp_path / "counts.toml").write_text(counts)
    done = lossopt("tune", "counts.toml", "--lane-steps", "100", "--out", "no")  # too few, but told what it would be
    assert "for counts, mlp: model mlp, loss poisson_nll, optimizer adamw, schedule warmup_cosine" in done.stdout
    assert "lane_steps must be at least" in done.stderr


def test_another_budget_does_not_go_on_with_a_tuning(lossopt, tmp_path, monkeypatch):
    module = importlib.import_module("lossopt_jax.tune")

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "tune", killed)
    config = str(Path(__file__).parents[1] / "configs" / "digits_mlp.toml")
    assert lossopt("tune", config, "--lane-steps", "12000", "--out", "here").returncode == 130
    for other, words in (
        (["--lane-steps", "6000"], "--lane-steps is 6000 and was 12000"),
        (["--lane-steps", "12000", "--seeds", "2"], "--seeds is 2 and was 3"),
        (["--minutes", "1"], "--minutes is 1.0 and was not set"),
    ):
        failed = lossopt("tune", config, *other, "--out", "here", "--resume")
        assert (failed.returncode, words in failed.stderr) == (2, True), failed.stderr
    assert lossopt("tune", config, "--lane-steps", "12000", "--out", "here", "--resume").returncode == 130  # goes on
