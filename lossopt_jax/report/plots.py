"""Pictures: the course of training, and a metric against each swept number. Figures are made without pyplot's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .folder import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
DIVERGED = "#D00000"
FAINT = "#8B98A5"
INK = "#22303C"
HIGHLIGHTED = 5
POINTS = 400  # of a curve, at most: more are not seen
DPI = 130


def curves_figure(
    history: Mapping[str, np.ndarray],
    evaluations: Mapping[str, np.ndarray],
    evaluation_steps: np.ndarray,
    diverged_at: np.ndarray | int | None = None,
    *,
    best: Sequence[int | Sequence[int]] | None = None,
    labels: Sequence[str] = (),
    title: str = "",
    every: int = 1,
) -> "Figure":
    """Training loss, held-out loss and learning rate by step, of one run or of lanes.

    history: metric -> [steps] or [lanes, steps]. evaluations: held-out metric -> [evaluations] or [lanes, evaluations].
    diverged_at: the step of each lane, negative or None where none; without it a lane diverged that ends in what is not finite.
    best: lanes to highlight, in order (at most five), by default those of the least loss at the end, named by `labels`, by default
    their greatest learning rates; of a recipe under several seeds its lanes, in one colour. The others are drawn faint, a diverged one
    up to a red cross.
    every: steps from one value of the history to the next.
    """
    losses = np.atleast_2d(np.asarray(history["loss"], np.float64))
    lanes, steps = losses.shape
    window = max(1, steps // 50)
    smooth = np.array([_smooth(values, window) for values in losses]).reshape(lanes, steps)
    at = np.arange(steps) if steps <= POINTS else np.unique(np.linspace(0, steps - 1, POINTS).astype(int))
    failed = _ends(losses, diverged_at)
    held_out = {name: np.atleast_2d(np.asarray(values, np.float64)) for name, values in evaluations.items() if name == "loss"}
    rates = np.atleast_2d(np.asarray(history["learning_rate"], np.float64)) if "learning_rate" in history else None
    seen = np.isfinite(np.concatenate([losses, *held_out.values()], 1)).any(1)
    asked: Sequence[int | Sequence[int]] = _best(smooth, held_out) if best is None else best
    groups = [[lane] if isinstance(lane, int | np.integer) else list(lane) for lane in asked]
    named = [(group, label) for group, label in zip_longest(groups, labels[: len(groups)]) if seen[group].any()][:HIGHLIGHTED]
    groups = [group for group, _ in named]
    names = [label or ("" if rates is None else _rate_name(rates[group[0]])) for group, label in named]
    highlighted = [lane for group in groups for lane in group]

    figure = _figure(10, 6.4, title)
    below = ["held_out"] * bool(held_out) + ["rate"] * (rates is not None)
    mosaic: list[Any] = [["loss"] * max(1, len(below)), *([below] if below else [])]
    axes = figure.subplot_mosaic(mosaic, height_ratios=[3, 2][: len(mosaic)])
    loss = axes["loss"]
    faint = [lane for lane in range(lanes) if lane not in highlighted]
    _bundle(loss, at * every, smooth[faint][:, at])
    _highlights(loss, at * every, smooth[:, at], groups, names)
    _limits(loss, smooth, highlighted)
    _crosses(loss, smooth, failed, every)
    _dress(loss, "Training loss" + (f", mean of {window * every} steps" if window > 1 else ""), steps * every)
    if held_out:
        axis, x = axes["held_out"], np.asarray(evaluation_steps)
        _bundle(axis, x, held_out["loss"][faint])
        _highlights(axis, x, held_out["loss"], groups, marker="o", markersize=3)
        _limits(axis, held_out["loss"], highlighted)
        _dress(axis, "Held-out loss", steps * every)
    if rates is not None:
        _bundle(axes["rate"], at * every, rates[:, at] if not highlighted else rates[:0])
        _highlights(axes["rate"], at * every, rates[:, at], groups)
        _limits(axes["rate"], rates, highlighted, headroom=1.15)
        _dress(axes["rate"], "Learning rate", steps * every)
    _legend(loss)
    return figure


def sweep_figure(
    rows: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any],
    metric: str = "held_out_loss",
    *,
    title: str = "",
    notes: Mapping[str, Sequence[str]] | None = None,
) -> "Figure":
    """A panel for each swept number: the metric against it, the best starred, diverged trials as crosses on the edge of the worse.

    rows: of trials, best first; `<metric>_sem` in them draws error bars. A trial far beyond the others is an arrow on that edge.
    notes: path -> lines below its axis.
    """
    paths = list(space) or ["trial"]
    columns = min(3, len(paths)) if len(paths) != 4 else 2
    lines = math.ceil(len(paths) / columns)
    figure = _figure(max(3.9 * columns, 5.6) + 0.6, 3.3 * lines + 1.0, title)
    higher = metric.endswith("accuracy")
    values = np.array([row.get(metric, np.nan) for row in rows], np.float64)
    order = np.argsort(np.where(np.isfinite(values), -values if higher else values, np.inf), kind="stable")
    rows, values = [rows[i] for i in order], values[order]
    spread = np.array([row.get(f"{metric}_sem", np.nan) for row in rows], np.float64)
    first = None
    for i, path in enumerate(paths):
        axis = figure.add_subplot(lines, columns, i + 1, sharey=first)
        if first is None:
            first, limits = axis, _metric_limits(axis, values, higher)
        numbers = [space[path].code(row[path]) if path in space else row[path] for row in rows]
        x = _abscissa(axis, space.get(path), np.array(numbers, np.float64))
        # What lies below the axis is a loss of exactly 0 on a logarithmic one: it is drawn on the lower edge.
        _trials(axis, x, np.maximum(values, limits[0]), spread, limits)
        _failures(axis, x, rows, values, limits[0] if higher else limits[1])
        good = len(rows) and math.isfinite(values[0])
        axis.set_title(f"best at {_shown(rows[0][path])}" if good else "nothing finite to rank", fontsize=9, loc="left", color=INK)
        axis.set_xlabel("\n".join([path, *(notes or {}).get(path, ())]), parse_math=False)
        if i % columns == 0:
            axis.set_ylabel(metric.replace("held_out", "held-out").replace("_", " "))
        _plain_look(axis)
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def write_curves(path: str | Path, *args: Any, **kwargs: Any) -> None:
    """`curves_figure` as a PNG file, whole or not there."""
    write_bytes(path, _png(curves_figure(*args, **kwargs)))


def write_sweep(path: str | Path, *args: Any, **kwargs: Any) -> None:
    """`sweep_figure` as a PNG file, whole or not there."""
    write_bytes(path, _png(sweep_figure(*args, **kwargs)))


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:  # parse_math: a "$" in a name is no formula
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.012, ha="left", color=INK, parse_math=False)
    return figure


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _ends(losses: np.ndarray, diverged_at: np.ndarray | int | None) -> np.ndarray:
    """The step at which each lane diverged, -1 where it did not."""
    lanes, steps = losses.shape
    if diverged_at is not None:
        return np.broadcast_to(np.asarray(diverged_at), (lanes,))
    if not steps:
        return np.full(lanes, -1)
    finite = np.isfinite(losses)
    last = np.where(finite.any(1), steps - 1 - np.argmax(finite[:, ::-1], 1), 0)
    return np.where(finite[:, -1], -1, last)


def _best(smooth: np.ndarray, held_out: Mapping[str, np.ndarray]) -> list[int]:
    final = held_out["loss"][:, -1] if held_out and held_out["loss"].shape[1] else smooth[:, -1] if smooth.shape[1] else smooth.sum(1)
    return [int(lane) for lane in np.argsort(np.where(np.isfinite(final), final, np.inf), kind="stable")]


def _rate_name(rates: np.ndarray) -> str:
    finite = rates[np.isfinite(rates)]
    return f"learning rate up to {finite.max():.3g}" if len(finite) else ""


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over the last `window` steps, fewer at the start; NaN stays where it is."""
    if not len(values):
        return values
    good = np.isfinite(values)
    sums = np.cumsum(np.where(good, values, 0.0))
    sums[window:] -= sums[:-window].copy() if window < len(values) else 0
    return np.where(good, sums / np.minimum(np.arange(len(values)) + 1, window), np.nan)


def _bundle(axis: "Axes", x: np.ndarray, lanes: np.ndarray) -> None:
    """Many faint curves as one collection; the more, the fainter."""
    from matplotlib.collections import LineCollection

    if not len(lanes) or not len(x):
        return
    alpha = min(0.45, max(0.06, 12 / len(lanes)))
    if len(x) == 1:
        axis.scatter(np.repeat(x, len(lanes)), lanes[:, 0], s=10, color=FAINT, alpha=alpha, linewidths=0)
        return
    segments = np.stack([np.broadcast_to(x.astype(np.float64), lanes.shape), lanes], -1)
    axis.add_collection(LineCollection(list(segments), colors=FAINT, linewidths=0.8, alpha=alpha), autolim=False)


def _highlights(
    axis: "Axes", x: np.ndarray, lanes: np.ndarray, groups: Sequence[Sequence[int]], names: Sequence[str] = (), **style: Any
) -> None:
    """Each group of lanes in its colour, thinner where it has several."""
    if len(x) == 1:
        style = {"marker": "o", "markersize": 5}  # a line through one point shows nothing
    for rank, group in enumerate(groups):
        width = 1.8 if len(group) == 1 else 1.1
        for i, lane in enumerate(group):
            label = names[rank] if not i and rank < len(names) and names[rank] else None
            axis.plot(x, lanes[lane], color=COLOURS[rank], linewidth=width, zorder=4 - rank / 10, label=label, **style)


def _limits(axis: "Axes", lanes: np.ndarray, best: Sequence[int], headroom: float = 1.0) -> None:
    """A scale on which the best are seen: logarithmic where they span much, and no higher than where the lanes began and the best went."""
    shown = lanes[list(best)] if len(best) else lanes
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        axis.set(yticks=[], ylim=(0, 1))
        text = "nothing finite to show" if lanes.size else "no steps were taken"
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=FAINT)
        return
    begin = lanes[:, 0][np.isfinite(lanes[:, 0])] if lanes.shape[1] else shown
    low, high = shown.min(), max(shown.max(), np.median(begin) if len(begin) else shown.max())
    if headroom == 1.0 and not len(best) and len(begin) and np.median(begin) > 0:
        high = min(high, 1e3 * float(np.median(begin)))  # where all diverged, how is seen at the beginning
    if headroom == 1.0 and low >= 0 and high > 0:
        # A loss of exactly 0, as a noiseless fit reaches, is drawn down to the lower edge.
        low = max(shown[shown > 0].min(initial=high), 1e-9 * high)
    if headroom == 1.0 and low > 0 and high > 8 * low:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.5, high * 2.5)
        _decimal_ticks(axis.yaxis, high / low)
        return
    span = (high - low) or abs(high) or 1.0
    axis.set_ylim(min(low, 0.0) if headroom > 1 else low - 0.08 * span, high + (headroom - 1 if headroom > 1 else 0.25) * span)


def _crosses(axis: "Axes", lanes: np.ndarray, failed: np.ndarray, every: int) -> None:
    """A red cross where a lane ended, on the edge where that is out of sight."""
    lower, upper = axis.get_ylim()
    which = np.flatnonzero(failed >= 0)
    x = np.clip(failed[which], 0, max(0, lanes.shape[1] - 1) * every)
    y = []
    for lane, step in zip(which, x, strict=True):
        seen = lanes[lane, : step // every + 1][np.isfinite(lanes[lane, : step // every + 1])]
        y.append(min(max(seen[-1], lower), upper) if len(seen) else upper)
    if len(which):
        label = f"{len(which)} diverged" if len(lanes) > 1 else f"diverged at step {failed[which[0]]}"
        axis.scatter(x, y, s=34, marker="x", color=DIVERGED, linewidths=1.4, zorder=6, clip_on=False, label=label)


def _legend(axis: "Axes") -> None:
    """Above the panel, where it covers no curve."""
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, min(3, len(labels), 130 // (max(map(len, labels)) + 8)))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.008, 1.085), "ncols": columns, "fontsize": 8.5, "frameon": False}
    legend = axis.legend(handles, labels, borderpad=0, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _dress(axis: "Axes", title: str, steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=10, loc="left", color=INK)
    axis.set_xlabel("step")
    axis.set_xlim(-0.01 * max(steps, 1), 1.01 * max(steps, 1))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    _plain_look(axis)


def _plain_look(axis: "Axes") -> None:
    axis.grid(alpha=0.25, which="major", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(colors=INK, labelsize=8.5, which="both")
    axis.set_axisbelow(True)


def _decimal_ticks(axis: Any, ratio: float) -> None:
    """Ticks of a logarithmic axis as plain numbers, also between the powers of ten where there are few of those."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 300 else (1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _metric_limits(axis: "Axes", values: np.ndarray, higher: bool) -> tuple[float, float]:
    """Ends of the metric's axis, with room on the worse edge for what lies beyond it."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not len(finite):
        axis.set_yticks([])
        limits = (0.0, 1.0)
    elif higher:
        span = float(finite.max() - finite.min()) or 0.1
        limits = (finite.min() - 0.18 * span, finite.max() + 0.08 * span)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    elif finite.min() >= 0 and len(positive) and positive.max() > 8 * positive.min():
        low, most = positive.min(), np.quantile(finite, 0.75)
        worst = finite[finite <= max(1e3 * low, 1.5 * most)].max()
        axis.set_yscale("log")
        limits = (low / 1.4, worst * max(1.2, (worst / low) ** 0.18))
        _decimal_ticks(axis.yaxis, worst / low)
    else:
        low, most = finite.min(), np.quantile(finite, 0.75)
        far = finite.max() > 100 * max(abs(most), abs(low))
        worst = finite[finite <= most + 10 * (most - low)].max() if far else finite.max()
        span = float(worst - low) or abs(float(low)) * 0.1 or 1.0
        limits = (low - 0.08 * span, worst + 0.18 * span)
    axis.set_ylim(limits)
    return limits


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else "another part" if math.isnan(value) else f"{value:.3g}"


def _abscissa(axis: "Axes", distribution: Any, x: np.ndarray) -> np.ndarray:
    """Set up the axis of a swept number; returns where its values lie on it."""
    from matplotlib.ticker import MaxNLocator

    if distribution is None:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        return x
    low, high = distribution.low, distribution.high
    if distribution.kind == "choice" and len(set(distribution.values)) <= 8:
        options = np.array(sorted(set(distribution.values)))
        axis.set_xticks(range(len(options)), distribution.labels or [f"{option:g}" for option in options])
        axis.set_xlim(-0.6, len(options) - 0.4)
        place = np.abs(x[:, None] - options[None, :]).argmin(1)
        # Side by side, since many trials share a value; the first, which is the best, in the middle.
        return place + ((np.arange(len(x)) * 0.618 + 0.5) % 1 - 0.5) * 0.36
    if low > 0 and (distribution.kind == "log_uniform" or (distribution.kind == "choice" and high > 20 * low)):
        axis.set_xscale("log")
        margin = (high / low) ** 0.04 if high > low else 2.0
        axis.set_xlim(low / margin, high * margin)
        if high <= 1e3 * low:
            _decimal_ticks(axis.xaxis, high / low)
        return x
    margin = 0.04 * (high - low) or 1.0
    axis.set_xlim(low - margin, high + margin)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=distribution.kind == "int_uniform"))
    return x


def _trials(axis: "Axes", x: np.ndarray, values: np.ndarray, spread: np.ndarray, limits: tuple[float, float]) -> None:
    finite = np.isfinite(values)
    beyond = finite & (values > limits[1])
    shown = finite & ~beyond
    bars = shown & np.isfinite(spread) & (spread > 0)
    faint: dict[str, Any] = {"color": COLOURS[0], "linewidths": 0, "zorder": 3}
    if bars.any():
        style: dict[str, Any] = {"fmt": "none", "ecolor": COLOURS[0], "alpha": 0.3, "elinewidth": 1.0}
        axis.errorbar(x[bars], values[bars], spread[bars], **style, label="± one standard error")
    if shown.any():
        alpha = min(0.75, max(0.25, 60 / len(values)))
        axis.scatter(x[shown], values[shown], s=22, alpha=alpha, label="trial", **faint)
        axis.axvline(x[0], color=COLOURS[1], linewidth=1.0, linestyle=":", zorder=1)
        star: dict[str, Any] = {"marker": "*", "color": COLOURS[1], "edgecolors": "black", "linewidths": 0.7, "clip_on": False}
        axis.scatter(x[0], values[0], s=190, zorder=5, label="best", **star)
    if beyond.any():
        axis.scatter(
            x[beyond], np.full(beyond.sum(), limits[1]), s=26, marker="^", alpha=0.6, clip_on=False, label="off the scale", **faint
        )
    axis.set_ylim(limits)


def _failures(axis: "Axes", x: np.ndarray, rows: Sequence[Mapping[str, Any]], values: np.ndarray, edge: float) -> None:
    """Trials without a value, on the edge: red where they diverged."""
    diverged = np.array([row.get("status") == "diverged" for row in rows], bool)
    for which, colour, label in ((diverged, DIVERGED, "diverged"), (~diverged, FAINT, "no value")):
        gone = which & ~np.isfinite(values)
        if gone.any():
            style: dict[str, Any] = {"marker": "x", "color": colour, "linewidths": 1.3, "clip_on": False, "zorder": 4, "label": label}
            axis.scatter(x[gone], np.full(gone.sum(), edge), s=30, **style)
