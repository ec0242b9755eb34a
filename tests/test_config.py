import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import lossopt_jax as lo
from lossopt_jax.config import ConfigError, experiment, load, parse_plan
from lossopt_jax.recipe import REQUIRED, numbers, parameters

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
QUICK = ("digits_mlp", "digits_cnn")  # to compile
DIGITS = Path(__file__).parents[1] / "configs" / "digits_mlp.toml"


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in CONFIGS]
)
def test_every_config_runs_two_steps_and_its_resolved_form_is_the_same_experiment(path):
    if "randhie" in path.stem:
        pytest.importorskip("statsmodels")
    made = load(
        path, ["run.steps=2", "schedule.total=1000", "sweep.count=2"] if "warmup" in path.read_text() else ["run.steps=2", "sweep.count=2"]
    )
    again = experiment(tomllib.loads(tomli_w.dumps(made.resolved)))
    assert again.resolved == made.resolved
    assert again.recipe == made.recipe
    assert all(a == b for a, b in zip(again.trials.recipes, made.trials.recipes, strict=True))
    swept = lo.sweep(made.model, made.trials, train=made.task.train, evaluate=made.task.evaluate, run=made.run)
    assert np.isfinite(swept.evaluation["loss"]).all()
    assert path.read_text().startswith("# ")


def test_overrides_reach_every_table():
    made = load(
        DIGITS,
        [
            "schedule.peak=3e-3",
            "model.widths=[8]",
            "run.steps=1000",
            "clip_norm=0.5",
            "optimizer.mask=decay_matrices_only",
            "sweep.space.loss.label_smoothing={uniform=[0, 0.2]}",
            "name=mine",
        ],
    )
    values = numbers(made.recipe)
    assert values["schedule.peak"] == np.float32(3e-3)
    assert values["schedule.total"] == 1000  # not given: it follows the run
    assert values["clip_norm"] == np.float32(0.5)
    assert made.recipe.optimizer.options["mask"] is lo.optimizers.decay_matrices_only
    assert set(made.trials.space) == {"schedule.peak", "schedule.warmup", "optimizer.weight_decay", "loss.label_smoothing"}
    assert made.name == "mine"


def test_a_metric_is_a_loss_by_name_that_only_held_out_data_sees():
    made = load(DIGITS, ["metric.name=focal", "metric.gamma=1.0"])
    assert made.recipe.metric == lo.bind(lo.losses.focal, gamma=1.0)
    assert made.resolved["metric"]["gamma"] == 1.0
    assert experiment(tomllib.loads(tomli_w.dumps(made.resolved))).recipe == made.recipe
    assert made.resolved_with(made.recipe)["metric"] == made.resolved["metric"]
    with pytest.raises(ConfigError, match=r"metric\.name = 'focl' is unknown; did you mean 'focal'"):
        load(DIGITS, ["metric.name=focl"])
    with pytest.raises(ConfigError, match="metric must be a table, got 'mae'"):
        load(DIGITS, ["metric=mae"])
    with pytest.raises(ConfigError, match=r"sweep\.space\.metric.* cannot be swept: all recipes are judged by the one"):
        load(DIGITS, ["metric.name=focal", "sweep.space.metric.gamma={uniform=[0, 2]}"])


def test_numbers_may_follow_schedules_and_parts_may_nest():
    falling = 'optimizer={name="adamw", weight_decay={name="linear", init=0.1}}'
    made = load(DIGITS, [falling], sweep=False)
    assert float(made.recipe.optimizer.at(250).hparams["weight_decay"]) == pytest.approx(0.05)
    joined = 'schedule={name="join", boundaries=[10], schedules=[{name="constant", value=0.1}, {name="cosine", init=0.1, total=90}]}'
    made = load(DIGITS, [joined], sweep=False)
    assert float(made.recipe.schedule(5)) == pytest.approx(0.1)
    assert float(made.recipe.schedule(55)) == pytest.approx(0.05)
    assert experiment(made.resolved).recipe == made.recipe
    plateau = load(DIGITS, ['optimizer={name="reduce_on_plateau", optimizer={name="sgd"}, mode="max"}'], sweep=False)
    assert plateau.recipe.optimizer.options["mode"] == "max"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.peek=1", ["no parameter 'peek'", "did you mean 'peak'"]),
        ("schedule.peak=-1", ["schedule.peak must be at least 0", "-1"]),
        ("schedule.peak=nan", ["schedule.peak must be finite"]),
        ("schedule.peak=true", ["schedule.peak must be a number", "True"]),
        ("schedule.peak=fast", ["schedule.peak must be a number", "'fast'"]),
        ("schedule.warmup=501", ["schedule.warmup must be at most schedule.total (500)", "501"]),
        ("sweep.space.schedule.warmup={uniform=[0, 501]}", ["schedule.warmup must be at most schedule.total (500)", "501"]),
        ('schedule={name="warmup_cosine", warmup=5}', ["schedule.peak is missing"]),
        ("optimizer.name=adamv", ["optimizer.name = 'adamv'", "'adam'"]),
        ("optimizer.b1=1.0", ["optimizer.b1 must be at least 0 and below 1"]),
        ("optimizer.mask=decay_matrix_only", ["optimizer.mask must name a function", "did you mean 'decay_matrices_only'"]),
        ('optimizer={name="rmsprop", centered=1}', ["optimizer.centered must be true or false", "1"]),
        ('optimizer={name="reduce_on_plateau", mode="mean"}', ["optimizer.mode = 'mean' is unknown", "Valid: max, min"]),
        ("optimizer=3", ["optimizer must be a table", "3"]),
        ("loss.name=cross_entropi", ["loss.name = 'cross_entropi'", "'cross_entropy'"]),
        ("loss.label_smoothing=1.5", ["loss.label_smoothing must be at least 0 and at most 1", "1.5"]),
        ("data.name=digit", ["data.name = 'digit'", "'digits'"]),
        ("data.split=0.5", ["[data] has no key 'split'"]),
        ("model.name=mpl", ["model.name = 'mpl'", "'mlp'"]),
        ("model.depth=3", ["no key 'depth'"]),
        ("model.widths=[0]", ["model.widths must be a list of positive integers", "[0]"]),
        ("model.dropout=1.0", ["model.dropout must be at least 0 and below 1"]),
        ("sweep.space.model.widths={ choice = [[8], [0]] }", ["sweep.space.model.widths must be a list of positive integers", "[0]"]),
        ("run.steps=1.5", ["run.steps must be an integer", "1.5"]),
        ("run.step=5", ["[run] has no key 'step'", "did you mean 'steps'"]),
        ("run.batch_size=0", ["run.batch_size must be at least 1", "0"]),
        ("sweep.count=0", ["sweep.count must be an integer of at least 1", "0"]),
        ("sweep.sampler=chance", ["sweep.sampler = 'chance' is unknown", "sobol"]),
        ("sweep.sampler=grid", ["must be a choice when sweep.sampler is grid"]),
        (
            "sweep.space.schedule.peak={normal=[0.1, 0.2]}",
            ["must be at least 0, got -0.5", "three deviations from the mean reach -0.5 to 0.7"],
        ),
        ("sweep.space.schedule.warmup={uniform=[0, 900]}", ["sweep.space.schedule.warmup must be at most schedule.total (500), got 900"]),
        ("sweep.space.schedule.pea={uniform=[0,1]}", ["no number 'schedule.pea'", "did you mean 'schedule.peak'"]),
        ("sweep.space.schedule.peak={log_uniform=[0,1]}", ["log_uniform: low must be above 0"]),
        ("sweep.space.schedule.peak={log_uniform=[1]}", ["must be a list of two numbers"]),
        ("sweep.space.schedule.peak=0.1", ["must be a distribution such as"]),
        ("clip_norm=0", ["clip_norm must be above 0"]),
        ("shedule.peak=1", ["no table or key 'shedule'", "did you mean 'schedule'"]),
        ("name=a/b", ["name must be"]),
        ("peak", ["--set takes KEY=VALUE", "'peak'"]),
        ("name.first=1", ["name is not a table"]),
    ],
)
def test_whatever_is_wrong_is_named(override, words):
    with pytest.raises(ConfigError) as error:
        load(DIGITS, [override])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the config .*none\.toml: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read the config"):
        load(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ConfigError, match=r"not valid TOML: .*line 1"):
        load(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(broken)
    broken.write_text("")
    with pytest.raises(ConfigError, match=r"steps is missing|no \[loss\]|name is missing"):
        load(broken)


def test_plans():
    assert parse_plan("devices=2,width=8") == lo.LanePlan(2, 8)
    for wrong in ("2,8", "devices=2", "devices=2,width=x", "devices=0,width=1", "devices=1,width=1,depth=1", "devices=1,width=1,width=2"):
        with pytest.raises(ConfigError, match="--plan"):
            parse_plan(wrong)


@pytest.mark.parametrize("room", ["losses", "optimizers", "schedules"])
def test_every_name_in_the_catalogue_loads_from_a_config(room):
    table = room.removesuffix("es" if room == "losses" else "s")
    needed = {
        "boundaries": [10],
        "values": [0.1, 0.01],
        "schedules": [{"name": "constant", "value": 0.1}, {"name": "constant", "value": 0.2}],
        "losses": [{"name": "cross_entropy"}, {"name": "focal", "gamma": 1.5}],
        "weights": [1.0, {"name": "linear", "init": 1.0}],
    }
    for name in getattr(lo, room).__all__:
        given = {"name": name}
        for key, parameter in parameters(getattr(getattr(lo, room), name)).items():
            if parameter.default is REQUIRED:
                given[key] = needed.get(key, 0.5)
        base = tomllib.loads(DIGITS.read_text()) | {table: given}
        base.pop("sweep")
        made = experiment(base)
        assert getattr(made.recipe, table).fn.__name__ == name
        assert experiment(made.resolved).recipe == made.recipe


def test_the_network_has_the_outputs_that_the_loss_reads():
    digits = tomllib.loads(DIGITS.read_text())
    made = experiment(digits | {"loss": {"name": "ordinal"}})
    assert made.resolved["model"]["output_shape"] == [9]
    assert experiment(made.resolved).recipe == made.recipe
    diabetes = tomllib.loads((DIGITS.parent / "diabetes_mlp.toml").read_text()) | {"loss": {"name": "laplace_nll"}, "sweep": {"count": 2}}
    assert experiment(diabetes | {"sweep": {"space": {"model.widths": {"choice": [[4], [8]]}}}}).build(widths=(4,)) is not None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.peak=[1,2]", "schedule.peak must be a number"),
        ("sweep.space={}", "sweep.space is empty"),
        ("model.output_shape=[3]", r"model.output_shape must be \[10\] for this data"),
        ("name=..", "name must be a word"),
    ],
)
def test_what_would_fail_later_fails_here(override, words):
    with pytest.raises(ConfigError, match=words):
        load(DIGITS, [override])
