"""The head without logits against materialised ones: python tests/benchmarks/linear_cross_entropy.py [rounds] [tokens d vocabulary]

Value and gradient in hidden and kernel of the mean, float32, in turns; by default 2,048 tokens x 256 x 32,768 words. "naive" is
optax.softmax_cross_entropy_with_integer_labels of the materialised logits, with each option written out. Time is the best of the
rounds, since on a shared machine the others measure the neighbours, and its ratio is to naive without options; memory is XLA's
`memory_analysis` of temporaries, which leaves the results out.
"""

import sys
import time

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from lossopt_jax.losses import Head, linear_cross_entropy  # noqa: E402

OPTIONS = {
    "no options": {},
    "soft_cap": {"soft_cap": 30.0},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-4},
    "bias": {"bias": True},
    "class_weights": {"class_weights": True},
    "all options": {"soft_cap": 30.0, "label_smoothing": 0.1, "z_loss": 1e-4, "bias": True, "class_weights": True},
}


def materialised(head, labels, *, soft_cap=None, label_smoothing=None, z_loss=0.0, class_weights=None):
    z = head.logits()
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    if label_smoothing is None:
        values = optax.softmax_cross_entropy_with_integer_labels(z, labels)
        values = values if class_weights is None else values * class_weights[labels]
    else:
        q = optax.smooth_labels(jax.nn.one_hot(labels, z.shape[-1]), label_smoothing)
        values = optax.softmax_cross_entropy(z, q if class_weights is None else q * class_weights)
    return values + z_loss * jax.nn.logsumexp(z, axis=-1) ** 2


def program(loss, shapes, options):
    """Compiled value and gradient, and its arguments; every number is traced."""
    n, d, v = shapes
    keys = jax.random.split(jax.random.key(0), 5)
    head = Head(jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (d, v)) / d**0.5)
    numbers = {name: jnp.float32(x) for name, x in options.items() if not isinstance(x, bool)}
    if "bias" in options:
        head = head._replace(bias=jax.random.normal(keys[2], (v,)))
    if "class_weights" in options:
        numbers["class_weights"] = jax.random.uniform(keys[3], (v,), minval=0.5, maxval=2)
    arguments = head, jax.random.randint(keys[4], (n,), 0, v), numbers
    step = jax.value_and_grad(lambda head, labels, numbers: loss(head, labels, **numbers).mean())
    return jax.jit(step).lower(*arguments).compile(), arguments


def clock(compiled, arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - started


def main(rounds: int = 5, *shapes: int) -> None:
    shapes = shapes or (2048, 256, 32_768)
    cases = {
        ("naive", "no options"): program(materialised, shapes, {}),
        ("naive", "all options"): program(materialised, shapes, OPTIONS["all options"]),
    }
    cases |= {("linear_cross_entropy", name): program(linear_cross_entropy, shapes, options) for name, options in OPTIONS.items()}
    seconds = {name: float("inf") for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name] = min(seconds[name], clock(*case))
    naive = seconds["naive", "no options"]
    print(f"{shapes[0]:,} tokens x {shapes[1]:,} x {shapes[2]:,} words, {jax.default_backend()}, best of {rounds}")
    print(f"{'':40}{'ms':>8}{'of naive':>10}{'temp MiB':>10}")
    for name, (compiled, _) in cases.items():
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"{': '.join(name):40}{1e3 * seconds[name]:8.0f}{seconds[name] / naive:10.2f}{temporaries:10.1f}")
    for vocabulary in (32_768, 262_144):
        compiled, _ = program(linear_cross_entropy, (*shapes[:2], vocabulary), OPTIONS["all options"])
        print(f"all options at {vocabulary:,} words: {compiled.memory_analysis().temp_size_in_bytes / 2**20:.2f} MiB")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
