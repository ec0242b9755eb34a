"""Results of every kind as plain curves, and what is measured on one of them."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..lr_finder import LRFinding
from ..recipe import Recipe, nearest
from ..saved import load, read_config
from ..schedules import LEADING
from ..sweep import Swept
from ..train import Fitted

COLUMNS = ("loss", "learning_rate", "grad_norm", "update_norm", "finite")  # of a history, all of one shape
HELD_OUT = ("held_out_loss", "val_loss")  # names of one more column of that shape, NaN at steps without an evaluation
PLAIN: dict[str, Any] = {
    "label_smoothing": 0.0,
    "pos_weight": 1.0,
    "class_weights": None,
    "ignore_index": -100,
}  # of a loss that is nothing but itself
SCHEDULED = ("loss.", "optimizer.")  # how the columns of scheduled numbers begin, which say nothing of the run
RESOLVED = 2e-5  # of a loss: a hundred times the spacing of float32


class Given(NamedTuple):
    """A result as plain arrays. paths: of every lane the number of its schedule that is the rate; losses: the names of their losses;
    totals: the steps of their schedules; plain: whether their losses are without weights, smoothing or other numbers. One for all
    lanes where they share it; "" or NaN where it is not known."""

    history: Mapping[str, np.ndarray]
    evaluations: Mapping[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: np.ndarray | None
    stopped_at: np.ndarray | None
    paths: tuple[str, ...] = ("",)
    losses: tuple[str, ...] = ("",)
    totals: tuple[float, ...] = (math.nan,)
    plain: tuple[bool, ...] = (True,)


class Lane(NamedTuple):
    """One run as it is judged: arrays [steps / every] up to where it ended, None for what its history lacks.

    stopped: whether it was ended before its `steps` were over. total: of its schedule, NaN where that is not known.
    accuracies: how many different held-out accuracies there were; 0 where none is known. blown: the first step after which the held-out
    loss was not finite, -1 where it always was.
    """

    loss: np.ndarray
    rate: np.ndarray | None
    grad_norm: np.ndarray | None
    update_norm: np.ndarray | None
    held_out: np.ndarray
    held_out_at: np.ndarray
    diverged_at: int
    steps: int
    every: int
    stopped: bool = False
    total: float = math.nan
    accuracies: int = 0
    blown: int = -1


class Measured(NamedTuple):
    """What the rules look at. Losses are from their lower bound: 0, or the least seen where that is negative; where such a loss ends above
    its first, which may be its least, as far below the first as 0 is above it, at least.

    start, end: the first loss, the mean of the last tenth. gain: (start - end) / start. peak: the most after the first tenth / start.
    falling: of all that was gained, gained in the last fifth over the one before; sure: that in standard errors. fell: by how much the
    last quarter is below the one before, as a share of that.
    settled: the median gradient norm of the last fifth by the first.
    promised: sum of update_norm * grad_norm / start, by which the steps would have lowered the loss to the first order, at most;
    folds: the same with each step's own loss below; leap: the most of one step; share: the mean of the last fifth's over its mean loss.
    NaN without the norms. answered: of what was promised between the first and the last tenth, how much came; error: its standard error;
    heard: the same of the held-out loss, which no batch blurs, between its first and last evaluation; NaN where that cannot be told.
    steady: the share of evaluations at which the held-out loss was below the one before; late: of all that it fell, the last quarter's
    share. NaN of fewer than six.
    """

    start: float
    end: float
    gain: float
    peak: float
    falling: float
    sure: float
    fell: float
    settled: float
    promised: float
    folds: float
    leap: float
    share: float
    answered: float
    error: float
    heard: float
    steady: float
    late: float


def given_of(what: Any) -> Given:
    if isinstance(what, str | Path):
        result = load(what)
        given, config = given_of(result), read_config(Path(what))
        if isinstance(result, Swept | LRFinding) or not config:  # their recipes say what each lane ran with
            return given
        schedule, loss = config["schedule"], dict(config["loss"])
        name, total = loss.pop("name"), float(schedule.get("total", math.nan))
        return given._replace(paths=(rate_path(schedule),), losses=(name,), totals=(total,), plain=(is_plain(loss),))
    if isinstance(what, LRFinding):
        what = what.swept
    if isinstance(what, Swept):
        recipes = [what.trials.recipes[lane // what.seeds] for lane in range(what.lanes)]
        known = {"paths": path_of, "losses": loss_of, "totals": total_of, "plain": plain_of}
        of_lanes: dict[str, Any] = {name: tuple(map(of, recipes)) for name, of in known.items()}
        return Given(*what.inherited(), what.evaluation_steps, what.diverged_at, what.stopped_at, **of_lanes)
    if isinstance(what, Fitted):
        diverged_at = np.array([-1 if what.diverged_at is None else what.diverged_at])
        return Given(what.history, what.evaluations, what.evaluation_steps, diverged_at, None)
    if not isinstance(what, Mapping) or "loss" not in what:
        raise TypeError(
            f"diagnose: what must be a Swept, a Fitted, an LRFinding, a folder or a history with a loss, got {type(what).__name__}"
        )
    for name in what:
        if name in ("evaluation_steps", "diverged_at", "stopped_at"):
            raise ValueError(f"diagnose: {name} is of a folder's history.npz: give the folder, or what lo.load makes of it")
        if name not in (*COLUMNS, *HELD_OUT) and not str(name).startswith(SCHEDULED):
            raise ValueError(f"diagnose: a history has no column {name!r}; {nearest(str(name), (*COLUMNS, *HELD_OUT))}")
    columns = {name: _numbers(name, what[name]) for name in (*COLUMNS, *HELD_OUT) if name in what}
    for name, values in columns.items():
        if values.shape != columns["loss"].shape:
            raise ValueError(f"diagnose: {name} has the shape {values.shape} and loss {columns['loss'].shape}: they must be the same")
    history = {name: values for name, values in columns.items() if name in COLUMNS}
    held_out = next((columns[name] for name in HELD_OUT if name in columns), None)
    evaluations = {} if held_out is None else {"loss": held_out}
    at = np.arange(1, 1 + (0 if held_out is None else held_out.shape[-1]))
    whole = [np.isfinite(np.where(values, values, np.nan) if name == "finite" else values) for name, values in history.items()]
    return Given(history | {"loss": np.where(np.all(whole, 0), history["loss"], np.nan)}, evaluations, at, None, None)


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"diagnose: {name} must be numbers, got {values!r}") from None
    if numbers.ndim not in (1, 2):
        raise ValueError(f"diagnose: {name} must be [steps] or [lanes, steps], got the shape {numbers.shape}")
    return numbers


def rate_path(names: Iterable[str]) -> str:
    """Which of a schedule's numbers the rate is, "" where none is."""
    known = set(names)
    return next((f"schedule.{name}" for name in LEADING if name in known), "")


def path_of(recipe: Recipe) -> str:
    return rate_path(recipe.schedule.hparams)


def loss_of(recipe: Recipe) -> str:
    return str(getattr(recipe.loss.fn, "__name__", ""))


def total_of(recipe: Recipe) -> float:
    total = recipe.schedule.hparams.get("total", math.nan)
    return float(total) if np.ndim(total) == 0 else math.nan


def plain_of(recipe: Recipe) -> bool:
    return is_plain({**recipe.loss.hparams, **recipe.loss.options})


def is_plain(numbers: Mapping[str, Any]) -> bool:
    """Whether a loss with these numbers is nothing but itself."""
    return all(name in PLAIN and (value is PLAIN[name] or bool(np.all(np.equal(value, PLAIN[name])))) for name, value in numbers.items())


def as_lanes(given: Given) -> list[Lane]:
    history = {name: np.atleast_2d(np.asarray(values, np.float64)) for name, values in given.history.items()}
    count, length = history["loss"].shape
    steps = int(given.evaluation_steps[-1]) if len(given.evaluation_steps) else length
    every = max(1, round(steps / max(length, 1)))
    held_out = np.atleast_2d(given.evaluations["loss"]) if "loss" in given.evaluations else np.zeros((count, 0))
    accuracy = np.atleast_2d(given.evaluations["accuracy"]) if {"accuracy", "loss"} <= set(given.evaluations) else None
    lanes = []
    for i in range(count):
        loss = history["loss"][i]
        finite = np.isfinite(loss)
        end = length if finite.all() else int(np.argmin(finite))
        stopped = given.stopped_at is not None and np.ravel(given.stopped_at)[i] >= 0
        known = -1 if given.diverged_at is None else int(np.ravel(given.diverged_at)[i])
        # What became infinite is told by the run itself; of a bare history by where it stops being finite.
        diverged_at = known if given.diverged_at is not None or stopped or end == length else end * every
        rate, grad_norm, update_norm = (
            history[name][i, :end] if name in history else None for name in ("learning_rate", "grad_norm", "update_norm")
        )
        seen = np.isfinite(held_out[i])
        at = given.evaluation_steps[seen] if held_out.size else np.zeros(0, int)
        # NaN may stand for no evaluation in a history that was given, infinity may not; of a run of ours only what came after its end.
        bad = ~seen if given.diverged_at is not None and not stopped and known < 0 else np.isinf(held_out[i])
        blown = int(given.evaluation_steps[np.argmax(bad)]) if bad.any() else -1
        curves = loss[:end], rate, grad_norm, update_norm, held_out[i][seen], at
        total = given.totals[i % len(given.totals)]
        accuracies = len(np.unique(accuracy[i][seen])) if accuracy is not None else 0
        lanes.append(Lane(*curves, diverged_at, steps, every, bool(stopped), total, accuracies, blown))
    return lanes


def measure(lane: Lane) -> Measured:
    """The numbers that the rules are about, of a lane with at least ten steps."""
    n, tiny, first, least = len(lane.loss), np.finfo(float).tiny, float(lane.loss[0]), min(0.0, float(lane.loss.min()))
    rose = least < 0 and float(lane.loss[-max(1, n // 10) :].mean()) > first
    loss = lane.loss - (first - max(abs(first), first - least) if rose else least)
    start = float(loss[0]) or max(1e-12 * float(loss.max()), tiny)
    end = float(loss[-max(1, n // 10) :].mean())
    fifth, quarter = n // 5, n // 4
    last, before = loss[-fifth:], loss[-2 * fifth : -fifth]
    gained = max(start - end, 1e-9 * start)
    error = math.sqrt((last.var() + before.var()) / fifth)
    drop = float(before.mean() - last.mean())
    return Measured(
        start=start,
        end=end,
        gain=(start - end) / start,
        peak=float(loss[n // 10 :].max()) / start,
        falling=drop / gained,
        sure=drop / max(error, tiny),
        fell=1 - float(loss[-quarter:].mean()) / max(float(loss[-2 * quarter : -quarter].mean()), tiny),
        settled=math.nan if lane.grad_norm is None else float(np.median(lane.grad_norm[-fifth:])) / max(float(lane.grad_norm[0]), tiny),
        steady=float(np.mean(np.diff(lane.held_out) < 0)) if len(lane.held_out) > 5 else math.nan,
        late=_late(lane.held_out),
        **_promises(lane, loss, start),
    )


def _late(held_out: np.ndarray) -> float:
    if len(held_out) < 6:
        return math.nan
    fell, last = float(held_out[0] - held_out[-1]), float(held_out[-1 - len(held_out) // 4] - held_out[-1])
    return last / fell if fell > RESOLVED * abs(float(held_out[0])) else math.nan


def _promises(lane: Lane, loss: np.ndarray, start: float) -> dict[str, float]:
    """What the updates promised and how much of it came; `loss` is from its lower bound."""
    if lane.grad_norm is None or lane.update_norm is None:
        return dict.fromkeys(("promised", "folds", "leap", "share", "answered", "error", "heard"), math.nan)
    each, fifth, tenth = lane.update_norm * lane.grad_norm, len(loss) // 5, max(1, len(loss) // 10)
    shares = each / np.maximum(loss, 1e-6 * start)
    promised = lane.every * float(each.sum())
    first, final, between = loss[:tenth], loss[-tenth:], max(0.9 * promised, np.finfo(float).tiny)
    return {
        "promised": promised / start,
        "folds": lane.every * float(shares.sum()),
        "leap": float(shares.max()),
        "share": float(each[-fifth:].mean()) / max(float(loss[-fifth:].mean()), 1e-6 * start),
        "answered": float(first.mean() - final.mean()) / between,
        "error": math.sqrt((first.var() + final.var()) / tenth) / between,
        "heard": _heard(lane, each),
    }


def _heard(lane: Lane, each: np.ndarray) -> float:
    """How much the held-out loss fell of what the updates promised meanwhile; NaN where float32 would not show it."""
    if len(lane.held_out) < 2:
        return math.nan
    begin, end = (int(at) // lane.every for at in lane.held_out_at[[0, -1]])
    promised = lane.every * float(each[begin:end].sum())
    fell = float(lane.held_out[0] - lane.held_out[-1])
    return fell / promised if promised > RESOLVED * abs(float(lane.held_out[0])) else math.nan
