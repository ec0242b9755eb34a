"""The files of a tuned recipe, and what is printed of it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from . import folder, lr_plot, plots, results, tables


def write_tuned(place: Path, experiment: Any, tuned: Any, asked: dict[str, Any]) -> None:
    """config.toml, tuned.csv, rates.csv, summary.json, a find_lr-<optimizer>.png each; sweep/ as `lossopt sweep` writes it; of the
    better recipe best.toml and best_params.msgpack; curves.png last. asked: of `results.finished`.
    """
    if tuned.swept is not None:
        results.write_sweep(place / "sweep", experiment, tuned.swept)
    folder.begin(place)
    results.write_config(place, experiment.resolved)
    rates = [{"optimizer": label, **row} for label, found in tuned.findings.items() for row in found.table()]
    folder.write_csv(place / "rates.csv", rates)
    folder.write_csv(place / "tuned.csv", tuned.table())
    summary = {
        "asked": asked,
        "improved": tuned.improved,
        "suggested": {label: found.suggested for label, found in tuned.findings.items()},
        "lane_steps": tuned.lane_steps,
        "recipes": tuned.table(),
    }
    head = {"name": experiment.name, "what": "tune", "format": folder.FORMAT}
    folder.write_json(place / "summary.json", head | summary | results._machine())
    for label, found in tuned.findings.items():
        lr_plot.write_finding(place / f"find_lr-{label}.png", found)
    final = tuned.final
    if final is None:
        return
    results.write_config(place, experiment.resolved_with(tuned.recipe), "best.toml")
    if not final.failure():
        folder.write_bytes(place / "best_params.msgpack", results._state_bytes(final.state(final.best_lane())))
    shown = {row["which"]: row["trial"] * final.seeds for row in tuned.table() if row["which"] != "finalist"}
    plots.write_curves(
        place / "curves.png",
        final.history,
        final.evaluations,
        final.evaluation_steps,
        final.diverged_at,
        best=list(shown.values()),
        labels=[f"{name}, the first of {final.seeds} seeds" if final.seeds > 1 else name for name in shown],
        title=f"{experiment.name}: tuned, and as given",
        every=final.history_every,
    )


def show_tuned(tuned: Any, console: Console | None = None) -> None:
    """Print what the stages found, and whether it is better than what was given."""
    console = console or Console()
    suggested = [f"{label} {found.suggested:.2g}" for label, found in tuned.findings.items() if math.isfinite(found.suggested)]
    if not suggested:
        for label, found in tuned.findings.items():
            console.print(f"{label}: {'; '.join(found.verdicts.values())}", highlight=False, soft_wrap=True)
        console.print("no learning rate was found for any optimizer: nothing was tuned", style="bold red", highlight=False)
        return
    console.print(f"rates in a tenth of the steps: {', '.join(suggested)}", highlight=False)
    results.show_sweep(tuned.swept)
    if tuned.final is None:
        return
    seeds = tuned.final.seeds
    for row in tuned.table():
        shown = [f"{tables.plain_name(name)} {_with_sem(row, name)}" for name in _metrics(row)]
        console.print(f"{row['which']:9} {'  '.join(shown)}  ({seeds} new seed{'s' * (seeds > 1)})", highlight=False, soft_wrap=True)
    said = _ahead(tuned) if tuned.improved else "the recipe as given was not beaten: it is in best.toml"
    spent = ", ".join(f"{name} {count:,}" for name, count in tuned.lane_steps.items())
    console.print(f"{said}; lane-steps: {spent}", style="bold", highlight=False, soft_wrap=True)


def _ahead(tuned: Any) -> str:
    """Whether the tuned recipe is better by more than the seeds scatter."""
    metric, rows = tuned.final.default_metric(), {row["which"]: row for row in tuned.table()}
    ours, given = rows["tuned"], rows["as given"]
    error = math.hypot(ours.get(f"{metric}_sem", math.nan), given.get(f"{metric}_sem", math.nan))
    apart = abs(ours[metric] - given[metric]) / error if error > 0 else math.nan
    if not math.isfinite(given[metric]) or apart >= 2:
        return "the tuned recipe is the better one"
    seeds = "one seed" if tuned.final.seeds == 1 else f"{tuned.final.seeds} seeds"
    by = f", by {apart:.1f} standard errors" if math.isfinite(apart) else ""
    return f"the tuned recipe is ahead{by}: too little for {seeds} to tell"


def _with_sem(row: dict[str, Any], name: str) -> str:
    sem = row.get(f"{name}_sem", math.nan)
    return f"{row[name]:.4g}" + (f" ± {sem:.2g}" if math.isfinite(sem) else "")


def _metrics(row: dict[str, Any]) -> list[str]:
    return [name for name in row if name.startswith("held_out_") and not name.endswith("_sem")] or ["train_loss"]
