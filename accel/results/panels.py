"""What a Pareto plot shows: recipes as points of quality against MACs, size or time, and which of them no other beats.

Only rows that may be compared share a panel: quality of the baseline's group (see `accel.results.comparison.group_of`),
and one time panel for each device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from accel.results.comparison import ACCELERATING, Comparison, Row
from accel.results.text import device_text, macs_unit, parts


@dataclass(frozen=True)
class Point:
    """A recipe in a panel: cost and quality with intervals, (value, lo, hi) each; `loss` is what the front is of."""

    row: Row
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    loss: float | None = None  # in margins, by all values (Comparison.loss); None: the quality shown


def kind_of(row: Row) -> str:
    """Which kind of acceleration a recipe is; `combined` for two or more."""
    axes = row.quality.get("axes") or {}
    kinds = [axis for axis in ACCELERATING if axes.get(axis, "none") != "none"]
    plain_guidance = re.fullmatch(r"none|cfg[\d.]*", str(axes.get("guidance", "none")))
    kinds += [] if plain_guidance else ["guidance"]
    return "combined" if len(kinds) > 1 else kinds[0] if kinds else "plain sampler"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both cost and quality, by rising cost.

    Quality is `loss` where every point has one: a front of FID alone would hold what buys it with adherence.
    """
    whole = all(point.loss is not None for point in points)

    def quality(point: Point) -> float:
        return point.loss if whole else point.y[0]

    best, kept = math.inf, []
    for point in sorted(points, key=lambda p: (p.x[0], quality(p))):
        if quality(point) < best:
            best = quality(point)
            kept.append(point)
    return kept


def cost_panel(study: Comparison, rows: Sequence[Row]) -> tuple[str, list[Point]]:
    """Quality vs MACs; vs network evaluations where MACs mean nothing (an analytic model), or vs the size of the
    weights where MACs tell nothing, because most rows differ in precision only."""
    key, (scale, unit), metric = "macs", macs_unit(study), study.groups[0][3]
    name = f"{unit}MACs / image"
    if not any(row.cost("macs") for row in rows):
        key, name, scale = "nfe", "NFE", 1
    elif _differ_in_size(rows):
        key, name, scale = "model_bytes", "weights MB", 1e6
    costs = [(row, row.cost(key) / scale) for row in rows if row.cost(key)]
    return name, [Point(row, (cost, cost, cost), parts(row.value(metric)), study.loss(row)) for row, cost in costs]


def _differ_in_size(rows: Sequence[Row]) -> bool:
    macs = [row.cost("macs") for row in rows]
    commonest = max(macs, key=macs.count)
    alike = [row for row in rows if row.cost("macs") == commonest]
    return 2 * len(alike) > len(rows) and len({row.cost("model_bytes") for row in alike}) > 2


def time_panels(study: Comparison, rows: Sequence[Row]) -> list[tuple[str, list[Point]]]:
    """Quality vs time, a panel for each device."""
    metric, panels = study.groups[0][3], []
    for device in study.devices:
        timed = [(row, study.timing(row, device)) for row in rows]
        points = [
            Point(row, parts(t["ms_per_image"]), parts(row.value(metric)), study.loss(row)) for row, t in timed if t
        ]
        panels.append((f"ms / image  ({device_text(device)})", points))
    return panels
