"""Names beside points, where nothing is in the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from accel.results.canvas import GREY, INK
from accel.results.comparison import Comparison
from accel.results.panels import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RINGS, FAR = (7, 12, 19, 28, 40), (55, 75)  # points; the latter for the front only
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Line = tuple[tuple[float, float], tuple[float, float]]


def label_points(
    axes: Axes, study: Comparison, points: Sequence[Point], bands: Sequence[Any], best: Sequence[Point]
) -> None:
    """Name the points, baseline and front first, where nothing is in the way; one without room stays unnamed."""
    from matplotlib.patheffects import withStroke

    figure, halo = axes.get_figure(), withStroke(linewidth=2, foreground="white", alpha=0.8)
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    place = axes.transData.transform
    anchors = {id(p): tuple(map(float, place((p.x[0], p.y[0])))) for p in points}
    texts: list[Box] = [text.get_window_extent(renderer).extents for text in bands]
    radius = 4.5 * pixel
    marks = [(x - radius, y - radius, x + radius, y + radius) for x, y in anchors.values()]
    lines = list(pairwise(anchors[id(p)] for p in best))  # a label may lie on the front or on a bar, if it must
    for p in points:
        x, y = anchors[id(p)]
        lines += [((x, place((p.x[0], p.y[1]))[1]), (x, place((p.x[0], p.y[2]))[1]))]
        lines += [((place((p.x[1], p.y[0]))[0], y), (place((p.x[2], p.y[0]))[0], y))]
    leaders: list[Line] = []
    position = {id(point): i for i, point in enumerate(best)}
    order = [(p.row is not study.baseline, position.get(id(p), len(best)), p.row.role == "control") for p in points]
    for _, point in sorted(zip(order, points, strict=True), key=lambda pair: pair[0]):
        baseline, xy = point.row is study.baseline, (point.x[0], point.y[0])
        style = {"size": 7.8, "color": INK, "weight": "bold" if baseline else "normal", "zorder": 7}
        style |= {"xytext": (0, 0), "textcoords": "offset points", "path_effects": [halo]}
        text = axes.annotate(point.row.label + " (baseline)" * baseline, xy, **style)
        extent, chosen, least = text.get_window_extent(renderer), None, math.inf
        rings = (*RINGS, *FAR) if id(point) in position else RINGS
        for spot in _spots(anchors[id(point)], extent.width, extent.height, pixel, rings):
            if spot.reach >= least:  # the candidates only get farther away
                break
            anchor = anchors[id(point)]
            leader = anchor, spot.end
            blocked = not _within(spot.box, axes.bbox.extents)
            blocked = blocked or any(overlap(spot.box, other) for other in (*texts, *marks))
            blocked = blocked or any(_crosses(other, leader) for other in texts)
            blocked = blocked or any(_crosses(other, leader) and not _within(anchor * 2, other) for other in marks)
            blocked = blocked or any(_crosses(spot.box, other) for other in leaders)
            penalty = spot.reach + 20 * sum(_crosses(spot.box, line) for line in lines)
            if not blocked and penalty < least:
                chosen, least = spot, penalty
        if chosen is None:
            text.remove()
            continue
        text.set(position=chosen.offset, ha=chosen.ha, va=chosen.va)
        texts.append(chosen.box)
        if chosen.reach > 15:
            leaders.append((anchors[id(point)], chosen.end))
            arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 4}
            axes.annotate("", xy, xytext=chosen.offset, textcoords="offset points", arrowprops=arrow, zorder=2.5)


class Spot(NamedTuple):
    """Where a label could stand: distance and offset from its point (in points), alignment, box and end in pixels."""

    reach: float
    offset: tuple[float, float]
    ha: str
    va: str
    box: Box
    end: tuple[float, float]


def _spots(
    anchor: tuple[float, float], width: float, height: float, pixel: float, rings: Sequence[float]
) -> Iterator[Spot]:
    """Candidates on rings about a point, for a label of `width` x `height` pixels; upper right first."""
    for reach in rings:
        for step in range(16):
            angle = math.pi * (1 / 8 + (step + 1) // 2 * (-1) ** step / 8)
            dx, dy = round(reach * math.cos(angle), 3), round(reach * math.sin(angle), 3)
            ha = "left" if dx > 1 else "right" if dx < -1 else "center"
            va = "bottom" if dy > 2 else "top" if dy < -2 else "center"
            end = anchor[0] + dx * pixel, anchor[1] + dy * pixel
            x = end[0] - {"left": 0, "center": width / 2, "right": width}[ha]
            y = end[1] - {"bottom": 0, "center": height / 2, "top": height}[va]
            yield Spot(reach, (dx, dy), ha, va, (x, y, x + width, y + height), end)


def _within(box: Box, outer: Box) -> bool:
    return outer[0] <= box[0] and box[2] <= outer[2] and outer[1] <= box[1] and box[3] <= outer[3]


def overlap(a: Box, b: Box, gap: float = 1.5) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _crosses(box: Box, line: Line) -> bool:
    """Whether a straight line passes through a box (Liang-Barsky)."""
    (x0, y0), (x1, y1) = line
    enter, leave = 0.0, 1.0
    for start, step, low, high in ((x0, x1 - x0, box[0], box[2]), (y0, y1 - y0, box[1], box[3])):
        if step == 0:
            if not low < start < high:
                return False
            continue
        first, last = sorted(((low - start) / step, (high - start) / step))
        enter, leave = max(enter, first), min(leave, last)
    return enter < leave
