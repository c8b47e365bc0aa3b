"""Figures of a study, rebuilt from its records: the Pareto plot and the same-seed sample grid.

Only rows that may be compared share a panel: quality of the baseline's group (see `accel.results.tables.group_of`), and
one time panel for each device. The front joins recipes that no other recipe beats in both quality and cost.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from accel.files import write_atomic
from accel.records import Results
from accel.results.comparison import ACCELERATING, COMPETES, Row, Study
from accel.results.text import device_text, interval, macs_unit, metric_name, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, FAINT = "#1f2328", "#6e7781", "#d8dee4"
# Kind of acceleration: colour (Okabe-Ito, safe for the colour-blind), marker and its size.
KINDS: Mapping[str, tuple[str, str, float]] = {
    "plain sampler": ("#56657a", "o", 7),
    "cache": ("#d55e00", "s", 7),
    "stitch": ("#009e73", "^", 8),
    "precision": ("#cc79a7", "D", 6.5),
    "guidance": ("#0072b2", "p", 8.5),
    "skip": ("#56b4e9", "v", 8),
    "combined": ("#e69f00", "*", 13),
}
DPI = 160
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Line = tuple[tuple[float, float], tuple[float, float]]


def write_figures(results: Results, study: str) -> list[Path]:
    """Write figures/<study>_pareto.png and, if pictures exist, figures/<study>_samples.png."""
    loaded = Study.load(results, study)
    made = {"pareto": _pareto(loaded), "samples": _samples(loaded, results)}
    paths = []
    for name, figure in made.items():
        if figure is not None:
            paths.append(results.root / "figures" / f"{study}_{name}.png")
            write_atomic(paths[-1], png(figure))
    return paths


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that no global state of matplotlib knows or changes, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


# --- Pareto plot ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A recipe in a panel: cost and quality with intervals, (value, lo, hi) each."""

    row: Row
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def kind_of(row: Row) -> str:
    """Which kind of acceleration a recipe is; `combined` for two or more."""
    axes = row.quality.get("axes") or {}
    kinds = [axis for axis in ACCELERATING if axes.get(axis, "none") != "none"]
    plain_guidance = re.fullmatch(r"none|cfg[\d.]*", str(axes.get("guidance", "none")))
    kinds += [] if plain_guidance else ["guidance"]
    return "combined" if len(kinds) > 1 else kinds[0] if kinds else "plain sampler"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both cost and quality, by rising cost."""
    best, kept = math.inf, []
    for point in sorted(points, key=lambda p: (p.x[0], p.y[0])):
        if point.y[0] < best:
            best = point.y[0]
            kept.append(point)
    return kept


def _pareto(study: Study) -> Figure | None:
    if not study.groups:
        return None
    group = study.groups[0]
    rows = [row for row in study.members(group) if row.role in COMPETES and row.value(group[3])]
    panels = [panel for panel in (_cost_panel(study, rows), *_time_panels(study, rows)) if panel[1]]
    if not panels:
        return None
    across, down = min(2, len(panels)), math.ceil(len(panels) / 2)
    width, height, left = 6.6 * across + 0.4, 4.0 * down + 1.1, 0.9
    figure = new_figure(width, height)
    drawn = figure.subplots(down, across, squeeze=False, sharey=True)
    margins = {"left": left / width, "right": 1 - 0.15 / width, "bottom": 0.9 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**margins, wspace=0.05, hspace=0.25)
    _scale_quality(drawn[0, 0], study, group[3], [point for _, points in panels for point in points])
    for axes, (title, points) in zip(drawn.flat, panels, strict=False):
        _panel(axes, study, group, title, points)
    for axes in drawn.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in drawn[:, 0]:
        axes.set_ylabel(f"{metric_name(group[3])}, lower is better", color=INK, size=9)
    figure.text(left / width, 1 - 0.23 / height, study.title, size=13, weight="bold", color=INK, va="center")
    what = f"{study.suite}, N = {group[1]}, seed {group[2]}; bars and bands are 95 % intervals; dashed: Pareto front"
    figure.text(left / width, 1 - 0.51 / height, what, size=9, color=GREY, va="center")
    _legend(figure, [point.row for _, points in panels for point in points])
    return figure


def _cost_panel(study: Study, rows: Sequence[Row]) -> tuple[str, list[Point]]:
    """Quality vs MACs; vs network evaluations where MACs mean nothing (an analytic model), or vs the size of the
    weights where MACs tell nothing, because most rows differ in precision only."""
    key, (scale, unit), metric = "macs", macs_unit(study), study.groups[0][3]
    name = f"{unit}MACs / image"
    if not any(row.cost("macs") for row in rows):
        key, name, scale = "nfe", "NFE", 1
    elif _differ_in_size(rows):
        key, name, scale = "model_bytes", "weights MB", 1e6
    costs = [(row, row.cost(key) / scale) for row in rows if row.cost(key)]
    return name, [Point(row, (cost, cost, cost), parts(row.value(metric))) for row, cost in costs]


def _differ_in_size(rows: Sequence[Row]) -> bool:
    macs = [row.cost("macs") for row in rows]
    commonest = max(macs, key=macs.count)
    alike = [row for row in rows if row.cost("macs") == commonest]
    return 2 * len(alike) > len(rows) and len({row.cost("model_bytes") for row in alike}) > 2


def _time_panels(study: Study, rows: Sequence[Row]) -> list[tuple[str, list[Point]]]:
    metric, panels = study.groups[0][3], []
    for device in study.devices:
        timed = [(row, study.timing(row, device)) for row in rows]
        points = [Point(row, parts(t["ms_per_image"]), parts(row.value(metric))) for row, t in timed if t]
        panels.append((f"ms / image  ({device_text(device)})", points))
    return panels


def _scale_quality(axes: Axes, study: Study, metric: str, points: Sequence[Point]) -> None:
    """Log where quality spans more than a factor of five; room for the bands and for labels above."""
    rows = [row for row in study.members(study.groups[0]) if row.role not in COMPETES and row.value(metric)]
    values = [point.y[0] for point in points] + [row.value(metric).value for row in rows]
    edges = [edge for point in points for edge in point.y[1:]]
    low, high = min([*values, *edges]), max([*values, *edges])
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(values) > 5 * min(values):
        axes.set_yscale("log")
        low = max(low, 0.7 * min(values))
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.1)
    else:
        room = (high - low) or abs(high) or 1
        axes.set_ylim(low - 0.06 * room, high + 0.1 * room)


def _panel(axes: Axes, study: Study, group: tuple, title: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_xscale("log")
    spread = [edge for point in points for edge in point.x]
    room = (max(spread) / min(spread)) ** 0.09 if max(spread) > min(spread) else 1.3
    axes.set_xlim(min(spread) / room, max(spread) * room)
    for axis in (axes.xaxis, axes.yaxis) if axes.get_yscale() == "log" else (axes.xaxis,):
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        subs = (1,) if decades > 4 else (1, 3) if decades > 2 else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=subs) if decades > 0.6 else MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title, color=INK, size=9)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, which="both", color=GREY)

    bands = _bands(axes, study, group, points)
    best = front(points)
    if len(best) > 1:
        axes.plot([p.x[0] for p in best], [p.y[0] for p in best], "--", color=INK, linewidth=1, alpha=0.55, zorder=2)
    for point in points:
        _mark(axes, study, point)
    named = {(point.x[0], point.y[0], point.row.label): point for point in points}
    _label(axes, study, list(named.values()), bands, best)


def _mark(axes: Axes, study: Study, point: Point) -> None:
    colour, marker, size = KINDS[kind_of(point.row)]
    (x, x_lo, x_hi), (y, y_lo, y_hi) = point.x, point.y
    hollow = point.row.simulated or point.row.role == "control"
    axes.errorbar(
        x, y, xerr=[[x - x_lo], [x_hi - x]], yerr=[[y - y_lo], [y_hi - y]], fmt="none", ecolor=colour,
        elinewidth=1, capsize=0, alpha=0.5, zorder=3,
    )  # fmt: skip
    style = {"markeredgecolor": INK if point.row is study.baseline else colour, "markeredgewidth": 1.3}
    axes.plot(x, y, marker, color="white" if hollow else colour, markersize=size, zorder=4, **style)


def _bands(axes: Axes, study: Study, group: tuple, points: Sequence[Point]) -> list[Any]:
    """Floor and converged reference as horizontal bands, named at an end of their line where no marker is."""
    renderer, named = axes.get_figure().canvas.get_renderer(), []
    marks = [axes.transData.transform((p.x[0], p.y[0])) for p in points]
    marks = [(x - 14, y - 14, x + 14, y + 14) for x, y in marks]
    for row in study.members(group):
        if row.role in COMPETES or not row.value(group[3]):
            continue
        colour = "#8250df" if row.role == "floor" else "#1a7f37"
        value, lo, hi = parts(row.value(group[3]))
        axes.axhspan(lo, hi, color=colour, alpha=0.12, linewidth=0, zorder=1)
        axes.axhline(value, color=colour, linewidth=0.9, alpha=0.7, zorder=1)
        other = f", N = {row.quality['n']}" if row.quality["n"] != group[1] else ""
        name = f"{'floor' if row.role == 'floor' else 'converged'}: {row.label}{other}"
        style = {"textcoords": "offset points", "size": 7.5, "color": colour, "zorder": 6}
        text = axes.annotate(name, (1, value), xytext=(0, 0), xycoords=axes.get_yaxis_transform(), **style)
        for ha, va in (("right", "bottom"), ("right", "top"), ("left", "bottom"), ("left", "top")):
            text.xy = (1 if ha == "right" else 0, value)
            text.set(position=(-3 if ha == "right" else 4, 2 if va == "bottom" else -3), ha=ha, va=va)
            box = text.get_window_extent(renderer).extents
            if not any(
                _overlap(box, mark) for mark in (*marks, *(other.get_window_extent().extents for other in named))
            ):
                break
        named.append(text)
    return named


def _label(axes: Axes, study: Study, points: Sequence[Point], bands: Sequence[Any], best: Sequence[Point]) -> None:
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
            blocked = blocked or any(_overlap(spot.box, other) for other in (*texts, *marks))
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


RINGS, FAR = (7, 12, 19, 28, 40), (55, 75)  # points; the latter for the front only


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


def _overlap(a: Box, b: Box, gap: float = 1.5) -> bool:
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


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    def handle(marker: str, colour: str, face: str, name: str) -> Line2D:
        style = {"marker": marker, "color": "none", "markersize": 10 if marker == "*" else 6.5}
        return Line2D([], [], markeredgecolor=colour, markerfacecolor=face, label=name, **style)

    kinds = [kind for kind in KINDS if any(kind_of(row) == kind for row in rows)]
    handles = [handle(KINDS[kind][1], KINDS[kind][0], KINDS[kind][0], kind) for kind in kinds]
    if any(row.role == "control" for row in rows):
        handles.append(handle("o", KINDS["plain sampler"][0], "white", "equal-cost control"))
    if any(row.simulated for row in rows):
        handles.append(handle("D", GREY, "white", "hollow: simulated, not timed"))
    columns = min(len(handles), int(figure.get_figwidth() / 1.7))
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


# --- sample grid ------------------------------------------------------------------------------------------------------

SAMPLE, GAP, LINE = 76, 4, 12  # largest side of a sample, pixels between samples, between rows
MOST_SAMPLES, LABEL_WIDTH = 16, 32


def _samples(study: Study, results: Results) -> Figure | None:
    """One row of the same seeds for every recipe: the converged reference first, then by rank."""
    if not study.groups:
        return None
    group = study.groups[0]
    rows = [row for row in study.members(group) if row.role != "floor" and row.quality["seed"] == group[2]]
    strips = [(row, samples) for row in rows if (samples := _strip(results, row))]
    if not strips:
        return None
    import numpy as np

    count = min(MOST_SAMPLES, min(len(samples) for _, samples in strips))
    size = max(samples[0].height for _, samples in strips)
    names = [wrap(row.label, LABEL_WIDTH)[:2] for row, _ in strips]
    label = 60 + round(11.5 * max(18, *(len(line) for name in names for line in name)))
    captions = next((c for row, _ in strips if (c := row.quality.get("notes", {}).get("captions"))), [])[:count]
    top, pitch, below = 96 + 14 * bool(captions), size + LINE, 10 + 17 * len(captions)
    width, height = label + count * (size + GAP) + 20, top + len(strips) * pitch + 12 + below * bool(captions)
    figure = new_figure(width / DPI, height / DPI)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, y / height, text, va="center", **style)

    write(24, height - 32, study.title, size=10, weight="bold", color=INK)
    what = f"{study.suite}, the same {count} seeds in every row; {metric_name(group[3])} with its 95 % interval"
    write(24, height - 66, what, size=7, color=GREY)
    for i, (row, samples) in enumerate(strips):
        y = height - top - i * pitch - size  # from the bottom
        for j, sample in enumerate(samples[:count]):
            figure.figimage(np.asarray(sample), label + j * (size + GAP), y, origin="upper")
        weight = "bold" if row.role in ("reference", "baseline") else "normal"
        single = len(names[i]) == 1
        write(24, y + (0.68 if single else 0.66) * size, "\n".join(names[i]), size=8, weight=weight, color=INK)
        write(24, y + (0.28 if single else 0.1) * size, _caption(row, group), size=6.3, color=GREY)
    for j, caption in enumerate(captions):
        write(label + j * (size + GAP) + size / 2, height - top + 10, str(j + 1), size=6.3, color=GREY, ha="center")
        write(24, 12 + below - 17 * (j + 1), f"{j + 1}  {caption}", size=6.3, color=GREY)
    return figure


def _caption(row: Row, group: tuple) -> str:
    value = row.value(group[3])
    role = {"reference": "converged", "baseline": "baseline", "control": "control"}.get(row.role)
    score = f"{metric_name(group[3]).split(' ')[0]} {interval(value)}" if value else None
    return ", ".join(part for part in (role, score) if part)


def _strip(results: Results, row: Row) -> list[Any]:
    """The samples of a record's picture, a row of squares, enlarged by a whole factor; [] if there is none."""
    path = results.path("quality", row.quality["id"]).with_suffix(".png")
    if not path.exists():
        return []
    from PIL import Image

    with Image.open(path) as picture:
        strip = picture.convert("RGB")
    size = strip.height
    squares = [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width - size + 1, size)]
    side = SAMPLE // size * size or SAMPLE
    method = Image.Resampling.NEAREST if size <= SAMPLE else Image.Resampling.BOX
    return [square.resize((side, side), method) for square in squares]
