"""The sentence that a study allows: the fastest recipe that loses nothing, against each of its baselines.

A recipe loses nothing if it is non-inferior in *each* value that a user would miss. The fastest of many such recipes
is a choice made on the records that are then quoted, so it must survive Holm's correction over all recipes that were
tried: p of a recipe is the largest of its one-sided p of non-inferiority, at half of 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accel.metrics.verdicts import LEVEL, holm, non_inferiority_p
from accel.results.comparison import HIGHER, Comparison, Row
from accel.results.text import comma, device_text, interval, metric_name

ROLES = {"baseline": "the baseline", "conventional": "the conventional sampler", "plain": "the best plain sampler"}


@dataclass(frozen=True)
class Headline:
    """Of the `tried` recipes that were timed, the fastest that is non-inferior to `other` in every value; `row` is None
    where none is. `lone`: how many more would be without Holm's correction."""

    role: str
    other: Row
    row: Row | None
    speedup: Mapping[str, float] | None
    tried: int
    lone: int


def headlines(study: Comparison) -> list[Headline]:
    """One for the baseline, and for each further plain recipe that the study is held against."""
    if not study.devices or study.baseline is None or not study.gates:
        return []
    others: dict[str, tuple[str, Row]] = {}
    for role in ("conventional", "plain", "baseline"):
        other = study.baseline if role == "baseline" else study.held_against(role)
        if other is not None:
            others.setdefault(other.quality["id"], (role, other))
    found = [_headline(study, role, other) for role, other in others.values()]
    return [one for one in found if one]


def sentences(study: Comparison) -> list[str]:
    """The headlines in words, each with what it rests on."""
    return [_sentence(study, one) for one in headlines(study)]


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Speed-up of one timing over another of the same baseline: `product` of one to 1 and other to -1."""
    return product((one, 1), (other, -1))


def product(*powers: tuple[Mapping[str, Any], int]) -> dict[str, float]:
    """Product of s^k over (timing, k), s the timings' speed-ups over one baseline: value, lo and hi.

    The half-widths of the intervals of k log s are added in squares, as each was timed in rounds of its own.
    """
    over = math.prod(timing["speedup"]["value"] ** k for timing, k in powers if k > 0)
    value = over / math.prod(timing["speedup"]["value"] ** -k for timing, k in powers if k < 0)
    down, up = [], []
    for timing, k in powers:
        s = timing["speedup"]
        ends = math.log(s["value"] / s["lo"]), math.log(s["hi"] / s["value"])
        below, above = ends if k > 0 else ends[::-1]
        down.append(abs(k) * below)
        up.append(abs(k) * above)
    return {"value": value, "lo": value * math.exp(-math.hypot(*down)), "hi": value * math.exp(math.hypot(*up))}


def _headline(study: Comparison, role: str, other: Row) -> Headline | None:
    device = study.devices[0]
    against = study.timing(other, device)
    timed = [row for row in study.competing if row is not other and study.timing(row, device)]
    tested = [(row, own) for row in timed if (own := _p(study, row, other)) is not None]
    if against is None or not tested:
        return None
    rows, p = map(list, zip(*tested, strict=True))
    alone = [row for row, own in zip(rows, p, strict=True) if own < LEVEL / 2]
    holding = [row for row, holds in zip(rows, holm(p, LEVEL / 2), strict=True) if holds]
    faster = {id(row): ratio(study.timing(row, device), against) for row in rows}
    best = max(holding, key=lambda row: faster[id(row)]["value"], default=None)
    return Headline(role, other, best, best and faster[id(best)], len(rows), len(alone) - len(holding))


def _p(study: Comparison, row: Row, other: Row) -> float | None:
    """The largest p of non-inferiority over the values that a user would miss; None where they are not comparable."""
    found = []
    for key in study.gates:
        delta, margin = study.delta(row, other, key), study.margin(key, other)
        if delta is None or margin is None:
            return None
        found.append(non_inferiority_p(delta, margin, key in HIGHER))
    return max(found, default=None)


def _sentence(study: Comparison, one: Headline) -> str:
    device = study.devices[0]
    values = comma(metric_name(key) for key in study.gates)
    against = f"{ROLES[one.role]} {one.other.label}"
    rests = f"N = {one.other.quality['n']}, {device_text(device)}, {one.tried} recipes, Holm"
    more = f" ({one.lone} more would be, each tested alone)" if one.lone else ""
    if one.row is None:
        return f"No recipe is shown to be non-inferior to {against} in each of {values}{more} ({rests})."
    if one.speedup["lo"] <= 1:
        return (
            f"No recipe that is non-inferior to {against} in each of {values} is faster: the fastest, {one.row.label}, "
            f"is {interval(one.speedup, unit='×')} as fast ({rests}){more}."
        )
    return (
        f"{one.row.label} is {interval(one.speedup, unit='×')} as fast as {against} and non-inferior to it in each of "
        f"{values} ({rests}){more}."
    )
