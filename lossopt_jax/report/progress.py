"""What is seen while lanes run: a live bar on a terminal, a plain line now and then anywhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

LINES = 10


@contextmanager
def progress(
    steps: int, lanes: int, *, quiet: bool = False, console: Console | None = None, groups: Sequence[int] = ()
) -> Iterator[Callable[[Any], None]]:
    """A callback for `on_chunk` that shows steps, lane-steps a second, the best loss so far, lanes diverged and the time left.

    The best loss is the least mean of a lane over one chunk. On a terminal a live bar, which is gone when the run is over;
    else, or with `quiet`, about ten plain lines a run.
    groups: lanes of each structure, in the order they run; without it their number is found out as they come.
    """
    console = console or Console()
    tally = _Tally(steps, lanes, groups)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        shown = -1

        def plain(chunk: Any) -> None:
            nonlocal shown
            tally.add(chunk)
            if tally.over or int(LINES * tally.share) > shown:
                shown = int(LINES * tally.share)
                line = [tally.place, *tally.facts, *([f"{_clock(tally.seconds_left)} left"] if tally.seconds_left else [])]
                console.print("  ".join(line), highlight=False, markup=False, soft_wrap=True)

        yield plain
        return
    with _Bar(console) as bar:
        task = bar.add_task("compiling", total=None, facts="", left="")

        def live(chunk: Any) -> None:
            tally.add(chunk)
            left = "" if tally.seconds_left is None else f"{_clock(tally.seconds_left)} left"
            what = f"{tally.place}  compiling" if tally.between else tally.place
            bar.update(task, total=1.0, completed=tally.share, description=what, facts="  ".join(tally.facts), left=left)

        yield live


class _Bar(rich.progress.Progress):
    """One line of bar and clocks, one of facts: both fit a terminal of 80 columns."""

    def __init__(self, console: Console):
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="cyan", table_column=Column(no_wrap=True)),
        )
        super().__init__(*columns, console=console, transient=True, expand=True)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["facts"]:
                yield Text(f"  {task.fields['facts']}", no_wrap=True, overflow="ellipsis")


class _Tally:
    """Running totals over chunks, of one structure after another.

    share: of all lane-steps, how many are done. over: whether the lanes that ran are all through or diverged.
    """

    def __init__(self, steps: int, lanes: int, groups: Sequence[int] = ()):
        self.steps, self.lanes, self.groups = steps, sum(groups) or lanes, tuple(groups)
        self.best = self.held_out = float("nan")
        self.over = False
        self._structure = 0
        self._step = 0
        self._width = 0  # lanes of the structure that runs
        self._diverged = 0
        self._behind = 0  # lanes of the structures that are through
        self._behind_diverged = 0
        self._timed = (0, 0.0)  # lane-steps and seconds of all chunks but the first of a structure, which holds its compiling
        self._last: float | None = None

    def add(self, chunk: Any) -> None:
        now = time.perf_counter()
        loss = np.atleast_2d(chunk.metrics["loss"])
        first = self._last is None or chunk.step <= self._step
        if self._last is not None and first:
            self._structure += 1
            self._behind += self._width
            self._behind_diverged += self._diverged
            self._step = 0
        self._width = len(loss)
        if not first and self._last is not None:
            self._timed = (self._timed[0] + (chunk.step - self._step) * len(loss), self._timed[1] + now - self._last)
        self._step, self._last = chunk.step, now
        self._diverged = int((np.atleast_1d(chunk.diverged_at) >= 0).sum())
        stopped = int((np.atleast_1d(chunk.stopped_at) >= 0).sum())
        self.over = self._step >= self.steps or self._diverged + stopped == len(loss)
        finite = loss[np.isfinite(loss).all(1)] if loss.shape[1] else loss[:0]
        if finite.size:
            self.best = float(np.fmin(self.best, finite.mean(1).min()))
        held_out = np.ravel((chunk.evaluation or {}).get("loss", np.nan))
        if np.isfinite(held_out).any():
            self.held_out = float(np.fmin(self.held_out, held_out[np.isfinite(held_out)].min()))

    @property
    def share(self) -> float:
        total = self.steps * self.lanes
        done = self._behind * self.steps + (self.steps if self.over else self._step) * self._width
        return min(1.0, done / total) if total else 1.0

    @property
    def between(self) -> bool:
        """Whether a structure is through and another is still to come."""
        return self.over and self._behind + self._width < self.lanes

    @property
    def place(self) -> str:
        step = f"step {self._step}/{self.steps}"
        if len(self.groups) > 1:
            return f"{step} of structure {self._structure + 1}/{len(self.groups)}"
        return f"{step} of structure {self._structure + 1}" if self._structure else step

    @property
    def rate(self) -> float | None:
        """Lane-steps a second, compiling left out; None before it is known."""
        return self._timed[0] / self._timed[1] if self._timed[1] > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return None if self.rate is None or self.share >= 1 else (1 - self.share) * self.steps * self.lanes / self.rate

    @property
    def facts(self) -> list[str]:
        diverged = self._behind_diverged + self._diverged
        facts = []
        if self.rate is not None:
            facts.append(f"{_count(self.rate)} {'lane-steps' if self.lanes > 1 else 'steps'}/s")
        if np.isfinite(self.best):
            facts.append(f"best loss {self.best:.3g}")
        if np.isfinite(self.held_out):
            facts.append(f"held-out {self.held_out:.3g}")
        if diverged:
            facts.append(f"{diverged} of {self.lanes} diverged" if self.lanes > 1 else "diverged")
        return facts


def _count(rate: float) -> str:
    return f"{rate / 1e6:.2f}M" if rate >= 1e6 else f"{rate / 1e3:.1f}k" if rate >= 1e4 else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
