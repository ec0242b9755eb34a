"""What is printed of a diagnosis: a run's verdicts in full, of a sweep how many lanes have which, the best and the worst."""

from typing import Any

from rich.console import Console
from rich.table import Table

WORST = 3


def show_diagnosis(diagnosis: Any, console: Console | None = None) -> None:
    """Print it."""
    console = console or Console()
    if len(diagnosis.verdicts) == 1:
        for verdict in diagnosis.verdicts[0]:
            _show(console, verdict)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("right", "left", "left"):
        table.add_column(justify=column)  # type: ignore[arg-type]
    examples = {lane[0].kind: i for i, lane in reversed(list(enumerate(diagnosis.verdicts)))}
    for kind, count in diagnosis.counts().items():
        table.add_row(str(count), f"[bold]{kind}", diagnosis.verdicts[examples[kind]][0].meaning)
    console.print(f"of {len(diagnosis.verdicts)} lanes", highlight=False)
    console.print(table)
    if diagnosis.best is not None:
        console.print(f"the best, lane {diagnosis.best}", highlight=False)
        for verdict in diagnosis.verdicts[diagnosis.best]:
            _show(console, verdict)
    for kind in [kind for kind in diagnosis.counts() if kind != "right"][:WORST]:
        if examples[kind] != diagnosis.best:
            console.print(f"one of the worst, lane {examples[kind]}", highlight=False)
            _show(console, diagnosis.verdicts[examples[kind]][0])


def _show(console: Console, verdict: Any) -> None:
    style = "bold green" if verdict.kind == "right" else "bold red"
    console.print(f"  {verdict.kind}: {verdict.meaning}", style=style, highlight=False, soft_wrap=True)
    for name, text in (("measured", verdict.measured), ("source", verdict.source), ("try", verdict.advice)):
        if text:
            console.print(f"    {name:9s} {text}", highlight=False, markup=False, soft_wrap=True)
