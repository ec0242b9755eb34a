"""Lanes as one compiled program of fixed width, and where each lane lies in it.

A lane has a place: on a device, in a group of `width` places side by side. The groups of a device run in turn, and how many turns is
traced. So one program serves any number of lanes, and when lanes end the others move to the front and the freed time is saved.
"""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .._types import Batch, PyTree
from ..data import examples
from ..hosts import pull, put
from ..loop import Program, Run, chunk_length
from ..models import Model
from ..recipe import Recipe
from ..step import TrainState, init_state
from ..train import Carry, compile_together, evaluate, train_chunk, typed, untyped
from .lanes import LanePlan

Lane = tuple[Recipe, int]
_BACKGROUND = ThreadPoolExecutor(1)


class Lanes(NamedTuple):
    """Lanes as they lie on the devices, each leaf [places, ...].

    numbers: the recipes in the order of the lanes, on the host. places: [places], the lane that lies there, -1 for a copy that fills up.
    turns: [devices], how many groups of each are run.
    """

    carry: Carry
    numbers: Recipe
    recipes: Recipe
    seeds: jax.Array
    places: np.ndarray
    turns: np.ndarray


def lanes_program(
    model: Model,
    lanes: Sequence[Lane],
    data: Batch,
    held_out: Batch | None,
    run: Run,
    plan: LanePlan,
    room: int | None = None,
    seed_room: int = 1,
) -> Program:
    """The program of some lanes, (recipe, seed index) each and all of one structure.

    room: how many lanes it has places for, by default these. seed_room: for at least how many seeds, of which each lane has one. With
    the same as another of its structure it is not compiled again.
    """
    started = time.perf_counter()
    compiled = compiled_for(model, lanes, data, held_out, run, plan, room or len(lanes), seed_room).result()
    devices = compiled.mesh.size
    split, whole = NamedSharding(compiled.mesh, P("lanes")), NamedSharding(compiled.mesh, P())
    data, held_out, keys, inputs = put((data, held_out, _keys(lanes, run, seed_room), _first(data.inputs)), whole)
    drawn, seeds = _stacked([recipe for recipe, _ in lanes]), np.array([seed for _, seed in lanes], np.int32)

    def laid_out(alive: np.ndarray, numbers: Recipe) -> tuple[Recipe, Recipe, jax.Array, np.ndarray, np.ndarray]:
        places, turns = _laid_out(alive, plan, compiled.per_device, devices)
        recipes, own = put(jax.tree.map(lambda leaf: leaf[np.maximum(places, 0)], (numbers, seeds)), split)
        return numbers, recipes, own, places, turns

    def carried(state: TrainState, alive: np.ndarray, places: np.ndarray) -> Carry:
        return Carry(state, put(alive[places] & (places >= 0), split))

    def by_lane(now: Lanes, values: np.ndarray) -> np.ndarray:
        here = (now.places >= 0) & _running(now.turns, plan.width, compiled.per_device)
        out = np.full((len(lanes), *values.shape[1:]), False if values.dtype == bool else np.nan, values.dtype)
        out[now.places[here]] = values[here]
        return out

    def begin() -> Lanes:
        numbers, recipes, own, places, turns = laid_out(np.ones(len(lanes), bool), drawn)
        return Lanes(compiled.begin(put(turns, split), recipes, own, keys, inputs), numbers, recipes, own, places, turns)

    def chunk(now: Lanes, indices: np.ndarray, count: int) -> tuple[Lanes, dict[str, np.ndarray]]:
        turns, order = put(now.turns, split), put(indices, whole)
        carry, metrics = compiled.chunk(turns, now.recipes, now.seeds, now.carry, data, order, count)
        return now._replace(carry=carry), {name: by_lane(now, values) for name, values in pull(metrics).items()}

    def score(now: Lanes) -> dict[str, np.ndarray]:
        assert compiled.score is not None
        scores = compiled.score(put(now.turns, split), now.recipes, now.carry, held_out, examples(held_out))
        return {name: by_lane(now, values) for name, values in pull(scores).items()}

    def load(states: list[np.ndarray], alive: np.ndarray, numbers: Recipe = drawn) -> Lanes:
        numbers, recipes, own, places, turns = laid_out(alive, numbers)
        leaves = put([leaf[np.maximum(places, 0)] for leaf in states], split)
        state = typed(jax.tree.unflatten(jax.tree.structure(compiled.state), leaves))
        return Lanes(carried(state, alive, places), numbers, recipes, own, places, turns)

    def copy(now: Lanes, sources: np.ndarray, recipes: Sequence[Recipe], alive: np.ndarray) -> Lanes:
        numbers, placed, own, places, turns = laid_out(alive, _stacked(recipes))
        state = _gathered(now.carry.state, put(order_of(now)[sources][np.maximum(places, 0)], whole), split)
        return Lanes(carried(state, alive, places), numbers, placed, own, places, turns)

    def keep(now: Lanes, alive: np.ndarray) -> Lanes:
        if alive.any() and _laid_out(alive, plan, compiled.per_device, devices)[1].max() < now.turns.max():
            return load(unload(now), alive, now.numbers)
        marked = alive[now.places] & (now.places >= 0)
        if (pull(now.carry.alive) == marked).all():
            return now
        return now._replace(carry=now.carry._replace(alive=put(marked, split)))

    compile_seconds = time.perf_counter() - started
    return Program(begin, chunk, score if compiled.score else None, keep, unload, load, compile_seconds, copy)


def unload(now: Lanes) -> list[np.ndarray]:
    """The state of every lane on the host, [lanes, ...] in order; random keys as their data."""
    order = order_of(now)
    return [pull(leaf)[order] for leaf in jax.tree.leaves(untyped(now.carry.state))]


def order_of(now: Lanes) -> np.ndarray:
    """[lanes]: the place of each lane."""
    own = np.flatnonzero(now.places >= 0)
    return own[np.argsort(now.places[own])]


def _stacked(recipes: Sequence[Recipe]) -> Recipe:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *recipes)


@functools.partial(jax.jit, static_argnames="sharding")
def _gathered(state: TrainState, index: np.ndarray, sharding: NamedSharding) -> TrainState:
    """The states at `index`, on the device and between devices."""
    return jax.lax.with_sharding_constraint(jax.tree.map(lambda leaf: leaf[index], state), sharding)


def _running(turns: np.ndarray, width: int, per_device: int) -> np.ndarray:
    """[places]: whether the group of a place is run."""
    return (np.arange(per_device) < turns[:, None] * width).ravel()


class Compiled(NamedTuple):
    """A program for any lanes of one structure: per_device places each. state: the shapes of one lane's. bytes: needed on each device."""

    begin: Callable[..., Carry]
    chunk: Callable[..., tuple[Carry, dict[str, jax.Array]]]
    score: Callable[..., dict[str, jax.Array]] | None
    mesh: Mesh
    per_device: int
    state: TrainState
    bytes: int


def compiled_for(
    model: Model, lanes: Sequence[Lane], data: Batch, held_out: Batch | None, run: Run, plan: LanePlan, room: int, seed_room: int = 1
) -> "Future[Compiled]":
    """The program for `room` lanes like these, compiled in the background, once for a structure, its shapes and a plan."""
    shared = jax.eval_shape(lambda *tree: tree, data, held_out, _keys(lanes, run, seed_room), _first(data.inputs))
    recipe = jax.tree.map(lambda number: jax.ShapeDtypeStruct(np.shape(number), jnp.float32), lanes[0][0])
    shapes, structure = jax.tree.flatten((recipe, shared))
    x64 = jnp.zeros(()).dtype == jnp.float64
    return _compiled(model, structure, tuple(shapes), plan, plan.padded(room) // plan.devices, chunk_length(run), run.batch_size, x64)


@functools.lru_cache(maxsize=64)
def _compiled(
    model: Model, structure: Any, shapes: tuple[Any, ...], plan: LanePlan, per_device: int, steps: int, batch_size: int, x64: bool
) -> "Future[Compiled]":
    mesh = mesh_of(plan)
    devices = mesh.devices.tolist()
    split, whole = NamedSharding(mesh, P("lanes")), NamedSharding(mesh, P())

    def over_lanes(
        f: Callable[..., Any], per_lane: int, carried: int | None = None, group: Callable[..., Any] = jax.vmap
    ) -> Callable[..., Any]:
        """`f` of `per_lane` lane arguments and any number of shared ones, over devices, then groups in turn, then side by side.

        carried: which of its arguments is what comes out first, and so is left as it was where a group has no turn.
        group: makes of `f` for a lane one for a group.
        """

        def on_device(turns: jax.Array, *args: Any) -> Any:
            own, shared = args[:per_lane], args[per_lane:]
            grouped = jax.tree.map(lambda leaf: leaf.reshape(len(leaf) // plan.width, plan.width, *leaf.shape[1:]), own)
            results = _in_turn(jax.jit(group(lambda *own: f(*own, *shared))), grouped, turns[0], carried)
            return jax.tree.map(lambda leaf: leaf.reshape(len(leaf) * plan.width, *leaf.shape[2:]), results)

        def everywhere(turns: jax.Array, *args: Any) -> Any:
            specs = (P("lanes"), *(P("lanes") if i < per_lane else P() for i in range(len(args))))
            return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False)(turns, *args)

        return everywhere

    def start(recipe: Recipe, seed: jax.Array, keys: jax.Array, inputs: PyTree) -> Carry:
        return Carry(init_state(model, recipe, keys[seed], inputs), jnp.bool_(True))

    def advance(recipe: Recipe, seed: jax.Array, carry: Carry, data: Batch, indices: jax.Array, count: jax.Array) -> Any:
        return train_chunk(model, recipe, carry, data, indices[seed], count)

    def score(recipe: Recipe, carry: Carry, held_out: Batch, count: jax.Array) -> dict[str, jax.Array]:
        return evaluate(model, recipe, carry.state, held_out, count)

    def of_lanes(tree: Any) -> Any:
        many = len(devices) * per_device
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct((many, *s.shape), s.dtype, sharding=split), tree)

    recipe, shared = jax.tree.unflatten(structure, shapes)
    data, held_out, keys, inputs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), shared)
    carry = jax.eval_shape(start, recipe, jax.ShapeDtypeStruct((), jnp.int32), keys, inputs)
    turns = jax.ShapeDtypeStruct((len(devices),), jnp.int32, sharding=split)
    indices = jax.ShapeDtypeStruct((len(keys), steps, batch_size), jnp.int32, sharding=whole)
    recipes, seeds, carries = of_lanes(recipe), of_lanes(jax.ShapeDtypeStruct((), jnp.int32)), of_lanes(carry)
    # A batch of QR decompositions (orthogonal initialisers) on two CPU devices at once can wait for ever for XLA's threads (jaxlib 0.10).
    starts = _one_by_one if devices[0].platform == "cpu" else jax.vmap
    lowered = (  # here, since what is set for this thread decides what is traced
        jax.jit(over_lanes(start, 2, group=starts), out_shardings=split).lower(turns, recipes, seeds, keys, inputs),
        jax.jit(over_lanes(advance, 3, carried=2), donate_argnums=3, out_shardings=split).lower(
            turns, recipes, seeds, carries, data, indices, 0
        ),
        held_out and jax.jit(over_lanes(score, 2)).lower(turns, recipes, carries, held_out, 0),
    )

    def compile() -> Compiled:
        begin, chunk, scores = compile_together(*lowered)
        return Compiled(begin, chunk, scores, mesh, per_device, carry.state, _bytes(chunk))

    return _BACKGROUND.submit(compile)


def mesh_of(plan: LanePlan) -> Mesh:
    """The devices that a program is compiled for."""
    if jax.process_count() > 1:  # those that the plan leaves out stand by, or their processes could not take part
        return Mesh(np.array(jax.devices()), ("lanes",))
    # With a single device XLA leaves out its partitioner, and other passes give other last bits: a second device stands by, idle.
    return Mesh(np.array(jax.devices()[: max(plan.devices, min(2, len(jax.devices())))]), ("lanes",))


def _bytes(program: Any) -> int:
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    parts = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(parts)


def _keys(lanes: Sequence[Lane], run: Run, least: int) -> jax.Array:
    return jnp.stack([jax.random.key(run.seed + s) for s in range(max(least, *(seed + 1 for _, seed in lanes)))])


def _first(inputs: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:1], inputs)


def _laid_out(alive: np.ndarray, plan: LanePlan, per_device: int, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """The lane in each place and the turns of each device: the living in as few groups as hold them, spread over the plan's devices."""
    living, rest = np.flatnonzero(alive), np.flatnonzero(~alive)
    groups = -(-len(living) // plan.width)
    turns = np.array([groups // plan.devices + (d < groups % plan.devices) for d in range(plan.devices)] + [0] * (devices - plan.devices))
    running = _running(turns, plan.width, per_device)
    places = np.full(devices * per_device, -1)
    places[np.flatnonzero(running)[: len(living)]] = living
    places[np.flatnonzero(~running)[: len(rest)]] = rest[: (~running).sum()]
    left = rest[(~running).sum() :]  # the ended that find no place but in a group that runs: there they are frozen
    places[np.flatnonzero(places < 0)[: len(left)]] = left
    return places, turns.astype(np.int32)


def _in_turn(f: Callable[..., Any], groups: tuple[Any, ...], turns: jax.Array, carried: int | None) -> Any:
    """`f` of each of the first `turns` groups, one after another; of the groups after them `carried` stays as it is.

    `turns` is traced: a loop of one turn would otherwise be compiled away and its program, so the last bits of a lane, would depend on
    how many lanes there are. `f` is jitted, so that it is traced once.
    """

    def at(i: Any, results: Any) -> Any:
        now = groups if carried is None else (*groups[:carried], results[0], *groups[carried + 1 :])
        return f(*jax.tree.map(lambda leaf: leaf[i], now))

    room = len(jax.tree.leaves(groups)[0])
    results = None if carried is None else (groups[carried],)
    results = jax.tree.map(lambda s: _empty((room, *s.shape), s.dtype), jax.eval_shape(lambda: at(0, results)))
    results = results if carried is None else (groups[carried], *results[1:])
    body = lambda i, results: jax.tree.map(lambda all, one: all.at[i].set(one), results, at(i, results))  # noqa: E731
    return jax.lax.fori_loop(0, turns, body, results)


def _one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jax.lax.map(lambda one: f(*one), args)


def _empty(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape)
    return jnp.zeros(shape, dtype)
