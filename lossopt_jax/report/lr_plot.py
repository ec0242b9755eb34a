"""The pictures of a learning-rate finding and of a range test: the loss against the rate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plots
from .folder import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIONS = {"too low": plots.COLOURS[0], "just right": plots.COLOURS[2], "too high": plots.DIVERGED}


def finding_figure(finding: Any, *, title: str = "") -> "Figure":
    """Every seed's loss as a dot and their mean as a line, the three regions shaded, the suggestion starred.

    Where a seed diverged it is a red cross on the upper edge; a loss far above the others lies on that edge as well.
    """
    figure = plots._figure(9.2, 5.2, title or _title(finding))
    axis = figure.add_subplot()
    rates, losses = np.asarray(finding.rates), np.asarray(finding.losses, np.float64)
    axis.set_xscale("log")
    margin = (rates[-1] / rates[0]) ** 0.015
    axis.set_xlim(rates[0] / margin, rates[-1] * margin)
    lower, upper = _limits(axis, losses, finding.start)
    if np.isfinite(finding.suggested):
        _regions(axis, finding, rates)
    _losses(axis, rates, losses, upper)
    if np.isfinite(finding.start) and lower < finding.start < upper:
        axis.axhline(finding.start, color=plots.FAINT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5, label="before training")
    if np.isfinite(finding.edge) and np.isfinite(finding.suggested):
        who = "most seeds" if losses.shape[1] > 1 else "runs"
        style: dict[str, Any] = {"color": plots.DIVERGED, "linewidth": 1.1, "linestyle": ":"}
        axis.axvline(finding.edge, zorder=2, label=f"from {finding.edge:.2g} on {who} fail", **style)
    if np.isfinite(finding.suggested):
        _suggestion(axis, finding, rates, losses, lower)
    kind = "Held-out loss" if finding.metric == "held_out_loss" else "Training loss"
    axis.set_xlabel("learning rate", color=plots.INK)
    axis.set_ylabel(f"{kind} after {finding.swept.evaluation_steps[-1]} steps", color=plots.INK)
    axis.set_title(_subtitle(finding, losses.shape[1]), fontsize=9.5, loc="left", color=plots.INK, pad=8, linespacing=1.4)
    plots._plain_look(axis)
    axis.set_ylim(lower, upper)
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, len(labels) if len(labels) < 6 else -(-len(labels) // 2))  # more than five are wider than the picture
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, columnspacing=1.6)
    return figure


def range_test_figure(test: Any, *, title: str = "") -> "Figure":
    """The loss of every step against the rate it was taken at, its running mean, fastai's valley starred and its steep marked."""
    found = np.isfinite(test.valley)
    figure = plots._figure(9.2, 5.2, _found(test.valley, title) if found else "No learning rate to suggest")
    axis = figure.add_subplot()
    axis.set_xscale("log")
    axis.set_xlim(test.low, test.high)
    if len(test.rates):
        axis.plot(test.rates, test.losses, color=plots.COLOURS[4], linewidth=0.8, alpha=0.6, label="a step")
        axis.plot(test.rates, test.smoothed, color=plots.INK, linewidth=1.7, label="running mean")
        low, high = float(test.losses.min()), float(test.smoothed.max())
        axis.set_ylim(low - 0.08 * (high - low), high + 0.15 * (high - low or 1.0))
    if found:
        height = np.interp([test.valley, test.steep], test.rates, test.smoothed)
        star: dict[str, Any] = {"color": plots.COLOURS[1], "edgecolors": "black", "linewidths": 0.7, "zorder": 8}
        axis.scatter(test.valley, height[0], s=230, marker="*", label="valley", **star)
        axis.scatter(test.steep, height[1], s=60, marker="v", label="steep", **star)
    axis.set_xlabel("learning rate, growing step by step", color=plots.INK)
    axis.set_ylabel("Training loss", color=plots.INK)
    axis.set_title(f"one run, {len(test.rates)} of {test.steps} steps", fontsize=9.5, loc="left", color=plots.INK, pad=8)
    plots._plain_look(axis)
    if len(test.rates):
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def write_range_test(path: str | Path, *args: Any, **kwargs: Any) -> None:
    """`range_test_figure` as a PNG file, whole or not there."""
    write_bytes(path, plots._png(range_test_figure(*args, **kwargs)))


def write_finding(path: str | Path, *args: Any, **kwargs: Any) -> None:
    """`finding_figure` as a PNG file, whole or not there."""
    write_bytes(path, plots._png(finding_figure(*args, **kwargs)))


def _title(finding: Any) -> str:
    if not np.isfinite(finding.suggested):
        return "No learning rate to suggest"
    return _found(finding.suggested, finding.config_line)


def _found(rate: float, config_line: str) -> str:
    return f"Learning rate {rate:.2g}   ({config_line.partition('  #')[0]})"


def _subtitle(finding: Any, seeds: int) -> str:
    if not np.isfinite(finding.suggested):
        return "; ".join(finding.verdicts.values())
    low, high = finding.range
    text = f"{low:.2g} to {high:.2g} are within 5 % of the best" if high > low else "no rate beside it is within 5 % of the best"
    if seeds > 1:
        text += f"; the {seeds} seeds by themselves would say {min(finding.seed_rates):.2g} to {max(finding.seed_rates):.2g}"
    return "\n".join([text, *finding.verdicts.values()])


def _limits(axis: "Axes", losses: np.ndarray, start: float) -> tuple[float, float]:
    """From below the least loss to above the start; logarithmic where that spans much."""
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        axis.set_yticks([])
        axis.text(0.5, 0.5, "nothing finite to show", ha="center", va="center", transform=axis.transAxes, color=plots.FAINT)
        return 0.0, 1.0
    least = float(finite.min())
    # Beyond the start lies what is worse than not training: that it is worse is seen on the edge.
    most = max([float(np.median(finite)), *[loss for loss in (start, *losses[0]) if np.isfinite(loss)]])
    if least > 0 and most > 4 * least:
        axis.set_yscale("log")
        plots._decimal_ticks(axis.yaxis, most / least)
        room = (most / least) ** 0.1
        return least / room**1.6, most * room**1.3
    span = (most - least) or abs(most) or 1.0
    return least - 0.14 * span, most + 0.14 * span


def _regions(axis: "Axes", finding: Any, rates: np.ndarray) -> None:
    # Half way to the next rate, since the ends of the range are rates that are still right.
    half = (rates[-1] / rates[0]) ** (0.5 / (len(rates) - 1))
    left, right = axis.get_xlim()
    low, high = max(finding.range[0] / half, left), min(finding.range[1] * half, right)
    for (name, colour), (begin, end) in zip(REGIONS.items(), ((left, low), (low, high), (high, right)), strict=True):
        axis.axvspan(begin, end, color=colour, alpha=0.16 if name == "just right" else 0.07, linewidth=0, zorder=0)
        if np.log(end / begin) > 0.03 * np.log(right / left):
            place: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top", "zorder": 7}
            place["bbox"] = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
            narrow = np.log(end / begin) < 0.12 * np.log(right / left)
            words = name.replace(" ", "\n") if narrow else name
            axis.text(np.sqrt(begin * end), 0.975, words, color=colour, fontsize=9, fontweight="bold", linespacing=1.1, **place)


def _losses(axis: "Axes", rates: np.ndarray, losses: np.ndarray, upper: float) -> None:
    means = losses.mean(1)
    each = np.broadcast_to(rates[:, None], losses.shape)
    shown = np.isfinite(losses) & (losses <= upper)
    several = losses.shape[1] > 1
    if np.isfinite(means).any():
        axis.plot(rates, means, color=plots.INK, linewidth=1.7, zorder=3, label="mean over seeds" if several else "loss")
    if several and shown.any():
        axis.scatter(each[shown], losses[shown], s=11, color=plots.COLOURS[4], linewidths=0, alpha=0.75, zorder=2.5, label="a seed")
    beyond, gone = (np.isfinite(losses) & ~shown).any(1), (~np.isfinite(losses)).any(1)
    edge: dict[str, Any] = {"clip_on": False, "zorder": 6}
    if (beyond & ~gone).any():
        which = rates[beyond & ~gone]
        axis.scatter(which, np.full(len(which), upper), s=20, marker="^", color=plots.INK, linewidths=0, label="off the scale", **edge)
    if gone.any():
        label = "a seed diverged" if several else "diverged"
        axis.scatter(rates[gone], np.full(gone.sum(), upper), s=26, marker="x", color=plots.DIVERGED, linewidths=1.3, label=label, **edge)


def _suggestion(axis: "Axes", finding: Any, rates: np.ndarray, losses: np.ndarray, lower: float) -> None:
    at = int(np.argmin(np.abs(np.log(rates / finding.suggested))))
    axis.axvline(finding.suggested, color=plots.COLOURS[1], linewidth=1.2, zorder=2)
    star: dict[str, Any] = {"marker": "*", "color": plots.COLOURS[1], "edgecolors": "black", "linewidths": 0.7, "clip_on": False}
    axis.scatter(finding.suggested, max(losses[at].mean(), lower), s=230, zorder=8, label="suggested", **star)
