"""The sweep: recipes of one structure are lanes of one compiled program, chunk by chunk through the same host loop as a single run."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .._types import Batch, PyTree
from ..data import as_batch, batch_indices, examples, pieces
from ..models import Model
from ..recipe import Recipe
from ..step import check_recipe, init_state
from ..train import (
    EVALUATION_BATCH,
    Carry,
    Outcome,
    Program,
    Progress,
    Run,
    chunk_length,
    compile_together,
    evaluate,
    evaluation_steps,
    host_loop,
    train_chunk,
)
from .lanes import LanePlan, checked_plan, default_plan
from .result import Swept
from .spaces import Trials


def sweep(
    model: Model,
    trials: Trials | Sequence[Recipe],
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    seeds: int = 1,
    plan: LanePlan | None = None,
    on_chunk: Iterable[Callable[[Progress], None]] = (),
) -> Swept:
    """Train every recipe, as lanes of one program; each lane gives what `fit` gives for its recipe alone.

    trials: from `sample` or `grid`, or any recipes; those of one structure share a program, each further structure compiles its own.
    train, evaluate, run, on_chunk: as in `fit`; a callback sees metrics [lanes, steps] of the structure that is running.
    seeds: every recipe runs under `run.seed` ... `run.seed + seeds - 1` (parameters, data order, dropout), recipe by recipe.
    plan: how lanes lie on devices; None chooses (see `default_plan`). On CPU call
    `jax.config.update("jax_num_cpu_devices", cores)` before anything else of JAX, and every core becomes a device.

    A lane that diverges is flagged with the step and changes no bit of another.
    """
    trials = trials if isinstance(trials, Trials) else Trials(tuple(trials), {})
    if not len(trials) or seeds < 1:
        raise ValueError(f"sweep needs at least one trial and one seed, got {len(trials)} trials and seeds={seeds}")
    data = as_batch(train, "train")
    held_out = None if evaluate is None else pieces(as_batch(evaluate, "evaluate"), EVALUATION_BATCH)
    groups: dict[Any, list[int]] = {}
    for i, recipe in enumerate(trials.recipes):
        check_recipe(recipe)
        shapes = tuple(np.shape(number) for number in jax.tree.leaves(recipe))  # boundaries of another count are another program too
        groups.setdefault((jax.tree.structure(recipe), shapes), []).append(i)
    order = partial(_orders, examples(data), run, seeds)
    outcomes, programs, plans = [], [], []
    for members in groups.values():
        lanes = [(trials.recipes[i], seed) for i in members for seed in range(seeds)]
        chosen = checked_plan(plan or default_plan(model, data.inputs, len(lanes)))
        program = lanes_program(model, lanes, data, held_out, run, chosen)
        outcomes.append(_without_padding(host_loop(program, run, order, on_chunk), len(lanes)))
        programs.append(program)
        plans.append(chosen)
    lane = np.concatenate([np.repeat(members, seeds) * seeds + np.tile(np.arange(seeds), len(members)) for members in groups.values()])
    back = np.argsort(lane)
    places = [(group, i) for group, o in enumerate(outcomes) for i in range(len(o.diverged_at))]
    return Swept(
        trials=trials,
        seeds=seeds,
        history=_together([o.history for o in outcomes], back),
        evaluations=_together([o.evaluations for o in outcomes], back),
        evaluation_steps=evaluation_steps(run),
        diverged_at=np.concatenate([o.diverged_at for o in outcomes])[back],
        places=[places[i] for i in back],
        states=[o.carry.state for o in outcomes],
        plan=plans[0],
        seconds=sum(o.seconds for o in outcomes),
        compile_seconds=sum(p.compile_seconds for p in programs),
    )


def lanes_program(
    model: Model, lanes: Sequence[tuple[Recipe, int]], data: Batch, held_out: Batch | None, run: Run, plan: LanePlan
) -> Program:
    """The compiled program of some lanes, (recipe, seed index) each and all of one structure; padded with copies of the first."""
    started = time.perf_counter()
    inputs = jax.tree.map(lambda leaf: leaf[:1], data.inputs)
    lanes = [*lanes, *[lanes[0]] * (plan.padded(len(lanes)) - len(lanes))]
    mesh = Mesh(np.array(jax.devices()[: plan.devices]), ("lanes",))
    split, whole = NamedSharding(mesh, P("lanes")), NamedSharding(mesh, P())
    recipes = jax.tree.map(lambda *numbers: np.stack([np.asarray(n, np.float32) for n in numbers]), *[recipe for recipe, _ in lanes])
    seed = np.array([s for _, s in lanes], np.int32)
    recipes, seed = jax.device_put((recipes, seed), split)
    data, held_out = jax.device_put((data, held_out), whole)

    turns = jnp.int32(len(lanes) // (plan.devices * plan.width))

    def over_lanes(f: Callable[..., Any], per_lane: int) -> Callable[..., Any]:
        """`f` of `per_lane` lane arguments and any number of shared ones, over devices, then groups in turn, then side by side."""

        def on_device(turns: jax.Array, *args: Any) -> Any:
            own, shared = args[:per_lane], args[per_lane:]
            grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, plan.width, *leaf.shape[1:]), own)
            results = _in_turn(jax.jit(jax.vmap(lambda *own: f(*own, *shared))), grouped, turns)
            return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

        def everywhere(turns: jax.Array, *args: Any) -> Any:
            specs = (P(), *(P("lanes") if i < per_lane else P() for i in range(len(args))))
            return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False)(turns, *args)

        return everywhere

    def start(recipe: Recipe, seed: jax.Array, keys: jax.Array, inputs: PyTree) -> Carry:
        return Carry(init_state(model, recipe, keys[seed], inputs), jnp.bool_(True))

    def advance(recipe: Recipe, seed: jax.Array, carry: Carry, data: Batch, indices: jax.Array, count: jax.Array) -> Any:
        return train_chunk(model, recipe, carry, data, indices[seed], count)

    seeds = max(s for _, s in lanes) + 1
    start_with = jax.device_put((jnp.stack([jax.random.key(run.seed + s) for s in range(seeds)]), inputs), whole)
    shapes = jax.eval_shape(over_lanes(start, 2), turns, recipes, seed, *start_with)
    carry = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split), shapes)
    indices = jax.ShapeDtypeStruct((seeds, chunk_length(run), run.batch_size), jnp.int32, sharding=whole)
    begin, chunk, score = compile_together(
        jax.jit(over_lanes(start, 2)).lower(turns, recipes, seed, *start_with),
        jax.jit(over_lanes(advance, 3), donate_argnums=3).lower(turns, recipes, seed, carry, data, indices, 0),
        held_out and jax.jit(over_lanes(partial(_score, model), 2)).lower(turns, recipes, carry, held_out),
    )
    return Program(
        jax.block_until_ready(begin(turns, recipes, seed, *start_with)),
        lambda carry, indices, count: chunk(turns, recipes, seed, carry, data, jax.device_put(indices, whole), count),
        score and (lambda carry: score(turns, recipes, carry, held_out)),
        time.perf_counter() - started,
    )


def _in_turn(f: Callable[..., Any], groups: tuple[Any, ...], turns: jax.Array) -> Any:
    """`f` of each group, one after another. `turns`, their number, is traced: a loop of one turn would otherwise be compiled away and
    its program, so the last bits of a lane, would depend on how many lanes there are. `f` is jitted, so that it is traced once."""

    def at(i: Any) -> tuple[Any, ...]:
        return jax.tree.map(lambda leaf: leaf[i], groups)

    room = len(jax.tree.leaves(groups)[0])
    results = jax.tree.map(lambda s: _empty((room, *s.shape), s.dtype), jax.eval_shape(lambda: f(*at(0))))
    return jax.lax.fori_loop(0, turns, lambda i, results: jax.tree.map(lambda all, one: all.at[i].set(one), results, f(*at(i))), results)


def _empty(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape)
    return jnp.zeros(shape, dtype)


def _score(model: Model, recipe: Recipe, carry: Carry, held_out: Batch) -> dict[str, jax.Array]:
    return evaluate(model, recipe, carry.state, held_out)


def _orders(n: int, run: Run, seeds: int, first: int, count: int) -> np.ndarray:
    return np.stack([batch_indices(n, run.batch_size, run.seed + s, first, count) for s in range(seeds)])


def _together(parts: Sequence[dict[str, np.ndarray]], back: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of all structures, lanes in order; NaN where a structure has no such number."""
    names = dict.fromkeys(name for part in parts for name in part)
    shapes = [next(iter(part.values())).shape for part in parts if part]
    whole = {name: [part.get(name, np.full(shape, np.nan)) for part, shape in zip(parts, shapes, strict=False)] for name in names}
    return {name: np.concatenate(values)[back] for name, values in whole.items()}


def _without_padding(outcome: Outcome, lanes: int) -> Outcome:
    """The outcome without the copies that filled the last group; the state is not cut, since that would copy it."""
    return outcome._replace(
        history={name: values[:lanes] for name, values in outcome.history.items()},
        evaluations={name: values[:lanes] for name, values in outcome.evaluations.items()},
        diverged_at=outcome.diverged_at[:lanes],
    )
