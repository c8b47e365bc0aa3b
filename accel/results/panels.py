"""What a Pareto plot shows: recipes as points of quality against MACs, size or time, and which of them no other beats.

Only rows that may be compared share a panel: quality of the baseline's group (see `accel.results.comparison.group_of`),
and one time panel for each device. Where prompts are followed, how well is shown beside the quality.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accel.results.comparison import ACCELERATING, COMPETES, HIGHER, PROMPTED, Comparison, Row
from accel.results.text import device_text, macs_unit, metric_name, parts

SIGNED = ("kid", "clip_score", "ssim")  # which may be below 0; of a KID the suffix does not matter

Interval = tuple[float, float, float]  # value, lo, hi


class Quality(NamedTuple):
    """A value of records on an axis: its key, its name there, the factor it is shown with."""

    key: str
    name: str
    scale: float = 1

    @property
    def higher(self) -> bool:
        return self.key in HIGHER

    @property
    def signed(self) -> bool:
        return self.key.startswith(SIGNED)

    def of(self, row: Row) -> Interval | None:
        """The row's value and interval as shown; None without it."""
        value = row.value(self.key)
        return value and tuple(part * self.scale for part in parts(value))


@dataclass(frozen=True)
class Point:
    """A recipe in a panel: cost and quality with intervals, (value, lo, hi) each; `loss` is what the front is of."""

    row: Row
    x: Interval
    y: Interval
    loss: float | None = None  # in margins, by all values (Comparison.loss); None: the quality shown
    higher: bool = False  # whether that is better when higher


class Panel(NamedTuple):
    """Points of one quality against one cost, which `title` names."""

    title: str
    quality: Quality
    points: list[Point]


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
        return point.loss if whole else -point.y[0] if point.higher else point.y[0]

    best, kept = math.inf, []
    for point in sorted(points, key=lambda p: (p.x[0], quality(p))):
        if quality(point) < best:
            best = quality(point)
            kept.append(point)
    return kept


def qualities(study: Comparison) -> list[Quality]:
    """What is shown: the metric that recipes are ranked by, and how well prompts are followed, if the baseline says."""
    metric, there = study.groups[0][3], study.baseline.quality["values"] if study.baseline else {}
    prompted = [Quality(key, *PROMPTED[key]) for key in PROMPTED if key in there]
    return [Quality(metric, metric_name(metric)), *prompted[:1]]


def competitors(study: Comparison) -> list[Row]:
    """The rows of the baseline's group that are compared and have its metric."""
    group = study.groups[0]
    return [row for row in study.members(group) if row.role in COMPETES and row.value(group[3])]


def on_front(study: Comparison) -> list[Row]:
    """The recipes on the front of any panel of the ranked metric, the cheapest first."""
    rows, quality = competitors(study), qualities(study)[0]
    panels = [cost_panel(study, rows, quality), *time_panels(study, rows, quality)]
    found = {id(point.row): point.row for panel in panels for point in front(panel.points)}
    return list(found.values())


def points_of(study: Comparison, quality: Quality, costs: Sequence[tuple[Row, Interval]]) -> list[Point]:
    """The rows that have this quality, at their costs."""
    shown = ((row, x, quality.of(row)) for row, x in costs)
    return [Point(row, x, y, study.loss(row), quality.higher) for row, x, y in shown if y]


def cost_panel(study: Comparison, rows: Sequence[Row], quality: Quality | None = None, key: str = "") -> Panel:
    """Quality (the ranked one) vs MACs; vs network evaluations where MACs mean nothing (an analytic model), or vs the
    size of the weights where MACs tell nothing, because most rows differ in precision only; or vs the cost `key`."""
    quality, (scale, unit) = quality or qualities(study)[0], macs_unit(study)
    name = f"{unit}MACs / image"
    if key == "nfe" or not any(row.cost("macs") for row in rows):
        key, name, scale = "nfe", "NFE", 1
    elif _differ_in_size(rows):
        key, name, scale = "model_bytes", "weights MB", 1e6
    costs = [(row, (row.cost(key or "macs") / scale,) * 3) for row in rows if row.cost(key or "macs")]
    return Panel(name, quality, points_of(study, quality, costs))


def _differ_in_size(rows: Sequence[Row]) -> bool:
    macs = [row.cost("macs") for row in rows]
    commonest = max(macs, key=macs.count)
    alike = [row for row in rows if row.cost("macs") == commonest]
    return 2 * len(alike) > len(rows) and len({row.cost("model_bytes") for row in alike}) > 2


def time_panels(study: Comparison, rows: Sequence[Row], quality: Quality | None = None) -> list[Panel]:
    """Quality (the ranked one) vs time, a panel for each device."""
    quality, panels = quality or qualities(study)[0], []
    for device in study.devices:
        timed = [(row, study.timing(row, device)) for row in rows]
        costs = [(row, parts(t["ms_per_image"])) for row, t in timed if t]
        panels.append(Panel(f"ms / image  ({device_text(device)})", quality, points_of(study, quality, costs)))
    return panels
