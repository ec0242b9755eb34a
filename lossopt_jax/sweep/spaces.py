"""What to try: distributions over the numbers of a recipe and over its parts, and the trials drawn from them."""

import functools
import inspect
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np

from ..models import Model
from ..recipe import Bound, Recipe, bind, nearest, numbers, with_numbers
from ..train import Run
from .samplers import sobol

CUT = 3.0  # standard deviations


class Distribution(NamedTuple):
    """A swept number. kind: the name of the function that makes it; low and high are its ends.

    values: a choice's, or the mean and standard deviation of a normal. labels: names for a choice's values, where they are no numbers.
    """

    kind: str
    low: float
    high: float
    values: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[Any]:
        """What its function was called with."""
        if self.labels:
            return [read_label(label) for label in self.labels]
        return list(self.values) or ([self.low] if self.kind == "fixed" else [self.low, self.high])

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The value at each u in [0, 1)."""
        if self.kind == "choice":
            return np.asarray(self.values)[np.minimum((u * len(self.values)).astype(int), len(self.values) - 1)]
        if self.kind == "int_uniform":
            return np.floor(self.low + u * (self.high - self.low + 1))
        if self.kind == "log_uniform":
            # Clipped: exp(log(high)) may exceed high by a rounding.
            return np.clip(np.exp(math.log(self.low) + u * math.log(self.high / self.low)), self.low, self.high)
        if self.kind == "normal":
            from scipy.special import ndtr, ndtri

            mean, std = self.values
            return mean + std * ndtri(ndtr(-CUT) + u * (ndtr(CUT) - ndtr(-CUT)))
        return self.low + u * (self.high - self.low)

    def code(self, value: float | str) -> float:
        """The value as a number: of a label its place."""
        return float(self.labels.index(value)) if isinstance(value, str) else float(value)

    def position(self, value: float | str) -> float:
        """Where a value lies between the ends, 0 at the low one and 1 at the high one."""
        low, high, value = self.low, self.high, self.code(value)
        if self.kind == "log_uniform":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5


class Variant(NamedTuple):
    """A part to choose, with the numbers of it that are swept: name -> distribution. See `variant`."""

    bound: Bound
    space: dict[str, Distribution]


class Parts(NamedTuple):
    """A swept part of the recipe: one of several, each a structure of its own. See `choice`."""

    variants: tuple[Variant, ...]

    def labels(self) -> tuple[str, ...]:
        """The names of the functions; of those with one name the later ones are numbered."""
        names = [_name(v.bound) for v in self.variants]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(name if not count else f"{name}-{count + 1}" for name, count in zip(names, before, strict=True))

    def column(self) -> Distribution:
        return _labelled(self.labels())


Space = Mapping[str, Distribution | Parts]


def uniform(low: float, high: float) -> Distribution:
    """Every number from low to high alike."""
    return _checked("uniform", low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Every order of magnitude from low > 0 to high alike: the right choice for learning rates and weight decays."""
    if not low > 0:
        raise ValueError(f"log_uniform: low must be above 0, got {low}")
    return _checked("log_uniform", low, high)


def int_uniform(low: int, high: int) -> Distribution:
    """Every integer from low to high, both included, alike."""
    if int(low) != low or int(high) != high:
        raise ValueError(f"int_uniform: low and high must be integers, got {low} and {high}")
    return _checked("int_uniform", low, high)


def normal(mean: float, std: float) -> Distribution:
    """The normal distribution, cut off at three standard deviations, which are its ends."""
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"normal: mean must be finite and std finite and above 0, got mean {mean} and std {std}")
    return Distribution("normal", float(mean - CUT * std), float(mean + CUT * std), (float(mean), float(std)))


def fixed(value: float) -> Distribution:
    """Always this number."""
    return _checked("fixed", value, value)


@overload
def choice(values: Sequence[float] | Sequence[str] | Sequence[Sequence[int]]) -> Distribution: ...
@overload
def choice(values: Sequence[Bound | Variant]) -> Parts: ...
def choice(values: Sequence[Any]) -> Distribution | Parts:
    """One of some numbers; or, for the path of a part of the recipe, one of some bound functions, each perhaps a `variant`.

    For a path such as "model.widths" also one of some lists of integers, or of some words.

    >>> import lossopt_jax as lo
    >>> adamw = lo.variant(lo.optimizers.adamw, weight_decay=lo.log_uniform(1e-5, 1e-1))
    >>> space = {"optimizer": lo.choice([lo.bind(lo.optimizers.sgd), adamw])}
    """
    if not len(values):
        raise ValueError("choice: needs at least one value")
    if any(isinstance(value, Bound | Variant) for value in values):
        wrong = [value for value in values if not isinstance(value, Bound | Variant)]
        if wrong:
            raise TypeError(f"choice: of parts each must be a lo.bind(...) or lo.variant(...), got {wrong[0]!r}")
        return Parts(tuple(value if isinstance(value, Variant) else Variant(value, {}) for value in values))
    if any(isinstance(value, str | Sequence) for value in values):
        return _labelled(tuple(value if isinstance(value, str) else json.dumps(list(value)) for value in values))
    return Distribution("choice", float(min(values)), float(max(values)), tuple(map(float, values)))


def read_label(label: str) -> Any:
    """The value of a label: a list of integers as a tuple, a word as it is."""
    return tuple(json.loads(label)) if label.startswith("[") else label


def _labelled(labels: tuple[str, ...]) -> Distribution:
    return Distribution("choice", 0.0, len(labels) - 1.0, tuple(map(float, range(len(labels)))), labels)


def variant(fn: Callable[..., Any], **values: Any) -> Variant:
    """`bind` for a choice of parts: of the values some may be distributions, drawn for this part only.

    >>> import lossopt_jax as lo
    >>> lo.variant(lo.optimizers.momentum, beta=lo.uniform(0.5, 0.99)).space["beta"].high
    0.99
    """
    space = {name: value for name, value in values.items() if isinstance(value, Distribution)}
    _check_numbers(space)
    middle = {name: float(distribution.quantile(np.array(0.5))) for name, distribution in space.items()}
    bound = bind(fn, **{**values, **middle})
    with_numbers(bound, middle)  # a flag cannot be drawn from a range
    return Variant(bound, space)


def _checked(kind: str, low: float, high: float) -> Distribution:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{kind}: low must be at most high and both finite, got low {low} and high {high}")
    return Distribution(kind, float(low), float(high))


@dataclass(frozen=True)
class Trials:
    """Recipes to compare. recipes: one a trial. space: path -> distribution of each swept number, and of each choice of parts, labelled.

    drawn: of each trial what it drew, path -> number or label; a number of another part than the trial's is NaN. What is not of the
        recipe ("run.batch_size", "model.width") is here only; see `setup`.
    """

    recipes: tuple[Recipe, ...]
    space: dict[str, Distribution]
    drawn: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.recipes)

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
        return ", ".join(chosen or [_name(part) for part in (recipe.loss, recipe.optimizer, recipe.schedule)])


def whole(number: float) -> float:
    """The number, as an integer where it is one: of what is a width or a batch size floats are made by drawing only."""
    return int(number) if number == int(number) else number


def is_structure(path: str) -> bool:
    """Whether the path is of what a recipe runs with: of the model or of the run."""
    return path.partition(".")[0] in ("model", "run")


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


def _check_numbers(space: Mapping[str, Distribution]) -> None:
    for path, what in space.items():
        if what.labels:
            raise TypeError(f"sample: {path!r} is a number: its choice must be of numbers, got {what.arguments}")


def _check_structure(path: str, what: Distribution | Parts) -> None:
    if not isinstance(what, Distribution) or what.kind not in ("choice", "fixed"):
        raise TypeError(
            f"sample: each value of {path!r} compiles a program of its own: list them, as lo.choice([16, 32, 64]), got {what!r}"
        )
    if path.startswith("run.") and path != "run.batch_size":
        raise KeyError(f"sample: of a run only run.batch_size can be swept, got {path!r}")
    if path == "run.batch_size" and (wrong := [v for v in what.arguments if not isinstance(v, float) or v < 1 or v != int(v)]):
        raise ValueError(f"sample: run.batch_size must be a whole number of at least 1, got {wrong[0]!r}")


def _name(part: Bound) -> str:
    return getattr(part.fn, "__name__", repr(part.fn))


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
    if count < 1:
        raise ValueError(f"sample: count must be at least 1, got {count}")
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
    _check_numbers(own)
    with_numbers(recipe, dict.fromkeys(own, 0.0))  # a wrong path is an error before anything is drawn
    columns: dict[str, Distribution] = {}
    for path, what in space.items():
        if isinstance(what, Distribution):
            columns[path] = what
            continue
        columns[path] = what.column()
        for label, part in zip(what.labels(), what.variants, strict=True):
            columns |= {f"{label}.{name}": distribution for name, distribution in part.space.items()}
    return columns


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
