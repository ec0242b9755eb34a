"""tune against the best of 200 random full-length trials and against Optuna's TPE, on real tasks.

All draw from one space. With its usual budget tune takes a tenth of the lane-steps of random search; given --minutes, what it takes with
compiling in a fresh process is the wall time that TPE has, on both cores (see tune_tpe.py). What one search finds depends on its seed, so
each is repeated under others. Every winner is trained again under the same 8 seeds, which none was chosen by: held-out loss, the median
of the repeats, their range and their mean. Needs Optuna, but with --minutes 0, which leaves TPE out.
`python tests/benchmarks/tune.py [config ...] [--repeats N] [--minutes M]`
"""

import argparse
import os
import time
from dataclasses import replace

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)

from tune_tpe import experiment, spaces, tpe_best  # noqa: E402

import lossopt_jax as lo  # noqa: E402

TASKS = ("digits_mlp", "diabetes_mlp", "breast_cancer_mlp", "rare_cancer_mlp", "digits_cnn", "digits_rnn", "pasted_digits_unet")
TRIALS, SEEDS, APART = 200, 8, 1_000  # APART: between the seeds of one repeat and the next


def random_trials(made, repeat):
    found, recipes = spaces(made), []
    for place, (recipe, space) in enumerate(found.values()):
        count = len(range(place, TRIALS, len(found)))
        recipes += lo.sample(recipe, space, count=count, seed=APART * repeat + place, sampler=lo.samplers.random).recipes
    return recipes


def measured(name, repeats, minutes):
    made = experiment(name)
    data = {"train": made.task.train, "evaluate": made.task.evaluate}
    space = {} if made.trials is None else made.trials.space
    winners = {"tuned": [], "random": []} | ({f"tuned, {minutes:g} min": [], "TPE": []} if minutes else {})
    shares, trials, seconds = [], [], 0.0
    for repeat in range(repeats):
        run, longer = replace(made.run, seed=APART * repeat), []
        if minutes:
            began = time.perf_counter()
            longer = [lo.tune(made.model, made.recipe, **data, run=run, space=space, minutes=minutes).recipe]
            seconds = seconds or time.perf_counter() - began  # the first one has compiled
            tpe, *counts = tpe_best(name, seconds, APART * repeat)
            trials.append(counts)
            longer.append(tpe)
        usual = lo.tune(made.model, made.recipe, **data, run=run, space=space)
        random = lo.sweep(made.model, random_trials(made, repeat), **data, run=run).best()
        shares.append(sum(usual.lane_steps.values()) / (TRIALS * run.steps))
        for found, recipe in zip(winners.values(), (usual.recipe, random, *longer), strict=True):
            found.append(recipe)
    recipes = [recipe for found in winners.values() for recipe in found] + [made.recipe]
    again = lo.sweep(made.model, recipes, **data, run=replace(made.run, seed=APART * repeats), seeds=SEEDS)
    losses = again.evaluation["loss"].reshape(len(recipes), SEEDS).mean(1)
    print(f"{name}: {repeats} repeats, load {os.getloadavg()[0]:.1f}")
    middle = {}
    for i, what in enumerate(winners):
        mine = np.nan_to_num(losses[i * repeats : (i + 1) * repeats], nan=np.inf)
        middle[what] = np.median(mine)
        print(f"  {what:16} {middle[what]:.4f} ({mine.min():.4f} to {mine.max():.4f}), mean {mine.mean():.4f}")
    print(f"  {'as given':16} {losses[-1]:.4f}")
    usual, random, *others = middle.values()
    print(f"  tuned / random {usual / random:.3f} in {np.mean(shares):.3f} of their lane-steps")
    if minutes:
        longer, tpe = others
        begun, ended = np.mean(trials, 0)
        print(f"  tuned / TPE {longer / tpe:.3f} in {seconds:.0f} s; TPE's trials {begun:.0f}, {ended:.0f} of them to the end")
    print(flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=TASKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0.2)
    given = parser.parse_args()
    for task in given.configs:
        measured(task, given.repeats, given.minutes)
