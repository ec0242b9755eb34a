"""A run is a loop of `train_step`: chunks of it as one compiled function, and the one host loop that feeds them."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._types import Batch
from .checkpoint import Keeper, joined, restore, same_run
from .data import as_batch, batch_indices, examples, pieces, take
from .models import Model
from .recipe import Recipe
from .reduce import mean
from .step import TrainState, check_recipe, eval_step, init_state, train_step

EVALUATION_BATCH = 1024
# On x86 LLVM prefers vectors of 256 bits; the wider ones save a seventh of a sweep's time where the machine has AVX-512.
STEP_OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
# Drawing the parameters runs once, and its random bits take longer to optimise than to compute.
START_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


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


class Carry(NamedTuple):
    """A run between two chunks: its state and whether all has been finite so far."""

    state: TrainState
    alive: Any


def train_chunk(
    model: Model, recipe: Recipe, carry: Carry, data: Batch, indices: jax.Array, count: jax.Array
) -> tuple[Carry, dict[str, jax.Array]]:
    """The first `count` of the steps whose batches are `indices` [chunk, b]: one loop on the device, metrics [chunk].

    A run that becomes non-finite keeps the state it had when this chunk began and is no longer `alive`: a select in every step would
    cost a copy of the whole state every step. Its metrics after that step mean nothing. `count` is traced, so a short last chunk
    does not compile again.
    """

    @jax.jit  # traced once for the shapes and the loop
    def one(state: TrainState, i: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(model, recipe, state, take(data, indices[i]))

    shapes = jax.eval_shape(one, carry.state, jnp.int32(0))[1]
    buffers = {name: jnp.zeros((len(indices), *s.shape), s.dtype) for name, s in shapes.items()}

    def body(i: jax.Array, loop: tuple[TrainState, dict[str, jax.Array], jax.Array]) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
        state, history, alive = loop
        state, metrics = one(state, i)
        return state, {name: history[name].at[i].set(metrics[name]) for name in history}, alive & metrics["finite"]

    state, history, alive = jax.lax.fori_loop(0, count, body, (carry.state, buffers, carry.alive))
    kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), state._replace(key=None), carry.state._replace(key=None))
    return Carry(kept._replace(key=carry.state.key), alive), history


def evaluate(model: Model, recipe: Recipe, state: TrainState, data: Batch) -> dict[str, jax.Array]:
    """Held-out means over data in pieces [k, m, ...] (see `data.pieces`): exact, since pairs are added, never means."""
    totals = jax.lax.map(lambda piece: eval_step(model, recipe, state, piece), data)
    return {name: mean(jax.tree.map(lambda t: t.sum(0), total)) for name, total in totals.items()}


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    state: the trained state (of a diverged run, the last one between chunks that was finite).
    history: metric -> [steps / history_every], NaN after a run diverged.
    evaluation: held-out metric -> number at the end, NaN if it diverged; {} without held-out data.
    evaluations: held-out metric -> [evaluations], after `evaluation_steps` steps.
    diverged_at: the first step whose loss or parameters were not finite, or None.
    seconds, compile_seconds: wall time after compiling, and of compiling.
    history_every: the history holds steps 0, history_every, 2 history_every ...
    """

    state: TrainState
    history: dict[str, np.ndarray]
    evaluation: dict[str, float]
    evaluations: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: int | None
    seconds: float
    compile_seconds: float
    history_every: int = 1

    def __repr__(self) -> str:
        if self.diverged_at is not None:
            return f"Fitted(diverged at step {self.diverged_at})"
        last = {"train loss": float(self.history["loss"][-1])} if self.history["loss"].size else {}
        last |= {f"held-out {name}": value for name, value in self.evaluation.items()}
        return f"Fitted({int(self.evaluation_steps[-1])} steps{''.join(f', {name} {value:.4g}' for name, value in last.items())})"


def fit(
    model: Model,
    recipe: Recipe,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    on_chunk: Callbacks = (),
    checkpoint: str | Path | None = None,
    save_every: float = 30.0,
) -> Fitted:
    """Train one recipe; compiles once, whatever its numbers.

    train, evaluate: (inputs [n, ...], targets [n, ...]) or with weights [n] as a third; NumPy or JAX arrays.
    on_chunk: a function, or several, called with a `Progress` after each chunk.
    checkpoint: a folder to save the run in every `save_every` seconds and at the end, and to go on from where it holds a part of
        this very run: the end is the same, bit for bit. ValueError where it holds another run.

    >>> import lossopt_jax as lo, numpy as np
    >>> from flax import linen as nn
    >>> x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    >>> fitted = lo.fit(lo.from_linen(nn.Dense(1)), recipe, train=(x, 3 * x), run=lo.Run(steps=100, batch_size=8))
    >>> bool(fitted.history["loss"][-1] < 1e-3)
    True
    """
    check_recipe(recipe)
    check_setup(model, run)
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    program = single_program(model, recipe, data, held_out, run)
    order = partial(batch_indices, examples(data), run.batch_size, run.seed)
    if checkpoint is not None:
        same = {"recipe": recipe, "train data": data, "held-out data": held_out, "run": asdict(run)}
        same_run(checkpoint, same, step_text(model, recipe, data, run.batch_size))
    folder = None if checkpoint is None else Path(checkpoint) / "run"
    start, tellers, save = kept_start(program, (), on_chunk, folder=folder, save_every=save_every)
    end = host_loop(program, run, order, start, tellers)
    save()
    return Fitted(
        state=end.carry.state,
        history=end.history,
        evaluation={name: float(values[-1]) for name, values in end.evaluations.items()},
        evaluations=end.evaluations,
        evaluation_steps=evaluation_steps(run),
        diverged_at=None if end.diverged_at < 0 else int(end.diverged_at),
        seconds=end.seconds,
        compile_seconds=program.compile_seconds,
        history_every=run.history_every,
    )


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


def single_program(model: Model, recipe: Recipe, data: Batch, held_out: Batch | None, run: Run) -> Program:
    """The program of one run."""
    started = time.perf_counter()
    data, held_out = jax.device_put((data, held_out))
    start_with = model, recipe, jax.random.key(run.seed), jax.tree.map(lambda leaf: leaf[:1], data.inputs)
    state = jax.eval_shape(init_state, *start_with)
    carry = Carry(state, jax.ShapeDtypeStruct((), bool))
    indices = jax.ShapeDtypeStruct((chunk_length(run), run.batch_size), jnp.int32)
    start, chunk, score = compile_together(
        jax.jit(init_state).lower(*start_with),
        jax.jit(train_chunk, donate_argnums=2).lower(model, recipe, carry, data, indices, 0),
        held_out and jax.jit(evaluate).lower(model, recipe, state, held_out),
    )
    return Program(
        begin=lambda: Carry(start(*start_with), jnp.bool_(True)),
        chunk=lambda carry, indices, count: chunk(model, recipe, carry, data, indices, count),
        evaluate=score and (lambda carry: score(model, recipe, carry.state, held_out)),
        keep=lambda carry, alive: carry,
        unload=lambda carry: [np.asarray(leaf) for leaf in jax.tree.leaves(untyped(carry.state))],
        load=lambda leaves, alive: Carry(typed(jax.tree.unflatten(jax.tree.structure(state), jax.device_put(leaves))), jnp.asarray(alive)),
        compile_seconds=time.perf_counter() - started,
    )


def compile_together(start: Any, chunk: Any, score: Any) -> tuple[Any, Any, Any]:
    """Compile the three lowered functions of a program at once: XLA leaves Python's lock, so they share the cores. score may be None."""
    backend = jax.default_backend()
    options = START_OPTIONS.get(backend), STEP_OPTIONS.get(backend), STEP_OPTIONS.get(backend)
    with ThreadPoolExecutor(3) as pool:
        compiled = pool.map(lambda lowered, options: lowered and lowered.compile(options), (start, chunk, score), options)
        return tuple(compiled)  # type: ignore[return-value]


def chunk_length(run: Run) -> int:
    """Steps to a chunk: at most `run.chunk`, and never past the next evaluation."""
    return max(1, min(run.chunk, run.evaluate_every or run.steps, run.steps))


def check_setup(model: Any, run: Any) -> None:
    """Raise TypeError for what is not a model (or a function that makes models) or not a run."""
    if not (isinstance(model, Model | partial | type) or isroutine(model)):
        raise TypeError(f"the model must be a lo.Model, as lo.from_linen(module) or lo.from_nnx makes one, got {type(model).__name__}")
    if not isinstance(run, Run):
        raise TypeError(f"run must be a lo.Run(steps=..., batch_size=...), got {type(run).__name__}")


def step_text(model: Model, recipe: Recipe, data: Batch, batch_size: int) -> str:
    """What initialisation and a step compute, as text: the same in any process for the same functions, whatever the numbers."""

    def first_step(recipe: Recipe, key: jax.Array, batch: Batch) -> Any:
        return train_step(model, recipe, init_state(model, recipe, key, batch.inputs), batch)

    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), data)
    traced = jax.jit(first_step).trace(recipe, jax.eval_shape(jax.random.key, 0), batch)
    return str(traced.lower(lowering_platforms=("cpu",)).as_text())  # of one platform, so that a run may go on elsewhere


def evaluation_steps(run: Run, rungs: Sequence[int] = ()) -> np.ndarray:
    """After how many steps the held-out data is looked at: when a rule is to decide as well, and at the end."""
    regular = range(run.evaluate_every, run.steps, run.evaluate_every) if run.evaluate_every else ()
    return np.unique([*regular, *rungs, run.steps]).astype(int)


def untyped(state: TrainState) -> TrainState:
    """The state with its random key as plain numbers, as files hold it."""
    return state._replace(key=jax.random.key_data(state.key))


def typed(state: TrainState) -> TrainState:
    """The state that `untyped` was given."""
    return state._replace(key=jax.random.wrap_key_data(state.key))


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
