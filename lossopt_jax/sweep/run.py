"""The sweep: recipes of one structure are lanes of one compiled program, chunk by chunk through the same host loop as a single run."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Batch
from ..checkpoint import same_run
from ..data import as_batch, batch_indices, examples, pieces
from ..models import Model
from ..train import EVALUATION_BATCH, Progress, Run, evaluation_steps, kept_loop
from .lanes import LanePlan, by_structure, checked_plan, lanes_at_once
from .plan import MeasuredPlan, planned
from .program import Lane, compiled_for, lanes_program, order_of
from .result import Swept
from .spaces import Trials


def sweep(
    model: Model,
    trials: Trials | Sequence[Any],
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    seeds: int = 1,
    plan: LanePlan | None = None,
    on_chunk: Callable[[Progress], None] | Iterable[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
) -> Swept:
    """Train every recipe, as lanes of one program; each lane gives what `fit` gives for its recipe alone.

    trials: from `sample` or `grid`, or any recipes; those of one structure share a program, each further structure compiles its own,
    while the one before it runs. More lanes than fit into memory run in waves of the same program.
    train, evaluate, run, on_chunk, checkpoint, save_every: as in `fit`; a callback sees metrics [lanes, steps] of the wave that runs.
        A sweep may be gone on with on another number of devices.
    seeds: every recipe runs under `run.seed` ... `run.seed + seeds - 1` (parameters, data order, dropout), recipe by recipe.
    plan: how lanes lie on devices; None chooses (see `plan_lanes`). On CPU call
    `jax.config.update("jax_num_cpu_devices", cores)` before anything else of JAX, and every core becomes a device.

    A lane that diverges is flagged with the step and changes no bit of another.
    """
    trials = trials if isinstance(trials, Trials) else Trials(tuple(trials), {})
    if not len(trials) or seeds < 1:
        raise ValueError(f"sweep needs at least one trial and one seed, got {len(trials)} trials and seeds={seeds}")
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    order = partial(_orders, examples(data), run, seeds)
    plan = planned(model, trials, data, held_out, run, seeds) if plan is None else checked_plan(plan)
    waves = deque(_waves(model, trials, data, seeds, plan))
    if checkpoint is not None:
        parts = {"trials": trials.recipes, "train data": data, "held-out data": held_out, "run": asdict(run), "seeds": seeds}
        kept = same_run(checkpoint, parts, waves=[[members, chosen.width, room] for members, chosen, room in waves])["waves"]
        # A lane's last bits depend on the width, so a resumed sweep keeps it, and its waves; how many devices is today's.
        waves = deque((members, LanePlan(waves[0][1].devices, width), room) for members, width, room in kept)
    done: list[tuple[list[int], LanePlan]] = []
    ends, compile_seconds = [], getattr(plan, "seconds", 0.0)
    while waves:
        members, chosen, room = waves.popleft()
        lanes = _lanes(trials, members, seeds)
        program = lanes_program(model, lanes, data, held_out, run, chosen, room)
        if waves:  # compiled while this one runs
            after, its_plan, its_room = waves[0]
            compiled_for(model, _lanes(trials, after, seeds), data, held_out, run, its_plan, its_room)
        folder = None if checkpoint is None else Path(checkpoint) / f"wave-{len(done):04d}"
        ends.append(kept_loop(program, run, order, (len(lanes),), on_chunk, folder=folder, save_every=save_every))
        done.append((members, chosen))
        compile_seconds += program.compile_seconds
    lane = np.concatenate([np.repeat(members, seeds) * seeds + np.tile(np.arange(seeds), len(members)) for members, _ in done])
    back = np.argsort(lane)
    places = [(wave, int(place)) for wave, end in enumerate(ends) for place in order_of(end.carry)]
    return Swept(
        trials=trials,
        seeds=seeds,
        history=_together([end.history for end in ends], back),
        evaluations=_together([end.evaluations for end in ends], back),
        evaluation_steps=evaluation_steps(run),
        diverged_at=np.concatenate([end.diverged_at for end in ends])[back],
        stopped_at=np.concatenate([end.stopped_at for end in ends])[back],
        places=[places[i] for i in back],
        states=[end.carry.carry.state for end in ends],
        plan=done[0][1],
        seconds=sum(end.seconds for end in ends),
        compile_seconds=compile_seconds,
    )


def _lanes(trials: Trials, members: Sequence[int], seeds: int) -> list[Lane]:
    return [(trials.recipes[i], seed) for i in members for seed in range(seeds)]


def _waves(model: Model, trials: Trials, data: Batch, seeds: int, plan: LanePlan) -> list[tuple[list[int], LanePlan, int]]:
    """The trials that run together, one structure after another: (trials, plan, lanes that their program has room for) each."""
    waves = []
    for members in by_structure(trials.recipes):
        lanes = lanes_at_once(model, trials.recipes[members[0]], len(members), seeds, data, plan)
        narrow = min(plan.width, -(-lanes // plan.devices))  # a plan that was asked for stays as it is: bits depend on the width
        chosen = LanePlan(plan.devices, narrow if isinstance(plan, MeasuredPlan) else plan.width)
        per_wave = lanes // seeds
        waves += [(members[i : i + per_wave], chosen, lanes) for i in range(0, len(members), per_wave)]
    return waves


def _orders(n: int, run: Run, seeds: int, first: int, count: int) -> np.ndarray:
    return np.stack([batch_indices(n, run.batch_size, run.seed + s, first, count) for s in range(seeds)])


def _together(parts: Sequence[dict[str, np.ndarray]], back: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of all structures, lanes in order; NaN where a structure has no such number."""
    names = dict.fromkeys(name for part in parts for name in part)
    shapes = [next(iter(part.values())).shape for part in parts if part]
    whole = {name: [part.get(name, np.full(shape, np.nan)) for part, shape in zip(parts, shapes, strict=False)] for name in names}
    return {name: np.concatenate(values)[back] for name, values in whole.items()}
