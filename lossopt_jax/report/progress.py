"""What is seen while lanes run: a live bar on a terminal, a plain line now and then anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

LINES = 10


@contextmanager
def progress(steps: int, lanes: int, *, quiet: bool = False, console: Console | None = None) -> Iterator[Callable[[Any], None]]:
    """A callback for `on_chunk` that shows steps, lane-steps a second, the best loss so far, lanes diverged and the time left.

    Lanes of several structures run one after another; the count of lanes in each chunk says which share of the work it was.
    """
    console = console or Console()
    tally = _Tally(steps, lanes)
    if quiet or not console.is_terminal:
        due = [0.0]

        def plain(chunk: Any) -> None:
            tally.add(chunk)
            if tally.done >= due[0]:
                console.print(f"step {tally.done:.0f}/{steps}  {tally}", highlight=False, markup=False, soft_wrap=True)
                due[0] = min(tally.done + max(1.0, steps / LINES), steps)

        yield plain
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tally]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("compiling", total=steps, tally="")

        def live(chunk: Any) -> None:
            tally.add(chunk)
            bar.update(task, description="steps", completed=int(tally.done), tally=str(tally))

        yield live


class _Tally:
    """Running totals over chunks, of one structure after another."""

    def __init__(self, steps: int, lanes: int):
        self.steps, self.lanes = steps, lanes
        self.done = 0.0
        self.best = np.nan
        self.held_out = np.nan
        self.diverged = 0
        self._first: tuple[float, float] | None = None  # when the first chunk was through, and how far: compiling does not count
        self._behind = (0.0, 0)  # lane-steps and diverged lanes of the structures that are through
        self._last = (0, 0, 0)  # step, lanes and diverged lanes of the one that runs

    def add(self, chunk: Any) -> None:
        loss = np.atleast_2d(chunk.metrics["loss"])
        step, lanes, _ = self._last
        if chunk.step <= step:  # the next structure
            self._behind = (self._behind[0] + self.steps * lanes, self._behind[1] + self._last[2])
        diverged = int((~np.isfinite(loss[:, -1:])).any(1).sum()) if loss.shape[1] else 0
        self._last = (chunk.step, len(loss), diverged)
        self.diverged = min(self._behind[1] + diverged, self.lanes)
        self.done = min((self._behind[0] + chunk.step * len(loss)) / max(self.lanes, len(loss)), self.steps)
        self._first = self._first or (time.perf_counter(), self.done)
        finite = loss[np.isfinite(loss).all(1)]
        if finite.size:
            self.best = np.fmin(self.best, finite.mean(1).min())
        if chunk.evaluation is not None and np.isfinite(chunk.evaluation["loss"]).any():
            self.held_out = np.fmin(self.held_out, np.nanmin(chunk.evaluation["loss"]))

    def __str__(self) -> str:
        parts = []
        if self._first and self.done > self._first[1]:
            rate = (self.done - self._first[1]) * self.lanes / (time.perf_counter() - self._first[0])
            parts.append(f"{_count(rate)} lane-steps/s" if self.lanes > 1 else f"{_count(rate)} steps/s")
        if np.isfinite(self.best):
            parts.append(f"best loss {self.best:.4g}")
        if np.isfinite(self.held_out):
            parts.append(f"held-out {self.held_out:.4g}")
        if self.diverged:
            parts.append(f"{self.diverged} diverged" if self.lanes > 1 else "diverged")
        return "  ".join(parts)


def _count(rate: float) -> str:
    return f"{rate / 1e3:.1f}k" if rate >= 1e3 else f"{rate:.0f}"
