"""Finished runs side by side: what each was, what differs between them, which is better and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import TABLES, flat, tables_of
from .lr_finder import LRFinding
from .saved import load, read_config
from .sweep import Swept
from .train import Fitted

SURE = 0.95


@dataclass(frozen=True)
class Entry:
    """A run, or the best recipe of a sweep. metrics: final metric -> [seeds]. config: dotted key -> value, the best's numbers in it."""

    name: str
    what: str
    recipes: int
    metrics: dict[str, np.ndarray]
    config: dict[str, Any]

    def mean(self, metric: str) -> float:
        return float(np.mean(self.metrics.get(metric, np.nan)))

    def sem(self, metric: str) -> float:
        """The standard error of the mean over seeds; NaN of one seed."""
        values = self.metrics.get(metric, np.empty(0))
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """entries: in the order given. metric: what they can be compared by, or None. differ: config key -> the value of each entry, None
    where it has none. lines: what to say."""

    entries: list[Entry]
    metric: str | None
    differ: dict[str, list[Any]]
    lines: list[str]


def compare(places: Sequence[str | Path]) -> Comparison:
    """Compare the folders of finished runs and sweeps; of a sweep its best recipe counts."""
    if len(places) < 2:
        raise ValueError(f"compare needs at least two folders, got {len(places)}")
    entries = [read_entry(Path(place)) for place in places]
    place = {table: i for i, table in enumerate(TABLES)}
    keys = sorted(dict.fromkeys(key for entry in entries for key in entry.config), key=lambda key: place.get(key.partition(".")[0], -1))
    rows = {key: [entry.config.get(key) for entry in entries] for key in keys}
    differ = {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}
    metric, reason = common_metric(entries)
    lines = [reason] if reason else []
    return Comparison(entries, metric, differ, lines + (verdicts(entries, metric) if metric else []))


def read_entry(place: Path) -> Entry:
    result = load(place)
    result = result.swept if isinstance(result, LRFinding) else result
    config = read_config(place)
    swept = flat({"sweep": config.pop("sweep", {})})
    config.pop("name", None)
    if isinstance(result, Fitted):
        losses = result.history["loss"]
        train = np.nan if result.diverged_at is not None else losses[-max(1, len(losses) // 20) :].mean() if len(losses) else np.nan
        metrics = {"train_loss": train, **{f"held_out_{name}": value for name, value in result.evaluation.items()}}
        end = "" if result.diverged_at is None else f", diverged at step {result.diverged_at}"
        what = f"one recipe, {result.evaluation_steps[-1]} steps{end}"
        return Entry(str(place), what, 1, {name: np.atleast_1d(value) for name, value in metrics.items()}, flat(config))
    count, seeds = len(result.trials), f" x {result.seeds} seeds" if result.seeds > 1 else ""
    if failure := result.failure():
        return Entry(str(place), f"{count} recipes{seeds}, {result.steps} steps: {failure}", count, {}, flat(config) | swept)
    trial = result.best_trial()
    what = f"the best of {count} recipes{seeds}, {result.steps} steps"
    return Entry(
        str(place), what, count, _of_trial(result, trial), flat(config | tables_of(result.best())) | result.trials.structure(trial) | swept
    )


def _of_trial(swept: Swept, trial: int) -> dict[str, np.ndarray]:
    columns = {name: column for name, column in swept.lane_metrics().items() if not name.startswith("best_")}
    return {name: column.reshape(-1, swept.seeds)[trial] for name, column in columns.items()}


def common_metric(entries: Sequence[Entry]) -> tuple[str | None, str | None]:
    """What runs can be compared by, and what is to be said about that."""
    tasks = {entry.config.get("data.name"): entry.name for entry in entries}
    known = {task: name for task, name in tasks.items() if task is not None}
    if len(known) > 1:
        said = ", ".join(f"{name} is of {task}" for task, name in known.items())
        return None, f"losses of different tasks cannot be compared: {said}"
    alive = [entry for entry in entries if entry.metrics]
    if not alive:
        return None, "nothing to compare: every run diverged"
    losses = {entry.name: _table(entry, "loss") for entry in alive}
    unsaid = [entry.name for entry in alive if not (entry.config.get("data.name") and losses[entry.name])]
    note = f"{', '.join(unsaid)}: the folder does not say what data or loss it was; this holds if they were the same" if unsaid else None
    stated = [loss for loss in losses.values() if loss]
    own = f"held_out_{alive[0].config.get('metric.name')}"
    if all(own in entry.metrics and _table(entry, "metric") == _table(alive[0], "metric") for entry in alive):
        return own, note
    if all(loss == stated[0] for loss in stated[1:]):
        return ("held_out_loss" if all("held_out_loss" in entry.metrics for entry in alive) else "train_loss"), note
    if all("held_out_accuracy" in entry.metrics for entry in alive):
        return "held_out_accuracy", note or "the losses differ, and so cannot be compared with each other: compared by accuracy"
    return (
        None,
        "values of different losses cannot be compared, and there is no accuracy to compare by: give their configs one [metric]",
    )


def _table(entry: Entry, table: str) -> dict[str, Any]:
    return {key: value for key, value in entry.config.items() if key.startswith(f"{table}.")}


def verdicts(entries: Sequence[Entry], metric: str) -> list[str]:
    """The best against each other run in a sentence."""
    sign = -1 if metric.endswith("accuracy") else 1
    ranked = sorted((entry for entry in entries if math.isfinite(entry.mean(metric))), key=lambda entry: sign * entry.mean(metric))
    if not ranked:
        return ["nothing to compare: every run diverged"]
    lines = [f"{ranked[0].name} is the only run that did not diverge"] if len(ranked) == 1 else []
    lines += [_verdict(ranked[0], other, metric) for other in ranked[1:]]
    if len({entry.recipes for entry in ranked}) > 1:
        lines.append("the best of a sweep is chosen by this very number, which flatters it, the more recipes the more")
    return lines


def _verdict(best: Entry, other: Entry, metric: str) -> str:
    name = metric.replace("held_out", "held-out").replace("_", " ")
    gain = abs(best.mean(metric) - other.mean(metric))
    if gain == 0:
        return f"{best.name} and {other.name} have the same {name}"
    shown = f"{name} {plain(metric, best.mean(metric))} against {plain(metric, other.mean(metric))}"
    a, b = best.metrics[metric], other.metrics[metric]
    if min(len(a), len(b)) < 2:
        more = "more" if metric.endswith("accuracy") else "less"
        return f"{best.name} came to {more} than {other.name}, {shown}; whether by chance cannot be said of one seed: sweep with seeds = 3"
    error = math.hypot(best.sem(metric), other.sem(metric))
    chance = _sure(a, b)
    said = (
        f"{best.name} is better than {other.name}" if chance >= SURE else f"{best.name} seems better than {other.name}, which may be chance"
    )
    return f"{said}: {shown}, {plain(metric, gain)} ± {plain(metric, error)} apart; sure to {_percent(chance)} ({_seeds(len(a), len(b))})"


def _sure(a: np.ndarray, b: np.ndarray) -> float:
    """1 - the one-sided p value of Welch's t-test (1947)."""
    from scipy import stats  # half a second to import

    if not (a.std() or b.std()):
        return 1.0
    return 1 - float(stats.ttest_ind(a, b, equal_var=False).pvalue) / 2


def _percent(chance: float) -> str:
    return "more than 99.9%" if chance > 0.999 else f"{100 * chance:.3g}%"


def _seeds(a: int, b: int) -> str:
    return f"Welch's t-test over {a} seeds each" if a == b else f"Welch's t-test over {a} and {b} seeds"


def plain(metric: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.2%}" if metric.endswith("accuracy") else f"{value:.4g}"
