"""Columns of a study's tables, each a heading and the text of a row, for Markdown and the terminal alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from accel.core.amdahl import DENOISER, STAGES, bound
from accel.metrics.verdicts import NON_INFERIOR, UNDECIDED
from accel.results.comparison import (
    APART,
    COMPETES,
    PROMPTED,
    SIMILAR,
    TO_PLAIN,
    UNKNOWN,
    Comparison,
    Row,
    mark_of,
    no_speed,
    seed_of,
)
from accel.results.text import interval, macs_unit, metric_name, plus_minus, point, significant

ALL = "all values"
ABSENT = "–"
ROLE_NAMES = {"plain": "best plain sampler"}


class Column(NamedTuple):
    """A heading and the text of a row; on a terminal `brief`, and `short` if the text is too long (None: not shown)."""

    name: str
    text: Callable[[Any], str | None]
    brief: str | None = None
    short: Callable[[Any], str | None] | None = None


def main_columns(study: Comparison, group: tuple) -> list[Column]:
    """The main table, without the columns that no row fills."""
    rows, metric = study.members(group), group[3]
    scale, unit = macs_unit(study)
    name = metric_name(metric)

    def value(key: str | None, text: Callable) -> Callable:
        return lambda row: text(x) if (x := row.value(key)) else None

    def cost(key: str, scale: float = 1) -> Callable:
        return lambda row: significant(row.cost(key) / scale) if row.cost(key) else None

    def place(row: Row) -> str | None:
        return str(study.ranks.get(row.quality["id"], "")) if row.role in COMPETES else None

    columns = [
        Column("rank", place, "rank"),
        recipe_column(group),
        Column(f"{name} [95 %]", value(metric, interval), name, value(metric, plus_minus)),
        *((_change(study, metric), _verdict(study, metric)) if metric else ()),
        Column("accuracy %", value("accuracy", lambda x: plus_minus(x, 100))),
        *(
            column
            for key, (name, factor) in PROMPTED.items()
            for column in (
                Column(name, value(key, lambda x, s=factor: plus_minus(x, s))),
                _prompted_change(name, lambda row, k=key: (row, study.baseline, k), study, study.marks, factor),
            )
        ),
        Column("exact %", value("exact", lambda x: plus_minus(x, 100))),
        Column("Inception score", value("inception_score", interval)),
        Column("distance to converged", value("distance" if metric != "distance" else None, plus_minus)),
        *(Column(name, value(key, plus_minus)) for key, name in (SIMILAR | TO_PLAIN).items()),
        Column("nearest training image", value("nearest", plus_minus)),
        Column("FID to held-out images", value("held_out_fid", interval)),
        Column("NFE", lambda row: None if row.cost("nfe") is None else f"{row.cost('nfe'):.4g}", "NFE"),
        Column(f"MACs/image ({unit})", cost("macs", scale)),
        Column("MACs ÷ baseline", lambda row: _ratio(study.macs_ratio(row)), "MACs ÷"),
        *(
            column
            for i, device in enumerate(study.side_by_side)
            for column in speed_columns(study, device, len(study.side_by_side) > 1, brief=i == 0)
        ),
        *(stage_columns(study, study.side_by_side[0]) if study.side_by_side else ()),
        Column("bit operations ÷ float", _bits),
        Column("weights MB", cost("model_bytes", 1e6)),
        Column("peak MB", cost("peak_bytes", 1e6)),
        Column("GPU peak MB", cost("vram_bytes", 1e6)),
        Column("cache MB", cost("cache_bytes", 1e6)),
        Column("reused %", lambda row: None if row.cost("hits") is None else f"{100 * row.cost('hits'):.0f}"),
        Column("set-up s", lambda row: significant(row.cost("setup_s"), 2) if row.cost("setup_s") else None),
    ]
    return [
        column for column in columns if any(map(column.text, rows)) or (column.short and any(map(column.short, rows)))
    ]


def _bits(row: Row) -> str | None:
    # In floating point each multiply-accumulate is 32 x 32 of them.
    bits = row.cost("bit_operations")
    return _ratio(bits / (row.cost("macs") * 32**2)) if bits else None


def recipe_column(group: tuple | None = None) -> Column:
    """The recipe's label, with its role and what of it differs from the group."""

    def text(row: Row, marked: bool = True) -> str:
        if row.role == "cell":
            return row.label
        mark = {"baseline": "**", "control": ""}.get(row.role, "*") if marked else ""
        notes = [ROLE_NAMES.get(row.role, row.role)]
        if group and row.quality["n"] != group[1]:
            notes.append(f"N = {row.quality['n']}")
        if group and seed_of(row.quality) != group[2] and row.role != "floor":
            notes.append(f"seed {seed_of(row.quality)}")
        return f"{mark}{row.label}{mark} ({', '.join(notes)})"

    return Column("recipe", text, "recipe", lambda row: text(row, False))


def speed_columns(study: Comparison, device: tuple, named: bool = False, brief: bool = True) -> list[Column]:
    """Time and speed-up as measured on `device`. `named`: with the batch in the headings, where several stand side by
    side; on a terminal the time only with `brief`."""

    def ms(row: Row) -> str | None:
        timing = study.timing(row, device)
        return "simulated" if row.simulated else timing and point(timing["ms_per_image"])

    def speedup(row: Row, write: Callable = interval) -> str | None:
        timing = study.timing(row, device)
        if timing is None or row is study.baseline:
            return timing and "1"
        text = write(timing["speedup"], unit="×")
        if write is point:
            return f"({text})" if no_speed(timing) else text
        return f"{text} {APART}" if no_speed(timing) else text

    name, at, short = "speed-up", f", batch {device[2]}" * named, f"@{device[2]}" * named
    return [
        Column(f"ms/image{at}", ms, f"ms{short}" if brief else None),
        Column(f"{name}{at} [95 %]", speedup, name + short, lambda row: speedup(row, point)),
    ]


def stage_columns(study: Comparison, device: tuple) -> list[Column]:
    """What part of a row's time is not its denoiser's, and what speed-up over the baseline that leaves at most."""

    def stages(row: Row) -> dict[str, float]:
        found = (study.timing(row, device) or {}).get("stages") or {}
        return {stage: found[stage] for stage in STAGES if stage in found}

    def outside(row: Row) -> str | None:
        if not (found := stages(row)):
            return None
        whole = sum(found.values()) / 100
        parts = {stage: ms / whole for stage, ms in found.items() if stage != DENOISER}
        told = ", ".join(f"{stage} {share:.1f}" for stage, share in parts.items())
        return f"{sum(parts.values()):.1f} ({told})"

    def most(row: Row) -> str | None:
        base, found = stages(study.baseline) if study.baseline else {}, stages(row)
        if not base or not found:
            return None
        return f"{bound(found) * sum(base.values()) / sum(found.values()):.3g}×"

    return [Column("outside the denoiser %", outside), Column("bound", most)]


def timed(study: Comparison, device: tuple) -> list[Row]:
    """Rows that were timed on `device`, the fastest first."""
    timed = {id(row): x["ms_per_image"]["value"] for row in study.competing if (x := study.timing(row, device))}
    return sorted((row for row in study.competing if id(row) in timed), key=lambda row: timed[id(row)])


def control_columns(study: Comparison) -> list[Column]:
    """Columns of pairs (cell, equal-cost control), without those that no pair fills."""
    pairs = study.controls()
    scale, unit = macs_unit(study)

    def macs(pair: tuple[Row, Row]) -> str | None:
        costs = [row.cost("macs") for row in pair]
        return None if None in costs else " vs ".join(significant(x / scale) for x in costs)

    columns = [
        Column("recipe", lambda pair: pair[0].label, "recipe"),
        Column("control", lambda pair: pair[1].label, "control"),
        Column("at equal", lambda pair: equal_text(pair[1].equal), "at equal"),
        Column(f"MACs/image ({unit})", macs),
    ]
    for key in dict.fromkeys([study.groups[0][3], "distance"]):
        name = metric_name(key)

        def judge(pair: tuple[Row, Row], key: str = key) -> str | None:
            if not any(row.value(key) for row in pair):
                return None
            return study.verdict(*pair, key) + study.control_marks.get(mark_of(*pair, key), "")

        columns += [
            Column(name, lambda pair, key=key: interval(x) if (x := pair[0].value(key)) else None),
            Column(f"{name}, control", lambda pair, key=key: interval(x) if (x := pair[1].value(key)) else None),
            Column(f"Δ{name}", lambda pair, key=key: interval(x, True) if (x := study.delta(*pair, key)) else None),
            Column(f"{name} verdict", judge, name),
        ]
    columns += [
        _prompted_change(name, lambda pair, k=key: (*pair, k), study, study.control_marks, factor)
        for key, (name, factor) in (PROMPTED | {key: (name, 1) for key, name in SIMILAR.items()}).items()
    ]
    columns.append(Column(ALL, lambda pair: all_values(study, *pair)))
    return [column for column in columns if any(column.text(pair) for pair in pairs)]


def equal_text(equal: Sequence[str]) -> str:
    """What a control costs as much of: `MACs`, `time`, or both."""
    return " and ".join(equal)


def _change(study: Comparison, metric: str | None) -> Column:
    """The difference to the baseline with its verdict; on a terminal the former only."""
    base = study.baseline

    def text(row: Row) -> str | None:
        if row is base:
            return "baseline"
        if (delta := study.delta(row, base, metric)) is None:
            return None
        mark = study.marks.get(mark_of(row, base, metric), "")
        return f"{interval(delta, sign=True)} {study.verdict(row, base, metric)}{mark}"

    def brief(row: Row) -> str | None:
        return point(delta, sign=True) if row is not base and (delta := study.delta(row, base, metric)) else None

    return Column(f"Δ{metric_name(metric)} vs baseline", text, "Δ", brief)


def all_values(study: Comparison, row: Row, other: Row | None = None) -> str | None:
    """Whether a recipe is non-inferior in every value that a user would miss, or in which it is not and why; against
    `other`, or else the baseline."""
    verdicts = study.verdicts(row, other)
    lost = {key: word for key, word in verdicts.items() if word not in NON_INFERIOR}
    if not lost:
        return NON_INFERIOR[3] if verdicts else None
    order = ("worse", UNDECIDED, UNKNOWN)
    own = [(word, [metric_name(k) for k, w in lost.items() if w == word]) for word in order]
    return "; ".join(f"{word} in {', '.join(names)}" for word, names in own if names)


def _verdict(study: Comparison, metric: str | None) -> Column:
    return Column(ALL, lambda row: all_values(study, row), "verdict", lambda row: _worst(study, row, metric))


def _worst(study: Comparison, row: Row, metric: str | None) -> str | None:
    """The worst verdict among all values that a user would miss; of the metric, where there is no such value."""
    if row is study.baseline:
        return "baseline"
    words = [*study.verdicts(row).values()]
    if not words:
        return study.verdict(row, study.baseline, metric) if study.delta(row, study.baseline, metric) else None
    return next((word for word in ("worse", UNKNOWN, UNDECIDED) if word in words), NON_INFERIOR[3])


def _prompted_change(
    name: str, of: Callable[[Any], tuple], study: Comparison, marks: Mapping[tuple, str], scale: float
) -> Column:
    def text(item: Any) -> str | None:
        row, other, key = of(item)
        if row is other or (delta := study.delta(row, other, key)) is None:
            return None
        mark = marks.get(mark_of(row, other, key), "")
        return f"{plus_minus(delta, scale, sign=True)} {study.verdict(row, other, key)}{mark}"

    return Column(f"Δ{name}", text)


def _ratio(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}" if 0.1 <= ratio < 10 else significant(ratio)


def grid(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """A Markdown table of the columns, a line for each of `rows`."""
    left = ("recipe", "control", "reason", "parts", "of", "study")
    lines = [[c.name for c in columns], [":---" if c.name in left else "---:" for c in columns]]
    lines += [[(c.text(row) or ABSENT).replace("|", "\\|").replace("\n", " ") for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
