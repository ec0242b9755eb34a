"""The sweep: recipes of one structure are lanes of one compiled program, chunk by chunk through the same host loop as a single run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from .._types import Batch
from ..checkpoint import fingerprint, same_run
from ..data import as_batch, batch_indices, examples, pieces
from ..hosts import check_alike, from_first, put
from ..loop import Callbacks, Point, Progress, Run, evaluation_steps, host_loop, kept_start
from ..models import Model
from ..recipe import Recipe
from ..step import check_recipe
from ..train import EVALUATION_BATCH, check_setup, step_text
from .lanes import LanePlan, by_structure, checked_plan, default_plan, lanes_at_once
from .plan import MeasuredPlan, planned
from .population import Population, Rule, with_schedules
from .program import Lane, compiled_for, lanes_program, mesh_of, order_of
from .result import Swept
from .stopping import Running, run_populations, run_waves
from .trials import Trials


def sweep(
    model: Model | Callable[..., Model],
    trials: Trials | Sequence[Any],
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    seeds: int = 1,
    plan: LanePlan | None = None,
    stop: Rule | None = None,
    on_chunk: Callbacks = (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
) -> Swept:
    """Train every recipe, as lanes of one program; each lane gives what `fit` gives for its recipe alone.

    trials: from `sample` or `grid`, or any recipes; those of one structure share a program, each further structure compiles its own,
    while the one before it runs. More lanes than fit into memory run in waves of the same program.
    model: where numbers of it are swept ("model.width") a function of them, by keyword, that gives the model: `lambda width: ...`. Every
        lane takes `run.steps` steps, so with "run.batch_size" swept those of larger batches see more examples. `Trials.setup` gives the
        model and the run of a trial, such as `swept.best_trial()`.
    train, evaluate, run, on_chunk, checkpoint, save_every: as in `fit`; a callback sees metrics [lanes, steps] of the wave that runs.
        A sweep may be gone on with on another number of devices.
        Where `jax.distributed.initialize` has made one mesh of several processes, all call this alike, with the same arguments, lanes
        lie on the devices of all, and each process gets the whole result; only process 0 needs to see the folder.
    seeds: every recipe runs under `run.seed` ... `run.seed + seeds - 1` (parameters, data order, dropout), recipe by recipe.
    plan: how lanes lie on devices; None chooses (see `plan_lanes`). On CPU call
    `jax.config.update("jax_num_cpu_devices", cores)` before anything else of JAX, and every core becomes a device.
    stop: a rule that ends the worse trials early, such as `halving()`; with several seeds a trial is judged by their mean and its lanes
        end together. `Swept.stopped_at` says where. Or `population()`, by which they go on as copies of better ones.

    A lane that diverges is flagged with the step and changes no bit of another.
    """
    job = prepared(model, trials, train, evaluate, run, seeds, plan, checkpoint, save_every, stop=stop)
    check_width(job, plan)
    return finished(job, on_chunk)


def finished(job: "Job", on_chunk: Callbacks = ()) -> Swept:
    """The sweep, run from where it is to its end."""
    stop, run, seeds = job.stop, job.run, job.seeds
    rungs = () if stop is None else stop.steps(run.steps)
    compile_seconds, members = job.planning_seconds, [wave.members for wave in job.waves]

    def begin(i: int) -> Running:
        nonlocal compile_seconds
        wave = job.begin(i, on_chunk)
        compile_seconds += wave.program.compile_seconds
        return wave

    if isinstance(stop, Population):
        ends, copies, trials = run_populations(begin, members, job.trials, run, seeds, stop, job.folder)
        trials = with_schedules(trials, copies)
    else:
        ends, copies, trials = run_waves(begin, members, job.trials, run, seeds, stop), [], job.trials
    lane = np.concatenate([np.repeat(some, seeds) * seeds + np.tile(np.arange(seeds), len(some)) for some in members])
    back = np.argsort(lane)
    places = [(wave, int(place)) for wave, end in enumerate(ends) for place in order_of(end.carry)]
    return Swept(
        trials=trials,
        seeds=seeds,
        history=together([end.history for end in ends], back),
        evaluations=together([end.evaluations for end in ends], back),
        evaluation_steps=evaluation_steps(run, rungs),
        diverged_at=np.concatenate([end.diverged_at for end in ends])[back],
        stopped_at=np.concatenate([end.stopped_at for end in ends])[back],
        places=[places[i] for i in back],
        states=[end.carry.carry.state for end in ends],
        plan=job.waves[0].plan,
        seconds=sum(end.seconds for end in ends),
        compile_seconds=compile_seconds,
        history_every=run.history_every,
        copies=tuple(copies),
    )


class Wave(NamedTuple):
    """Trials that run together: of one structure, as many as fit. room: the lanes that their program has places for."""

    members: list[int]
    plan: LanePlan
    room: int


class Job(NamedTuple):
    """A sweep, ready to run wave by wave, in any order and by any process."""

    model: Model | Callable[..., Model]
    trials: Trials
    data: Batch
    held_out: Batch | None
    run: Run
    seeds: int
    waves: list[Wave]
    folder: Path | None
    save_every: float
    planning_seconds: float
    stop: Rule | None = None
    seed_room: int = 1

    def run_wave(self, i: int, on_chunk: Callbacks = ()) -> tuple[Point, float]:
        """Where the wave ends, and the seconds it waited for its program; what its folder holds of it is not run again."""
        wave = self.begin(i, on_chunk)
        end = host_loop(wave.program, self.run, wave.order, wave.point, wave.tellers)
        wave.save()
        return end, wave.program.compile_seconds

    def begin(self, i: int, on_chunk: Callbacks = ()) -> Running:
        """The wave at its first step, or where its folder has it."""
        lanes, own = self._lanes(i), self._asked(i)
        program = lanes_program(*own)
        if i + 1 < len(self.waves):  # compiled while this one runs
            compiled_for(*self._asked(i + 1))
        folder = None if self.folder is None else self.folder / f"wave-{i:04d}"
        tellers = [_of_wave(i, tell) for tell in ((on_chunk,) if callable(on_chunk) else on_chunk)]
        start = kept_start(program, (len(lanes),), tellers, folder=folder, save_every=self.save_every, asked=from_first)
        return Running(program, *start, partial(self._order, self._setup(i)[1].batch_size))

    def _order(self, batch_size: int, first: int, count: int) -> np.ndarray:
        """The batch indices of some steps, [seeds, count, b]; those of seeds that there is only room for are nobody's."""
        n, run = examples(self.data), self.run
        own = np.stack([batch_indices(n, batch_size, run.seed + s, first, count) for s in range(self.seeds)])
        return np.pad(own, [(0, max(0, self.seed_room - self.seeds)), (0, 0), (0, 0)])

    def _setup(self, i: int) -> tuple[Model, Run]:
        return self.trials.setup(self.waves[i].members[0], self.model, self.run)

    def _asked(self, i: int) -> tuple[Model, list[Lane], Batch, Batch | None, Run, LanePlan, int, int]:
        """What a wave's program is compiled for."""
        (model, run), wave = self._setup(i), self.waves[i]
        return model, self._lanes(i), self.data, self.held_out, run, wave.plan, wave.room, self.seed_room

    def _lanes(self, i: int) -> list[Lane]:
        return [(self.trials.recipes[member], seed) for member in self.waves[i].members for seed in range(self.seeds)]


def prepared(
    model: Model | Callable[..., Model],
    trials: Trials | Sequence[Any],
    train: Any,
    evaluate: Any,
    run: Run,
    seeds: int,
    plan: LanePlan | None,
    checkpoint: str | Path | None,
    save_every: float,
    parts: int = 1,
    stop: Rule | None = None,
    room: int = 0,
    seed_room: int = 1,
) -> Job:
    """The waves of a sweep: at least `parts` where there are lanes enough, or those that the checkpoint's folder has written down.

    room, seed_room: for at least how many trials (where they fit) and seeds a program has places, so that a later sweep of so many does
        not compile again.
    """
    if isinstance(trials, Recipe):
        raise TypeError("sweep: trials must be those of lo.sample or lo.grid, or a list of recipes, got one Recipe; `fit` trains one")
    trials = trials if isinstance(trials, Trials) else Trials(tuple(trials), {})
    for recipe in trials.recipes:
        check_recipe(recipe)
    check_setup(model, run)
    if stop is not None and not isinstance(stop, Rule):
        raise TypeError(f"sweep: stop must be a rule such as lo.halving(), got {stop!r}")
    if stop is not None:
        stop.steps(run.steps)  # a run that is too short for its rungs is an error before anything is compiled
    if not len(trials) or isinstance(seeds, bool) or not isinstance(seeds, int | np.integer) or seeds < 1:
        raise ValueError(f"sweep needs at least one trial and one seed, got {len(trials)} trials and seeds={seeds!r}")
    if isinstance(stop, Population) and not trials.space:
        raise ValueError("population needs trials of lo.sample or lo.grid: recipes alone do not say what may change within which ends")
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    same = {
        "trials": trials.recipes,
        "train data": data,
        "held-out data": held_out,
        "run": asdict(run),
        "seeds": seeds,
        "stop": str(stop),
        "models and batch sizes": [str(trials.structure(i)) for i in range(len(trials))],
    }
    computed = ""
    if checkpoint is not None or jax.process_count() > 1:
        firsts = [(trials.recipes[members[0]], *trials.setup(members[0], model, run)) for members in by_structure(trials)]
        computed = "".join(step_text(own, recipe, data, its_run.batch_size) for recipe, own, its_run in firsts)
    most = max(trials.setup(i, model, run)[1].batch_size for i in range(len(trials)))  # a wrong name of the model's is an error here too
    if most > max(run.batch_size, examples(data)):
        raise ValueError(f"sweep: run.batch_size must be at most the {examples(data)} examples there are, got {most}")
    if jax.process_count() > 1:
        alike = {name: fingerprint(value) for name, value in (same | {"functions": computed}).items()}
        check_alike(alike | {"plan": str(plan and plan[:2])})
    plan = planned(model, trials, data, held_out, run, seeds, stop) if plan is None else checked_plan(plan)
    waves = _waves(model, trials, data, run, seeds, plan, parts, room)
    if checkpoint is not None:
        mine = [[wave.members, wave.plan.width, wave.room] for wave in waves]
        kept = from_first(lambda: same_run(checkpoint, same, computed, waves=mine))["waves"]
        # A lane's last bits depend on the width, so a resumed sweep keeps it, and its waves; how many devices is today's.
        waves = [Wave(members, LanePlan(plan.devices, width), room) for members, width, room in kept]
    data, held_out = put((data, held_out), NamedSharding(mesh_of(waves[0].plan), P()))  # once for all waves
    folder = None if checkpoint is None else Path(checkpoint)
    return Job(model, trials, data, held_out, run, seeds, waves, folder, save_every, getattr(plan, "seconds", 0.0), stop, seed_room)


def check_width(job: Job, plan: LanePlan | None) -> None:
    """ValueError where a plan was asked for by hand and the checkpoint that is gone on with has lanes of another width."""
    if plan is None or isinstance(plan, MeasuredPlan):
        return
    for wave in job.waves:
        if wave.plan.width != plan.width:
            raise ValueError(
                f"plan: the checkpoint {job.folder} was begun with width {wave.plan.width}, on which a lane's last bits depend, "
                f"got width={plan.width}: go on with the same, or without a plan"
            )


def _waves(
    model: Model | Callable[..., Model], trials: Trials, data: Batch, run: Run, seeds: int, plan: LanePlan, parts: int, room: int
) -> list[Wave]:
    waves, groups = [], by_structure(trials)
    setups = [trials.setup(members[0], model, run) for members in groups]
    widths = [plan.width] * len(groups)  # a plan that was asked for stays as it is: bits depend on the width
    if isinstance(plan, MeasuredPlan):  # of the most frequent structure: one of larger arrays is narrower in proportion
        usual = [default_plan(own, data.inputs, its_run.batch_size, 2**30).width for own, its_run in setups]
        measured = usual[groups.index(max(groups, key=len))]
        widths = [max(1, plan.width * min(one, measured) // measured) for one in usual]
    for members, width, (own, _) in zip(groups, widths, setups, strict=True):
        lanes = lanes_at_once(own, trials.recipes[members[0]], max(len(members), room), seeds, data, LanePlan(plan.devices, width))
        narrow = min(width, -(-lanes // plan.devices)) if isinstance(plan, MeasuredPlan) else width
        chosen = LanePlan(plan.devices, narrow)
        turn = max(1, chosen.devices * chosen.width // seeds)
        some = min(lanes // seeds, max(turn, -(-max(len(trials), room) // parts)))
        waves += [Wave(members[i : i + some], chosen, some * seeds) for i in range(0, len(members), some)]
    return waves


def _of_wave(wave: int, tell: Callable[[Progress], None]) -> Callable[[Progress], None]:
    return lambda progress: tell(progress._replace(wave=wave))


def together(parts: Sequence[dict[str, np.ndarray]], back: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of all structures, lanes in order; NaN where a structure has no such number."""
    names = dict.fromkeys(name for part in parts for name in part)
    shapes = [next(iter(part.values())).shape for part in parts if part]
    whole = {name: [part.get(name, np.full(shape, np.nan)) for part, shape in zip(parts, shapes, strict=False)] for name in names}
    return {name: np.concatenate(values)[back] for name, values in whole.items()}
