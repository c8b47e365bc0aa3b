"""Studies of samplers as lines: quality against network evaluations or time, one line a method, with whiskers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.results.canvas import INK
from accel.results.comparison import Comparison, Row
from accel.results.panels import Panel, Point, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3  # points that make a line
APART = 0.012  # between neighbours of equal cost, as a fraction of it
# Okabe-Ito, its yellow darkened; further methods repeat the colours dashed, then dotted, with other markers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#56657a")
STYLES = (("-", "o"), ("--", "s"), (":", "^"))


def methods(rows: Sequence[Row]) -> dict[str, list[Row]] | None:
    """The rows of a study of samplers by method (the label without its steps), in the order of `rows`; None for any
    other study: one that accelerates otherwise, or in which less than half of the rows are on two lines or more."""
    if any(kind_of(row) != "plain sampler" for row in rows):
        return None
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(method_of(row), []).append(row)
    long = [own for own in found.values() if len(own) >= FEWEST]
    return found if len(long) > 1 and 2 * sum(map(len, long)) >= len(rows) else None


def method_of(row: Row) -> str:
    """`deis-10@karras + cfg2` -> `deis@karras + cfg2`."""
    return re.sub(r"-\d+(?=@| \+ |$)", "", row.label, count=1)


def shared_end(names: Sequence[str]) -> str:
    """What all names end with, from a ` + ` on, such as the guidance of all; nothing where they differ."""
    _, plus, end = names[0].partition(" + ")
    return plus + end if plus and all(name.partition(" + ")[2] == end for name in names) else ""


def looks(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, line style and marker of each method."""
    return {name: (COLOURS[i % len(COLOURS)], *STYLES[i // len(COLOURS) % len(STYLES)]) for i, name in enumerate(names)}


def draw_lines(axes: Axes, study: Comparison, panel: Panel, styles: Mapping[str, tuple[str, str, str]]) -> None:
    """One line a method through its points by rising NFE, also against time, which may be disturbed. Methods of equal
    cost stand side by side."""
    placed = apart(panel.points, list(styles))
    for name, (colour, line, marker) in styles.items():
        own = sorted((p for p in panel.points if method_of(p.row) == name), key=lambda p: (p.row.cost("nfe"), p.x[0]))
        at = [placed[id(p)] for p in own]
        axes.plot(at, [p.y[0] for p in own], line, color=colour, linewidth=1.2, alpha=0.9, zorder=3)
        for x, point in zip(at, own, strict=True):
            _whiskers(axes, x, point, colour)
            edge = INK if point.row is study.baseline else colour
            size = 7 if point.row is study.baseline else 4.5
            style = {"markersize": size, "markeredgecolor": edge, "markeredgewidth": 1.3, "zorder": 5}
            axes.plot(x, point.y[0], marker, color=colour, **style)


def apart(points: Sequence[Point], names: Sequence[str]) -> dict[int, float]:
    """Where each point stands, by id: at its cost, or beside those of the very same cost, in the order of `names`."""
    found: dict[int, float] = {}
    for cost in {p.x[0] for p in points}:
        same = sorted((p for p in points if p.x[0] == cost), key=lambda p: names.index(method_of(p.row)))
        for i, point in enumerate(same):
            found[id(point)] = cost * (1 + APART) ** (i - (len(same) - 1) / 2)
    return found


def _whiskers(axes: Axes, x: float, point: Point, colour: str) -> None:
    (cost, x_lo, x_hi), (y, y_lo, y_hi) = point.x, point.y
    style = {"fmt": "none", "ecolor": colour, "elinewidth": 0.9, "capsize": 0, "alpha": 0.5, "zorder": 2}
    axes.errorbar(x, y, xerr=[[cost - x_lo], [x_hi - cost]], yerr=[[y - y_lo], [y_hi - y]], **style)


def handles(styles: Mapping[str, tuple[str, str, str]], leave_out: str) -> list[Any]:
    """The methods for a legend, without the end of their names that all share."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4.5, label=name.removesuffix(leave_out))
        for name, (colour, line, marker) in styles.items()
    ]
