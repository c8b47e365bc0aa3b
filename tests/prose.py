"""Sentences with numbers, held against the records: what `tests/prose.yaml` says, rendered by the tables' own rounding.

    <document>:
      <study>:
        "<row>":                      # against the study's baseline
          - "is {fid} against {base.fid} ({d.fid:+i}), {v.fid}, {speed:.1f} times as fast"
        "<row> | <against>": [...]    # against another row
      <table>.md:
        "<heading> | <row> | <column>": ["is {cell}", "better in {n[0]:g}"]
      claims:
        "<claim>": ["{word}", "{confirmed} of {tests}"]

A sentence, filled in, must occur in the document exactly once (white space counts as one space). Slots: a value of the
row by its key (`fid`: the suite's own), `base.<key>` of what it is held against, `d.<key>` the paired difference,
`v.<key>` its verdict, `ratio.<key>` row / against, `share.<key>` the same in percent,
`less.<key>` 1 - ratio, `speed`. After the colon: `i` interval, `pm`
value ± half-width, `h` the half-width alone, nothing for the value rounded by its interval, or Python's own `.1f`;
before it `+` for a sign, `a` for the value without one. Adherence, exact, accuracy, precision, recall and `less` are
in percent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from accel.results.claims import Judged
from accel.results.claims_table import PERCENT
from accel.results.evidence import SPEED, Evidence, Missing, Pair
from accel.results.text import interval, parts, plus_minus, point

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


class Once(yaml.SafeLoader):
    """YAML in which no key stands twice: the second would replace the first without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        assert not twice, f"prose.yaml, {node.start_mark.line + 1}: twice {twice}"
        return super().construct_mapping(node, deep)


def load(path: Path) -> dict[str, Any]:
    """What a file of sentences says."""
    return yaml.load(path.read_text(), Once)


def plain(text: str) -> str:
    """A document as one line, without code blocks, tables and the targets of links."""
    text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "![", "#"))]
    return " ".join(re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)).split())


@dataclass(frozen=True)
class Shown:
    """A value, with its interval where it has one, that writes itself as tables do."""

    value: Any
    scale: float = 1

    def __format__(self, spec: str) -> str:
        sign, alone, form = re.fullmatch(r"(\+?)(a?)(.*)", spec).groups()
        ends = (
            {"value": self.value}
            if isinstance(self.value, float)
            else dict(zip(("value", "lo", "hi"), parts(self.value), strict=True))
        )
        ends = {end: x * self.scale for end, x in ends.items()}
        if alone and ends["value"] < 0:
            ends = {end: -x for end, x in ends.items()} | (
                {"lo": -ends["hi"], "hi": -ends["lo"]} if "lo" in ends else {}
            )
        if form in WRITE:
            return WRITE[form](ends, bool(sign))
        return format(ends["value"], sign + form)


WRITE: dict[str, Callable[[Any, bool], str]] = {
    "": lambda x, sign: point(x, sign),
    "i": lambda x, sign: interval(x, sign),
    "pm": lambda x, sign: plus_minus(x, sign=sign),
    "h": lambda x, sign: plus_minus(x, sign=sign).partition(" ± ")[2],
}


class Slots:
    """`d.fid`, `base.distance` and so on: what `find` gives for a key."""

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        found = self._find(key)
        assert found is not None, f"no {key}"
        return found


def of_pair(pair: Pair) -> dict[str, Any]:
    """The slots of a row and what it is held against."""

    def name(key: str) -> str:
        return f"fid_{pair.row.quality['suite'].partition('_')[0]}" if key == "fid" else key

    def shown(value: Any, key: str) -> Shown | None:
        return None if value is None else Shown(value, 100 if key in PERCENT else 1)

    def less(key: str) -> Shown:
        ratio = pair.ratio(name(key))
        return Shown({"value": 1 - ratio["value"], "lo": 1 - ratio["hi"], "hi": 1 - ratio["lo"]}, 100)

    keys = {"fid", *pair.row.quality["values"]}
    values = {key: shown(pair.row.value(name(key)), key) for key in keys if name(key) in pair.row.quality["values"]}
    costs = {key: Shown(float(value)) for key, value in (pair.row.quality.get("cost") or {}).items() if value}
    speed = pair.ratio(SPEED)
    return values | costs | ({"speed": Shown(speed)} if speed else {}) | {
        "base": Slots(lambda key: shown(pair.other.value(name(key)), key)),
        "d": Slots(lambda key: shown(pair.delta(name(key)), key)),
        "v": Slots(lambda key: pair.verdict(name(key))),
        "ratio": Slots(lambda key: shown(pair.ratio(name(key)), "")),
        "share": Slots(lambda key: Shown(pair.ratio(name(key)), 100)),
        "less": Slots(less),
        "pace": pair.pace(),
    }  # fmt: skip


def of_cell(path: Path, place: str) -> dict[str, Any]:
    """The slots of a cell of a Markdown table: below a heading (or empty), in the row that begins so, in a column."""
    heading, *starts, column = (part.strip() for part in place.split("|"))
    text = path.read_text()
    if heading:
        text = text[re.search(rf"^#+ {re.escape(heading)}", text, re.MULTILINE).start() :]
    table: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            table.append([cell.strip().replace("*", "") for cell in line.strip("|").split("|")])
        elif table:
            break
    rows = [row for row in table[2:] if row[: len(starts)] == starts]
    assert len(rows) == 1, f"{len(rows)} rows {starts} in {path.name}"
    cell = rows[0][table[0].index(column)]
    return {"cell": cell, "n": [float(x.replace(",", "")) for x in NUMBER.findall(cell)]}


def of_claim(found: dict[str, Judged], name: str) -> dict[str, Any]:
    """The slots of a claim: its verdict, and how many of its tests have which. `all`: how many claims have which."""
    if name == "all":
        return Counter(one.word for one in found.values()) | {"claims": len(found)}
    counts = Counter(finding.word for finding in found[name].findings)
    return {"word": found[name].word, "tests": len(found[name].findings)} | counts


def slots(evidence: Evidence, claims: dict[str, Judged], study: str, place: str) -> dict[str, Any]:
    """What the sentences below one `study` and `row` may say."""
    if study == "claims":
        return of_claim(claims, place)
    if study.endswith(".md"):
        return of_cell(evidence.results.root / "tables" / study, place)
    row, _, against = (part.strip() for part in place.partition(" | "))
    pair = evidence.pair(study, row, against)
    if isinstance(pair, Missing) and row == evidence.study(study).baseline.label:
        pair = Pair(evidence.study(study), *[evidence.study(study).baseline] * 2)
    assert isinstance(pair, Pair), pair
    return of_pair(pair)
