"""The table of searched and predicted compensation ratios, from records of kind `cascade`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.records import Results
from accel.results.text import interval

HEAD = """# DC-Solver: searched and predicted compensation ratios on `{suite}`

Each (steps, guidance scale) pair was left out once: `predicted` ratios come from a cascade regression fitted on the
other pairs; `edge` marks a pair outside the range that the rest spans, for which the regression warns and gives the
ratios of the nearest pair inside. Distance: root mean square to the converged trajectory, {samples} noises that no
search has seen, {device}. Ratios of the first two steps are 1 and left out.

| steps | scale | distance, no ratios (UniPC) | searched | predicted | searched ratios | predicted ratios |
|---|---|---|---|---|---|---|
"""


def write_cascade(results: Results) -> list[Path]:
    """Write tables/dc_ratios.{md,csv}; nothing without records."""
    records = results.all("cascade")
    if not records:
        return []
    text, buffer = "", io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["suite", "steps", "scale", "inside", "ratios", "distance", "lo", "hi", "values"])
    for record in sorted(records, key=lambda r: (r["suite"], r["id"])):
        where = record["environment"]
        device = f"{where['device_name']}, {where['threads']} threads"
        text += HEAD.format(suite=record["suite"], samples=record["samples"], device=device)
        for row in record["rows"]:
            text += _line(row, record["dc_order"])
            for kind, d in row["distance"].items():
                values = " ".join(f"{q:.4f}" for q in row.get(kind) or [])
                writer.writerow([record["suite"], row["steps"], row["scale"], row["inside"], kind, d["value"], d["lo"],
                                 d["hi"], values])  # fmt: skip
        text += "\n"
    outputs = {"dc_ratios.md": text.rstrip() + "\n", "dc_ratios.csv": buffer.getvalue()}
    paths = [results.root / "tables" / name for name in outputs]
    for path, content in zip(paths, outputs.values(), strict=True):
        write_atomic(path, content.encode())
    return paths


def _line(row: dict[str, Any], skipped: int) -> str:
    cells = [str(row["steps"]), f"{row['scale']:g}" + ("" if row["inside"] else " (edge)")]
    cells += [interval(row["distance"][k]) for k in ("none", "searched", "predicted")]
    cells += [" ".join(f"{q:.2f}" for q in row[k][skipped:]) for k in ("searched", "predicted")]
    return "| " + " | ".join(cells) + " |\n"
