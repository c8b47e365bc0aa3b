"""The front of a recipe search: what the search thought of each recipe, and what fresh seeds say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.evaluation.statistics import Estimate, paired
from accel.files import write_atomic
from accel.results.comparison import metric_of, speed_tie
from accel.results.records import Results
from accel.results.text import interval, metric_name, significant

HEAD = """# {title}: the front

Found by {optimiser} in {tried} recipes ({refused} combinations more were refused by the methods' checks or the limit),
{nfe} network evaluations and {minutes:.1f} minutes. `search`: {what} to held-out images on the search's own seeds, the
lowest of many; `validated`: {metric} of {n} samples of seed {seed}, which the search has not seen, with 95 % intervals.
The two have different N and references: compare their order, and each with the baseline's in its own column. Δ: paired
difference to the baseline {baseline}.

| recipe | {cost} / image | search | validated | Δ to baseline | speed-up [95 %] |
|:---|---:|---:|---:|---:|---:|
"""


def write_front(results: Results, found: dict[str, Any]) -> list[Path]:
    """Write tables/<study>_front.md."""
    search = results.load("search", found["search"])
    baseline = results.load("quality", found["baseline"])
    metric, kind = metric_of(baseline), search["cost_of"]
    text = HEAD.format(
        title=found["title"], optimiser=search["optimiser"]["label"], tried=search["tried"], refused=search["refused"],
        nfe=f"{search['cost']['nfe']:,}", minutes=search["cost"]["seconds"] / 60, n=found["n"], seed=found["seed"],
        what=_what(search), metric=metric_name(metric), baseline=baseline["label"], cost=UNITS[kind][1],
    )  # fmt: skip
    own = Estimate.from_dict(baseline["values"][metric])
    price = _priced(baseline["cost"][kind], kind) if kind in baseline["cost"] else ""
    lines = [f"| **{baseline['label']}** (baseline) | {price} | "
             f"{significant(search['reference'])} | {interval(own)} | | 1 |"]  # fmt: skip
    for entry in found["front"]:
        quality = results.load("quality", entry["quality"])
        value = Estimate.from_dict(quality["values"][metric])
        delta, timing = paired(value, own), results.load("timing", entry["timing"]) if entry["timing"] else None
        speed = "" if timing is None else interval(timing["speedup"], unit="×") + " tie" * speed_tie(timing)
        name = f"**{entry['label']}** (recommended)" if entry["label"] == found["recommended"] else entry["label"]
        shown = "tie" if delta.tie else interval(delta, sign=True)
        cells = [name, _priced(entry["cost"], kind), significant(entry["search"]), interval(value), shown, speed]
        lines.append("| " + " | ".join(cells) + " |")
    rule = (
        "the cheapest of the front whose quality ties with or beats the baseline's"
        if found["tie"]
        else "the best of the front, as none ties with the baseline"
    )
    text += "\n".join(lines) + f"\n\nRecommended: {found['recommended']}, {rule}.\n\n    {found['command']}\n"
    path = results.root / "tables" / f"{found['id']}_front.md"
    write_atomic(path, text.encode())
    return [path]


def _what(search: dict[str, Any]) -> str:
    settings = search["settings"]
    n = settings["halving"]["first"] * 2 ** settings["halving"]["doublings"]
    return f"{settings['metric']} of {n} samples"


# Cost: what it is divided by, and the unit then.
UNITS = {
    "macs": (1e6, "MMACs"),
    "nfe": (1, "NFE"),
    "model_bytes": (1e6, "MB"),
    "peak_bytes": (1e6, "MB"),
    "ms": (1, "ms"),
}


def _priced(cost: float, key: str) -> str:
    return significant(cost / UNITS[key][0])
