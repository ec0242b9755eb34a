"""The one reduction: values and weights become an additive pair, so a mean over pieces is the mean over the whole.

    total = sum_i w_i v_i,   weight = sum_i w_i,   mean = total / weight   (0 where the weight is 0)

Pairs add over masks, ragged micro-batches, devices (`lax.psum`) and hosts; means do not.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._types import PyTree, to_float32


class Total(NamedTuple):
    """A weighted sum and the weight behind it; add two with `add`, read with `mean`."""

    total: jax.Array
    weight: jax.Array


def weighted_total(values: jax.Array, weights: jax.Array | None = None) -> Total:
    """Sum of weights * values and sum of weights, in float32.

    values: [b, ...]; weights: None (ones), [b] or any leading part of the values' shape.
    A value under a weight of 0 counts for nothing, NaN included.

    >>> import jax.numpy as jnp
    >>> mean(add(weighted_total(jnp.array([1.0, 2.0])), weighted_total(jnp.array([6.0, jnp.nan]), jnp.array([1.0, 0.0]))))
    Array(3., dtype=float32)
    """
    values = to_float32(values)
    if weights is None:
        return Total(values.sum(), jnp.full((), values.size, values.dtype))
    weights = _broadcast_leading(to_float32(weights), values.shape, "values").astype(values.dtype)
    return Total(jnp.where(weights != 0, values * weights, 0).sum(), weights.sum())


def add(first: Total, *others: Total) -> Total:
    """The pair of all the pieces together."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


def mean(pair: Total) -> jax.Array:
    """total / weight, and 0 (with gradient 0) where nothing counted."""
    counted = pair.weight != 0
    return jnp.where(counted, pair.total / jnp.where(counted, pair.weight, 1), 0)


def loss_total(loss: Callable[..., jax.Array], outputs: PyTree, targets: PyTree, weights: jax.Array | None = None) -> Total:
    """The pair of a loss over a batch: what is masked is made safe before the loss, since a mask after it leaves NaN gradients.

    A loss may say by its `weigh(targets, **its numbers)` how much each example counts (0 where the label is to be ignored, the
    class weight where there are any): that multiplies `weights` in the denominator; the loss has it in its values already.
    """
    if weights is not None:
        ignored = getattr(loss, "options", {}).get("ignore_index", 0)  # where the loss has a label for it, no other class is named
        outputs = jax.tree.map(lambda x: masked(x, weights), outputs)
        targets = jax.tree.map(lambda x: masked(x, weights, ignored), targets)
    values = loss(outputs, targets)
    if jnp.ndim(values) == 0:
        raise ValueError("a loss returns one value per example, [b, ...]; this one returned a single number, so it averages by itself")
    own = own_weights(loss, targets)
    if own is None:
        return weighted_total(values, weights)
    own = _broadcast_leading(to_float32(own), values.shape, "values")
    return Total(weighted_total(values, weights).total, weighted_total(own, weights).total)


def hits_total(hits: jax.Array, own: jax.Array | None, weights: jax.Array | None = None) -> Total:
    """The pair of a metric such as accuracy: what the loss ignores does not count, what it counts is not weighted by class."""
    if own is not None and own.shape == hits.shape:
        counted = (own != 0).astype(jnp.float32)
        weights = counted if weights is None else counted * _broadcast_leading(to_float32(weights), hits.shape, "hits")
    return weighted_total(hits, weights)


def masked(x: jax.Array, weights: jax.Array, label: int = 0) -> jax.Array:
    """`x` [b, ...] with 0, or `label` where it holds integers, wherever the weight is 0.

    weights: [b], or the shape of `x` with or without its last axis. Of any other shape only examples without any weight are masked,
    since which axes it shares with `x` cannot be told.
    """
    x, keep = jnp.asarray(x), jnp.asarray(weights) != 0
    if keep.shape not in (x.shape, x.shape[:-1]):
        keep = keep.any(tuple(range(1, keep.ndim)))
    fill = label if jnp.issubdtype(x.dtype, jnp.integer) else 0
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, jnp.asarray(fill, x.dtype))


def own_weights(loss: Callable[..., jax.Array], targets: PyTree) -> jax.Array | None:
    """How much each example counts by the loss's own `weigh`; None where it has none, so all count alike."""
    fn = getattr(loss, "fn", loss)
    weigh = getattr(fn, "weigh", None)
    if weigh is None:
        return None
    bound = {**getattr(loss, "hparams", {}), **getattr(loss, "options", {})}
    accepted = weigh.__kwdefaults__ or {}
    return weigh(targets, **{name: value for name, value in bound.items() if name in accepted})


def _broadcast_leading(weights: jax.Array, shape: tuple[int, ...], what: str) -> jax.Array:
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(f"weights {weights.shape} must be a leading part of the shape of the {what}, {shape}")
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)
