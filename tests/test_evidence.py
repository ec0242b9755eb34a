"""The table that recommend cites: what a contest measures, what is said of its rows, and that the shipped one is what the code asks for."""

import importlib
import math
import tomllib

import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax import measured
from lossopt_jax.config import load
from lossopt_jax.recommend import FAMILIES, KINDS
from tests.test_config import CONFIGS

contests = importlib.import_module("lossopt_jax.evidence")  # lo.evidence is the function

TINY = contests.Contest("diabetes", {"name": "mlp", "widths": [4]}, "mae", contests.NUMBERS[1:2], ("adam",), steps=20, rates=2)


def row(name, value, *, sem=0.01, part="optimizer", steps=100.0, setting="tuned", task="t", **given):
    parts = {"loss": "mse", "optimizer": "adam", "schedule": "cosine"} | {part: name} | given
    return measured.Row(task, **parts, setting=setting, rate=1e-3, metric="mse", value=value, sem=sem, steps_to_target=steps, steps=200,
                        seeds=5, diverged=0)  # fmt: skip


def test_a_contest_measures_what_fit_gives_and_the_command_goes_on_where_it_was(lossopt, monkeypatch, tmp_path):
    monkeypatch.setattr(contests, "CONTESTS", {"tiny": TINY, "tiny2": TINY})
    code, _, err = lossopt("evidence", "--tasks", "tiny", "--seeds", "2", "--out", "here", "-q")
    assert code == 0, err
    text = (tmp_path / "here" / "evidence.csv").read_text()
    rows = measured.parsed(text)
    assert len(rows) == 3 * 2
    assert text.startswith("# lossopt evidence --tasks tiny --seeds 2\n# ")
    found = next(r for r in rows if (r.loss, r.schedule, r.setting) == ("mse", "warmup_cosine", "tuned"))
    task = lo.data.diabetes()
    model = lo.from_linen(lo.models.MLP(widths=(4,), output_shape=()))
    recipe = lo.Recipe(
        lo.bind(lo.losses.mse),
        lo.bind(lo.optimizers.adam),
        lo.bind(lo.schedules.warmup_cosine, peak=found.rate, warmup=2, total=20),
    )
    maes = []
    for seed in (1, 2):
        state = lo.fit(model, recipe, train=task.train, run=lo.Run(20, 32, seed=seed)).state
        outputs = model.apply(state.params, state.model_state, task.evaluate[0], key=state.key, train=False)[0]
        maes.append(np.abs(np.asarray(outputs) - task.evaluate[1]).mean())
    assert found.value == pytest.approx(np.mean(maes), rel=1e-4)
    assert found.sem == pytest.approx(abs(maes[0] - maes[1]) / 2, rel=1e-2)
    tuned = [r.value for r in rows if r.setting == "tuned"]
    target = np.median(tuned)
    assert all(math.isfinite(r.steps_to_target) for r in rows if r.value <= target)
    monkeypatch.setattr(contests, "evidence", None)  # nothing is run again
    code, again, err = lossopt("evidence", "--tasks", "tiny", "--seeds", "2", "--out", "here", "-q", "--resume")
    assert code == 0, err
    assert "done already" in again
    code, _, err = lossopt("evidence", "--tasks", "tiny", "--seeds", "3", "--out", "here", "-q", "--resume")
    assert code == 2
    assert "other seeds" in err
    assert "did you mean 'tiny'" in lossopt("evidence", "--tasks", "tny", "--out", "there")[2]


def test_a_citation_names_the_rival_and_says_where_the_rule_is_contradicted():
    def said(own, rival, **kwargs):
        return measured.cite("t", "optimizer", ["adam"], rows=[row("adam", own, **kwargs), row("sgd", rival), row("adam", 9.0)])[1]

    assert said(0.50, 0.40).startswith("against the rule, better by over 2 standard errors: mse 0.4 ± 0.01")
    assert said(0.40, 0.50).startswith("beats, by over 2 standard errors: ")
    assert said(0.41, 0.40).startswith("within 2 standard errors: ")  # 2 standard errors of the difference are 0.028
    assert said(math.inf, 0.40, sem=math.inf).startswith("against the rule")
    rows = [row("cosine", 0.4, part="schedule"), row("cosine", 0.6, part="schedule", setting="usual")._replace(rate=1e-2)]
    assert measured.cite("t", "schedule", ["cosine"], "adam", rows)[1].startswith("against the rule, the usual rate is worse")
    assert measured.cite("t", "loss", ["huber delta=1", "mse"], "adam", rows)[0].startswith("t: mse 0.4")
    assert measured.cite("other", "loss", ["mse"], "adam", rows) == []


def test_a_profile_is_the_share_of_tasks_within_tau_of_the_best():
    rows = [row("adam", 1.0, task="a"), row("sgd", 1.5, task="a"), row("adam", 3.0, task="b"), row("sgd", 2.0, task="b")]
    rows += [row("adam", 0.1, task="a", setting="usual"), row("adam", 0.1, task="c")]  # neither counts: not tuned, not every choice
    tasks, found = measured.profile(rows, "optimizer", "value", np.array([1.0, 1.4, 1.6]))
    assert tasks == 2
    assert {name: shares.tolist() for name, shares in found.items()} == {"adam": [0.5, 0.5, 1.0], "sgd": [0.5, 0.5, 1.0]}


def test_the_table_survives_writing():
    rows = [row("adam", 0.123456), row("sgd", math.inf, sem=math.inf, steps=math.inf)]
    assert measured.parsed(measured.written(rows, ["command", "date"])) == rows


def test_what_is_shipped_is_what_recommend_cites():
    rows = measured.shipped()
    assert rows
    assert {r.task for r in rows} <= set(contests.CONTESTS)
    for r in rows:
        assert hasattr(lo.losses, r.loss.split()[0])
        assert hasattr(lo.optimizers, r.optimizer)
        assert r.schedule in contests.SCHEDULES
        assert r.seeds == 5
    done = {r.task for r in rows}
    for kind, known in KINDS.items():
        if f"{known.measured or known.data}_{known.family}" in done and kind != "multiclass_long_tail":
            found = lo.recommend(kind)
            assert all(found.evidence[part] for part in ("loss", "optimizer", "schedule")), kind
            assert found.evidence["loss"][0] in str(found)


def test_contests_are_the_configs_and_their_first_are_recommended():
    for name, contest in contests.CONTESTS.items():
        path = next(path for path in CONFIGS if path.stem == name.removesuffix("_by_mse"))
        config = tomllib.loads(path.read_text())
        assert config["data"]["name"] == contest.data
        if contest.data != "randhie":  # its extra need not be there
            assert config["model"].items() <= load(path).resolved["model"].items()
        assert config["model"] | contest.model == config["model"], name
        assert FAMILIES[contest.model["name"]].optimizer.name == contest.optimizers[0]
        assert FAMILIES[contest.model["name"]].schedule.name in contests.SCHEDULES
