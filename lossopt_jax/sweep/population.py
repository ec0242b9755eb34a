"""Population-based training: on the way the worse trials go on as copies of better ones, with perturbed numbers. Pure rules."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..recipe import Recipe, bind, numbers, with_numbers
from ..schedules import piecewise_constant
from .rungs import Stop
from .spaces import Distribution, is_structure
from .trials import Trials

PERTURBED = 0.2  # of a number: it becomes 0.8 or 1.2 times itself


class Copy(NamedTuple):
    """A trial that went on from another's state. step: of the first update after it. to, source: the trials.

    diverged_at: the step at which `to` had failed, -1 where it was only worse. before, after: its own swept numbers by path, and the
    labels of its parts.
    """

    step: int
    to: int
    source: int
    diverged_at: int
    before: dict[str, Any]
    after: dict[str, Any]


class Population(NamedTuple):
    """The rule of population-based training; see `population`."""

    name: str
    every: int
    fraction: float
    resample: float

    def steps(self, total: int) -> tuple[int, ...]:
        """After how many of `total` steps trials are compared."""
        if self.every >= total:
            raise ValueError(f"population: every must be below the {total} steps of the run, got {self.every}")
        return tuple(range(self.every, total, self.every))

    def lane_steps(self, trials: int, total: int) -> int:
        """The steps that `trials` take together of `total` each."""
        return trials * total

    def told(self, trials: int, total: int) -> str:
        """The rule of a sweep in a line."""
        times, count = len(self.steps(total)), _count(trials, self.fraction)
        when = f"{times} times, every {self.every} steps"
        return f"population: {when}, the worst {count} of {trials} become copies of the best {count}, perturbed"

    def copied(
        self,
        step: int,
        scores: np.ndarray,
        diverged_at: np.ndarray,
        rows: Sequence[dict[str, Any]],
        space: Mapping[str, Distribution],
        seed: Sequence[int],
    ) -> list[Copy]:
        """Who goes on as whose copy, and with which numbers; the same for the same arguments.

        scores: [trials], less is better, NaN and infinity are worst. diverged_at: [trials]. rows: of each trial its own swept numbers.
        """
        badness, rng = np.where(np.isfinite(scores), scores, np.inf), np.random.default_rng(seed)
        order, count = np.argsort(badness, kind="stable"), _count(len(scores), self.fraction)
        best = [trial for trial in order[:count] if np.isfinite(badness[trial])]
        # A lane that failed does nothing until it is copied over, so none of them waits for its turn.
        worst = sorted({*order[len(order) - count :], *np.flatnonzero(np.isinf(badness))} - set(best)) if best else []
        copies = []
        for to in worst:
            source = best[rng.integers(len(best))]
            after = {p: value if is_structure(p) else self._explored(value, space[p], rng) for p, value in rows[source].items()}
            copies.append(Copy(step, int(to), int(source), int(diverged_at[to]), rows[to], after))
        return copies

    def _explored(self, value: Any, distribution: Distribution, rng: np.random.Generator) -> Any:
        again, up, place = rng.random(3)
        if isinstance(value, str):  # which part: another one is another structure
            return value
        new = float(distribution.quantile(np.array(place))) if again < self.resample else perturbed(value, distribution, up < 0.5)
        return float(np.float32(new))


def perturbed(value: float, distribution: Distribution, up: bool) -> float:
    """A number 1.2 or 0.8 times itself within its ends, but at most a fifth of the range away: 0.9 of 0.9 to 0.99 must not be at an end at
    once. An integer goes by one at least; of listed values it becomes the next greater or smaller one.

    >>> import lossopt_jax as lo
    >>> [perturbed(10.0, space, True) for space in (lo.log_uniform(1, 100), lo.uniform(1, 11), lo.choice([1, 10, 99]))]
    [12.0, 11.0, 99.0]
    """
    d = distribution
    if d.kind == "choice":
        listed = sorted(set(d.values))
        place = int(np.argmin([abs(other - value) for other in listed])) + (1 if up else -1)
        return listed[min(max(place, 0), len(listed) - 1)]
    step = PERTURBED * min(abs(value), d.high - d.low)
    if d.kind == "int_uniform":
        step = max(1, round(step))
    return min(max(value + (step if up else -step), d.low), d.high)


def population(every: int, fraction: float = 0.2, resample: float = 0.0) -> Population:
    """Population-based training: every `every` steps the worst trials go on from the states of better ones, with perturbed numbers.

    The worst `fraction`, and every trial that has diverged, each become a copy (parameters, optimizer's and model's state, numbers) of
    one drawn from the best `fraction`; then each swept number becomes 0.8 or 1.2 times itself or, with the chance `resample`, is drawn
    anew from its distribution, and never leaves its ends (see `perturbed`). Trials are compared by what they are ranked by in the end.
    Jaderberg et al. (2017, arXiv:1711.09846); there each worker copies when it is ready, here all at once, so that the same seed gives
    the same run.

    Only what can lie on the same device is copied: the trials of each structure, in waves where they do not fit together, are a
    population of their own. With several seeds a trial is judged by their mean and all of its lanes are copied, seed by seed.
    `Swept.copies` says what was copied when, and the recipe of a trial is then the schedule of numbers that its state was trained with.

    >>> import lossopt_jax as lo
    >>> lo.population(every=50).told(64, 500)
    'population: 9 times, every 50 steps, the worst 12 of 64 become copies of the best 12, perturbed'
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"population: every must be an integer of at least 1 (steps between two comparisons), got {every!r}")
    if not isinstance(fraction, int | float) or not 0 < fraction <= 0.5:
        raise ValueError(f"population: fraction must be a number above 0 and at most 0.5, got {fraction!r}")
    if not isinstance(resample, int | float) or not 0 <= resample <= 1:
        raise ValueError(f"population: resample must be a number from 0 to 1, got {resample!r}")
    return Population("population", every, float(fraction), float(resample))


Rule = Stop | Population


def _count(trials: int, fraction: float) -> int:
    return max(min(1, trials // 2), int(fraction * trials))


def with_values(recipe: Recipe, row: Mapping[str, Any]) -> Recipe:
    """The recipe with swept numbers, or schedules of them, by the paths of a sweep's table."""
    return with_numbers(recipe, {path: row[column] for column, path in _paths(recipe, row).items()})


def _paths(recipe: Recipe, row: Mapping[str, Any]) -> dict[str, str]:
    """Column -> path in the recipe: of a number of a part that was chosen, such as "momentum.beta", "optimizer.beta"."""
    parts, known, paths = {label: part for part, label in row.items() if isinstance(label, str)}, numbers(recipe), {}
    for column in row:
        label, _, rest = column.partition(".")
        path = f"{parts[label]}.{rest}" if label in parts else column
        if path in known:
            paths[column] = path
    return paths


def lineage(copies: Sequence[Copy], trial: int, own: Mapping[int, dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Where a trial's state comes from: (step, trial, numbers) from step 0 on. own: the numbers of trials that were never copied over."""
    parts, later = [], math.inf
    for copy in sorted(copies, key=lambda copy: -copy.step):
        if copy.to == trial and copy.step < later:
            parts.append((copy.step, trial, copy.after))
            trial, later = copy.source, copy.step
    first = min((copy for copy in copies if copy.to == trial), key=lambda copy: copy.step, default=None)
    return [(0, trial, own[trial] if first is None else first.before), *parts[::-1]]


def scheduled(recipe: Recipe, parts: Sequence[tuple[int, int, dict[str, Any]]]) -> Recipe:
    """The recipe with every swept number that changed on the way as a schedule of it. parts: as `lineage` gives them."""
    values: dict[str, Any] = {}
    for column in _paths(recipe, parts[-1][2]):
        steps = [(step, row[column]) for step, _, row in parts]
        kept = [steps[0], *[now for before, now in pairwise(steps) if now[1] != before[1]]]
        taken = [value for _, value in kept]
        values[column] = taken[0] if len(kept) == 1 else bind(piecewise_constant, boundaries=[s for s, _ in kept[1:]], values=taken)
    return with_values(recipe, {**parts[-1][2], **values})


def with_schedules(trials: Trials, copies: Sequence[Copy]) -> Trials:
    """The trials of a population, as they are in the end, each with the schedule of the numbers that led to its state as its recipe."""
    own = {i: trials.values(i) for i in range(len(trials))}
    recipes = tuple(scheduled(recipe, lineage(copies, i, own)) for i, recipe in enumerate(trials.recipes))
    return Trials(recipes, trials.space, trials.drawn)
