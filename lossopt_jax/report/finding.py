"""The files of a learning-rate finding, and what is printed of it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from ..plain import to_plain
from . import folder, lr_plot, results, tables


def write_finding(place: Path, experiment: Any, finding: Any) -> None:
    """config.toml, rates.csv, recipes.json, history.npz, summary.json and find_lr.png of a finding, the picture last.

    experiment: what ran, or None where it was no config.
    """
    folder.begin(place)
    if experiment is not None:
        results.write_config(place, experiment.resolved)
    folder.write_csv(place / "rates.csv", finding.table())
    swept = finding.swept
    folder.write_json(place / "recipes.json", results._recipes(swept) | {"recipe": to_plain(finding.recipe)})
    folder.write_npz(place / "history.npz", results._arrays(swept) | {"diverged_at": swept.diverged_at, "stopped_at": swept.stopped_at})
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
        "history_every": swept.history_every,
        "plan": swept.plan._asdict(),
        "lanes_diverged": int((swept.diverged_at >= 0).sum()),
        "seconds": swept.seconds,
        "compile_seconds": swept.compile_seconds,
        "lane_steps": swept.lane_steps,
    }
    folder.write_json(place / "summary.json", results._head(place, experiment, "find-lr") | summary | results._machine())
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


def write_range_test(place: Path, experiment: Any, test: Any, line: str) -> None:
    """config.toml, rates.csv (a row a step), summary.json and range_test.png of a range test, the picture last; line: for a config."""
    folder.begin(place)
    results.write_config(place, experiment.resolved)
    columns = zip(test.rates, test.losses, test.smoothed, strict=True)
    folder.write_csv(place / "rates.csv", [{"learning_rate": rate, "loss": loss, "smoothed": mean} for rate, loss, mean in columns])
    summary = {"valley": test.valley, "steep": test.steep, "config_line": line, "verdicts": test.verdicts}
    summary |= {"low": test.low, "high": test.high, "steps": test.steps}
    folder.write_json(place / "summary.json", results._head(place, experiment, "range-test") | summary | results._machine())
    lr_plot.write_range_test(place / "range_test.png", test, title=line)


def show_range_test(test: Any, line: str, console: Console | None = None) -> None:
    """Print the line for the config, or that there is none, and how far the run got."""
    console = console or Console()
    console.print(
        line or "no learning rate to suggest", style="bold" if line else "bold red", highlight=False, markup=False, soft_wrap=True
    )
    if line:
        console.print(f"that is fastai's valley; its steep says {test.steep:.2g}", highlight=False, soft_wrap=True)
    taken = len(test.rates)
    why = "the loss left 4 times its least behind" if taken else "the first step was not finite"
    ended = f"stopped after {taken} of {test.steps} steps: {why}" if taken < test.steps else f"all {taken} steps taken"
    console.print(f"one run, its rate growing from {test.low:g} to {test.high:g}; {ended}", highlight=False, soft_wrap=True)
    console.print("note: a range test often misses; without --range-test every rate is trained by itself", highlight=False, soft_wrap=True)
