"""From a recipe to a tuned one: the rate of each optimizer, a halving sweep around them, and the winner against what was there before."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import optimizers, schedules
from ._types import Scalar
from .hosts import from_first
from .loop import Callbacks, Run
from .lr_finder import LRFinding, judged
from .recipe import Bound, Recipe, bind, numbers, with_numbers
from .step import check_recipe
from .sweep import Distribution, LanePlan, Stop, Swept, Trials, halving, log_uniform, plan_lanes, samplers
from .sweep.run import finished, prepared

LOW, HIGH, RATES = 1e-5, 10.0, 16  # what is looked at for each optimizer, in a tenth of the steps
BELOW, ABOVE = 20.0, 4.0  # the sweep reaches so many times below and above what was found: in more steps the best rate is lower
DECAY = log_uniform(1e-5, 0.1)
RUNS = 20.0  # the budget unless given, in full runs: a tenth of 200 trials
FEWEST = 9  # trials of a sweep that is worth one
WARM = 5.0  # seconds; a shorter stage is timed again to tell the speed, since a program's first steps are slow
MANY = 750  # trials, beyond which more seeds tell more than more trials
SHARE, FINALISTS = 0.3, 8  # of the budget for the last stage, and at most so many of the sweep's best in it


class Stage(NamedTuple):
    """What is about to run. lane_steps: how many are to be expected of all lanes together."""

    name: str
    steps: int
    lanes: int
    lane_steps: int


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    recipe: the best of the finalists and the one that was given, over the seeds of `final`.
    findings: optimizer -> its rate, as `find_lr` judged it. swept: the halving sweep around these rates.
    final: the best trials of `swept`, then the recipe that was given, at the full budget under several seeds; None where nothing learnt.
    lane_steps: of each stage, "rates", "sweep" and "final".
    """

    recipe: Recipe
    findings: dict[str, LRFinding]
    swept: Swept | None
    final: Swept | None
    lane_steps: dict[str, int]

    def __repr__(self) -> str:
        return f"Tuned({self.recipe}, improved={self.improved}, lane_steps={self.lane_steps})"

    @property
    def improved(self) -> bool:
        """Whether a tuned recipe is better than the one that was given."""
        return self.final is not None and not self.final.failure() and self.final.best_trial() < len(self.final.trials) - 1

    def table(self) -> list[dict[str, Any]]:
        """A row a recipe of `final`, the best one first: trial, which ("tuned", the best of the finalists; "finalist", the others; "as
        given") and its metrics, mean and standard error over seeds."""
        rows = [] if self.final is None else self.final.table()
        given = len(rows) - 1
        tuned = next((row["trial"] for row in rows if row["trial"] != given), None)
        names = {given: "as given", tuned: "tuned"}
        return [{"trial": row["trial"], "which": names.get(row["trial"], "finalist"), **row} for row in rows]


def tune(
    model: Any,
    recipe: Recipe,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    families: Sequence[Bound] | None = None,
    space: Mapping[str, Distribution] | None = None,
    lane_steps: int | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    plan: LanePlan | None = None,
    on_stage: Callable[["Stage"], Callbacks] = lambda stage: (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
) -> Tuned:
    """Tune a recipe: find each optimizer's learning rate, sweep around them with early stopping, compare the winner with `recipe`.

    Three stages. 16 constant rates from 1e-5 to 10 for each optimizer, in a tenth of the steps (`find_lr`); successive halving of
    trials whose rate is from a twentieth of what was found to four times that, and whose weight decay is drawn where the optimizer has
    one; the best of them and `recipe` as it was given at the full budget, under `seeds` seeds that no earlier stage has used. A budget
    beyond the usual one buys more trials, more finalists (to 8, in three tenths of it; the best of several flatters itself a little) and,
    from 1,500 trials on, up to `seeds` seeds for each.

    families: bound optimizers to choose from; by default the recipe's own, adamw, and momentum. space: further numbers to sweep, by path
    as in `sample`; those of an optimizer are for the families that have them, and one of the rate is put aside. lane_steps: the steps of
    all stages together, 20 x run.steps by default; or minutes, turned into steps at the speed of the first stage (compiling comes on top,
    and nine trials are run in any case).
    on_stage: called with a `Stage` before it runs; gives the callbacks for it. checkpoint: a folder from which the
    same call goes on. Other arguments as in `sweep`.

    Raises ValueError when lane_steps are too few for nine trials. Halving: Jamieson & Talwalkar (2016, arXiv:1502.07943).
    """
    check_recipe(recipe)
    if lane_steps is not None and minutes is not None:
        raise ValueError(f"tune: give lane_steps or minutes, not both, got {lane_steps} and {minutes}")
    if seeds < 1:
        raise ValueError(f"tune: seeds must be at least 1, got {seeds}")
    if run.steps < 1:
        raise ValueError(f"tune: run.steps must be at least 1, got {run.steps}")
    budget = RUNS * run.steps if lane_steps is None else lane_steps
    if not (math.isfinite(budget) and budget > 0 and (minutes is None or (math.isfinite(minutes) and minutes > 0))):
        raise ValueError(f"tune: lane_steps and minutes must be above 0 and finite, got {lane_steps if minutes is None else minutes}")
    chosen, stop, run = _families(recipe, families), _stop(run.steps), replace(run, chunk=min(run.chunk, max(1, run.steps // 10)))
    short = replace(run, steps=max(1, run.steps // 10))
    rates_steps, most = len(chosen) * RATES * short.steps, 4 * RATES
    if minutes is None:  # an error before anything runs
        finalists, count, each = _shares(budget, rates_steps, stop, run.steps, seeds)
        most = max(RATES, (finalists + 1) * seeds, -(-count // len(chosen)) * each)
    stages = _Stages(model, train, evaluate, plan, -(-most // seeds), seeds, on_stage, checkpoint, save_every)
    if plan is None:
        stages = stages.planned(recipe._replace(optimizer=next(iter(chosen.values()))), run, stop)
    found = _findings(stages, recipe, chosen, short)
    stages = stages._replace(plan=next(iter(found.values())).swept.plan)  # which took its seconds once
    spent = {"rates": sum(finding.swept.lane_steps for finding in found.values())}
    learning = {label: finding for label, finding in found.items() if math.isfinite(finding.suggested)}
    if not learning:
        return Tuned(recipe, found, None, None, spent)
    if minutes is not None:
        seconds = next(iter(found.values())).swept.seconds
        if from_first(lambda: seconds) < WARM:
            again = _findings(stages._replace(on_stage=lambda stage: (), checkpoint=None), recipe, chosen, short)
            seconds = min(seconds, next(iter(again.values())).swept.seconds)
        least = spent["rates"] + 2 * seeds * run.steps + _cost(FEWEST, stop, run.steps)
        allowed = max(spent["rates"] / max(seconds, 1e-9) * minutes * 60, least)
        budget = from_first(lambda: _kept_budget(checkpoint, allowed))  # by one clock, should there be several processes
    finalists, count, each = _shares(budget, spent["rates"], stop, run.steps, seeds)
    swept = stages.run("sweep", _trials(learning, space or {}, count, run.seed), run, seeds=each, stop=stop)
    spent["sweep"] = swept.lane_steps
    if swept.failure():
        return Tuned(recipe, found, swept, None, spent)
    best = [swept.trials.recipes[trial] for trial in swept.top(finalists)]
    final = stages.run("final", Trials((*best, recipe), {}), replace(run, seed=run.seed + each), seeds=seeds)
    spent["final"] = final.lane_steps
    return Tuned(recipe if final.failure() else final.best(), found, swept, final, spent)


class _Stages(NamedTuple):
    """What all stages share, so that what one has compiled for an optimizer serves the others: the plan, and places for
    `trials` x `seeds` lanes."""

    model: Any
    train: Any
    evaluate: Any
    plan: LanePlan | None
    trials: int
    seeds: int
    on_stage: Callable[[Stage], Callbacks]
    checkpoint: str | Path | None
    save_every: float

    def planned(self, recipe: Recipe, run: Run, stop: Stop | None) -> "_Stages":
        alike = [_alike(recipe)] * self.trials
        data = {"train": self.train, "evaluate": self.evaluate}
        return self._replace(plan=plan_lanes(self.model, alike, **data, run=run, seeds=self.seeds, stop=stop))

    def run(
        self, name: str, trials: Trials, run: Run, *, seeds: int = 1, stop: Stop | None = None, alike: Sequence[Recipe] | None = None
    ) -> Swept:
        """The trials, run as lanes of the shared programs. alike: the same recipes as those take them, by default under their schedules."""
        lanes, kept = len(trials) * seeds, None if self.checkpoint is None else Path(self.checkpoint) / name
        same = replace(trials, recipes=tuple(alike or map(_alike, trials.recipes)))
        room: dict[str, int] = {"room": self.trials * self.seeds // seeds, "seed_room": self.seeds}
        job = prepared(self.model, same, self.train, self.evaluate, run, seeds, self.plan, kept, self.save_every, stop=stop, **room)
        cost = _cost(len(trials), stop, run.steps) * seeds
        return replace(finished(job, self.on_stage(Stage(name, run.steps, lanes, cost))), trials=trials)


def _alike(recipe: Recipe, rate: float = 0.0) -> Recipe:
    """The recipe in the structure that runs under a constant rate share with those under its own schedule, which is for a rate of 0."""
    return recipe._replace(schedule=bind(_constant_or_own, rate=rate, own=recipe.schedule))


def _constant_or_own(step: ArrayLike, *, rate: Scalar, own: Scalar) -> jax.Array:
    return jnp.where(jnp.asarray(rate) > 0, rate, own)


def _families(recipe: Recipe, given: Sequence[Bound] | None) -> dict[str, Bound]:
    """Optimizers by name; of a function that is there twice the first one."""
    usual = [recipe.optimizer, bind(optimizers.adamw), bind(optimizers.momentum)]
    families: dict[str, Bound] = {}
    for family in usual if given is None else given:
        if not isinstance(family, Bound):
            raise TypeError(f"tune: families must be bound optimizers such as lo.bind(lo.optimizers.adamw), got {family!r}")
        families.setdefault(getattr(family.fn, "__name__", repr(family.fn)), family)
    if not families:
        raise ValueError("tune: families must have at least one optimizer, got none")
    return families


def _findings(stages: _Stages, recipe: Recipe, families: dict[str, Bound], run: Run) -> dict[str, LRFinding]:
    """What `find_lr` finds for each optimizer, all of them in one sweep."""
    rates, recipes = np.geomspace(LOW, HIGH, RATES), {label: recipe._replace(optimizer=family) for label, family in families.items()}
    constant = [own._replace(schedule=bind(schedules.constant, value=rate)) for own in recipes.values() for rate in rates]
    swept = stages.run("rates", Trials(tuple(constant), {}), run, alike=[_alike(own, rate) for own in recipes.values() for rate in rates])
    return {label: judged(own, rates, _part(swept, i * RATES, RATES), early=True) for i, (label, own) in enumerate(recipes.items())}


def _part(swept: Swept, first: int, count: int) -> Swept:
    """Some trials of a sweep under one seed, by themselves; the seconds are of all."""
    mine = slice(first, first + count)
    return replace(
        swept,
        trials=Trials(swept.trials.recipes[mine], {}),
        history={name: values[mine] for name, values in swept.history.items()},
        evaluations={name: values[mine] for name, values in swept.evaluations.items()},
        diverged_at=swept.diverged_at[mine],
        stopped_at=swept.stopped_at[mine],
        places=swept.places[mine],
    )


def _stop(steps: int) -> Stop | None:
    """Halving with as many rungs as the steps allow, three at most: before a ninth of them the fast are ahead, and what warms up behind."""
    return halving(rungs=rungs) if (rungs := min(3, 1 + int(math.log(steps, 3)))) > 1 else None


def _cost(count: int, stop: Stop | None, steps: int) -> int:
    return count * steps if stop is None else stop.lane_steps(count, steps)


def _shares(budget: float, spent: float, stop: Stop | None, steps: int, seeds: int) -> tuple[int, int, int]:
    """How many finalists, trials of the sweep and seeds for each of them a budget allows, of which some is spent."""
    finalists = min(max(int(SHARE * budget / (seeds * steps)) - 1, 1), FINALISTS)
    while finalists > 1 and budget - spent - (finalists + 1) * seeds * steps < _cost(FEWEST, stop, steps):
        finalists -= 1
    last, fewest = (finalists + 1) * seeds * steps, _cost(FEWEST, stop, steps)
    left = budget - spent - last
    if left < fewest:
        parts = f"{spent:,} for the rates, {fewest:,} for a sweep of {FEWEST} trials, {last:,} for the last stage"
        raise ValueError(f"tune: lane_steps must be at least {spent + fewest + last:,}, got {budget:,.0f}: {parts}")
    count = _count(left, stop, steps)
    each = min(max(count // MANY, 1), seeds)
    return finalists, count if each == 1 else _count(left / each, stop, steps), each


def _count(budget: float, stop: Stop | None, steps: int) -> int:
    count = FEWEST
    while _cost(2 * count, stop, steps) <= budget:
        count *= 2
    return next(n for n in range(2 * count, 0, -1) if _cost(n, stop, steps) <= budget)


def _trials(found: dict[str, LRFinding], space: Mapping[str, Distribution], count: int, seed: int) -> Trials:
    """`count` trials in turn over the optimizers, each around its own rate."""
    path_of_rate = next(iter(found.values())).path
    own: dict[str, dict[str, tuple[str, Distribution]]] = {}  # optimizer -> path in its recipe -> column and distribution
    for label, finding in found.items():
        known = numbers(finding.recipe)
        ranges = {"optimizer.weight_decay": DECAY, **space}
        ranges[path_of_rate] = log_uniform(finding.suggested / BELOW, finding.suggested * ABOVE)
        own[label] = {path: (path.replace("optimizer.", f"{label}.", 1), what) for path, what in ranges.items() if path in known}
    rates = [paths[path_of_rate][1] for paths in own.values()]
    columns = {path_of_rate: log_uniform(min(what.low for what in rates), max(what.high for what in rates))}
    if len(found) > 1:
        names = tuple(found)
        columns["optimizer"] = Distribution("choice", 0.0, len(names) - 1.0, tuple(map(float, range(len(names)))), names)
    columns |= {column: what for paths in own.values() for path, (column, what) in paths.items() if path != path_of_rate}
    recipes: list[Recipe] = []
    drawn: list[dict[str, Any]] = []
    for place, (label, paths) in enumerate(own.items()):
        mine = len(range(place, count, len(own)))
        points = samplers.sobol(mine, len(paths), seed + place) if mine else np.zeros((0, len(paths)))
        values = [what.quantile(points[:, i]) for i, (_, what) in enumerate(paths.values())]
        for row in zip(*values, strict=True):
            recipes.append(with_numbers(found[label].recipe, dict(zip(paths, map(float, row), strict=True))))
            given = {column: float(np.float32(value)) for (column, _), value in zip(paths.values(), row, strict=True)}
            drawn.append({column: math.nan for column in columns} | ({"optimizer": label} if len(found) > 1 else {}) | given)
    return Trials(tuple(recipes), columns, tuple(drawn))


def _kept_budget(checkpoint: str | Path | None, budget: float) -> float:
    """The budget that the first call took from the clock, so that one that goes on has the same trials."""
    if checkpoint is None:
        return budget
    file = Path(checkpoint) / "budget.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(budget))
        new.replace(file)
    return float(json.loads(file.read_text()))
