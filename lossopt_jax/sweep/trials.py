"""Trials: the recipes that are drawn from a space, and the model and run that each goes with."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..domains import domain_of
from ..loop import Run
from ..models import Model
from ..recipe import Recipe, nearest, numbers, with_numbers
from .samplers import sobol
from .spaces import Distribution, Parts, Space, check_numbers, choice, is_structure, part_name, read_label, whole


@dataclass(frozen=True)
class Trials:
    """Recipes to compare. recipes: one a trial. space: path -> distribution of each swept number, and of each choice of parts, labelled.

    drawn: of each trial what it drew, path -> number or label; a number of another part than the trial's is NaN. What is not of the
        recipe ("run.batch_size", "model.width") is here only; see `setup`.
    """

    recipes: tuple[Recipe, ...]
    space: dict[str, Distribution]
    drawn: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        metrics = [getattr(recipe, "metric", None) for recipe in self.recipes]
        if any(metric is not metrics[0] and metric != metrics[0] for metric in metrics):
            raise ValueError("trials: all recipes must have the same metric, by which they are compared")

    def __len__(self) -> int:
        return len(self.recipes)

    @functools.cached_property
    def losses_differ(self) -> bool:
        """Whether there are trials of different losses, or of different numbers of it."""
        return any(recipe.loss != self.recipes[0].loss for recipe in self.recipes)

    def __repr__(self) -> str:
        return f"Trials({len(self)} recipes{' over ' if self.space else ''}{', '.join(self.space)})"

    def values(self, trial: int) -> dict[str, Any]:
        """The swept numbers of one trial by path, and the labels of its parts."""
        if self.drawn:
            return dict(self.drawn[trial])
        own = numbers(self.recipes[trial])
        return {path: float(own[path]) for path in self.space}

    def structure(self, trial: int) -> dict[str, Any]:
        """The swept values of one trial that are not of its recipe, by path: "run.batch_size" and those of the model."""
        own = {path: value for path, value in self.values(trial).items() if is_structure(path)}
        return {path: read_label(value) if isinstance(value, str) else value for path, value in own.items()}

    def setup(self, trial: int, model: Model | Callable[..., Model], run: Run) -> tuple[Model, Run]:
        """What one trial's recipe runs with: `fit` with these is the lane. model, run: as `sweep` had them."""
        own: dict[str, dict[str, Any]] = {"model": {}, "run": {}}
        for path, value in self.structure(trial).items():
            table, _, name = path.partition(".")
            own[table][name] = value
        return _built(model, tuple(own["model"].items())), replace(run, **own["run"])

    def labels(self, trial: int) -> str:
        """What of its structure a trial drew: names of parts, batch size, numbers of the model; or the names of all its parts."""
        drawn = self.values(trial).items()
        chosen = [value for path, value in drawn if isinstance(value, str) and not is_structure(path)]
        chosen += [f"{path.partition('.')[2]} {value}" for path, value in drawn if is_structure(path)]
        recipe = self.recipes[trial]
        return ", ".join(chosen or [part_name(part) for part in (recipe.loss, recipe.optimizer, recipe.schedule)])


@functools.lru_cache(maxsize=256)  # the same model for the same numbers: programs are compiled by model
def _built(model: Model | Callable[..., Model], values: tuple[tuple[str, Any], ...]) -> Model:
    names = ", ".join(name for name, _ in values)
    if isinstance(model, Model):
        if values:
            raise TypeError(f"sweep: model.{names} is swept, so model must be a function of {names} that gives a Model, got a Model")
        return model
    known = inspect.signature(model).parameters
    for name, _ in values:
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise KeyError(f"sweep: the model has no keyword {name!r}; {nearest(name, known)}")
    built = model(**dict(values))
    if not isinstance(built, Model):
        raise TypeError(f"sweep: model must give a Model such as lo.from_linen(...), got {type(built).__name__}")
    return built


def _check_structure(path: str, what: Distribution | Parts) -> None:
    if not isinstance(what, Distribution) or what.kind not in ("choice", "fixed"):
        raise TypeError(
            f"sample: each value of {path!r} compiles a program of its own: list them, as lo.choice([16, 32, 64]), got {what!r}"
        )
    if path.startswith("run.") and path != "run.batch_size":
        raise KeyError(f"sample: of a run only run.batch_size can be swept, got {path!r}")
    if path == "run.batch_size" and (wrong := [v for v in what.arguments if not isinstance(v, float) or v < 1 or v != int(v)]):
        raise ValueError(f"sample: run.batch_size must be a whole number of at least 1, got {wrong[0]!r}")


def sample(recipe: Recipe, space: Space, *, count: int, seed: int = 0, sampler: Callable[[int, int, int], np.ndarray] = sobol) -> Trials:
    """`count` recipes drawn from a space, by default through a scrambled Sobol sequence, which leaves no gaps as chance does.

    space: dotted path of a number of the recipe -> distribution, e.g. {"schedule.peak": log_uniform(1e-5, 1.0)}; or a part of the
        recipe, such as "optimizer", -> `choice` of parts with numbers of their own. Such a number's path is "<function>.<name>".
        "run.batch_size" and the numbers of the model, such as "model.width", -> `choice`: each value is a structure of its own, and
        `sweep` takes a function of the model's numbers as its model.
    sampler: (count, dimensions, seed) -> points of the unit cube [count, dimensions]; see `samplers`. The same seed gives the same trials.
    Bousquet et al. (2017, arXiv:1706.03200) on quasi-random search.

    >>> import lossopt_jax as lo
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> len(lo.sample(recipe, {"schedule.value": lo.log_uniform(1e-4, 1.0)}, count=8))
    8
    """
    if not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"sample: count must be a whole number of at least 1, got {count!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"sample: seed must be a whole number of at least 0, got {seed!r}")
    if not callable(sampler):
        raise TypeError(f"sample: sampler must be a function such as lo.samplers.sobol, got {sampler!r}")
    return trials_of(recipe, space, rows_of(columns_of(recipe, space), count, seed, sampler))


def grid(recipe: Recipe, space: Mapping[str, Sequence[Any]]) -> Trials:
    """Every combination of the listed numbers or bound parts, the last one varying fastest.

    >>> import lossopt_jax as lo
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> len(lo.grid(recipe, {"schedule.value": [1e-3, 1e-2, 1e-1]}))
    3
    """
    chosen: dict[str, Distribution | Parts] = {path: choice(values) for path, values in space.items()}
    for path, parts in chosen.items():
        if isinstance(parts, Parts) and any(part.space for part in parts.variants):
            raise TypeError(f"grid: the parts of {path!r} must be bound to numbers; list each combination, or use lo.sample")
    columns = columns_of(recipe, chosen)
    return trials_of(
        recipe, chosen, [dict(zip(columns, row, strict=True)) for row in itertools.product(*(c.values for c in columns.values()))]
    )


def columns_of(recipe: Recipe, space: Space) -> dict[str, Distribution]:
    """Path -> distribution of everything that is drawn for a trial: the numbers, which part, the numbers of every part."""
    parts = [path for path, what in space.items() if isinstance(what, Parts)]
    for path, what in space.items():
        if not isinstance(what, Distribution | Parts):
            raise TypeError(f"sample: {path!r} needs a distribution such as lo.log_uniform(1e-5, 1.0), got {what!r}")
        if is_structure(path):
            _check_structure(path, what)
            continue
        if path in parts and path not in ("loss", "optimizer", "schedule"):
            raise KeyError(f"sample: a choice of parts is for loss, optimizer or schedule, got {path!r}")
        if path not in parts and path.partition(".")[0] in parts:
            raise ValueError(f"sample: {path!r} is of a part that is chosen: give it to the parts that have it, by lo.variant")
    own = {path: what for path, what in space.items() if isinstance(what, Distribution) and not is_structure(path)}
    check_numbers(own)
    with_numbers(recipe, dict.fromkeys(own, 0.0))  # a wrong path is an error before anything is drawn
    for table in ("loss", "optimizer", "schedule", "clip_norm"):
        chosen = space.get(table)
        for part in chosen.variants if isinstance(chosen, Parts) else ():
            _check_domains(table, part.bound, {f"{table}.{name}": what for name, what in part.space.items()})
        _check_domains(table, getattr(recipe, table), {path: what for path, what in own.items() if path.partition(".")[0] == table})
    columns: dict[str, Distribution] = {}
    for path, what in space.items():
        if isinstance(what, Distribution):
            columns[path] = what
            continue
        columns[path] = what.column()
        for label, part in zip(what.labels(), what.variants, strict=True):
            columns |= {f"{label}.{name}": distribution for name, distribution in part.space.items()}
    return columns


def _check_domains(table: str, part: Any, swept: Mapping[str, Distribution]) -> None:
    """ValueError for a number of a part of ours that is drawn from beyond where it may lie, or for a warm-up longer than its schedule."""
    if not getattr(getattr(part, "fn", None), "__module__", "").startswith("lossopt_jax."):
        return  # another's number may mean something else by this name
    for path, what in swept.items():
        domain = domain_of(path)
        if not (what.low in domain and what.high in domain):
            raise ValueError(f"sample: {path!r} must be {domain}, got {what.kind} from {what.low:g} to {what.high:g}")
    known = {f"{table}.{name}": (float(v), float(v)) for name, v in numbers(part).items() if np.ndim(v) == 0}
    if swept and (wrong := too_long_warmup(known | {path: (what.low, what.high) for path, what in swept.items()})):
        raise ValueError(f"sample: {wrong}")


def too_long_warmup(ranges: Mapping[str, tuple[float, float]]) -> str | None:
    """What is wrong with a warm-up that may be longer than its run, if one may be. ranges: path -> least, most."""
    for path, (_, longest) in ranges.items():
        total = ranges.get(f"{path.removesuffix('warmup')}total")
        if path.endswith("warmup") and total is not None and longest > total[0]:
            return f"{path} must be at most {path.removesuffix('warmup')}total ({total[0]:g}), got {longest:g}"
    return None


def rows_of(
    columns: Mapping[str, Distribution], count: int, seed: int, sampler: Callable[[int, int, int], np.ndarray] = sobol
) -> list[dict[str, float]]:
    """`count` values of every column."""
    points = sampler(count, len(columns), seed) if columns else np.zeros((count, 0))
    drawn = {path: distribution.quantile(points[:, i]) for i, (path, distribution) in enumerate(columns.items())}
    return [{path: float(values[i]) for path, values in drawn.items()} for i in range(count)]


def trials_of(recipe: Recipe, space: Space, rows: Sequence[Mapping[str, float]]) -> Trials:
    """The trials of some drawn values, [trials] of path -> number for every one of `columns_of`."""
    columns = columns_of(recipe, space)
    recipes, drawn = [], []
    for row in rows:
        mine, own = recipe, dict[str, Any](dict.fromkeys(columns, math.nan))
        for path, what in space.items():
            if isinstance(what, Distribution) and is_structure(path):
                number = row[path]
                own[path] = what.labels[int(number)] if what.labels else whole(number)
                continue
            if isinstance(what, Distribution):
                mine, own[path] = with_numbers(mine, {path: row[path]}), float(np.float32(row[path]))
                continue
            label, part = what.labels()[int(row[path])], what.variants[int(row[path])]
            values = {name: row[f"{label}.{name}"] for name in part.space}
            mine = mine._replace(**{path: with_numbers(part.bound, values)})
            own |= {path: label, **{f"{label}.{name}": float(np.float32(value)) for name, value in values.items()}}
        recipes.append(mine)
        drawn.append(own)
    return Trials(tuple(recipes), columns, tuple(drawn))
