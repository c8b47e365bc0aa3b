"""The tables of a study's page: headings and cells as text, each with the number that it is sorted by."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from accel.results.aa import aa_columns, aa_text, again
from accel.results.columns import ABSENT, Column, control_columns, main_columns, recipe_column, speed_columns, timed
from accel.results.comparison import Comparison, Row, mark_of, no_speed
from accel.results.composition_table import LINE_COLUMNS, RULE, composition_lines
from accel.results.markdown import CONTROLS
from accel.results.panels import kind_of
from accel.results.text import (
    POINTS,
    device_text,
    devices_text,
    interval,
    listed,
    metric_name,
    plus_minus,
    short_hash,
    significant,
)

NUMBER = re.compile(r"\(?([+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)(?![\w-])")
TEXT = (
    "recipe", "control", "reason", "parts", "of", "all values", "at equal", "device", "instructions", "system",
    "made with",
)  # fmt: skip
LONG = 32  # letters that a column of words has on one line


class Cell(NamedTuple):
    """A cell's text, and the number that it is sorted by, as text; empty: by its text."""

    text: str
    number: str = ""


class Line(NamedTuple):
    """A row of a table: its cells, and what tells it apart."""

    cells: Sequence[Cell]
    kind: str = ""


class Table(NamedTuple):
    """A table of the page; `rule` says how to read it."""

    title: str
    caption: str
    headings: Sequence[str]
    lines: Sequence[Line]
    rule: str = ""

    @property
    def classes(self) -> list[str]:
        """How each column is shown: recipes stay in sight, words stand on the left, and only long ones are broken."""
        most = [max((len(line.cells[i].text) for line in self.lines), default=0) for i in range(len(self.headings))]
        return [
            "recipe" if heading == "recipe" else "" if heading not in TEXT else "text" if n <= LONG else "text long"
            for heading, n in zip(self.headings, most, strict=True)
        ]


def table(title: str, caption: str, columns: Sequence[Column], rows: Sequence[Any], rule: str = "") -> Table:
    """The columns' texts of each of `rows`."""
    lines = [Line([_cell(column, row) for column in columns], _class(row)) for row in rows]
    return Table(title, caption, [column.name for column in columns], lines, rule)


def tables(study: Comparison) -> list[Table]:
    """All tables of a study, but for those that it has nothing for."""
    found = _rankings(study)
    if len(differences := _difference_columns(study)) > 1:
        rows = [row for row in study.members(study.groups[0]) if row is not study.baseline]
        rule = "Each value less the baseline's, paired on common seeds, with its verdict; the margin is in the heading."
        caption = f"Differences to the baseline {study.baseline.label}, value by value"
        found.append(table("Differences, margins and verdicts", caption, differences, rows, rule))
    if pairs := study.controls():
        caption = "Accelerated recipes against plain samplers of equal cost"
        found.append(table("Equal-cost controls", caption, control_columns(study), pairs, CONTROLS))
    if lines := composition_lines(study):
        caption = "What combined recipes do beside what their parts promise"
        found.append(table("Composition", caption, LINE_COLUMNS, lines, RULE))
    if pairs := again(study):
        found.append(table("A/A", "The same recipes on other seeds", aa_columns(study), pairs, aa_text(study)))
    if rows := [row for row in study.competing if row.cost("setup_s")]:
        rule = "What a recipe costs before its first image: searches, fits, calibration, compilation, conversion."
        found.append(table("Set-up costs", "Set-up costs", _setup_columns(study), rows, rule))
    if refused := [row for row in study.rows if row.refused]:
        columns = [Column("recipe", lambda row: row.label), Column("reason", lambda row: row.refused)]
        found.append(table("Refused or failed", "Recipes without a result, and why", columns, refused))
    return [*found, _environments(study)] if study.done else found


def _rankings(study: Comparison) -> list[Table]:
    found, several = [], len(study.groups) > 1
    for i, group in enumerate(study.groups):
        _, n, seed, metric, sha256, own = group
        of = f" of {own} samples" if own not in (n, None) else ""
        name = f"{metric_name(metric)}{of}, N = {n}, seed {seed}, reference {short_hash(sha256) or 'none'}"
        title = f"Results {i + 1} of {len(study.groups)}" if several else "Results"
        found.append(table(title, f"Recipes by rank: {name}", main_columns(study, group), study.members(group)))
    for device in () if study.side_by_side else study.devices:
        columns = [recipe_column(), *speed_columns(study, device)]
        found.append(table("Speed", f"Speed on {device_text(device)}", columns, timed(study, device)))
    return found


def _difference_columns(study: Comparison) -> list[Column]:
    base = study.baseline
    if base is None or not study.groups:
        return []

    def column(key: str) -> Column:
        def text(row: Row) -> str | None:
            if (delta := study.delta(row, base, key)) is None:
                return None
            shown = plus_minus(delta, 100, sign=True) if key in POINTS else interval(delta, sign=True)
            mark = study.marks.get(mark_of(row, base, key), "")
            return f"{shown} {study.verdict(row, base, key)}{mark}"

        return Column(f"Δ{metric_name(key)}{' %' * (key in POINTS)}, {margin_text(study, key)}", text)

    columns = [column(key) for key in dict.fromkeys([study.groups[0][3], *study.compared]) if key]
    rows = [row for row in study.members(study.groups[0]) if row is not base]
    return [recipe_column(study.groups[0]), *(c for c in columns if any(map(c.text, rows)))]


def margin_text(study: Comparison, key: str) -> str:
    """`margin 1 point`, `margin 0.171`, `no margin`: of a value against the study's baseline."""
    margin = study.margin(key, study.baseline)
    if margin is None:
        return "no margin"
    if key in POINTS:
        return f"margin {100 * margin:g} point{'s' * (margin != 0.01)}"
    return f"margin {significant(margin)}"


def _setup_columns(study: Comparison) -> list[Column]:
    """What a recipe costs once, and from how many images on that is earned back on each device."""

    def bytes_of(key: str) -> Callable[[Row], str | None]:
        return lambda row: significant(row.cost(key) / 1e6) if row.cost(key) else None

    def earned(row: Row, device: tuple) -> str | None:
        timing, base = study.timing(row, device), study.timing(study.baseline, device) if study.baseline else None
        if timing is None or base is None:
            return None
        if no_speed(timing) or timing["speedup"]["value"] <= 1:
            return "never: not faster"
        saved = base["ms_per_image"]["value"] - timing["ms_per_image"]["value"]
        return f"{row.cost('setup_s') * 1e3 / saved:,.0f}"

    columns = [
        recipe_column(),
        Column("set-up s", lambda row: significant(row.cost("setup_s"), 2)),
        *(
            Column(f"images until it is earned, {device_text(device)}", lambda row, d=device: earned(row, d))
            for device in study.devices
        ),
        Column("weights MB", bytes_of("model_bytes")),
        Column("peak MB", bytes_of("peak_bytes")),
        Column("cache MB", bytes_of("cache_bytes")),
    ]
    rows = [row for row in study.competing if row.cost("setup_s")]
    return [column for column in columns if any(map(column.text, rows))]


def _environments(study: Comparison) -> Table:
    """Where samples and times were made, a line for each environment."""
    made: dict[tuple[str, ...], int] = {}
    for row in study.done:
        for what, record in (("samples", row.quality), *(("times", timing) for timing in row.timings)):
            own = record.get("environment") or {}
            batch = record.get("batch") if what == "times" else own.get("batch")
            threads = record.get("threads") or own.get("threads")
            packages = own.get("packages") or {}
            said = (
                what,
                str(record.get("device_name") or own.get("device_name") or "not recorded"),
                str(threads or ""),
                str(batch or ""),
                ", ".join(record.get("isa") or ()),
                str(own.get("system") or ""),
                ", ".join([*([f"python {own['python']}"] if own.get("python") else []),
                           *(f"{name} {version}" for name, version in sorted(packages.items()))]),
            )  # fmt: skip
            made[said] = made.get(said, 0) + 1
    names = ("of", "device", "threads", "batch", "instructions", "system", "made with")
    columns = [Column(name, lambda item, i=i: item[0][i]) for i, name in enumerate(names)]
    columns = [Column("records", lambda item: str(item[1])), *columns]
    where = devices_text(study.side_by_side) if study.side_by_side else listed(map(device_text, study.devices))
    shown = [c for c in columns if any(map(c.text, made.items()))]
    return table("Environment", "Where samples and times were made", shown, [*made.items()], _timed(where))


def _timed(where: str) -> str:
    return f"Timed on {where}." if where else "Not timed."


def _cell(column: Column, row: Any) -> Cell:
    write = column.short if column.name == "recipe" and column.short else column.text
    text = write(row) or ABSENT
    number = NUMBER.match(text) if column.name not in TEXT else None
    return Cell(text, number[1].replace(",", "") if number else "")


def _class(row: Any) -> str:
    if not isinstance(row, Row) or row.refused:
        return ""
    return f"{row.role} {kind_of(row).replace(' ', '-')}" if row.role not in ("floor", "reference") else row.role


def settings_text(described: Mapping[str, Any]) -> str:
    """The settings of a method as a record has them: `interval = 2, branch = 1`."""
    parts = ((name, _setting(x)) for name, x in described.items() if name not in ("type", "epoch", "package", "name"))
    return ", ".join(f"{name} = {text}" for name, text in parts if text)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        own = settings_text(value)
        return f"{value.get('type', '')}({own})" if own or "type" in value else ""
    if isinstance(value, (list, tuple)):
        text = ", ".join(filter(None, map(_setting, value)))
        return f"[{text if len(text) <= 80 else text[:77] + '...'}]"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
