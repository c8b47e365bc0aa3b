"""Empty figures and their bytes, and the colours that all figures share."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from accel.errors import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

INK, GREY, FAINT = "#1f2328", "#6e7781", "#d8dee4"
DPI = 160
# Formats of figures, each with what it would say of when and by what a file was made.
FORMATS = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Creator", "Date")}


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that no global state of matplotlib knows or changes, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def fit(text: Text, inches: float) -> None:
    """Make a text smaller where it is wider than this."""
    renderer, pixels = text.figure.canvas.get_renderer(), inches * text.figure.dpi
    while (wide := text.get_window_extent(renderer).width) > pixels:  # a width is not quite proportional to the size
        text.set_fontsize(text.get_fontsize() * min(pixels / wide, 0.99))


def rendered(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file of one of FORMATS; the same figure gives the same bytes. ConfigError for another."""
    from matplotlib import rc_context

    if kind not in FORMATS:
        raise unknown("format of figures", kind, FORMATS)
    file = io.BytesIO()
    # Names within an SVG would be drawn by chance; publishers refuse the fonts of type 3 that are the default.
    with rc_context({"svg.hashsalt": "accel", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=DPI, metadata=dict.fromkeys(FORMATS[kind]))
    return file.getvalue()
