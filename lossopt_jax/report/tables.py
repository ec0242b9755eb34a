"""Rows of trials as a table, and what is worth saying about the best and about a single run."""

import inspect
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

GAUGE = 9  # characters
TIGHT = 7  # of a column of swept numbers where there is no room
WIDTH = 12  # of a column of swept numbers, at most where it can be helped


def sweep_table(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any], limit: int = 10, width: int = 100) -> Table:
    """The first `limit` trials of `rows`, best first: rank, the swept numbers, final losses and accuracy; ± is over seeds.

    Two rows below say where the best lies between the ends of each range. More than four swept numbers are there at the price of the
    train loss. Where that is wider than `width`, ranges and spreads are broken, then numbers written shorter (1.06e-5) and names broken
    too: six fit 80 columns.
    """
    console = Console(width=1000, file=io.StringIO())
    for narrow, tight in ((False, False), (True, False), (True, True)):
        table = _sweep_table(rows, space, limit, narrow, tight)
        if Measurement.get(console, console.options, table).maximum <= width:
            break
    return table


def _sweep_table(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any], limit: int, narrow: bool, tight: bool) -> Table:
    shown, failed = rows[:limit], sum(row["status"] == "diverged" for row in rows)
    title = f"the best {len(shown)} of {len(rows)} recipes" if len(shown) < len(rows) else f"{len(rows)} recipes, best first"
    stopped = sum(row["status"] == "stopped" for row in rows)
    title += (f"; {stopped} stopped early" if stopped else "") + (f"; {failed} diverged" if failed else "")
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.collapse_padding = narrow
    table.add_column("#", justify="right", no_wrap=True)
    fits: dict[str, Any] = {"justify": "right", "overflow": "fold"} if tight else {"justify": "right", "no_wrap": True}
    for path in space:
        table.add_column(_tight_heading(path) if tight else _heading(path, narrow), **fits)
    metrics = [metric for metric in _metrics(rows) if len(space) <= 4 or metric != "train_loss"]
    for metric in metrics:
        heading = metric.replace("held_out_", "held-\nout\n" if tight else "held-out\n").replace("train_", "train\n")
        table.add_column(heading.replace("accuracy", "accu-\nracy") if tight else heading, **fits)
    early = any(row["status"] == "stopped" for row in shown)
    if early:
        table.add_column("stop-\nped\nat" if tight else "stopped\nat step", **fits)
    decimals = [_decimals(metric, shown) for metric in metrics]
    for rank, row in enumerate(shown, 1):
        cells = [number(row[path], distribution) for path, distribution in space.items()]
        cells = [_tight(cell) if tight else cell for cell in cells] + _cells(row, metrics, decimals, narrow)
        if early:
            cells.append(str(row["stopped_at"] or ""))
        style = "dim" if row["status"] != "ok" else "bold" if rank == 1 else None
        table.add_row(str(rank), *cells, style=style, end_section=rank == len(shown))
    if shown and space and _ranked(shown[0]):
        table.add_row("", *[_gauge(shown[0][path], distribution, TIGHT if tight else GAUGE) for path, distribution in space.items()])
        ends = [_tight(span(distribution)) if tight else span(distribution) for distribution in space.values()]
        table.add_row("", *[end if len(end) <= (WIDTH if not narrow else 8) else end.replace(" to ", "\nto ") for end in ends], style="dim")
        table.caption = "Under the numbers: where the best lies in their ranges."
        if any(key.endswith("_sem") for key in shown[0]):
            table.caption += "\n± is the standard error over seeds."
    return table


def structures_table(groups: Sequence[tuple[str, int, int]]) -> Table:
    """(name, recipes, lanes) of the structures of a sweep."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in (("#", "right"), ("structure", "left"), ("recipes", "right"), ("lanes", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for i, (name, recipes, lanes) in enumerate(groups, 1):
        table.add_row(str(i), Text(name), str(recipes), str(lanes))
    return table


def edge_notes(
    edges: Mapping[str, str], wider: Mapping[str, tuple[float, float] | None], space: Mapping[str, Any], best: Mapping[str, float]
) -> list[str]:
    """A sentence for each swept number whose best value lies at an end of its range, with what to try.

    edges: path -> "low" or "high". wider: path -> a wider range, or None where there is none. best: path -> value.
    """
    lines = []
    for path, end in edges.items():
        where = f"{path}: the best, {number(best[path], space[path])}, lies at the {end} end of its range {span(space[path])}"
        if (further := wider.get(path)) is not None:
            todo = f": try {further[0]:g} to {further[1]:g}"
        elif space[path].kind == "choice":
            todo = f": list {'greater' if end == 'high' else 'smaller'} values as well"
        else:
            todo = f", which is the {'most' if end == 'high' else 'least'} that it may be"
        lines.append(where + todo)
    return lines


def sure_line(chances: Mapping[int, float], seeds: int) -> str:
    """How sure the order is. chances: rank from 1 -> chance to be the best, likeliest first."""
    others = [f"number {rank} {chance:.0%}" for rank, chance in chances.items() if rank != 1 and chance >= 0.05]
    said = ", ".join([f"number 1 is the best with a chance of {chances.get(1, 0):.0%}", *others[:3]])
    return f"how sure: {said} (bootstrap over {seeds} seeds{': rough with so few' * (seeds < 5)})"


def importance_line(importance: Mapping[str, float], metric: str, count: int, fanova: Mapping[str, float] | None = None) -> str:
    """Which swept numbers mattered: `Swept.importance`, most first, of `count` trials; with `Swept.fanova` the share of variance too."""
    chance = 2 / math.sqrt(max(1, count - 1))  # what a number that does nothing rarely reaches
    shares = {path: f", fANOVA {share:.0%}" for path, share in (fanova or {}).items()}
    seen = [(path, f"{value:.2f}{shares.get(path, '')}") for path, value in importance.items() if value > chance]
    rest = [path for path, value in importance.items() if value <= chance]
    if not seen:
        return f"what mattered: the {plain_name(metric)} follows none of the swept numbers, as far as {count} recipes can tell"
    said = [f"{path} ({'' if i else 'rank correlation '}{value})" for i, (path, value) in enumerate(seen)]
    return f"what mattered: {', '.join(said)}" + (f"; no effect seen of {', '.join(rest)}" if rest else "")


def population_lines(copies: Sequence[Any], lineage: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> list[str]:
    """What was copied, and the schedule of numbers that led to the best's state. lineage: the best's, of `Swept.lineage`."""
    if not copies:
        return []
    back = sum(copy.diverged_at >= 0 for copy in copies)
    lines = [f"{len(copies)} times a trial became a copy of a better one" + (f", {back} times one that had diverged" if back else "")]
    for path, distribution in space.items():
        taken = [(row["step"], row[path]) for row in lineage if path in row]
        kept = [now for i, now in enumerate(taken) if not i or now[1] != taken[i - 1][1]]
        if len(kept) > 1:
            said = [f"{number(value, distribution)}{f' from step {step}' if step else ''}" for step, value in kept]
            lines.append(f"the best had {path} {', '.join(said)}")
    return lines


def parts_lines(space: Mapping[str, Any], parts: Mapping[str, Any]) -> list[str]:
    """What the labels of parts of one name stand for, "adamw-2: adamw with mask=decay_matrices_only".

    Said is what differs from the first of that name; of what is swept there, or where no trial drew it, from the function's defaults.
    parts: label -> a bound part, of those that were drawn.
    """
    lines = []
    for label, first in [(label, label.rpartition("-")[0]) for d in space.values() for label in d.labels if label in parts]:
        if not label.rpartition("-")[2].isdigit() or not any(first in d.labels for d in space.values()):
            continue
        own, others = _fixed(label, space, parts), _fixed(first, space, parts)
        others = {name: p.default for name, p in inspect.signature(parts[label].fn).parameters.items()} | others
        said = [name for name, value in own.items() if name not in others or _differ(value, others[name])]
        said = said or [name for name in own if f"{first}.{name}" in space]  # all at its default, and fixed
        lines.append(f"{label}: {first} with {', '.join(f'{name}={_value(own[name])}' for name in said) or 'its own numbers'}")
    return lines


def _fixed(label: str, space: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """A part's values but those that are swept, which have columns of their own."""
    own = {**parts[label].hparams, **parts[label].options} if label in parts else {}
    return {name: value for name, value in own.items() if f"{label}.{name}" not in space}


def _differ(value: Any, other: Any) -> bool:
    """Whether they differ as they are bound: a number is one of float32, which a default need not be."""
    return bool(np.any(value != (np.float32(other) if isinstance(other, float) else other)))


def _value(value: Any) -> str:
    return getattr(value, "__name__", None) or (f"{float(value):g}" if isinstance(value, np.ndarray) and not value.ndim else str(value))


def plain_name(metric: str) -> str:
    """A metric as text names it, "held-out loss"."""
    return metric.replace("held_out", "held-out").replace("_", " ")


def run_lines(
    history: Mapping[str, np.ndarray],
    evaluation: Mapping[str, float],
    diverged_at: int | None,
    seconds: float,
    compile_seconds: float,
) -> list[str]:
    """What a single run came to, in two lines. history: metric -> [steps]; the train loss is the mean of its last twentieth."""
    loss = np.asarray(history["loss"], np.float64)
    if diverged_at == 0 and not np.isfinite(loss[0]):
        first = "the loss was not finite before any update: look at the data, the labels and the shape of the outputs"
    elif diverged_at is not None:
        first = f"diverged at step {diverged_at}: try a smaller learning rate"
    else:
        parts = [f"train loss {loss[-max(1, len(loss) // 20) :].mean():.4g}"] if len(loss) else ["no steps were taken"]
        parts += [f"held-out {name} {_plain(name, value)}" for name, value in evaluation.items()]
        first = "  ".join(parts)
    done = len(loss) if diverged_at is None else diverged_at + 1
    rate = f" ({done / seconds:,.0f} steps/s)" if seconds > 0 and done else ""
    return [first, f"{seconds:.1f} s{rate} after {compile_seconds:.1f} s of compiling"]


def finding_lines(finding: Any) -> list[str]:
    """What a learning-rate finding came to: the line for a config, then its range, its edge, how sure it is and what is wrong with it."""
    warnings = [f"note: {sentence}" for sentence in finding.verdicts.values()]
    if not math.isfinite(finding.suggested):
        return ["no learning rate to suggest", *warnings]
    low, high = finding.range
    near = f"{low:.2g} to {high:.2g} are within 5 % of the best" if high > low else "no rate beside it is within 5 % of the best"
    loss = _plain("loss", next(row["loss"] for row in finding.table() if row["learning_rate"] == finding.suggested))
    lines = [finding.config_line, f"{finding.metric.replace('_', ' ').replace('held out', 'held-out')} {loss} there; {near}"]
    if math.isfinite(finding.edge):
        who = "most seeds" if len(finding.seed_rates) > 1 else "runs"
        lines.append(f"from {finding.edge:.2g} on {who} diverge or learn next to nothing")
    if len(finding.seed_rates) > 1:
        each = f"{min(finding.seed_rates):.2g} to {max(finding.seed_rates):.2g}"
        lines.append(f"how sure: the {len(finding.seed_rates)} seeds by themselves would say {each}")
    return lines + warnings


def number(value: float | str, distribution: Any) -> str:
    """A swept number, short: three digits, an integer in full, a choice as it was given; a dash where a recipe has no such number."""
    if isinstance(value, str) or math.isnan(value):
        return value if isinstance(value, str) else "-"
    if distribution.kind == "int_uniform":
        return f"{value:.0f}"
    return f"{value:g}" if distribution.kind == "choice" else f"{value:.3g}"


def span(distribution: Any) -> str:
    """The ends of a range, "1e-05 to 1"."""
    if distribution.labels:
        return f"one of {len(distribution.labels)}"
    return f"{distribution.low:g} to {distribution.high:g}"


def _gauge(value: float | str, distribution: Any, width: int) -> Any:
    return "" if isinstance(value, str) or math.isnan(value) else _Gauge(distribution.position(value), width)


class _Gauge:
    """A place between two ends, drawn."""

    def __init__(self, position: float, width: int):
        self.width, self.at = width, round(min(max(position, 0.0), 1.0) * (width - 1))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line, dot = ("-", "o") if options.ascii_only else ("─", "●")
        yield Text.assemble((line * self.at, "dim"), (dot, "bold cyan"), (line * (self.width - 1 - self.at), "dim"), justify="right")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Any:
        return Measurement(self.width, self.width)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The final metrics of the rows: train loss, held-out loss, then the others."""
    known = [key for key in (rows[0] if rows else {}) if key.startswith(("train_", "held_out_")) and not key.endswith("_sem")]
    first = ("train_loss", "held_out_loss")
    return [key for key in first if key in known] + [key for key in known if key not in first]


def _ranked(row: Mapping[str, Any]) -> bool:
    return any(math.isfinite(row[metric]) for metric in _metrics([row]))


def _heading(path: str, narrow: bool) -> Text:
    """A path broken at its dots, and within a long name, so that the numbers decide how wide the column is."""
    parent, dot, name = path.rpartition(".")
    if len(name) > WIDTH or narrow:
        name = name.replace("_", "_\n")
    return Text.assemble((f"{parent}{dot}".replace(".", ".\n"), "dim"), name)


def _tight_heading(path: str) -> Text:
    """A path in lines that are no wider than a tight column."""
    lines = []
    for word in path.replace("_", "_ ").replace(".", ". ").split():
        pieces = 1 if len(word) <= TIGHT else math.ceil(len(word) / (TIGHT - 1))
        lines.append("-\n".join(textwrap.wrap(word, math.ceil(len(word) / pieces))))
    return Text("\n".join(lines))


def _tight(text: str) -> str:
    """Numbers without the zeros in their exponents, 1.06e-5."""
    return re.sub(r"e([+-])0+(?=\d)", lambda found: "e" + found[1].replace("+", ""), text)


def _cells(row: Mapping[str, Any], metrics: Sequence[str], decimals: Sequence[int], narrow: bool) -> list[str]:
    if row["status"] == "diverged" and not _ranked(row):
        # With several seeds it matters whether all of them failed.
        seeds = any(f"{metric}_sem" in row for metric in metrics)
        return [f"diverged ({row['diverged']} seed{'s' * (row['diverged'] > 1)})" if seeds else "diverged"][: len(metrics)]
    return [_spread(row, metric, places, narrow) for metric, places in zip(metrics, decimals, strict=True)]


def _spread(row: Mapping[str, Any], metric: str, decimals: int, narrow: bool) -> str:
    shown, spread = _plain(metric, row[metric], decimals), row.get(f"{metric}_sem", math.nan)
    if not math.isfinite(spread):
        return shown
    spread = _plain(metric, spread, decimals).rjust(5 if metric.endswith("accuracy") and not narrow else 0)
    return shown + ("\n±" if narrow else " ±") + spread


def _decimals(metric: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Places after the point that leave the least of a column at least two digits."""
    least = min((abs(row[metric]) for row in rows if math.isfinite(row[metric]) and row[metric]), default=1.0)
    return 4 if least >= 0.01 else 5


def _plain(metric: str, value: float, decimals: int = 4) -> str:
    if not math.isfinite(value):
        return "-"
    if metric.endswith("accuracy"):
        return f"{value:.1%}"
    return f"{value:.{decimals}f}" if value == 0 or 1e-4 <= abs(value) < 1e3 else f"{value:.3g}"
