"""The folder of a run: claimed before the work begins, and every file in it whole or not there."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

# All that a run writes; `--overwrite` removes these and nothing else.
RESULTS = ("config.toml", "trials.csv", "history.npz", "summary.json", "metrics.jsonl", "params.msgpack", "curves.png", "sweep.png")


def default_folder(name: str) -> Path:
    """runs/<name>-<time>, with a number behind it where that is taken already."""
    base = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    tries = (base if i == 1 else base.with_name(f"{base.name}-{i}") for i in range(1, 10_000))
    return next(path for path in tries if not path.exists())


def claim(folder: Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make the folder, or take an existing one when it is empty or one of the flags says so.

    Raises FileExistsError for one that holds something, and OSError naming the folder when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
        if taken and not (overwrite or resume):
            raise FileExistsError(f"the folder {folder} is not empty: give --overwrite to write over its results, --resume to go on in it")
        if overwrite:
            for name in RESULTS:
                (folder / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise error if error.errno is None else NotADirectoryError(f"cannot use {folder} as a folder: a file is in the way") from None
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror}") from None
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the whole of it or none: a temporary one beside it, flushed to disk, then renamed."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # NamedTemporaryFile's own mode shuts out everyone else
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: what is not finite is null."""
    write_text(path, json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One strict JSON object a line."""
    write_text(path, "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A header of all keys in the order they first appear, then a line a row, floats in full."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return _strict(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
