"""The [sweep] table of a config: what is swept, how it is sampled or searched, and what stops trials early."""

import dataclasses
import importlib.util
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import data
from ..loop import Run
from ..recipe import REQUIRED, Recipe, nearest, numbers
from ..sweep import (
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
from ..sweep.population import Rule
from ..sweep.spaces import Distribution, Parts, Variant, is_structure, listed_in, whole
from ..sweep.trials import too_long_warmup
from .parts import ROOMS, bound, model_of, plain
from .values import ConfigError, check_keys, chosen, number

DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "uniform": uniform,
    "log_uniform": log_uniform,
    "int_uniform": int_uniform,
    "choice": lambda *values: choice(values),
    "normal": normal,
    "fixed": fixed,
}


# Optuna's, by the packages that they need.
SEARCHES = {"tpe": ("TPESampler", "optuna"), "cmaes": ("CmaEsSampler", "cmaes"), "gp": ("GPSampler", "torch")}


STOPS: dict[str, Callable[..., Rule]] = {"halving": halving, "hyperband": hyperband, "asha": asha, "population": population}


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
                try:
                    model_of(self.model | {key: one}, tuple(self.model["output_shape"]))
                except ConfigError as error:  # it names the key of the model's table
                    raise ConfigError(f"sweep.space.{error}") from None
                continue
            most = len(self.task.train[0])
            if isinstance(one, bool) or not isinstance(one, int | float) or one != int(one) or not 1 <= one <= most:
                raise ConfigError(f"{where} must be whole numbers from 1 to the {most} examples there are, got {one!r}")
        return choice(value["choice"])


def trials_of(
    table: Mapping[str, Any], recipe: Recipe, run: Run, structure: Structure
) -> tuple[Trials, int, dict[str, Any], Search | None]:
    check_keys(table, ("space", "count", "seeds", "seed", "sampler", "rounds", "stop"), "[sweep]")
    space = _space(table.get("space", {}), recipe, run, structure)
    if not space:
        raise ConfigError("sweep.space is empty: name a number to sweep, such as schedule.peak = { log_uniform = [1e-5, 1.0] }")
    known = {path: (float(v), float(v)) for path, v in numbers(recipe).items() if np.ndim(v) == 0}
    swept = {path: (d.low, d.high) for path, d in space.items() if isinstance(d, Distribution)}
    check_warmup(known | swept, "sweep.space." if any(path.endswith("warmup") for path in swept) else "")
    for path, part in [(path, part) for path, parts in space.items() if isinstance(parts, Parts) for part in parts.variants]:
        known = {f"{path}.{name}": (float(v), float(v)) for name, v in numbers(part.bound).items() if np.ndim(v) == 0}
        check_warmup(known | {f"{path}.{name}": (d.low, d.high) for name, d in part.space.items()})
    drawn: dict[str, Any] = {"count": 64, "seeds": 1, "seed": 0, "sampler": "sobol"} | {
        k: v for k, v in table.items() if k not in ("space", "stop")
    }
    for key, least in (("count", 1), ("seeds", 1), ("seed", 0)):
        if isinstance(drawn[key], bool) or not isinstance(drawn[key], int) or drawn[key] < least:
            raise ConfigError(f"sweep.{key} must be an integer of at least {least}, got {drawn[key]!r}")
    if drawn["sampler"] not in (known_samplers := [*samplers.__all__, *SEARCHES, "grid"]):
        raise ConfigError(f"sweep.sampler = {drawn['sampler']!r} is unknown; {nearest(str(drawn['sampler']), known_samplers)}")
    if "rounds" in drawn and drawn["sampler"] not in SEARCHES:
        raise ConfigError(f"sweep.rounds goes with sweep.sampler = {', '.join(SEARCHES)}, not {drawn['sampler']}")
    search = _search(space, drawn) if drawn["sampler"] in SEARCHES else None
    if drawn["sampler"] == "grid":
        for path, what in space.items():
            ranges = [what] if isinstance(what, Distribution) else [d for part in what.variants for d in part.space.values()]
            if wrong := [d.kind for d in ranges if isinstance(what, Parts) or d.kind not in ("choice", "fixed")]:
                raise ConfigError(f"sweep.space.{path} must be a choice when sweep.sampler is grid, got {wrong[0]}")
        combinations = math.prod(len(d.arguments if isinstance(d, Distribution) else d.variants) for d in space.values())
        if table.get("count", combinations) != combinations:
            raise ConfigError(
                f"sweep.count: a grid is all {combinations} combinations of what is listed, got {table['count']}: leave it out"
            )
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
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"sweep.rounds must be an integer of at least 1, got {rounds!r}")
    if count % rounds and "rounds" in drawn:
        raise ConfigError(f"sweep.rounds must be an integer that divides sweep.count, {count}, got {rounds}")
    if count % rounds:
        near = f"sweep.count = {rounds * max(1, round(count / rounds))}"
        raise ConfigError(f"sweep.count must be a multiple of sweep.rounds ({rounds} unless given), got {count}: try {near}")
    if sampler == "cmaes" and (listed := listed_in(space)):
        raise ConfigError(f"sweep.space.{listed[0]} is a choice, of which cmaes knows nothing: take sweep.sampler = tpe, or a range for it")
    missing = [package for package in dict.fromkeys(("optuna", SEARCHES[sampler][1])) if not importlib.util.find_spec(package)]
    if missing:
        raise ConfigError(f"sweep.sampler = {sampler} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return Search(space, count, rounds, sampler, drawn["seed"])


def stop_of(table: Any, run: Run) -> Rule:
    """The [sweep.stop] table, or `stop = { ... }`."""
    if not isinstance(table, Mapping):
        raise ConfigError(f'sweep.stop must be a table such as {{ name = "halving" }}, got {table!r}')
    rule = STOPS[chosen(table, list(STOPS), "sweep.stop")]
    given = {key: value for key, value in table.items() if key != "name"}
    valid = inspect.signature(rule).parameters
    check_keys(given, list(valid), "[sweep.stop]")
    if missing := [key for key, parameter in valid.items() if parameter.default is REQUIRED and key not in given]:
        raise ConfigError(f"sweep.stop.{missing[0]} is missing: {table['name']} needs it")
    for key, value in given.items():
        number(value, f"sweep.stop.{key}", key)
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
        if path.partition(".")[0] == "metric":
            raise ConfigError(f"{where} cannot be swept: all recipes are judged by the one [metric]")
        if path in ROOMS and value == []:
            raise ConfigError(f'{where} must list at least one part, such as {{ name = "{getattr(recipe, path).fn.__name__}" }}, got []')
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
        if path.partition(".")[0] in ROOMS and path.endswith(".name"):
            part = path.partition(".")[0]
            raise ConfigError(
                f"{where} is no number: list the parts themselves, {part} = [{{ name = ... }}, {{ name = ... }}], got {value!r}"
            )
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
    made = bound({**table, **middle}, ROOMS[part], where, run)
    if flags := [key for key in space if key not in made.hparams]:
        raise ConfigError(f"{where}.{flags[0]} is not a number, so it cannot be swept; list the part once for each of its values")
    return Variant(made, space)


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
        distribution = DISTRIBUTIONS[kind](*[number(v, where, key if kind != "normal" else "") for v in given])
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{where}: {error}") from None
    for end in (distribution.low, distribution.high):
        try:
            number(end, where, key)
        except ConfigError as error:
            reached = f"; three deviations from the mean reach {distribution.low:.4g} to {distribution.high:.4g}"
            raise ConfigError(f"{error}{reached if kind == 'normal' else ''}") from None
    return distribution


def check_warmup(ranges: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """ConfigError for a warm-up that may be longer than its run. ranges: path -> least, most. where: before the path, for the error."""
    if wrong := too_long_warmup(ranges):
        raise ConfigError(where + wrong)


def _plain_space(what: Distribution | Parts, listed: bool = False) -> Any:
    if isinstance(what, Distribution):
        return {what.kind: [list(v) if isinstance(v, tuple) else whole(v) for v in what.arguments] if listed else what.arguments}
    # The swept ones in the order in which they are drawn.
    kept = [{name: v for name, v in plain(part.bound).items() if name not in part.space} for part in what.variants]
    return [table | {name: _plain_space(d) for name, d in part.space.items()} for table, part in zip(kept, what.variants, strict=True)]
