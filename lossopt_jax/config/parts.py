"""The tables of a config as objects and back: data, model, run, and the loss, optimizer and schedule, whose names become functions here."""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .. import data, losses, models, optimizers, schedules
from ..domains import DECAY
from ..loop import Run
from ..models import Model, from_linen
from ..recipe import REQUIRED, Bound, Recipe, bind, nearest, parameters
from .values import ConfigError, check_keys, chosen, number

ROOMS = {"loss": losses, "optimizer": optimizers, "schedule": schedules}


def required(config: Mapping[str, Any], table: str) -> Mapping[str, Any]:
    """A table that every config has."""
    if table not in config:
        raise ConfigError(f"the config has no [{table}] table; it needs one with name = ...")
    return config[table]


def run_of(table: Mapping[str, Any]) -> Run:
    """The [run] table."""
    check_keys(table, [field.name for field in dataclasses.fields(Run)], "[run]")
    if "steps" not in table:
        raise ConfigError("run.steps is missing: the number of updates")
    try:
        return Run(**table)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error).replace("Run: ", "run.")) from None


def task_of(table: Mapping[str, Any]) -> data.Task:
    """The [data] table."""
    name = chosen(table, (*data.TASKS, "csv"), "data")
    if name != "csv":
        check_keys(table, ("name",), "[data]")
        try:
            return getattr(data, name)()
        except ModuleNotFoundError as error:
            raise ConfigError(f"data.name: {error}") from None
    check_keys(table, ("name", "path", "target", "kind"), "[data]")
    for key, what in (("path", "a file"), ("target", "the name of a column")):
        if not isinstance(table.get(key), str):
            raise ConfigError(f"data.{key} must be {what}, got {table.get(key)!r}")
    try:
        return data.csv(**{key: value for key, value in table.items() if key != "name"})
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {table['path']}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"data.{error}") from None


def model_of(table: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Model, dict[str, Any]]:
    """The [model] table, and the whole of it with defaults filled in. shape: of one example's outputs."""
    name = chosen(table, list(models.MODULES), "model")
    module = models.MODULES[name]
    fields = {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    given = {key: value for key, value in table.items() if key != "name"}
    check_keys(given, list(fields), f"model {name!r}")
    values: dict[str, Any] = {f.name: f.default for f in fields.values()} | {"output_shape": shape}
    for key, value in given.items():
        where, default = f"model.{key}", values[key]
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value):
                raise ConfigError(f"{where} must be a list of positive integers, got {value!r}")
            values[key] = tuple(value)
            # Two outputs for a binary task are two classes; any other shape contradicts the targets.
            if key == "output_shape" and values[key] not in {shape, shape or (2,)}:
                raise ConfigError(f"{where} must be {list(shape)} for this data, got {value!r}")
        else:
            values[key] = number(value, where, key)
            if isinstance(default, int) and (value != int(value) or value < 1):
                raise ConfigError(f"{where} must be an integer of at least 1, got {value!r}")
            if key == "dropout" and values[key] not in DECAY:
                raise ConfigError(f"{where} must be {DECAY}, got {value!r}")
    return from_linen(module(**values)), {"name": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def bound(table: Mapping[str, Any], room: ModuleType, where: str, run: Run) -> Bound:
    """A part by its name and numbers. room: the module that has it. where: the key of the table, for errors."""
    name = chosen(table, room.__all__, where)
    fn = getattr(room, name)
    known = parameters(fn)
    given = {key: value for key, value in table.items() if key != "name"}
    check_keys(given, list(known), f"{where} {name!r}", "parameter")
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
        return bound(value, schedules if kind.number else room, where, run)
    if kind.several:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list of numbers, got {value!r}")
        items = [(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return [bound(v, schedules, at, run) if isinstance(v, Mapping) else number(v, at, key) for v, at in items]
    if kind.number:
        if isinstance(value, list) and kind.vector and value:
            return [number(v, where, key) for v in value]
        return number(value, where, key)
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        return tuple(bound(v, room, f"{where}[{i}]", run) for i, v in enumerate(value))
    return _option(value, where, kind, room)


def _option(value: Any, where: str, kind: Any, room: ModuleType) -> Any:
    kinds = typing.get_args(kind.annotation) or (kind.annotation,)
    if typing.get_origin(kind.annotation) is typing.Literal:
        if value not in kinds:
            raise ConfigError(f"{where} = {value!r} is unknown; {nearest(str(value), map(str, kinds))}")
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


def tables_of(recipe: Recipe) -> dict[str, Any]:
    """The tables of a config that make this recipe."""
    return {key: plain(value) for key, value in recipe._asdict().items() if value is not None}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted key -> value."""
    pairs = [flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {f"{prefix}{k}": v} for k, v in table.items()]
    return {key: value for pair in pairs for key, value in pair.items()}


def plain(value: Any) -> Any:
    """A bound part as the TOML table that makes it; what TOML cannot say (None) is left out, being the default."""
    if isinstance(value, Bound):
        values = {**value.hparams, **value.options}
        return {"name": value.fn.__name__} | {key: plain(v) for key, v in values.items() if v is not None}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        # The shortest decimal that gives the same float32, not the float64 digits of one.
        return [float(str(v)) for v in value] if value.ndim else float(str(value))
    return value.__name__ if callable(value) else value
