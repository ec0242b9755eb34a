"""The command line as a process: what it prints, what it writes, how it fails."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import serialization

import lossopt_jax as lo
from lossopt_jax import lr_finder

ROOT = Path(__file__).parents[1]
SMALL = ["--set", "run.steps=20", "--set", "run.evaluate_every=10", "--set", "schedule.total=20", "--set", "schedule.warmup=2"]
SMALL_SWEEP = [*SMALL, "--set", "sweep.count=4", "--set", "sweep.space.schedule.warmup={uniform=[0,10]}"]
DIGITS = str(ROOT / "configs" / "digits_mlp.toml")


PROCESS = [sys.executable, "-c", "from lossopt_jax.cli import main; main()"]


def process(*arguments, cwd):
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run([*PROCESS, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def trials(place):
    return list(csv.DictReader((place / "trials.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = process("sweep", DIGITS, *SMALL_SWEEP, "--set", "sweep.seeds=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_sweep_prints_what_runs_the_best_and_the_folder(swept):
    folder, done = swept
    lines = done.stdout.splitlines()
    assert "4 recipes x 2 seeds = 8 lanes, 20 steps of 64 examples" in lines[0]
    assert re.search(r"\d cpu devices? x \d lanes? side by side", lines[0])
    assert any(line.startswith("step 20/20") for line in lines)
    assert any(line.startswith("how sure: number 1 is the best with a chance of ") for line in lines)
    (place,) = (folder / "runs").iterdir()
    assert lines[-1].endswith(place.name)
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_sweep_writes_its_folder(swept):
    folder, _ = swept
    (place,) = (folder / "runs").iterdir()
    assert {p.name for p in place.iterdir()} - {"trials.parquet"} == {
        *("config.toml", "best.toml", "recipes.json", "trials.csv", "history.npz", "summary.json"),
        *("best_params.msgpack", "curves.png", "sweep.png"),
    }
    rows = trials(place)
    assert len(rows) == 8
    assert {
        "schedule.peak",
        "optimizer.weight_decay",
        "schedule.warmup",
        "status",
        "train_loss",
        "held_out_loss",
        "best_held_out_accuracy",
    } <= set(rows[0])
    history = np.load(place / "history.npz")
    assert history["loss"].shape == (8, 20)
    assert history["held_out_loss"].shape == (8, 2)
    summary = json.loads((place / "summary.json").read_text())
    assert {"versions", "devices", "seconds", "compile_seconds", "lane_steps_per_second", "best"} <= set(summary)
    best = min(rows, key=lambda row: float(row["held_out_loss"]))
    means = {t: np.mean([float(r["held_out_loss"]) for r in rows if r["trial"] == t]) for t in {r["trial"] for r in rows}}
    assert str(summary["best"]["trial"]) == min(means, key=means.get)
    assert best
    for picture in ("curves.png", "sweep.png"):
        assert (place / picture).read_bytes().startswith(b"\x89PNG")


def test_diagnose_counts_the_lanes_of_a_sweep_and_says_what_to_try(swept, lossopt):
    folder, _ = swept
    (place,) = (folder / "runs").iterdir()
    done = lossopt("diagnose", str(place))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "of 8 lanes"
    assert any(line.startswith("the best, lane ") for line in lines)
    assert any(line.strip().startswith("try       schedule.peak = ") for line in lines)
    assert len(lines) < 25


def test_the_written_config_reproduces_the_run(swept, tmp_path, lossopt):
    folder, _ = swept
    (place,) = (folder / "runs").iterdir()
    done = lossopt("sweep", str(place / "config.toml"), "--out", "again", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "trials.csv").read_text() == (place / "trials.csv").read_text()
    assert tomllib.loads((tmp_path / "again" / "config.toml").read_text()) == tomllib.loads((place / "config.toml").read_text())


def test_train_writes_metrics_and_parameters_and_guards_its_folder(tmp_path, lossopt):
    done = lossopt("train", DIGITS, *SMALL, "--out", "here")
    assert done.returncode == 0, done.stderr
    here = tmp_path / "here"
    assert {p.name for p in here.iterdir()} == {
        *("config.toml", "metrics.jsonl", "history.npz", "params.msgpack", "summary.json", "curves.png"),
    }
    lines = [json.loads(line) for line in (here / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20))
    assert {"loss", "learning_rate", "grad_norm", "update_norm"} <= set(lines[0])
    trained = serialization.msgpack_restore((here / "params.msgpack").read_bytes())
    assert trained["params"]["Dense_0"]["kernel"].shape == (64, 64)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))

    diagnosed = lossopt("diagnose", "here").stdout.splitlines()
    assert diagnosed[0] == "  too low: the rate is too low: hardly moved, or still falling steadily"
    assert any(line.startswith("    try       schedule.peak = ") for line in diagnosed)

    before = (here / "summary.json").read_text()
    refused = lossopt("train", DIGITS, *SMALL, "--out", "here")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert "--resume" in refused.stderr
    done = lossopt("train", DIGITS, *SMALL, "--out", "here", "--resume")
    assert (done.returncode, "finished" in done.stdout) == (0, True)
    command = lossopt("find-lr", DIGITS, *SMALL, "--out", "here", "--resume")
    assert (command.returncode, "what is find-lr and was train" in command.stderr) == (2, True), command.stderr
    other = lossopt("train", DIGITS, *SMALL, "--set", "schedule.peak=0.5", "--out", "here", "--resume")
    assert (other.returncode, "another config" in other.stderr) == (2, True)
    assert (here / "summary.json").read_text() == before
    (here / "mine.txt").write_text("keep")
    assert lossopt("train", DIGITS, *SMALL, "--out", "here", "--overwrite").returncode == 0
    assert (here / "mine.txt").read_text() == "keep"


def test_old_results_stay_until_new_ones_are_there(tmp_path, lossopt):
    here = ["train", DIGITS, *SMALL, "--out", "here"]
    done = lossopt(*here)
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    long = [*PROCESS, *here, "--overwrite", "--set", "run.steps=1000000", "--set", "schedule.total=1000000"]
    running = subprocess.Popen(long, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "gone on with by --resume" in stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir() if path.is_file()} == before


def test_every_lane_diverging_is_an_answer(tmp_path, lossopt):
    hot = [
        "--set",
        "sweep.space.schedule.peak={log_uniform=[1e30, 1e32]}",
        "--set",
        'optimizer={name="sgd"}',
        "--set",
        "sweep.space.optimizer={}",
    ]
    done = lossopt("sweep", DIGITS, *SMALL_SWEEP, *hot, "--out", "hot")
    assert done.returncode == 0, done.stderr
    assert re.search(r"every lane diverged; the smallest learning rate was \S+: try \S+ to \S+", done.stdout)
    assert {row["status"] for row in trials(tmp_path / "hot")} == {"diverged"}
    assert json.loads((tmp_path / "hot" / "summary.json").read_text())["lanes_diverged"] == 4


def test_find_lr_gives_a_line_for_the_config_and_diverging_everywhere_is_an_answer(tmp_path, lossopt):
    few = ["--steps", "20", "--count", "4", "--seeds", "1", "--out"]  # fewer steps than the config's warm-up: it is put aside
    done = lossopt("find-lr", DIGITS, *few, "found")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "digits_mlp: 4 rates from 1e-07 to 10 as lanes, 20 steps of 64 examples"
    assert lines[-1] == "found"
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert summary["config_line"] in lines
    assert tomllib.loads(f"[schedule]\n{summary['config_line']}")["schedule"]["peak"] == pytest.approx(summary["suggested"], rel=0.06)
    assert f"train with it: lossopt train {DIGITS} --set schedule.peak={lr_finder.short(summary['suggested'])}" in lines
    assert (summary["what"], summary["steps"], summary["count"], summary["seeds"]) == ("find-lr", 20, 4, 1)
    rates = list(csv.DictReader((tmp_path / "found" / "rates.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in rates] == pytest.approx(np.geomspace(1e-7, 10, 4))
    files = {"config.toml", "rates.csv", "recipes.json", "history.npz", "summary.json", "find_lr.png"}
    assert {path.name for path in (tmp_path / "found").iterdir()} == files
    loaded = lo.load(tmp_path / "found")
    assert (loaded.suggested, loaded.config_line, loaded.range) == (summary["suggested"], summary["config_line"], tuple(summary["range"]))
    assert [row["loss"] for row in loaded.table()] == [float(row["loss"]) for row in rates]
    assert len(lo.diagnose(tmp_path / "found").verdicts) == 4
    assert "is finished; nothing to do" in lossopt("find-lr", DIGITS, *few, "found", "--resume").stdout
    other = lossopt("find-lr", DIGITS, *few, "found", "--resume", "--low", "1e-6")
    assert (other.returncode, "--low is 1e-06 and was 1e-07" in other.stderr) == (2, True)
    hot = lossopt("find-lr", DIGITS, *few, "found", "--low", "1e30", "--high", "1e32", "--overwrite")
    assert hot.returncode == 0, hot.stderr
    assert "no learning rate to suggest" in hot.stdout
    assert json.loads((tmp_path / "found" / "summary.json").read_text())["suggested"] is None


def test_the_range_test_is_one_run_with_a_line_of_its_own(tmp_path, lossopt):
    few = ["--range-test", "--steps", "60", "--out", "here"]
    done = lossopt("find-lr", DIGITS, *few)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert summary["config_line"] == f"peak = {lr_finder.short(summary['valley'])}  # in [schedule]"
    assert done.stdout.splitlines()[-2].endswith(f"--set schedule.peak={lr_finder.short(summary['valley'])}")
    assert done.stdout.splitlines()[1] == summary["config_line"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"config.toml", "rates.csv", "summary.json", "range_test.png"}
    rows = list(csv.DictReader((tmp_path / "here" / "rates.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(np.geomspace(1e-7, 10, 60)[: len(rows)])
    other = lossopt("find-lr", DIGITS, *few[1:], "--resume")
    assert (other.returncode, "what is find-lr and was range-test" in other.stderr) == (2, True)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_a_suggestion_can_be_pasted_into_every_config_and_given_on_its_command_line(path, tmp_path):
    from lossopt_jax import config

    given = config.load(path, sweep=False)
    where, recipe = lr_finder.with_rate(given.recipe, 0.0123)
    line = lr_finder.config_line(where, recipe)
    name, table = line.partition(" ")[0], line.partition("# in ")[2]
    text = path.read_text()
    head, tail = text.split(f"{table}\n")
    tail = re.sub(rf"^{name} = .*$", lambda _: line, tail, count=1, flags=re.MULTILINE)
    (tmp_path / "pasted.toml").write_text(f"{head}{table}\n{tail}")
    for there in (config.load(tmp_path / "pasted.toml"), config.load(path, [lr_finder.override(where, recipe, given.recipe)])):
        assert float(lo.numbers(there.recipe)[where]) == pytest.approx(0.012)
        assert there.recipe.schedule.fn is given.recipe.schedule.fn


def test_the_command_of_find_lr_repeats_what_was_set_and_trains(tmp_path, lossopt):
    joined = 'schedule={name="join", schedules=[{name="constant", value=0.1}, {name="constant", value=0.01}], boundaries=[10]}'
    done = lossopt("find-lr", DIGITS, "--set", joined, "--set", "run.steps=20", "--count", "4", "--seeds", "1", "--out", "here")
    assert done.returncode == 0, done.stderr
    command = next(line for line in done.stdout.splitlines() if line.startswith("train with it: "))
    trained = lossopt(*shlex.split(command.removeprefix("train with it: lossopt ")), "--out", "trained")
    assert trained.returncode == 0, trained.stderr
    written = tomllib.loads((tmp_path / "trained" / "config.toml").read_text())
    suggested = json.loads((tmp_path / "here" / "summary.json").read_text())["suggested"]
    assert written["schedule"] == {"name": "constant", "value": pytest.approx(suggested, rel=0.05)}
    assert written["run"]["steps"] == 20


def test_a_range_test_has_no_run_to_diagnose_and_says_what_is_wrong(tmp_path, lossopt):
    done = lossopt("find-lr", DIGITS, "--range-test", "--steps", "60", "--high", "1e-6", "--out", "here")
    assert done.returncode == 0, done.stderr
    assert "note: the loss does not fall at any rate: raise high" in done.stdout
    assert "nothing_learnt" in json.loads((tmp_path / "here" / "summary.json").read_text())["verdicts"]
    failed = lossopt("diagnose", "here")
    assert failed.returncode == 2
    assert "here is of a range test, whose rate grows until it fails" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sweep", "none.toml"], 2, "cannot read the config none.toml"),
        (["sweep", DIGITS, "--set", "schedule.peek=1"], 2, "did you mean 'peak'"),
        (["sweep", DIGITS, "--plan", "devices=99,width=1"], 2, "devices must be 1 to"),
        (["sweep", DIGITS, "--plan", "devices=2,width=100000000"], 2, "100000000 lanes side by side take"),
        (["sweep", DIGITS, "--plan", ""], 2, "--plan must read devices=N,width=N, got ''"),
        (["sweep", DIGITS, "--set", "loss.class_weights=[1,2]"], 2, "class_weights"),
        (["find-lr", DIGITS, "--low", "3", "--high", "2"], 2, "high must be above low"),
        (["find-lr", DIGITS, "--range-test", "--steps", "1"], 2, "run.steps must be at least 2"),
        (["tune", DIGITS, "--lane-steps", "900", "--out", "new"], 2, "lane_steps must be at least "),
        (["train", DIGITS, "--out", "/dev/null/x"], 1, "/dev/null/x"),
        (["diagnose", "nowhere"], 2, "there is no folder nowhere"),
        (["list", "loses"], 2, "did you mean 'losses'"),
    ],
)
def test_errors_are_one_line_with_their_exit_code_and_leave_no_folder(arguments, code, words, lossopt, tmp_path):
    failed = lossopt(*arguments)
    assert failed.returncode == code
    assert words in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert failed.stdout == "" or "lanes" in failed.stdout or "one run" in failed.stdout
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


def test_an_error_of_a_process(tmp_path):
    failed = process("sweep", "none.toml", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "Traceback" not in failed.stderr
    assert "cannot read the config none.toml" in failed.stderr


def test_help_and_list(lossopt):
    helped = lossopt("--help")
    assert helped.returncode == 0
    assert {"train", "sweep", "find-lr", "diagnose", "list"} <= set(helped.stdout.split())
    listed = lossopt("list").stdout
    assert "cross_entropy(label_smoothing=0.0" in listed
    assert "adamw(" in listed
    assert "warmup_cosine(peak, warmup, total" in listed


def test_help_imports_no_jax(tmp_path):
    run = "from lossopt_jax.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code = f"import sys\nsys.argv = ['lossopt', '--help']\n{run}assert not {{'jax', 'numpy'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0
