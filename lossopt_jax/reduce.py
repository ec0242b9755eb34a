"""The one reduction: values and weights become an additive pair, so a mean over pieces is the mean over the whole.

    total = sum_i w_i v_i,   weight = sum_i w_i,   mean = total / weight   (0 where the weight is 0)

Pairs add over masks, ragged micro-batches, devices (`lax.psum`) and hosts; means do not. `value_and_grad_over` is what consumes them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ._types import PyTree, to_float32

Pair = TypeVar("Pair")


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


def add(first: Pair, *others: Pair) -> Pair:
    """The pair of all the pieces together; a `GradTotal` likewise."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), first, *others)


def mean(pair: Total) -> jax.Array:
    """total / weight, and 0 (with gradient 0) where nothing counted."""
    counted = pair.weight != 0
    return jnp.where(counted, pair.total / jnp.where(counted, pair.weight, 1), 0)


def loss_total(loss: Callable[..., jax.Array], outputs: PyTree, targets: PyTree, weights: jax.Array | None = None) -> Total:
    """The pair of a loss over a batch: what is masked is made safe before the loss, since a mask after it leaves NaN gradients.

    A loss may say by its `weigh(targets, **its numbers)` how much each example counts (0 where the label is to be ignored, the
    class weight where there are any): that multiplies `weights` in the denominator; the loss has it in its values already.

    weights: None, [b], or any leading part of the values' shape. A loss over whole images gives no value per pixel, so to it pixel
    weights [b, *spatial] are a mask: where they are 0 its integer labels become its `ignore_index`, and the image counts by the
    largest. A loss over the whole batch at once (`batch_dice`: its `weigh` is a scalar) takes [b] as such a mask too.
    """
    label, padding = bound_values(loss).get("ignore_index"), getattr(_unbound(loss), "padding", None)
    if weights is not None:
        weights = to_float32(weights)
        fill = next((name for name in (label, padding) if name is not None), 1)  # 1 is a class, a count and a yes or no of any kind
        if targets is None and padding is not None:
            targets = jnp.full(weights.shape, 1 - padding)
        each = getattr(outputs, "map_examples", lambda fn: jax.tree.map(fn, outputs))  # a `losses.Head` also holds what all examples share
        shape = _shape_weighed(loss, outputs, targets, weights)
        outputs = each(functools.partial(masked, weights=weights, values=shape))
        targets = jax.tree.map(functools.partial(masked, weights=weights, label=fill, values=shape), targets)
    values = loss(outputs, targets)
    if jnp.ndim(values) == 0:
        raise ValueError("a loss returns one value per example, [b, ...]; this one returned a single number, so it averages by itself")
    own = own_weights(loss, targets)
    whole_batch = own is not None and own.ndim == 0
    if weights is not None and (whole_batch or _only_masks(weights, own, targets, values)):
        _check_mask(weights, targets, label, values)
        weights = weights.max(None if whole_batch else tuple(range(1, weights.ndim)), initial=0)
    if own is None:
        return weighted_total(values, weights)
    own = fit_own(own, values.shape)
    return Total(weighted_total(values, weights).total, weighted_total(own, weights).total)


def fit_own(own: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Own weights in the shape of the values; of an example with fewer values than weights, whether anything of it counts."""
    own = to_float32(own)
    if own.shape != shape[: own.ndim]:
        own = (own != 0).any(tuple(range(1, own.ndim))).astype(own.dtype)
    return _broadcast_leading(own, shape, "values")


def hits_total(hits: jax.Array, own: jax.Array | None, weights: jax.Array | None = None) -> Total:
    """The pair of a metric such as accuracy: what the loss ignores does not count, what it counts is not weighted by class."""
    if own is not None and own.shape == hits.shape:
        counted = (own != 0).astype(jnp.float32)
        weights = counted if weights is None else counted * _broadcast_leading(to_float32(weights), hits.shape, "hits")
    return weighted_total(hits, weights)


def masked(x: jax.Array, weights: jax.Array, label: int = 0, values: tuple[int, ...] | None = None) -> jax.Array:
    """`x` [b, ...] with 0, or `label` where it holds integers, wherever the weight is 0.

    weights: [b], or the shape of `x` with or without its last axis. Or, where these are the weights of a loss's values, their shape, a
    leading part of it that is one of `x` too. Of any other shape only examples without any weight are masked, since which axes it shares
    with `x` cannot be told.
    """
    x, keep = jnp.asarray(x), jnp.asarray(weights) != 0
    if values is None:
        fits = keep.shape in (x.shape, x.shape[:-1])
    else:
        fits = (values in (x.shape, x.shape[:-1]) or values[:-1] == x.shape) and keep.shape == x.shape[: keep.ndim]
    if not fits:
        keep = keep.any(tuple(range(1, keep.ndim)))
    fill = label if jnp.issubdtype(x.dtype, jnp.integer) else 0
    if fill and not jnp.iinfo(x.dtype).min <= fill <= jnp.iinfo(x.dtype).max:
        x = x.astype(jnp.int32)  # uint8 has no -100
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, jnp.asarray(fill, x.dtype))


def own_weights(loss: Callable[..., jax.Array], targets: PyTree) -> jax.Array | None:
    """How much each example counts by the loss's own `weigh`; None where it has none, so all count alike."""
    weigh = getattr(_unbound(loss), "weigh", None)
    if weigh is None:
        return None
    accepted = weigh.__kwdefaults__ or {}
    return weigh(targets, **{name: value for name, value in bound_values(loss).items() if name in accepted})


def bound_values(loss: Callable[..., Any]) -> dict[str, Any]:
    """Name -> value of the keyword parameters of a bound loss, a `functools.partial` or a function, defaults included."""
    keywords = loss.keywords if isinstance(loss, functools.partial) else {}
    defaults = getattr(_unbound(loss), "__kwdefaults__", None) or {}
    return {**defaults, **keywords, **getattr(loss, "hparams", {}), **getattr(loss, "options", {})}


def _unbound(loss: Callable[..., Any]) -> Callable[..., Any]:
    return loss.func if isinstance(loss, functools.partial) else getattr(loss, "fn", loss)


def _only_masks(weights: jax.Array, own: jax.Array | None, targets: PyTree, values: jax.Array) -> bool:
    """Whether weights have axes that the loss has consumed."""
    if weights.shape != values.shape[: weights.ndim]:
        return True
    # An image of n pixels and n classes: a loss that weighs whole images means its pixels.
    consumed = own is not None and _integer(targets) and own.ndim < targets.ndim
    return consumed and weights.ndim > 1 and weights.shape in (targets.shape, targets.shape[:-1])


def _shape_weighed(loss: Callable[..., jax.Array], outputs: PyTree, targets: PyTree, weights: jax.Array) -> tuple[int, ...] | None:
    """The shape of the loss's values, where the weights are theirs; None where they mask pixels, or are those of whole examples."""
    if weights.ndim < 2:
        return None
    try:
        own, values = jax.eval_shape(lambda x, t: (own_weights(loss, t), loss(x, t)), outputs, targets)
    except jax.errors.JAXTypeError:  # a loss that looks at its numbers cannot be asked without them
        return None
    return None if _only_masks(weights, own, targets, values) else values.shape


def _check_mask(weights: jax.Array, targets: PyTree, label: int | None, values: jax.Array) -> None:
    fits = _integer(targets) and weights.shape in (targets.shape, targets.shape[:-1], targets.shape[:1])
    if label is None or not fits:
        raise ValueError(
            f"weights {weights.shape} must be a leading part of the shape of the values, {values.shape}, "
            "unless the loss has an ignore_index and the targets are integer labels that it can take the place of"
        )


def _broadcast_leading(weights: jax.Array, shape: tuple[int, ...], what: str) -> jax.Array:
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(f"weights {weights.shape} must be a leading part of the shape of the {what}, {shape}")
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)


def _integer(targets: PyTree) -> bool:
    return hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)


class GradTotal(NamedTuple):
    """An additive pair and the gradient of its total: add with `add`, over devices with `lax.psum`, read with `mean_and_grad`."""

    total: jax.Array
    weight: jax.Array
    grads: PyTree


def value_and_grad_over(f: Callable[..., Any], params: PyTree, pieces: Any, *, has_aux: bool = False) -> tuple[Any, PyTree]:
    """The mean of a batch that comes in pieces and its gradient, both exactly those of the batch whole: ((mean, aux) or mean, grads).

    f: (params, piece) -> `Total`, or (Total, aux) with `has_aux`. pieces: a pytree of arrays [k, ...], scanned, so that memory holds
    one piece; or a list or iterator of pieces of any sizes. aux comes back stacked [k, ...], or as a list.
    Where nothing counts in any piece, mean and gradient are 0. Over devices, `psum` the parts: see `grad_total`.

    optax.MultiSteps averages the pieces' means, and so weighs an item of a short piece more than one of a long piece:

    >>> f = lambda w, x: weighted_total(w * x[0], x[1])
    >>> x = jnp.array([[7.0, 0.0], [6.0, 7.0], [0.0, 0.0]]), jnp.array([[1, 0], [1, 1], [0, 0]])
    >>> value_and_grad_over(f, 1.0, x)  # 20 / 3; the mean of the three means is 4.5
    (Array(6.6666665, dtype=float32), Array(6.6666665, dtype=float32))
    """
    found = grad_total(f, params, pieces, has_aux=has_aux)
    if has_aux:
        value, grads = mean_and_grad(found[0], params)
        return (value, found[1]), grads
    return mean_and_grad(found, params)


def grad_total(f: Callable[..., Any], params: PyTree, pieces: Any, *, has_aux: bool = False) -> Any:
    """`GradTotal`, or (GradTotal, aux), of a batch in pieces; arguments as in `value_and_grad_over`, grads in float32.

    The weight must not depend on the parameters. Over devices, inside `shard_map` or a vmap with an axis name:
    mean_and_grad(lax.psum(grad_total(f, params, pieces), "devices"), params).
    """
    if isinstance(pieces, list | Iterator):
        found = [_grad_of_piece(f, params, piece, has_aux) for piece in pieces]
        if not found:
            raise ValueError("grad_total: no pieces")
        total = functools.reduce(add, (total for total, _ in found))
        return (total, [aux for _, aux in found]) if has_aux else total
    first = jax.eval_shape(lambda p, x: _grad_of_piece(f, p, jax.tree.map(lambda leaf: leaf[0], x), has_aux)[0], params, pieces)
    start = jax.tree.map(lambda s: _varying(jnp.zeros(s.shape, s.dtype), _axes_of(s)), first)

    def body(so_far: GradTotal, piece: Any) -> tuple[GradTotal, Any]:
        total, aux = _grad_of_piece(f, params, piece, has_aux)
        return add(so_far, total), aux

    total, aux = jax.lax.scan(body, start, pieces)
    return (total, aux) if has_aux else total


def mean_and_grad(pair: GradTotal, params: PyTree) -> tuple[jax.Array, PyTree]:
    """The mean and its gradient, each leaf in the dtype of that of `params`; both 0 where nothing counted."""
    weight = jnp.where(pair.weight == 0, 1, pair.weight)  # where nothing counted the gradient is 0 already
    grads = jax.tree.map(lambda g, p: (g / weight.astype(g.dtype)).astype(jnp.asarray(p).dtype), pair.grads, params)
    return mean(Total(pair.total, pair.weight)), grads


def _grad_of_piece(f: Callable[..., Any], params: PyTree, piece: Any, has_aux: bool) -> tuple[GradTotal, Any]:
    def total_of(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        out, aux = f(params, piece) if has_aux else (f(params, piece), None)
        return out.total, (out.weight, aux)

    shapes = jax.eval_shape(total_of, params)
    axes = _axes_of(shapes[0]) | _axes_of(shapes[1][0])
    # Of parameters that all devices share shard_map would give the gradient summed over devices already, and psum would sum it again.
    (total, (weight, aux)), grads = jax.value_and_grad(total_of, has_aux=True)(jax.tree.map(lambda p: _varying(p, axes), params))
    pair = GradTotal(total, jax.lax.stop_gradient(weight), jax.tree.map(to_float32, grads))
    return jax.tree.map(lambda x: _varying(x, axes), pair), aux


def _axes_of(x: Any) -> frozenset[str]:
    """The mesh axes of an enclosing `shard_map` along which `x` differs."""
    kind = getattr(x, "manual_axis_type", x)
    return getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()


def _varying(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - _axes_of(jax.typeof(x))))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
