"""The files of `lossopt evidence`: a table of each task, all of them in one, and the performance profiles."""

import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from .. import measured
from . import folder, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("lossopt_jax", "jax", "optax", "flax", "numpy", "scikit-learn")
SHOWN = 5
FAR = (2.0, 4.0)  # as far as the profiles of the metric and of the steps go
EVIDENCE = "evidence.csv"


def write_rows(place: Path, task: str, contest: Any, seeds: int, rows: Sequence[Any]) -> None:
    """<task>.csv, with what was asked in its head, so that --resume knows it."""
    folder.write_text(place / f"{task}.csv", measured.written(rows, _asked(contest, seeds)))


def finished_rows(place: Path, task: str, contest: Any, seeds: int) -> list[Any] | None:
    """The rows of a task that an earlier call of the same contest wrote; None where there are none."""
    path = place / f"{task}.csv"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    if [line[2:] for line in text.splitlines() if line.startswith("#")] != _asked(contest, seeds):
        raise FileExistsError(f"{path} is of another contest or other seeds: give --overwrite, or another --out")
    return measured.parsed(text)


def write_evidence(place: Path, rows: Sequence[Any], command: str) -> None:
    """evidence.csv, under the command, the versions and the date; profiles.png."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    head = [command, f"{date.today()}, Python {platform.python_version()}, {versions}, {platform.machine()}"]
    folder.write_text(place / EVIDENCE, measured.written(rows, head))
    folder.write_bytes(place / "profiles.png", plots._png(profiles_figure(rows)))


def show_rows(rows: Sequence[Any], console: Console | None = None) -> None:
    """Print the best combinations of a task and what the first loss's usual rate gave at best."""
    console = console or Console()
    tuned, usual = ([row for row in rows if row.setting == setting] for setting in ("tuned", "usual"))
    for row in tuned[:SHOWN]:
        console.print(f"  {row}", highlight=False, soft_wrap=True)
    if usual:
        console.print(f"  best at the usual rate: {usual[0]}", highlight=False, soft_wrap=True)


def profiles_figure(rows: Sequence[Any]) -> "Figure":
    """The share of tasks on which each optimizer, and each schedule, is within tau times the best: of the metric, and of the steps."""
    figure = plots._figure(10, 6.6, "Performance profiles: each at the best of its rates, the higher the better")
    axes = figure.subplots(2, 2, sharey=True)
    columns = (("value", "held-out metric", FAR[0]), ("steps_to_target", "steps to target", FAR[1]))
    for line, part in zip(axes, ("optimizer", "schedule"), strict=True):
        for axis, (column, what, far) in zip(line, columns, strict=True):
            taus = np.linspace(1, far, 500)
            tasks, found = measured.profile(rows, part, column, taus)
            for i, (name, shares) in enumerate(list(found.items())[: len(plots.COLOURS)]):
                # A little apart, since shares of few tasks coincide.
                style = {"color": plots.COLOURS[i], "linewidth": 2, "solid_joinstyle": "round"}
                axis.step(taus, shares + 0.01 * (i - len(found) / 2), where="post", label=name.replace("_", " "), **style)
            axis.set_xlim(1 - 0.01 * (far - 1), far)
            axis.set_ylim(-0.05, 1.05)
            axis.set_xlabel(f"within so many times the best {part}'s {what}", fontsize=9)
            axis.set_ylabel(f"share of {tasks} task{'s' * (tasks != 1)}", fontsize=9)
            plots._plain_look(axis)
            plots._legend(axis)
    return figure


def _asked(contest: Any, seeds: int) -> list[str]:
    return [f"{seeds} seeds, {contest!r}"]
