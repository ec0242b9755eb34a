"""tune against the best of 200 random full-length trials of the same space, on real tasks: `python tests/benchmarks/tune.py [config ...]`.

Both winners run again under the same seeds, which neither was chosen by; the ratio is of these held-out losses. What tune chose by is a
held-out set that it looked at some twenty full runs' worth of times, random search two hundred.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)

import lossopt_jax as lo  # noqa: E402
from lossopt_jax.config import load  # noqa: E402
from lossopt_jax.tune import DECAY, _families  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs"
TASKS = ("digits_mlp", "diabetes_mlp", "breast_cancer_mlp", "rare_cancer_mlp", "digits_cnn", "digits_rnn", "pasted_digits_unet")
TRIALS, SEEDS = 200, 8


def random_best(made, path):
    """The best of random trials, and their lane-steps: any optimizer of tune's, any rate and decay of its ranges."""
    families, recipes = _families(made.recipe, None), []
    for place, family in enumerate(families.values()):
        recipe = made.recipe._replace(optimizer=family)
        space = {path: lo.log_uniform(1e-5, 10.0)} | (
            {"optimizer.weight_decay": DECAY} if "optimizer.weight_decay" in lo.numbers(recipe) else {}
        )
        space |= {p: d for p, d in extra(made).items() if p in lo.numbers(recipe) and p not in space}
        count = len(range(place, TRIALS, len(families)))
        recipes += lo.sample(recipe, space, count=count, seed=place, sampler=lo.samplers.random).recipes
    swept = lo.sweep(made.model, recipes, train=made.task.train, evaluate=made.task.evaluate, run=made.run)
    return swept.best(), swept.lane_steps


def extra(made):
    return {} if made.trials is None else {path: what for path, what in made.trials.space.items() if path in lo.numbers(made.recipe)}


def measured(name):
    made = load(CONFIGS / f"{name}.toml")
    data = {"train": made.task.train, "evaluate": made.task.evaluate}
    began = time.perf_counter()
    tuned = lo.tune(made.model, made.recipe, **data, run=made.run, space=extra(made))
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    best, random_steps = random_best(made, next(iter(tuned.findings.values())).path)
    random_seconds = time.perf_counter() - began
    again = lo.sweep(made.model, [tuned.recipe, best, made.recipe], **data, run=replace(made.run, seed=100), seeds=SEEDS)
    losses = again.evaluation["loss"].reshape(3, SEEDS)
    means, sems = losses.mean(1), losses.std(1, ddof=1) / np.sqrt(SEEDS)
    shown = "  ".join(f"{what} {m:.4f} ± {s:.4f}" for what, m, s in zip(("tuned", "random", "as given"), means, sems, strict=True))
    share = sum(tuned.lane_steps.values()) / random_steps
    print(
        f"{name:20} {shown}  ratio {means[0] / means[1]:.3f}  lane-steps {share:.3f}  seconds {seconds:.0f} and {random_seconds:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    for task in sys.argv[1:] or TASKS:
        measured(task)
