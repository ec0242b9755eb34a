"""Finished runs side by side, printed."""

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .tables import plain_name

ROWS = 25  # of what differs, at most


def show(comparison: Any, console: Console | None = None) -> None:
    """Print a `compare.Comparison`: the runs with their metrics, what differs in their configs, then the verdict."""
    console = console or Console()
    console.print(_runs(comparison))
    if comparison.differ:
        console.print(_differences(comparison))
    else:
        console.print("the configs do not differ", highlight=False)
    for line in comparison.lines:
        console.print(line, highlight=False, soft_wrap=True, style="bold")


def _runs(comparison: Any) -> Table:
    table = _table("the runs; ± is the standard error over seeds" if _spreads(comparison) else "the runs")
    table.add_column("", justify="right")
    table.add_column("folder", overflow="fold")
    table.add_column("what it was", overflow="fold")
    metrics = list(dict.fromkeys(name for entry in comparison.entries for name in entry.metrics))
    metrics.sort(key=lambda name: (name != comparison.metric, name == "train_loss"))
    for metric in metrics:
        table.add_column(plain_name(metric) + (" *" if metric == comparison.metric else ""), justify="right")
    for letter, entry in zip(_letters(comparison), comparison.entries, strict=True):
        table.add_row(letter, entry.name, entry.what, *[_metric(entry, metric) for metric in metrics])
    if comparison.metric:
        table.caption = f"* compared by this, {'more' if comparison.metric.endswith('accuracy') else 'less'} is better"
    return table


def _differences(comparison: Any) -> Table:
    rows = list(comparison.differ.items())
    table = _table("what differs in their configs (of a sweep, with its best recipe)")
    table.add_column("key", overflow="fold")
    for letter in _letters(comparison):
        table.add_column(letter, justify="right", overflow="fold")
    for key, values in rows[:ROWS]:
        table.add_row(key, *["-" if value is None else _value(value) for value in values])
    if len(rows) > ROWS:
        table.caption = f"and {len(rows) - ROWS} more"
    return table


def _table(title: str) -> Table:
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "caption_justify": "left"}
    return Table(title=title, title_justify="left", title_style="bold", **look)


def _letters(comparison: Any) -> list[str]:
    return [f"({i})" for i in range(1, len(comparison.entries) + 1)]


def _spreads(comparison: Any) -> bool:
    return any(math.isfinite(entry.sem(metric)) for entry in comparison.entries for metric in entry.metrics)


def _metric(entry: Any, metric: str) -> str:
    if not math.isfinite(entry.mean(metric)):
        return "-"
    sem = entry.sem(metric)
    style = ".1%" if metric.endswith("accuracy") else ".4f" if 0.001 <= abs(entry.mean(metric)) < 1000 else ".3g"
    return f"{entry.mean(metric):{style}}" + (f" ±{sem:{style}}" if math.isfinite(sem) else "")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
