"""tune against the best of 200 random full-length trials and against Optuna's TPE, on real tasks.

All draw from one space. TPE has the wall time that tune took, on both cores (see tune_tpe.py). The winners run again under the same seeds,
which none was chosen by; the ratios are of these held-out losses. What tune chose by is a held-out set that it looked at some twenty full
runs' worth of times, random search two hundred. Needs Optuna. `python tests/benchmarks/tune.py [config ...]`
"""

import os
import sys
import time
from dataclasses import replace

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)

from tune_tpe import CONFIGS, spaces, tpe_best  # noqa: E402

import lossopt_jax as lo  # noqa: E402
from lossopt_jax.config import load  # noqa: E402

TASKS = ("digits_mlp", "diabetes_mlp", "breast_cancer_mlp", "rare_cancer_mlp", "digits_cnn", "digits_rnn", "pasted_digits_unet")
TRIALS, SEEDS = 200, 8


def random_trials(made):
    found, recipes = spaces(made), []
    for place, (recipe, space) in enumerate(found.values()):
        count = len(range(place, TRIALS, len(found)))
        recipes += lo.sample(recipe, space, count=count, seed=place, sampler=lo.samplers.random).recipes
    return recipes


def measured(name):
    made = load(CONFIGS / f"{name}.toml")
    data = {"train": made.task.train, "evaluate": made.task.evaluate}
    swept = {} if made.trials is None else made.trials.space
    began = time.perf_counter()
    tuned = lo.tune(made.model, made.recipe, **data, run=made.run, space=swept)
    seconds = time.perf_counter() - began
    tpe, trials, ended = tpe_best(name, seconds)
    began = time.perf_counter()
    random = lo.sweep(made.model, random_trials(made), **data, run=made.run)
    random_seconds = time.perf_counter() - began
    recipes = {"tuned": tuned.recipe, "random": random.best(), "tpe": tpe, "as given": made.recipe}
    again = lo.sweep(made.model, list(recipes.values()), **data, run=replace(made.run, seed=100), seeds=SEEDS)
    losses = again.evaluation["loss"].reshape(len(recipes), SEEDS)
    means, sems = losses.mean(1), losses.std(1, ddof=1) / np.sqrt(SEEDS)
    shown = "  ".join(f"{what} {m:.4f} ± {s:.4f}" for what, m, s in zip(recipes, means, sems, strict=True))
    share = sum(tuned.lane_steps.values()) / random.lane_steps
    print(f"{name:20} {shown}  ratios {means[0] / means[1]:.3f} and {means[0] / means[2]:.3f}", flush=True)
    print(
        f"{'':20} lane-steps {share:.3f}  seconds {seconds:.0f} and {random_seconds:.0f}  TPE's trials {trials}, {ended} to the end"
        f"  load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    for task in sys.argv[1:] or TASKS:
        measured(task)
