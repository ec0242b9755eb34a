"""A convolution as one matrix product, which lanes side by side share well."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Padding = str | Sequence[tuple[int, int]]

FEW, MANY = 9, 16  # places of the window and filters, for which a convolution of one channel is faster as a sum (CPU)


def conv_by_patches(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: jax.lax.ConvDimensionNumbers | None = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` as patches times a matrix: the same values to rounding, for Flax's `Conv` to call.

    y[b, i] = sum_k x[b, i stride + k dilation] w[k], by laying the shifted copies of x beside one another.
    lhs: inputs [b, *spatial, c]; rhs: kernel [*window, c / groups, f] -> [b, *spatial', f]. Channels come last, as Flax has them
    (`conv_general_dilated`'s own default is first). padding: "SAME", "VALID", "SAME_LOWER" or (low, high) of each spatial axis.

    Linen: `nn.Conv(16, (3, 3), conv_general_dilated=conv_by_patches)`; NNX: `nnx.Conv(1, 16, (3, 3), conv_general_dilated=conv_by_patches,
    rngs=rngs)`. The parameters are Flax's own, so either convolution continues a checkpoint of the other.

    Why: a convolution under `vmap` over parameters becomes a grouped one, which on CPU is slower the more lanes lie side by side, while
    patches times a matrix become a batched matrix product. They take prod(window) times the memory of the inputs; on a GPU or TPU, or
    for one large model, the ordinary convolution may be the better one.

    >>> conv_by_patches(jnp.arange(4.0)[None, :, None], jnp.ones((3, 1, 1)), (1,), "SAME")[0, :, 0]
    Array([1., 3., 6., 5.], dtype=float32)
    """
    n = lhs.ndim - 2
    last = jax.lax.ConvDimensionNumbers((0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1)))
    if dimension_numbers not in (None, last):
        raise ValueError(f"conv_by_patches: dimension_numbers must have channels last, {last}, got {dimension_numbers}")
    if rhs.ndim != lhs.ndim or lhs.shape[-1] != rhs.shape[-2] * feature_group_count or rhs.shape[-1] % feature_group_count:
        raise ValueError(
            f"conv_by_patches: inputs {lhs.shape} need a kernel [*window, {lhs.shape[-1]} / {feature_group_count}, "
            f"a multiple of {feature_group_count}], got {rhs.shape}"
        )
    copies = _shifted(lhs, rhs.shape[:n], window_strides, padding, lhs_dilation or (1,) * n, rhs_dilation or (1,) * n)
    into, f, g = rhs.shape[-2], rhs.shape[-1], feature_group_count
    settings = {"precision": precision, "preferred_element_type": preferred_element_type}
    plain = lhs.dtype == rhs.dtype in (jnp.float32, jnp.float64) and precision is None and preferred_element_type in (None, lhs.dtype)
    if g == into == 1 and len(copies) <= FEW and f >= MANY and plain and jax.default_backend() == "cpu":
        return _of_one_channel(jnp.stack([copy[..., 0] for copy in copies]), rhs.reshape(-1, f))
    if g == 1:
        patches = copies[0] if len(copies) == 1 else jnp.concatenate(copies, -1)
        return jnp.dot(patches, rhs.reshape(-1, f), **settings)
    patches = jnp.stack([copy.reshape(*copy.shape[:-1], g, into) for copy in copies], -2)
    kernel = rhs.reshape(len(copies), into, g, f // g)
    y = jnp.einsum("...gkc,kcgf->...gf", patches, kernel, **settings)
    return y.reshape(*y.shape[:-2], f)


@jax.custom_jvp
def _of_one_channel(patches: jax.Array, kernel: jax.Array) -> jax.Array:
    """patches [k, *b] and kernel [k, f] -> [*b, f]: XLA's CPU backend takes five times as long for a product so few numbers deep."""
    rows = kernel.reshape(len(kernel), *(1,) * (patches.ndim - 1), -1)
    return functools.reduce(jnp.add, (patch[..., None] * row for patch, row in zip(patches, rows, strict=True)))


@functools.partial(_of_one_channel.defjvp, symbolic_zeros=True)
def _of_one_channel_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """By products, since their slopes are products as well."""
    (patches, kernel), (moved, turned) = primals, tangents
    pairs = [pair for pair in ((moved, kernel), (patches, turned)) if SymbolicZero not in map(type, pair)]
    parts = [jnp.dot(jnp.moveaxis(x, 0, -1), y) for x, y in pairs]
    return _of_one_channel(*primals), functools.reduce(jnp.add, parts)


def _shifted(
    x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Padding, x_dilation: Sequence[int], dilation: Sequence[int]
) -> list[jax.Array]:
    """What each place of the window sees of x [b, *spatial, c], in the kernel's order: [b, *spatial', c] each."""
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    spread = [(size - 1) * d + 1 for size, d in zip(x.shape[1:-1], x_dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(spread, reach, strides, padding)
    edges = [(0, 0, 0), *((low, high, d - 1) for (low, high), d in zip(padding, x_dilation, strict=True)), (0, 0, 0)]
    if any(map(any, edges)):
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
    counts = [max(0, (size - r) // s + 1) for size, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    if math.prod(counts) == 0:
        raise ValueError(f"conv_by_patches: a window of {tuple(reach)} does not fit into the padded inputs {x.shape}")
    copies = []
    for place in itertools.product(*(range(0, r, d) for r, d in zip(reach, dilation, strict=True))):
        ends = [first + (count - 1) * s + 1 for first, count, s in zip(place, counts, strides, strict=True)]
        copies.append(jax.lax.slice(x, (0, *place, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1)))
    return copies
