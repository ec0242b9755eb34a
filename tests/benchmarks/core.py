"""The core's speed on this machine: python tests/benchmarks/core.py [rounds]

Digits, MLP 64-64-64-10, batch 64, AdamW, warm-up and cosine, 500 steps. Reports a lane-step of a 64-lane sweep as a share of the same
process's 2048 x 2048 float32 matmul, and `fit` of one recipe against a hand-written jit(scan) with optax, in turns. Compiling is
shown apart. The best of the rounds counts: on a shared machine the others measure the neighbours.
"""

import subprocess
import sys
import time

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import linen as nn  # noqa: E402

import lossopt_jax as lo  # noqa: E402

STEPS, BATCH, LANES = 500, 64, 64
# By the usual count, 6 a weight and example: forward, weight gradients and input gradients at 2 each.
FLOPS = 6 * BATCH * (64 * 64 + 64 * 64 + 64 * 10)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (64, 64):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def matmul_gflops() -> float:
    a = jnp.ones((2048, 2048), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(a))
    return 2 * 2048**3 / min(clock(lambda: jax.block_until_ready(multiply(a))) for _ in range(5)) / 1e9


def clock(f) -> float:
    started = time.perf_counter()
    f()
    return time.perf_counter() - started


def by_hand(x, y):
    """One run as anyone would write it: optax, lax.scan over precomputed indices, everything in one jit."""
    module = MLP()
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, STEPS), weight_decay=1e-2)
    params = module.init(jax.random.key(0), x[:1])

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(module.apply(params, x), y).mean()

    def step(carry, indices):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, x[indices], y[indices])
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = value, optax.tree.norm(grads), optax.global_norm(updates)
        return (optax.apply_updates(params, updates), opt_state), metrics

    indices = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, len(x))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, indices))
    return lambda: jax.block_until_ready(run((params, tx.init(params))))


def main(rounds: int) -> None:
    task = lo.data.digits()
    model = lo.from_linen(MLP())
    recipe = lo.Recipe(
        lo.bind(lo.losses.cross_entropy),
        lo.bind(lo.optimizers.adamw, weight_decay=1e-2),
        lo.bind(lo.schedules.warmup_cosine, peak=3e-3, warmup=50, total=STEPS),
    )
    space = {"schedule.peak": lo.log_uniform(1e-5, 1e-1), "optimizer.weight_decay": lo.log_uniform(1e-5, 1e-1)}
    trials = lo.sample(recipe, space, count=LANES)
    run = lo.Run(steps=STEPS, batch_size=BATCH)
    hand = by_hand(*map(jnp.asarray, task.train))
    hand()
    rows = []
    for _ in range(rounds):
        swept = lo.sweep(model, trials, train=task.train, run=run)
        fitted = lo.fit(model, recipe, train=task.train, run=run)
        rows.append((swept.seconds, fitted.seconds, min(clock(hand) for _ in range(3)), matmul_gflops(), swept.compile_seconds))
    seconds, single, written, gflops, compiling = (
        f(column) for f, column in zip((min, min, min, max, min), zip(*rows, strict=True), strict=True)
    )
    lane_step = seconds / LANES / STEPS
    achieved = FLOPS / lane_step / 1e9
    print(f"{swept.plan}; best of {rounds} rounds")
    print(f"matmul 2048 x 2048 float32    {gflops:7.1f} GFLOP/s")
    share = f"{achieved:.1f} GFLOP/s, {achieved / gflops:.0%} of the matmul"
    print(f"sweep, {LANES} lanes x {STEPS} steps  {lane_step * 1e6:7.1f} us a lane-step, {share}")
    print(f"sweep, compiling              {compiling:7.2f} s")
    print(f"fit, one recipe               {single * 1e6 / STEPS:7.1f} us a step, {single / written:.2f} times the hand-written jit(scan)")
    for what, code in (
        ("jax, optax, flax", "import jax, optax, flax.linen, flax.nnx"),
        ("and lossopt_jax, all of it", "import lossopt_jax as lo; lo.fit, lo.sweep, lo.losses, lo.optimizers, lo.schedules"),
    ):
        python = "import jax, optax, flax.linen, flax.nnx;" + code
        best = min(clock(lambda python=python: subprocess.run([sys.executable, "-c", python], check=True)) for _ in range(3))
        print(f"import of {what:26s} {best:5.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
