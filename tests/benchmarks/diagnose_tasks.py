"""Small real tasks that the diagnosis was not tuned on: other data, networks and optimizers than those of lr_finder.py beside this file."""

from collections.abc import Callable

import numpy as np
from flax import linen as nn
from lr_finder import Case, neighbourhood

import lossopt_jax as lo

OPTIMIZERS = {
    "wine": {"momentum": lo.optimizers.momentum, "adamw": lo.optimizers.adamw},
    "iris": {"nesterov": lo.optimizers.nesterov, "rmsprop": lo.optimizers.rmsprop},
    "linnerud": {"sgd": lo.optimizers.sgd, "adam": lo.optimizers.adam},
    "odd or even": {"adamw": lo.optimizers.adamw, "momentum": lo.optimizers.momentum},
    "lower halves": {"sgd": lo.optimizers.sgd, "nadam": lo.optimizers.nadam},
    "photographs": {"momentum": lo.optimizers.momentum, "radam": lo.optimizers.radam},
}


class Net(nn.Module):
    """One output from one hidden layer, or from none; a bias of -30 leaves its units dead."""

    width: int = 0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x):
        if self.width:
            x = nn.relu(nn.Dense(self.width, bias_init=nn.initializers.constant(self.bias))(x))
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.01))(x)[..., 0]


class Tanh(nn.Module):
    outputs: int
    widths: tuple[int, ...] = (24, 24)

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


class Gelu(nn.Module):
    """Normalised layers; one output is no axis."""

    outputs: int
    width: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        x = nn.Dense(self.outputs or 1)(x)
        return x if self.outputs else x[..., 0]


class Convolved(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12)(neighbourhood(x)))
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
        return nn.Dense(1)(nn.relu(nn.Dense(24)(x.reshape(b, -1))))[..., 0]


def parts(x, y, share: int = 4) -> tuple[tuple, tuple]:
    """Shuffled; the last of `share` parts is held out."""
    order = np.random.default_rng(1).permutation(len(x))
    x, y = x[order], y[order]
    cut = len(x) - len(x) // share
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def standard(x) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return (x - x.mean(0)) / (x.std(0) + 1e-3)


def table(load, network: nn.Module, loss, run: lo.Run, *, amounts: bool = False) -> Case:
    data = load()
    y = standard(data.target) if amounts else data.target.astype(np.int32)
    return Case(lo.from_linen(network), lo.bind(loss), *parts(standard(data.data), y), run)


def odd_or_even() -> Case:
    (x, y), (a, b) = lo.data.digits_images()[:2]
    binary = (x, (y % 2).astype(np.int32)), (a, (b % 2).astype(np.int32))
    return Case(lo.from_linen(Convolved()), lo.bind(lo.losses.binary_cross_entropy), *binary, lo.Run(300, 32))


def lower_halves() -> Case:
    """The lower half of a digit from its upper half."""
    from sklearn.datasets import load_digits

    x = load_digits().images.reshape(-1, 64).astype(np.float32) / 8 - 1
    return Case(lo.from_linen(Tanh(32, (48,))), lo.bind(lo.losses.mse), *parts(x[:, :32], x[:, 32:]), lo.Run(300, 32))


def photographs(count: int = 2000) -> Case:
    """The middle of a 5 x 5 patch of a photograph from the pixels around it, with noise over them."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(2)
    grey = [image.mean(-1) / 255 for image in load_sample_images().images]
    patches = np.empty((count, 25), np.float32)
    for patch in patches:
        image = grey[rng.integers(2)]
        i, j = (rng.integers(side - 5) for side in image.shape)
        patch[:] = image[i : i + 5, j : j + 5].ravel()
    middle = patches[:, 12]
    around = np.delete(patches, 12, 1) + rng.normal(0, 0.1, (count, 24)).astype(np.float32)
    return Case(lo.from_linen(Gelu(0)), lo.bind(lo.losses.mse), *parts(standard(around), standard(middle)), lo.Run(300, 32))


def noisy(loss, y) -> dict[str, Case]:
    """3,000 rows of five columns of which one tells a little of y [3000], from it and noise, in batches of 64 and all at once."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 5)).astype(np.float32)
    data = parts(x, y(x[:, 0].astype(np.float64), rng))
    networks = {"linear": Net(), "hidden": Net(32), "dead": Net(32, -30.0)}
    batches = {"batches": lo.Run(300, 64), "all data": lo.Run(300, len(data[0][0]))}
    return {
        f"{network}, {batch}": Case(lo.from_linen(module), lo.bind(loss), *data, run)
        for network, module in networks.items()
        for batch, run in batches.items()
    }


def mse_above_1000(outputs, targets):
    return 1000 + lo.losses.mse(outputs, targets)


NOISY = {
    "noisy labels": lambda: noisy(
        lo.losses.binary_cross_entropy, lambda a, rng: (rng.random(a.shape) < 1 / (1 + np.exp(-0.7 * a))).astype(np.int32)
    ),
    "noisy amounts": lambda: noisy(lo.losses.mse, lambda a, rng: (a / 3 + rng.normal(size=a.shape)).astype(np.float32)),
    "a least above 1,000": lambda: {
        what: case
        for what, case in noisy(mse_above_1000, lambda a, rng: (3 * a + rng.normal(size=a.shape)).astype(np.float32)).items()
        if what == "linear, all data"
    },
}


def tasks() -> dict[str, Callable[[], Case]]:
    from sklearn.datasets import load_iris, load_linnerud, load_wine

    return {
        "wine": lambda: table(load_wine, Tanh(3), lo.losses.cross_entropy, lo.Run(240, 16)),
        "iris": lambda: table(load_iris, Gelu(3, 12), lo.losses.cross_entropy, lo.Run(300, 16)),
        "linnerud": lambda: table(load_linnerud, Tanh(3, (8,)), lo.losses.mse, lo.Run(200, 5), amounts=True),
        "odd or even": odd_or_even,
        "lower halves": lower_halves,
        "photographs": photographs,
    }
