"""Trust, checked: lanes of a finished sweep run again, each alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..loop import Run
from ..models import Model
from .lanes import LanePlan
from .result import Swept
from .run import sweep


def audit(
    model: Model | Callable[..., Model],
    swept: Swept,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    count: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Run `count` random lanes again, each alone under the sweep's plan; a row each: lane, trial, seed, steps compared, difference.

    difference: the largest |a - b| / |b| of the training loss and the held-out metrics over the steps that the lane ran in the sweep,
    infinite where one of them diverged and the other did not. 0 is what to expect: a lane's bits do not depend on its neighbours. Where
    the sweep had several structures and chose its plan itself, groups of another width than the first may differ in the last bits.
    model, train, evaluate, run: as the sweep had them.
    """
    if count < 1:
        raise ValueError(f"audit: count must be at least 1, got {count}")
    if run.steps != swept.steps:
        raise ValueError(f"audit: run must be the sweep's, of {swept.steps} steps, got one of {run.steps}")
    copied = {copy.to for copy in swept.copies}  # whose histories are of two lives
    own = [lane for lane in range(swept.lanes) if lane // swept.seeds not in copied]
    if not own:
        raise ValueError("audit: every trial of this population was copied over at some step, so none ran alone")
    rows = []
    for lane in sorted(np.random.default_rng(seed).choice(own, min(count, len(own)), replace=False).tolist()):
        trial, own_seed = divmod(lane, swept.seeds)
        plan = LanePlan(swept.plan.devices, swept.plan.width)
        own_model, its = swept.trials.setup(trial, model, replace(run, seed=run.seed + own_seed))
        alone = sweep(own_model, [swept.trials.recipes[trial]], train=train, evaluate=evaluate, run=its, plan=plan)
        ended = swept.steps if swept.stopped_at[lane] < 0 else int(swept.stopped_at[lane])
        steps = -(-ended // swept.history_every)
        apart = [_apart(swept.history["loss"][lane, :steps], alone.history["loss"][0, :steps])]
        looked = np.intersect1d(swept.evaluation_steps[swept.evaluation_steps <= ended], alone.evaluation_steps)
        there, here = (np.isin(one.evaluation_steps, looked) for one in (swept, alone))
        apart += [_apart(values[lane, there], alone.evaluations[name][0, here]) for name, values in swept.evaluations.items()]
        rows.append({"lane": lane, "trial": trial, "seed": own_seed, "steps": steps, "difference": max(apart)})
    return rows


def _apart(there: np.ndarray, here: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(there == here, 0, np.abs(there - here) / np.abs(here))
    apart = np.where(np.isfinite(there) | np.isfinite(here), np.where(np.isnan(apart), np.inf, apart), 0)
    return float(apart.max(initial=0))
