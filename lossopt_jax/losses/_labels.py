"""One place for class labels: what is accepted, what is ignored, what is loud, and how much each example counts."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Vector, as_array, to_float32
from ._stable import hot, label_nll, lead, nll_of_all, times

F = TypeVar("F", bound=Callable[..., Any])


class ClassTargets(NamedTuple):
    """Targets that passed the contract.

    logits: [*b, c] float32.
    labels: [*b] in 0 ... c-1, or -1 where ignored, or None. probs: [*b, c], or None. One of the two.
    counts: [*b]: 1, or 0 where ignored, or NaN where the label is no class: multiplied with the values it makes both value
        and gradient 0 or NaN.
    """

    logits: jax.Array
    labels: jax.Array | None
    probs: jax.Array | None
    counts: jax.Array

    def average(self, of_nll: Callable[[jax.Array], jax.Array], class_weights: jax.Array | None = None) -> jax.Array:
        """sum_j w_j q_j f(-log softmax(z)_j) -> [*b], for a loss that is a function of the label's log-likelihood.

        `label_nll` sees to ignored labels itself, so the logits may be raw, which spares a copy of them.
        """
        if self.probs is not None:
            weights = self.probs if class_weights is None else self.probs * lead(class_weights, self.probs)
            return times(weights, of_nll(nll_of_all(self.logits))).sum(-1)
        assert self.labels is not None
        counts = self.counts if class_weights is None else self.counts * label_weights(class_weights, self.labels)
        return counts * of_nll(label_nll(self.logits, self.labels))

    def one_hot(self) -> jax.Array:
        """[*b, c]: the distribution, or the labels as one."""
        if self.probs is not None:
            return self.probs
        assert self.labels is not None
        return hot(self.labels, self.logits.shape[-1]).astype(self.logits.dtype)


def class_targets(logits: Any, targets: Any, *, loss: str, ignore_index: int = -100, classes: int | None = None) -> ClassTargets:
    """`raw_class_targets` with the logits 0 where the label is ignored: what lies there, NaN included, then changes nothing."""
    given = raw_class_targets(logits, targets, loss=loss, ignore_index=ignore_index, classes=classes)
    if given.labels is None:
        return given
    # The factor makes the whole gradient of an example NaN where its label is no class, also of what its loss does not look at.
    return given._replace(logits=jnp.where((given.labels < 0)[..., None], 0, given.logits * given.counts[..., None]))


def label_targets(
    logits: Any, labels: Any, *, loss: str, ignore_index: int = -100, classes: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits, labels, counts) of `class_targets`, for losses that take labels alone; `classes` as there."""
    classes = (jnp.shape(logits) or (0,))[-1] if classes is None else classes
    z, known, _, counts = class_targets(logits, labels, loss=loss, ignore_index=ignore_index, classes=classes)
    assert known is not None
    return z, known, counts


def raw_class_targets(logits: Any, targets: Any, *, loss: str, ignore_index: int = -100, classes: int | None = None) -> ClassTargets:
    """The contract of every loss over classes: integer labels of the logits' shape less its last axis, or a distribution of its shape.

    A label that is neither a class nor `ignore_index` raises ValueError where its value is known, and is NaN where it is traced.
    classes: how many there are, where it is not the length of the logits' last axis.
    """
    logits, targets = jnp.asarray(logits), as_array(targets, what=loss)
    if logits.ndim == 0:
        raise ValueError(f"{loss}: outputs must have a last axis of classes, got a scalar")
    if not is_labels(targets):
        if targets.shape != logits.shape or not jnp.issubdtype(targets.dtype, jnp.floating) or classes is not None:
            raise ValueError(_contract(loss, logits, targets, distribution=classes is None))
        check_classes(logits.shape, loss=loss)
        return ClassTargets(to_float32(logits), None, to_float32(targets), jnp.ones(logits.shape[:-1], to_float32(logits).dtype))
    if targets.shape != logits.shape[:-1]:
        raise ValueError(_contract(loss, logits, targets, distribution=classes is None))
    classes = logits.shape[-1] if classes is None else classes
    check_classes((*logits.shape[:-1], classes), loss=loss)
    _check_concrete(targets, classes, ignore_index, loss)
    labels = signed(targets)
    ignored = labels == ignore_index
    known = (labels >= 0) & (labels < classes)
    wide = to_float32(logits)
    counts = jnp.where(ignored, 0, jnp.where(known, 1, jnp.nan)).astype(wide.dtype)
    return ClassTargets(wide, jnp.where(ignored, -1, jnp.where(known, labels, 0)), None, counts)


def check_classes(shape: tuple[int, ...], *, loss: str) -> None:
    """ValueError for outputs of no classes: no class can be right."""
    if not shape[-1:] or not shape[-1]:
        raise ValueError(f"{loss}: outputs {shape} have no classes on their last axis")


def is_labels(targets: Any) -> bool:
    """Whether targets are integer labels (or bools) rather than a distribution."""
    dtype = jnp.asarray(targets).dtype
    return bool(jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_)


def optional_vector(weights: Any, classes: int, *, loss: str) -> jax.Array | None:
    """Class weights [c], or None."""
    return None if weights is None else class_vector(weights, classes, loss=loss)


def class_vector(weights: Any, classes: int, *, loss: str, name: str = "class_weights") -> jax.Array:
    """A number per class, [c] float32; anything else raises."""
    weights = to_float32(weights)
    if weights.shape != (classes,):
        raise ValueError(f"{loss}: {name} must have shape ({classes},), one per class, got {weights.shape}")
    return weights


def weigh_classes(targets: Any, *, class_weights: Vector | None = None, ignore_index: int = -100) -> jax.Array:
    """[*b]: how much each example counts in a mean: 0 where ignored, else 1 or its class weight (its expectation, for a distribution)."""
    targets = jnp.asarray(targets)
    if not is_labels(targets):
        targets = to_float32(targets)
        if class_weights is None:
            return jnp.ones(targets.shape[:-1], targets.dtype)
        return (targets * last_axis(class_vector(class_weights, targets.shape[-1], loss="weigh"), targets)).sum(-1)
    labels = signed(targets)
    ones = jnp.ones(labels.shape, jnp.float32)
    if class_weights is not None:
        ones = to_float32(class_weights).at[labels].get(mode="clip")
    return jnp.where(labels == ignore_index, 0, ones)


def weighed_by(weigh: Callable[..., jax.Array], *, padding: int | None = None) -> Callable[[F], F]:
    """Give a loss its `weigh(targets, **numbers) -> [*b]`: the denominator that the mean of its values is to use.

    padding: the target by which it knows an example that is not there, of a loss that looks at all examples together.
    """

    def attach(loss: F) -> F:
        loss.weigh = weigh  # type: ignore[attr-defined]
        if padding is not None:
            loss.padding = padding  # type: ignore[attr-defined]
        return loss

    return attach


def read_by(
    hits: Callable[[jax.Array, jax.Array], jax.Array] | None, outputs: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple
) -> Callable[[F], F]:
    """Say how the outputs of a loss are read, where that is not by the largest of the classes'.

    hits: (outputs, labels) -> which are right, None where outputs are no classes. outputs: the shape of one example's outputs that
    targets of so many classes (or none, for a number) are given to.
    """

    def attach(loss: F) -> F:
        loss.hits, loss.outputs = hits, outputs  # type: ignore[attr-defined]
        return loss

    return attach


def outputs_for(loss: Callable[..., Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one example's outputs that a loss wants for targets of this shape: () for a number, (c,) for c classes."""
    return tuple(getattr(loss, "outputs", tuple)(shape))


def label_weights(class_weights: jax.Array, labels: jax.Array) -> jax.Array:
    """[*b]: the class weight of each label."""
    return class_weights.at[labels].get(mode="clip")


def binary_targets(targets: Any, *, loss: str, low: int = 0) -> jax.Array:
    """Targets from `low` to 1 as floats; an integer other than these two raises where known and is NaN where traced."""
    targets = as_array(targets, what=loss)
    if targets.dtype == jnp.bool_:
        return jnp.where(targets, 1.0, float(low))
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        return to_float32(targets)
    check_among(targets, (low, 1), loss)
    known = (targets == low) | (targets == 1) if low >= 0 or jnp.issubdtype(targets.dtype, jnp.signedinteger) else targets == 1
    return jnp.where(known, targets.astype(jnp.float32), jnp.nan)


def check_among(targets: jax.Array, valid: tuple[int, ...], loss: str) -> None:
    """ValueError for a target that is known, inside a trace too, and none of `valid`."""
    if isinstance(targets, jax.core.Tracer):
        return
    wrong = ~np.isin(np.asarray(targets), valid)
    if wrong.any():
        either = " or ".join((", ".join(map(str, valid[:-1])), str(valid[-1])))
        raise ValueError(f"{loss}: targets must be {either}, got {np.asarray(targets)[wrong].flat[0]}")


def last_axis(vector: Any, like: jax.Array, *, what: str = "a vector of class numbers") -> jax.Array:
    """A number as it is, or a number per entry of the last axis of `like`, reshaped to meet it."""
    vector = to_float32(vector)
    if vector.ndim == 0:
        return vector
    if vector.shape != like.shape[-1:]:
        raise ValueError(f"{what} must be a number or one per entry of the last axis of {like.shape}, got shape {vector.shape}")
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def signed(labels: jax.Array) -> jax.Array:
    """Labels of a type that knows -100."""
    if labels.dtype in (jnp.int64, jnp.int32):
        return labels
    if labels.dtype == jnp.uint32:  # what is beyond 2^31 is no class, and must not become -100
        labels = jnp.minimum(labels, np.uint32(2**31 - 1))
    return labels.astype(jnp.int32)  # uint8 cannot be compared with -100


def _check_concrete(targets: jax.Array, classes: int, ignore_index: int, loss: str) -> None:
    if isinstance(targets, jax.core.Tracer):
        return
    labels = np.asarray(targets).astype(np.int64)
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if wrong.any():
        raise ValueError(
            f"{loss}: label {labels[wrong].flat[0]} is not a class: labels must be 0 to {classes - 1}, or {ignore_index} to be ignored"
        )


def _contract(loss: str, logits: jax.Array, targets: jax.Array, *, distribution: bool) -> str:
    either = f" or a distribution {logits.shape}" if distribution else ""
    return (
        f"{loss}: for outputs {logits.shape} targets must be integer labels {logits.shape[:-1]}{either}, "
        f"got targets {targets.shape} of {targets.dtype}"
    )
