"""Optuna's TPE on the space of tune's benchmark, as fast as it can be made: two processes, one core each, share a study through a journal.

Each has one compiled program in which every number is traced, and which optimizer as well (a `switch`), so that no trial compiles. The
held-out loss is reported at each of the config's evaluations, and Optuna's default pruner (the median's) asked.
The clock starts when both have loaded the data, so compiling counts, as it does for tune. `python tests/benchmarks/tune_tpe.py config 20`
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
# 200 full-length trials of the config's own network would take hours.
SMALLER = {"pasted_digits_unet": ["model.channels=[8, 16]", "run.steps=300"]}


def experiment(name: str):
    from lossopt_jax.config import load

    return load(CONFIGS / f"{name}.toml", SMALLER.get(name, ()))


def spaces(made):
    """Of each optimizer of tune's the recipe and what is drawn of it: any rate, the decay of tune's range, what the config sweeps."""
    import lossopt_jax as lo
    from lossopt_jax.lr_finder import with_rate
    from lossopt_jax.tune import DECAY, HIGH, LOW, _families

    swept, found = {} if made.trials is None else made.trials.space, {}
    for label, family in _families(made.recipe, None).items():
        recipe = made.recipe._replace(optimizer=family)
        space = {"optimizer.weight_decay": DECAY, **swept, with_rate(recipe, 1.0)[0]: lo.log_uniform(LOW, HIGH)}
        found[label] = recipe, {path: what for path, what in space.items() if path in lo.numbers(recipe)}
    return found


def tpe_best(name: str, seconds: float, seed: int = 0):
    """The best recipe that two workers find in so many seconds; how many trials they began, and how many ran to the end."""
    import optuna

    from lossopt_jax.recipe import with_numbers

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        journal = str(Path(folder) / "journal")
        study = _study(optuna, journal, seed, create=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker", name, str(seconds), journal, str(seed)]
        workers = [
            subprocess.Popen([*command, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for core in (0, 1)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        assert [worker.wait() for worker in workers] == [0, 0]
        study = _study(optuna, journal, seed)
        ended = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
        recipe, space = spaces(experiment(name))[study.best_params["optimizer"]]
        values = {path: study.best_params[_named(study.best_params["optimizer"], path)] for path in space}
        return with_numbers(recipe, values), len(study.trials), ended


def _named(label, path):
    return path.replace("optimizer.", f"{label}.", 1)


def _study(optuna, journal, seed, *, create=False):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    how = {"sampler": optuna.samplers.TPESampler(seed=seed, constant_liar=True), "study_name": "tpe", "storage": storage}
    return optuna.create_study(**how) if create else optuna.load_study(**how)


def one_of(members):
    """An optimizer that is the one of `members` whose number is `which`."""
    import jax
    import optax

    import lossopt_jax as lo
    from lossopt_jax._types import Scalar, cast_like

    def chosen(learning_rate, *, which: Scalar, members: tuple = ()) -> optax.GradientTransformation:
        every = [member(learning_rate) for member in members]

        def update(grads, state, params=None):
            def by(i):
                updates, own = every[i].update(grads, state[i], params)
                return updates, (*state[:i], cast_like(own, state[i]), *state[i + 1 :])

            return jax.lax.switch(which.astype("int32"), [lambda i=i: by(i) for i in range(len(every))])

        return optax.GradientTransformation(lambda params: tuple(tx.init(params) for tx in every), update)

    return lo.bind(chosen, which=0.0, members=tuple(members))


def worker(name: str, seconds: float, journal: str, seed: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    import jax
    import optuna

    from lossopt_jax.data import as_batch, batch_indices, examples, pieces
    from lossopt_jax.loop import chunk_length, evaluation_steps
    from lossopt_jax.recipe import with_numbers
    from lossopt_jax.step import init_state
    from lossopt_jax.train import EVALUATION_BATCH, Carry, compile_together, evaluate, train_chunk

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = experiment(name)
    data, held_out = as_batch(made.task.train, "train"), pieces(as_batch(made.task.evaluate, "evaluate"), EVALUATION_BATCH)
    found, run = spaces(made), replace(made.run, seed=seed)
    labels, length, due = list(found), chunk_length(run), evaluation_steps(run)
    jax.block_until_ready(jax.device_put(data))
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.perf_counter() + seconds
    recipe = made.recipe._replace(optimizer=one_of(recipe.optimizer for recipe, _ in found.values()))
    start_with = made.model, recipe, jax.random.key(run.seed), jax.tree.map(lambda leaf: leaf[:1], data.inputs)
    carry = Carry(jax.eval_shape(init_state, *start_with), jax.ShapeDtypeStruct((), bool))
    order = [batch_indices(examples(data), run.batch_size, run.seed, int(end) - length, length) for end in due]
    start, chunk, score = compile_together(
        jax.jit(init_state).lower(*start_with),
        jax.jit(train_chunk).lower(made.model, recipe, carry, data, order[0], length),
        jax.jit(evaluate).lower(made.model, recipe, carry.state, held_out),
    )
    begin = Carry(start(*start_with), jax.numpy.bool_(True))
    data, held_out, order = jax.device_put((data, held_out, order))
    study = _study(optuna, journal, seed + core)

    def objective(trial):
        label = trial.suggest_categorical("optimizer", labels)
        own, space = found[label]
        drawn = with_numbers(own, {path: _suggested(trial, _named(label, path), what) for path, what in space.items()})
        members = tuple(drawn.optimizer if other == label else recipe.optimizer for other, (recipe, _) in found.items())
        here = drawn._replace(optimizer=recipe.optimizer.replace(which=float(labels.index(label)), members=members))
        carry = begin
        for at, indices in enumerate(order, 1):
            carry, _ = chunk(made.model, here, carry, data, indices, length)
            loss = float(score(made.model, here, carry.state, held_out)["loss"])
            trial.report(loss, at)
            if not carry.alive or trial.should_prune():
                raise optuna.TrialPruned
            if time.perf_counter() > until:
                study.stop()
                raise optuna.TrialPruned
        return loss

    study.optimize(objective, timeout=max(0.0, until - time.perf_counter()))


def _suggested(trial, name, what):
    if what.kind == "choice":
        return trial.suggest_categorical(name, what.values)
    return trial.suggest_float(name, what.low, what.high, log=what.kind == "log_uniform")


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(sys.argv[2], float(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        print(tpe_best(sys.argv[1], float(sys.argv[2])))
