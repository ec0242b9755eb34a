"""Where lanes run: over how many devices, how many side by side on each, the rest in turn."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._types import Batch, PyTree
from ..hosts import from_first
from ..models import Model
from ..recipe import Recipe
from ..step import check_recipe, init_state
from .trials import Trials

CPU_WIDTH = 8
LARGE = 2**18  # bytes
ACCELERATOR_WIDTH = 256


class LanePlan(NamedTuple):
    """devices: how many share the lanes. width: lanes side by side (`vmap`) on each; the rest follow in turn (`lax.map`)."""

    devices: int
    width: int

    def padded(self, lanes: int) -> int:
        """The lanes the program has room for: the least multiple of devices * width that holds them."""
        return math.ceil(lanes / (self.devices * self.width)) * self.devices * self.width

    def __str__(self) -> str:
        side = f"{self.width} lane{'s' * (self.width > 1)} side by side"
        return f"{self.devices} {jax.default_backend()} device{'s' * (self.devices > 1)} x {side}"


def checked_plan(plan: LanePlan) -> LanePlan:
    """The plan itself, or a ValueError where this machine has not that many devices."""
    here = len(jax.devices())
    if not isinstance(plan, LanePlan) or not all(isinstance(number, int | np.integer) for number in plan[:2]):
        raise TypeError(f"plan must be a lo.LanePlan(devices, width) of whole numbers, got {plan!r}")
    if not 1 <= plan.devices <= here or plan.width < 1:
        raise ValueError(
            f"plan: devices must be 1 to {here} (what JAX sees here) and width at least 1, got devices={plan.devices}, width={plan.width}"
        )
    return plan


def default_plan(model: Model, inputs: PyTree, batch_size: int, lanes: int) -> LanePlan:
    """Every device; on an accelerator wide, on CPU 8 side by side, or 1 where a batch becomes large on its way. inputs: [n, ...], any n.

    Measured on two cores, in us a lane-step at widths 1 and 8: MLP of 64 with batches of 64 46 and 38, GRU 767 and 197, all with little
    in hand; with an array of 256 KiB or more on the way CNN 267 and 342, MLP of 256 with batches of 1,024 3,665 and 4,475, U-Net 1,611
    and 3,177, transformer 5,756 and 8,554. A vmapped convolution becomes a grouped one, which on CPU is slower at any size.
    """
    devices = min(len(jax.devices()), lanes)
    width = ACCELERATOR_WIDTH
    if jax.default_backend() == "cpu":
        width = 1 if _is_large(model, inputs, batch_size) else CPU_WIDTH
    return LanePlan(devices, min(width, math.ceil(lanes / devices)))


def by_structure(trials: Trials) -> list[list[int]]:
    """The indices of the trials that share a program, one structure after another."""
    groups: dict[Any, list[int]] = {}
    for i, recipe in enumerate(trials.recipes):
        check_recipe(recipe)
        shapes = tuple(np.shape(number) for number in jax.tree.leaves(recipe))  # boundaries of another count are another program too
        groups.setdefault((jax.tree.structure(recipe), shapes, tuple(trials.structure(i).items())), []).append(i)
    return list(groups.values())


def lanes_at_once(model: Model, recipe: Recipe, trials: int, seeds: int, data: Batch, plan: LanePlan) -> int:
    """How many lanes of `trials` x `seeds` run in a wave: all, or even parts that take at most half of the free memory at two copies
    of each lane's state. ValueError for a plan whose lanes side by side take more than there is."""

    def start(inputs: PyTree) -> PyTree:
        return init_state(model, recipe, jax.random.key(0), inputs)

    state = jax.eval_shape(start, jax.tree.map(lambda leaf: leaf[:1], data.inputs))
    one = 2 * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    free = free_bytes()
    if plan.width > 1 and plan.width * one > free:
        raise ValueError(
            f"plan: the states of {plan.width} lanes side by side take {plan.width * one / 1e9:.3g} GB on a device, of which "
            f"{free / 1e9:.3g} are free: take a width of at most {max(1, int(0.5 * free / one))}"
        )
    most = max(1, max(plan.width, int(0.5 * free / one)) * plan.devices // seeds)
    return -(-trials // -(-trials // most)) * seeds


def free_bytes() -> float:
    """Memory that is free on each device; on CPU its share of the machine's, or of the container's limit. Of several hosts the first's."""
    return from_first(_free_bytes)


def _free_bytes() -> float:
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return float(stats.get("bytes_limit", 4e9) - stats.get("bytes_in_use", 0))
    free = 4e9  # where the system does not say
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free / jax.local_device_count()


def _is_large(model: Model, inputs: PyTree, batch_size: int) -> bool:
    """Whether a batch has `LARGE` bytes, or the model makes an array of so many from it, or convolves."""

    def forward(inputs: PyTree, params: PyTree, model_state: PyTree) -> PyTree:
        return model.apply(params, model_state, inputs, key=jax.random.key(0), train=False)[0]

    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), inputs)
    jaxpr = jax.make_jaxpr(forward)(batch, *jax.eval_shape(model.init, jax.random.key(0), batch)).jaxpr
    count = len(jax.tree.leaves(batch))
    made = list(_made_from(jaxpr, [True] * count + [False] * (len(jaxpr.invars) - count)))
    arrays = [out.aval for eqn in made for out in eqn.outvars if hasattr(out.aval, "dtype")] + jax.tree.leaves(batch)
    convolves = any(eqn.primitive.name == "conv_general_dilated" for eqn in made)
    return convolves or any(array.size * array.dtype.itemsize >= LARGE for array in arrays)


def _made_from(jaxpr: Any, given: Sequence[bool]) -> Iterator[Any]:
    """The equations, those of inner functions too, whose results depend on the arguments that are marked."""
    made = {id(var) for var, yes in zip(jaxpr.invars, given, strict=True) if yes}
    for eqn in jaxpr.eqns:
        into = [id(var) in made for var in eqn.invars]
        if any(into):
            made |= {id(var) for var in eqn.outvars}
            yield eqn
            for part in jax.tree.leaves(list(eqn.params.values())):
                inner: Any = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from _made_from(inner, into if len(into) == len(inner.invars) else [True] * len(inner.invars))
