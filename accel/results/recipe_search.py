"""The front of a recipe search: what the search thought of each recipe, and what fresh seeds say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.metrics.statistics import Estimate, paired
from accel.records import Results
from accel.results.comparison import PROMPTED, searched, speed_tie
from accel.results.text import interval, metric_name, plus_minus, significant

HEAD = """# {title}: the front

Found by {optimiser} in {tried} recipes ({refused} combinations more were refused by the methods' checks or the limit),
{nfe} network evaluations and {minutes:.1f} minutes. `search`: {what} on the search's own seeds, the best of many.
What follows is of {n} samples of seed {seed}, which the search has not seen, with 95 % intervals: compare orders, and
each value with the baseline's in its own column. Δ: paired difference to the baseline {baseline}.

| recipe | {cost} / image | search | {columns} | speed-up [95 %] |
|:---|---:|---:|{rule}---:|
"""


def write_front(results: Results, found: dict[str, Any]) -> list[Path]:
    """Write tables/<study>_front.md."""
    search = results.load("search", found["search"])
    baseline = results.load("quality", found["baseline"])
    judged, kind = found["judged"], search["cost_of"]
    names = [_heading(key) for key in judged]
    text = HEAD.format(
        title=found["title"], optimiser=search["optimiser"]["label"], tried=search["tried"], refused=search["refused"],
        nfe=f"{search['cost']['nfe']:,}", minutes=search["cost"]["seconds"] / 60, n=found["n"], seed=found["seed"],
        what=_what(search), baseline=baseline["label"], cost=UNITS[kind][1], rule="---:|---:|" * len(names),
        columns=" | Δ | ".join(names) + " | Δ",
    )  # fmt: skip
    price = _priced(baseline["cost"][kind], kind) if kind in baseline["cost"] else ""
    own = [cell for key in judged for cell in _shown(baseline, baseline, key)]
    cells = [
        f"**{baseline['label']}** (baseline)",
        price,
        significant(searched(search, search["reference"])),
        *own,
        "1",
    ]
    lines = ["| " + " | ".join(cells) + " |"]
    alone = [entry for entry in found["alone"] if entry["label"] == found["recommended"]]
    for entry in [*found["front"], *alone]:
        quality = results.load("quality", entry["quality"])
        timing = results.load("timing", entry["timing"]) if entry["timing"] else None
        speed = "" if timing is None else interval(timing["speedup"], unit="×") + " tie" * speed_tie(timing)
        name = f"**{entry['label']}** (recommended)" if entry["label"] == found["recommended"] else entry["label"]
        shown = [cell for key in judged for cell in _shown(quality, baseline, key)]
        score = significant(searched(search, entry["search"])) if "search" in entry else "a choice alone"
        cells = [name, _priced(entry["cost"], kind), score, *shown, speed]
        lines.append("| " + " | ".join(cells) + " |")
    rule = (
        f"the cheapest of all that was validated, the choices alone too, that is not worse than the baseline in "
        f"{' or '.join(name.removesuffix(' %') for name in names)}"
        if found["tie"]
        else f"the best of the front in {names[0]}, as nothing ties with the baseline"
    )
    text += "\n".join(lines) + f"\n\nRecommended: {found['recommended']}, {rule}.\n\n    {found['command']}\n"
    path = results.root / "tables" / f"{found['id']}_front.md"
    write_atomic(path, text.encode())
    return [path]


def _what(search: dict[str, Any]) -> str:
    settings = search["settings"]
    n = settings["halving"]["first"] * 2 ** settings["halving"]["doublings"]
    to = " to held-out images" if settings["metric"] == "fid" else ""
    return f"{settings['metric'].replace('_', ' ')} of {n} samples{to}"


def _heading(key: str) -> str:
    return PROMPTED[key][0] if key in PROMPTED else metric_name(key)


def _shown(quality: Mapping[str, Any], baseline: Mapping[str, Any], key: str) -> list[str]:
    """A value and its difference to the baseline's, as text."""
    value, own = (Estimate.from_dict(record["values"][key]) for record in (quality, baseline))
    delta, scale = paired(value, own), PROMPTED[key][1] if key in PROMPTED else None
    shown = interval(value) if scale is None else plus_minus(value, scale)
    if quality["id"] == baseline["id"]:
        return [shown, ""]
    apart = interval(delta, sign=True) if scale is None else plus_minus(delta, scale, sign=True)
    return [shown, "tie" if delta.tie else apart]


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
