"""What the commands share: the folder they write, results that a full disk must not hide, Ctrl-C, and errors as one line."""

import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import typer

if TYPE_CHECKING:
    from .config import Experiment

MONTH = 30 * 24 * 3600.0  # seconds
GO_ON = "stopped by Ctrl-C; what was saved of this run is gone on with by --resume and its --out"


def claimed(
    made: list[Path],
    experiment: "Experiment",
    out: Path | None,
    asked: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    join: bool = False,
    last: str = "curves.png",
) -> Path:
    """The folder to write, with its config in it; ends the command where a resumed folder is finished.

    made: of `one_line_errors`. asked, last: as of `results.finished`.
    """
    from .report import folder, results

    new = out is None or not out.exists()
    place = folder.claim(out or folder.default_folder(experiment.name), overwrite=overwrite, resume=resume, join=join)
    if new and not join:
        made.append(place)
    resume = resume or join
    if resume and results.finished(place, experiment.resolved, asked, last):
        typer.echo(f"{place} is finished; nothing to do")
        raise typer.Exit
    if not resume:
        folder.remove_state(place)
    results.write_config(place / folder.STATE, asked | experiment.resolved)
    if not overwrite:  # what is to be overwritten stays whole until there is something to put in its place
        results.write_config(place, experiment.resolved)
    return place


@contextmanager
def the_one_to_write(place: Path, experiment: "Experiment") -> Iterator[bool]:
    """Of the processes that shared a sweep one writes its results; the others wait for it, or for its death."""
    from .report import folder, results
    from .sweep import Claims

    while not results.finished(place, experiment.resolved, {"what": "sweep"}):
        with Claims(place / folder.STATE).held("results") as still_held:
            if still_held is not None:
                yield True
                return
        time.sleep(1)
    yield False


def write_results(place: Path, write: Callable[[], None]) -> None:
    """Write results that were shown before, since a full disk must not hide what was found; the state to go on from is then removed."""
    from .report import folder

    try:
        write()
    except OSError as error:
        raise OSError(f"{error}; what was found is printed above, and --resume --out {place} writes it when that can be done") from None
    folder.remove_state(place)


@contextmanager
def interruptible() -> Iterator[Callable[[Any], None]]:
    """A callback that stops the run after Ctrl-C, should the exception be lost: Python drops one that is raised inside a C callback."""
    interrupted = False

    def on_signal(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def stop_if_interrupted(_: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt

    def unraisable(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            shown(dropped)

    before, shown = signal.signal(signal.SIGINT, on_signal), sys.unraisablehook
    sys.unraisablehook = unraisable  # which would print a traceback of what is told a moment later
    try:
        yield stop_if_interrupted
    finally:
        sys.unraisablehook = shown
        signal.signal(signal.SIGINT, before)


def prepare_jax() -> None:
    """What JAX reads when it is imported; whatever the user has set stays."""
    # On CPU each core is then a device that lanes can be spread over. Two at least: for one alone XLA compiles to other last bits.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(2, cores)))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # What a command compiled, the next one of the same structure loads. A machine's own, since the code is for its processor.
        kept = Path(platformdirs.user_cache_dir("lossopt_jax", appauthor=False), f"xla-{platform.node()}")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        with suppress(OSError):
            for old in [file for file in kept.glob("*") if time.time() - file.stat().st_mtime > MONTH]:
                old.unlink()
        # An entry that a killed process left half written is compiled again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")


@contextmanager
def one_line_errors(stopped: str = GO_ON) -> Iterator[list[Path]]:
    """What the user can mend is one line on standard error: exit code 2 for a wrong config or data, 1 for a folder, 130 for Ctrl-C.

    Yields a list for `claimed` to put a new folder in: where what is wrong is found before anything ran, it is taken away again.
    """
    made: list[Path] = []
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        own = category.__module__.startswith("lossopt_jax.")
        typer.secho(f"lossopt: {message}", fg=typer.colors.YELLOW, err=True) if own else before(message, category, *where)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield made
    except (ValueError, TypeError) as error:
        code, message = 2, str(error)
        for place in made:
            _remove_unused(place)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough: `lossopt list | head`
        return
    except OSError as error:
        code, message = (2 if isinstance(error, FileExistsError | FileNotFoundError | IsADirectoryError) else 1), str(error)
    except KeyboardInterrupt:
        code, message = 130, stopped
    else:
        return
    finally:
        warnings.showwarning = before
    typer.secho(f"lossopt: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


def _remove_unused(place: Path) -> None:
    """A folder that has a config and nothing that was run."""
    from .report import folder

    if all(path.name in ("config.toml", folder.STATE) for path in place.rglob("*")):
        with suppress(OSError):
            folder.remove_state(place)
            (place / "config.toml").unlink(missing_ok=True)
            place.rmdir()
