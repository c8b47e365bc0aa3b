"""Tables of executed precisions, one for each device, from records of kind `precision`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from accel.benches.precision_speed import COMPILED
from accel.evaluation.intervals import ratio_interval
from accel.files import write_atomic
from accel.records import Results
from accel.results.text import interval, significant

HEAD = """# Executed precision on {device}

One denoiser call at batch 1, each precision in a process of its own. Speed: the plain float32 network's time over the
variant's, timed in alternation with it (median over rounds, 95 % interval; A/A: the plain network against
itself). ÷ compiled bf16: that speed over the one of `{compiled}` at the same size (at 1 or below, compiled bfloat16 is
as fast). SQNR: 10 log10 of signal over error against float32, over evaluations of a trajectory that no calibration
saw, from noise to image. Peak: resident memory above the bare process, the plain network included, in the first
run with its conversion / afterwards. Set-up: first evaluation with all that is converted, compiled and calibrated for
it, from empty caches. Instructions: {isa}. {libraries}.
"""
SECTION = """
## {size}, {threads} thread{plural}

{rounds} rounds, {clock}; float32 takes {plain} ms. SQNR at t = {timesteps}.

| precision | speed | A/A | ÷ compiled bf16 | SQNR dB | weights MB | peak MB | set-up s |
|:---|---:|---:|---:|---:|---:|---:|---:|
"""
MEGA = 1e6


def write_precision(results: Results) -> list[Path]:
    """Write tables/precision_executed_<device>.md and .csv for every device; nothing without records."""
    records = sorted(results.all("precision"), key=lambda m: (m["place"], m["environment"]["threads"]))
    written = []
    for device in dict.fromkeys(m["environment"]["device_name"] for m in records):
        own = [m for m in records if m["environment"]["device_name"] == device]
        path = results.root / "tables" / f"precision_executed_{slug(device)}.md"
        write_atomic(path, page(own).encode())
        write_atomic(path.with_suffix(".csv"), _csv(own).encode())
        written += [path, path.with_suffix(".csv")]
    return written


def slug(device: str) -> str:
    """A device's name as part of a file's: `AMD EPYC (AVX512)` -> `amd_epyc_avx512`."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown page of one device."""
    first = records[0]
    known = {"torch": first["environment"]["packages"]["torch"]} | first["libraries"]
    text = HEAD.format(
        device=first["environment"]["device_name"],
        compiled=COMPILED,
        isa=", ".join(first["isa"]) or "not known",
        libraries=", ".join(f"{name} {version}" for name, version in known.items()),
    )
    for size, threads in dict.fromkeys((m["size"], m["environment"]["threads"]) for m in records):
        own = [m for m in records if (m["size"], m["environment"]["threads"]) == (size, threads)]
        text += _section(size, threads, own)
    return text


def _section(size: str, threads: int, records: Sequence[Mapping[str, Any]]) -> str:
    measured = [m for m in records if "reason" not in m]
    against = next((m for m in measured if m["variant"] == COMPILED), None)
    text = f"\n## {size}, {threads} thread{'s' * (threads != 1)}\n\n| precision | why not |\n|:---|:---|\n"
    if measured:
        text = SECTION.format(
            size=size,
            threads=threads,
            plural="s" * (threads != 1),
            rounds=_listed(m["rounds"] for m in measured),
            clock=_listed(m["clock"] for m in measured),
            plain=_listed(significant(m["ms"]["value"]) for m in measured if m["variant"] == "fp32") or "?",
            timesteps=_listed(round(t) for t in measured[0]["timesteps"]),
        )
        text += "".join(_row(m, against) for m in measured)
    refused = [m for m in records if "reason" in m]
    if measured and refused:
        text += "\nNot measured:\n\n" + "".join(f"* {m['variant']}: {m['reason']}\n" for m in refused)
    elif refused:
        text += "".join(f"| {m['variant']} | {m['reason']} |\n" for m in refused)
    return text


def _row(m: Mapping[str, Any], against: Mapping[str, Any] | None) -> str:
    beside = interval(ratio_interval(np.array(m["ratios"]), np.array(against["ratios"]))) if against else "–"
    noise = [x for x in m["sqnr"] if x is not None]
    heard = "exact" if not noise else " ".join(f"{x:.1f}" for x in noise)
    peaks = [m["setup_peak_bytes"], m["peak_bytes"]]
    cells = [
        m["variant"],
        interval(m["speedup"]),
        interval(m["aa"]),
        "1" if m is against else beside,
        heard,
        f"{m['model_bytes'] / MEGA:.1f}",
        "–" if None in peaks else " / ".join(f"{x / MEGA:.0f}" for x in peaks),
        f"{m['setup_s']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |\n"


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for m in records:
        flat = {"size": m["size"], "threads": m["environment"]["threads"], "precision": m["variant"]}
        flat |= {"kind": "executed", "reason": m.get("reason")}
        for key in ("speedup", "aa", "ms"):
            flat |= {f"{key}_{part}": m.get(key, {}).get(part) for part in ("value", "lo", "hi")}
        heard = [x for x in m.get("sqnr", ()) if x is not None]
        flat["sqnr_db_min"] = min(heard, default=None)
        keys = ("rounds", "clock", "model_bytes", "setup_peak_bytes", "peak_bytes", "setup_s", "calibration_s", "id")
        lines.append(flat | {key: m.get(key) for key in keys})
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
