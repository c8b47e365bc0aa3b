"""The table of coverage and power, from records of kind `coverage`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from accel.files import write_atomic
from accel.records import Results
from accel.results.text import metric_name, significant

HEAD = """# Coverage and power of the intervals

Many sets of N samples of the same recipe, each with fresh noise (and fresh prompts, where a suite has prompts), scored
as the runs of every other table are. sd: over sets, known to about 1 / sqrt(2 (sets - 1)). se: the mean of the sets'
own standard errors; se / sd should be 1, and above it intervals are wider than need be. Covers: the share of 95 %
intervals that hold the mean over sets. A/A: the share of pairs of sets of one recipe whose difference is called one
(nominal 5 %). Half-width: the mean of the 95 % interval's; of a difference it is the smallest that would be decided.
Decided: the share of paired differences whose interval excludes 0.
"""
SHORT = """
## `{suite}`: {recipes}

Sets: {sets}; seed {seed}; {device}. `{command}`. Ranges are over recipes and differences.

| value | N | se / sd | covers | se / sd, paired | covers, paired | A/A | half-width, paired |
|:---|---:|---:|---:|---:|---:|---:|---:|
"""
LONG = """
### Each recipe and each paired difference on `{suite}`

| value | recipe | N | mean | sd | se | se / sd | covers | A/A | half-width | decided |
|:---|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""
FIELDS = ("value", "recipe", "of", "sets", "mean", "sd", "se", "half", "covers", "alarms", "decided")


def write_coverage(results: Results) -> list[Path]:
    """Write tables/coverage.{md,csv}; nothing without records. Of each suite and N the record with most sets counts."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in sorted(results.all("coverage"), key=lambda r: (r["sets"], r["id"])):
        found[record["suite"], record["n"]] = record
    if not found:
        return []
    text, buffer = HEAD, io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["suite", "n", "seed", *FIELDS])
    for suite in sorted({suite for suite, _ in found}):
        records = [found[key] for key in sorted(found) if key[0] == suite]
        text += _section(suite, records)
        writer.writerows([suite, r["n"], r["seed"], *(row[k] for k in FIELDS)] for r in records for row in r["rows"])
    outputs = {"coverage.md": text, "coverage.csv": buffer.getvalue()}
    for name, content in outputs.items():
        write_atomic(results.root / "tables" / name, content.encode())
    return [results.root / "tables" / name for name in outputs]


def _section(suite: str, records: list[dict[str, Any]]) -> str:
    last = records[-1]
    recipes = list(dict.fromkeys(row["recipe"] for row in last["rows"]))
    others = ", ".join(label for label in recipes if label != last["baseline"])
    where = last["environment"]["device_name"]
    text = SHORT.format(
        suite=suite, recipes=f"{others} against {last['baseline']}", seed=last["seed"], device=where,
        command=last["command"], sets=", ".join(f"{r['sets']} of N = {r['n']}" for r in records),
    )  # fmt: skip
    keys = list(dict.fromkeys(row["value"] for row in last["rows"]))
    for key in keys:
        for record in records:
            own = [row for row in record["rows"] if row["value"] == key]
            alone, pairs = ([row for row in own if (row["of"] is None) is plain] for plain in (True, False))
            cells = [metric_name(key), str(record["n"]), _range(map(_ratio, alone)), _percents(alone, "covers"),
                     _range(map(_ratio, pairs)), _percents(pairs, "covers"), _percents(alone, "alarms"),
                     _range(row["half"] for row in pairs)]  # fmt: skip
            text += f"| {' | '.join(cells)} |\n"
    text += LONG.format(suite=suite)
    for key in keys:
        for record in records:
            text += "".join(_line(row, record["n"]) for row in record["rows"] if row["value"] == key)
    return text


def _line(row: dict[str, Any], n: int) -> str:
    what = row["recipe"] if row["of"] is None else f"{row['recipe']} - {row['of']}"
    cells = [metric_name(row["value"]), what, str(n), significant(row["mean"], plus="+" if row["of"] else ""),
             significant(row["sd"]), significant(row["se"]), _range([_ratio(row)]), f"{row['covers']:.0%}",
             "-" if row["alarms"] is None else f"{row['alarms']:.1%}", significant(row["half"]),
             "-" if row["of"] is None else f"{row['decided']:.0%}"]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _ratio(row: dict[str, Any]) -> float | None:
    return row["se"] / row["sd"] if row["sd"] else None


def _range(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    low, high = (significant(float(v), 2) for v in (np.min(known), np.max(known)))
    return low if low == high else f"{low} to {high}"


def _percents(rows: list[dict[str, Any]], key: str) -> str:
    if not rows:
        return "-"
    low, high = (f"{100 * f(row[key] for row in rows):.0f}" for f in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"
