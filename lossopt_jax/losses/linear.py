"""The language-model head and its cross-entropy as one: a large vocabulary without its logits."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._types import PyTree, Scalar, Vector
from ._labels import class_vector, label_weights, raw_class_targets, weigh_classes, weighed_by
from ._logit_blocks import Labels, Operands, Plan, accumulator, statistics
from ._stable import times

__all__ = ["linear_cross_entropy"]


class Head(NamedTuple):
    """A model's outputs for `linear_cross_entropy`: what the logits hidden @ kernel + bias would be made of.

    hidden: [*b, d], per example; kernel: [d, v] and bias: [v] or None, shared by all.

    >>> Head(jnp.zeros((2, 3)), jnp.zeros((3, 5))).logits().shape
    (2, 5)
    """

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None

    def map_examples(self, fn: Callable[[jax.Array], jax.Array]) -> "Head":
        """`fn` on what has a row per example: a weight of the batch masks that alone (see `reduce.loss_total`)."""
        return self._replace(hidden=fn(self.hidden))

    def logits(self) -> jax.Array:
        """[*b, v], materialised: for sampling, or to look at."""
        z = self.hidden @ self.kernel
        return z if self.bias is None else z + self.bias.reshape((1,) * (z.ndim - 1) + self.bias.shape)


@weighed_by(weigh_classes)
def linear_cross_entropy(
    outputs: Head | jax.Array,
    *data: jax.Array,
    label_smoothing: Scalar | None = None,
    z_loss: Scalar = 0.0,
    soft_cap: Scalar | None = None,
    class_weights: Vector | None = None,
    ignore_index: int = -100,
    vocab_axis: str | None = None,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> jax.Array:
    """Cross-entropy of the logits z = hidden @ kernel + bias, which never exist: -sum_j w_j q_j log softmax(z)_j + z_loss lse(z)^2.

    Called as (Head(hidden, kernel, bias), labels), which is a recipe's way, or as (hidden, kernel, labels).
    hidden: [*b, d]; kernel: [d, v]; bias: [v] or None; labels: integers [*b] -> [*b], float32 (float64 if an operand is).
    label_smoothing, class_weights [v], ignore_index: as in `cross_entropy`; a label that is no class makes the kernel's gradient NaN.
    z_loss: pulls lse(z) = log sum_j e^z_j to 0, default 0; PaLM took 1e-4 (Chowdhery et al. 2022, arXiv:2204.02311). Not class-weighted.
    soft_cap: c > 0 bends the logits to c tanh(z / c) first, or None; Gemma 2 took 30 (2024, arXiv:2408.00118).
    vocab_axis: inside `jax.shard_map`, the mesh axis over which kernel and bias are split by words, [d, v / n] on each device; labels and
    class_weights are then still those of all v.
    token_block, vocab_block: tokens and words at a time, None for what suits the shapes. Memory beside the results is about two such
    blocks and one of the kernel, however many tokens and words there are.

    bfloat16 operands stay so in each product and are summed in float32. The idea is Cut Cross-Entropy's (Wijmans et al. 2025,
    arXiv:2411.09009) without its skipping of small gradients: these are exact. The value takes one product of hidden and kernel, the
    gradient makes it again: 4 where materialised logits take 3, without the traffic. torch: nn.functional.linear_cross_entropy.

    >>> hidden, kernel = jnp.array([[1.0, 0.0], [0.0, 1e4]]), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> linear_cross_entropy(hidden, kernel, jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    head, labels = _contract(outputs, data)
    words = head.kernel.shape[1] * (1 if vocab_axis is None else lax.axis_size(vocab_axis))
    known = raw_class_targets(head.hidden, labels, loss="linear_cross_entropy", ignore_index=ignore_index, classes=words)
    assert known.labels is not None
    w = None if class_weights is None else class_vector(class_weights, words, loss="linear_cross_entropy")
    blocks = _blocks(head, token_block, vocab_block)
    numbers = label_smoothing, z_loss, soft_cap, w
    values = _values(Plan(*blocks, vocab_axis, label_smoothing is not None), head, known.labels.ravel(), known.counts.ravel(), numbers)
    return values.reshape(known.labels.shape)


@partial(jax.jit, static_argnums=0)  # eager callers too are to have no logits and no copies
def _values(plan: Plan, head: Head, labels: jax.Array, counts: jax.Array, numbers: Any) -> jax.Array:
    hidden = head.hidden.reshape(-1, head.hidden.shape[-1])
    dtype = accumulator(hidden, head.kernel)
    label_smoothing, z_loss, soft_cap, w = jax.tree.map(lambda x: jnp.asarray(x, dtype), numbers)
    first = 0 if plan.axis is None else lax.axis_index(plan.axis) * head.kernel.shape[1]
    own_w = w if w is None or plan.axis is None else lax.dynamic_slice_in_dim(w, first, head.kernel.shape[1])
    operands, own = _alike((Operands(hidden, head.kernel, head.bias, soft_cap, own_w), labels - first))
    stats = statistics(plan, operands, Labels(own, labels >= 0))
    words = head.kernel.shape[1] if plan.axis is None else head.kernel.shape[1] * lax.axis_size(plan.axis)
    values = stats.nll if w is None else label_weights(w, labels) * stats.nll
    if label_smoothing is not None:
        values = (1 - label_smoothing) * values + times(label_smoothing / words, stats.spread)
    return counts.astype(dtype) * (values + z_loss * jnp.square(stats.peak + stats.log_total))


def _contract(outputs: Any, data: tuple[jax.Array, ...]) -> tuple[Head, jax.Array]:
    """Either way of calling as (head, labels), with shapes that fit."""
    if not isinstance(outputs, Head):
        if isinstance(outputs, tuple) or len(data) != 2:
            raise ValueError("linear_cross_entropy takes (Head(hidden, kernel, bias), labels) or (hidden, kernel, labels)")
        outputs, data = Head(outputs, data[0]), data[1:]
    if len(data) != 1:
        raise ValueError(f"linear_cross_entropy takes one array of labels after a Head, got {len(data)} arrays")
    bias = outputs.bias
    head = Head(jnp.asarray(outputs.hidden), jnp.asarray(outputs.kernel), None if bias is None else jnp.asarray(bias))
    shapes = f"hidden {head.hidden.shape}, kernel {head.kernel.shape}" + ("" if head.bias is None else f", bias {head.bias.shape}")
    fits = head.hidden.ndim >= 1 and head.kernel.ndim == 2 and head.kernel.shape[0] == head.hidden.shape[-1] and head.kernel.shape[1] > 0
    if not fits or (head.bias is not None and head.bias.shape != head.kernel.shape[1:]):
        raise ValueError(f"linear_cross_entropy: shapes must be hidden (*b, d), kernel (d, v), bias (v,) with v > 0, got {shapes}")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(head)):
        raise ValueError(f"linear_cross_entropy: hidden, kernel and bias must be floats, got {[x.dtype for x in jax.tree.leaves(head)]}")
    return head, data[0]


def _blocks(head: Head, tokens: int | None, words: int | None) -> tuple[int, int]:
    """Tokens and words a block: on a CPU a block of logits stays in the cache, elsewhere it fills the device."""
    n, v = head.hidden.size // max(head.hidden.shape[-1], 1), head.kernel.shape[1]
    most_tokens, most_words = (512, 1024) if jax.default_backend() == "cpu" else (4096, 8192)
    return _even(n, tokens or most_tokens, 8), _even(v, words or most_words, 128)


def _even(length: int, most: int, multiple: int) -> int:
    """Blocks as few as `most` allows and as equal as `multiple` does, so that the last one repeats little of the one before."""
    count = -(-length // most)
    return min(length, most, -(-length // (max(count, 1) * multiple)) * multiple)


def _alike(arrays: PyTree) -> PyTree:
    """The arrays, each varying over every mesh axis that one of them varies over, as the carry of a loop must under `shard_map`."""
    never = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda x: lax.full_like(x, False, bool, ()), arrays))
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros((), x.dtype), x), arrays)
