"""From a recipe to a tuned one: the rate of each optimizer, a halving sweep around them, and the winner against what was there before."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import optimizers
from .lr_finder import LRFinding, find_lr
from .recipe import Bound, Recipe, bind, numbers, with_numbers
from .step import check_recipe
from .sweep import Distribution, LanePlan, Stop, Swept, Trials, halving, log_uniform, samplers, sweep
from .train import Callbacks, Run

LOW, HIGH, RATES = 1e-5, 10.0, 16  # what is looked at for each optimizer, in a tenth of the steps
BELOW, ABOVE = 20.0, 4.0  # the sweep reaches so many times below and above what was found: in more steps the best rate is lower
DECAY = log_uniform(1e-5, 0.1)
RUNS = 20.0  # the budget unless given, in full runs: a tenth of 200 trials
FEWEST = 9  # trials of a sweep that is worth one


class Stage(NamedTuple):
    """What is about to run. lane_steps: how many are to be expected of all lanes together."""

    name: str
    steps: int
    lanes: int
    lane_steps: int


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    recipe: the better of the tuned one and the one that was given, over the seeds of `final`.
    findings: optimizer -> its rate, as `find_lr` judged it. swept: the halving sweep around these rates.
    final: the tuned recipe (trial 0) and the given one (trial 1) at the full budget under several seeds; None where nothing learnt.
    lane_steps: of each stage, "rates", "sweep" and "final".
    """

    recipe: Recipe
    findings: dict[str, LRFinding]
    swept: Swept | None
    final: Swept | None
    lane_steps: dict[str, int]

    @property
    def improved(self) -> bool:
        """Whether the tuned recipe is the better one."""
        return self.final is not None and self.final.best() is self.final.trials.recipes[0]

    def table(self) -> list[dict[str, Any]]:
        """A row a recipe, the better one first: which ("tuned" or "as given") and its metrics, mean and standard error over seeds."""
        rows = [] if self.final is None else self.final.table()
        return [{"which": ("tuned", "as given")[row["trial"]], **{k: v for k, v in row.items() if k != "trial"}} for row in rows]


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
    one; the best of them and `recipe` as it was given at the full budget, under `seeds` seeds that no earlier stage has used.

    families: bound optimizers to choose from; by default the recipe's own, adamw, and momentum. space: further numbers to sweep, by path
    as in `sample`; those of an optimizer are for the families that have them, and one of the rate is put aside. lane_steps: the steps of
    all stages together, 20 x run.steps by default; or minutes, turned into steps at the speed of the first stage (compiling comes on top).
    on_stage: called with a `Stage` before it runs; gives the callbacks for it. checkpoint: a folder from which the
    same call goes on. Other arguments as in `sweep`.

    Raises ValueError when the budget is too small for nine trials. Halving: Jamieson & Talwalkar (2016, arXiv:1502.07943).
    """
    check_recipe(recipe)
    if lane_steps is not None and minutes is not None:
        raise ValueError(f"tune: give lane_steps or minutes, not both, got {lane_steps} and {minutes}")
    if seeds < 1:
        raise ValueError(f"tune: seeds must be at least 1, got {seeds}")
    budget = RUNS * run.steps if lane_steps is None else lane_steps
    if not (math.isfinite(budget) and budget > 0 and (minutes is None or (math.isfinite(minutes) and minutes > 0))):
        raise ValueError(f"tune: lane_steps and minutes must be above 0 and finite, got {lane_steps if minutes is None else minutes}")
    data: dict[str, Any] = {"train": train, "evaluate": evaluate, "plan": plan}
    stop, short, chosen = _stop(run.steps), replace(run, steps=max(1, run.steps // 10)), _families(recipe, families)
    if minutes is None:  # before anything runs
        _count(budget - len(chosen) * RATES * short.steps - 2 * seeds * run.steps, stop, run.steps)
    found = _findings(model, recipe, chosen, data | {"run": short}, on_stage)
    spent = {"rates": sum(finding.swept.lane_steps for finding in found.values())}
    learning = {label: finding for label, finding in found.items() if math.isfinite(finding.suggested)}
    if not learning:
        return Tuned(recipe, found, None, None, spent)
    if minutes is not None:
        seconds = sum(finding.swept.seconds for finding in found.values())
        budget = _kept_budget(checkpoint, spent["rates"] / max(seconds, 1e-9) * minutes * 60)
    trials = _trials(learning, space or {}, _count(budget - spent["rates"] - 2 * seeds * run.steps, stop, run.steps), run.seed)

    def ran(stage: Stage, which: Any, run: Run, **how: Any) -> Swept:
        kept: dict[str, Any] = {} if checkpoint is None else {"checkpoint": Path(checkpoint) / stage.name, "save_every": save_every}
        swept = sweep(model, which, run=run, **data, **how, **kept, on_chunk=on_stage(stage))
        spent[stage.name] = swept.lane_steps
        return swept

    swept = ran(Stage("sweep", run.steps, len(trials), _cost(len(trials), stop, run.steps)), trials, run, stop=stop)
    if swept.failure():
        return Tuned(recipe, found, swept, None, spent)
    new = replace(run, seed=run.seed + 1)
    final = ran(Stage("final", run.steps, 2 * seeds, 2 * seeds * run.steps), [swept.best(), recipe], new, seeds=seeds)
    return Tuned(recipe if final.failure() else final.best(), found, swept, final, spent)


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


def _findings(
    model: Any, recipe: Recipe, families: dict[str, Bound], how: dict[str, Any], on_stage: Callable[[Stage], Callbacks]
) -> dict[str, LRFinding]:
    how |= {"low": LOW, "high": HIGH, "count": RATES, "seeds": 1}
    steps, found = how["run"].steps, {}
    for label, family in families.items():
        stage = Stage(f"rates of {label}", steps, RATES, RATES * steps)
        found[label] = find_lr(model, recipe._replace(optimizer=family), **how, on_chunk=on_stage(stage))
    return found


def _stop(steps: int) -> Stop | None:
    """Halving with as many rungs as the steps allow, four at most."""
    return halving(rungs=rungs) if (rungs := min(4, 1 + int(math.log(steps, 3)))) > 1 else None


def _cost(count: int, stop: Stop | None, steps: int) -> int:
    return count * steps if stop is None else stop.lane_steps(count, steps)


def _count(budget: float, stop: Stop | None, steps: int) -> int:
    if (least := _cost(FEWEST, stop, steps)) > budget:
        raise ValueError(f"tune: the budget leaves {max(0, budget):.0f} lane-steps for the sweep, of which {FEWEST} trials need {least}")
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
