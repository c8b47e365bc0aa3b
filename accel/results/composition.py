"""Composition: what a combined recipe does beside what its parts, each alone, promise.

The parts are rows of the same study at the recipe's own sampler, steps and grid (`accel.core.recipe.Recipe.parts`): P
the plain recipe, A_1 .. A_k with one accelerating axis each, C with all of them. Costs multiply, quality adds:

    MACs      predicted prod_k m(A_k) / m(P),        measured m(C) / m(P),    interaction measured / predicted
    speed-up  predicted prod_k s(A_k) / s(P),        measured s(C) / s(P),    interaction measured / predicted
    a value   predicted sum_k (v(A_k) - v(P)),       measured v(C) - v(P),    interaction measured - predicted

Intervals: of speed-ups the half-widths of log s added in squares (`accel.results.headline.product`); of values, all on
common seeds, the jackknife of I_(g) = C_(g) - P_(g) - sum_k (A_k,(g) - P_(g)), which is linear in the replicates.
Additivity of effects and their interaction: Cox 1984, International Statistical Review 52.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from accel.metrics.statistics import Estimate, paired
from accel.metrics.verdicts import p_value
from accel.records import canonical
from accel.results.comparison import (
    ACCELERATING,
    APART,
    HIGHER,
    Comparison,
    Row,
    baseline_of,
    group_of,
    metric_of,
    no_speed,
    survivors,
)
from accel.results.headline import product, ratio

HELP, QUARREL = "help each other", "quarrel"
PARTS = ("guidance", *ACCELERATING)  # axes that a recipe may be composed of


@dataclass(frozen=True)
class Composition:
    """A combined row with its plain row and, by axis, the row of each part alone."""

    row: Row
    plain: Row
    parts: Mapping[str, Row]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.parts)


class Interaction(NamedTuple):
    """What the parts promise, what the whole does, and by how much the latter differs: a ratio, or a difference."""

    predicted: Any
    measured: Any
    beyond: Any


def compositions(study: Comparison) -> list[Composition]:
    """The combined rows whose parts are all there, in the order of the study."""
    rows = {_key(row): row for row in reversed(study.competing)}
    exact = {_converged(row): _described(row, "guidance") for row in study.competing if _is_cfg(row)}
    found = []
    for row in study.competing:
        plain = dict.fromkeys(ACCELERATING) | {"guidance": exact.get(_converged(row), _described(row, "guidance"))}
        own = {axis: _described(row, axis) for axis in PARTS}
        axes = [axis for axis in PARTS if own[axis] != plain[axis]]
        if len(axes) >= 2:
            parts = {axis: rows.get(_key(row, plain | {axis: own[axis]})) for axis in axes}
            base = rows.get(_key(row, plain))
            if base and all(parts.values()):
                found.append(Composition(row, base, parts))
    return found


def macs(own: Composition) -> Interaction | None:
    """MACs over the plain recipe's; None where some were not counted."""
    costs = [row.cost("macs") for row in (own.plain, own.row, *own.parts.values())]
    if not all(costs):
        return None
    plain, whole, *parts = costs
    predicted = math.prod(part / plain for part in parts)
    return Interaction(predicted, whole / plain, whole / plain / predicted)


def speed(study: Comparison, own: Composition, device: tuple) -> Interaction | None:
    """Speed-ups over the plain recipe on `device`, a dict of value, lo and hi each; None where a row was not timed
    there, or against another baseline."""
    timings = [study.timing(row, device) for row in (own.row, own.plain, *own.parts.values())]
    if not all(timings) or not _of_one_baseline(timings):
        return None
    whole, plain, *parts = timings
    each = [(part, 1) for part in parts]
    inverse = [(part, -1) for part in parts]
    return Interaction(
        product(*each, (plain, -len(parts))),
        ratio(whole, plain),
        product((whole, 1), (plain, len(parts) - 1), *inverse),
    )


def speed_word(study: Comparison, own: Composition, device: tuple) -> str | None:
    """Whether the parts are faster together than they promise. No evidence is what reaches 1, or what a row shows
    against itself (its A/A floor)."""
    if (found := speed(study, own, device)) is None:
        return None
    timings = [study.timing(row, device) for row in (own.row, own.plain, *own.parts.values())]
    if any(no_speed(timing | {"speedup": found.beyond}) for timing in timings):
        return APART
    return HELP if found.beyond["value"] > 1 else QUARREL


def quality(study: Comparison, own: Composition, key: str) -> Interaction | None:
    """Paired differences of a value to the plain recipe's, an Estimate each; None where a row lacks it."""
    whole = study.delta(own.row, own.plain, key)
    parts = [study.delta(part, own.plain, key) for part in own.parts.values()]
    if whole is None or None in parts or any(part.design != whole.design for part in parts):
        return None
    value, replicates = sum(part.value for part in parts), zip(*(part.replicates for part in parts), strict=True)
    predicted = Estimate.from_replicates(value, [sum(each) for each in replicates], whole.n, whole.period)
    return Interaction(predicted, whole, paired(whole, predicted))


def quality_word(found: Interaction, key: str) -> str:
    """Whether a value is better than the parts promise, or worse, if that can be told."""
    if not found.beyond.apart:
        return APART
    return HELP if (found.beyond.value > 0) == (key in HIGHER) else QUARREL


def values_of(study: Comparison, found: Sequence[Composition]) -> list[str]:
    """The values whose interaction is shown: the metric, what a user would miss, and distance."""
    keys = dict.fromkeys([*(metric_of(own.row.quality) for own in found), *study.gates, "distance"])
    return [key for key in keys if key and any(quality(study, each, key) for each in found)]


def marks(found: Sequence[tuple[Comparison, Composition]]) -> dict[tuple, str]:
    """What survives of the interactions of one table, all values: by `mark_key`."""
    p = {}
    for study, own in found:
        for key in values_of(study, [own]):
            p[mark_key(own, key)] = p_value(quality(study, own, key).beyond)
    return survivors(p)


def mark_key(own: Composition, key: str) -> tuple:
    """The key of an interaction among marks: the records that it is made of, and the value."""
    return own.row.quality["id"], own.plain.quality["id"], *(r.quality["id"] for r in own.parts.values()), key


def _described(row: Row, axis: str) -> Any:
    return (row.quality.get("recipe") or {}).get(axis)


def _key(row: Row, changed: Mapping[str, Any] | None = None) -> tuple:
    """What tells rows apart here: all that makes them comparable, and the recipe, with some axes changed."""
    described = {axis: _described(row, axis) for axis in ("sampler", "grid", *PARTS)}
    return group_of(row.quality), canonical(described | dict(changed or {}))


def _converged(row: Row) -> str:
    # Rows of records from before it was kept are held against nothing but themselves.
    return canonical(row.quality.get("converged") or row.quality["id"])


def _is_cfg(row: Row) -> bool:
    """Whether it is under plain classifier-free guidance: shortcuts of it are held against the same trajectory."""
    guidance = _described(row, "guidance") or {}
    return guidance.get("type") == "CFG" and "package" not in guidance


def _of_one_baseline(timings: Sequence[Mapping[str, Any]]) -> bool:
    return any(len({of(timing) for timing in timings}) == 1 for of in (baseline_of, lambda t: t.get("baseline")))
