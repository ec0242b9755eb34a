"""Which parameters decay."""

from typing import Any

import jax
import jax.numpy as jnp

from .._types import Params, PyTree


def decay_matrices_only(params: Params) -> PyTree:
    """True for the leaves that weight decay should shrink: two or more dimensions, and not named bias or scale.

    Decay on biases and on the gains of normalisation layers costs accuracy (He et al. 2019, arXiv:1812.01187). Give it as `mask=` to any
    optimizer here that decays weights. It reads the last part of each leaf's path, in Linen dicts, NNX pure dicts and NNX states
    (whose paths end in `.value`).

    >>> decay_matrices_only({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
    {'bias': False, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        return jnp.ndim(leaf) >= 2 and _name(path) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def _name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    while len(parts) > 1 and parts[-1] in ("value", "raw_value"):
        parts.pop()
    return parts[-1] if parts else ""
