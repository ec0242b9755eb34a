"""Is the suggested learning rate right? python tests/benchmarks/lr_finder.py [part of a task's name ...]

Seven real tasks x sgd, momentum and adam. For each: `find_lr` (64 rates x 3 seeds); the range test with fastai's valley and steep
suggestions; and, under seeds that neither has seen, what is best: 64 constant rates x 3 seeds at the full budget, whose six best are then
trained under 64 more seeds together with the three suggestions. What counts is the mean held-out loss over those 64, as a multiple of the
best's: of the six, the one that is best under one half of those seeds, taken under the other half, so that it owes nothing to luck.
"sweep" is what the best of the 64-lane sweep itself keeps of its promise: no rule can be expected to do better.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

import lossopt_jax as lo  # noqa: E402
from lossopt_jax import find_lr, lr_range_test  # noqa: E402

RATES = np.geomspace(1e-7, 10.0, 64)
FINALISTS, FRESH, GOAL = 6, 64, 1.03
OPTIMIZERS = {"sgd": lo.optimizers.sgd, "momentum": lo.optimizers.momentum, "adam": lo.optimizers.adam}


class Case(NamedTuple):
    model: lo.Model
    loss: lo.Bound
    train: tuple
    evaluate: tuple
    run: lo.Run


def neighbourhood(x):
    """3 x 3 patches, [b, h, w, c] -> [b, h, w, 9 c]: a convolution is then a matrix product, which lanes share well."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for channels in (8, 16):
            x = nn.relu(nn.Dense(channels)(neighbourhood(x)))
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class RNN(nn.Module):
    """Reads an image line by line."""

    width: int = 24

    @nn.compact
    def __call__(self, x):
        into = nn.Dense(self.width)(x)
        onward = nn.Dense(self.width, use_bias=False, kernel_init=lambda key, shape, dtype: 0.9 * jnp.eye(shape[0], dtype=dtype))
        h = jnp.zeros((x.shape[0], self.width))
        for line in range(x.shape[1]):
            h = jnp.tanh(into[:, line] + onward(h))
        return nn.Dense(10)(h)


class Segmenter(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (6, 6):
            x = nn.relu(nn.Dense(width)(neighbourhood(x)))
        return nn.Dense(1)(x)[..., 0]


class Transformer(nn.Module):
    vocabulary: int
    width: int = 16

    @nn.compact
    def __call__(self, x):
        place = self.param("place", nn.initializers.normal(0.02), (x.shape[1], self.width))
        h = nn.Embed(self.vocabulary, self.width)(x) + place[None]
        y = nn.LayerNorm()(h)
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(y, y, mask=nn.make_causal_mask(x))
        h = h + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(h))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(h))


def pasted_digits(count: int = 600, side: int = 12):
    """Digits drawn over patches of scikit-learn's photographs: images [n, side, side, 1] and where the ink is."""
    from sklearn.datasets import load_digits, load_sample_images

    rng = np.random.default_rng(0)
    photographs = [image.mean(-1) / 255 for image in load_sample_images().images]
    digits = load_digits().images / 16
    images, masks = np.zeros((count, side, side, 1), np.float32), np.zeros((count, side, side), np.float32)
    for image, mask in zip(images[..., 0], masks, strict=True):
        photograph, digit = photographs[rng.integers(len(photographs))], digits[rng.integers(len(digits))]
        i, j = (rng.integers(size - side) for size in photograph.shape)
        image[:] = photograph[i : i + side, j : j + side]
        a, b = rng.integers(side - 7, size=2)
        part = image[a : a + 8, b : b + 8]
        part[:] = part * (1 - digit) + digit * rng.uniform(0.3, 1)
        mask[a : a + 8, b : b + 8] = digit > 0.5
    kept = count * 4 // 5
    return (images[:kept], masks[:kept]), (images[kept:], masks[kept:])


def text(window: int = 12):
    """Python's help topics, character by character: windows [n, window] and the same a character on; the last fifth held out."""
    from pydoc_data.topics import topics

    letters = "".join(topics[name] for name in sorted(topics))[:200_000]
    alphabet = sorted(set(letters))
    codes = np.searchsorted(alphabet, list(letters)).astype(np.int32)
    rng = np.random.default_rng(0)
    cut = len(codes) * 4 // 5
    parts = rng.integers(0, cut - window - 1, 8000), rng.integers(cut, len(codes) - window - 1, 300)
    windows = [(codes[at[:, None] + np.arange(window)[None]], codes[at[:, None] + 1 + np.arange(window)[None]]) for at in parts]
    return *windows, len(alphabet)


def tasks() -> dict[str, Callable[[], Case]]:
    def mlp(task, widths, loss, run):
        model = lo.from_linen(lo.models.MLP(widths=widths, output_shape=task.output_shape))
        return Case(model, lo.bind(loss), task.train, task.evaluate, run)

    def rnn():
        train, evaluate = ((x[..., 0], y) for x, y in lo.data.digits_images()[:2])
        return Case(lo.from_linen(RNN()), lo.bind(lo.losses.cross_entropy), train, evaluate, lo.Run(400, 32))

    def cnn():
        task = lo.data.digits_images()
        return Case(lo.from_linen(CNN()), lo.bind(lo.losses.cross_entropy), task.train, task.evaluate, lo.Run(300, 16))

    def transformer():
        train, evaluate, vocabulary = text()
        return Case(lo.from_linen(Transformer(vocabulary)), lo.bind(lo.losses.cross_entropy), train, evaluate, lo.Run(300, 8))

    return {
        "regression, diabetes": lambda: mlp(lo.data.diabetes(), (32, 32), lo.losses.mse, lo.Run(240, 32)),
        "binary, breast cancer": lambda: mlp(lo.data.breast_cancer(), (32,), lo.losses.binary_cross_entropy, lo.Run(240, 32)),
        "classes, digits mlp": lambda: mlp(lo.data.digits(), (32, 32), lo.losses.cross_entropy, lo.Run(500, 64)),
        "images, digits cnn": cnn,
        "segmentation": lambda: Case(lo.from_linen(Segmenter()), lo.bind(lo.losses.binary_dice), *pasted_digits(), lo.Run(240, 8)),
        "sequences, digits rnn": rnn,
        "text, transformer": transformer,
    }


def losses_of(case: Case, recipe: lo.Recipe, rates, seed: int, seeds: int) -> np.ndarray:
    """Held-out losses [rates, seeds] of constant rates, infinite where a run was not finite."""
    lanes = [recipe._replace(schedule=recipe.schedule.replace(value=rate)) for rate in rates]
    run = lo.Run(case.run.steps, case.run.batch_size, seed)
    losses = lo.sweep(case.model, lanes, train=case.train, evaluate=case.evaluate, run=run, seeds=seeds).evaluation["loss"]
    return np.nan_to_num(losses.astype(np.float64).reshape(len(lanes), seeds), nan=np.inf, posinf=np.inf)


def best_loss(losses: np.ndarray) -> float:
    """What the best of some rates [rates, seeds] reaches under seeds that it was not chosen by."""
    halves = losses[:, ::2].mean(1), losses[:, 1::2].mean(1)
    return float(np.mean([there[here.argmin()] for here, there in (halves, halves[::-1])]))


def examine(case: Case, optimizer) -> dict[str, float]:
    recipe = lo.Recipe(case.loss, lo.bind(optimizer), lo.bind(lo.schedules.constant, value=0.1))
    found = find_lr(case.model, recipe, train=case.train, evaluate=case.evaluate, run=case.run)
    test = lr_range_test(case.model, recipe, train=case.train, run=lo.Run(100, case.run.batch_size))
    swept = losses_of(case, recipe, RATES, 1000, 3).mean(1)
    finalists = RATES[np.argsort(swept)[:FINALISTS]]
    rates = [found.suggested, test.valley, test.steep, *finalists]
    losses = losses_of(case, recipe, np.nan_to_num(rates, nan=RATES[0]), 3000, FRESH)
    fresh, best = losses.mean(1), best_loss(losses[3:])
    apart = losses[0] - losses[3:][fresh[3:].argmin()]  # seed by seed
    names = ("ours", "valley", "steep", "sweep")
    return {
        **dict(zip(names, rates, strict=False)),
        "best": finalists[fresh[3:].argmin()],
        "loss": best,
        **{f"{name} ratio": ratio for name, ratio in zip(names, fresh / best, strict=False)},
        "error": apart.std(ddof=1) / math.sqrt(FRESH) / best,
        "sure": found.seed_rates.max() / found.seed_rates.min(),
    }


def main(only: list[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # the second sweep of a task is the finder's program
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    started, rows = time.perf_counter(), []
    names = ("ours", "valley", "steep", "sweep")
    print(f"{'':32s}{'learning rate':>39s}      {'held-out loss, times the best':>30s}")
    print(f"{'task':23s}{'optimizer':9s}" + "".join(f"{n:>9s}" for n in ("best", *names[:3])) + "  " + "".join(f"{n:>8s}" for n in names))
    for task, make in tasks().items():
        if only and not any(part in task for part in only):
            continue
        case = make()
        for optimizer, factory in OPTIMIZERS.items():
            row = examine(case, factory)
            rows.append(row)
            rates = "".join(f"{row[name]:9.2g}" for name in ("best", *names[:3]))
            ratios = "".join(f"{min(row[f'{name} ratio'], 99.99):8.3f}" for name in names)
            known = f"ours ± {row['error']:.3f}, best {row['loss']:.4f}, seeds agree within x{row['sure']:.2g}"
            print(f"{task:23s}{optimizer:9s}{rates}  {ratios}   {known}", flush=True)
    within = {name: sum(row[f"{name} ratio"] <= GOAL for row in rows) for name in names}
    print(f"within {GOAL - 1:.0%} of the best, of {len(rows)}: " + ", ".join(f"{name} {count}" for name, count in within.items()))
    for name in names:
        ratios = np.array([row[f"{name} ratio"] for row in rows])
        print(f"{name:7s} median {np.median(ratios):.3f}, worst {ratios.max():.3g} times the best")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
