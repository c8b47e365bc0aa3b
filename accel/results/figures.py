"""The figures of a study as files, rebuilt from its records: the Pareto plot and the same-seed sample sheet."""

from __future__ import annotations

from pathlib import Path

from accel.files import write_atomic
from accel.results.canvas import png
from accel.results.comparison import Comparison
from accel.results.pareto import pareto
from accel.results.records import Results
from accel.results.samples import sample_sheet

FIGURES = ("pareto", "samples")


def figure_path(results: Results, study: str, name: str) -> Path:
    """Where figure `name` of a study is."""
    return results.root / "figures" / f"{study}_{name}.png"


def write_figures(results: Results, study: str) -> list[Path]:
    """Write figures/<study>_pareto.png and, if pictures exist, figures/<study>_samples.png."""
    loaded = Comparison.load(results, study)
    paths = []
    for name, figure in zip(FIGURES, (pareto(loaded), sample_sheet(loaded, results)), strict=True):
        if figure is not None:
            paths.append(figure_path(results, study, name))
            write_atomic(paths[-1], png(figure))
    return paths
