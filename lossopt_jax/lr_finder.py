"""Which learning rate: many constant rates as lanes, each an honest run of its own."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import schedules
from .loop import Progress, Run
from .recipe import Bound, Recipe, bind
from .step import check_recipe
from .sweep import LanePlan, Swept, sweep

# The rule. Losses are capped at half above the best, so that a cliff weighs no more than a bad neighbour, and smoothed over rates by a
# Gaussian a quarter of a decade wide; both were chosen on seeds and tasks of their own (tests/benchmarks/lr_finder.py).
CAP = 0.5
WIDTH = 0.25
TOLERANCE = 0.05  # what counts as just as good
FEW_STEPS = 10  # with fewer the last two of five parts are a step each, whose difference is the batches'
# Of the start, what the held-out loss falls by, and how many times that the training loss: initial outputs settle.
HARDLY = ((0.0, -math.inf), (0.01, 4.0), (0.03, 10.0))
ALIKE = 0.05  # by which losses before a failure differ at most, of the largest, where the rate has not made them
STILL_FALLING = 0.05  # of all that was gained, gained in the last fifth: an exponential decay that has 6 % left

# Verdicts with which no rate is better than another.
USELESS = {"no_steps", "not_finite_at_start", "not_finite_held_out", "not_finite_data", "all_diverge", "nothing_learnt", "nothing_held_out"}


@dataclass(frozen=True)
class LRFinding:
    """What `find_lr` found; NaN for a number that there is none of.

    suggested: the rate to take. range: the rates around it whose smoothed loss is within 5 % of the best; where that is below zero,
        of what it lies below the start.
    edge: the least rate tried from which on, at all higher ones too, most seeds end not finite or with under a tenth of what the best
        learnt. seed_rates: [seeds], what each seed by itself suggests: how sure.
    rates: [count]. losses: [count, seeds], NaN where a run was not finite. smoothed: [count], what the rule looks at.
    metric: "held_out_loss", at the end, or "train_loss", the mean of the last eighth of the steps.
    start: the training loss before anything was learnt. verdicts: what is wrong with the finding, kind -> sentence; {} where nothing is.
    path, recipe: the number of the schedule that the rate is for, and the recipe with it.
    """

    suggested: float
    range: tuple[float, float]
    edge: float
    seed_rates: np.ndarray
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    metric: str
    start: float
    verdicts: dict[str, str]
    path: str
    recipe: Recipe
    swept: Swept

    @property
    def config_line(self) -> str:
        """The suggestion as a line of a config, "peak = 3.2e-3  # in [schedule]"; "" without one. See also `override`."""
        return config_line(self.path, self.recipe) if math.isfinite(self.suggested) else ""

    def table(self) -> list[dict[str, Any]]:
        """A row a rate, rising: learning_rate, loss (the mean over seeds), loss_std, diverged (how many seeds), region."""
        with np.errstate(invalid="ignore"):
            spread = self.losses.std(1, ddof=1) if self.losses.shape[1] > 1 else np.full(len(self.rates), np.nan)
        return [
            {
                "learning_rate": float(rate),
                "loss": float(losses.mean()),
                "loss_std": float(std),
                "diverged": int((~np.isfinite(losses)).sum()),
                "region": self._region(rate),
            }
            for rate, losses, std in zip(self.rates, self.losses, spread, strict=True)
        ]

    def plot(self, path: str | Path) -> None:
        """The picture as a PNG file: the loss against the rate, too low, just right and too high shaded, the suggestion marked."""
        from .report import lr_plot

        lr_plot.write_finding(path, self)

    def _region(self, rate: float) -> str:
        if not math.isfinite(self.suggested):
            return ""
        return "too low" if rate < self.range[0] else "too high" if rate > self.range[1] else "just right"


def find_lr(
    model: Any,
    recipe: Recipe,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    low: float = 1e-7,
    high: float = 10.0,
    count: int = 64,
    seeds: int = 3,
    plan: LanePlan | None = None,
    on_chunk: Callable[[Progress], None] | Iterable[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
) -> LRFinding:
    """Find the learning rate: `count` constant rates from `low` to `high`, each trained for `run.steps` from the same parameters.

    All rates and seeds are lanes of one program (see `sweep`). The recipe keeps its loss, its optimizer with every number, and its
    clip_norm; its schedule is replaced by the constant while looking. The suggestion is put in the schedule's own number in `recipe` of
    the result: its peak, value or init, the highest of its `values`; a schedule that has none of these becomes the constant.
    For an optimizer that finds its own step (prodigy) the rate is the factor that it is: expect one near 1.

    evaluate: held-out data decides when it is given, else the training loss. run: as in `fit`; steps is the budget of every rate, and
    the suggestion is for that budget: at a shorter one the best rate is another, as a rule a higher one.
    A rate under which any seed becomes not finite is too high. checkpoint, save_every: as in `fit`. Nothing of the caller's is changed.

    >>> import lossopt_jax as lo, numpy as np
    >>> from flax import linen as nn
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.sgd), lo.bind(lo.schedules.cosine, init=0.1, total=40))
    >>> found = find_lr(lo.from_linen(nn.Dense(1)), recipe, train=(x, 3 * x), run=lo.Run(steps=40, batch_size=16), count=16, seeds=2)
    >>> bool(0.1 < found.suggested < 3), found.path
    (True, 'schedule.init')
    """
    check_recipe(recipe)
    check_range(low, high, count, seeds)
    rates = np.geomspace(low, high, count)
    trials = [recipe._replace(schedule=bind(schedules.constant, value=rate)) for rate in rates]
    kept: dict[str, Any] = {"checkpoint": checkpoint, "save_every": save_every}
    swept = sweep(model, trials, train=train, evaluate=evaluate, run=run, seeds=seeds, plan=plan, on_chunk=on_chunk, **kept)
    return judged(recipe, rates, swept)


def check_range(low: float, high: float, count: int, seeds: int) -> None:
    """Raise ValueError for rates that cannot be tried."""
    for name, value, kind in (("low", low, "number"), ("high", high, "number"), ("count", count, "integer"), ("seeds", seeds, "integer")):
        if isinstance(value, bool) or not isinstance(value, int | np.integer if kind == "integer" else int | float | np.number):
            raise TypeError(f"find_lr: {name} must be {'an' if kind == 'integer' else 'a'} {kind}, got {value!r}")
    if not (math.isfinite(low) and low > 0):
        raise ValueError(f"find_lr: low must be above 0 and finite, got {low}")
    if not (math.isfinite(high) and high > low):
        raise ValueError(f"find_lr: high must be above low and finite, got low {low} and high {high}")
    if count < 3:
        raise ValueError(f"find_lr: count must be at least 3, since a rate is judged with its neighbours, got {count}")
    if seeds < 1:
        raise ValueError(f"find_lr: seeds must be at least 1, got {seeds}")


def judged(recipe: Recipe, rates: np.ndarray, swept: Swept, *, early: bool = False) -> LRFinding:
    """The finding of a finished sweep over constant rates, rising, of a recipe.

    early: a longer run is to come, so a held-out loss that has not learnt yet is no reason to suggest nothing.
    """
    training = swept.history["loss"].astype(np.float64).reshape(len(rates), swept.seeds, -1)
    held_out = "loss" in swept.evaluations
    losses = swept.evaluations["loss"][:, -1].reshape(len(rates), -1) if held_out else _last(training, 8)
    losses = np.where(np.isfinite(losses) & (swept.diverged_at.reshape(losses.shape) < 0), losses, np.nan).astype(np.float64)
    start = _start(training)
    excess, unit, best = capped_excess(losses, start)
    smooth = smoothing(rates) @ excess
    total = smooth.mean(1)
    # Where rates are equally good the lowest is taken: it is the furthest from the edge.
    at = int(np.argmin(total))
    failed_at = swept.diverged_at.reshape(losses.shape)
    verdicts = _verdicts(rates, training, losses, failed_at, at, start, int(swept.evaluation_steps[-1]), held_out)
    if early:
        verdicts.pop("nothing_held_out", None)
    useless = verdicts.keys() & USELESS
    suggested = math.nan if useless else float(rates[at])
    first, last = _span(total <= total[at] + TOLERANCE, at)
    path, suggestion = with_rate(recipe, suggested)
    return LRFinding(
        suggested=suggested,
        range=(math.nan, math.nan) if useless else (float(rates[first]), float(rates[last])),
        edge=_edge(rates, losses, start, at),
        seed_rates=np.full(swept.seeds, np.nan) if useless else rates[smooth.argmin(0)],
        rates=rates,
        losses=losses,
        smoothed=best + unit * total,
        metric="held_out_loss" if held_out else "train_loss",
        start=start,
        verdicts=verdicts,
        path=path,
        recipe=suggestion,
        swept=swept,
    )


def capped_excess(losses: np.ndarray, start: float = math.nan) -> tuple[np.ndarray, float, float]:
    """How far each loss [count, seeds] lies above the best its seed reaches, from about 0 to `CAP`; the unit of it; the best mean loss.

    Each seed is measured from its own floor, the best mean of three neighbouring rates, since some parameters start better than others
    at every rate. A rate at which any seed is not finite is at the cap for all of them.
    """
    means = losses.mean(1)
    if not np.isfinite(means).any():
        return np.full(losses.shape, CAP), 1.0, math.nan
    best = float(np.nanmin(means))
    # A loss of 0 or below has no per cent; then what could be gained is the unit.
    gain = abs(start - best) if math.isfinite(start) else abs(best)
    unit = (max(best, 1e-6 * gain) if best >= 0 else gain) or 1.0
    ended = np.isfinite(means)
    filled = np.where(ended[:, None], losses, np.inf)
    triples = np.lib.stride_tricks.sliding_window_view(filled, 3, axis=0).mean(-1)
    floor = np.where(np.isfinite(triples.min(0)), triples.min(0), filled.min(0))
    return np.where(ended[:, None], np.minimum((np.where(ended[:, None], losses, 0) - floor) / unit, CAP), CAP), unit, best


def smoothing(rates: np.ndarray) -> np.ndarray:
    """The matrix [count, count] that takes each rate's weighted mean with its neighbours, Gaussian in the logarithm of the rate."""
    place = np.log10(rates)
    weights = np.exp(-0.5 * ((place[:, None] - place[None, :]) / WIDTH) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _start(training: np.ndarray) -> float:
    """The loss of the first batch of each seed, which no rate has changed yet."""
    first = training[0, :, :1]
    return float(first[np.isfinite(first)].mean()) if np.isfinite(first).any() else math.nan


def _noise(training: np.ndarray) -> float:
    """The standard deviation of the mean over seeds of one batch's loss, from the median change between steps at the lowest rate."""
    changes = np.abs(np.diff(training[0], axis=-1))
    changes = changes[np.isfinite(changes)]
    return 1.4826 * float(np.median(changes)) / math.sqrt(2 * training.shape[1]) if changes.size else 0.0


def _last(training: np.ndarray, share: int, back: int = 0) -> np.ndarray:
    """Mean loss of the last `share`-th of the steps, or of that part `back` parts earlier: [..., steps] -> [...]."""
    steps = training.shape[-1]
    if not steps:
        return np.full(training.shape[:-1], np.nan)
    window = max(1, steps // share)
    return training[..., max(0, steps - window * (back + 1)) : max(1, steps - window * back)].mean(-1)


def _span(good: np.ndarray, at: int) -> tuple[int, int]:
    """The first and last index of the run of True around `at`."""
    bad = np.flatnonzero(~good)
    first = bad[bad < at].max(initial=-1) + 1
    last = bad[bad > at].min(initial=len(good)) - 1
    return int(first), int(last)


def _edge(rates: np.ndarray, losses: np.ndarray, start: float, at: int) -> float:
    lost = ~np.isfinite(losses)
    best = np.nanmin(losses.mean(1)) if np.isfinite(losses.mean(1)).any() else math.nan
    if start > best:
        lost |= losses > start - 0.1 * (start - best)
    lasting = np.flip(np.logical_and.accumulate(np.flip(lost.mean(1) > 0.5)))  # and so at every higher rate
    lasting[: at + 1] &= not np.isfinite(losses[at]).all()
    return float(rates[np.argmax(lasting)]) if lasting.any() else math.nan


def _verdicts(
    rates: np.ndarray, training: np.ndarray, losses: np.ndarray, failed_at: np.ndarray, at: int, start: float, steps: int, held_out: bool
) -> dict[str, str]:
    """What keeps the finding from being trusted, the gravest first and alone where nothing else can be said."""
    if not steps:
        return {"no_steps": "no steps were taken: there is nothing to compare the rates by"}
    if not np.isfinite(training[..., 0]).any():
        return {"not_finite_at_start": "the loss was not finite before any update: look at the data, the labels and the outputs' shape"}
    ended = np.isfinite(losses).all(1)
    if not ended.any():
        if held_out and np.isfinite(training[..., -1]).any():
            return {"not_finite_held_out": "training stayed finite and the held-out loss did not: look at the held-out data"}
        if _whatever_the_rate(training, failed_at, start):
            first = int(failed_at[0].min())
            return {"not_finite_data": f"the loss is not finite from step {first} on, whatever the rate: look for NaN in that batch's data"}
        return {"all_diverge": f"every rate diverges, down to {short(rates[0])}: lower low, or look for what blows up (clip_norm helps)"}
    final = _last(training, 5).mean(1)
    final, before = np.where(ended, final, np.inf), np.where(ended, _last(training, 5, back=1).mean(1), np.inf)
    # The lowest rate has seen the same batches, so the difference to it is not their noise.
    # Where the first batch was an easy one it ends above where it began, by up to two deviations of such a batch.
    noise = _noise(training) if steps >= FEW_STEPS else 0.0
    began = max(start, final[0]) if final[0] <= start + 2 * noise else start
    gained = max(min(final[0], began) - final.min() if ended[0] else 0.0, (start - final.min()) - 0.1 * abs(start))
    if gained <= 0.01 * abs(start):
        what = f"no rate learns anything in {steps} steps"
        if final[0] > start + max(0.1 * abs(start), 2 * noise):
            return {"nothing_learnt": f"{what}, and the lowest, {short(rates[0])}, ends far above where it began: lower low"}
        return {"nothing_learnt": f"{what}: try more steps, raise high, or look at the model, the loss and the data"}
    if held_out:
        held, ends = start - losses[at].mean() - 0.1 * abs(start), began - final.min()
        held = max(held, losses[0].mean() - losses[at].mean()) if ended[0] else held
        if any(held <= fall * abs(start) and ends > times * held for fall, times in HARDLY):
            what = f"nothing is learnt that holds: the held-out loss falls by {max(held, 0):.2g} at most, the training loss by {ends:.2g}"
            return {"nothing_held_out": f"{what}: look at the data and the labels, or at a model that only memorises them"}
    found = {}
    if at == 0:
        found["range_too_high"] = f"the best rate is the lowest tried, {short(rates[0])}: lower low"
    if at == len(rates) - 1:
        found["range_too_low"] = f"the best rate is the highest tried, {short(rates[-1])}: raise high"
    drop = (before[at] - final[at]) / max(began - final[at], np.finfo(float).tiny)
    if steps < FEW_STEPS:
        found["budget_too_short"] = f"{steps} steps are too few to judge a rate by: with more a lower one may do better"
    elif drop > STILL_FALLING:
        share = f"{min(drop, 1.0):.0%} of all that it learnt, it learnt in the last fifth of {steps} steps"
        found["budget_too_short"] = f"the best rate still learns ({share}): with more steps a lower one may do better"
    return found


def _whatever_the_rate(training: np.ndarray, failed_at: np.ndarray, start: float) -> bool:
    """Whether each seed's three lowest rates fail in the same step, after losses that had not grown or are alike: not by the rate, then.

    The loss of step 0 is the same at every rate, so a failure in step 1 tells nothing by itself: another seed has to.
    """
    low, told = failed_at[:3], False
    if (low != low[0]).any():
        return False
    for step, lanes in zip(low[0], np.moveaxis(training[:3], 1, 0), strict=True):
        if not np.isfinite(lanes[:, 0]).any():  # before any update
            told = True
            continue
        before = np.array([lane[np.isfinite(lane)][-1] for lane in lanes])
        if before.max() > start + 0.5 * abs(start) and np.ptp(before) > ALIKE * np.abs(before).max():
            return False
        told |= bool(step > 1)
    return told


def with_rate(recipe: Recipe, rate: float) -> tuple[str, Recipe]:
    """The path of the number that a constant rate stands for, and the recipe with it; the recipe as it is where there is no rate."""
    numbers = recipe.schedule.hparams
    name = next((name for name in schedules.LEADING if name in numbers and not isinstance(numbers[name], tuple)), None)
    if not math.isfinite(rate):
        return f"schedule.{name or 'value'}", recipe
    if name is None:
        return "schedule.value", recipe._replace(schedule=bind(schedules.constant, value=rate))
    value: Any = rate
    if not isinstance(numbers[name], Bound) and np.ndim(numbers[name]):
        values = np.asarray(numbers[name], np.float64)
        value = values * (rate / values.max()) if values.max() > 0 else np.full(values.shape, rate)
    return f"schedule.{name}", recipe._replace(schedule=recipe.schedule.replace(**{name: value}))


def config_line(path: str, recipe: Recipe) -> str:
    """A number of the recipe's schedule as a line of a config, rates in short, and which table it belongs in."""
    table, _, name = path.rpartition(".")
    called = ', whose name is "constant"' if recipe.schedule.fn is schedules.constant else ""  # what some had to be replaced by
    return f"{name} = {_shown(path, recipe)}  # in [{table}]{called}"


def override(path: str, recipe: Recipe, given: Recipe) -> str:
    """That number as --set takes it, "schedule.peak=3.2e-3"; the whole schedule where the recipe as given had another."""
    if recipe.schedule.fn is not given.schedule.fn:
        return f'schedule={{name = "constant", value = {_shown(path, recipe)}}}'
    return f"{path}={_shown(path, recipe)}"


def _shown(path: str, recipe: Recipe) -> str:
    value = np.asarray(recipe.schedule.hparams[path.rpartition(".")[2]], np.float64)
    shown = ", ".join(short(number) for number in value.ravel().tolist())
    return f"[{shown}]" if value.ndim else shown


def short(rate: float) -> str:
    """A rate with two digits, as a config has it: 3.2e-3, 0.45, 100.0."""
    if not 0 < abs(rate) < 0.1:
        return str(float(f"{rate:.2g}"))
    digits, exponent = f"{rate:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
