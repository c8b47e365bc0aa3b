"""A study as a Markdown page: how it was made, ranking, equal-cost controls, refused cells, notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.results.aa import aa_columns, aa_text, again
from accel.results.columns import Column, control_columns, grid, main_columns, recipe_column, speed_columns, timed
from accel.results.comparison import HOCHBERG, HOLM, PROMPTED, SIMILAR, TO_PLAIN, UNJUDGED, Comparison, seed_of
from accel.results.composition_table import composition_section
from accel.results.frame import torch_of
from accel.results.headline import sentences
from accel.results.students import students_section
from accel.results.text import POINTS, comma, device_text, devices_text, listed, metric_name, short_hash
from accel.results.timing_notes import timing_notes
from accel.results.unscored import unscored

CONTROLS = (
    "Each accelerated recipe against the plain sampler given the same cost. Δ = recipe − control, paired on common "
    "seeds: negative is better. Verdicts and marks as above; the family of the marks is this table's comparisons."
)

VERDICTS = (
    "Verdicts: *better* or *worse* when the interval of the difference excludes 0; *non-inferior* when its worse end "
    "stays inside the margin, *equivalent* when both ends do; else *undecided*, which is no evidence of equality. What "
    "has no margin (distance) is better, worse or undecided."
)


def markdown(study: Comparison) -> str:
    """The study as a page: how it was made, ranking, equal-cost controls, refused cells, notes."""
    page, several = [f"# {study.title}", head_text(study)], not study.side_by_side
    for group in study.groups:
        if len(study.groups) > 1:
            _, n, seed, metric, sha256, own = group
            of = f" of {own} samples" if own not in (n, None) else ""
            page.append(f"## {metric_name(metric)}{of}, N = {n}, seed {seed}, reference {short_hash(sha256) or 'none'}")
        page.append(grid(main_columns(study, group), study.members(group)))
    for device in study.devices if several else ():
        columns = [recipe_column(), *speed_columns(study, device)]
        page += [f"## Speed on {device_text(device)}", grid(columns, timed(study, device))]
    if study.controls():
        prompted = any(row.value(key) for row in study.done for key in PROMPTED)
        said = CONTROLS + " Of adherence and CLIP score positive is better." * prompted
        said += " Of a value with ↑ positive is better." * any(row.value(key) for row in study.done for key in SIMILAR)
        page += ["## Equal-cost controls", said, grid(control_columns(study), study.controls())]
    if section := composition_section(study):
        page += ["## Composition", section]
    if section := students_section(study):
        page += ["## Students", section]
    if pairs := again(study):
        page += ["## A/A: the same recipes on other seeds", aa_text(study), grid(aa_columns(study), pairs)]
    if said := sentences(study) if study.against else ():
        page += ["## Headline", "\n".join(f"* {sentence}" for sentence in said)]
    if refused := [row for row in study.rows if row.refused]:
        columns = [Column("recipe", lambda row: row.label), Column("reason", lambda row: row.refused)]
        page += ["## Refused or failed cells", grid(columns, refused)]
    return "\n\n".join([*page, "## Notes", "\n".join(f"* {note}" for note in notes_of(study))]) + "\n"


def head_text(study: Comparison) -> str:
    """How a study was made, in one sentence."""
    records = [row.quality for row in study.competing]
    made = [f"Suite {study.suite}"]
    scored = not unscored(study)
    if records and scored:
        made[0] += f", N = {listed(r['n'] for r in records)}, seed {listed(seed_of(r) for r in records)}"
    references = [r["reference"] for r in records if (r.get("reference") or {}).get("sha256")]
    if references:
        made.append(
            "reference " + listed(f"{r['name']}, N = {r['n']}, sha256 {short_hash(r['sha256'])}" for r in references)
        )
    texts = [devices_text(study.side_by_side)] if study.side_by_side else map(device_text, study.devices)
    made.append(f"timed on {listed(texts)}" if study.devices else "not timed")
    made += [f"instructions {listed(found)}"] if (found := _instructions(study)) else []
    torches = sorted({t for row in study.done for t in (torch_of(row.quality), torch_of(row.timing or {})) if t})
    made += [f"torch {listed(torches)}"] if torches else []
    counts = sorted({len(x["replicates"]) for r in records for x in r["values"].values()}) or [20]
    if scored:
        made.append(f"95 % intervals: {listed(counts)}-group delete-group jackknife{_rule(records)}")
    return "; ".join([*made, *([f"margins: {margins}"] if (margins := margins_text(study)) else [])]) + "."


def _rule(records: Sequence[dict[str, Any]]) -> str:
    """How the intervals of newer records differ from those of the first."""
    if not (newer := [record for record in records if record.get("epoch", 1) > 1]):
        return ""
    values = [value for record in newer for value in record["values"].values()]
    periods = sorted({period for value in values if (period := value.get("period", 1)) > 1})
    rules = [f"groups of whole periods of {listed(periods)}"] if periods else []
    rules += ["recall by half-samples"] if any("recall" in record["values"] for record in newer) else []
    mixed = ["older rows by older rules"] if len(newer) < len(records) else []
    return f" ({', '.join([*rules, *mixed])})" if rules or mixed else ""


def margins_text(study: Comparison) -> str:
    """The margins of the values that the baseline has, as text."""
    base, stated = study.baseline, []
    for key in sorted(base.quality["values"]) if base else ():
        if (margin := study.margin(key, base)) is not None:
            name = f"{metric_name(key)} "
            if key in POINTS:
                stated.append(f"{name}{margin * 100:g} point{'s' * (margin != 0.01)}")
            elif key.startswith("fid"):
                least = study.margins.fid_least
                at_least = f", at least {least:g}" if least else ""
                stated.append(f"{name}{margin:.3g} ({study.margins.fid * 100:g} % of the baseline's{at_least})")
            else:
                stated.append(f"{name}{margin:g}")
    return ", ".join(stated)


def _instructions(study: Comparison) -> list[str]:
    return sorted({", ".join(isa) for row in study.done if (isa := (row.timing or {}).get("isa"))})


def notes_of(study: Comparison) -> list[str]:
    """What has to be known to read the tables of a study, a sentence each."""
    names = ", ".join(metric_name(key) for key in study.gates)
    where = f" in that of these values in which most are: {names}" if len(study.gates) > 1 else ""
    notes = (without := unscored(study)) or [
        "Rank: 1 + the number of recipes that are better than it (the 95 % interval of their paired difference on "
        f"common seeds excludes 0){where}. `=`: shared."
    ]
    if study.marks:
        notes.append(VERDICTS)
    if study.marks and study.gates:
        notes.append(f"All values: the verdicts on {names} against the baseline; non-inferior means in each.")
    if study.marks:
        notes.append(
            f"Marks: of the {len(study.marks)} comparisons with the baseline (every value, in the CSV) those that "
            f"survive Holm ({HOLM}), or Benjamini-Hochberg only ({HOCHBERG}), at 5 %; p from the paired jackknife's t."
        )
    weights = {row.quality.get("weights", {}).get("setting quantised weights") for row in study.rows if row.quality}
    if kinds := sorted(weights - {None}):
        notes.append(f"The model's weights were quantised before they were loaded: {'; '.join(kinds)}.")
    if len(study.groups) > 1:
        notes.append(
            "Rows that differ in suite, N, seed, metric or reference are never ranked together: see the sections."
        )
    if any(group[3] and group[3].startswith("fid") for group in study.groups):
        names = listed(f"`{group[3]}`" for group in study.groups)
        notes.append(
            f"{names}: Fréchet distance in the feature space of that name; do not compare it with another FID."
        )
    counts = sorted({x.n for row in study.done if (x := row.value("distance"))})
    if counts:
        notes.append(
            "Distance: from the converged trajectory of the same seed (the exact solution where a suite has one), mean "
            f"over the first {listed(counts)} samples."
        )
    notes += _similarity_notes(study)
    what = {"reference": "the converged sampler", "floor": "scored against the reference like samples"}
    for row in study.done:
        if row.role in what:
            n, shipped = row.quality["n"], row.quality.get("shipped", 0)
            ready = f" (the images of {shipped} samples ship with accel)" if shipped else ""
            notes.append(f"{row.role.capitalize()} row: {row.label}, N = {n}, {what[row.role]}{ready}.")
    if study.baseline:
        notes.append(f"Baseline of Δ, MACs ÷ and speed-up: {study.baseline.label}.")
    notes += timing_notes(study)
    if simulated := [row.label for row in study.done if row.simulated]:
        notes.append(
            f"Simulated precision (rounded as in the real kernel, but not faster) is never timed: {comma(simulated)}."
        )
    served = {cell.label for cell, _ in study.controls()}
    if not without and (lonely := [row.label for row in study.done if row.accelerated and row.label not in served]):
        notes.append(f"Without an equal-cost control: {comma(lonely)}.")
    return notes


def _similarity_notes(study: Comparison) -> list[str]:
    there = {key: x for row in study.done for key in (*SIMILAR, *TO_PLAIN) if (x := row.value(key))}
    counts, notes = listed(sorted({x.n for x in there.values()})), []
    if paired := [metric_name(key) for key in SIMILAR if key in there and key not in UNJUDGED]:
        notes.append(
            f"{comma(paired)}: of the 8-bit pictures of the same seed, mean over the first {counts} samples: to the "
            "converged trajectory, as distance is, and where a heading ends in *to plain*, to the same recipe without "
            "cache, stitch, precision, skip and shortcut of guidance. ↑: better when higher, ↓: when lower; no margin."
        )
    if "sharpness" in there:
        notes.append(
            f"Sharpness: variance of the Laplacian of the luminance (0..255), mean over the first {counts} samples. It "
            "is no distance: lower than the baseline's means blurrier, and noise is sharp."
        )
    if "temporal" in there:
        notes.append(
            "Temporal difference: mean absolute difference of consecutive frames (pixels -1..1), mean over the videos. "
            "It is no quality: lower than the baseline's means calmer, and flicker is lively."
        )
    return notes
