"""The classical range test: one run under a growing rate, and what fastai's rules read from it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import schedules
from .loop import Callbacks, Run
from .recipe import Recipe, bind
from .train import fit

FORGETTING = 0.98  # of the running mean
BLOW_UP = 4.0


@dataclass(frozen=True)
class LRRangeTest:
    """One run under a growing rate, up to where its smoothed loss left 4 times the best behind.

    rates, losses, smoothed: [steps taken]. valley, steep: what fastai's rules of these names suggest; NaN where too few steps are left.
    low, high, steps: what was asked for.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    valley: float
    steep: float
    low: float
    high: float
    steps: int


def lr_range_test(
    model: Any, recipe: Recipe, *, train: Any, run: Run, low: float = 1e-7, high: float = 10.0, on_chunk: Callbacks = ()
) -> LRRangeTest:
    """The range test: one run whose rate grows geometrically from `low` to `high` in `run.steps` steps (Smith 2017, arXiv:1506.01186).

    The loss is smoothed by a running mean of factor 0.98, freed of its bias; the curve ends where that is above 4 times its least, or
    not finite. The suggestions leave out the first tenth of the steps and the last five, as fastai does (100 steps there).
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
    return LRRangeTest(rates[:end], losses[:end], smoothed[:end], *suggested, low, high, run.steps)


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
