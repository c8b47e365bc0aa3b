"""Tables of searches, from records of kinds `search_study` (what is compared), `search` (what was found), `quality`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.metrics.statistics import Estimate, paired
from accel.records import Results
from accel.results.comparison import HIGHER, PROMPTED, metric_of, searched, verdict
from accel.results.recipe_search import write_front
from accel.results.text import device_text, interval, metric_name, plus_minus, point

HEAD = """# {title}

{metric} of {n} samples, seed {seed}, which no search has seen; 95 % intervals (20-group delete-group jackknife). Δ is
the paired difference to the `trailing` (uniform) schedule on the same seeds; a difference whose interval contains 0 is
a tie. `searched by` says what an optimiser found, by the score named there and nothing else; its cost is in network
evaluations (rows of a batch) and minutes on {device}, the finalists' fresh scores included, as if it
had been run alone. A row `... of <recipe>` carries a schedule over that was found for that recipe.

"""
UNIFORM = "trailing"
BESIDE = {"adherence": PROMPTED["adherence"], "distance": ("distance to converged", 1)}  # heading, scale


@dataclass(frozen=True)
class Line:
    """A row of a study with the records that it names."""

    group: str
    of: str
    name: str
    kind: str
    quality: dict[str, Any]
    search: dict[str, Any] | None

    @property
    def value(self) -> Estimate:
        return self.values[metric_of(self.quality)]

    @cached_property
    def values(self) -> dict[str, Estimate]:
        return {key: Estimate.from_dict(value) for key, value in self.quality["values"].items()}

    @property
    def times(self) -> str:
        """Its timesteps, where the recipe lists them."""
        grid = self.quality["recipe"].get("grid") or {}
        return " ".join(f"{t:g}" for t in grid.get("timesteps", ()))


def write_searches(results: Results) -> list[Path]:
    """Write tables/<study>.{md,csv} for every study of searches, and the fronts of recipe searches."""
    paths = []
    for record in results.all("search_study"):
        paths += _write(results, record)
    for record in results.all("recipe_search"):
        paths += write_front(results, record)
    return paths


def _write(results: Results, study: dict[str, Any]) -> list[Path]:
    lines = [
        Line(row["group"], row["of"], row["name"], row["kind"], results.load("quality", row["quality"]),
             results.load("search", row["search"]) if row["search"] else None)
        for row in study["rows"]
    ]  # fmt: skip
    groups = {key: list(own) for key, own in groupby(sorted(lines, key=lambda x: x.group), lambda x: x.group)}
    order = list(dict.fromkeys(line.group for line in lines))
    where = lines[0].quality["environment"]
    text = HEAD.format(
        title=study["title"], metric=metric_name(metric_of(lines[0].quality)), n=study["n"], seed=study["seed"],
        device=device_text((where["device_name"], where["threads"], where["batch"])),
    )  # fmt: skip
    metric, ordered = metric_of(lines[0].quality), [groups[key] for key in order]
    beside = [key for key in BESIDE if key != metric and all(key in line.values for line in lines)]
    text += _verdicts(ordered, metric) + "\n## Side by side\n\nBold: not told apart from the best of its column.\n\n"
    text += _overview(ordered, metric, 1) + "\n"
    for key in beside:
        name, scale = BESIDE[key]
        text += f"## Side by side: {name}\n\n{_verdicts(ordered, key)}\n{_overview(ordered, key, scale)}\n"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["recipe", "schedule", "kind", "value", "lo", "hi", "delta", "delta_lo", "delta_hi", "nfe", "macs",
                     "search_nfe", "search_seconds", "search_score", "timesteps"])  # fmt: skip
    for key in order:
        text += _section(groups[key], beside, writer)
    made = {"md": text.rstrip() + "\n", "csv": buffer.getvalue()}
    paths = [results.root / "tables" / f"{study['id']}.{suffix}" for suffix in made]
    for path, content in zip(paths, made.values(), strict=True):
        write_atomic(path, content.encode())
    return paths


def _overview(groups: Sequence[Sequence[Line]], key: str, scale: float) -> str:
    """All values of `key` side by side."""
    names = list(dict.fromkeys(x.name for kind in ("grid", "search", "transfer") for g in groups for x in g
                               if x.kind == kind))  # fmt: skip
    text = "| schedule | " + " | ".join(lines[0].of for lines in groups) + " |\n|:---|" + "---:|" * len(groups) + "\n"
    first = max if key in HIGHER else min
    best = [first((x.values[key] for x in lines), key=lambda value: value.value) for lines in groups]
    for name in names:
        cells = []
        for lines, least in zip(groups, best, strict=True):
            own = next((x.values[key] for x in lines if x.name == name), None)
            bold = "**" * (own is not None and (own == least or paired(own, least).tie))
            cells.append("" if own is None else f"{bold}{point(own, scale=scale)}{bold}")
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text


def _section(lines: Sequence[Line], beside: Sequence[str], writer: Any) -> str:
    uniform = next((x for x in lines if x.name == UNIFORM), None)
    head = ["schedule", metric_name(metric_of(lines[0].quality)), "Δ to uniform", *(BESIDE[key][0] for key in beside)]
    head += ["NFE", "MACs ÷", "searched by: NFE", "minutes", "score then → on fresh seeds"]
    text = f"## {lines[0].of}\n\n| " + " | ".join([*head, "timesteps"]) + " |\n"
    text += "|:---|" + "---:|" * (len(head) - 1) + ":---|\n"
    for line in sorted(lines, key=lambda x: (x.value.value, x.name)):
        delta = paired(line.value, uniform.value) if uniform and line is not uniform else None
        shown = "" if delta is None else "tie" if delta.tie else interval(delta, sign=True)
        cost, own, macs = line.quality["cost"], line.search, None
        if uniform and uniform.quality["cost"]["macs"]:
            macs = cost["macs"] / uniform.quality["cost"]["macs"]
        spent, minutes, scores = "", "", ""
        if own and line.kind == "search":
            spent, minutes = f"{own['cost']['nfe']:,}", f"{own['cost']['seconds'] / 60:.1f}"
            scores = " → ".join(
                "–" if own["scores"][k] is None else f"{searched(own, own['scores'][k]):.3g}"
                for k in ("search", "fresh")
            )
        name = f"*{line.name}*" if line.kind == "grid" else line.name
        further = [plus_minus(line.values[key], BESIDE[key][1]) for key in beside]
        cells = [name, interval(line.value), shown, *further, f"{cost['nfe']:g}",
                 "" if macs is None else f"{macs:.2f}", spent, minutes, scores, line.times]  # fmt: skip
        text += "| " + " | ".join(cells) + " |\n"
        parts = [line.value.value, line.value.lo, line.value.hi]
        parts += [delta.value, delta.lo, delta.hi] if delta else ["", "", ""]
        writer.writerow([line.of, line.name, line.kind, *parts, cost["nfe"], cost["macs"],
                         own["cost"]["nfe"] if own else "", own["cost"]["seconds"] if own else "",
                         own["scores"]["search"] if own else "", line.times])  # fmt: skip
    return text + "\n"


def _verdicts(groups: Sequence[Sequence[Line]], key: str) -> str:
    """How often each optimiser beat, tied with or lost to the uniform schedule, the best hand-made one and random, in
    the value `key`."""

    def best_grid(lines: Sequence[Line]) -> Line | None:
        first = max if key in HIGHER else min
        return first((x for x in lines if x.kind == "grid"), key=lambda x: x.values[key].value, default=None)

    def named(name: str) -> Callable[[Sequence[Line]], Line | None]:
        return lambda lines: next((x for x in lines if x.name == name), None)

    against = {"uniform": named(UNIFORM), "the best hand-made schedule": best_grid, "random search": named("random")}
    names = list(dict.fromkeys(x.name for lines in groups for x in lines if x.kind == "search"))
    if not names:
        return ""
    text = "| better / tie / worse than | " + " | ".join(against) + " |\n|:---|" + "---:|" * len(against) + "\n"
    for name in names:
        cells = []
        for find in against.values():
            counts = {"better": 0, "tie": 0, "worse": 0}
            for lines in groups:
                own, other = named(name)(lines), find(lines)
                if own and other and own is not other:
                    counts[verdict(paired(own.values[key], other.values[key]), key)] += 1
            cells.append(" / ".join(map(str, counts.values())) if any(counts.values()) else "")
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text
