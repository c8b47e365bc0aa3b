"""The figures of a study as files, rebuilt from its records: the Pareto plot and the same-seed sample sheet."""

from __future__ import annotations

from pathlib import Path

from accel.files import write_atomic
from accel.records import Results
from accel.results.canvas import rendered
from accel.results.comparison import Comparison
from accel.results.pareto import pareto
from accel.results.samples import sample_sheet

FIGURES = ("pareto", "samples")


def figure_path(results: Results, study: str, name: str, kind: str = "png") -> Path:
    """Where figure `name` of a study is."""
    return results.root / "figures" / f"{study}_{name}.{kind}"


def write_figures(results: Results, study: str, kind: str = "png") -> list[Path]:
    """Write figures/<study>_pareto.png and, if pictures exist, figures/<study>_samples.png; or as `kind`, which is one
    of accel.results.canvas.FORMATS."""
    loaded = Comparison.load(results, study)
    paths = []
    for name, figure in zip(FIGURES, (pareto(loaded), sample_sheet(loaded, results)), strict=True):
        if figure is not None:
            paths.append(figure_path(results, study, name, kind))
            write_atomic(paths[-1], rendered(figure, kind))
    return paths
