"""The convergence table and figure, from records of kind `convergence`."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.records import Results
from accel.results.canvas import GREY, INK, new_figure, rendered

HEAD = """# Convergence on `mixture`

Root mean square error to the exact probability-flow ODE (known to 1e-12) at the end of the trajectory, in float64,
over {samples} samples. Columns are numbers of solver steps; multi-stage methods (`evaluations a step`) spend several
evaluations on each. `order` is fitted over the three largest numbers of steps; `theory` is the classical order of the
method (iPNDM has none on such grids). Samplers end at the model's smallest noise level, `heun (diffusers)` at sigma =
0, where its last step is of order 1. diffusers' schedulers step in float64 here, too, but their multistep ones give the
model whole timesteps: on grids that fall between timesteps their errors stop falling, and such a grid is refused where
whole timesteps would repeat. On `karras` and `exponential` they end with a step between two equal noise levels, in
which their updates of order 3 divide by zero.

"""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b", "#7f7f7f")
SHOWN = ("tab r=0", "tab r=1", "tab r=2", "tab r=3", "rhork heun", "rhork rk4", "unipc p=3 (accel)",
         "dpmpp_3m (diffusers)", "dpmpp_3m corrected")  # fmt: skip


def write_convergence(results: Results, kind: str = "png") -> list[Path]:
    """Write tables/convergence.{md,csv} and figures/convergence.png (or of another format); nothing without records."""
    records = sorted(results.all("convergence"), key=lambda r: (r["place"], r["id"]))
    if not records:
        return []
    outputs = {
        results.root / "tables" / "convergence.md": _markdown(records).encode(),
        results.root / "tables" / "convergence.csv": _csv(records).encode(),
        results.root / "figures" / f"convergence.{kind}": rendered(_figure(records), kind),
    }
    for path, content in outputs.items():
        write_atomic(path, content)
    return list(outputs)


def _markdown(records: list[dict[str, Any]]) -> str:
    steps = sorted({p["steps"] for r in records for p in r["points"]})
    text = HEAD.format(samples=records[0]["samples"])
    for grid in dict.fromkeys(r["grid"] for r in records):
        text += f"## Grid `{grid}`\n\n| sampler | evaluations a step | "
        text += " | ".join(map(str, steps)) + " | order | theory |\n" + "|---" * (len(steps) + 4) + "|\n"
        for r in (r for r in records if r["grid"] == grid):
            last = r["points"][-1]
            errors = {p["steps"]: _number(p["error"]) for p in r["points"]}
            cells = [errors.get(count, "refused") for count in steps]
            theory = "-" if r["theory"] is None else f"{r['theory']:g}"
            order = "-" if r["order"] is None else f"{r['order']:.2f}"
            cells = [r["sampler"], str(round(last["nfe"] / last["steps"])), *cells, order, theory]
            text += f"| {' | '.join(cells)} |\n"
        text += "\n"
    return text.rstrip() + "\n"


def _number(error: float | None) -> str:
    return "diverges" if error is None else f"{error:.1e}"


def _csv(records: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["sampler", "scheduler", "grid", "end", "steps", "nfe", "error", "fitted_order", "theory"])
    for r in records:
        for p in r["points"]:
            writer.writerow([r["sampler"], r["scheduler"], r["grid"], r["end"], p["steps"], f"{p['nfe']:g}",
                             p["error"], r["order"], r["theory"]])  # fmt: skip
    return buffer.getvalue()


def _figure(records: list[dict[str, Any]]):
    grids = list(dict.fromkeys(r["grid"] for r in records))
    figure = new_figure(3.4 * len(grids), 4.0)
    axes = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    for axis, grid in zip(axes, grids, strict=True):
        for name, colour in zip(SHOWN, COLOURS, strict=True):
            for r in (r for r in records if r["grid"] == grid and r["sampler"] == name):
                points = [(p["nfe"], p["error"]) for p in r["points"] if p["error"] and math.isfinite(p["error"])]
                axis.loglog(*zip(*points, strict=True), "o-", ms=3, lw=1.2, color=colour, label=name)
        axis.set_title(f"grid {grid}", fontsize=9, color=INK)
        axis.set_xlabel("NFE", fontsize=8, color=INK)
        axis.tick_params(labelsize=7, colors=GREY)
        axis.grid(alpha=0.25, lw=0.5)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("RMS error to the exact ODE", fontsize=8, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=7.5, frameon=False)
    figure.suptitle("Convergence on `mixture` (float64)", fontsize=10, color=INK)
    figure.tight_layout(rect=(0, 0.12, 1, 0.99))
    return figure
