"""Noisy regression: the disease progression of 442 diabetes patients, of which no model explains much more than half.

python examples/regression.py

Expect error at most 0.75 standard deviations of one recipe (measured 0.72; the mean for everyone 1.00), and a held-out Huber loss
of 0.233 of the best swept rate (standard error over 5 seeds 0.004). 10 s of processor time, all in.
"""

import jax

jax.config.update("jax_num_cpu_devices", 2)  # before anything else of JAX: lanes then share both cores

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

import lossopt_jax as lo  # noqa: E402


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(1)(x)[..., 0]


def main(steps: int = 200, count: int = 16) -> None:
    task = lo.data.diabetes()
    inputs, targets = task.evaluate
    model = lo.from_linen(Network())
    recipe = lo.Recipe(
        loss=lo.bind(lo.losses.huber, delta=1.0),
        optimizer=lo.bind(lo.optimizers.adamw, weight_decay=1e-2),
        schedule=lo.bind(lo.schedules.warmup_cosine, peak=3e-3, warmup=steps / 10, total=steps),
    )
    run = lo.Run(steps=steps, batch_size=32)
    print(f"baseline, the mean for everyone: held-out error {np.sqrt(np.mean(targets**2)):.3f} standard deviations")
    fitted = lo.fit(model, recipe, train=task.train, evaluate=task.evaluate, run=run)
    predicted, _ = model.apply(fitted.state.params, {}, jnp.asarray(inputs), key=jax.random.key(0), train=False)
    print(f"one recipe: held-out error {np.sqrt(np.mean((predicted - targets) ** 2)):.3f}, Huber loss {fitted.evaluation['loss']:.3f}")

    trials = lo.sample(recipe, {"schedule.peak": lo.log_uniform(1e-4, 1e-1)}, count=count)
    swept = lo.sweep(model, trials, train=task.train, evaluate=task.evaluate, run=run, seeds=5)
    for row in swept.table()[:3]:
        loss, error = row["held_out_loss"], row["held_out_loss_sem"]
        print(f"peak {row['schedule.peak']:.2g}: held-out Huber loss {loss:.3f} (standard error over 5 seeds {error:.3f})")


if __name__ == "__main__":
    main()
