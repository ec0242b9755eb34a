"""TOML to an experiment: names become functions here and only here, and every value is checked where it is still a plain number."""

import dataclasses
import importlib.util
import inspect
import math
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import data, losses, models, optimizers, schedules
from .domains import DECAY, domain_of
from .models import Model, from_linen
from .recipe import REQUIRED, Bound, Recipe, bind, nearest, numbers, parameters
from .sweep import (
    LanePlan,
    Population,
    Trials,
    asha,
    choice,
    fixed,
    grid,
    halving,
    hyperband,
    int_uniform,
    log_uniform,
    normal,
    population,
    sample,
    samplers,
    uniform,
)
from .sweep.population import Rule
from .sweep.spaces import Distribution, Parts, Variant, is_structure, whole
from .train import Run

TABLES = ("data", "model", "loss", "optimizer", "schedule", "run", "sweep")
DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "uniform": uniform,
    "log_uniform": log_uniform,
    "int_uniform": int_uniform,
    "choice": lambda *values: choice(values),
    "normal": normal,
    "fixed": fixed,
}
ROOMS = {"loss": losses, "optimizer": optimizers, "schedule": schedules}


# Optuna's, by the packages that they need.
SEARCHES = {"tpe": ("TPESampler", "optuna"), "cmaes": ("CmaEsSampler", "cmaes"), "gp": ("GPSampler", "torch")}
STOPS: dict[str, Callable[..., Rule]] = {"halving": halving, "hyperband": hyperband, "asha": asha, "population": population}


class ConfigError(ValueError):
    """What is wrong with a config: names the key, what was given and what is valid."""


@dataclasses.dataclass(frozen=True)
class Search:
    """A search in rounds, as `sweep.search` takes it; sampler: a name of Optuna's."""

    space: dict[str, Distribution | Parts]
    count: int
    rounds: int
    sampler: str
    seed: int

    def optuna_sampler(self) -> Any:
        import optuna  # half a second to import

        return getattr(optuna.samplers, SEARCHES[self.sampler][0])(seed=self.seed)


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


class Structure(typing.NamedTuple):
    """What a swept model or batch size is checked against. model: the [model] table, whole."""

    model: dict[str, Any]
    task: data.Task
    run: Run

    def choice(self, value: Any, where: str, path: str) -> Distribution:
        """A distribution of a number of the model's or of the batch size: each of its values is compiled, so they are listed."""
        table, _, key = path.partition(".")
        valid = [key for key in self.model if key not in ("name", "output_shape")] if table == "model" else ["batch_size"]
        if key not in valid:
            raise ConfigError(f"{where}: of the {table} there is no {key!r} to sweep; {nearest(key, valid)}")
        if not isinstance(value, Mapping) or list(value) != ["choice"] or not isinstance(value["choice"], list) or not value["choice"]:
            raise ConfigError(f"{where} must list its values, {{ choice = [...] }}, since each is compiled by itself, got {value!r}")
        for one in value["choice"]:
            if table == "model":
                _model(self.model | {key: one}, self.task)
                continue
            most = len(self.task.train[0])
            if isinstance(one, bool) or not isinstance(one, int | float) or one != int(one) or not 1 <= one <= most:
                raise ConfigError(f"{where} must be whole numbers from 1 to the {most} examples there are, got {one!r}")
        return choice(value["choice"])


def load(path: str | Path, overrides: Sequence[str] = (), *, sweep: bool = True) -> Experiment:
    """The experiment of a TOML file, with overrides such as "schedule.peak=3e-3" applied; without its [sweep] table if `sweep` is False.

    Raises ConfigError for anything that is not valid, naming the key, what was given and what is valid.
    """
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
    if not sweep:
        config.pop("sweep", None)
    return experiment({"name": path.stem, **config})


def experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a config given as nested dicts."""
    _known(config, ("name", "clip_norm", *TABLES), "the config", "table or key")
    for table in TABLES:
        if not isinstance(config.get(table, {}), Mapping):
            raise ConfigError(f"{table} must be a table, got {config[table]!r}")
    name = config.get("name", "run")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"name must be a word to name the run's folder by (letters, digits, . _ + -), got {name!r}")
    run = _run(config.get("run", {}))
    task = _task(config.get("data", {}))
    parts = {
        "loss": _bound(_required(config, "loss"), losses, "loss", run),
        "optimizer": _bound(_required(config, "optimizer"), optimizers, "optimizer", run),
        "schedule": _bound(_required(config, "schedule"), schedules, "schedule", run),
    }
    clip_norm = config.get("clip_norm")
    recipe = Recipe(**parts, clip_norm=None if clip_norm is None else np.float32(_number(clip_norm, "clip_norm", "clip_norm")))
    _check_warmup({path: (float(v), float(v)) for path, v in numbers(recipe).items() if np.ndim(v) == 0})
    model, module = _model(config.get("model", {}), task)

    def build(**values: Any) -> Model:
        swept = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return _model(module | swept, task)[0] if swept else model

    swept = config.get("sweep")
    trials, seeds, drawn, search = _trials(swept, recipe, run, Structure(module, task, run)) if swept is not None else (None, 1, None, None)
    stop = None if swept is None or "stop" not in swept else _stop(swept["stop"], run)
    if search is not None and isinstance(stop, Population):
        raise ConfigError(f"sweep.stop: a population changes the numbers that {search.sampler} asks for: take another sweep.sampler")
    resolved: dict[str, Any] = {"name": name}
    if clip_norm is not None:
        resolved["clip_norm"] = clip_norm
    resolved |= {"data": dict(_required(config, "data")), "model": module}
    resolved |= {key: _plain(bound) for key, bound in parts.items()}
    resolved["run"] = {key: value for key, value in dataclasses.asdict(run).items() if value is not None}
    if drawn is not None:
        resolved["sweep"] = drawn if stop is None else drawn | {"stop": stop._asdict()}
    return Experiment(name, task, model, recipe, run, trials, seeds, stop, search, resolved, build)


def parse_plan(text: str) -> LanePlan:
    """ "devices=2,width=8" as a LanePlan."""
    try:
        pairs = dict(part.split("=") for part in text.split(","))
        plan = LanePlan(**{key.strip(): int(value) for key, value in pairs.items()})
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


def _required(config: Mapping[str, Any], table: str) -> Mapping[str, Any]:
    if table not in config:
        raise ConfigError(f"the config has no [{table}] table; it needs one with name = ...")
    return config[table]


def _known(given: Mapping[str, Any], valid: Sequence[str], where: str, what: str = "key") -> None:
    for key in given:
        if key not in valid:
            raise ConfigError(f"{where} has no {what} {key!r}; {nearest(key, valid)}")


def _choice(table: Mapping[str, Any], valid: Sequence[str], where: str) -> str:
    if "name" not in table:
        raise ConfigError(f"{where}.name is missing; valid: {', '.join(sorted(valid))}")
    if table["name"] not in valid:
        raise ConfigError(f"{where}.name = {table['name']!r} is unknown; {nearest(str(table['name']), valid)}")
    return table["name"]


def _run(table: Mapping[str, Any]) -> Run:
    _known(table, [field.name for field in dataclasses.fields(Run)], "[run]")
    if "steps" not in table:
        raise ConfigError("run.steps is missing: the number of updates")
    try:
        return Run(**table)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error).replace("Run: ", "run.")) from None


def _task(table: Mapping[str, Any]) -> data.Task:
    name = _choice(table, (*data.TASKS, "csv"), "data")
    if name != "csv":
        _known(table, ("name",), "[data]")
        try:
            return getattr(data, name)()
        except ModuleNotFoundError as error:
            raise ConfigError(f"data.name: {error}") from None
    _known(table, ("name", "path", "target", "kind"), "[data]")
    for key, what in (("path", "a file"), ("target", "the name of a column")):
        if not isinstance(table.get(key), str):
            raise ConfigError(f"data.{key} must be {what}, got {table.get(key)!r}")
    try:
        return data.csv(**{key: value for key, value in table.items() if key != "name"})
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {table['path']}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"data.{error}") from None


def _model(table: Mapping[str, Any], task: data.Task) -> tuple[Model, dict[str, Any]]:
    name = _choice(table, list(models.MODULES), "model")
    module = models.MODULES[name]
    fields = {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    given = {key: value for key, value in table.items() if key != "name"}
    _known(given, list(fields), f"model {name!r}")
    values: dict[str, Any] = {f.name: f.default for f in fields.values()} | {"output_shape": task.output_shape}
    for key, value in given.items():
        where, default = f"model.{key}", values[key]
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value):
                raise ConfigError(f"{where} must be a list of positive integers, got {value!r}")
            values[key] = tuple(value)
            # Two outputs for a binary task are two classes; any other shape contradicts the targets.
            if key == "output_shape" and values[key] not in {task.output_shape, task.output_shape or (2,)}:
                raise ConfigError(f"{where} must be {list(task.output_shape)} for this data, got {value!r}")
        else:
            values[key] = _number(value, where, key)
            if isinstance(default, int) and (value != int(value) or value < 1):
                raise ConfigError(f"{where} must be an integer of at least 1, got {value!r}")
            if key == "dropout" and values[key] not in DECAY:
                raise ConfigError(f"{where} must be {DECAY}, got {value!r}")
    return from_linen(module(**values)), {"name": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _bound(table: Mapping[str, Any], room: ModuleType, where: str, run: Run) -> Bound:
    name = _choice(table, room.__all__, where)
    fn = getattr(room, name)
    known = parameters(fn)
    given = {key: value for key, value in table.items() if key != "name"}
    _known(given, list(known), f"{where} {name!r}", "parameter")
    # A schedule that must end and is not told when ends with the run.
    if "total" in known and known["total"].default is REQUIRED and "total" not in given:
        given["total"] = run.steps
    for key, kind in known.items():
        if key not in given and kind.default is REQUIRED:
            raise ConfigError(f"{where}.{key} is missing: {name} needs it")
    listed = [key for key in ("losses", "weights") if key in known and isinstance(given.get(key), list)]
    counts = [len(given[key]) for key in listed if given[key] or known[key].default is REQUIRED]
    if len(set(counts)) > 1:
        raise ConfigError(f"{where}.weights must have a number for each of the {counts[0]} losses, got {counts[1]}")
    try:
        return bind(fn, **{key: _value(value, f"{where}.{key}", key, known[key], room, run) for key, value in given.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _value(value: Any, where: str, key: str, kind: Any, room: ModuleType, run: Run) -> Any:
    if isinstance(value, Mapping) and not kind.several:  # a number that follows a schedule, or a part of the same kind
        return _bound(value, schedules if kind.number else room, where, run)
    if kind.several:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list of numbers, got {value!r}")
        items = [(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return [_bound(v, schedules, at, run) if isinstance(v, Mapping) else _number(v, at, key) for v, at in items]
    if kind.number:
        if isinstance(value, list) and kind.vector and value:
            return [_number(v, where, key) for v in value]
        return _number(value, where, key)
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        return tuple(_bound(v, room, f"{where}[{i}]", run) for i, v in enumerate(value))
    return _option(value, where, kind, room)


def _option(value: Any, where: str, kind: Any, room: ModuleType) -> Any:
    kinds = typing.get_args(kind.annotation) or (kind.annotation,)
    if typing.get_origin(kind.annotation) is typing.Literal:
        if value not in kinds:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, kinds))}, got {value!r}")
        return value
    for simple, article in ((bool, "true or false"), (int, "an integer"), (str, "text")):
        if simple in kinds:
            if not isinstance(value, simple) or (simple is int and isinstance(value, bool)):
                raise ConfigError(f"{where} must be {article}, got {value!r}")
            return value
    here = [f for f in vars(room).values() if inspect.isfunction(f) and f.__module__.startswith(room.__name__)]
    functions = [f.__name__ for f in here if not f.__name__.startswith("_")]
    if not isinstance(value, str) or value not in functions:
        near = nearest(str(value), [name for name in functions if name not in room.__all__] or functions)
        raise ConfigError(f"{where} must name a function, got {value!r}; {near}")
    return getattr(room, value)


def _number(value: Any, where: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value!r}")
    domain = domain_of(where.removeprefix("sweep.space."), key)
    if value not in domain:
        raise ConfigError(f"{where} must be {domain}, got {value!r}")
    return value


def _check_warmup(ranges: Mapping[str, tuple[float, float]]) -> None:
    for path, (_, longest) in ranges.items():
        total = ranges.get(f"{path.removesuffix('warmup')}total")
        if path.endswith("warmup") and total is not None and longest > total[0]:
            raise ConfigError(f"{path} must be at most {path.removesuffix('warmup')}total ({total[0]:g}), got {longest:g}")


def _trials(table: Mapping[str, Any], recipe: Recipe, run: Run, structure: Structure) -> tuple[Trials, int, dict[str, Any], Search | None]:
    _known(table, ("space", "count", "seeds", "seed", "sampler", "rounds", "stop"), "[sweep]")
    space = _space(table.get("space", {}), recipe, run, structure)
    if not space:
        raise ConfigError("sweep.space is empty: name a number to sweep, such as schedule.peak = { log_uniform = [1e-5, 1.0] }")
    known = {path: (float(v), float(v)) for path, v in numbers(recipe).items() if np.ndim(v) == 0}
    _check_warmup(known | {path: (d.low, d.high) for path, d in space.items() if isinstance(d, Distribution)})
    for path, part in [(path, part) for path, parts in space.items() if isinstance(parts, Parts) for part in parts.variants]:
        known = {f"{path}.{name}": (float(v), float(v)) for name, v in numbers(part.bound).items() if np.ndim(v) == 0}
        _check_warmup(known | {f"{path}.{name}": (d.low, d.high) for name, d in part.space.items()})
    drawn: dict[str, Any] = {"count": 64, "seeds": 1, "seed": 0, "sampler": "sobol"} | {
        k: v for k, v in table.items() if k not in ("space", "stop")
    }
    for key, least in (("count", 1), ("seeds", 1), ("seed", 0)):
        if isinstance(drawn[key], bool) or not isinstance(drawn[key], int) or drawn[key] < least:
            raise ConfigError(f"sweep.{key} must be an integer of at least {least}, got {drawn[key]!r}")
    if drawn["sampler"] not in (known_samplers := [*samplers.__all__, *SEARCHES, "grid"]):
        raise ConfigError(f"sweep.sampler must be one of {', '.join(known_samplers)}, got {drawn['sampler']!r}")
    if "rounds" in drawn and drawn["sampler"] not in SEARCHES:
        raise ConfigError(f"sweep.rounds goes with sweep.sampler = {', '.join(SEARCHES)}, not {drawn['sampler']}")
    search = _search(space, drawn) if drawn["sampler"] in SEARCHES else None
    if drawn["sampler"] == "grid":
        for path, what in space.items():
            ranges = [what] if isinstance(what, Distribution) else [d for part in what.variants for d in part.space.values()]
            if wrong := [d.kind for d in ranges if isinstance(what, Parts) or d.kind != "choice"]:
                raise ConfigError(f"sweep.space.{path} must be a choice when sweep.sampler is grid, got {wrong[0]}")
        trials = grid(recipe, {path: d.arguments if isinstance(d, Distribution) else d.variants for path, d in space.items()})
        drawn.pop("count")
    elif search is not None:
        drawn["rounds"] = search.rounds
        trials = sample(recipe, space, count=search.count // search.rounds, seed=drawn["seed"])
    else:
        trials = sample(recipe, space, count=drawn["count"], seed=drawn["seed"], sampler=getattr(samplers, drawn["sampler"]))
    return trials, drawn["seeds"], drawn | {"space": {path: _plain_space(what, is_structure(path)) for path, what in space.items()}}, search


def _search(space: dict[str, Distribution | Parts], drawn: Mapping[str, Any]) -> Search:
    rounds, count, sampler = drawn.get("rounds", 4), drawn["count"], drawn["sampler"]
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1 or count % rounds:
        raise ConfigError(f"sweep.rounds must be an integer that divides sweep.count, {count}, got {rounds!r}")
    missing = [package for package in dict.fromkeys(("optuna", SEARCHES[sampler][1])) if not importlib.util.find_spec(package)]
    if missing:
        raise ConfigError(f"sweep.sampler = {sampler} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return Search(space, count, rounds, sampler, drawn["seed"])


def _plain_space(what: Distribution | Parts, listed: bool = False) -> Any:
    if isinstance(what, Distribution):
        return {what.kind: [list(v) if isinstance(v, tuple) else whole(v) for v in what.arguments] if listed else what.arguments}
    # The swept ones in the order in which they are drawn.
    kept = [{name: v for name, v in _plain(part.bound).items() if name not in part.space} for part in what.variants]
    return [table | {name: _plain_space(d) for name, d in part.space.items()} for table, part in zip(kept, what.variants, strict=True)]


def _stop(table: Any, run: Run) -> Rule:
    if not isinstance(table, Mapping):
        raise ConfigError(f'sweep.stop must be a table such as {{ name = "halving" }}, got {table!r}')
    rule = STOPS[_choice(table, list(STOPS), "sweep.stop")]
    given = {key: value for key, value in table.items() if key != "name"}
    valid = inspect.signature(rule).parameters
    _known(given, list(valid), "[sweep.stop]")
    if missing := [key for key, parameter in valid.items() if parameter.default is REQUIRED and key not in given]:
        raise ConfigError(f"sweep.stop.{missing[0]} is missing: {table['name']} needs it")
    for key, value in given.items():
        _number(value, f"sweep.stop.{key}", key)
    try:
        stop = rule(**given)
        stop.steps(run.steps)
    except ValueError as error:
        raise ConfigError(f"sweep.stop: {error}") from None
    return stop


def _space(table: Mapping[str, Any], recipe: Recipe, run: Run, structure: Structure, prefix: str = "") -> dict[str, Distribution | Parts]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"sweep.space must be a table, got {table!r}")
    space: dict[str, Distribution | Parts] = {}
    known = numbers(recipe)
    for key, value in table.items():
        path, where = prefix + key, f"sweep.space.{prefix}{key}"
        if path in ROOMS and isinstance(value, list):
            space[path] = choice([_variant(part, path, f"{where}[{i}]", run) for i, part in enumerate(value)])
            continue
        if isinstance(value, Mapping) and not set(value) & set(DISTRIBUTIONS) and path not in known:
            space |= _space(
                value, recipe, run, structure, f"{path}."
            )  # [sweep.space] schedule.peak = {...} nests where "schedule.peak" does not
            continue
        if is_structure(path):
            space[path] = structure.choice(value, where, path)
            continue
        if path not in known:
            raise ConfigError(f"{where}: the recipe has no number {path!r}; {nearest(path, known)}")
        space[path] = _distribution(value, where, path.rpartition(".")[2])
    return space


def _variant(table: Any, part: str, where: str, run: Run) -> Variant:
    """A part to choose, as a table of its kind; some of its numbers may be distributions."""
    if not isinstance(table, Mapping):
        raise ConfigError(f'{where} must be a table such as {{ name = "adamw" }}, got {table!r}')
    swept = {key: value for key, value in table.items() if isinstance(value, Mapping) and set(value) & set(DISTRIBUTIONS)}
    space = {key: _distribution(value, f"sweep.space.{part}.{key}", key) for key, value in swept.items()}
    middle = {key: float(distribution.quantile(np.array(0.5))) for key, distribution in space.items()}
    bound = _bound({**table, **middle}, ROOMS[part], where, run)
    if flags := [key for key in space if key not in bound.hparams]:
        raise ConfigError(f"{where}.{flags[0]} is not a number, so it cannot be swept; list the part once for each of its values")
    return Variant(bound, space)


def _distribution(value: Any, where: str, key: str) -> Distribution:
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= set(DISTRIBUTIONS):
        raise ConfigError(
            f"{where} must be a distribution such as {{ log_uniform = [1e-5, 1.0] }}, got {value!r}; {nearest('', DISTRIBUTIONS)}"
        )
    ((kind, given),) = value.items()
    given = [given] if kind == "fixed" and not isinstance(given, list) else given
    count, what = {"choice": (None, "numbers"), "fixed": (1, "one number"), "normal": (2, "two numbers, mean and standard deviation")}.get(
        kind, (2, "two numbers, low and high")
    )
    if not isinstance(given, list) or not given or len(given) != (count or len(given)):
        raise ConfigError(f"{where}.{kind} must be a list of {what}, got {given!r}")
    try:
        distribution = DISTRIBUTIONS[kind](*[_number(v, where, key if kind != "normal" else "") for v in given])
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{where}: {error}") from None
    for end in (distribution.low, distribution.high):
        _number(end, where, key)
    return distribution


def tables_of(recipe: Recipe) -> dict[str, Any]:
    """The tables of a config that make this recipe."""
    return {key: _plain(value) for key, value in recipe._asdict().items() if value is not None}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted key -> value."""
    pairs = [flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {f"{prefix}{k}": v} for k, v in table.items()]
    return {key: value for pair in pairs for key, value in pair.items()}


def _plain(value: Any) -> Any:
    """A bound part as the TOML table that makes it; what TOML cannot say (None) is left out, being the default."""
    if isinstance(value, Bound):
        values = {**value.hparams, **value.options}
        return {"name": value.fn.__name__} | {key: _plain(v) for key, v in values.items() if v is not None}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        # The shortest decimal that gives the same float32, not the float64 digits of one.
        return [float(str(v)) for v in value] if value.ndim else float(str(value))
    return value.__name__ if callable(value) else value
