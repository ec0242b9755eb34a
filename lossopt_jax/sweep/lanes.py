"""Where lanes run: over how many devices, how many side by side on each, the rest in turn."""

import math
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
    if not 1 <= plan.devices <= here or plan.width < 1:
        raise ValueError(
            f"plan: devices must be 1 to {here} (what JAX sees here) and width at least 1, got devices={plan.devices}, width={plan.width}"
        )
    return plan


def default_plan(model: Model, inputs: PyTree, lanes: int) -> LanePlan:
    """Every device; on an accelerator wide, on CPU 8 side by side, or 1 where the model convolves. inputs: [n, ...], any n.

    Measured on two cores: an MLP's lane-step takes about as long at any width from 4 to 16, while a vmapped convolution becomes a
    grouped one, which on CPU is slower the wider it is (936 us at width 1, 2037 at 8).
    """
    devices = min(len(jax.devices()), lanes)
    width = ACCELERATOR_WIDTH
    if jax.default_backend() == "cpu":
        width = 1 if _convolves(model, inputs) else CPU_WIDTH
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
    of each lane's state."""

    def start(inputs: PyTree) -> PyTree:
        return init_state(model, recipe, jax.random.key(0), inputs)

    state = jax.eval_shape(start, jax.tree.map(lambda leaf: leaf[:1], data.inputs))
    one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    most = max(1, max(plan.width, int(0.5 * free_bytes() / (2 * one))) * plan.devices // seeds)
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


def _convolves(model: Model, inputs: PyTree) -> bool:
    def forward(inputs: PyTree) -> PyTree:
        key = jax.random.key(0)
        params, model_state = model.init(key, inputs)
        return model.apply(params, model_state, inputs, key=key, train=False)[0]

    return "conv_general_dilated" in str(jax.make_jaxpr(forward)(jax.tree.map(lambda leaf: leaf[:1], inputs)))
