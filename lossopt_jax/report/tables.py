"""Rows of trials as a table, and what is worth saying about the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

METRICS = {"train_loss": "train loss", "held_out_loss": "held-out loss", "held_out_accuracy": "accuracy"}


def sweep_table(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any], limit: int = 10) -> Table:
    """The best `limit` trials: rank, the swept numbers, final losses and accuracy, with ± the spread over seeds where there are several."""
    table = Table(title=f"the best {min(limit, len(rows))} of {len(rows)} recipes", title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right")
    for path in space:
        table.add_column(path.replace(".", "\n", 1), justify="right")
    shown = [metric for metric in METRICS if metric in rows[0]]
    for metric in shown:
        table.add_column(METRICS[metric].replace(" ", "\n"), justify="right")
    for rank, row in enumerate(rows[:limit], 1):
        numbers = [f"{row[path]:.3g}" for path in space]
        cells = ["diverged" if row["status"] == "diverged" else _metric(row, metric) for metric in shown]
        table.add_row(str(rank), *numbers, *cells, style="dim" if row["status"] == "diverged" else "bold" if rank == 1 else None)
    return table


def notes(best: Mapping[str, Any], space: Mapping[str, Any], edges: Mapping[str, str]) -> list[str]:
    """Where each number of the best trial lies in its range; a best at the edge of the range is said."""
    lines = []
    for path, distribution in space.items():
        if not distribution.high > distribution.low:
            continue
        span = f"{distribution.low:g} to {distribution.high:g}"
        if path in edges:
            lines.append(f"{path}: the best, {best[path]:.3g}, lies at the {edges[path]} end of {span}: widen the range there")
        else:
            lines.append(f"{path}: the best, {best[path]:.3g}, lies {distribution.position(best[path]):.0%} of the way from {span}")
    return lines


def _metric(row: Mapping[str, Any], metric: str) -> str:
    number = f"{row[metric]:.1%}" if metric.endswith("accuracy") else f"{row[metric]:.4f}"
    spread = row.get(f"{metric}_std")
    if spread is None or not math.isfinite(spread):
        return number
    return f"{number} ± {spread:.1%}" if metric.endswith("accuracy") else f"{number} ± {spread:.4f}"
