"""Losses made of losses: a weighted sum over the same outputs, and sums over tasks, with weights given or learned.

Parts may have values of different shapes (Dice [b, c], cross-entropy [b, h, w]). One rule: parts whose values all have the same
shape are added value by value; of any others each part is averaged within the example over what it counts there, to [b].
An example counts in the mean what its parts count it on average in the first case (so two parts of the same class weights keep the
mean over the weights' sum), and 1, or 0 where no part counts anything of it, in the second (there class weights multiply and do not
divide, as in `dice_cross_entropy`). Both are additive, so the mean stays exact over masks and micro-batches.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .._types import PyTree, Scalar, to_float32
from ..reduce import bound_values, fit_own, own_weights
from ._labels import is_labels, signed, weighed_by

__all__ = ["uncertainty_weighted", "weighted_sum", "weighted_tasks"]

Loss: TypeAlias = Callable[..., jax.Array]


def _weigh_sum(targets: PyTree, *, losses: Sequence[Loss] = (), ignore_index: int = -100) -> jax.Array | None:
    counts = [_weigh_part(loss, targets, ignore_index) for loss in losses]
    known = [own for own in counts if own is not None]
    if known and _alike(counts):
        return (sum(known[1:], known[0]) + (len(counts) - len(known))) / len(counts)
    return _anything_counts(counts)


@weighed_by(_weigh_sum)  # type: ignore[arg-type]
def weighted_sum(
    outputs: PyTree, targets: PyTree, *, losses: Sequence[Loss], weights: Sequence[Scalar], ignore_index: int = -100
) -> jax.Array:
    """Sum over parts k of weights_k * losses_k(outputs, targets), of values of one shape -> that shape, else of their means -> [b].

    losses: bound losses, or functions; not those over the whole batch (`batch_dice`). weights: a number each.
    ignore_index: the label that counts for nothing, default -100; parts that have one must have the same, and from a part that knows
    none (`binary_cross_entropy`) what has that label is kept away. What an example counts in the mean: see the module.
    MONAI's DiceCELoss, but for its mean over pixels of the whole batch, is dice and cross_entropy.

    >>> z, y = jnp.zeros((1, 4, 2)), jnp.array([[0, 0, 1, 1]])
    >>> from lossopt_jax.losses import cross_entropy, dice
    >>> weighted_sum(z, y, losses=(dice, cross_entropy), weights=(1.0, 0.5)).round(4)
    Array([0.8466], dtype=float32)
    """
    _check_count("weighted_sum", losses, weights=weights)
    outputs = _widened(outputs)
    parts = [_part(loss, outputs, targets, ignore_index) for loss in losses]
    same = all(values.shape == parts[0][0].shape for values, _ in parts)
    if same and _alike([_weigh_part(loss, targets, ignore_index) for loss in losses]):
        return _summed(weights, [values for values, _ in parts])
    means = [_mean_of_example(*part)[0] for part in parts]
    return _summed(weights, means)


def _widened(outputs: PyTree) -> PyTree:
    """In float32, so that the gradients of the parts add up there; a `Head` as it is, whose kernel would cost double."""
    if hasattr(outputs, "map_examples"):
        return outputs
    return jax.tree.map(lambda x: to_float32(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, outputs)


def _weigh_tasks(targets: Sequence[PyTree], *, losses: Sequence[Loss] = ()) -> jax.Array | None:
    return _anything_counts([_weigh_part(loss, y) for loss, y in zip(losses, targets, strict=True)])


@weighed_by(_weigh_tasks)  # type: ignore[arg-type]
def weighted_tasks(outputs: Sequence[PyTree], targets: Sequence[PyTree], *, losses: Sequence[Loss], weights: Sequence[Scalar]) -> jax.Array:
    """Sum over tasks k of weights_k * the mean within each example of losses_k(outputs_k, targets_k) -> [b].

    outputs, targets, losses, weights: one each. A task whose label an example lacks (ignored) adds 0 to it; the mean is over examples
    that have any.

    >>> from lossopt_jax.losses import cross_entropy, mse
    >>> outputs, targets = (jnp.zeros((2, 3)), jnp.zeros((2, 4))), (jnp.array([1, -100]), jnp.full((2, 4), 2.0))
    >>> weighted_tasks(outputs, targets, losses=(cross_entropy, mse), weights=(1.0, 0.25)).round(4)
    Array([2.0986, 1.    ], dtype=float32)
    """
    _check_count("weighted_tasks", losses, outputs=outputs, targets=targets, weights=weights)
    means = [_mean_of_example(*_part(loss, z, y))[0] for loss, z, y in zip(losses, outputs, targets, strict=True)]
    return _summed(weights, means)


@weighed_by(_weigh_tasks)  # type: ignore[arg-type]
def uncertainty_weighted(
    outputs: tuple[Sequence[PyTree], jax.Array], targets: Sequence[PyTree], *, losses: Sequence[Loss], weights: Sequence[Scalar] = ()
) -> jax.Array:
    """Sum over tasks k of weights_k exp(-s_k) L_k + s_k -> [b], whose weights exp(-s) are learned: s_k tends to log(weights_k L_k).

    outputs: (outputs of each task, s [b, k]); s are log-variances, parameters of the model that `apply` gives to every example,
    jnp.broadcast_to(s, (b, k)), or a prediction for each. targets: of each task. L_k: the mean within each example of
    losses_k(outputs_k, targets_k); a task whose label an example lacks (ignored) adds nothing to it, s included.
    weights: one each, or () for 1 each. Kendall, Gal & Cipolla 2018 (arXiv:1705.07115): a squared error with weight 1 and a
    cross-entropy with weight 2 give twice the paper's L / (2 sigma^2) + log sigma and L / sigma^2 + log sigma, with s = log sigma^2.

    >>> from lossopt_jax.losses import cross_entropy, mse
    >>> outputs = (jnp.zeros((1, 3)), jnp.zeros((1, 4))), jnp.log(jnp.array([[2.0, 4.0]]))
    >>> uncertainty_weighted(outputs, (jnp.array([1]), jnp.full((1, 4), 2.0)), losses=(cross_entropy, mse)).round(4)
    Array([3.6287], dtype=float32)
    """
    per_task, log_variances = outputs
    weights = weights or (1.0,) * len(losses)
    _check_count("uncertainty_weighted", losses, outputs=per_task, targets=targets, weights=weights)
    s = to_float32(log_variances)
    batch = jax.tree.leaves(per_task)[0].shape[0]
    if s.shape != (batch, len(losses)):
        raise ValueError(
            f"uncertainty_weighted: log-variances must be [b, k] = {(batch, len(losses))}, got {s.shape}; give every example a copy by "
            "jnp.broadcast_to(s, (b, k))"
        )
    means = [_mean_of_example(*_part(loss, z, y)) for loss, z, y in zip(losses, per_task, targets, strict=True)]
    terms = [
        _uncertain(jnp.asarray(weight, value.dtype) * value, jnp.where(counted, s[:, k], 0))
        for k, (weight, (value, counted)) in enumerate(zip(weights, means, strict=True))
    ]
    return sum(terms[1:], terms[0])


def _uncertain(value: jax.Array, s: jax.Array) -> jax.Array:
    """exp(-s) value + s; where the value is 0 it is s, however large exp(-s) is."""
    # 0 times an infinite exp(-s) would be NaN, and so would its slopes. A tenth is left to the weight and to the slope of the value.
    most = 0.9 * math.log(jnp.finfo(s.dtype).max)
    return value * jnp.exp(jnp.where(value == 0, jnp.minimum(-s, most), -s)) + s


def _alike(counts: Sequence[jax.Array | None]) -> bool:
    return len({own.shape for own in counts if own is not None}) <= 1


def _weigh_part(loss: Loss, targets: PyTree, ignore_index: int | None = None) -> jax.Array | None:
    """How much a part counts each of its values by the targets, or None where all count alike."""
    own = own_weights(loss, targets)
    if own is None and ignore_index is not None and _has_labels(targets):
        return _not_void(targets, ignore_index).astype(jnp.float32)
    return own


def _part(loss: Loss, outputs: PyTree, targets: PyTree, ignore_index: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Values and what they count, of one shape [b, ...]."""
    known = bound_values(loss).get("ignore_index")
    if ignore_index is not None and known not in (None, ignore_index):
        raise ValueError(f"weighted_sum: ignore_index {ignore_index} is not that of its part {loss!r}, {known}")
    void = None
    if ignore_index is not None and known is None and _has_labels(targets) and getattr(outputs, "shape", None) == targets.shape:
        void = ~_not_void(targets, ignore_index)
        if jax.eval_shape(loss, outputs, targets).shape == targets.shape:  # a loss over more than one target has no value to leave out
            outputs, targets = jnp.where(void, 0, outputs), jnp.where(void, 0, targets)
    values = loss(outputs, targets)
    own = own_weights(loss, targets)
    batch = jax.tree.leaves(outputs)[0].shape[0]
    if values.shape[:1] != (batch,) or (own is not None and own.ndim == 0):
        raise ValueError(
            f"a part must have a value for each of the {batch} examples, {loss!r} has values {values.shape} of the whole batch"
        )
    if own is not None:
        return values, fit_own(own, values.shape)
    if void is not None and void.shape == values.shape:
        values = jnp.where(void, 0, values)
        return values, jnp.where(void, 0, jnp.ones_like(values))
    return values, jnp.ones_like(values)


def _mean_of_example(values: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[b, ...] -> the mean of an example's values that count, 0 where none do, and whether any does, [b] each."""
    axes = tuple(range(1, values.ndim))
    counted = (own != 0).sum(axes).astype(values.dtype)
    return jnp.where(own != 0, values, 0).sum(axes) / jnp.maximum(counted, 1), counted > 0


def _anything_counts(counts: Sequence[jax.Array | None]) -> jax.Array | None:
    """[b]: 1 where any part counts anything of the example; None where a part counts all."""
    if any(own is None for own in counts):
        return None
    parts = [(own != 0).any(tuple(range(1, own.ndim))) for own in counts if own is not None]
    return jnp.stack(parts).any(0).astype(jnp.float32)


def _summed(weights: Sequence[Scalar], values: Sequence[jax.Array]) -> jax.Array:
    terms = [jnp.asarray(weight, v.dtype) * v for weight, v in zip(weights, values, strict=True)]
    return sum(terms[1:], terms[0])


def _not_void(targets: jax.Array, ignore_index: int) -> jax.Array:
    return signed(jnp.asarray(targets)) != ignore_index


def _has_labels(targets: PyTree) -> bool:
    return hasattr(targets, "dtype") and is_labels(targets) and targets.dtype != jnp.bool_


def _check_count(name: str, losses: Sequence[Loss], **given: Sequence[Any]) -> None:
    if not losses:
        raise ValueError(f"{name}: needs at least one loss")
    for what, values in given.items():
        if not isinstance(values, tuple | list) or len(values) != len(losses):
            got = len(values) if isinstance(values, tuple | list) else type(values).__name__
            raise ValueError(f"{name}: {len(losses)} losses need as many {what}, got {got}")
