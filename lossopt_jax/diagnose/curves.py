"""Results of every kind as plain curves, and what is measured on one of them."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..recipe import Recipe
from ..sweep import Swept
from ..train import Fitted


class Given(NamedTuple):
    """A result as plain arrays; names: of the schedule's numbers. loss: its name, "" where unknown."""

    history: Mapping[str, np.ndarray]
    evaluations: Mapping[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: np.ndarray | None
    stopped_at: np.ndarray | None
    names: tuple[str, ...]
    loss: str


class Lane(NamedTuple):
    """One run as it is judged: arrays [steps / every] up to where it ended, None for what its history lacks."""

    loss: np.ndarray
    rate: np.ndarray | None
    grad_norm: np.ndarray | None
    update_norm: np.ndarray | None
    held_out: np.ndarray
    held_out_at: np.ndarray
    diverged_at: int
    steps: int
    every: int


class Measured(NamedTuple):
    """What the rules look at. Losses are from their lower bound: 0, or the least seen where that is negative.

    start, end: the first loss, the mean of the last tenth. gain: (start - end) / start. peak: the most after the first tenth / start.
    falling: of all that was gained, gained in the last fifth over the one before; sure: that in standard errors.
    promised: sum of update_norm * grad_norm / start, by which the steps would have lowered the loss to the first order, at most;
    folds: the same with each step's own loss below; leap: the most of one step; late: the promise of the last fifth over all that was
    gained. NaN without the norms. answered: of what was promised between the first and the last tenth, how much came; error: its
    standard error.
    """

    start: float
    end: float
    gain: float
    peak: float
    falling: float
    sure: float
    promised: float
    folds: float
    leap: float
    late: float
    answered: float
    error: float


def given_of(what: Any) -> Given:
    if isinstance(what, Swept):
        first = what.trials.recipes[0]
        names = tuple(first.schedule.hparams)
        return Given(what.history, what.evaluations, what.evaluation_steps, what.diverged_at, what.stopped_at, names, loss_name(first))
    if isinstance(what, Fitted):
        diverged_at = np.array([-1 if what.diverged_at is None else what.diverged_at])
        return Given(what.history, what.evaluations, what.evaluation_steps, diverged_at, None, (), "")
    if not isinstance(what, Mapping) or "loss" not in what:
        raise TypeError(f"diagnose: what must be a Swept, a Fitted, a folder or a history with a loss, got {type(what).__name__}")
    return Given({name: np.asarray(values) for name, values in what.items()}, {}, np.zeros(0, int), None, None, (), "")


def read(place: Path) -> Given:
    """The arrays of a folder that `lossopt train` or `lossopt sweep` wrote."""
    arrays, lines = place / "history.npz", place / "metrics.jsonl"
    config = tomllib.loads((place / "config.toml").read_text(encoding="utf-8")) if (place / "config.toml").exists() else {}
    names, loss = tuple(config.get("schedule", {})), str(config.get("loss", {}).get("name", ""))
    if arrays.exists():
        with np.load(arrays) as file:
            known = dict(file)
        apart = {name: known.pop(name, None) for name in ("evaluation_steps", "diverged_at", "stopped_at")}
        held_out = {name.removeprefix("held_out_"): known.pop(name) for name in [n for n in known if n.startswith("held_out_")]}
        return Given(known, held_out, apart["evaluation_steps"], apart["diverged_at"], apart["stopped_at"], names, loss)
    if not lines.exists():
        raise ValueError(f"diagnose: {place} is not the folder of a finished run: it has neither history.npz nor metrics.jsonl")
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    history = {name: np.array([row[name] for row in rows], float) for name in (rows[0] if rows else {"loss": None}) if name != "step"}
    diverged_at = json.loads((place / "summary.json").read_text(encoding="utf-8"))["diverged_at"]
    return Given(history, {}, np.zeros(0, int), np.array([-1 if diverged_at is None else diverged_at]), None, names, loss)


def as_lanes(given: Given) -> list[Lane]:
    history = {name: np.atleast_2d(np.asarray(values, np.float64)) for name, values in given.history.items()}
    count, length = history["loss"].shape
    steps = int(given.evaluation_steps[-1]) if len(given.evaluation_steps) else length
    every = max(1, round(steps / max(length, 1)))
    held_out = np.atleast_2d(given.evaluations["loss"]) if "loss" in given.evaluations else np.zeros((count, 0))
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
        lanes.append(Lane(loss[:end], rate, grad_norm, update_norm, held_out[i][seen], at, diverged_at, steps, every))
    return lanes


def measure(lane: Lane) -> Measured:
    """The numbers that the rules are about, of a lane with at least ten steps."""
    loss = lane.loss - min(0.0, float(lane.loss.min()))
    n, tiny = len(loss), np.finfo(float).tiny
    start = max(float(loss[0]), tiny)
    end = float(loss[-max(1, n // 10) :].mean())
    fifth = n // 5
    last, before = loss[-fifth:], loss[-2 * fifth : -fifth]
    gained = max(start - end, 1e-9 * start)
    error = math.sqrt((last.var() + before.var()) / fifth)
    drop = float(before.mean() - last.mean())
    promised = folds = leap = late = answered = doubt = math.nan
    if lane.grad_norm is not None and lane.update_norm is not None:
        each = lane.update_norm * lane.grad_norm
        promised, late = lane.every * float(each.sum()) / start, lane.every * float(each[-fifth:].sum()) / gained
        share = each / np.maximum(loss, 1e-6 * start)
        folds, leap = lane.every * float(share.sum()), float(share.max())
        tenth, between = max(1, n // 10), max(0.9 * promised * start, tiny)
        first, final = loss[:tenth], loss[-tenth:]
        answered = float(first.mean() - final.mean()) / between
        doubt = math.sqrt((first.var() + final.var()) / tenth) / between
    return Measured(
        start=start,
        end=end,
        gain=(start - end) / start,
        peak=float(loss[n // 10 :].max()) / start,
        falling=drop / gained,
        sure=drop / max(error, tiny),
        promised=promised,
        folds=folds,
        leap=leap,
        late=late,
        answered=answered,
        error=doubt,
    )


def loss_name(recipe: Recipe) -> str:
    return str(getattr(recipe.loss.fn, "__name__", ""))
