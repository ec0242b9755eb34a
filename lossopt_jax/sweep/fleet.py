"""Several processes at one sweep, on one machine or many that share a folder: each claims a wave of lanes, runs it, claims the next.

A claim is a file that only one process can make. Its maker touches it as long as it lives; one that was not touched for `LEASE` seconds
is a dead process's and may be taken over. What the dead one had saved of its wave is gone on with, and since a wave comes to the same
bits whoever runs it, nothing is lost or counted twice even if a process was only asleep.
"""

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..checkpoint import create_whole
from ..loop import Run
from ..models import Model
from .lanes import LanePlan
from .run import Callbacks, check_width, prepared
from .trials import Trials

LEASE = 60.0  # seconds
PARTS = 16  # waves of a sweep at least, where there are lanes enough: what can be shared out


class Lost(Exception):
    """Another process has taken over what this one had claimed."""


def work(
    model: Model | Callable[..., Model],
    trials: Trials | Sequence[Any],
    *,
    train: Any,
    evaluate: Any = None,
    run: Run,
    seeds: int = 1,
    plan: LanePlan | None = None,
    on_chunk: Callbacks = (),
    checkpoint: str | Path,
    save_every: float = 30.0,
    on_wait: Callable[[int], None] = lambda waves: None,
) -> None:
    """Do this process's share of a sweep, and return when all of it is done, by whomever; `sweep` with the same arguments then gives it.

    Start it in any number of processes, at any time, with the same arguments; checkpoint is a folder that they all see. One that dies
    is replaced by the others after a minute, at the end of its lease.
    on_wait: told how many waves others still have at hand, now and then, when there is none left to claim.
    """
    job = prepared(model, trials, train, evaluate, run, seeds, plan, checkpoint, save_every, parts=PARTS)
    check_width(job, plan)
    tellers = (on_chunk,) if callable(on_chunk) else tuple(on_chunk)
    claims = Claims(checkpoint)
    left = list(range(len(job.waves)))
    while left := [i for i in left if not claims.finished(f"wave-{i:04d}")]:
        for i in left:
            with claims.held(f"wave-{i:04d}") as still_held, suppress(Lost):
                if still_held is not None and not claims.finished(f"wave-{i:04d}"):  # it may have ended just now
                    job.run_wave(i, [still_held, *tellers])
                    claims.finish(f"wave-{i:04d}")
                    break
        else:
            on_wait(len(left))
            time.sleep(LEASE / 20)


class Claims:
    """What this process may work on, among all that share a folder."""

    def __init__(self, folder: str | Path):
        self.folder, self.mine = Path(folder), f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}".encode()

    def finished(self, name: str) -> bool:
        """Whether anyone has said that it is done, or that all is, and has removed the folder."""
        return (self.folder / f"{name}.done").exists() or not self.folder.exists()

    def finish(self, name: str) -> None:
        """Say that it is done."""
        create_whole(self.folder / f"{name}.done", self.mine)

    @contextmanager
    def held(self, name: str) -> Iterator[Callable[[Any], None] | None]:
        """Hold it as long as the block runs, if it is free: a callback that raises `Lost` once another process has it, else None."""
        path = self._take(name)
        if path is None:
            yield None
            return
        over = threading.Event()

        def keep_alive() -> None:
            while not over.wait(LEASE / 6):
                with suppress(OSError):
                    path.touch()

        def still_held(_: Any = None) -> None:
            if self._newest(name) != path:
                raise Lost(f"{name}: another process has taken it over")

        thread = threading.Thread(target=keep_alive, daemon=True)
        thread.start()
        try:
            yield still_held
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                os.utime(path, (0, 0))  # lapsed

    def _take(self, name: str) -> Path | None:
        """This process's claim, a file with a number above that of the lapsed one: no claim is ever removed, so none by mistake."""
        try:
            newest = self._newest(name)
            if newest is not None and self._age(newest) < LEASE:
                return None
            path = self.folder / f"{name}.claim-{0 if newest is None else int(newest.name[-4:]) + 1:04d}"
            return path if create_whole(path, self.mine) else None
        except OSError:
            if self.folder.exists():
                raise
            return None  # all is over, and what was shared is gone

    def _newest(self, name: str) -> Path | None:
        return max(self.folder.glob(f"{name}.claim-????"), default=None)

    def _age(self, path: Path) -> float:
        """Seconds since it was touched, both by the clock of the folder's machine."""
        probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        probe.touch()
        try:
            return probe.stat().st_mtime - path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
