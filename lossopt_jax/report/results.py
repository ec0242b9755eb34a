"""The files of a finished run or sweep, and what is printed of it."""

import json
import math
import platform
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from ..plain import number_to_plain, to_plain
from ..recipe import numbers
from ..sweep.columns import with_gaps
from ..sweep.statistics import fanova
from . import folder, plots, tables

FEW = 16  # recipes, of which fewer show no trend
FANOVA_TRIALS = 128  # of which fANOVA takes a second


def write_run(place: Path, experiment: Any, fitted: Any) -> None:
    """config.toml, metrics.jsonl, history.npz, params.msgpack, summary.json and curves.png of one trained recipe, the picture last.

    experiment: what ran, or None where it was no config; then the folder has no config.toml and is the name.
    """
    folder.begin(place)
    if experiment is not None:
        write_config(place, experiment.resolved)
    every = fitted.history_every
    folder.write_jsonl(
        place / "metrics.jsonl",
        [{"step": i * every, **{k: v[i] for k, v in fitted.history.items()}} for i in range(len(fitted.history["loss"]))],
    )
    diverged_at = np.asarray(-1 if fitted.diverged_at is None else fitted.diverged_at)
    folder.write_npz(place / "history.npz", _arrays(fitted) | {"diverged_at": diverged_at})
    folder.write_bytes(place / "params.msgpack", _state_bytes(fitted.state))
    done = int(fitted.evaluation_steps[-1]) if fitted.diverged_at is None else fitted.diverged_at + 1
    summary = {
        "status": "ok" if fitted.diverged_at is None else "diverged",
        "diverged_at": fitted.diverged_at,
        "held_out": fitted.evaluation,
        "steps": int(fitted.evaluation_steps[-1]),
        "history_every": every,
        "seconds": fitted.seconds,
        "compile_seconds": fitted.compile_seconds,
        "steps_per_second": done / fitted.seconds,
    }
    folder.write_json(place / "summary.json", _head(place, experiment, "train") | summary | _machine())
    title = f"{_title(place, experiment)}: one recipe"
    curves = (fitted.history, fitted.evaluations, fitted.evaluation_steps, fitted.diverged_at)
    plots.write_curves(place / "curves.png", *curves, title=title, every=every)


def show_run(fitted: Any, console: Console | None = None) -> None:
    """Print the end of one run."""
    console = console or Console()
    first, second = tables.run_lines(fitted.history, fitted.evaluation, fitted.diverged_at, fitted.seconds, fitted.compile_seconds)
    console.print(first, style="bold red" if fitted.diverged_at is not None else "bold", highlight=False)
    console.print(second, highlight=False)


def write_sweep(place: Path, experiment: Any, swept: Any) -> None:
    """What is known of a sweep, the pictures last: config.toml, recipes.json, trials.csv (and trials.parquet where polars or pyarrow is
    installed), history.npz, summary.json, sweep.png and curves.png; of the best best.toml and best_params.msgpack; of a population
    copies.csv.

    experiment: as of `write_run`.
    """
    rows, lanes, metric, space = swept.table(), swept.lane_rows(), swept.default_metric(), swept.trials.space
    top = [row for row in rows if row["status"] == "ok" and math.isfinite(row[metric])][:5]
    folder.begin(place)
    if experiment is not None:
        write_config(place, experiment.resolved)
    folder.write_json(place / "recipes.json", _recipes(swept))
    folder.write_csv(place / "trials.csv", with_gaps(lanes, space))
    folder.write_parquet(place / "trials.parquet", with_gaps(lanes, space))
    if swept.copies:
        folder.write_csv(place / "copies.csv", [_copy_row(copy) for copy in swept.copies])
    folder.write_npz(place / "history.npz", _arrays(swept) | {"diverged_at": swept.diverged_at, "stopped_at": swept.stopped_at})
    if top and experiment is not None:
        write_config(place, experiment.resolved_with(swept.best(), swept.trials.structure(swept.best_trial())), "best.toml")
    if top and swept.places[swept.best_lane()] is not None:
        folder.write_bytes(place / "best_params.msgpack", _state_bytes(swept.state(swept.best_lane())))
    folder.write_json(place / "summary.json", _head(place, experiment, "sweep") | _sweep_summary(swept, rows, bool(top)) | _machine())
    title = f"{_title(place, experiment)}: {len(rows)} recipes, {sum(row['status'] == 'diverged' for row in rows)} diverged"
    said = tables.parts_lines(space, _parts(swept))
    notes = {path: [line for line in said if line.partition(":")[0] in distribution.labels] for path, distribution in space.items()}
    plots.write_sweep(place / "sweep.png", rows, space, metric, title=title, notes=notes)
    plots.write_curves(
        place / "curves.png",
        *swept.inherited(),
        swept.evaluation_steps,
        swept.diverged_at,
        best=[range(row["trial"] * swept.seeds, (row["trial"] + 1) * swept.seeds) for row in top],
        labels=[f"{rank}.  {_named(row, space)}" for rank, row in enumerate(top, 1)],
        title=title,
        every=swept.history_every,
    )


def show_structures(groups: Sequence[tuple[str, int, int]], console: Console | None = None) -> None:
    """Print which structures will run, (name, recipes, lanes) each, in that order."""
    console = console or Console()
    console.print(f"{len(groups)} structures, each compiled once:", highlight=False)
    console.print(tables.structures_table(groups))


def show_sweep(swept: Any, console: Console | None = None) -> None:
    """Print the best recipes, what mattered, how sure it is and where to look further."""
    console = console or Console()
    rows, space, diverged = swept.table(), swept.trials.space, int((swept.diverged_at >= 0).sum())
    console.print(tables.sweep_table(rows, space, width=console.width))
    for line in tables.parts_lines(space, _parts(swept)):
        console.print(line, highlight=False, soft_wrap=True)
    failure = swept.failure()
    if failure:
        console.print(failure, style="bold red", highlight=False, soft_wrap=True)
    elif math.isfinite(rows[0][swept.default_metric()]):
        for line in _findings(swept, rows):
            console.print(line, highlight=False, soft_wrap=True)
        for line in tables.population_lines(swept.copies, swept.lineage(rows[0]["trial"]), space):
            console.print(line, highlight=False, soft_wrap=True)
    rate = swept.lane_steps / swept.seconds
    times = f"{swept.seconds:.1f} s after {swept.compile_seconds:.1f} s of compiling, {rate:,.0f} lane-steps a second"
    stopped = int((swept.stopped_at >= 0).sum())
    early = f"{stopped} stopped early, " if stopped else ""
    console.print(f"{times}, {early}{diverged} of {swept.lanes} lanes diverged", highlight=False)


def show_audit(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print how far lanes that ran again, alone, are from what they were in the sweep."""
    console = console or Console()
    worst = max(rows, key=lambda row: row["difference"])
    apart = "to the bit" if worst["difference"] == 0 else f"but for {worst['difference']:.2g} of the training loss (lane {worst['lane']})"
    lanes = f"lanes {', '.join(str(row['lane']) for row in rows)}, each" if len(rows) > 1 else f"lane {worst['lane']}"
    console.print(f"audit: {lanes} run again alone, came out the same {apart}", highlight=False, soft_wrap=True)


def _findings(swept: Any, rows: list[dict[str, Any]]) -> list[str]:
    space, metric = swept.trials.space, swept.default_metric()
    ranked = sum(math.isfinite(row[metric]) for row in rows)
    if wrong := swept.incomparable():
        return [wrong]
    lines = []
    if space and ranked >= FEW:
        lines.append(tables.importance_line(swept.importance(), metric, ranked, _fanova(swept, rows, metric)))
    elif space:
        lines.append(f"what mattered: {ranked} recipe{'s' * (ranked != 1)} that can be ranked are too few to tell, of {FEW} on it is said")
    if swept.seeds > 1 and ranked > 1:
        rank = {row["trial"]: i for i, row in enumerate(rows, 1)}
        lines.append(tables.sure_line({rank[trial]: chance for trial, chance in swept.chance_best().items()}, swept.seeds))
    return lines + tables.edge_notes(swept.edges(), swept.wider(), space, rows[0])


def _fanova(swept: Any, rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """As `Swept.fanova`, of at most `FANOVA_TRIALS` from the best to the worst: its time grows by their square. {} without Optuna."""
    if not find_spec("optuna"):
        return {}
    ranked = [row for row in rows if math.isfinite(row[metric])]
    return fanova(ranked[:: math.ceil(len(ranked) / FANOVA_TRIALS)], swept.trials.space, metric)


def _parts(swept: Any) -> dict[str, Any]:
    """Label of each part that was chosen among several -> that part, of the first trial that has it."""
    found: dict[str, Any] = {}
    for trial, recipe in enumerate(swept.trials.recipes):
        own = swept.trials.values(trial)
        found = {own[path]: getattr(recipe, path) for path in ("loss", "optimizer", "schedule") if path in own} | found
    return found


def _sweep_summary(swept: Any, rows: list[dict[str, Any]], ranked: bool) -> dict[str, Any]:
    wrong = swept.incomparable()
    told = ranked and not wrong  # as on the screen: what follows from an order of the trials, where that says something
    return {
        "metric": swept.default_metric(),
        "best": rows[0] if ranked else None,
        "failure": swept.failure(),
        "edges": swept.edges() if told else {},
        "wider": swept.wider() if told else {},
        "importance": {} if wrong else swept.importance(),
        "incomparable": wrong,
        "chance_best": [{"trial": t, "chance": p} for t, p in swept.chance_best().items()] if told and swept.seeds > 1 else None,
        "trials": len(rows),
        "lanes": swept.lanes,
        "lanes_diverged": int((swept.diverged_at >= 0).sum()),
        "copies": len(swept.copies),
        "steps": swept.steps,
        "history_every": swept.history_every,
        "plan": swept.plan._asdict(),
        "seconds": swept.seconds,
        "compile_seconds": swept.compile_seconds,
        "lane_steps": swept.lane_steps,
        "lane_steps_per_second": swept.lane_steps / swept.seconds,
    }


def _recipes(swept: Any) -> dict[str, Any]:
    """The recipes of a sweep: each structure once, of every trial the numbers that are not those of its structure's first."""
    structures: list[Any] = []
    trials = []
    for recipe in swept.trials.recipes:
        own, shape = numbers(recipe), jax.tree.structure(recipe)
        alike = [i for i, (other, first) in enumerate(structures) if other == shape and _shapes(first) == _shapes(own)]
        if not alike:
            structures.append((shape, own))
        which = alike[0] if alike else len(structures) - 1
        first = structures[which][1]
        trials.append({"structure": which, "numbers": {k: number_to_plain(v) for k, v in own.items() if not np.array_equal(v, first[k])}})
    firsts = [next(i for i, trial in enumerate(trials) if trial["structure"] == which) for which in range(len(structures))]
    return {
        "seeds": swept.seeds,
        "space": {path: distribution._asdict() for path, distribution in swept.trials.space.items()},
        "structures": [to_plain(swept.trials.recipes[i]) for i in firsts],
        "trials": trials,
        "drawn": list(swept.trials.drawn),
    }


def _copy_row(copy: Any) -> dict[str, Any]:
    """from: a word that Python keeps for itself."""
    row = {"step": copy.step, "to": copy.to, "from": copy.source, "diverged_at": None if copy.diverged_at < 0 else copy.diverged_at}
    row |= {f"{path}_before": value for path, value in copy.before.items()}
    return row | {f"{path}_after": value for path, value in copy.after.items()}


def _shapes(own: dict[str, Any]) -> dict[str, Any]:
    return {path: np.shape(value) for path, value in own.items()}


def _arrays(result: Any) -> dict[str, np.ndarray]:
    evaluations = {f"held_out_{name}": values for name, values in result.evaluations.items()}
    return {**result.history, **evaluations, "evaluation_steps": result.evaluation_steps}


def _state_bytes(state: Any) -> bytes:
    """All of a state but the optimizer's, which is of no use without its program."""
    from flax import serialization

    kept = {"params": state.params, "model_state": state.model_state, "step": state.step, "key": jax.random.key_data(state.key)}
    return serialization.to_bytes(kept)


def _head(place: Path, experiment: Any, what: str) -> dict[str, Any]:
    return {"name": _title(place, experiment), "what": what, "format": folder.FORMAT}


def _title(place: Path, experiment: Any) -> str:
    return place.resolve().name if experiment is None else experiment.name


def finished(place: Path, resolved: dict[str, Any], asked: dict[str, Any], last: str = "curves.png") -> bool:
    """Whether a folder holds the whole of this very run; ValueError, showing what differs, when it holds one of another config.

    asked: what the command was asked for beside its config: "what" and options, which its summary.json has as "asked", or without their
    dashes; also in the config of a state. last: the file that is written last.
    """
    import tomllib

    begun = place / folder.STATE / "config.toml"
    config = begun if begun.exists() else place / "config.toml"
    if config.exists():
        there, here = _flat(_read(config, tomllib.loads, place)), _flat(asked | resolved)
        summary = place / "summary.json"
        if config is not begun and summary.exists():
            known = _read(summary, json.loads, place)
            there |= known.get("asked") or {name: known[key] for name in asked if (key := name.removeprefix("--")) in known}
        elif config is not begun:
            there |= asked
        differ = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if differ:
            shown = "; ".join(f"{key} is {here.get(key, 'not set')} and was {there.get(key, 'not set')}" for key in differ[:5])
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise ValueError(f"{place} holds a run of another config: {shown}{more}. Choose another --out, or --overwrite it")
    return (place / last).exists() and not begun.exists()


def _read(file: Path, parsed: Callable[[str], Any], place: Path) -> Any:
    try:
        return parsed(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): what {place} holds cannot be gone on with; --overwrite it") from None


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs = [_flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in table.items()]
    return {key: value for pair in pairs for key, value in pair.items()}


def write_config(place: Path, resolved: dict[str, Any], name: str = "config.toml") -> None:
    """A config as TOML; config.toml is there before the run begins: whatever happens, the folder says what it was."""
    import tomli_w

    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {place}: {error.strerror}") from None
    # A space is written line by line, since tomli_w puts lists before tables and the order is what trials are drawn by.
    space = resolved.get("sweep", {}).get("space", {})
    rest = resolved | {"sweep": {k: v for k, v in resolved["sweep"].items() if k != "space"}} if space else resolved
    lines = ["", "[sweep.space]", *(f"{_key(path)} = {_inline(what)}" for path, what in space.items()), ""] if space else []
    folder.write_text(place / name, tomli_w.dumps(rest) + "\n".join(lines))


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _inline(text)


def _inline(value: Any) -> str:
    """A value as TOML within a line."""
    import tomli_w

    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_inline(v)}' for key, v in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _named(row: dict[str, Any], space: Any) -> str:
    named = {path.rpartition(".")[2]: tables.number(row[path], distribution) for path, distribution in space.items()}
    return "  ".join(f"{name} {value}" for name, value in named.items() if value != "-")


def _machine() -> dict[str, Any]:
    packages = ("lossopt_jax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "command": sys.argv,
    }
