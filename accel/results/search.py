"""Tables of searches, from records of kinds `search_study` (what is compared), `search` (what was found), `quality`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.metrics.statistics import Estimate, paired
from accel.metrics.verdicts import NON_INFERIOR, WORDS, Margins, p_value, verdict
from accel.records import Results
from accel.results.comparison import HIGHER, HOCHBERG, HOLM, PROMPTED, metric_of, searched, survivors
from accel.results.recipe_search import write_front
from accel.results.text import device_text, interval, metric_name, plus_minus, point

HEAD = """# {title}

{metric} of {n} samples, seed {seed}, which no search has seen; 95 % intervals (20-group delete-group jackknife). Δ is
the paired difference to the `trailing` (uniform) schedule on the same seeds, *better* or *worse* when its interval
excludes 0, *non-inferior* when its worse end stays inside the margin, *equivalent* when both ends do, else *undecided*.
Margins: {margins}.
Marks: what survives Holm ({holm}), or Benjamini-Hochberg only ({bh}), at 5 % among the {family} Δ to uniform of this
page; p from the paired jackknife's t.

`searched by` says what an optimiser found, by the score named there and nothing else; its cost is in network
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
    where, margins = lines[0].quality["environment"], Margins.from_dict(study.get("margins"))
    marks = _marks(groups.values())
    text = HEAD.format(
        title=study["title"], metric=metric_name(metric_of(lines[0].quality)), n=study["n"], seed=study["seed"],
        device=device_text((where["device_name"], where["threads"], where["batch"])), holm=HOLM, bh=HOCHBERG,
        margins=_stated(margins, lines[0]), family=len(marks),
    )  # fmt: skip
    metric, ordered = metric_of(lines[0].quality), [groups[key] for key in order]
    beside = [key for key in BESIDE if key != metric and all(key in line.values for line in lines)]
    text += (
        _verdicts(ordered, metric, margins)
        + "\n## Side by side\n\nBold: not told apart from the best of its column.\n\n"
    )
    text += _overview(ordered, metric, 1) + "\n"
    for key in beside:
        name, scale = BESIDE[key]
        text += f"## Side by side: {name}\n\n{_verdicts(ordered, key, margins)}\n{_overview(ordered, key, scale)}\n"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["recipe", "schedule", "kind", "value", "lo", "hi", "delta", "delta_lo", "delta_hi", "verdict",
                     "p", "holm", "bh", "nfe", "macs", "search_nfe", "search_seconds", "search_score",
                     "timesteps"])  # fmt: skip
    for key in order:
        text += _section(groups[key], beside, margins, marks, writer)
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
            bold = "**" * (own is not None and (own == least or not paired(own, least).apart))
            cells.append("" if own is None else f"{bold}{point(own, scale=scale)}{bold}")
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text


def _uniform(lines: Sequence[Line]) -> Line | None:
    return next((x for x in lines if x.name == UNIFORM), None)


def _marks(groups: Iterable[Sequence[Line]]) -> dict[tuple[str, str], str]:
    """What survives of all differences to the uniform schedules: by (group, name)."""
    p = {}
    for lines in groups:
        uniform = _uniform(lines)
        p |= {(x.group, x.name): p_value(paired(x.value, uniform.value)) for x in lines if uniform and x is not uniform}
    return survivors(p)


def _stated(margins: Margins, line: Line) -> str:
    """The margins of the metric and of what stands beside it, as text."""
    said = []
    for key in dict.fromkeys([metric_of(line.quality), *(key for key in BESIDE if key in line.values)]):
        if (own := margins.stated(key)) is not None:
            least = f" (at least {margins.fid_least:g})" if margins.fid_least else ""
            of = f"{own * 100:g} % of what it is compared with{least}" if key.startswith("fid") else f"{own:g}"
            said.append(f"{metric_name(key)} {of}")
    return " and ".join(said) or "none"


def _section(
    lines: Sequence[Line], beside: Sequence[str], margins: Margins, marks: Mapping[tuple[str, str], str], writer: Any
) -> str:
    uniform = _uniform(lines)
    head = ["schedule", metric_name(metric_of(lines[0].quality)), "Δ to uniform", *(BESIDE[key][0] for key in beside)]
    head += ["NFE", "MACs ÷", "searched by: NFE", "minutes", "score then → on fresh seeds"]
    text = f"## {lines[0].of}\n\n| " + " | ".join([*head, "timesteps"]) + " |\n"
    text += "|:---|" + "---:|" * (len(head) - 1) + ":---|\n"
    for line in sorted(lines, key=lambda x: (x.value.value, x.name)):
        delta = paired(line.value, uniform.value) if uniform and line is not uniform else None
        word = "" if delta is None else _judged(line, uniform, metric_of(line.quality), margins)
        mark = marks.get((line.group, line.name), "")
        shown = "" if delta is None else f"{interval(delta, sign=True)} {word}{mark}"
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
        parts += (
            [delta.value, delta.lo, delta.hi, word, p_value(delta), mark == HOLM, bool(mark)] if delta else [""] * 7
        )
        writer.writerow([line.of, line.name, line.kind, *parts, cost["nfe"], cost["macs"],
                         own["cost"]["nfe"] if own else "", own["cost"]["seconds"] if own else "",
                         own["scores"]["search"] if own else "", line.times])  # fmt: skip
    return text + "\n"


def _judged(own: Line, other: Line, key: str, margins: Margins) -> str:
    """The verdict on a value of two lines, with the margin of `other`."""
    value = other.values[key]
    return verdict(paired(own.values[key], value), margins.of(key, value.value), key in HIGHER)


KINDS = {word: "non-inferior" if word in NON_INFERIOR else word for word in WORDS}  # of verdicts, as they are counted
KINDS |= {word: word.partition(",")[0] for word in WORDS if word.startswith(("better", "worse"))}


def _verdicts(groups: Sequence[Sequence[Line]], key: str, margins: Margins) -> str:
    """How often each optimiser is better than, non-inferior to, undecided against or worse than the uniform schedule,
    the best hand-made one and random, in the value `key`."""

    def best_grid(lines: Sequence[Line]) -> Line | None:
        first = max if key in HIGHER else min
        return first((x for x in lines if x.kind == "grid"), key=lambda x: x.values[key].value, default=None)

    def named(name: str) -> Callable[[Sequence[Line]], Line | None]:
        return lambda lines: next((x for x in lines if x.name == name), None)

    against = {"uniform": named(UNIFORM), "the best hand-made schedule": best_grid, "random search": named("random")}
    names = list(dict.fromkeys(x.name for lines in groups for x in lines if x.kind == "search"))
    if not names:
        return ""
    counted = ("better", "non-inferior", "undecided", "worse")
    text = f"| {' / '.join(counted)} than | " + " | ".join(against) + " |\n|:---|" + "---:|" * len(against) + "\n"
    for name in names:
        cells = []
        for find in against.values():
            counts = dict.fromkeys(counted, 0)
            for lines in groups:
                own, other = named(name)(lines), find(lines)
                if own and other and own is not other:
                    counts[KINDS[_judged(own, other, key, margins)]] += 1
            cells.append(" / ".join(map(str, counts.values())) if any(counts.values()) else "")
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text
