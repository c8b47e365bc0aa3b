"""The front of a recipe search: what the search thought of each recipe, and what fresh seeds say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.files import write_atomic
from accel.grammar import command
from accel.metrics.verdicts import NON_INFERIOR, ceil_to, losses, needed_n
from accel.records import Results
from accel.results.columns import ALL, all_values
from accel.results.comparison import (
    APART,
    HIGHER,
    HOCHBERG,
    HOLM,
    PROMPTED,
    Comparison,
    Row,
    mark_of,
    metric_of,
    no_speed,
    searched,
)
from accel.results.markdown import margins_text
from accel.results.text import interval, metric_name, plus_minus, significant

HEAD = """# {title}: the front

Found by {optimiser} in {tried} recipes ({refused} combinations more were refused by the methods' checks or the limit),
{nfe} network evaluations and {minutes:.1f} minutes. `search`: {what} on the search's own seeds, the best of many.
What follows is of {n} samples of seed {seed}, which the search has not seen, with 95 % intervals: compare orders, and
each value with the baseline's in its own column. Δ: paired difference to the baseline {baseline}, with its verdict.
Margins: {margins}.{rates}
Marks: what survives Holm ({holm}), or Benjamini-Hochberg only ({bh}), among all comparisons with the baseline in
[{id}.md]({id}.md), which says how to read them.

| recipe | {cost} / image | search | {columns} | {all} | speed-up [95 %] |
|:---|---:|---:|{rule}---:|---:|
"""


def write_front(results: Results, found: dict[str, Any]) -> list[Path]:
    """Write tables/<study>_front.md."""
    search, study = results.load("search", found["search"]), Comparison.load(results, found["id"])
    rows, baseline, kind = {row.quality["id"]: row for row in study.done}, study.baseline, search["cost_of"]
    shown = [metric_of(baseline.quality), *[key for key in PROMPTED if baseline.value(key)][:1]]
    names = [PROMPTED[key][0] if key in PROMPTED else metric_name(key) for key in shown]
    text = HEAD.format(
        title=found["title"], optimiser=search["optimiser"]["label"], tried=search["tried"], refused=search["refused"],
        nfe=f"{search['cost']['nfe']:,}", minutes=search["cost"]["seconds"] / 60, n=found["n"], seed=found["seed"],
        what=_what(search), baseline=baseline.label, cost=UNITS[kind][1], rule="---:|---:|" * len(names),
        columns=" | Δ | ".join(names) + " | Δ", id=found["id"], all=ALL, margins=margins_text(study) or "none",
        holm=HOLM, bh=HOCHBERG, rates=_rates(search),
    )  # fmt: skip
    price = _priced(baseline.cost(kind), kind) if baseline.cost(kind) is not None else ""
    own = [cell for key in shown for cell in _shown(study, baseline, key)]
    score = significant(searched(search, search["reference"]))
    lines = [_line(f"**{baseline.label}** (baseline)", price, score, *own, "", "1")]
    chosen = recommended(study, [*found["front"], *found["alone"]])
    alone = [entry for entry in found["alone"] if entry is chosen]
    for entry in [*found["front"], *alone]:
        row, timing = rows[entry["quality"]], results.load("timing", entry["timing"]) if entry["timing"] else None
        speed = "" if timing is None else interval(timing["speedup"], unit="×") + f" {APART}" * no_speed(timing)
        name = f"**{entry['label']}** (recommended)" if entry is chosen else entry["label"]
        score = significant(searched(search, entry["search"])) if "search" in entry else "a choice alone"
        cells = [cell for key in shown for cell in _shown(study, row, key)]
        lines.append(_line(name, _priced(entry["cost"], kind), score, *cells, all_values(study, row) or "", speed))
    text += "\n".join(lines) + f"\n\n{_advice(study, found, chosen)}\n"
    path = results.root / "tables" / f"{found['id']}_front.md"
    write_atomic(path, text.encode())
    return [path]


def recommended(study: Comparison, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The cheapest of the validated recipes that is non-inferior to the baseline in each value that a user would miss;
    None where there is none, or no such value."""
    rows = {row.quality["id"]: row for row in study.done}
    holding = [entry for entry in entries if entry["cost"] is not None and holds(study, rows[entry["quality"]])]
    return min(holding, key=lambda entry: entry["cost"], default=None)


def holds(study: Comparison, row: Row) -> bool:
    """Whether a recipe is non-inferior to the baseline in each value that a user would miss."""
    verdicts = study.verdicts(row)
    return bool(verdicts) and all(word in NON_INFERIOR for word in verdicts.values())


def _advice(study: Comparison, found: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> str:
    """What is recommended and how to run it, or why nothing is."""
    names = ", ".join(map(metric_name, study.gates))
    if chosen:
        rule = (
            "the cheapest of all that was validated, the choices alone too, that is non-inferior to the baseline in "
            f"each of {names}"
        )
        plain = _plain_below(study, chosen)
        more = f" The plain sampler {plain.label} is so, too, and costs less: prefer it." if plain else ""
        return f"Recommended: {chosen['label']}, {rule}.{more}\n\n    {_command(found, chosen)}"
    rows = {row.quality["id"]: row for row in study.done}
    entries = {entry["quality"]: entry for entry in [*found["alone"], *found["front"]]}
    metric = metric_of(study.baseline.quality)
    if not study.gates:
        nearest = min(found["front"], key=lambda entry: rows[entry["quality"]].value(metric).value)
        return (
            f"Nothing is recommended, as no value of this suite has a margin. The best of the front in "
            f"{metric_name(metric)}: {nearest['label']}.\n\n    {_command(found, nearest)}"
        )
    words = [study.verdicts(rows[key]).values() for key in entries]
    worse = sum("worse" in own for own in words)
    losses = {key: ends for key in entries if (ends := worst_end(study, rows[key])) is not None}
    text = (
        f"Nothing is recommended: at N = {found['n']} none of the {len(entries)} recipes that were validated, the "
        f"choices alone too, is non-inferior to the baseline in each of {names}; {worse} are worse in at least one, "
        f"and {len(entries) - worse} undecided."
    )
    if losses:
        key = min(losses, key=losses.get)
        nearest, row = entries[key], rows[key]
        text += f" Nearest to being so is {nearest['label']}: {not_held(study, row)}.\n\n    {_command(found, nearest)}"
    return text


def _plain_below(study: Comparison, chosen: Mapping[str, Any]) -> Row | None:
    """The cheapest plain sampler of the study's controls that holds at fewer MACs than what was chosen."""
    most = next(row for row in study.done if row.quality["id"] == chosen["quality"]).cost("macs")
    rows = [row for row in study.done if row.role in ("control", "plain") and (row.cost("macs") or most) < most]
    return min((row for row in rows if holds(study, row)), key=lambda row: row.cost("macs"), default=None)


def worst_end(study: Comparison, row: Row) -> float | None:
    """The largest loss that the intervals leave open in any value that a user would miss, in margins."""
    ends = []
    for key in study.verdicts(row):
        if (delta := study.delta(row, study.baseline, key)) is None:
            return None
        ends.append(losses(delta, key in HIGHER)[1] / max(study.margin(key, study.baseline), 1e-9))
    return max(ends, default=None)


def not_held(study: Comparison, row: Row) -> str:
    """Each value in which a recipe is not non-inferior: verdict, difference, margin and the N that would tell."""
    said = []
    for key, word in study.verdicts(row).items():
        if word not in NON_INFERIOR:
            delta, margin = study.delta(row, study.baseline, key), study.margin(key, study.baseline)
            n = ceil_to(needed_n(delta.se, delta.n, margin, len(delta.replicates)))
            shown = f"if nothing is lost, about N = {n:,} would show it" if margin else "which no N will show"
            said.append(f"{word} in {metric_name(key)} (Δ {interval(delta, sign=True)}, margin {margin:.3g}; {shown})")
    return ", ".join(said)


def _command(found: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    return command([*found["suite_overrides"], *entry["overrides"]])


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _what(search: dict[str, Any]) -> str:
    settings = search["settings"]
    n = settings["halving"]["first"] * 2 ** settings["halving"]["doublings"]
    to = " to held-out images" if settings["metric"] == "fid" else ""
    return f"{settings['metric'].replace('_', ' ')} of {n} samples{to}"


def _shown(study: Comparison, row: Row, key: str) -> list[str]:
    """A value and its difference to the baseline's with its verdict, as text."""
    value, scale = row.value(key), PROMPTED[key][1] if key in PROMPTED else None
    text = interval(value) if scale is None else plus_minus(value, scale)
    if row is study.baseline:
        return [text, ""]
    delta, mark = study.delta(row, study.baseline, key), study.marks.get(mark_of(row, study.baseline, key), "")
    apart = interval(delta, sign=True) if scale is None else plus_minus(delta, scale, sign=True)
    return [text, f"{apart} {study.verdict(row, study.baseline, key)}{mark}"]


# Cost: what it is divided by, and the unit then.
UNITS = {
    "macs": (1e6, "MMACs"),
    "nfe": (1, "NFE"),
    "model_bytes": (1e6, "MB"),
    "peak_bytes": (1e6, "MB"),
    "ms": (1, "ms"),
}


def _rates(search: Mapping[str, Any]) -> str:
    """How MACs were weighed, where they were."""
    told = ", ".join(f"{name} {rate:g}" for name, rate in search.get("rates", {}).items())
    return f" MACs are weighed by what one takes in each precision, as measured before the search: {told}." * bool(told)


def _priced(cost: float, key: str) -> str:
    return significant(cost / UNITS[key][0])
