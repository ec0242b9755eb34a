"""The folder of a run: claimed before the work begins, and every file in it whole or not there."""

import csv
import io
import json
import math
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import write_whole as write_whole

# All that a run writes; `--overwrite` removes these and nothing else.
RESULTS = (
    *("config.toml", "best.toml", "recipes.json", "trials.csv", "trials.parquet", "history.npz", "summary.json", "metrics.jsonl"),
    *("copies.csv", "params.msgpack", "best_params.msgpack", "curves.png", "sweep.png", "rates.csv", "tuned.csv"),
    *("find_lr.png", "range_test.png"),
)
# Of the files that `load` reads; a change that an older version would read wrongly counts it up.
FORMAT = 1
RUNS = Path("runs")
# Where a run that is not over keeps what it has done so far.
STATE = "state"


def default_folder(name: str, now: datetime | None = None) -> Path:
    """Make runs/<name>-<time>, with a number behind it where that is taken already.

    It is made here, since two runs started in the same second must not both find it free.
    """
    base = RUNS / f"{name}-{now or datetime.now():%Y%m%d-%H%M%S}"
    for number in range(1, 10_000):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(f"cannot make the folder {path}: {_reason(error)}") from None
        return path
    raise OSError(f"cannot make the folder {base}: it and 9998 more of its name are taken")


def claim(folder: str | Path, *, overwrite: bool = False, resume: bool = False, join: bool = False) -> Path:
    """Make the folder, or take an existing one when it is empty or one of the flags says so.

    join: others are at work in it. overwrite, resume: all that is there stays, until `begin` makes room for the results of the new run.
    Raises FileExistsError for a folder that holds something, OSError naming the folder when it cannot be written.
    """
    folder = Path(folder)
    if overwrite and resume:
        raise ValueError(f"the folder {folder} can be gone on in (--resume) or written over (--overwrite), not both")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(f"cannot use {folder} as a folder: a file is in the way") from None
    except OSError as error:
        raise OSError(f"cannot make the folder {folder}: {_reason(error)}") from None
    try:
        taken = any(folder.iterdir())
        if taken and not (overwrite or resume or join):
            raise FileExistsError(f"the folder {folder} is not empty: give --overwrite to write over its results, --resume to go on")
        for name in RESULTS if taken and not join else ():  # what a killed run was in the middle of writing
            for leftover in folder.glob(_temporary(name, "?" * 8)):
                leftover.unlink(missing_ok=True)
        probe = folder / _temporary("config.toml", secrets.token_hex(4))
        probe.touch(exist_ok=False)
        probe.unlink()
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {_reason(error)}") from None
    return folder


def begin(folder: str | Path) -> None:
    """Make room for results that are at hand: remove an earlier run's (`RESULTS`), nothing else; make a folder that was removed."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
    except FileExistsError:
        raise OSError(f"cannot use {folder} as a folder: a file is in the way") from None
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {_reason(error)}") from None


def remove_state(folder: str | Path) -> None:
    """Forget what is kept of a run that was not over, at once: another process that looks into it could leave a file behind rmtree."""
    state = Path(folder) / STATE
    with suppress(OSError):
        state.rename(state.with_name(f".{STATE}-{secrets.token_hex(4)}"))
    for gone in (state, *state.parent.glob(f".{STATE}-????????")):
        shutil.rmtree(gone, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Strict JSON: what is not finite is null."""
    write_text(path, json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One strict JSON object a line."""
    write_text(path, "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A header of all keys in the order they first appear, then a line a row, floats in full; a key that a row lacks is empty."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(row.get(key)) for key in header] for row in rows)
    write_text(path, text.getvalue())


def write_parquet(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a column for every key, by polars or else pyarrow; nothing where neither is installed.

    Integers are 64 bits, "..._at" also where it has no value, words are text, all else 64-bit floats: tables of two sweeps stack.
    """
    from ..sweep.columns import typed_columns  # which has JAX with it

    if find_spec("polars"):
        import polars

        types = {int: polars.Int64, float: polars.Float64, str: polars.String}
        made = {key: polars.Series(key, values, dtype=types[kind]) for key, (kind, values) in typed_columns(rows).items()}
        write_whole(path, lambda file: polars.DataFrame(made).write_parquet(file))
    elif find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
        table = pyarrow.table({key: pyarrow.array(values, kinds[kind]) for key, (kind, values) in typed_columns(rows).items()})
        write_whole(path, lambda file: pyarrow.parquet.write_table(table, file))


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, compressed, as `np.load` reads them."""
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def _temporary(name: str, tag: str) -> str:
    return f".{name}.{tag}.tmp"


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _cell(value: Any) -> Any:
    # A NumPy scalar as the number it is: repr(np.float64(1)) is not a number.
    value = value.item() if isinstance(value, np.generic) else value
    return "NaN" if isinstance(value, float) and math.isnan(value) else value  # "nan" is a word to polars


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return _strict(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
