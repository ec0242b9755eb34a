"""The classical range test: one run under a growing rate, and what fastai's rules read from it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import schedules
from .loop import Callbacks, Run
from .recipe import Recipe, bind
from .train import fit

FORGETTING = 0.98  # of the running mean
BLOW_UP = 4.0
FEW_STEPS = 50  # 1 / (1 - FORGETTING)


@dataclass(frozen=True)
class LRRangeTest:
    """One run under a growing rate, up to where its smoothed loss left 4 times the best behind.

    rates, losses, smoothed: [steps taken]. valley, steep: what fastai's rules of these names suggest; NaN where too few steps are left.
    low, high, steps: what was asked for. verdicts: what is wrong, kind -> sentence; {} where nothing is. See `lr_range_test`.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    valley: float
    steep: float
    low: float
    high: float
    steps: int
    verdicts: dict[str, str] = field(default_factory=dict)


def lr_range_test(
    model: Any, recipe: Recipe, *, train: Any, run: Run, low: float = 1e-7, high: float = 10.0, on_chunk: Callbacks = ()
) -> LRRangeTest:
    """The range test: one run whose rate grows geometrically from `low` to `high` in `run.steps` steps (Smith 2017, arXiv:1506.01186).

    The loss is smoothed by a running mean of factor 0.98, freed of its bias; the curve ends where that is above 4 times its least, or
    not finite. The suggestions leave out the first tenth of the steps and the last five, as fastai does (100 steps there).
    No suggestion, and why, where the loss is not finite or blows up within the first tenth, or falls by no more than 1 % and its noise.
    Cheap, and known to miss: each point has been through all lower rates. `find_lr` is the one that is validated.

    >>> import lossopt_jax as lo, numpy as np
    >>> from flax import linen as nn
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.constant, value=0.1))
    >>> test = lr_range_test(lo.from_linen(nn.Dense(1)), recipe, train=(x, 3 * x), run=lo.Run(steps=100, batch_size=16))
    >>> bool(1e-7 < test.valley < 10)
    True
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"lr_range_test: low must be above 0 and high above low, both finite, got low {low} and high {high}")
    if run.steps < 2:
        raise ValueError(f"lr_range_test: run.steps must be at least 2, got {run.steps}")
    growing = bind(schedules.exponential, init=low, factor=high / low, every=run.steps - 1)
    losses = fit(model, recipe._replace(schedule=growing), train=train, run=run, on_chunk=on_chunk).history["loss"].astype(np.float64)
    rates = np.geomspace(low, high, run.steps)[: len(losses)]
    smoothed = running_mean(losses)
    least = np.minimum.accumulate(np.where(np.isfinite(smoothed), smoothed, np.inf))
    over = ~np.isfinite(smoothed) | (smoothed > BLOW_UP * least)
    end = int(np.argmax(over)) if over.any() else len(losses)
    kept = slice(len(losses) // 10, max(end - 5, 0))
    suggested = valley(rates[kept], smoothed[kept]), steep(rates[kept], smoothed[kept])
    verdicts = _verdicts(rates, losses, end, run.steps)
    if verdicts.keys() & {"not_finite_at_start", "diverges_at_once", "nothing_learnt"}:
        suggested = math.nan, math.nan
    return LRRangeTest(rates[:end], losses[:end], smoothed[:end], *suggested, low, high, run.steps, verdicts)


def _verdicts(rates: np.ndarray, losses: np.ndarray, end: int, steps: int) -> dict[str, str]:
    """What keeps the suggestions from being trusted. end: how many steps there were before the loss blew up."""
    if not np.isfinite(losses[0]):
        return {"not_finite_at_start": "the loss was not finite before any update: look at the data, the labels and the outputs' shape"}
    tenth = max(1, steps // 10)
    if end < steps and end <= tenth + 5:
        blown = f"the loss blew up after {end} of {steps} steps, at a rate of {rates[max(end - 1, 0)]:.2g}"
        return {"diverges_at_once": f"{blown}: lower low, or look at the data if that is low already"}
    parts = losses[: end - end % tenth].reshape(-1, tenth)  # ten of them in a run to the end
    means = parts.mean(1)
    noise = 3 * losses[:tenth].std() / math.sqrt(tenth)  # of the mean of a part, at the lowest rates
    gained = means[0] - means.min()
    if gained <= max(0.01 * abs(means[0]), noise):
        return {"nothing_learnt": "the loss does not fall at any rate: raise high, take more steps, or look at the model and the data"}
    found = {}
    if len(means) > 1 and means[0] - means[1] > max(0.1 * gained, noise):
        found["range_too_high"] = f"the loss falls from the lowest rate on, {rates[0]:.2g}: lower low"
    if end == steps and means.argmin() == len(means) - 1:
        found["range_too_low"] = f"the loss still falls at the highest rate, {rates[-1]:.2g}: raise high"
    if steps < FEW_STEPS:
        found["budget_too_short"] = f"{steps} steps are few: the running mean alone spans {FEW_STEPS}, and fastai takes 100"
    return found


def running_mean(losses: np.ndarray, forgetting: float = FORGETTING) -> np.ndarray:
    """Exponential moving average divided by the weight it has so far: [steps] -> [steps]."""
    means, value = np.empty(len(losses)), 0.0
    for i, loss in enumerate(losses):
        value = forgetting * value + (1 - forgetting) * loss
        means[i] = value / (1 - forgetting ** (i + 1))
    return means


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate half way along the longest falling subsequence of the losses, which is taken to be as long as it has members (fastai)."""
    if not len(losses):
        return math.nan
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] = 1 + lengths[:i][losses[:i] > losses[i]].max(initial=0)
    end = int(np.argmax(lengths))
    start = end - int(lengths[end]) if end else 0
    third = (end - start) / 3
    return float(rates[max(0, start + int(third) + int(third / 2))])


def steep(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the loss falls fastest in the logarithm of the rate (fastai)."""
    return float(rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))]) if len(losses) > 1 else math.nan
