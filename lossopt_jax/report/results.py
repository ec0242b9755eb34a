"""The files of a finished run or sweep, and what is printed of it."""

import math
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from . import folder, plots, tables


def write_run(place: Path, experiment: Any, fitted: Any) -> None:
    """config.toml, metrics.jsonl, params.msgpack, summary.json and curves.png of one trained recipe, the picture last."""
    from flax import serialization

    steps = len(fitted.history["loss"])
    folder.begin(place)
    write_config(place, experiment)
    folder.write_jsonl(
        place / "metrics.jsonl",
        [{"step": i, **{name: values[i] for name, values in fitted.history.items()}} for i in range(steps)],
    )
    trained = {"params": fitted.state.params, "model_state": fitted.state.model_state}
    folder.write_bytes(place / "params.msgpack", serialization.to_bytes(trained))
    summary = {
        "status": "ok" if fitted.diverged_at is None else "diverged",
        "diverged_at": fitted.diverged_at,
        "held_out": fitted.evaluation,
        "steps": steps,
        "seconds": fitted.seconds,
        "compile_seconds": fitted.compile_seconds,
        "steps_per_second": steps / fitted.seconds,
    }
    folder.write_json(place / "summary.json", {"name": experiment.name, "what": "train", **summary, **_machine()})
    title = f"{experiment.name}: one recipe"
    plots.write_curves(place / "curves.png", fitted.history, fitted.evaluations, fitted.evaluation_steps, fitted.diverged_at, title=title)


def show_run(fitted: Any, console: Console | None = None) -> None:
    """Print the end of one run."""
    console = console or Console()
    first, second = tables.run_lines(fitted.history, fitted.evaluation, fitted.diverged_at, fitted.seconds, fitted.compile_seconds)
    console.print(first, style="bold red" if fitted.diverged_at is not None else "bold", highlight=False)
    console.print(second, highlight=False)


def write_sweep(place: Path, experiment: Any, swept: Any) -> None:
    """config.toml, trials.csv, history.npz, summary.json, sweep.png and curves.png of a sweep, the pictures last."""
    rows, metric, space = swept.table(), swept.default_metric(), swept.trials.space
    folder.begin(place)
    write_config(place, experiment)
    folder.write_csv(place / "trials.csv", swept.lane_rows())
    evaluations = {f"held_out_{name}": values for name, values in swept.evaluations.items()}
    arrays = {**swept.history, **evaluations, "evaluation_steps": swept.evaluation_steps, "diverged_at": swept.diverged_at}
    folder.write_npz(place / "history.npz", arrays)
    top = [row for row in rows if math.isfinite(row[metric])][:5]
    title = f"{experiment.name}: {len(rows)} recipes, {sum(row['status'] == 'diverged' for row in rows)} diverged"
    summary = {
        "metric": metric,
        "best": rows[0] if top else None,
        "edges": swept.edges() if top else {},
        "trials": len(rows),
        "lanes": swept.lanes,
        "lanes_diverged": int((swept.diverged_at >= 0).sum()),
        "steps": swept.steps,
        "plan": swept.plan._asdict(),
        "seconds": swept.seconds,
        "compile_seconds": swept.compile_seconds,
        "lane_steps": swept.lane_steps,
        "lane_steps_per_second": swept.lane_steps / swept.seconds,
    }
    folder.write_json(place / "summary.json", {"name": experiment.name, "what": "sweep", **summary, **_machine()})
    plots.write_sweep(place / "sweep.png", rows, space, metric, title=title)
    plots.write_curves(
        place / "curves.png",
        swept.history,
        swept.evaluations,
        swept.evaluation_steps,
        swept.diverged_at,
        best=[row["trial"] * swept.seeds for row in top],
        labels=[f"{rank}.  {_named(row, space)}" for rank, row in enumerate(top, 1)],
        title=title,
    )


def show_sweep(swept: Any, console: Console | None = None) -> None:
    """Print the best recipes and where the best lies."""
    console = console or Console()
    rows, space, diverged = swept.table(), swept.trials.space, int((swept.diverged_at >= 0).sum())
    console.print(tables.sweep_table(rows, space, width=console.width))
    if diverged == swept.lanes:
        console.print(f"every one of the {len(rows)} recipes diverged: try smaller learning rates", style="bold red")
    elif math.isfinite(rows[0][swept.default_metric()]):
        for line in tables.notes(rows[0], space, swept.edges()):
            console.print(line, highlight=False)
    rate = swept.lane_steps / swept.seconds
    times = f"{swept.seconds:.1f} s after {swept.compile_seconds:.1f} s of compiling, {rate:,.0f} lane-steps a second"
    console.print(f"{times}, {diverged} of {swept.lanes} lanes diverged", highlight=False)


def finished(place: Path, resolved: dict[str, Any]) -> bool:
    """Whether a folder holds the whole of this very run; ValueError, showing what differs, when it holds one of another config."""
    import tomllib

    begun = place / folder.STATE / "config.toml"
    config = begun if begun.exists() else place / "config.toml"
    if config.exists():
        there, here = _flat(tomllib.loads(config.read_text())), _flat(resolved)
        differ = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if differ:
            shown = "; ".join(f"{key} is {here.get(key, 'not set')} and was {there.get(key, 'not set')}" for key in differ[:5])
            more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
            raise ValueError(f"{place} holds a run of another config: {shown}{more}. Choose another --out, or --overwrite it")
    return (place / "curves.png").exists() and not begun.exists()


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs = [_flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in table.items()]
    return {key: value for pair in pairs for key, value in pair.items()}


def write_config(place: Path, experiment: Any) -> None:
    """config.toml, before the run begins: whatever happens, the folder says what it was."""
    import tomli_w

    place.mkdir(exist_ok=True)
    folder.write_text(place / "config.toml", tomli_w.dumps(experiment.resolved))


def _named(row: dict[str, Any], space: Any) -> str:
    return "  ".join(f"{path.rpartition('.')[2]} {row[path]:.3g}" for path in space)


def _machine() -> dict[str, Any]:
    import jax

    packages = ("lossopt_jax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "command": sys.argv,
    }
