"""What is seen while lanes run: a live bar on a terminal, a plain line now and then anywhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

LINES = 10


@contextmanager
def progress(
    steps: int,
    lanes: int,
    *,
    quiet: bool = False,
    console: Console | None = None,
    groups: Sequence[int] = (),
    lane_steps: int | None = None,
) -> Iterator[Callable[[Any], None]]:
    """A callback for `on_chunk` that shows steps, lane-steps a second, the best loss so far, lanes stopped and diverged, the time left.

    The best loss is the least mean of a lane over one chunk. On a terminal a live bar, which is gone when the run is over;
    else, or with `quiet`, about ten plain lines a run.
    groups: lanes of each wave, in the order they run; without it their number is found out as they come.
    lane_steps: how many are to be expected where lanes are stopped early.
    """
    console = console or Console()
    tally = _Tally(steps, lanes, groups, lane_steps)
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


class _Wave(NamedTuple):
    """What is known of lanes that run together. done: their lane-steps so far."""

    step: int = 0
    lanes: int = 0
    done: int = 0
    diverged: int = 0
    stopped: int = 0


class _Tally:
    """Running totals over chunks, of one wave after another or of several in turn.

    share: of all lane-steps, how many are done. over: whether the lanes that ran are all through, stopped or diverged.
    """

    def __init__(self, steps: int, lanes: int, groups: Sequence[int] = (), lane_steps: int | None = None):
        self.steps, self.lanes, self.groups = steps, sum(groups) or lanes, tuple(groups)
        self.total = lane_steps or steps * self.lanes
        self.best = self.held_out = float("nan")
        self.over = False
        self._waves: dict[int, _Wave] = {}
        self._now = 0  # the wave that runs
        self._timed = (0, 0.0)  # lane-steps and seconds of all chunks but the first of a wave, which holds its compiling
        self._last = 0.0

    def add(self, chunk: Any) -> None:
        now, loss = time.perf_counter(), np.atleast_2d(chunk.metrics["loss"])
        before = self._waves.get(chunk.wave, _Wave())
        stopped = int((np.atleast_1d(chunk.stopped_at) >= 0).sum())
        ran = (chunk.step - before.step) * (len(loss) - stopped)
        if chunk.wave in self._waves:
            self._timed = (self._timed[0] + ran, self._timed[1] + now - self._last)
        diverged = int((np.atleast_1d(chunk.diverged_at) >= 0).sum())
        self.over = chunk.step >= self.steps or diverged + stopped == len(loss)
        done = before.done + ran + (self.over and not stopped) * (self.steps - chunk.step) * len(loss)
        self._waves[chunk.wave] = _Wave(chunk.step, len(loss), done, diverged, stopped)
        self._now, self._last = chunk.wave, now
        finite = loss[np.isfinite(loss).all(1)] if loss.shape[1] else loss[:0]
        if finite.size:
            self.best = float(np.fmin(self.best, finite.mean(1).min()))
        held_out = np.ravel((chunk.evaluation or {}).get("loss", np.nan))
        if np.isfinite(held_out).any():
            self.held_out = float(np.fmin(self.held_out, held_out[np.isfinite(held_out)].min()))

    @property
    def share(self) -> float:
        return min(1.0, sum(wave.done for wave in self._waves.values()) / self.total) if self.total else 1.0

    @property
    def between(self) -> bool:
        """Whether a wave is through and another is still to come."""
        return self.over and sum(wave.lanes for wave in self._waves.values()) < self.lanes

    @property
    def place(self) -> str:
        step = f"step {self._waves[self._now].step}/{self.steps}"
        if len(self.groups) > 1:
            return f"{step} of wave {self._now + 1}/{len(self.groups)}"
        return f"{step} of wave {self._now + 1}" if self._now else step

    @property
    def rate(self) -> float | None:
        """Lane-steps a second, compiling left out; None before it is known."""
        return self._timed[0] / self._timed[1] if self._timed[1] > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return None if self.rate is None or self.share >= 1 else (1 - self.share) * self.total / self.rate

    @property
    def facts(self) -> list[str]:
        diverged, stopped = (sum(getattr(wave, what) for wave in self._waves.values()) for what in ("diverged", "stopped"))
        facts = []
        if self.rate is not None:
            facts.append(f"{_count(self.rate)} {'lane-steps' if self.lanes > 1 else 'steps'}/s")
        if np.isfinite(self.best):
            facts.append(f"best loss {self.best:.3g}")
        if np.isfinite(self.held_out):
            facts.append(f"held-out {self.held_out:.3g}")
        if stopped:
            facts.append(f"{stopped} stopped")
        if diverged:
            facts.append(f"{diverged} of {self.lanes} diverged" if self.lanes > 1 else "diverged")
        return facts


def _count(rate: float) -> str:
    return f"{rate / 1e6:.2f}M" if rate >= 1e6 else f"{rate / 1e3:.1f}k" if rate >= 1e4 else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
