"""A run is a loop of `train_step`: chunks of it as one compiled function, fed by the host loop."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._types import Batch
from .checkpoint import same_run
from .data import as_batch, batch_indices, examples, pieces, take
from .loop import Callbacks, Program, Run, chunk_length, evaluation_steps, host_loop, kept_start
from .models import Apply, Model
from .products import with_products_along
from .recipe import Recipe
from .reduce import Total, mean
from .step import TrainState, check_recipe, eval_step, init_state, train_step

EVALUATION_BATCH = 1024
PACKED_BYTES = 2**17  # of parameters that are gathered into one vector
# On x86 LLVM prefers vectors of 256 bits; the wider ones save a seventh of a sweep's time where the machine has AVX-512.
STEP_OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
# Drawing the parameters runs once, and its random bits take longer to optimise than to compute.
START_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


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
    model, packed, unpacked = _packed(model, recipe, carry.state)

    step = partial(train_step, model, recipe)
    step = with_products_along(step) if jax.default_backend() == "cpu" else step

    @jax.jit  # traced once for the shapes and the loop
    def one(state: TrainState, i: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return step(state, take(data, indices[i]))

    shapes = jax.eval_shape(one, packed, jnp.int32(0))[1]
    buffers = {name: jnp.zeros((len(indices), *s.shape), s.dtype) for name, s in shapes.items()}

    def body(i: jax.Array, loop: tuple[TrainState, dict[str, jax.Array], jax.Array]) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
        state, history, alive = loop
        state, metrics = one(state, i)
        return state, {name: history[name].at[i].set(metrics[name]) for name in history}, alive & metrics["finite"]

    state, history, alive = jax.lax.fori_loop(0, count, body, (packed, buffers, carry.alive))
    kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), unpacked(state)._replace(key=None), carry.state._replace(key=None))
    return Carry(kept._replace(key=carry.state.key), alive), history


def _packed(model: Model, recipe: Recipe, state: TrainState) -> tuple[Model, TrainState, Callable[[TrainState], TrainState]]:
    """The state with its parameters as one vector, and so all that the optimizer keeps of each; a model for it; and the way back.

    A small network's step is mostly the start of many short operations: one update of a vector takes the place of one of each array.
    Where the optimizer does not treat each number by itself, or the copies would cost more than that, all is as it was.
    """
    leaves = jax.tree.leaves(state.params)
    structure: Any = jax.tree.structure(state.params)

    def like_params(tree: Any) -> bool:
        return bool(jax.tree.structure(tree) == structure)

    kept = [tree for tree in jax.tree.leaves(state.opt_state, is_leaf=like_params) if like_params(tree)]
    alike = getattr(recipe.optimizer.fn, "elementwise", None) is recipe.optimizer.fn and recipe.optimizer.options.get("mask") is None
    alike = alike and len({x.dtype for x in leaves}) == 1 < len(leaves)
    alike = alike and all(jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, state.params) for tree in kept)
    if not alike or sum(x.nbytes for x in leaves) > PACKED_BYTES:
        return model, state, lambda state: state
    vector, unravel = ravel_pytree(state.params)

    def unpacked(packed: TrainState) -> TrainState:
        opt_state = jax.tree.map(
            lambda old, new: unravel(new) if like_params(old) else new, state.opt_state, packed.opt_state, is_leaf=like_params
        )
        return packed._replace(params=unravel(packed.params), opt_state=opt_state)

    opt_state = jax.tree.map(lambda tree: ravel_pytree(tree)[0] if like_params(tree) else tree, state.opt_state, is_leaf=like_params)
    apply: Apply = lambda params, *args, **kwargs: model.apply(unravel(params), *args, **kwargs)  # noqa: E731
    return model._replace(apply=apply), state._replace(params=vector, opt_state=opt_state), unpacked


def evaluate(model: Model, recipe: Recipe, state: TrainState, data: Batch, count: jax.Array) -> dict[str, jax.Array]:
    """Held-out means over the `count` pieces [k, m, ...] of data (see `data.pieces`): exact, since pairs are added, never means.

    count: traced, as that of `train_chunk`.
    """

    def of_piece(i: Any) -> dict[str, Total]:
        # The choice is none, but XLA would take all of one piece out of the loop, and then what lies around it, such as how many lanes
        # there are, reaches into the last bits.
        return eval_step(model, recipe, state, jax.tree.map(lambda leaf: jnp.where(i < count, leaf[i], 0).astype(leaf.dtype), data))

    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(of_piece, 0))
    totals = jax.lax.fori_loop(0, count, lambda i, so_far: jax.tree.map(jnp.add, so_far, of_piece(i)), start)
    return {name: mean(total) for name, total in totals.items()}


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
        held_out and jax.jit(evaluate).lower(model, recipe, state, held_out, 0),
    )
    return Program(
        begin=lambda: Carry(start(*start_with), jnp.bool_(True)),
        chunk=lambda carry, indices, count: chunk(model, recipe, carry, data, indices, count),
        evaluate=score and (lambda carry: score(model, recipe, carry.state, held_out, examples(held_out))),
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


def untyped(state: TrainState) -> TrainState:
    """The state with its random key as plain numbers, as files hold it."""
    return state._replace(key=jax.random.key_data(state.key))


def typed(state: TrainState) -> TrainState:
    """The state that `untyped` was given."""
    return state._replace(key=jax.random.wrap_key_data(state.key))
