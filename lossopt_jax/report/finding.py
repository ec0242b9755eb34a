"""The files of a learning-rate finding, and what is printed of it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from . import folder, lr_plot, tables
from .results import _machine


def write_finding(place: Path, experiment: Any, finding: Any) -> None:
    """config.toml, rates.csv, summary.json and find_lr.png of a finding, the picture last."""
    import tomli_w

    folder.begin(place)
    folder.write_text(place / "config.toml", tomli_w.dumps(experiment.resolved))
    folder.write_csv(place / "rates.csv", finding.table())
    swept = finding.swept
    summary = {
        "suggested": finding.suggested,
        "config_line": finding.config_line,
        "range": finding.range,
        "edge": finding.edge,
        "seed_rates": finding.seed_rates,
        "verdicts": finding.verdicts,
        "metric": finding.metric,
        "start": finding.start,
        "low": finding.rates[0],
        "high": finding.rates[-1],
        "count": len(finding.rates),
        "seeds": swept.seeds,
        "steps": swept.steps,
        "lanes_diverged": int((swept.diverged_at >= 0).sum()),
        "seconds": swept.seconds,
        "compile_seconds": swept.compile_seconds,
        "lane_steps": swept.lane_steps,
    }
    folder.write_json(
        place / "summary.json", {"name": experiment.name, "what": "find-lr", "format": folder.FORMAT, **summary, **_machine()}
    )
    lr_plot.write_finding(place / "find_lr.png", finding)


def show_finding(finding: Any, console: Console | None = None) -> None:
    """Print the line for the config and what is known of it."""
    console = console or Console()
    first, *rest = tables.finding_lines(finding)
    console.print(first, style="bold" if math.isfinite(finding.suggested) else "bold red", highlight=False, markup=False, soft_wrap=True)
    for line in rest:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    swept = finding.swept
    rate = swept.lane_steps / swept.seconds
    times = f"{swept.seconds:.1f} s after {swept.compile_seconds:.1f} s of compiling, {rate:,.0f} lane-steps a second"
    console.print(times, highlight=False)
