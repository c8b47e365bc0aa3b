"""A study's table in the formats of papers, sheets and pages: LaTeX, CSV, Markdown, HTML, whole or by columns.

A column is named by its heading in the Markdown table (`FID (digits) [95 %]`, also without the brackets), or by its
name in the CSV file (`fid_digits_lo`), which holds everything that the records say. Without a choice CSV has all of the
latter, and the other formats all of the former.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from html import escape
from typing import Any, NamedTuple

from accel.errors import ConfigError, Refusals, unknown
from accel.records import Results
from accel.results.columns import ABSENT, Column, grid, main_columns, speed_columns
from accel.results.comparison import Comparison, Row
from accel.results.find import named
from accel.results.frame import study_frame
from accel.results.markdown import head_text
from accel.results.text import device_text, metric_name, significant

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "×": r"$\times$", "÷": r"$\div$", "Δ": r"$\Delta$", "−": "$-$", "–": "--", "≥": r"$\geq$", "≤": r"$\leq$",
    "‡": r"$^\ddagger$", "†": r"$^\dagger$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "·": r"$\cdot$",
    "\n": " ", "→": r"$\to$",
}  # fmt: skip
WORDS = ("recipe", "role", "label", "of", "refused", "all values", "all_values", "verdict", "strip")
LETTERS, LINES = 115, 34  # of a line and a page of LaTeX: more are another table


class Part(NamedTuple):
    """Rows that stand in one table, because they compare: what they are, headings, texts of each row, and whether
    somebody chose the columns."""

    name: str
    headings: list[str]
    lines: list[list[str]]
    chosen: bool


def export(results: Results, name: str, kind: str, columns: Sequence[str] = ()) -> str:
    """The table of study `name` as one of FORMATS. ConfigError for an unknown study, format or column."""
    if kind not in FORMATS:
        raise unknown("format of tables", kind, FORMATS)
    study = named(results, name)
    if kind == "csv" and not columns:
        return study_frame(results, name).to_csv(index=False, lineterminator="\n")
    return FORMATS[kind](study, _parts(study, columns, _frame(results, name, columns)))


def headings(study: Comparison) -> list[str]:
    """The headings that a choice of columns may name, of all groups of the study."""
    return list(dict.fromkeys(column.name for group in study.groups for column in _columns(study, group)))


def _columns(study: Comparison, group: tuple) -> list[Column]:
    more = [] if study.side_by_side else study.devices
    own = [c._replace(name=f"{c.name}, {device_text(d)}") for d in more for c in speed_columns(study, d, brief=False)]
    return [*main_columns(study, group), *own]


def _frame(results: Results, name: str, columns: Sequence[str]) -> Mapping[str, Callable[[Row], str | None]]:
    """How to write each column of the study's CSV of which one is chosen; nothing where none can be."""
    if not columns:
        return {}
    frame = study_frame(results, name)
    by_id = {line["quality_id"]: line for line in frame.to_dict("records") if line.get("quality_id")}

    def writer(key: str) -> Callable[[Row], str | None]:
        return lambda row: _written(by_id.get(row.quality["id"], {}).get(key))

    return {str(key): writer(key) for key in frame.columns}


def _written(value: Any) -> str | None:
    if value is None or value != value or str(value) == "<NA>":
        return None
    return significant(value, 4) if isinstance(value, float) else str(value)


def _parts(study: Comparison, names: Sequence[str], frame: Mapping[str, Callable[[Row], str | None]]) -> list[Part]:
    known = {_short(heading): heading for heading in headings(study)}
    with Refusals() as refusals:
        for name in names:
            if _short(name) not in known and name not in frame:
                near = get_close_matches(name, [*known.values(), *frame], n=3, cutoff=0.5)
                hint = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
                allowed = f"a heading ({', '.join(known.values())}), or a column of the CSV file"
                refusals.add(ConfigError(f"unknown column {name!r}.{hint} Allowed: {allowed}."))
    parts = []
    for group in study.groups:
        own = {_short(column.name): column for column in _columns(study, group)}
        absent = Column("", lambda row: None)
        chosen = [
            own.get(_short(name), absent)._replace(name=known[_short(name)])
            if _short(name) in known
            else Column(name, frame[name])
            for name in names
        ]
        rows, shown = study.members(group), chosen or list(own.values())
        lines = [[_text(column, row) for column in shown] for row in rows]
        title = f"{metric_name(group[3])}, N = {group[1]}, seed {group[2]}" if len(study.groups) > 1 else ""
        parts.append(Part(title, [column.name for column in shown], lines, bool(chosen)))
    return parts


def _short(name: str) -> str:
    return re.sub(r" \[95 %\](?=,|$)", "", name.strip()).casefold()


def _text(column: Column, row: Row) -> str:
    write = column.short if column.name == "recipe" and column.short else column.text
    return (write(row) or "").replace("\n", " ")


def _csv(study: Comparison, parts: Sequence[Part]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    several = len(parts) > 1
    writer.writerow([*(["group"] if several else []), *parts[0].headings] if parts else [])
    for part in parts:
        places = [part.headings.index(h) if h in part.headings else None for h in parts[0].headings]
        for line in part.lines:
            own = ["" if i is None else line[i] for i in places]
            writer.writerow([*([part.name] if several else []), *own])
    return file.getvalue()


def _markdown(study: Comparison, parts: Sequence[Part]) -> str:
    return "\n".join(f"{part.name and f'## {part.name}'}\n\n{_grid(part)}\n".lstrip() for part in parts)


def _grid(part: Part) -> str:
    columns = [Column(name, lambda line, i=i: line[i]) for i, name in enumerate(part.headings)]
    return grid(columns, part.lines)


def _html(study: Comparison, parts: Sequence[Part]) -> str:
    text = ""
    for part in parts:
        text += f"<table>\n<caption>{escape(_caption(study, part))}</caption>\n<thead><tr>"
        text += "".join(f'<th scope="col">{escape(name)}</th>' for name in part.headings) + "</tr></thead>\n<tbody>\n"
        for line in part.lines:
            text += "<tr>" + "".join(_cell(*cell) for cell in zip(part.headings, line, strict=True)) + "</tr>\n"
        text += "</tbody>\n</table>\n"
    return text


def _cell(heading: str, text: str) -> str:
    tag, scope = ("th", ' scope="row"') if heading in ("recipe", "label") else ("td", "")
    return f"<{tag}{scope}>{escape(text or ABSENT)}</{tag}>"


def _latex(study: Comparison, parts: Sequence[Part]) -> str:
    """Each part as a `table` with the rules of booktabs, made narrower where it is wider than a line; as several of
    them where a page has no room."""
    pieces = [
        (part, f" (table {nth} of {len(own)})" if len(own) > 1 else "", nth == 1, columns, lines)
        for part in parts
        for own in (_pieces(part),)
        for nth, (columns, lines) in enumerate(own, 1)
    ]
    text = "% needs \\usepackage{booktabs,graphicx}\n"
    for i, (part, several, first, columns, lines) in enumerate(pieces, 1):
        caption = _title(study, part) + several + "." + (f" {head_text(study)}" if first else "")
        align = "".join("l" if part.headings[c] in WORDS else "r" for c in columns)
        label = study.name + (f"-{i}" if len(pieces) > 1 else "")
        text += "\\begin{table}[htbp]\n\\centering\n"
        text += f"\\caption{{{latex(caption)}}}\n\\label{{tab:{label}}}\n\\smallskip\n"
        text += (
            f"\\sbox0{{\\begin{{tabular}}{{{align}}}\n\\toprule\n{_row(part.headings[c] for c in columns)}\\midrule\n"
        )
        text += "".join(_row(line[c] or ABSENT for c in columns) for line in lines)
        text += "\\bottomrule\n\\end{tabular}}%\n"
        text += "\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{table}\n"
    return text


def _pieces(part: Part) -> list[tuple[list[int], list[list[str]]]]:
    """Columns and rows that a page has room for, recipes in each of them. Columns that were chosen stay together."""
    wide = [2 + max(len(line[c]) for line in [part.headings, *part.lines]) for c in range(len(part.headings))]
    key = [part.headings.index("recipe")] if "recipe" in part.headings else []
    columns: list[list[int]] = [[]]
    for c in range(len(part.headings)):
        own = columns[-1]
        if not part.chosen and len(own) > len(key) and sum(wide[o] for o in {*own, c}) > LETTERS:
            columns.append([*key])
        if c not in columns[-1]:
            columns[-1].append(c)
    rows = [part.lines[i : i + LINES] for i in range(0, len(part.lines), LINES)]
    return [(own, lines) for own in columns for lines in rows]


def _row(cells: Iterable[str]) -> str:
    return " & ".join(map(latex, cells)) + " \\\\\n"


def latex(text: str) -> str:
    """Text as LaTeX prints it: whatever means something to it is escaped. A bracket that begins a row is no option."""
    text = "".join(LATEX.get(character, character) for character in text)
    return f"{{{text}}}" if text.startswith(("[", "*")) else text


def _title(study: Comparison, part: Part) -> str:
    return f"{study.title}{part.name and f': {part.name}'}"


def _caption(study: Comparison, part: Part) -> str:
    return f"{_title(study, part)}. {head_text(study)}"


FORMATS: dict[str, Callable[[Comparison, Sequence[Part]], str]] = {
    "latex": _latex, "csv": _csv, "md": _markdown, "html": _html,
}  # fmt: skip
