"""The vocabulary every other file is written in: annotations, the batch, and the contracts on shapes and dtypes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# `bind` looks for these two by identity: a keyword-only parameter that carries one is a traced number, any other is structure.
Scalar = Annotated[float | jax.Array, "a hyper-parameter"]
Vector = Annotated[float | jax.Array | Sequence[float], "a vector of hyper-parameters"]

PyTree: TypeAlias = Any
Params: TypeAlias = Any
Schedule: TypeAlias = Callable[[ArrayLike], jax.Array]


class Batch(NamedTuple):
    """What one step sees.

    inputs: [b, ...], whatever the model takes (an array or a pytree of arrays).
    targets: [b, ...], whatever the loss takes.
    weights: None (all ones), [b], or the shape of the loss's values; 0 masks an example out.
    """

    inputs: PyTree
    targets: PyTree
    weights: Any = None


def check_same_shape(outputs: jax.Array, targets: jax.Array, *, loss: str) -> None:
    """Raise ValueError unless both shapes are equal: (n,) against (n, 1) would broadcast to (n, n) unseen."""
    if jnp.shape(outputs) != jnp.shape(targets):
        raise ValueError(
            f"{loss}: outputs and targets must have the same shape, got outputs {jnp.shape(outputs)} and targets {jnp.shape(targets)}"
        )


def to_float32(x: ArrayLike | Sequence[float]) -> jax.Array:
    """`x` in float32, or as it is in float64: half precision is widened before any arithmetic, float64 stays exact."""
    # A whole number of NumPy's beyond 32 bits would be cut on its way.
    x = jnp.asarray(x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.kind in "iu" else x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def as_array(x: Any, *, what: str) -> jax.Array:
    """`x` as JAX has it, if it `check_fits`."""
    check_fits(x, what=what)
    return jnp.asarray(x)


def check_fits(x: Any, *, what: str) -> None:
    """ValueError for a whole number that JAX's 32 bits would cut into another one, such as the label that NumPy makes of a NaN."""
    if isinstance(x, jax.Array) or jax.dtypes.canonicalize_dtype(np.int64) == np.int64:
        return
    given = np.asarray(x)
    if given.dtype.kind in "iu" and given.dtype.itemsize >= 4:
        far = (given > 2**31 - 1) | (given < -(2**31))
        if far.any():
            raise ValueError(
                f"{what}: {given[far].flat[0]} does not fit into the 32 bits that JAX keeps of whole numbers; amounts may be floats"
            )


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` with every leaf in the dtype of the same leaf of `like`, so that a `lax.scan` carry keeps its dtypes."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), tree, like)
