"""Pictures: the course of training, and the held-out loss against each swept number. Figures are made without pyplot's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
DIVERGED = "#C1121F"
FAINT = "#9AA5B1"
HIGHLIGHTED = 5
DRAWN = 300


def curves(
    history: Mapping[str, np.ndarray],
    evaluations: Mapping[str, np.ndarray],
    evaluation_steps: np.ndarray,
    best: Sequence[int] = (0,),
    labels: Sequence[str] = (),
    title: str = "",
) -> bytes:
    """A PNG of training loss, held-out loss and learning rate by step. history: metric -> [steps] or [lanes, steps].

    best: lanes to highlight, in order; the rest are drawn faint, a diverged one up to a cross.
    """
    figure = _figure(10, 6.2, title)
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2])
    loss, held_out, rate = (figure.add_subplot(cell) for cell in (grid[0, :], grid[1, 0], grid[1, 1]))
    losses = np.atleast_2d(history["loss"])
    steps = np.arange(losses.shape[1])
    window = max(1, losses.shape[1] // 50)
    best = [lane for lane in best if np.isfinite(losses[lane]).any()][:HIGHLIGHTED]
    for lane in [lane for lane in range(len(losses)) if lane not in best][:DRAWN]:
        _line(loss, steps, _smooth(losses[lane], window), color=FAINT, alpha=0.35, linewidth=0.8)
    for colour, lane, label in zip(COLOURS, best, [*labels, *[""] * len(best)], strict=False):
        _line(loss, steps, _smooth(losses[lane], window), color=colour, linewidth=1.8, label=label or None, zorder=3)
        _line(rate, steps, np.atleast_2d(history["learning_rate"])[lane], color=colour, linewidth=1.5)
        if "loss" in evaluations:
            _line(held_out, evaluation_steps, np.atleast_2d(evaluations["loss"])[lane], color=colour, marker="o", markersize=3.5)
    for lane, values in enumerate(losses):
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite) and len(finite) < len(values):
            loss.plot(finite[-1], _smooth(values, window)[finite[-1]], "x", color=DIVERGED, markersize=6, zorder=4)
            loss.plot([], [], "x", color=DIVERGED, label="diverged" if lane == _first_diverged(losses) else None)
    _dress(loss, "training loss" + (f" (mean of {window} steps)" if window > 1 else ""), "step")
    _dress(held_out, "held-out loss", "step")
    _dress(rate, "learning rate", "step")
    if loss.get_legend_handles_labels()[1]:
        loss.legend(fontsize=8, framealpha=0.9, edgecolor="none", loc="upper right")
    return _png(figure)


def sweep(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any], metric: str, title: str = "") -> bytes:
    """A PNG with a panel for each swept number: the metric against it, the best starred, diverged trials as crosses on the top edge."""
    paths = list(space) or ["trial"]
    columns = min(3, len(paths))
    lines = math.ceil(len(paths) / columns)
    figure = _figure(4.4 * columns + 0.6, 3.5 * lines + 0.7, title)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(len(paths))]
    finite = [row for row in rows if math.isfinite(row[metric])]
    failed = [row for row in rows if not math.isfinite(row[metric])]
    for axis, path in zip(axes, paths, strict=True):
        if path in space and space[path].kind == "log_uniform":
            axis.set_xscale("log")
        if finite:
            x, y = [row[path] for row in finite], [row[metric] for row in finite]
            spread = [row.get(f"{metric}_std", 0.0) for row in finite]
            if any(spread):
                axis.errorbar(x, y, spread, fmt="none", ecolor=FAINT, elinewidth=0.8)
            axis.scatter(x, y, s=18, color=COLOURS[0], alpha=0.75, linewidths=0, label="trial")
            axis.scatter(x[0], y[0], s=170, marker="*", color=COLOURS[4], edgecolors="black", linewidths=0.6, zorder=4, label="best")
        _dress(axis, "", path)
        if failed:
            transform = axis.get_xaxis_transform()
            axis.scatter(
                [row[path] for row in failed], [0.97] * len(failed), marker="x", s=26, color=DIVERGED, transform=transform, label="diverged"
            )
        axis.set_ylabel(metric.replace("_", " ").replace("held out", "held-out"))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    return _png(figure)


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _line(axis: "Axes", x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    if len(x) == 1:
        style["marker"] = "o"  # a line through one point shows nothing
    axis.plot(x, y, **style)


def _dress(axis: "Axes", title: str, x: str) -> None:
    values = np.concatenate(
        [np.ravel(line.get_ydata()) for line in axis.lines]
        + [np.ravel(c.get_offsets()[:, 1]) for c in axis.collections if len(c.get_offsets())]
        or [[]]
    )
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if len(positive) and len(positive) == len(values) and positive.max() > 20 * positive.min():
        axis.set_yscale("log")
        # A lane about to diverge would flatten all the others.
        axis.set_ylim(top=min(positive.max() * 1.5, max(np.quantile(positive, 0.98) * 3, positive.min() * 20)))
    if not len(values):
        axis.text(0.5, 0.5, "nothing finite to show", ha="center", va="center", transform=axis.transAxes, color=FAINT)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x)
    axis.grid(alpha=0.2, which="major")
    axis.spines[["top", "right"]].set_visible(False)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over the last `window` steps, fewer at the start; NaN stays where it is."""
    if not len(values):
        return values
    sums = np.cumsum(np.where(np.isfinite(values), values, 0.0), dtype=np.float64)
    counts = np.minimum(np.arange(len(values)) + 1, window)
    sums[window:] -= sums[:-window].copy() if window < len(values) else 0
    return np.where(np.isfinite(values), sums / counts, np.nan)


def _first_diverged(losses: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(losses).all(1)))
