"""The one host loop: a run, or the lanes of a sweep, chunk by chunk, with its callbacks and from where it was saved."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .checkpoint import Keeper, joined, restore
from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """How long, on what, how to log.

    steps: number of updates. batch_size: examples a step. seed: of the parameters, the data order and dropout.
    evaluate_every: steps between held-out evaluations; None evaluates once, at the end.
    history_every: the metrics of every how many steps are kept, for long runs of many lanes: 0, history_every, 2 history_every ...
    chunk: most steps handed to the device at a time; metrics, progress and a diverged run are looked at between chunks.
    """

    steps: int
    batch_size: int = 64
    seed: int = 0
    evaluate_every: int | None = None
    history_every: int = 1
    chunk: int = 500

    def __post_init__(self) -> None:
        least_of = {"steps": 0, "batch_size": 1, "seed": 0, "evaluate_every": 1, "history_every": 1, "chunk": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if name == "evaluate_every" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"Run: {name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"Run: {name} must be at least {least}, got {value}")


class Progress(NamedTuple):
    """What a callback is told between two chunks.

    step: steps done. metrics: this chunk's, [steps] or [lanes, steps]. evaluation: held-out metrics where they were due now.
    diverged_at, stopped_at: [] or [lanes]: the step at which a run failed, or a rule stopped it; -1 where neither.
    carry: the run as it lies on the device, to be read at once: the next chunk takes over its memory.
    wave: which of the waves of a sweep this is.
    """

    step: int
    metrics: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray] | None
    diverged_at: np.ndarray
    stopped_at: np.ndarray
    carry: Any
    wave: int = 0


Callbacks = Callable[[Progress], None] | Iterable[Callable[[Progress], None]]


class Program(NamedTuple):
    """Compiled functions of a run or of the lanes of a sweep; the host loop cannot tell which.

    begin: () -> carry at step 0. chunk: (carry, indices, count) -> (carry, metrics [..., chunk]).
    evaluate: carry -> held-out metrics [...], or None without held-out data.
    keep: (carry, alive [...]) -> carry in which only what is alive takes time.
    unload: carry -> its states as NumPy arrays [..., *], random keys as their data. load: (those, alive [...]) -> carry.
    copy: of lanes, (carry, sources [lanes], recipes, alive [lanes]) -> carry in which each goes on from its source, with a new recipe.
    """

    begin: Callable[..., Any]
    chunk: Callable[[Any, np.ndarray, int], tuple[Any, dict[str, Any]]]
    evaluate: Callable[[Any], dict[str, Any]] | None
    keep: Callable[[Any, np.ndarray], Any]
    unload: Callable[[Any], list[np.ndarray]]
    load: Callable[[list[np.ndarray], np.ndarray], Any]
    compile_seconds: float
    copy: Callable[[Any, np.ndarray, Sequence[Recipe], np.ndarray], Any] | None = None


def chunk_length(run: Run) -> int:
    """Steps to a chunk: at most `run.chunk`, and never past the next evaluation."""
    return max(1, min(run.chunk, run.evaluate_every or run.steps, run.steps))


def evaluation_steps(run: Run, rungs: Sequence[int] = ()) -> np.ndarray:
    """After how many steps the held-out data is looked at: when a rule is to decide as well, and at the end."""
    regular = range(run.evaluate_every, run.steps, run.evaluate_every) if run.evaluate_every else ()
    return np.unique([*regular, *rungs, run.steps]).astype(int)


class Point(NamedTuple):
    """A run so far: everything [...] for one run, [lanes, ...] for a sweep.

    step: steps done. diverged_at, stopped_at: [...], -1 where neither. history: metric -> [..., steps done / history_every].
    evaluations: held-out metric -> [..., evaluations done]. seconds: wall time spent.
    """

    step: int
    carry: Any
    diverged_at: np.ndarray
    stopped_at: np.ndarray
    history: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    seconds: float


def kept_start(
    program: Program,
    lanes: tuple[int, ...],
    on_chunk: Callbacks = (),
    *,
    folder: Path | None = None,
    save_every: float = 30.0,
    asked: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
) -> tuple[Point, tuple[Callable[[Progress], None], ...], Callable[[], None]]:
    """Where `host_loop` begins, or goes on from what `folder` holds; its callbacks, of which one saves there; what saves the end.

    lanes: () of one run, (lanes,) of a sweep. asked: as of `Keeper`.
    """
    none, carry = np.full(lanes, -1), program.begin()
    start = Point(0, carry, none, none, {}, {}, 0.0)
    tellers = (on_chunk,) if callable(on_chunk) else tuple(on_chunk)
    if folder is None:
        return start, tellers, lambda: None
    shapes = program.unload(carry)
    past = asked(lambda: restore(folder, shapes))
    if past is not None:
        carry = program.load(past.leaves, (past.diverged_at < 0) & (past.stopped_at < 0))
        start = Point(past.step, carry, past.diverged_at, past.stopped_at, past.history, past.evaluations, past.seconds)
        nothing_new = {name: values[..., :0] for name, values in past.history.items()}
        for tell in tellers:  # so that a progress bar begins where the run does
            tell(Progress(past.step, nothing_new, None, past.diverged_at, past.stopped_at, carry))
    keeper = Keeper(folder, program.unload, save_every, start.step, start.seconds, asked)
    return start, (keeper, *tellers), keeper.save


def host_loop(
    program: Program,
    run: Run,
    order: Callable[[int, int], np.ndarray],
    start: Point,
    tellers: Sequence[Callable[[Progress], None]] = (),
    rungs: Sequence[int] = (),
    until: int | None = None,
) -> Point:
    """The one host loop: feed batch indices by the chunk, pull metrics once a chunk, evaluate when due, tell the callbacks.

    order: (first step, count) -> batch indices of those steps, [..., count, b]. start: where to go on from, without those that it calls
    stopped. rungs: steps after which the held-out data is looked at as well. until: the step to return at; None is the end of the
    run, where the histories are filled up with NaN.
    """
    began = time.perf_counter()
    until = run.steps if until is None else until
    length, due = chunk_length(run), evaluation_steps(run, rungs)
    step, carry, diverged_at, stopped_at, _, _, before = start
    parts, evaluations = [start.history] if start.history else [], [start.evaluations] if start.evaluations else []
    alive = (diverged_at < 0) & (stopped_at < 0)
    carry = program.keep(carry, alive)
    while not parts or (step < until and alive.any()):
        count = min(length, int(due[due > step][0]) - step) if step < run.steps else 0
        indices = order(step, count)
        short = [(0, 0)] * (indices.ndim - 2) + [(0, length - count), (0, 0)]
        carry, metrics = program.chunk(carry, np.pad(indices, short), count)
        part = {name: np.asarray(values)[..., :count] for name, values in metrics.items()}
        diverged_at = _first_failure(part.pop("finite"), alive, diverged_at, step)
        over = np.where(alive, np.where(diverged_at < 0, step + count, diverged_at + 1), step)
        part = {name: _thinned(_until(values, over, step), step, run.history_every) for name, values in part.items()}
        step += count
        evaluation, alive = None, alive & (diverged_at < 0)
        if program.evaluate is not None and (step in due or not alive.any()):
            evaluation = {name: np.where(alive, np.asarray(v), np.nan) for name, v in program.evaluate(carry).items()}
            evaluations.append({name: values[..., None] for name, values in evaluation.items()})
        carry = program.keep(carry, alive)
        parts.append(part)
        for tell in tellers:
            tell(Progress(step, part, evaluation, diverged_at, stopped_at, carry))
    history, past = joined(parts), joined(evaluations)
    if until == run.steps:
        history = _filled(history, len(range(0, run.steps, run.history_every)))
        past = _filled(past, len(due))
    return Point(step, carry, diverged_at, stopped_at, history, past, before + time.perf_counter() - began)


def _filled(columns: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    def fill(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])], constant_values=np.nan)

    return {name: fill(values) for name, values in columns.items()}


def _first_failure(finite: np.ndarray, alive: np.ndarray, diverged_at: np.ndarray, step: int) -> np.ndarray:
    return np.where(alive & ~finite.all(-1), step + np.argmin(finite, -1), diverged_at) if finite.shape[-1] else diverged_at


def _until(values: np.ndarray, over: np.ndarray, step: int) -> np.ndarray:
    """NaN from the step on at which a run was over."""
    return np.where(step + np.arange(values.shape[-1]) >= over[..., None], np.nan, values)


def _thinned(values: np.ndarray, step: int, every: int) -> np.ndarray:
    return values[..., -step % every :: every]
