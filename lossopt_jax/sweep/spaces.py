"""What to try: distributions over the numbers of a recipe, and the trials drawn from them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..recipe import Recipe, numbers, with_numbers


class Distribution(NamedTuple):
    """A swept number. kind: "uniform", "log_uniform", "int_uniform" or "choice"; low and high are its ends, values a choice's."""

    kind: str
    low: float
    high: float
    values: tuple[float, ...] = ()

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The value at each u in [0, 1)."""
        if self.kind == "choice":
            return np.asarray(self.values)[np.minimum((u * len(self.values)).astype(int), len(self.values) - 1)]
        if self.kind == "int_uniform":
            return np.floor(self.low + u * (self.high - self.low + 1))
        if self.kind == "log_uniform":
            # Clipped: exp(log(high)) may exceed high by a rounding.
            return np.clip(np.exp(math.log(self.low) + u * math.log(self.high / self.low)), self.low, self.high)
        return self.low + u * (self.high - self.low)

    def position(self, value: float) -> float:
        """Where a value lies between the ends, 0 at the low one and 1 at the high one."""
        low, high = self.low, self.high
        if self.kind == "log_uniform":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5


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


def choice(values: Sequence[float]) -> Distribution:
    """One of some numbers."""
    if not len(values):
        raise ValueError("choice: needs at least one value")
    return Distribution("choice", float(min(values)), float(max(values)), tuple(map(float, values)))


def _checked(kind: str, low: float, high: float) -> Distribution:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{kind}: low must be at most high and both finite, got low {low} and high {high}")
    return Distribution(kind, float(low), float(high))


@dataclass(frozen=True)
class Trials:
    """Recipes to compare. recipes: one a trial. space: dotted path -> distribution of each swept number."""

    recipes: tuple[Recipe, ...]
    space: dict[str, Distribution]

    def __len__(self) -> int:
        return len(self.recipes)

    def values(self, trial: int) -> dict[str, float]:
        """The swept numbers of one trial by path."""
        own = numbers(self.recipes[trial])
        return {path: float(own[path]) for path in self.space}


def sample(recipe: Recipe, space: Mapping[str, Distribution], *, count: int, seed: int = 0) -> Trials:
    """`count` recipes with the numbers in `space` drawn from a scrambled Sobol sequence, which leaves no gaps as chance does.

    space: dotted path of a number of the recipe -> distribution, e.g. {"schedule.peak": log_uniform(1e-5, 1.0)}.
    Owen (1998); Bousquet et al. (2017, arXiv:1706.03200) on quasi-random search. The same seed gives the same trials.

    >>> import lossopt_jax as lo
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> len(lo.sample(recipe, {"schedule.value": lo.log_uniform(1e-4, 1.0)}, count=8))
    8
    """
    if count < 1:
        raise ValueError(f"sample: count must be at least 1, got {count}")
    with_numbers(recipe, dict.fromkeys(space, 0.0))  # a wrong path is an error here, before anything is drawn
    for path, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise TypeError(f"sample: {path!r} needs a distribution such as lo.log_uniform(1e-5, 1.0), got {distribution!r}")
    points = _sobol(count, len(space), seed)
    columns = {path: distribution.quantile(points[:, i]) for i, (path, distribution) in enumerate(space.items())}
    rows = [with_numbers(recipe, {path: column[i] for path, column in columns.items()}) for i in range(count)]
    return Trials(tuple(rows), dict(space))


def grid(recipe: Recipe, space: Mapping[str, Sequence[float]]) -> Trials:
    """Every combination of the listed numbers, the last one varying fastest.

    >>> import lossopt_jax as lo
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> len(lo.grid(recipe, {"schedule.value": [1e-3, 1e-2, 1e-1]}))
    3
    """
    chosen = {path: choice(values) for path, values in space.items()}
    rows = [with_numbers(recipe, dict(zip(chosen, row, strict=True))) for row in itertools.product(*(c.values for c in chosen.values()))]
    return Trials(tuple(rows), chosen)


def _sobol(count: int, dimensions: int, seed: int) -> np.ndarray:
    if not dimensions:
        return np.zeros((count, 0))
    from scipy.stats import qmc  # half a second to import

    return qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed)).random_base2(max(0, math.ceil(math.log2(count))))[:count]
