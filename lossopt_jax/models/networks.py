"""The small reference networks that configs name; `output_shape` is what one example gives, and comes from the data."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from .convolution import MANY, conv_by_patches

Conv = partial(nn.Conv, conv_general_dilated=conv_by_patches)


class MLP(nn.Module):
    """Dense layers with ReLU between them; [b, ...] in, [b, *output_shape] out (a tuple () gives [b], for one number an example)."""

    widths: Sequence[int] = (64, 64)
    dropout: float = 0.0
    output_shape: Sequence[int] = (10,)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
            if self.dropout:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(math.prod(self.output_shape))(x).reshape(x.shape[0], *self.output_shape)


class CNN(nn.Module):
    """3 x 3 convolutions with ReLU and 2 x 2 mean pooling, then one dense layer; [b, h, w, c] in, [b, *output_shape] out.

    Height and width must be multiples of 2 ** len(channels). The convolutions are `conv_by_patches`.
    """

    channels: Sequence[int] = (16, 32)
    output_shape: Sequence[int] = (10,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for channels in self.channels:
            x = _halved(nn.relu(Conv(channels, (3, 3))(x)))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(math.prod(self.output_shape))(x).reshape(x.shape[0], *self.output_shape)


class UNet(nn.Module):
    """3 x 3 convolutions on ever smaller images and back, each size joined to what it was on the way down (Ronneberger et al. 2015,
    arXiv:1505.04597); [b, h, w, c] in, one logit a pixel [b, h, w] out.

    Height and width must be multiples of 2 ** (len(channels) - 1); output_shape must be theirs.
    """

    channels: Sequence[int] = (8, 16)
    output_shape: Sequence[int] = (16, 16)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *above, bottom = self.channels
        seen = []
        for channels in above:
            x = nn.relu(Conv(channels, (3, 3))(x))
            seen.append(x)
            x = _halved(x)
        x = nn.relu(Conv(bottom, (3, 3))(x))
        for channels, before in zip(above[::-1], seen[::-1], strict=True):
            x = nn.relu(Conv(channels, (3, 3))(jnp.concatenate([_doubled(x), before], -1)))
        return Conv(1, (1, 1))(x)[..., 0].reshape(x.shape[0], *self.output_shape)


class RNN(nn.Module):
    """A GRU that reads a sequence (Cho et al. 2014, arXiv:1406.1078), then one dense layer on its last state, or on all of symbols.

    Numbers [b, time, ...] in, [b, *output_shape] out; the steps are written out one after another: for short sequences. Or int symbols
    [b, time] in, logits of the one that follows each [b, time, vocabulary] out; output_shape is (time, vocabulary).
    """

    width: int = 32
    output_shape: Sequence[int] = (10,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Sweeps with Flax's orthogonal default, a QR factorisation, were seen to hang on two CPU devices (jaxlib 0.10.2).
        cell = nn.GRUCell(self.width, recurrent_kernel_init=nn.initializers.lecun_normal())
        if jnp.issubdtype(x.dtype, jnp.integer):
            vocabulary = self.output_shape[-1]
            return nn.Dense(vocabulary)(nn.RNN(cell)(nn.Embed(vocabulary, self.width)(x)))
        x = x.reshape(*x.shape[:2], -1)
        state = jnp.zeros((x.shape[0], self.width), x.dtype)
        for time in range(x.shape[1]):
            state, _ = cell(state, x[:, time])
        return nn.Dense(math.prod(self.output_shape))(state).reshape(x.shape[0], *self.output_shape)


class Transformer(nn.Module):
    """Pre-norm causal transformer over symbols (Vaswani et al. 2017; norms before, Xiong et al. 2020, arXiv:2002.04745).

    Symbols [b, time] in, logits of the one that follows each [b, time, vocabulary] out; output_shape is (time, vocabulary).
    reach: how many symbols, to its own, a place's embedding is a causal convolution of; above 1 attention need not learn to look at
    neighbours first.
    """

    width: int = 32
    heads: int = 2
    depth: int = 1
    reach: int = 1
    output_shape: Sequence[int] = (32, 96)

    @nn.compact
    def __call__(self, symbols: jax.Array) -> jax.Array:
        time, vocabulary = self.output_shape
        place = self.param("place", nn.initializers.normal(0.02), (time, self.width))
        x = nn.Embed(vocabulary, self.width)(symbols)
        x = (x if self.reach == 1 else Conv(self.width, (self.reach,), padding="CAUSAL")(x)) + place[None]
        mask = nn.make_causal_mask(symbols)
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(vocabulary)(nn.LayerNorm()(x))


@jax.custom_jvp
def _halved(x: jax.Array) -> jax.Array:
    """2 x 2 mean pooling, as sums: on CPU a reduction over so short axes is slower, a windowed one more."""
    b, h, w, c = x.shape
    rows = x.reshape(b, h // 2, 2, w * c)
    pairs = (rows[:, :, 0] + rows[:, :, 1]).reshape(b, h // 2, w // 2, 2 * c)
    return (pairs[..., :c] + pairs[..., c:]) / 4


@_halved.defjvp
def _halved_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What a mean passes back is copied, what slices do is added to zeros: twice the time, but where the channels are few."""
    (x,), (t,) = primals, tangents
    b, h, w, c = x.shape
    return _halved(x), t.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)) if c >= MANY else _halved(t)


def _doubled(x: jax.Array) -> jax.Array:
    """Every pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


MODULES = {"mlp": MLP, "cnn": CNN, "unet": UNet, "rnn": RNN, "transformer": Transformer}
