"""A result as a folder, and back: `save` writes what the command line writes, `load` reads what either wrote."""

import csv
import json
import math
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .lr_finder import LRFinding, judged
from .plain import from_plain, number_from_plain
from .recipe import with_numbers
from .report import finding, folder, results
from .step import TrainState
from .sweep import Copy, LanePlan, Swept, Trials
from .sweep.spaces import Distribution
from .train import Fitted, typed


def save(result: Swept | Fitted | LRFinding, place: str | Path) -> Path:
    """Write a result into a new or empty folder, for `load` and for people: tables, curves and the best's parameters; returns its path.

    What `lossopt sweep`, `train` and `find-lr` leave, without the config there was none of. Of the functions in recipes the names are kept:
    one that another process cannot import (of a notebook, a lambda) comes back as a stand-in that raises when it is called, while
    every number and table is whole. Optimizer states are not kept.

    >>> import lossopt_jax as lo, numpy as np, tempfile
    >>> from flax import linen as nn
    >>> x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    >>> recipe = lo.Recipe(lo.bind(lo.losses.mse), lo.bind(lo.optimizers.adam), lo.bind(lo.schedules.constant, value=0.1))
    >>> fitted = lo.fit(lo.from_linen(nn.Dense(1)), recipe, train=(x, 3 * x), run=lo.Run(steps=10, batch_size=8))
    >>> again = lo.load(lo.save(fitted, tempfile.mkdtemp()))
    >>> bool((again.history["loss"] == fitted.history["loss"]).all())
    True
    """
    if not isinstance(result, Swept | Fitted | LRFinding):
        raise TypeError(f"save: the result must be a Swept, a Fitted or an LRFinding, got {type(result).__name__}")
    try:
        place = folder.claim(place)
    except FileExistsError:
        raise FileExistsError(f"save: the folder {place} is not empty") from None
    write = {Swept: results.write_sweep, Fitted: results.write_run, LRFinding: finding.write_finding}[type(result)]
    write(place, None, result)
    return place


def load(place: str | Path) -> Swept | Fitted | LRFinding:
    """The `Swept`, `Fitted` or `LRFinding` of a folder that `lossopt sweep`, `lossopt train`, `lossopt find-lr` or `save` wrote.

    Equal to what was written: tables, histories, recipes bit for bit. Only the best lane's state is there, and no state of an optimizer;
    `TrainState.opt_state` is None. Parameters that were not nested dicts come as such (see `flax.serialization.to_state_dict`).

    FileNotFoundError where there is no such folder; ValueError where it holds no run, or one that is unfinished, damaged or of another
    format.
    """
    place = Path(place)
    summary = read_summary(place)
    read = READERS[summary["what"]]
    return _whole(place, lambda: read(place, summary))


def read_summary(place: Path) -> dict[str, Any]:
    """summary.json of a finished run, or the error that says what the folder is instead."""
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is a file, not the folder of a run" if place.exists() else f"there is no folder {place}")
    path = place / "summary.json"
    if not path.exists():
        if (place / folder.STATE).exists():
            raise ValueError(f"the run in {place} is not finished: go on with it by --resume and --out {place}")
        known = any((place / name).exists() for name in folder.RESULTS)
        raise ValueError(f"{place} holds {'a run without its summary.json: it is damaged' if known else 'no run'}")
    summary: dict[str, Any] = _whole(place, lambda: dict(json.loads(path.read_text(encoding="utf-8"))))
    if (found := summary.get("format")) != folder.FORMAT:
        written = (summary.get("versions") or {}).get("lossopt_jax", "?")
        what = "without a format" if found is None else f"in format {found}"
        raise ValueError(f"{place} was written {what} by lossopt_jax {written}, and this version reads format {folder.FORMAT}")
    if summary.get("what") not in READERS:
        raise ValueError(f"{place} holds neither a sweep, a run nor a finding, but {summary.get('what')!r}")
    return summary


def read_config(place: Path) -> dict[str, Any]:
    """config.toml as nested dicts; {} where a run had none."""
    path = place / "config.toml"
    config: dict[str, Any] = _whole(place, lambda: tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    return config


def _whole(place: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileNotFoundError as error:
        raise ValueError(f"the run in {place} is damaged: {Path(error.filename).name} is missing") from None
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"the run in {place} is damaged: {type(error).__name__}: {error}") from None


def _load_run(place: Path, summary: dict[str, Any]) -> Fitted:
    history, evaluations, own = _arrays(place, ("evaluation_steps", "diverged_at"))
    return Fitted(
        state=_state(place / "params.msgpack"),
        history=history,
        evaluation={name: float(values[-1]) for name, values in evaluations.items()},
        evaluations=evaluations,
        evaluation_steps=own["evaluation_steps"],
        diverged_at=None if own["diverged_at"] < 0 else int(own["diverged_at"]),
        seconds=summary["seconds"],
        compile_seconds=summary["compile_seconds"],
        history_every=summary["history_every"],
    )


def _load_sweep(place: Path, summary: dict[str, Any]) -> Swept:
    trials, seeds = _trials(place / "recipes.json")
    history, evaluations, own = _arrays(place, ("evaluation_steps", "diverged_at", "stopped_at"))
    lanes = len(trials) * seeds
    if {len(values) for values in (*history.values(), *evaluations.values(), own["diverged_at"])} != {lanes}:
        raise ValueError(f"recipes.json has {lanes} lanes and history.npz has not")
    swept = Swept(
        trials=trials,
        seeds=seeds,
        history=history,
        evaluations=evaluations,
        evaluation_steps=own["evaluation_steps"],
        diverged_at=own["diverged_at"],
        stopped_at=own["stopped_at"],
        states=[],
        places=[None] * lanes,
        plan=LanePlan(**summary["plan"]),
        seconds=summary["seconds"],
        compile_seconds=summary["compile_seconds"],
        history_every=summary["history_every"],
        copies=_copies(place / "copies.csv", trials) if summary.get("copies") else (),
    )
    if summary.get("best") is not None and (place / "best_params.msgpack").exists():
        swept.states.append(jax.tree.map(lambda leaf: leaf[None], _state(place / "best_params.msgpack")))
        swept.places[swept.best_lane()] = (0, 0)
    return swept


def _load_finding(place: Path, summary: dict[str, Any]) -> LRFinding:
    recipe = from_plain(json.loads((place / "recipes.json").read_text(encoding="utf-8"))["recipe"])
    return judged(recipe, np.geomspace(summary["low"], summary["high"], summary["count"]), _load_sweep(place, summary))


READERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {"sweep": _load_sweep, "train": _load_run, "find-lr": _load_finding}


def _trials(path: Path) -> tuple[Trials, int]:
    plain = json.loads(path.read_text(encoding="utf-8"))
    structures = [from_plain(structure) for structure in plain["structures"]]
    rows = [(structures[row["structure"]], row["numbers"]) for row in plain["trials"]]
    recipes = [with_numbers(recipe, {k: number_from_plain(v) for k, v in values.items()}) if values else recipe for recipe, values in rows]
    space = {key: _distribution(fields) for key, fields in plain["space"].items()}
    drawn = [{path: math.nan if value is None else value for path, value in row.items()} for row in plain["drawn"]]
    return Trials(tuple(recipes), space, tuple(drawn)), plain["seeds"]


def _copies(path: Path, trials: Trials) -> tuple[Copy, ...]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def values(row: dict[str, str], when: str) -> dict[str, Any]:
        cells = {path: (distribution, row.get(f"{path}_{when}")) for path, distribution in trials.space.items()}
        return {path: cell if distribution.labels else float(cell) for path, (distribution, cell) in cells.items() if cell}

    def copy(row: dict[str, str]) -> Copy:
        to, source, failed = int(row["to"]), int(row["from"]), int(row["diverged_at"] or -1)
        return Copy(int(row["step"]), to, source, failed, values(row, "before"), values(row, "after"))

    return tuple(copy(row) for row in rows)


def _distribution(fields: dict[str, Any]) -> Distribution:
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Distribution(**own)


def _arrays(place: Path, others: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """History, evaluations and the `others` of history.npz."""
    with open(place / "history.npz", "rb") as content, np.load(content) as file:  # np.load of a path leaves a torn file open
        arrays = dict(file)
    own = {name: arrays.pop(name) for name in others}
    held_out = {name.removeprefix("held_out_"): values for name, values in arrays.items() if name.startswith("held_out_")}
    return {name: values for name, values in arrays.items() if not name.startswith("held_out_")}, held_out, own


def _state(path: Path) -> TrainState:
    from flax import serialization

    kept = jax.tree.map(jnp.asarray, serialization.msgpack_restore(path.read_bytes()))
    return typed(TrainState(kept["step"], kept["params"], None, kept["model_state"], kept["key"]))
