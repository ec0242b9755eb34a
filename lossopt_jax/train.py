"""A run is a loop of `train_step`: chunks of it as one compiled function, and the one host loop that feeds them."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._types import Batch
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
    chunk: most steps handed to the device at a time; metrics, progress and a diverged run are looked at between chunks.
    """

    steps: int
    batch_size: int = 64
    seed: int = 0
    evaluate_every: int | None = None
    chunk: int = 500

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0), ("evaluate_every", 1), ("chunk", 1)):
            value = getattr(self, name)
            if name == "evaluate_every" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"Run: {name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"Run: {name} must be at least {least}, got {value}")


class Progress(NamedTuple):
    """What a callback is told after a chunk: steps done, this chunk's metrics ([steps] or [lanes, steps]), any new evaluation."""

    step: int
    metrics: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray] | None


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
    history: metric -> [steps], NaN after a run diverged.
    evaluation: held-out metric -> number at the end, NaN if it diverged; {} without held-out data.
    evaluations: held-out metric -> [evaluations], after `evaluation_steps` steps.
    diverged_at: the first step whose loss or parameters were not finite, or None.
    seconds, compile_seconds: wall time after compiling, and of compiling.
    """

    state: TrainState
    history: dict[str, np.ndarray]
    evaluation: dict[str, float]
    evaluations: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: int | None
    seconds: float
    compile_seconds: float


def fit(
    model: Model,
    recipe: Recipe,
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    on_chunk: Iterable[Callable[[Progress], None]] = (),
) -> Fitted:
    """Train one recipe; compiles once, whatever its numbers.

    train, evaluate: (inputs [n, ...], targets [n, ...]) or with weights [n] as a third; NumPy or JAX arrays.
    on_chunk: functions called with a `Progress` after each chunk.

    >>> import lossopt_jax as lo, numpy as np
    >>> from flax import linen as nn
    >>> x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    >>> fitted = lo.fit(lo.from_linen(nn.Dense(1)), recipe, train=(x, 3 * x), run=lo.Run(steps=100, batch_size=8))
    >>> bool(fitted.history["loss"][-1] < 1e-3)
    True
    """
    check_recipe(recipe)
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    program = single_program(model, recipe, data, held_out, run)
    outcome = host_loop(program, run, lambda first, count: batch_indices(examples(data), run.batch_size, run.seed, first, count), on_chunk)
    return Fitted(
        state=outcome.carry.state,
        history=outcome.history,
        evaluation={name: float(values[-1]) for name, values in outcome.evaluations.items()},
        evaluations=outcome.evaluations,
        evaluation_steps=evaluation_steps(run),
        diverged_at=None if outcome.diverged_at < 0 else int(outcome.diverged_at),
        seconds=outcome.seconds,
        compile_seconds=program.compile_seconds,
    )


class Program(NamedTuple):
    """Compiled functions of a run or of a sweep; the host loop cannot tell which.

    chunk: (carry, indices, count) -> (carry, metrics [..., chunk]). evaluate: carry -> held-out metrics, or None without data.
    """

    carry: Carry
    chunk: Callable[[Carry, np.ndarray, int], tuple[Carry, dict[str, jax.Array]]]
    evaluate: Callable[[Carry], dict[str, jax.Array]] | None
    compile_seconds: float


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
        jax.block_until_ready(Carry(start(*start_with), jnp.bool_(True))),
        lambda carry, indices, count: chunk(model, recipe, carry, data, indices, count),
        score and (lambda carry: score(model, recipe, carry.state, held_out)),
        time.perf_counter() - started,
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


def evaluation_steps(run: Run) -> np.ndarray:
    """After how many steps the held-out data is looked at, the end always included."""
    return np.unique(
        np.append(np.arange(run.evaluate_every, run.steps, run.evaluate_every) if run.evaluate_every else [], run.steps)
    ).astype(int)


class Outcome(NamedTuple):
    """What the host loop brings home: everything [...] for one run, [lanes, ...] for a sweep.

    history: metric -> [..., steps]. evaluations: held-out metric -> [..., evaluations]. diverged_at: [...], -1 where nothing diverged.
    """

    carry: Carry
    history: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    diverged_at: np.ndarray
    seconds: float


def host_loop(
    program: Program,
    run: Run,
    order: Callable[[int, int], np.ndarray],
    on_chunk: Iterable[Callable[[Progress], None]] = (),
) -> Outcome:
    """The one host loop: feed batch indices by the chunk, pull metrics once a chunk, evaluate when due, tell the callbacks.

    order: (first step, count) -> batch indices of those steps, [..., count, b].
    """
    started = time.perf_counter()
    carry, step, length, due = program.carry, 0, chunk_length(run), evaluation_steps(run)
    diverged_at = np.full(np.shape(carry.alive), -1)
    parts: list[dict[str, np.ndarray]] = []
    evaluations: list[dict[str, np.ndarray]] = []
    while step < run.steps or not parts:
        count = min(length, int(due[due >= step + (run.steps > 0)][0]) - step)
        indices = order(step, count)
        short = [(0, 0)] * (indices.ndim - 2) + [(0, length - count), (0, 0)]
        carry, metrics = program.chunk(carry, np.pad(indices, short), count)
        part = {name: np.asarray(values)[..., :count] for name, values in metrics.items()}
        diverged_at = _first_failure(part.pop("finite"), diverged_at, step)
        parts.append({name: _until(values, diverged_at, step) for name, values in part.items()})
        step += count
        evaluation, over = None, bool((diverged_at >= 0).all())
        if program.evaluate is not None and (step in due or over):
            evaluation = {name: np.where(diverged_at < 0, np.asarray(v), np.nan) for name, v in program.evaluate(carry).items()}
            evaluations.append(evaluation)
        for tell in on_chunk:
            tell(Progress(step, parts[-1], evaluation))
        if over:
            break
    return Outcome(carry, _joined(parts, run.steps), _stacked(evaluations, len(due)), diverged_at, time.perf_counter() - started)


def _joined(parts: list[dict[str, np.ndarray]], steps: int) -> dict[str, np.ndarray]:
    return {name: _filled(np.concatenate([part[name] for part in parts], -1), steps) for name in parts[0]}


def _stacked(evaluations: list[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    return {name: _filled(np.stack([e[name] for e in evaluations], -1), count) for name in (evaluations[0] if evaluations else {})}


def _filled(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])], constant_values=np.nan)


def _first_failure(finite: np.ndarray, diverged_at: np.ndarray, step: int) -> np.ndarray:
    failed = ~finite.all(-1) & (diverged_at < 0)
    return np.where(failed, step + np.argmin(finite, -1), diverged_at) if finite.shape[-1] else diverged_at


def _until(values: np.ndarray, diverged_at: np.ndarray, step: int) -> np.ndarray:
    after = (diverged_at[..., None] >= 0) & (step + np.arange(values.shape[-1]) > diverged_at[..., None])
    return np.where(after, np.nan, values)
