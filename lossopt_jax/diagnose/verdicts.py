"""A diagnosis: the verdicts of all lanes of a result."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..lr_finder import LRFinding
from ..recipe import Recipe
from ..step import check_recipe
from ..sweep import Swept
from ..train import Fitted
from .curves import Given, Lane, as_lanes, given_of, loss_of, path_of, plain_of, total_of
from .rules import KINDS, Verdict, judge, ordered
from .targets import constant_loss, mismatch


@dataclass(frozen=True)
class Diagnosis:
    """verdicts: of every lane, the one that matters most first, at least one. losses: [lanes], by which lanes are compared: the last
    held-out loss, or the mean training loss of the last tenth; NaN for a lane that is not finite."""

    verdicts: list[list[Verdict]]
    losses: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many lanes have each kind as their first verdict, gravest first."""
        found = Counter(lane[0].kind for lane in self.verdicts)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def best(self) -> int | None:
        """The lane of the least loss, None where no loss is finite."""
        return int(np.nanargmin(self.losses)) if np.isfinite(self.losses).any() else None


def diagnose(
    what: Swept | Fitted | LRFinding | Mapping[str, Any] | str | Path, *, recipe: Recipe | None = None, targets: Any = None
) -> Diagnosis:
    """Judge each lane of a sweep, a finding, a run, a folder, or a history (metric -> [steps] or [lanes, steps], as `train_step` names it).

    The loss alone is enough for some verdicts; the others need learning_rate, grad_norm and update_norm, and held_out_loss (or val_loss),
    NaN at steps without an evaluation. A history that ends in NaN is of a run that diverged. ValueError for a column of another name.
    recipe: what ran, so that its loss and the steps of its schedule are known and advice names its numbers; a sweep and a folder know
    theirs. targets: of the training data, whole numbers too where they are floats, to see labels that are fitted as amounts, and a run
    that is no better than a constant output; where the loss is known.
    No step records the norm of the parameters, so there is no update-to-parameter ratio; in its place is what the updates promised: to
    the first order a step lowers the loss by at most update_norm * grad_norm.

    >>> import numpy as np
    >>> falling = {"loss": np.linspace(1.0, 0.9, 200), "grad_norm": np.ones(200), "update_norm": np.full(200, 5e-4)}
    >>> diagnose(falling).verdicts[0][0].kind
    'too low'
    """
    given = given_of(what)
    if recipe is not None:
        check_recipe(recipe)
        given = given._replace(paths=(path_of(recipe),), losses=(loss_of(recipe),), totals=(total_of(recipe),), plain=(plain_of(recipe),))
    elif targets is not None and not any(given.losses):
        raise ValueError("diagnose: targets are for what the loss makes of them, which is not known here: give the recipe too")
    return judged(given, targets)


def judged(given: Given, targets: Any = None) -> Diagnosis:
    """The diagnosis of plain arrays."""
    lanes, verdicts = as_lanes(given), []
    for i, lane in enumerate(lanes):
        loss = given.losses[i % len(given.losses)]
        constant = constant_loss(loss, targets) if given.plain[i % len(given.plain)] else math.nan
        found = judge(lane, given.paths[i % len(given.paths)] or "the learning rate", constant)
        wrong = mismatch(loss, targets) if lane.diverged_at < 0 else []
        verdicts.append(ordered([*wrong, *found], lane))
    return Diagnosis(verdicts, np.array([_last_loss(lane) for lane in lanes]))


def _last_loss(lane: Lane) -> float:
    if lane.diverged_at >= 0 or lane.blown >= 0 or not len(lane.loss):
        return math.nan
    return float(lane.held_out[-1]) if len(lane.held_out) else float(lane.loss[-max(1, len(lane.loss) // 10) :].mean())
