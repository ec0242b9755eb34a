"""Waves of lanes from rung to rung, where a rule decides which lanes go on, or go on as copies of others."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..checkpoint import write_whole
from ..hosts import from_first, here, pull
from ..loop import Point, Program, Progress, Run, evaluation_steps, host_loop
from ..train import typed, untyped
from .metrics import HIGHER_IS_BETTER, caution, incomparable, metric_for
from .population import Copy, Population, with_values
from .rungs import Stop
from .trials import Trials


class Running(NamedTuple):
    """A wave under way; point, tellers and save as `kept_start` gives them.

    order: (first step, count) -> batch indices [seeds, count, b].
    """

    program: Program
    point: Point
    tellers: Sequence[Callable[[Progress], None]]
    save: Callable[[], None]
    order: Callable[[int, int], np.ndarray]


def run_waves(
    begin: Callable[[int], Running],
    waves: Sequence[list[int]],
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
    out, came = np.zeros(len(trials), bool), np.zeros((len(rungs), len(trials)), bool)
    scores, running, ends = np.full(came.shape, np.nan), dict[int, Running](), dict[int, Point]()
    for w, k in stages:
        now = running[w] = running.get(w) or begin(w)
        point = host_loop(now.program, run, now.order, now.point, now.tellers, rungs, (*rungs, None)[k])
        running[w], members = now._replace(point=point), waves[w]
        if stop is None or k == len(rungs):
            now.save()
            ends[w] = _let_go(running.pop(w).point, waves)
            del now, point  # or the next wave finds these states still on the device
            continue
        if not came.any():
            caution(incomparable(point.evaluations, trials))
        came[k, members], scores[k, members] = ~out[members], _scores(point, k, run, rungs, seeds, trials)
        if not in_turn and w < len(waves) - 1:
            continue
        out = np.where(came[k], stop.stopped(k, scores[k], ~came[k]), out)
        for i, other in running.items():
            lost = np.repeat(out[waves[i]], seeds) & (other.point.diverged_at < 0) & (other.point.stopped_at < 0)
            running[i] = other._replace(point=other.point._replace(stopped_at=np.where(lost, rungs[k], other.point.stopped_at)))
    return [ends[w] for w in range(len(waves))]


def run_populations(
    begin: Callable[[int], Running],
    waves: Sequence[list[int]],
    trials: Trials,
    run: Run,
    seeds: int,
    rule: Population,
    folder: Path | None,
) -> tuple[list[Point], list[Copy], Trials]:
    """As `run_waves`, each wave a population: also what was copied, and the trials as they are in the end.

    folder: where it is written down before a step that follows from it is taken, since what is saved after that step has its effect.
    """
    ends, copies = list[Point](), list[Copy]()
    for w, members in enumerate(waves):
        part = Trials(tuple(trials.recipes[i] for i in members), trials.space, tuple(trials.values(i) for i in members))
        path = None if folder is None else folder / f"copies-{w:04d}.json"
        end, own, part = _run_population(begin(w), part, members[0], run, seeds, rule, path)
        ends.append(_let_go(end, waves))
        del end
        copies += [copy._replace(to=members[copy.to], source=members[copy.source]) for copy in own]
        last = dict(zip(members, zip(part.recipes, part.drawn, strict=True), strict=True))
        both = [last.get(i, (recipe, trials.values(i))) for i, recipe in enumerate(trials.recipes)]
        trials = Trials(tuple(recipe for recipe, _ in both), trials.space, tuple(row for _, row in both))
    return ends, sorted(copies, key=lambda copy: (copy.step, copy.to)), trials


def _run_population(
    wave: Running,
    trials: Trials,
    first: int,
    run: Run,
    seeds: int,
    rule: Population,
    path: Path | None,
) -> tuple[Point, list[Copy], Trials]:
    """One wave to its end. Trials are counted within it; first: the first one's place in the sweep, so that no two waves draw alike."""
    program, point, rungs = wave.program, wave.point, rule.steps(run.steps)
    copied = program.copy
    assert copied is not None
    copies, lanes = from_first(lambda: _copied_before(path, wave.point.step, rungs)), np.arange(len(trials) * seeds)

    def goes_on(point: Point, sources: np.ndarray, diverged_at: np.ndarray) -> Point:
        recipes = [recipe for recipe in trials.recipes for _ in range(seeds)]
        return point._replace(carry=copied(point.carry, sources, recipes, diverged_at < 0), diverged_at=diverged_at)

    written, compared = True, 0

    def write_again(_: Progress) -> None:
        """Before a state is saved that goes on from copies whose record a full disk refused."""
        nonlocal written
        written = written or _write(path, compared, copies)

    if copies:
        for copy in copies:
            trials = _after(copy, trials)
        point = goes_on(point, lanes, point.diverged_at)  # what is restored has the states, with the numbers that were drawn
    for k, rung in enumerate(rungs):
        if rung < point.step:
            continue
        point = host_loop(program, run, wave.order, point, (write_again, *wave.tellers), rungs, rung)
        if rung == rungs[0]:
            caution(incomparable(point.evaluations, trials))
        failed = point.diverged_at.reshape(-1, seeds)
        diverged_at = np.where(failed < 0, run.steps, failed).min(1)
        scores = np.where(diverged_at < run.steps, np.nan, _scores(point, k, run, rungs, seeds, trials))
        rows = [_own(trials.values(i)) for i in range(len(trials))]
        new = rule.copied(rung, scores, np.where(diverged_at < run.steps, diverged_at, -1), rows, trials.space, [run.seed, rung, first])
        copies += new
        compared, written = rung, _write(path, rung, copies)
        if new:
            for copy in new:
                trials = _after(copy, trials)
            sources = np.arange(len(trials))
            sources[[copy.to for copy in new]] = [copy.source for copy in new]
            back = np.repeat(np.isin(np.arange(len(trials)), [copy.to for copy in new]), seeds)
            sources = (sources[:, None] * seeds + np.arange(seeds)).ravel()
            point = goes_on(point, sources, np.where(back, -1, point.diverged_at))
    end = host_loop(program, run, wave.order, point, (write_again, *wave.tellers), rungs)
    wave.save()
    return end, copies, trials


def _let_go(end: Point, waves: Sequence[list[int]]) -> Point:
    """The end of a wave, where this process can look at its states; of several waves on the host: the others need the devices' memory."""
    state = end.carry.carry.state
    state = here(state) if len(waves) == 1 else typed(jax.tree.map(pull, untyped(state)))
    return end._replace(carry=end.carry._replace(carry=end.carry.carry._replace(state=state)))


def _own(row: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers of parts that a trial does not have."""
    return {path: value for path, value in row.items() if isinstance(value, str) or not math.isnan(value)}


def _after(copy: Copy, trials: Trials) -> Trials:
    recipes, drawn = list(trials.recipes), list(trials.drawn)
    recipes[copy.to] = with_values(recipes[copy.source], copy.after)
    drawn[copy.to] = dict.fromkeys(trials.space, math.nan) | copy.after
    return Trials(tuple(recipes), trials.space, tuple(drawn))


def _write(path: Path | None, rung: int, copies: Sequence[Copy]) -> bool:
    """Whether nothing is left to write."""
    if path is None or jax.process_index() > 0:
        return True
    text = json.dumps({"compared": rung, "copies": [copy._asdict() for copy in copies]})
    with suppress(OSError):  # then the state cannot be written either, which is said there
        write_whole(path, lambda file: file.write(text.encode()))
        return True
    return False


def _copied_before(path: Path | None, step: int, rungs: Sequence[int]) -> list[Copy]:
    """What had been copied when a state of this step was saved: one that was saved at a rung, before anything was copied there."""
    past = [rung for rung in rungs if rung < step]
    if path is None or not past:
        return []
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text())
        if known["compared"] >= past[-1]:
            return [copy for copy in (Copy(**fields) for fields in known["copies"]) if copy.step < step]
    raise ValueError(f"the checkpoint lacks what was copied before step {step} ({path}): remove it to start anew")


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
