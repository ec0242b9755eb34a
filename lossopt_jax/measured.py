"""What our own runs have measured (measured.csv, by `lossopt evidence`): its rows, what they say of a choice, performance profiles."""

import csv
import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

SURE = 2.0  # standard errors of a difference beyond which it is one
ZERO = 1e-3  # of a metric: a ratio to a best of nothing means nothing

AGAINST_RIVAL = ("beats, by over 2 standard errors", "within 2 standard errors", "against the rule, better by over 2 standard errors")
AGAINST_USUAL = ("against the rule, the usual rate is worse by over 2 standard errors", *["the usual rate is no worse"] * 2)


class Row(NamedTuple):
    """One combination on one task, under `seeds` seeds that its rate was not chosen by.

    setting: "tuned", the best of the rates tried, or "usual", the one that people start with. value, sem: the held-out metric at the
    end and the standard error of its mean, less is better; infinite where a seed diverged. steps_to_target: the first look at which
    the mean over seeds was at the task's target or better, infinite where never. That target is the median over the tuned
    combinations of their values at the end.
    """

    task: str
    loss: str
    optimizer: str
    schedule: str
    setting: str
    rate: float
    metric: str
    value: float
    sem: float
    steps_to_target: float
    steps: int
    seeds: int
    diverged: int

    def __str__(self) -> str:
        many, unit = (100, " %") if self.metric.endswith("error") else (1, "")
        reached = f"target after {self.steps_to_target:g} of" if math.isfinite(self.steps_to_target) else "target not reached in"
        value = f"{self.metric} {many * self.value:.3g} ± {many * self.sem:.1g}{unit}" if math.isfinite(self.value) else "diverged"
        return f"{value}, {reached} {self.steps} steps ({self.loss}, {self.optimizer}, {self.schedule} at {self.rate:.2g})"


def parsed(text: str) -> list[Row]:
    """The rows of a table; lines that begin with # say where it comes from."""
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    kinds: dict[str, Callable[[str], Any]] = Row.__annotations__
    return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in lines]


def written(rows: Iterable[Row], head: Sequence[str] = ()) -> str:
    """The table as text, under lines of comment."""
    text = io.StringIO(newline="")
    text.writelines(f"# {line}\n" for line in head)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    return text.getvalue()


@functools.cache
def shipped() -> tuple[Row, ...]:
    """The table that comes with the package."""
    return tuple(parsed(files(__package__).joinpath("measured.csv").read_text(encoding="utf-8")))


def cite(task: str, part: str, names: Sequence[str], optimizer: str = "", rows: Sequence[Row] | None = None) -> list[str]:
    """What was measured of a choice on a task, a line each: its best row, the best rival's, and the usual rate's; none where nothing was.

    part: "loss", "optimizer" or "schedule", in which the rival differs, and in nothing else but the schedule and the rate.
    names: what the choice is called; the first that was measured counts. optimizer: the one that both have, of a loss or a schedule.
    """
    rows = [row for row in (shipped() if rows is None else rows) if row.task == task]
    here = [row for row in rows if row.setting == "tuned"]
    if part != "loss":
        here = [row for row in here if row.loss == main_loss(here)]
    if part != "optimizer":
        here = [row for row in here if row.optimizer == optimizer]
    name = next((name for name in names if any(getattr(row, part) == name for row in here)), None)
    if name is None:
        return []
    own = min((row for row in here if getattr(row, part) == name), key=lambda row: row.value)
    lines = [f"{task}: {own}"]
    rivals = [row for row in here if getattr(row, part) != name]
    if rivals:
        rival = min(rivals, key=lambda row: row.value)
        lines.append(f"{AGAINST_RIVAL[_order(own, rival)]}: {rival}")
    usual = [row for row in rows if row[:4] == own[:4] and row.setting == "usual" and row.rate != own.rate]
    if part == "schedule" and usual:
        lines.append(f"{AGAINST_USUAL[_order(own, usual[0])]}: {usual[0]}")
    return lines


def main_loss(rows: Sequence[Row]) -> str:
    """The loss that met most rivals: the one that is recommended for the task."""
    found = [row.loss for row in rows]
    return max(dict.fromkeys(found), key=found.count, default="")


def profile(rows: Iterable[Row], part: str, column: str, taus: np.ndarray) -> tuple[int, dict[str, np.ndarray]]:
    """How many tasks count, and choice of a part -> [taus], the share of them on which its `column` is within tau times the best choice's.

    Of each choice the best tuned row under the task's `main_loss` counts; only tasks on which every choice was run.
    Performance profiles: Dolan & More (2002, arXiv:cs/0102001), as Dahl et al. (2023, arXiv:2306.07179) use them.
    """
    rows = [row for row in rows if row.setting == "tuned"]
    best: dict[str, dict[str, float]] = {}  # task -> choice -> value
    for task in dict.fromkeys(row.task for row in rows):
        here = [row for row in rows if row.task == task]
        for row in (row for row in here if row.loss == main_loss(here)):
            at, name = best.setdefault(task, {}), getattr(row, part)
            at[name] = min(at.get(name, math.inf), max(getattr(row, column), ZERO))
    names = sorted({name for at in best.values() for name in at})
    full = [at for at in best.values() if len(at) == len(names) and math.isfinite(min(at.values()))]
    ratios = {name: np.array([at[name] / min(at.values()) for at in full]) for name in names}
    return len(full), {name: (ratio[None, :] <= taus[:, None]).sum(1) / max(1, len(full)) for name, ratio in ratios.items()}


def _order(own: Row, other: Row) -> int:
    """0 where the first is surely better, 2 where the second is, else 1."""
    if not (math.isfinite(own.value) and math.isfinite(other.value)):
        return 0 if math.isfinite(own.value) else 2 if math.isfinite(other.value) else 1
    difference, sure = other.value - own.value, SURE * math.hypot(own.sem, other.sem)
    return 0 if difference > sure else 2 if difference < -sure else 1
