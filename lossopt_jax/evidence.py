"""What `recommend` recommends against its rivals on real tasks: losses, optimizers and schedules, each at the best of its rates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import losses, optimizers, schedules
from .config import experiment
from .loop import Callbacks, Run
from .measured import Row
from .models import Model
from .recipe import Bound, Recipe, bind, nearest
from .sweep import LanePlan, Swept, Trials, default_plan
from .sweep.run import finished, prepared

USUAL = {"sgd": 0.1, "momentum": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}  # the rate that people start with
STEP = math.sqrt(10)  # from one rate to the next
SCHEDULES = ("constant", "cosine", "warmup_cosine")
WARMUP = 0.1  # of the steps
LOOKS = 20  # at the held-out data


class Contest(NamedTuple):
    """A task and who competes. losses, optimizers: the first of each is the one recommended; it meets every rival of the other.

    data, model: tables of a config. metric: one of `METRICS`, which all losses are judged by. rates: how many are tried, about the
    usual one. balanced: whether the classes of the held-out part count alike.
    """

    data: str
    model: dict[str, Any]
    metric: str
    losses: tuple[dict[str, Any], ...]
    optimizers: tuple[str, ...]
    steps: int = 200
    batch_size: int = 32
    rates: int = 8
    clip_norm: float | None = None
    balanced: bool = False

    def summary(self, seeds: int) -> str:
        """What is to run."""
        many = len(self.optimizers) + len(self.losses) - 1
        lanes = many * len(SCHEDULES) * (self.rates + 2 * seeds)
        return f"{many} pairs of loss and optimizer x {len(SCHEDULES)} schedules, {lanes} lanes of {self.steps} steps"


ALL = ("adamw", "adam", "rmsprop", "momentum", "sgd")
MLP = {"name": "mlp", "widths": [32]}
CLASSES = ({"name": "cross_entropy"}, {"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "focal"}, {"name": "multi_margin"})
YES_NO = ({"name": "binary_cross_entropy"}, {"name": "binary_focal"}, {"name": "hinge"})
NUMBERS = ({"name": "huber"}, {"name": "mse"}, {"name": "mae"}, {"name": "log_cosh"})
WEIGHTED = {"name": "binary_cross_entropy", "pos_weight": 10.0}
REGIONS = ({"name": "binary_dice"}, {"name": "binary_iou"}, {"name": "binary_cross_entropy"})
SQUARES = (NUMBERS[1], NUMBERS[0], *NUMBERS[2:])
COUNTED = Contest("randhie", MLP | {"widths": [32, 32]}, "mae", NUMBERS, ("adamw", "adam", "momentum"), steps=300, batch_size=64)
# The slow ones last, with fewer rivals and rates, and the last two with fewer steps: theirs cost up to two hundred of an MLP's.
CONTESTS = {
    "diabetes_mlp": Contest("diabetes", MLP | {"widths": [32, 32]}, "mse", SQUARES, ALL),
    "randhie_mlp": COUNTED,
    "randhie_mlp_by_mse": COUNTED._replace(metric="mse"),
    "breast_cancer_mlp": Contest("breast_cancer", MLP, "error", YES_NO, ALL),
    "rare_cancer_mlp": Contest("rare_cancer", MLP, "balanced error", (WEIGHTED, *YES_NO), ALL, balanced=True),
    "digits_mlp": Contest("digits", MLP | {"widths": [64, 64]}, "error", CLASSES, ALL, steps=500, batch_size=64),
    "digits_cnn": Contest("digits_images", {"name": "cnn"}, "error", CLASSES[:1], ("momentum", "adam", "adamw"), steps=300, rates=6),
    "digits_rnn": Contest(
        "digits_images", {"name": "rnn"}, "error", CLASSES[:1], ("adam", "rmsprop", "momentum"), steps=300, rates=6, clip_norm=1.0
    ),
    "pasted_digits_unet": Contest(
        "pasted_digits", {"name": "unet"}, "IoU error", REGIONS, ("adam", "momentum"), steps=150, batch_size=16, rates=3
    ),
    "help_text_rnn": Contest(
        "help_text",
        {"name": "rnn", "width": 128},
        "nats",
        CLASSES[:1],
        ("adam", "rmsprop", "momentum"),
        steps=300,
        rates=4,
        clip_norm=1.0,
    ),
    "help_text_transformer": Contest(
        "help_text",
        {"name": "transformer", "width": 64, "heads": 4, "depth": 1, "reach": 4},
        "nats",
        CLASSES[:1],
        ("adamw", "momentum"),
        steps=150,
        rates=3,
        clip_norm=1.0,
    ),
}


def evidence(
    task: str | Contest,
    *,
    seeds: int = 5,
    plan: LanePlan | None = None,
    on_stage: Callable[[int, int], Callbacks] = lambda lanes, steps: (),
) -> list[Row]:
    """Measure a task: its losses, optimizers and schedules, each at the best of its rates and at the usual one, best first.

    The recommended loss is run with every optimizer, the recommended optimizer with every loss, each of these with a constant rate, a
    cosine, and a cosine after a warm-up of a tenth of the steps. Every rate runs under seed 0; the best by the held-out metric and the
    usual one run again under `seeds` seeds from 1 on, which give the rows. The held-out part is the same in both, so that the values
    flatter all of them a little.

    task: a name of `CONTESTS` or a `Contest`. on_stage: (lanes, steps) of what is about to run -> the callbacks for it.
    In the manner of DeepOBS (Schneider et al. 2019, arXiv:1903.05499) and AlgoPerf (Dahl et al. 2023, arXiv:2306.07179).
    """
    if isinstance(task, str) and task not in CONTESTS:
        raise ValueError(f"evidence: no task {task!r}; {nearest(task, CONTESTS)}")
    if seeds < 2:
        raise ValueError(f"evidence: seeds must be at least 2, for a standard error, got {seeds}")
    name, contest = (task, CONTESTS[task]) if isinstance(task, str) else (task.data, task)
    rivals = [(combined, schedule) for combined in _combined(contest) for schedule in SCHEDULES]
    arena = _Arena.of(contest, seeds, plan)
    tried = [_rates(contest, optimizer) for (_, optimizer), _ in rivals]
    first = arena.run([(who, rate) for who, rates in zip(rivals, tried, strict=True) for rate in rates], 0, 1, on_stage)
    ends = _ends(first).reshape(len(rivals), contest.rates)
    best = [rates[int(np.argmin(end))] for rates, end in zip(tried, ends, strict=True)]
    lanes = [(who, rate) for who, tuned in zip(rivals, best, strict=True) for rate in (tuned, USUAL[who[0][1]])]
    again = arena.run(lanes, 1, seeds, on_stage)
    return _rows(name, contest, lanes, again)


Rival = tuple[tuple[int, str], str]  # the place of the loss, the optimizer, the schedule


class _Arena(NamedTuple):
    """What all lanes of a task share. room: lanes that each program has places for, so that both stages run the same ones."""

    contest: Contest
    model: Model
    train: Any
    evaluate: Any
    base: Run
    losses: list[Bound]
    room: int
    seeds: int
    plan: LanePlan

    @classmethod
    def of(cls, contest: Contest, seeds: int, plan: LanePlan | None) -> "_Arena":
        run = {"steps": contest.steps, "batch_size": contest.batch_size, "evaluate_every": max(1, contest.steps // LOOKS)}
        parts = {"optimizer": {"name": "adam"}, "schedule": {"name": "constant", "value": 1.0}, "run": run}
        made = [experiment({"data": {"name": contest.data}, "model": contest.model, "loss": loss, **parts}) for loss in contest.losses]
        x, y = made[0].task.evaluate
        held_out = (x, y, (1 / np.bincount(y)[y]).astype(np.float32)) if contest.balanced else (x, y)
        bound = [one.recipe.loss for one in made]
        room = len(SCHEDULES) * max(-(-contest.rates // seeds), 2)
        model, train = made[0].model, made[0].task.train
        # Not measured: that compiles a program for each width that it tries, and the lanes of a contest are few.
        plan = default_plan(model, train[0], contest.batch_size, room * seeds) if plan is None else plan
        return cls(contest, model, train, held_out, made[0].run, bound, room, seeds, plan)

    def run(self, lanes: Sequence[tuple[Rival, float]], seed: int, seeds: int, on_stage: Callable[[int, int], Callbacks]) -> Swept:
        trials = Trials(tuple(self.recipe(who, rate) for who, rate in lanes), {})
        run = replace(self.base, seed=seed)
        room: dict[str, int] = {"room": self.room * self.seeds // seeds, "seed_room": self.seeds}
        job = prepared(self.model, trials, self.train, self.evaluate, run, seeds, self.plan, None, 30.0, stop=None, **room)
        return finished(job, on_stage(len(lanes) * seeds, run.steps))

    def recipe(self, who: Rival, rate: float) -> Recipe:
        """All schedules are one function under different numbers, so one program: a cosine that falls to its peak is a constant."""
        (loss, optimizer), shape = who
        total = self.contest.steps
        numbers = {"warmup": WARMUP * total * (shape == "warmup_cosine"), "floor": rate * (shape == "constant")}
        decay = {"weight_decay": 1e-2} if optimizer == "adamw" else {}
        clip_norm = None if self.contest.clip_norm is None else np.float32(self.contest.clip_norm)
        bound = bind(getattr(optimizers, optimizer), **decay)
        schedule = bind(schedules.warmup_cosine, peak=rate, total=total, **numbers)
        return Recipe(self.losses[loss], bound, schedule, clip_norm, bind(METRICS[self.contest.metric]))


def _combined(contest: Contest) -> list[tuple[int, str]]:
    return [(0, optimizer) for optimizer in contest.optimizers] + [(i, contest.optimizers[0]) for i in range(1, len(contest.losses))]


def _rates(contest: Contest, optimizer: str) -> list[float]:
    return [USUAL[optimizer] * STEP ** (k + 1 - contest.rates // 2) for k in range(contest.rates)]


def _error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    found = outputs > 0 if outputs.shape == labels.shape else outputs.argmax(-1)
    return (found != labels).astype(jnp.float32)


def _iou_error(outputs: jax.Array, masks: jax.Array) -> jax.Array:
    """1 - IoU of each image, [b, h, w] -> [b]: the pixels above 0 against the mask."""
    found, true = outputs > 0, masks > 0
    return 1 - (found & true).sum((1, 2)) / jnp.maximum((found | true).sum((1, 2)), 1)


METRICS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "error": _error,
    "balanced error": _error,
    "mse": losses.mse,
    "mae": losses.mae,
    "IoU error": _iou_error,
    "nats": losses.cross_entropy,
}


def _judged(swept: Swept) -> np.ndarray:
    """The metric of the contest, [lanes, evaluations]."""
    return swept.evaluations[str(swept.trials.recipes[0].metric_name)]


def _ends(swept: Swept) -> np.ndarray:
    values = _judged(swept)[:, -1]
    return np.where(np.isfinite(values), values, np.inf)


def _rows(name: str, contest: Contest, lanes: Sequence[tuple[Rival, float]], swept: Swept) -> list[Row]:
    """A row for each trial; of one whose best rate is the usual one, two that agree."""
    seeds, looks = swept.seeds, swept.evaluation_steps
    curves = _judged(swept).reshape(len(lanes), seeds, -1)
    means = np.where(np.isfinite(curves).all(1), curves.mean(1), np.inf)
    target = float(np.median(means[::2, -1]))
    rows = []
    for i, (((loss, optimizer), schedule), rate) in enumerate(lanes):
        reached = np.flatnonzero(means[i] <= target)
        ends = curves[i, :, -1]
        sem = float(np.std(ends, ddof=1) / math.sqrt(seeds)) if math.isfinite(means[i, -1]) else math.inf
        steps = float(looks[reached[0]]) if len(reached) and math.isfinite(target) else math.inf
        rows.append(
            Row(
                *(name, _label(contest.losses[loss]), optimizer, schedule, ("tuned", "usual")[i % 2], rate, contest.metric),
                *(float(means[i, -1]), sem, steps, contest.steps, seeds, int((~np.isfinite(ends)).sum())),
            )
        )
    return sorted(rows, key=lambda row: (row.setting, row.value))


def _label(loss: dict[str, Any]) -> str:
    return " ".join([loss["name"], *(f"{key}={value:g}" for key, value in loss.items() if key != "name")])
