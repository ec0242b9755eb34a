"""Early stopping: at rungs on the way trials are compared, and only the best of them go on. Pure rules; the sweep asks them."""

import math
from typing import NamedTuple

import numpy as np


class Stop(NamedTuple):
    """A rule of early stopping. name: "halving", "hyperband" or "asha"; see the functions of these names.

    reduction: of so many trials one goes on. rungs: how many, the end of the run being the last of them.
    """

    name: str
    reduction: float
    rungs: int

    def steps(self, total: int) -> tuple[int, ...]:
        """After how many of `total` steps trials are compared: total / reduction^k for k = rungs - 1 ... 1."""
        steps = tuple(round(total / self.reduction**k) for k in range(self.rungs - 1, 0, -1))
        if any(a >= b for a, b in zip((0, *steps), (*steps, total), strict=True)):
            raise ValueError(f"{self.name}: {total} steps are too few for {self.rungs} rungs of reduction {self.reduction:g}: {steps}")
        return steps

    def brackets(self, trials: int) -> np.ndarray:
        """[trials]: the rung at which each trial is compared first; `rungs - 1` is the end, so never before it."""
        if self.name != "hyperband":
            return np.zeros(trials, int)
        later = np.arange(self.rungs)[::-1]  # rungs still ahead of a bracket's first one: Hyperband's s
        shares = self.rungs / (later + 1) * self.reduction**later
        shares, dealt, brackets = shares / shares.sum(), np.zeros(self.rungs), np.zeros(trials, int)
        for trial in range(trials):  # to the bracket that is furthest behind its share, so that each has an even part of a sequence
            brackets[trial] = np.argmax(shares * (trial + 1) - dealt)
            dealt[brackets[trial]] += 1
        return brackets

    def stopped(self, rung: int, scores: np.ndarray, out: np.ndarray) -> np.ndarray:
        """[trials]: which are out after rung 0, 1 ... : those that were, and those that others of their bracket have beaten.

        scores: [trials], less is better; NaN and infinity are worst; of equals the earlier trial is better.
        out: [trials], which were out before; with "asha" also those that have not come to this rung yet: it compares who has.
        """
        badness, after = np.where(np.isfinite(scores), scores, np.inf), out.copy()
        if self.name == "asha":
            compared = [(~out, self.reduction)]
        else:
            brackets = self.brackets(len(scores))
            compared = [(brackets == first, self.reduction ** (rung - first + 1)) for first in range(rung + 1)]
        for those, fraction in compared:
            mine = np.flatnonzero(those)
            order = mine[np.lexsort((mine, badness[mine], out[mine]))]
            after[order[max(1, int(len(mine) / fraction)) :]] = True
        return after

    def living(self, trials: int) -> list[int]:
        """How many of `trials` there are on the way to each rung, were they all to run at once."""
        out, living = np.zeros(trials, bool), [trials]
        for rung in range(self.rungs - 1):
            out = self.stopped(rung, np.zeros(trials), out)
            living.append(int((~out).sum()))
        return living

    def lane_steps(self, trials: int, total: int) -> int:
        """The steps that `trials` take together of `total` each."""
        return int(np.dot(self.living(trials), np.diff((0, *self.steps(total), total))))

    def told(self, trials: int, total: int) -> str:
        """The rule of a sweep in a line."""
        ends = (*self.steps(total), total)
        stages = ", ".join(f"{living} to {end}" for living, end in zip(self.living(trials), ends, strict=True))
        return f"{self.name}: {stages} steps, {self.lane_steps(trials, total) / (trials * total):.0%} of all"


def halving(reduction: float = 3, rungs: int = 4) -> Stop:
    """Successive halving: at each rung the best 1/reduction of the trials go on from where they are, the others end.

    Rung k of `rungs` lies at steps / reduction^(rungs - k); the last is the end of the run. All trials are compared, whatever their
    structure and however many run at once. Jamieson & Talwalkar (2016, arXiv:1502.07943). With the defaults 64 trials are 21 from 1/27
    of the steps on, 7 from 1/9 and 2 from 1/3: a ninth of the work. At least one trial goes on.

    >>> import lossopt_jax as lo
    >>> lo.halving(reduction=3, rungs=4).told(64, 500)
    'halving: 64 to 19, 21 to 56, 7 to 167, 2 to 500 steps, 11% of all'
    """
    return _checked("halving", reduction, rungs)


def hyperband(reduction: float = 3, rungs: int = 4) -> Stop:
    """Hyperband: brackets of successive halving, from one that halves at every rung to one that never does, each of about equal work.

    A hedge against losses that cross: what learns slowly at first is stopped in one bracket and not in another. The trials are dealt to
    the brackets in Hyperband's shares, rungs / (s + 1) * reduction^s for s = rungs - 1 ... 0. Li et al. (2018, arXiv:1603.06560).

    >>> import lossopt_jax as lo
    >>> lo.hyperband(reduction=3, rungs=3).living(20)
    [20, 12, 6]
    """
    return _checked("hyperband", reduction, rungs)


def asha(reduction: float = 3, rungs: int = 4) -> Stop:
    """ASHA's rule: a trial goes on past a rung while it is among the best 1/reduction of all that have come to it so far.

    As `halving` where all lanes run at once; where they run in waves, each wave runs to its end and is compared with those before it, so
    no states wait on the device. Li et al. (2020, arXiv:1810.05934); here in its stopping form: what was stopped is never taken up again.

    >>> import lossopt_jax as lo
    >>> lo.asha(reduction=4, rungs=3).steps(1600)
    (100, 400)
    """
    return _checked("asha", reduction, rungs)


def _checked(name: str, reduction: float, rungs: int) -> Stop:
    if (
        isinstance(reduction, bool)
        or not isinstance(reduction, int | float | np.number)
        or not (math.isfinite(reduction) and reduction > 1)
    ):
        raise ValueError(f"{name}: reduction must be above 1, got {reduction!r}")
    if isinstance(rungs, bool) or not isinstance(rungs, int) or rungs < 2:
        raise ValueError(f"{name}: rungs must be an integer of at least 2 (the last is the end of the run), got {rungs!r}")
    return Stop(name, float(reduction), rungs)
