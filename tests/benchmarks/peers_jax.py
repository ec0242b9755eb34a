"""The contenders of peers.py that use JAX, ours among them; run by it."""

import sys
import time

import jax
import numpy as np

if sys.argv[1:2] in (["ours"], ["growth"]):
    jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp
import optax
from flax import linen as nn
from peers_data import EMBEDDED, HIDDEN, WIDTHS, WORKLOADS, batches, data, serve

FRESH_TRIALS = 4  # of Optuna with a compile each: the others would take as long


class MLP(nn.Module):
    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class CNN(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c)  # summed by hand: XLA's sums over so short axes are slower
            x = (x[:, :, 0, :, 0] + x[:, :, 0, :, 1] + x[:, :, 1, :, 0] + x[:, :, 1, :, 1]) / 4
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Characters(nn.Module):
    letters: int

    @nn.compact
    def __call__(self, x):
        h = nn.RNN(nn.GRUCell(HIDDEN))(nn.Embed(self.letters, EMBEDDED)(x))
        return nn.Dense(self.letters)(h)


def network(workload: str, classes: int) -> nn.Module:
    if workload == "rnn":
        return Characters(classes)
    return CNN(classes) if workload == "cnn" else MLP(WIDTHS[workload], classes)


def optimizer(workload: str, rate):
    return optax.sgd(rate, momentum=0.9) if WORKLOADS[workload].momentum else optax.adamw(rate, weight_decay=1e-2)


def by_hand(workload: str):
    """(x, y), order of batches, a fresh start, and a step as anyone would write it."""
    x, y, classes = data(workload)
    module = network(workload, classes)
    params = module.init(jax.random.key(0), x[:1])

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(module.apply(params, x), y).mean()

    def step(params, opt_state, rate, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = optimizer(workload, rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return x, y, batches(workload, len(x)), lambda: (params, optimizer(workload, 1.0).init(params)), step


def a_scan(workload: str):
    """rate -> the losses of a whole run, as one function to be compiled."""
    x, y, order, start, step = by_hand(workload)
    x, y, order = jnp.asarray(x), jnp.asarray(y), jnp.asarray(order)

    def run(rate):
        def body(carry, indices):
            *carry, value = step(*carry, rate, x[indices], y[indices])
            return tuple(carry), value

        return jax.lax.scan(body, start(), order)[1]

    return run


def jit_step(workload: str, rates: np.ndarray):
    x, y, order, start, step = by_hand(workload)
    step = jax.jit(step, donate_argnums=(0, 1))

    def train(rate, steps):
        params, opt_state = jax.tree.map(jnp.copy, start())
        losses = []
        for indices in order[:steps]:
            params, opt_state, loss = step(params, opt_state, rate, x[indices], y[indices])
            losses.append(loss)
        return np.mean(jax.device_get(losses[-len(order) // 10 :]))

    train(rates[0], 20)
    return lambda: (1.0, float(np.mean([train(rate, len(order)) for rate in rates])))


def vmap_scan(workload: str, rates: np.ndarray):
    compiled = jax.jit(jax.vmap(a_scan(workload))).lower(rates).compile()
    return lambda: (1.0, float(np.asarray(compiled(rates))[:, -WORKLOADS[workload].steps // 10 :].mean()))


def optuna_scan(workload: str, rates: np.ndarray):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    compiled = jax.jit(a_scan(workload)).lower(rates[0]).compile()

    def objective(trial):
        rate = np.float32(trial.suggest_float("rate", rates[0], rates[-1], log=True))
        return float(np.asarray(compiled(rate))[-WORKLOADS[workload].steps // 10 :].mean())

    def run():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=len(rates))
        return 1.0, float(np.mean([trial.value for trial in study.trials]))

    return run


def optuna_fresh(workload: str, rates: np.ndarray):
    """As in Optuna's documentation: each trial makes its optimizer and its jitted step, so each compiles."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, y, classes = data(workload)
    order, module = batches(workload, len(x)), network(workload, classes)

    def objective(trial):
        tx = optimizer(workload, trial.suggest_float("rate", rates[0], rates[-1], log=True))
        params = module.init(jax.random.key(0), x[:1])
        opt_state = tx.init(params)

        @jax.jit
        def step(params, opt_state, x, y):
            loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(module.apply(params, x), y).mean()  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        losses = []
        for indices in order:
            params, opt_state, value = step(params, opt_state, x[indices], y[indices])
            losses.append(value)
        return float(np.mean(jax.device_get(losses[-len(order) // 10 :])))

    def run():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=min(FRESH_TRIALS, len(rates)))
        return min(1.0, FRESH_TRIALS / len(rates)), float(np.mean([trial.value for trial in study.trials]))

    return run


def ray_actors(workload: str, rates: np.ndarray):
    """As Ray's documentation says to save the start of a trial: an actor for each core, which compiles once and is reset for the next."""
    import logging
    import os
    import tempfile

    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}  # no file for each trial
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it misses those files

    class Lane(tune.Trainable):
        def setup(self, config):
            self.compiled = jax.jit(a_scan(workload)).lower(np.float32(0)).compile()
            self.rate = config["rate"]

        def reset_config(self, config):
            self.rate = config["rate"]
            return True

        def step(self):
            losses = np.asarray(self.compiled(np.float32(self.rate)))
            return {"loss": float(losses[-WORKLOADS[workload].steps // 10 :].mean()), "done": True}

        def save_checkpoint(self, checkpoint_dir):  # Ray asks for one when a trial ends
            return {}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})

    def run():
        tuner = tune.Tuner(
            tune.with_resources(Lane, {"cpu": 1}),
            param_space={"rate": tune.grid_search(rates.tolist())},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
            run_config=tune.RunConfig(verbose=0, storage_path=tempfile.mkdtemp()),
        )
        return 1.0, float(np.mean([result.metrics["loss"] for result in tuner.fit()]))

    return run


def lanes_of(workload: str, rates, plan=None):
    import lossopt_jax as lo

    w = WORKLOADS[workload]
    x, y, classes = data(workload)
    model = lo.from_linen(lo.models.CNN(output_shape=(classes,)) if workload == "cnn" else network(workload, classes))
    tx = lo.bind(lo.optimizers.momentum, beta=0.9) if w.momentum else lo.bind(lo.optimizers.adamw, weight_decay=1e-2)
    recipe = lo.Recipe(lo.bind(lo.losses.cross_entropy), tx, lo.bind(lo.schedules.constant, value=1e-3))
    trials = lo.grid(recipe, {"schedule.value": rates.tolist()})
    given = {"train": (x, y), "run": lo.Run(steps=w.steps, batch_size=w.batch)}
    plan = plan or lo.plan_lanes(model, trials, **given)
    return lambda: lo.sweep(model, trials, **given, plan=plan)


def ours(workload: str, rates: np.ndarray):
    sweep = lanes_of(workload, rates)

    def run():
        losses = sweep().history["loss"][:, -WORKLOADS[workload].steps // 10 :]
        return 1.0, float(np.nanmean(losses))

    return run


def growth(workload: str) -> None:
    """Cost against the number of lanes; the compiled program's, and of all."""
    print(f"\ngrowth: {workload}, {WORKLOADS[workload].steps} steps")
    first = None
    for lanes in (64, 256, 1024, 4096):
        sweep = lanes_of(workload, np.geomspace(1e-4, 1e-2, lanes))
        best, began = min(sweep().seconds for _ in range(3)), time.perf_counter()
        sweep()
        first = first or best / lanes
        whole = (time.perf_counter() - began) / lanes
        row = f"{lanes:6d} lanes {best / lanes * 1e3:7.3f} ms a lane, {best / lanes / first:.2f} times that of 64"
        print(f"{row}; all in {whole * 1e3:.3f} ms")


if __name__ == "__main__":
    if sys.argv[1] == "growth":
        growth(sys.argv[2])
    else:
        serve(globals()[sys.argv[1]])
