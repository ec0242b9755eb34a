"""A TOML file to an experiment: its tables are read here, each by its own function."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, losses, optimizers, schedules
from ..loop import Run
from ..models import Model
from ..recipe import Recipe, numbers
from ..sweep import LanePlan, Population, Trials
from ..sweep.population import Rule
from .parts import bound, model_of, plain, required, run_of, tables_of, task_of
from .space import Search, Structure, check_warmup, stop_of, trials_of
from .values import ConfigError, check_keys, number

TABLES = ("data", "model", "loss", "optimizer", "schedule", "metric", "run", "sweep")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config turned into objects. resolved: the whole of it as plain values, defaults filled in, which reproduces the run.

    trials: what is swept; of a search the first round. build: the model with some of its numbers replaced, as `sweep` takes it.
    """

    name: str
    task: data.Task
    model: Model
    recipe: Recipe
    run: Run
    trials: Trials | None
    seeds: int
    stop: Rule | None
    search: Search | None
    resolved: dict[str, Any]
    build: Callable[..., Model]

    def resolved_with(self, recipe: Recipe, structure: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The config of one recipe, such as the best of a sweep, with all else as here. structure: as `Trials.structure` gives it."""
        config = {key: value for key, value in (self.resolved | tables_of(recipe)).items() if key != "sweep"}
        for path, value in (structure or {}).items():
            table, _, name = path.partition(".")
            config[table] = config[table] | {name: list(value) if isinstance(value, tuple) else value}
        return config


def load(path: str | Path, overrides: Sequence[str] = (), *, sweep: bool = True) -> Experiment:
    """The experiment of a TOML file, with overrides such as "schedule.peak=3e-3" applied; without its [sweep] table if `sweep` is False.

    Raises ConfigError for anything that is not valid, naming the key, what was given and what is valid.
    """
    config = read(path, overrides)
    if not sweep:
        config.pop("sweep", None)
    return experiment(config)


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file with overrides applied, by the file's name unless it has one; what they hold is checked by `experiment`."""
    path = Path(path)
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _override(config, override)
    return {"name": path.stem, **config}


def experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a config given as nested dicts."""
    check_keys(config, ("name", "clip_norm", *TABLES), "the config", "table or key")
    for table in TABLES:
        if not isinstance(config.get(table, {}), Mapping):
            raise ConfigError(f"{table} must be a table, got {config[table]!r}")
    name = config.get("name", "run")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"name must be a word to name the run's folder by (letters, digits, . _ + -), got {name!r}")
    run = run_of(config.get("run", {}))
    task = task_of(config.get("data", {}))
    parts = {
        "loss": bound(required(config, "loss"), losses, "loss", run),
        "optimizer": bound(required(config, "optimizer"), optimizers, "optimizer", run),
        "schedule": bound(required(config, "schedule"), schedules, "schedule", run),
    }
    if "metric" in config:
        parts["metric"] = bound(config["metric"], losses, "metric", run)
    clip_norm = config.get("clip_norm")
    recipe = Recipe(**parts, clip_norm=None if clip_norm is None else np.float32(number(clip_norm, "clip_norm", "clip_norm")))
    check_warmup({path: (float(v), float(v)) for path, v in numbers(recipe).items() if np.ndim(v) == 0})
    shape = losses.outputs_for(parts["loss"].fn, task.output_shape)
    model, module = model_of(config.get("model", {}), shape)

    def build(**values: Any) -> Model:
        swept = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return model_of(module | swept, shape)[0] if swept else model

    swept = config.get("sweep")
    trials, seeds, drawn, search = (
        trials_of(swept, recipe, run, Structure(module, task, run)) if swept is not None else (None, 1, None, None)
    )
    stop = None if swept is None or "stop" not in swept else stop_of(swept["stop"], run)
    if search is not None and isinstance(stop, Population):
        raise ConfigError(f"sweep.stop: a population changes the numbers that {search.sampler} asks for: take another sweep.sampler")
    resolved: dict[str, Any] = {"name": name}
    if clip_norm is not None:
        resolved["clip_norm"] = clip_norm
    resolved |= {"data": dict(required(config, "data")), "model": module}
    resolved |= {key: plain(part) for key, part in parts.items()}
    resolved["run"] = {key: value for key, value in dataclasses.asdict(run).items() if value is not None}
    if drawn is not None:
        resolved["sweep"] = drawn if stop is None else drawn | {"stop": stop._asdict()}
    return Experiment(name, task, model, recipe, run, trials, seeds, stop, search, resolved, build)


def parse_plan(text: str) -> LanePlan:
    """ "devices=2,width=8" as a LanePlan."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        plan = LanePlan(**{key.strip(): int(value) for key, value in pairs})
        if len(pairs) > 2:
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(f"--plan must read devices=N,width=N, got {text!r}") from None
    if min(plan) < 1:
        raise ConfigError(f"--plan: devices and width must be at least 1, got {text!r}")
    return plan


def _override(config: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE such as schedule.peak=3e-3, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    keys = key.strip().split(".")
    if keys[:2] == ["sweep", "space"] and len(keys) > 2:
        keys = ["sweep", "space", ".".join(keys[2:])]
    table = config
    for step in keys[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {key}: {step} is not a table")
    table[keys[-1]] = value
