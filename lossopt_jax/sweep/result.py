"""What a sweep found: histories by lane, a table of trials, the best recipe."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..recipe import Recipe, nearest
from ..step import TrainState
from .lanes import LanePlan
from .spaces import Trials

# Metrics of which more is better; of any other less is.
HIGHER_IS_BETTER = ("held_out_accuracy",)
EDGE = 0.05


@dataclass(frozen=True)
class Swept:
    """A finished sweep. Lanes are trials x seeds, trial by trial.

    history: metric -> [lanes, steps], NaN after a lane diverged.
    evaluations: held-out metric -> [lanes, evaluations], after `evaluation_steps` steps.
    diverged_at: [lanes], the first step whose loss or parameters were not finite, -1 where none.
    states, places: the stacked states of each structure, and where among them a lane's is (see `state`).
    seconds, compile_seconds: wall time of the run, and of compiling before it.
    """

    trials: Trials
    seeds: int
    history: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: np.ndarray
    states: list[TrainState]
    places: list[tuple[int, int]]
    plan: LanePlan
    seconds: float
    compile_seconds: float

    @property
    def lanes(self) -> int:
        return len(self.trials) * self.seeds

    @property
    def steps(self) -> int:
        return self.history["loss"].shape[1]

    @property
    def evaluation(self) -> dict[str, np.ndarray]:
        """Held-out metric -> [lanes] at the end, NaN where a lane diverged."""
        return {name: values[:, -1] for name, values in self.evaluations.items()}

    def state(self, lane: int) -> TrainState:
        """The trained state of a lane; of a diverged one the last between chunks that was finite."""
        group, place = self.places[lane]
        return jax.tree.map(lambda leaf: leaf[place], self.states[group])

    def lane_metrics(self) -> dict[str, np.ndarray]:
        """Final and best metrics of every lane, [lanes] each; NaN, not a number that looks like one, where the lane diverged.

        train_loss is the mean of the last twentieth of the steps, since a single batch's loss is noise.
        """
        window = max(1, self.steps // 20)
        loss = self.history["loss"]
        columns = {"train_loss": loss[:, -window:].mean(1) if self.steps else np.full(self.lanes, np.nan)}
        for name, values in self.evaluations.items():
            columns[f"held_out_{name}"] = values[:, -1]
            best = np.fmax if f"held_out_{name}" in HIGHER_IS_BETTER else np.fmin
            columns[f"best_held_out_{name}"] = best.reduce(values, axis=1)
        return columns

    def lane_rows(self) -> list[dict[str, Any]]:
        """A row a lane, in order: lane, trial, seed, the swept numbers by path, status, diverged_at and the lane's metrics."""
        metrics = self.lane_metrics()
        return [
            {
                "lane": lane,
                "trial": lane // self.seeds,
                "seed": lane % self.seeds,
                **self.trials.values(lane // self.seeds),
                "status": "ok" if self.diverged_at[lane] < 0 else "diverged",
                "diverged_at": None if self.diverged_at[lane] < 0 else int(self.diverged_at[lane]),
                **{name: float(column[lane]) for name, column in metrics.items()},
            }
            for lane in range(self.lanes)
        ]

    def table(self) -> list[dict[str, Any]]:
        """A row a trial, best first: trial, its swept numbers by path, status, diverged (how many seeds), and its metrics.

        With several seeds a metric is the mean over them and `<metric>_std` the sample standard deviation.
        """
        rows = []
        metrics = {name: column.reshape(len(self.trials), self.seeds) for name, column in self.lane_metrics().items()}
        failed = (self.diverged_at >= 0).reshape(len(self.trials), self.seeds)
        for trial in range(len(self.trials)):
            row: dict[str, Any] = {"trial": trial, **self.trials.values(trial)}
            row["status"] = "diverged" if failed[trial].any() else "ok"
            row["diverged"] = int(failed[trial].sum())
            for name, values in metrics.items():
                row[name] = float(values[trial].mean())
                if self.seeds > 1:
                    row[f"{name}_std"] = float(values[trial].std(ddof=1))
            rows.append(row)
        metric = self.default_metric()
        return sorted(rows, key=lambda row: _badness(row[metric], metric))

    def default_metric(self) -> str:
        """What trials are ranked by: the held-out loss, or, where numbers of the loss itself are swept so that losses of two trials
        cannot be compared, the held-out accuracy if there is one; without held-out data the train loss."""
        evaluation = self.evaluation
        if "accuracy" in evaluation and any(path.startswith("loss.") for path in self.trials.space):
            return "held_out_accuracy"
        return "held_out_loss" if "loss" in evaluation else "train_loss"

    def best_trial(self, metric: str | None = None) -> int:
        """The index of the best trial; ValueError when every one diverged."""
        metric = metric or self.default_metric()
        rows = self.table()
        if metric not in rows[0]:
            raise ValueError(f"best: no metric {metric!r}; {nearest(metric, self.lane_metrics())}")
        best = min(rows, key=lambda row: _badness(row[metric], metric))
        if not math.isfinite(best[metric]):
            raise ValueError(f"every one of the {len(rows)} trials diverged: try smaller learning rates")
        return int(best["trial"])

    def best(self, metric: str | None = None) -> Recipe:
        """The recipe of the best trial by a column of `table`; by default as `default_metric` says."""
        return self.trials.recipes[self.best_trial(metric)]

    def edges(self) -> dict[str, str]:
        """Swept numbers whose best value lies within a twentieth of an end of its range -> "low" or "high": widen it there."""
        values = self.trials.values(self.best_trial())
        places = {path: d.position(values[path]) for path, d in self.trials.space.items() if d.high > d.low}
        return {path: "low" if u < 0.5 else "high" for path, u in places.items() if not EDGE < u < 1 - EDGE}


def _badness(value: float, metric: str) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if metric.removeprefix("best_") in HIGHER_IS_BETTER else value
