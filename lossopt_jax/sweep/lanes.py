"""Where lanes run: over how many devices, how many side by side on each, the rest in turn."""

import math
from typing import NamedTuple

import jax

from .._types import PyTree
from ..models import Model

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


def _convolves(model: Model, inputs: PyTree) -> bool:
    def forward(inputs: PyTree) -> PyTree:
        key = jax.random.key(0)
        params, model_state = model.init(key, inputs)
        return model.apply(params, model_state, inputs, key=key, train=False)[0]

    return "conv_general_dilated" in str(jax.make_jaxpr(forward)(jax.tree.map(lambda leaf: leaf[:1], inputs)))
