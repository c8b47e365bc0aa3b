"""A study as a table of a terminal, in at most 100 columns; the Markdown page has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel.metrics.verdicts import NON_INFERIOR, UNDECIDED, WORDS
from accel.records import Results
from accel.results.columns import Column, control_columns, main_columns, recipe_column, speed_columns, timed
from accel.results.comparison import COMPETES, HOCHBERG, HOLM, UNKNOWN, Comparison, Row
from accel.results.markdown import margins_text
from accel.results.text import device_text, devices_text
from accel.results.unscored import unscored

if TYPE_CHECKING:
    from rich.console import Console

# Columns of a terminal below which the table leaves out what the others imply.
NARROW = ((96, ("ms", "NFE", "MACs ÷")), (112, ("NFE", "MACs ÷")))

READ = (
    "Verdict: the worst, against the baseline, in any value that a user would miss; the page says in which, and the "
    f"margins. {HOLM} survives Holm, {HOCHBERG} Benjamini-Hochberg. A speed-up in brackets is not told apart from 1."
)


def print_study(results: Results, study: str, console: Console | None = None) -> None:
    """The study for a terminal of 100 columns; the Markdown table has the rest."""
    from rich.console import Console
    from rich.markup import escape

    console, loaded = console or Console(), Comparison.load(results, study)
    without = unscored(loaded)
    narrow = next((left_out for width, left_out in NARROW if console.width < width), ())
    for group in loaded.groups:
        devices = f"; {devices_text(loaded.side_by_side)}" if loaded.side_by_side else ""
        drawn = "no scores" if without else f"N = {group[1]}, seed {group[2]}"
        title = f"{escape(loaded.title)}\n[not bold dim]{drawn}{devices}[/]"
        columns = [
            column for column in main_columns(loaded, group) if (column.brief or "").partition("@")[0] not in narrow
        ]
        console.print(_terminal(title, columns, loaded.members(group)))
    for device in loaded.devices if not loaded.side_by_side else ():
        columns = [recipe_column(), *speed_columns(loaded, device)]
        console.print(_terminal(f"Speed on {device_text(device)}", columns, timed(loaded, device)))
    if loaded.controls():
        console.print(_terminal("Equal-cost controls", control_columns(loaded), loaded.controls()))
    for said in without:
        console.print(f"[dim]{escape(said)}[/]", highlight=False)
    if loaded.baseline and not without:
        margins = f" Margins: {stated}." if (stated := margins_text(loaded)) else ""
        console.print(f"[dim]{escape(READ + margins)}[/]", highlight=False)
    for row in loaded.rows:
        if row.refused:
            console.print(f"[yellow]not run[/] {escape(f'{row.label}: {row.refused}')}", highlight=False)


def _terminal(title: str, columns: Sequence[Column], rows: Sequence[Any]) -> Any:
    """A rich table of the columns that have a brief heading."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
                  collapse_padding=True)  # fmt: skip
    shown = [column for column in columns if column.brief]
    for column in shown:
        left = column.brief in ("recipe", "control")
        table.add_column(column.brief, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        cells = []
        for column in shown:
            text = (column.short or column.text)(row) or ""
            cells.append(Text(text, style=_style(column, text)))
        table.add_row(*cells, style="dim" if isinstance(row, Row) and row.role not in COMPETES else "")
    return table


def _style(column: Column, text: str) -> str:
    word = text.rstrip(HOLM + HOCHBERG)
    if word in (UNDECIDED, "baseline", "simulated", UNKNOWN) or word.startswith("("):
        return "dim"
    return "green" if word in NON_INFERIOR else "red" if word in WORDS else ""
