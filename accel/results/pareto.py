"""The Pareto plot of a study: panels of quality against cost; the front joins recipes that no other beats in cost and
in every value that a user would miss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.results.canvas import FAINT, GREY, INK, fit, new_figure
from accel.results.comparison import COMPETES, Comparison, Row
from accel.results.labels import label_points, overlap
from accel.results.lines import draw_lines, handles, looks, methods, shared_end
from accel.results.panels import (
    Panel,
    Point,
    Quality,
    competitors,
    cost_panel,
    front,
    kind_of,
    qualities,
    time_panels,
)  # fmt: skip
from accel.results.text import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kind of acceleration: colour (Okabe-Ito, safe for the colour-blind), marker and its size.
KINDS: Mapping[str, tuple[str, str, float]] = {
    "plain sampler": ("#56657a", "o", 7),
    "cache": ("#d55e00", "s", 7),
    "stitch": ("#009e73", "^", 8),
    "precision": ("#cc79a7", "D", 6.5),
    "guidance": ("#0072b2", "p", 8.5),
    "skip": ("#56b4e9", "v", 8),
    "student": ("#8b5a2b", "P", 8),
    "decoder": ("#7f7f7f", "X", 8),
    "combined": ("#e69f00", "*", 13),
}


def pareto(study: Comparison) -> Figure | None:
    """The plot, or None where nothing can be compared. A row of panels a cost where prompts are followed, too; lines by
    method where nothing but samplers differ."""
    if not study.groups:
        return None
    group, rows = study.groups[0], competitors(study)
    by_method = methods(rows)
    shown, key = qualities(study), "nfe" if by_method else ""
    of_each = [[cost_panel(study, rows, quality, key), *time_panels(study, rows, quality)] for quality in shown]
    flat = [panel for row in zip(*of_each, strict=True) if all(own.points for own in row) for panel in row]
    if not flat:
        return None
    across = max(len(shown), min(2, len(flat)))
    down = math.ceil(len(flat) / across)
    styles = looks(list(by_method)) if by_method else {}
    end = shared_end(list(styles)) if styles else ""
    entries = handles(styles, end) if styles else _handles([point.row for panel in flat for point in panel.points])
    width, left = 6.6 * across + 0.4, 0.9
    longest = max(len(entry.get_label()) for entry in entries)
    columns = min(len(entries), max(1, int(width / (0.6 + 0.08 * longest if styles else 1.7))))
    below = 0.9 + 0.22 * (math.ceil(len(entries) / columns) - 1)
    height = 4.0 * down + 0.2 + below
    figure = new_figure(width, height)
    drawn = figure.subplots(down, across, squeeze=False, sharey="col" if len(shown) > 1 else True)
    margins = {"left": left / width, "right": 1 - 0.15 / width, "bottom": below / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**margins, wspace=0.14 if len(shown) > 1 else 0.05, hspace=0.25)
    for i, quality in enumerate(shown):
        own = [point for panel in flat if panel.quality == quality for point in panel.points]
        _scale_quality(drawn[0, i], study, quality, own)
    for axes, panel in zip(drawn.flat, flat, strict=False):
        _panel(axes, study, group, panel, styles)
    for axes in drawn.flat[len(flat) :]:
        axes.set_visible(False)
    for i, quality in enumerate(shown):
        for axes in drawn[:, i]:
            better = "higher" if quality.higher else "lower"
            axes.set_ylabel(f"{quality.name}, {better} is better", color=INK, size=9)
    title = figure.text(left / width, 1 - 0.23 / height, study.title, size=13, weight="bold", color=INK, va="center")
    fit(title, width - left - 0.15)
    what = f"{study.suite}, N = {group[1]}, seed {group[2]}; bars and bands are 95 % intervals; "
    if styles:
        what += f"a line a method{f', all{end}' if end else ''}; methods of equal cost stand side by side"
    else:
        what += "dashed: Pareto front"
        if len(study.gates) > 1:
            what += f", where a loss beyond the margin in {', '.join(map(metric_name, study.gates[1:]))} counts first"
    fit(figure.text(left / width, 1 - 0.51 / height, what, size=9, color=GREY, va="center"), width - left - 0.15)
    legend = {"loc": "lower center", "ncols": columns, "frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend(handles=entries, **legend)
    return figure


def _scale_quality(axes: Axes, study: Comparison, quality: Quality, points: Sequence[Point]) -> None:
    """Log where a loss spans more than a factor of five (what is better when higher has a best value, near which a log
    scale would hide everything); room for the bands and for labels above. What cannot be
    negative has no axis below 0, whatever an interval that is symmetric about a small value says."""
    rows = [row for row in study.members(study.groups[0]) if row.role not in COMPETES and quality.of(row)]
    values = [point.y[0] for point in points] + [quality.of(row)[0] for row in rows]
    edges = [edge for point in points for edge in point.y[1:]]
    low, high = min([*values, *edges]), max([*values, *edges])
    positive = [value for value in values if value > 0]
    if not quality.higher and len(positive) == len(values) and max(values) > 5 * min(values):
        axes.set_yscale("log")
        low = max(low, 0.7 * min(values))
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.1)
    else:
        room = (high - low) or abs(high) or 1
        least = -math.inf if quality.signed else 0
        axes.set_ylim(max(least, low - 0.06 * room), high + 0.1 * room)


def _panel(
    axes: Axes, study: Comparison, group: tuple, panel: Panel, styles: Mapping[str, tuple[str, str, str]]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    points = panel.points
    axes.set_xscale("log")
    spread = [edge for point in points for edge in point.x]
    room = (max(spread) / min(spread)) ** 0.09 if max(spread) > min(spread) else 1.3
    axes.set_xlim(min(spread) / room, max(spread) * room)
    for axis in (axes.xaxis, axes.yaxis) if axes.get_yscale() == "log" else (axes.xaxis,):
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        fine = (1, 2, 5) if decades > 1 else (1, 2, 3, 5, 7)
        subs = (1,) if decades > 4 else (1, 3) if decades > 2 else fine
        axis.set_major_locator(LogLocator(subs=subs) if decades > 0.6 else MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(panel.title, color=INK, size=9)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, which="both", color=GREY)

    bands = _bands(axes, study, group, panel)
    if styles:
        draw_lines(axes, study, panel, styles)
        return
    best = front(points)
    if len(best) > 1:
        axes.plot([p.x[0] for p in best], [p.y[0] for p in best], "--", color=INK, linewidth=1, alpha=0.55, zorder=2)
    for point in points:
        _mark(axes, study, point)
    named = {(point.x[0], point.y[0], point.row.label): point for point in points}
    label_points(axes, study, list(named.values()), bands, best)


def _mark(axes: Axes, study: Comparison, point: Point) -> None:
    colour, marker, size = KINDS[kind_of(point.row)]
    (x, x_lo, x_hi), (y, y_lo, y_hi) = point.x, point.y
    hollow = point.row.simulated or point.row.role == "control"
    axes.errorbar(
        x, y, xerr=[[x - x_lo], [x_hi - x]], yerr=[[y - y_lo], [y_hi - y]], fmt="none", ecolor=colour,
        elinewidth=1, capsize=0, alpha=0.5, zorder=3,
    )  # fmt: skip
    style = {"markeredgecolor": INK if point.row is study.baseline else colour, "markeredgewidth": 1.3}
    axes.plot(x, y, marker, color="white" if hollow else colour, markersize=size, zorder=4, **style)


def _bands(axes: Axes, study: Comparison, group: tuple, panel: Panel) -> list[Any]:
    """Floor and converged reference as horizontal bands, named at an end of their line where no marker is."""
    from matplotlib.patheffects import withStroke

    renderer, named, halo = axes.get_figure().canvas.get_renderer(), [], withStroke(linewidth=2, foreground="white")
    marks = [axes.transData.transform((p.x[0], p.y[0])) for p in panel.points]
    marks = [(x - 14, y - 14, x + 14, y + 14) for x, y in marks]
    for row in study.members(group):
        if row.role in COMPETES or not panel.quality.of(row):
            continue
        colour = "#8250df" if row.role == "floor" else "#1a7f37"
        value, lo, hi = panel.quality.of(row)
        axes.axhspan(lo, hi, color=colour, alpha=0.12, linewidth=0, zorder=1)
        axes.axhline(value, color=colour, linewidth=0.9, alpha=0.7, zorder=1)
        other = f", N = {row.quality['n']}" if row.quality["n"] != group[1] else ""
        name = f"{'floor' if row.role == 'floor' else 'converged'}: {row.label}{other}"
        style = {"textcoords": "offset points", "size": 7.5, "color": colour, "zorder": 6, "path_effects": [halo]}
        text = axes.annotate(name, (1, value), xytext=(0, 0), xycoords=axes.get_yaxis_transform(), **style)
        for ha, va in (("right", "bottom"), ("right", "top"), ("left", "bottom"), ("left", "top")):
            text.xy = (1 if ha == "right" else 0, value)
            text.set(position=(-3 if ha == "right" else 4, 2 if va == "bottom" else -3), ha=ha, va=va)
            box = text.get_window_extent(renderer).extents
            if not any(
                overlap(box, mark) for mark in (*marks, *(other.get_window_extent().extents for other in named))
            ):
                break
        named.append(text)
    return named


def _handles(rows: Sequence[Row]) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(marker: str, colour: str, face: str, name: str) -> Line2D:
        style = {"marker": marker, "color": "none", "markersize": 10 if marker == "*" else 6.5}
        return Line2D([], [], markeredgecolor=colour, markerfacecolor=face, label=name, **style)

    kinds = [kind for kind in KINDS if any(kind_of(row) == kind for row in rows)]
    found = [handle(KINDS[kind][1], KINDS[kind][0], KINDS[kind][0], kind) for kind in kinds]
    if any(row.role == "control" for row in rows):
        found.append(handle("o", KINDS["plain sampler"][0], "white", "equal-cost control"))
    if any(row.simulated for row in rows):
        found.append(handle("D", GREY, "white", "hollow: simulated, not timed"))
    return found
