"""Exact resume: what a run has done so far, in records that are whole or not there; its state through orbax.

A folder holds `record-<from>-<to>.npz` (metrics of those steps) and `state-<to>` (what the next step starts from). A record is written
before the state it leads to: whatever instant a process is killed at, the newest readable state and the records up to it are one run.
"""

import json
import re
import secrets
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import fsync
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

RECORD = re.compile(r"record-(\d+)-(\d+)\.npz")
STATE = re.compile(r"state-(\d+)")
FUNCTIONS = "model, loss, optimizer and schedule (or another version of JAX)"
SUM = "sha256"
SLACK = 2**18  # bytes that orbax writes around the arrays


class Past(NamedTuple):
    """A run as it was saved.

    leaves: its state, as the `unload` that saved it gave them. history, evaluations: metric -> [..., so far].
    diverged_at, stopped_at: as in `loop.Point`.
    """

    step: int
    leaves: list[np.ndarray]
    diverged_at: np.ndarray
    stopped_at: np.ndarray
    history: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    seconds: float


class NotSaved(RuntimeWarning):
    """What a run has done could not be saved; it goes on."""


class Keeper:
    """A callback of the host loop that saves the run into a folder, at most every `seconds`; `save` does so at once.

    A save that fails (a full disk, a folder that went away) warns, once until one succeeds: hours of training are not given up for it.
    unload: carry -> leaves. step, seconds: where the run goes on from. asked: has one of several processes answer for all; see
        `hosts.from_first`.
    """

    def __init__(
        self,
        folder: str | Path,
        unload: Callable[[Any], list[np.ndarray]],
        every: float,
        step: int = 0,
        seconds: float = 0.0,
        asked: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
    ):
        if not every >= 0:
            raise ValueError(f"save_every must be at least 0 seconds, got {every}")
        self.folder, self.unload, self.every, self.asked = Path(folder), unload, every, asked
        self._saved, self._before, self._began = step, seconds, time.perf_counter()
        self._last = self._began
        self._metrics: list[dict[str, np.ndarray]] = []
        self._evaluations: list[dict[str, np.ndarray]] = []
        self._now: Any = None
        self._failing = False

    def __call__(self, progress: Any) -> None:
        self._metrics.append(progress.metrics)
        if progress.evaluation is not None:
            self._evaluations.append({name: values[..., None] for name, values in progress.evaluation.items()})
        self._now = progress
        if self.asked(lambda: time.perf_counter() - self._last >= self.every):
            self.save()

    def save(self) -> None:
        """Write what has been done since the last time."""
        if self._now is None:
            return
        self._last, step = time.perf_counter(), self._now.step
        leaves = self.unload(self._now.carry)
        try:
            self.asked(lambda: self._write(step, leaves))
            self._saved, self._metrics, self._evaluations, self._now = step, [], [], None
            self._failing = False
        except OSError as error:
            if not self._failing:
                reason = f"cannot write {error.filename}: {error.strerror}" if error.filename else str(error)
                warnings.warn(f"{reason}; the run goes on, saved up to step {self._saved}", NotSaved, stacklevel=2)
            self._failing = True

    def _write(self, step: int, leaves: list[np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "diverged_at": self._now.diverged_at,
            "stopped_at": self._now.stopped_at,
            "seconds": np.float64(self._before + time.perf_counter() - self._began),
            **{f"history.{name}": values for name, values in joined(self._metrics).items()},
            **{f"evaluations.{name}": values for name, values in joined(self._evaluations).items()},
        }
        record = self.folder / f"record-{self._saved:010d}-{step:010d}.npz"
        write_whole(record, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        try:
            _write_state(self.folder / f"state-{step:010d}", leaves)
        except OSError:
            with suppress(OSError):
                record.unlink()  # no state follows it
            raise
        for path in self.folder.iterdir():
            if (found := STATE.fullmatch(path.name)) and int(found[1]) < step:
                shutil.rmtree(path, ignore_errors=True)


def restore(folder: str | Path, shapes: Sequence[Any]) -> Past | None:
    """The newest whole point of a run in a folder, or None; what was torn, or written after it, is removed.

    shapes: anything with the shape and dtype of each leaf that `unload` gives.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    for path in folder.iterdir():
        if not (RECORD.fullmatch(path.name) or STATE.fullmatch(path.name)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    steps = sorted((int(found[1]) for path in folder.iterdir() if (found := STATE.fullmatch(path.name))), reverse=True)
    for step in steps:
        records = _chain(folder, step)
        leaves = _read_state(folder / f"state-{step:010d}", shapes)
        if records and leaves is not None:
            for path in folder.iterdir():
                if (found := RECORD.fullmatch(path.name)) and int(found[2]) > step:
                    path.unlink()
            return _past(step, leaves, records)
        shutil.rmtree(folder / f"state-{step:010d}", ignore_errors=True)
    for path in folder.iterdir():
        path.unlink()
    return None


def _chain(folder: Path, step: int) -> list[dict[str, np.ndarray]]:
    """The records that lead from step 0 to `step` without a gap, or [] where there is one."""
    ends = {int(found[2]): path for path in folder.iterdir() if (found := RECORD.fullmatch(path.name))}
    records: list[dict[str, np.ndarray]] = []
    while step in ends:
        try:
            with open(ends[step], "rb") as content, np.load(content) as file:  # np.load of a path leaves a torn file open
                records.insert(0, dict(file))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return []
        first = int(RECORD.fullmatch(ends[step].name)[1])  # type: ignore[index]
        if first == 0:
            return records
        step = first
    return []


def _past(step: int, leaves: list[np.ndarray], records: list[dict[str, np.ndarray]]) -> Past:
    def column(kind: str) -> dict[str, np.ndarray]:
        parts = [{k.removeprefix(kind): v for k, v in record.items() if k.startswith(kind)} for record in records]
        return joined([part for part in parts if part])

    last = records[-1]
    seconds = float(last["seconds"])
    return Past(step, leaves, last["diverged_at"], last["stopped_at"], column("history."), column("evaluations."), seconds)


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metric -> the parts' values end to end; {} of no parts."""
    return {name: np.concatenate([part[name] for part in parts], -1) for name in (parts[0] if parts else {})}


def _write_state(path: Path, leaves: list[np.ndarray]) -> None:
    import orbax.checkpoint as ocp  # a second to import

    shutil.rmtree(path, ignore_errors=True)
    # On a full disk orbax prints pages of tracebacks from its threads, so it is not let run into one.
    if shutil.disk_usage(path.parent).free < sum(leaf.nbytes for leaf in leaves) + SLACK:
        raise OSError(f"cannot write {path}: No space left on device")

    def save() -> None:
        with _checkpointer(ocp) as checkpointer:
            # orbax refuses arrays without elements; their shapes are known to who restores.
            checkpointer.save(path.resolve(), {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves) if leaf.size})
        digest = _sum(path)
        write_whole(path / SUM, lambda file: file.write(digest))

    try:
        # A Ctrl-C waits for it: one that came inside orbax would leave tracebacks of its threads.
        with ThreadPoolExecutor(1) as apart:
            apart.submit(save).result()
    except (OSError, ValueError) as error:  # a full disk is a ValueError of tensorstore's
        for torn in path.parent.glob(f"{path.name}*"):  # orbax leaves what it has written, on a disk that may be full
            shutil.rmtree(torn, ignore_errors=True)
        raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def _checkpointer(ocp: Any) -> Any:
    """Of this process alone: where there are several, orbax would wait for the others."""
    import jax

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}")
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _read_state(path: Path, shapes: Sequence[Any]) -> list[np.ndarray] | None:
    try:
        if (path / SUM).read_bytes() != _sum(path):
            return None
    except OSError:
        return None
    import orbax.checkpoint as ocp

    empty = {i: np.empty(s.shape, s.dtype) for i, s in enumerate(shapes)}
    try:
        with _checkpointer(ocp) as checkpointer:
            saved = checkpointer.restore(path.resolve(), target={str(i): leaf for i, leaf in empty.items() if leaf.size})
    except (OSError, ValueError, KeyError):
        return None
    return [np.asarray(saved[str(i)]) if leaf.size else leaf for i, leaf in empty.items()]


def _sum(path: Path) -> bytes:
    """A hash of a state's files: of a torn one orbax prints tracebacks, and one of which a bit has turned it reads without a word."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != SUM):
        digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest().encode()


def write_whole(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file so that a crash leaves the whole of it or none: a temporary one beside it, flushed to disk, then renamed.

    Raises OSError naming the path and the reason; a file that was there before is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror or str(error) or type(error).__name__}") from None
        raise


def same_run(folder: str | Path, experiment: dict[str, Any], computed: str, **plan: Any) -> dict[str, Any]:
    """Write down what runs here, or check that it is what ran here: ValueError naming what differs.

    experiment: name -> pytree of arrays (see `fingerprint`). computed: what their functions compute, as text.
    plan: plain values that a resumed run takes over; returned as first written.
    """
    path = Path(folder) / "manifest.json"
    mine = {name: fingerprint(value) for name, value in experiment.items()} | {FUNCTIONS: fingerprint(computed)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"experiment": mine, "plan": plan}, indent=2)
    if not create_whole(path, text.encode()):
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove {path.parent} to begin again") from None
        differ = [name for name in mine if found["experiment"].get(name) != mine[name]]
        if differ:
            named = [name for name in differ if name != FUNCTIONS] or differ  # the text changes with shapes and structure as well
            raise ValueError(f"the checkpoint {folder} is of another run: not the same {', '.join(named)}")
        return found["plan"]
    return plan


def create_whole(path: str | Path, content: bytes) -> bool:
    """Make a file with this content, or leave the one that is there and return False: of several processes one makes it."""
    path = Path(path)
    if path.exists():
        return False
    whole = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        write_whole(whole, lambda file: file.write(content))
        path.hardlink_to(whole)  # unlike a rename it does not take the place of a file
    except FileExistsError:
        return False
    finally:
        whole.unlink(missing_ok=True)
    return True


def fingerprint(tree: Any) -> str:
    """A hash of the structure and of every bit of a pytree of arrays: equal for equal experiments, in any process."""
    import hashlib

    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
