"""Waves of lanes from rung to rung, where a rule of early stopping decides which lanes go on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..train import Point, Program, Progress, Run, evaluation_steps, host_loop
from .result import HIGHER_IS_BETTER, metric_for
from .rungs import Stop
from .spaces import Trials


class Running(NamedTuple):
    """A wave under way; the last three as `kept_start` gives them."""

    program: Program
    point: Point
    tellers: Sequence[Callable[[Progress], None]]
    save: Callable[[], None]


def run_waves(
    begin: Callable[[int], Running],
    waves: Sequence[list[int]],
    order: Callable[[int, int], np.ndarray],
    trials: Trials,
    run: Run,
    seeds: int,
    stop: Stop | None,
) -> list[Point]:
    """The end of each wave. What stops is decided between rungs from nothing but what is recorded, so a resumed sweep decides alike.

    begin: wave -> it, ready to run. waves: the trials of each.
    """
    rungs = () if stop is None else stop.steps(run.steps)
    stages = [(w, k) for w in range(len(waves)) for k in range(len(rungs) + 1)]
    in_turn = stop is None or stop.name == "asha"
    if not in_turn:  # all waves to a rung, then all of them to the next
        stages.sort(key=lambda stage: stage[::-1])
    out, here = np.zeros(len(trials), bool), np.zeros((len(rungs), len(trials)), bool)
    scores, running, ends = np.full(here.shape, np.nan), dict[int, Running](), dict[int, Point]()
    for w, k in stages:
        now = running[w] = running.get(w) or begin(w)
        point = host_loop(now.program, run, order, now.point, now.tellers, rungs, (*rungs, None)[k])
        running[w], members = now._replace(point=point), waves[w]
        if stop is None or k == len(rungs):
            now.save()
            ends[w] = running.pop(w).point
            continue
        here[k, members], scores[k, members] = ~out[members], _scores(point, k, run, rungs, seeds, trials)
        if not in_turn and w < len(waves) - 1:
            continue
        out = np.where(here[k], stop.stopped(k, scores[k], ~here[k]), out)
        for i, other in running.items():
            lost = np.repeat(out[waves[i]], seeds) & (other.point.diverged_at < 0) & (other.point.stopped_at < 0)
            running[i] = other._replace(point=other.point._replace(stopped_at=np.where(lost, rungs[k], other.point.stopped_at)))
    return [ends[w] for w in range(len(waves))]


def _scores(point: Point, rung: int, run: Run, rungs: Sequence[int], seeds: int, trials: Trials) -> np.ndarray:
    """What a wave's trials are compared by at a rung, the mean over seeds: the metric that they are ranked by in the end; of the train
    loss the mean since the rung before. Less is better, NaN where a lane failed."""
    metric = metric_for(point.evaluations, trials)
    values = np.full((len(point.diverged_at), 1), np.nan)
    if metric != "train_loss":
        at = int(np.searchsorted(evaluation_steps(run, rungs), rungs[rung]))
        found = point.evaluations[metric.removeprefix("held_out_")][:, at : at + 1]
        values = values if not found.size else -found if metric in HIGHER_IS_BETTER else found
    else:
        first, last = (-(-step // run.history_every) for step in ((0, *rungs)[rung], rungs[rung]))
        found = point.history["loss"][:, min(first, last - 1) : last]
        values = found if found.size else values
    return values.astype(np.float64).mean(1).reshape(-1, seeds).mean(1)
