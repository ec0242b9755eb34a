"""What a sweep found: histories by lane, a table of trials, the best recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..recipe import Recipe, nearest
from ..step import TrainState
from .columns import same, typed_columns, with_gaps
from .lanes import LanePlan
from .metrics import HIGHER_IS_BETTER, incomparable, metric_for, of_the_loss
from .population import Copy, lineage
from .statistics import chances_of_best, fanova, rank_correlation, smaller_rates, smallest_rate, wider
from .trials import Trials

EDGE = 0.05


@dataclass(frozen=True)
class Swept:
    """A finished sweep. Lanes are trials x seeds, trial by trial.

    history: metric -> [lanes, steps / history_every], NaN after a lane diverged or was stopped.
    evaluations: held-out metric -> [lanes, evaluations], after `evaluation_steps` steps.
    diverged_at: [lanes], the first step whose loss or parameters were not finite, -1 where none.
    stopped_at: [lanes], the step at which a rule of early stopping ended a lane, -1 where none did.
    states, places: the stacked states of each wave, and where among them a lane's is (see `state`); of a sweep out of a folder the best
        lane's only.
    seconds, compile_seconds: wall time of the run, and of compiling before it.
    history_every: the history holds steps 0, history_every, 2 history_every ...
    copies: of a `population` what was copied when, in order; the histories are those of the places, so a copied lane's begins as what it
        was before, and `lineage` says whose it goes on from. Its recipe has the schedule of the numbers that led to its state, and the
        table the last of them.
    """

    trials: Trials
    seeds: int
    history: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    evaluation_steps: np.ndarray
    diverged_at: np.ndarray
    stopped_at: np.ndarray
    states: list[TrainState]
    places: list[tuple[int, int] | None]
    plan: LanePlan
    seconds: float
    compile_seconds: float
    history_every: int = 1
    copies: tuple[Copy, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Whether both found the same, however fast and on whichever lanes: all but wall times, the plan and the trained states, of which
        a folder keeps the best's only; NaN equals NaN."""
        if not isinstance(other, Swept):
            return NotImplemented
        how = ("states", "places", "plan", "seconds", "compile_seconds")
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name not in how)

    def __repr__(self) -> str:
        metric, diverged = self.default_metric(), (self.diverged_at >= 0).sum()
        best = self.failure() or f"best {metric} {self.table()[0][metric]:.4g}"
        best += "; of different losses, see incomparable()" if self.incomparable() else ""
        return f"Swept({len(self.trials)} trials x {self.seeds} seeds, {self.steps} steps, {diverged} diverged; {best})"

    @property
    def lanes(self) -> int:
        return len(self.trials) * self.seeds

    @property
    def steps(self) -> int:
        return int(self.evaluation_steps[-1])

    @property
    def lane_steps(self) -> int:
        """How many steps all lanes ran together: less than lanes x steps where some ended early, or waited to be copied over."""
        ended = np.where(self.stopped_at >= 0, self.stopped_at, np.where(self.diverged_at >= 0, self.diverged_at + 1, self.steps))
        waited = sum(copy.step - copy.diverged_at - 1 for copy in self.copies if copy.diverged_at >= 0)
        return int(ended.sum()) - waited * self.seeds

    @property
    def evaluation(self) -> dict[str, np.ndarray]:
        """Held-out metric -> [lanes] at the end, NaN where a lane diverged."""
        return {name: values[:, -1] for name, values in self.evaluations.items()}

    def state(self, lane: int) -> TrainState:
        """The trained state of a lane; of a diverged one the last between chunks that was finite."""
        if (found := self.places[lane]) is None:
            raise ValueError(f"a folder keeps the state of the best lane only (best_params.msgpack): not that of lane {lane}")
        group, place = found
        # Of several waves they lie on the host.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[place]), self.states[group])

    def lineage(self, trial: int) -> list[dict[str, Any]]:
        """Where a trial's state comes from: a row for each part of the way, with the step from which on, the trial in whose place it was
        trained and the swept numbers that it was trained with."""
        own = {i: self.trials.values(i) for i in range(len(self.trials))}
        return [{"step": step, "trial": place, **values} for step, place, values in lineage(self.copies, trial, own)]

    def inherited(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """`history` and `evaluations` of the lanes' states instead of their places: what a copy was before is what its source was."""
        if not self.copies:
            return self.history, self.evaluations
        places = np.repeat(np.arange(self.lanes)[:, None], max(1, self.steps), 1)
        for copy in self.copies:  # in order, so that the source's own past is in its row already
            to, source = (slice(trial * self.seeds, (trial + 1) * self.seeds) for trial in (copy.to, copy.source))
            places[to, : copy.step] = places[source, : copy.step]
        at, after = places[:, :: self.history_every], places[:, np.maximum(self.evaluation_steps - 1, 0)]

        def along(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
            return {name: np.take_along_axis(values, rows[:, : values.shape[1]], 0) for name, values in columns.items()}

        return along(self.history, at), along(self.evaluations, after)

    def status(self, lane: int) -> str:
        """ "ok", "stopped" or "diverged"."""
        return "diverged" if self.diverged_at[lane] >= 0 else "stopped" if self.stopped_at[lane] >= 0 else "ok"

    def lane_metrics(self) -> dict[str, np.ndarray]:
        """Final and best metrics of every lane, [lanes] each; NaN, not a number that looks like one, where the lane diverged.

        train_loss is the mean of the last twentieth of the steps, since a single batch's loss is noise. Of a lane that was stopped early
        the metrics are those it had then. "best_..." is the best on the way, of a lane that diverged before it did.
        """
        history, evaluations = self.inherited()
        window = max(1, history["loss"].shape[1] // 20)
        failed = self.diverged_at >= 0
        losses = [_last(row, window) for row in history["loss"]]
        columns = {"train_loss": np.where(failed, np.nan, [row.mean() if row.size else np.nan for row in losses])}
        # The evaluation at its end, not the last finite one: what trained well may still have no finite held-out loss.
        ends = np.where(self.stopped_at >= 0, self.stopped_at, self.steps)
        last = np.searchsorted(self.evaluation_steps, ends, "right") - 1
        for name, values in evaluations.items():
            finals = [values[lane, i] if i >= 0 else np.nan for lane, i in enumerate(last)]
            columns[f"held_out_{name}"] = np.where(failed, np.nan, finals)
            best = np.fmax if f"held_out_{name}" in HIGHER_IS_BETTER else np.fmin
            columns[f"best_held_out_{name}"] = best.reduce(values, axis=1)
        return columns

    def lane_rows(self) -> list[dict[str, Any]]:
        """A row a lane, in order: lane, trial, seed, the swept numbers by path, status, diverged_at, stopped_at and the lane's metrics."""
        metrics = self.lane_metrics()
        return [
            {
                "lane": lane,
                "trial": lane // self.seeds,
                "seed": lane % self.seeds,
                **self.trials.values(lane // self.seeds),
                "status": self.status(lane),
                "diverged_at": None if self.diverged_at[lane] < 0 else int(self.diverged_at[lane]),
                "stopped_at": None if self.stopped_at[lane] < 0 else int(self.stopped_at[lane]),
                **{name: float(column[lane]) for name, column in metrics.items()},
            }
            for lane in range(self.lanes)
        ]

    def table(self) -> list[dict[str, Any]]:
        """A row a trial, best first: trial, its swept numbers by path, status, stopped_at, diverged (how many seeds), and its metrics.

        With several seeds a metric is the mean over them and `<metric>_sem` the standard error of that mean (the sample standard
        deviation over the root of the number of seeds). Trials that were stopped early come after those that ran to the end, the
        later stopped the higher, and those that diverged last.
        """
        rows = []
        metrics = {name: column.reshape(len(self.trials), self.seeds) for name, column in self.lane_metrics().items()}
        failed = (self.diverged_at >= 0).reshape(len(self.trials), self.seeds)
        ended = np.where(self.stopped_at < 0, self.steps, self.stopped_at).reshape(len(self.trials), self.seeds).min(1)
        for trial in range(len(self.trials)):
            row: dict[str, Any] = {"trial": trial, **self.trials.values(trial)}
            row["status"] = "diverged" if failed[trial].any() else "stopped" if ended[trial] < self.steps else "ok"
            row["stopped_at"] = int(ended[trial]) if row["status"] == "stopped" else None
            row["diverged"] = int(failed[trial].sum())
            for name, values in metrics.items():
                row[name] = float(values[trial].astype(np.float64).mean())
                if self.seeds > 1:
                    row[f"{name}_sem"] = float(values[trial].astype(np.float64).std(ddof=1) / math.sqrt(self.seeds))
            rows.append(row)
        metric = self.default_metric()
        place = {"ok": 0, "stopped": 1, "diverged": 2}
        return sorted(rows, key=lambda row: (place[row["status"]], -ended[row["trial"]], _badness(row[metric], _mode(metric))))

    def to_pandas(self) -> Any:
        """`table` as a pandas DataFrame (needs pandas); a number that a trial does not have is missing: NaN, or in a column of whole
        numbers, which are Int64, NA."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas needs pandas: pip install 'lossopt_jax[tables]'") from None
        columns = typed_columns(with_gaps(self.table(), self.trials.space))
        types = {int: "Int64", float: "float64", str: None}
        return pandas.DataFrame({key: pandas.Series(values, dtype=types[kind]) for key, (kind, values) in columns.items()})

    def to_polars(self) -> Any:
        """`table` as a polars DataFrame (needs polars); a number that a trial does not have is null."""
        try:
            import polars
        except ImportError:
            raise ImportError("to_polars needs polars: pip install 'lossopt_jax[tables]'") from None
        columns = typed_columns(with_gaps(self.table(), self.trials.space))
        types = {int: polars.Int64, float: polars.Float64, str: polars.String}
        return polars.DataFrame({key: polars.Series(key, values, dtype=types[kind]) for key, (kind, values) in columns.items()})

    def default_metric(self) -> str:
        """What trials are ranked by: the recipe's own metric on held-out data; without one the held-out loss, or, where numbers of the loss
        itself are swept so that losses of two trials cannot be compared, the held-out accuracy if there is one; without held-out data the
        train loss. See `incomparable`."""
        return metric_for(self.evaluation, self.trials)

    def incomparable(self) -> str | None:
        """Why the default metric does not rank these trials, and what to do; None where it does.

        It does not where they have different losses and there is no accuracy: a smaller value of another loss is no better a fit.
        """
        return incomparable(self.evaluation, self.trials)

    def top(self, k: int, metric: str | None = None, mode: str | None = None, by: str = "mean") -> list[int]:
        """The k best trials by a column of `table`, best first, of those that ran to the end and did not diverge; see `best`."""
        metric = metric or self.default_metric()
        columns = self.lane_metrics()
        if metric not in columns:
            raise ValueError(f"best: no metric {metric!r}; {nearest(metric, columns)}")
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise TypeError(f"top: k must be a whole number, got {k!r}")
        if k < 1:
            raise ValueError(f"top: k must be at least 1, got {k}")
        if mode not in (None, "min", "max"):
            raise ValueError(f"best: mode must be min or max, got {mode!r}")
        worst = np.max if (mode or _mode(metric)) == "min" else np.min
        over_seeds: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "worst": worst}
        if by not in over_seeds:
            raise ValueError(f"best: by must be one of {', '.join(over_seeds)}, got {by!r}")
        values: np.ndarray = over_seeds[by](columns[metric].reshape(len(self.trials), self.seeds), axis=1)
        ran_to_the_end = (self.stopped_at < 0) & (self.diverged_at < 0)
        whole: np.ndarray = np.all(ran_to_the_end.reshape(len(self.trials), self.seeds), axis=1)
        badness = [_badness(value, mode or _mode(metric)) if ran else math.inf for value, ran in zip(values, whole, strict=True)]
        order = [int(trial) for trial in np.argsort(badness, kind="stable") if math.isfinite(badness[trial])]
        if not order:
            raise ValueError(self.failure() or f"no recipe has a finite {metric} at the end")
        return order[:k]

    def failure(self) -> str | None:
        """Why no recipe ran to the end, and what to try; None where one did.

        With seeds a recipe failed if it diverged under one of them.
        """
        diverged = (self.diverged_at >= 0).reshape(len(self.trials), self.seeds).any(1)
        stopped = ~diverged & (self.stopped_at >= 0).reshape(len(self.trials), self.seeds).any(1)
        if not (diverged | stopped).all():
            metric = self.default_metric()
            if np.isfinite(self.lane_metrics()[metric]).any():
                return None
            if not self.steps:
                return "no steps were taken: there is nothing to compare the recipes by"
            return f"no recipe has a finite {metric}, though training went on to the end: look at the held-out data"
        if stopped.any():
            return f"no recipe ran to the end: {diverged.sum()} of {len(self.trials)} diverged, {stopped.sum()} were stopped early"
        first = self.history["loss"][:, :1]
        if not np.isfinite(first).any():
            return "every lane's loss was not finite before any update: look at the data, the labels and the shape of the outputs"
        what, steps = "every lane diverged", set(self.diverged_at.tolist())
        if self.lanes > 1 and len(steps) == 1 and min(steps) > 2:
            what += f", all at step {min(steps)}, as where the data holds what is not finite"
        if (lanes := int((self.diverged_at >= 0).sum())) < self.lanes:
            what = f"every recipe diverged under one of its seeds at least ({lanes} of {self.lanes} lanes)"
        return f"{what}; {smaller_rates(smallest_rate(self.trials.recipes, self.steps))}"

    def best_trial(self, metric: str | None = None, mode: str | None = None, by: str = "mean") -> int:
        """The index of the best trial; ValueError when every one diverged."""
        return self.top(1, metric, mode, by)[0]

    def best(self, metric: str | None = None, mode: str | None = None, by: str = "mean") -> Recipe:
        """The recipe of the best trial by a column of `table`; by default as `default_metric` says.

        mode: "min" or "max"; by default "max" for an accuracy and "min" for anything else. by: "mean", "median" or "worst" of the seeds.
        """
        return self.trials.recipes[self.best_trial(metric, mode, by)]

    def best_lane(self) -> int:
        """The lane of the best trial's best seed by the default metric."""
        trial, metric = self.best_trial(), self.default_metric()
        seeds = self.lane_metrics()[metric].reshape(len(self.trials), self.seeds)[trial]
        return trial * self.seeds + int(np.argmin([_badness(value, _mode(metric)) for value in seeds]))

    def chance_best(self, metric: str | None = None, mode: str | None = None) -> dict[int, float]:
        """Trial -> the chance that it is the best by its mean over seeds, likeliest first, those without a chance left out.

        A bootstrap over seeds (see `chances_of_best`), drawn the same way each time; with two or three seeds it is too sure of the best.
        ValueError with one seed.
        """
        if self.seeds < 2:
            raise ValueError("chance_best needs at least two seeds of each recipe: run the sweep with seeds=3, say")
        metric = metric or self.default_metric()
        order = self.top(len(self.trials), metric, mode)
        sign = 1 if (mode or _mode(metric)) == "min" else -1
        values = sign * self.lane_metrics()[metric].reshape(len(self.trials), self.seeds)[order]
        chances = {trial: float(chance) for trial, chance in zip(order, chances_of_best(values), strict=True) if chance > 0}
        return dict(sorted(chances.items(), key=lambda item: -item[1]))

    def importance(self) -> dict[str, float]:
        """How much each swept number mattered, most first: how far the trials' ranks follow its distance from the best's value.

        Spearman's correlation of the default metric with that distance (on the range's own scale), 0 where it is negative, over the
        trials that did not diverge: 1 for a number that decides alone, be its best value at an end or in a valley; of a number that does
        nothing 0.05 +- 0.12 with 64 trials, and rarely above 2 / sqrt(trials - 1).
        """
        metric = self.default_metric()
        rows = [row for row in self.table() if math.isfinite(row[metric])]
        worse = [_badness(row[metric], _mode(metric)) for row in rows]
        found = {}
        for path, distribution in self.trials.space.items():
            own = [i for i, row in enumerate(rows) if isinstance(row[path], str) or math.isfinite(row[path])]  # of other parts it is NaN
            places = [distribution.position(rows[i][path]) for i in own]
            # Of a choice of parts two that differ are as far apart as any.
            apart = [float(place != places[0]) if distribution.labels else abs(place - places[0]) for place in places]
            found[path] = max(0.0, rank_correlation(apart, [worse[i] for i in own])) if own else 0.0
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def fanova(self) -> dict[str, float]:
        """The share of the default metric's variance that each swept number accounts for, interactions left out, most first.

        By a random forest over the trials that did not diverge (Hutter, Hoos & Leyton-Brown 2014); needs `optuna`. Numbers that only
        some of the parts have are left out. All 0 where the metric does not vary, or of fewer than two trials.
        """
        metric = self.default_metric()
        return fanova([row for row in self.table() if math.isfinite(row[metric])], self.trials.space, metric)

    def edges(self) -> dict[str, str]:
        """Swept numbers whose best value lies within a twentieth of an end of its range, or is the least or greatest of those listed
        -> "low" or "high"; see `wider`. Numbers of the loss are left out where trials cannot be compared by it (`incomparable`)."""
        values = self.trials.values(self.best_trial())
        # Of two listed values one is at each end: that says nothing.
        listed = {path for path, d in self.trials.space.items() if d.labels or (d.kind == "choice" and len(set(d.values)) == 2)}
        wide = {path: d for path, d in self.trials.space.items() if d.high > d.low and path not in listed}
        places = {path: (d.kind, d.position(values[path])) for path, d in wide.items() if math.isfinite(values[path])}
        said = {path: u for path, (kind, u) in places.items() if min(u, 1 - u) <= (0 if kind == "choice" else EDGE)}
        without = of_the_loss(self.trials) if self.incomparable() else []
        return {path: "low" if u < 0.5 else "high" for path, u in said.items() if path not in without}

    def wider(self) -> dict[str, tuple[float, float] | None]:
        """Of each number in `edges` the wider range to try next; None where values are listed, or the number may go no further."""
        return {path: wider(path, self.trials.space[path], end, self.best()) for path, end in self.edges().items()}


def _mode(metric: str) -> str:
    return "max" if metric.removeprefix("best_") in HIGHER_IS_BETTER else "min"


def _badness(value: float, mode: str) -> float:
    if not math.isfinite(value):
        return math.inf
    return -value if mode == "max" else value


def _last(values: np.ndarray, count: int) -> np.ndarray:
    """The last `count` of a lane's values before it ended."""
    return values[~np.isnan(values)][-count:]
