"""What a recommendation says: the recipe, two safer and two cheaper ones, and why each, of the study that validated
them.

Everything that was validated competes, plain samplers too: a combination is recommended only where nothing plain that
is as good costs less. What a recipe costs is its measured time where there is one, else its MACs times what one of them
takes in its precision, as it was measured before the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel.metrics.verdicts import losses
from accel.results.comparison import HIGHER, Comparison, Row, device_of, no_speed
from accel.results.recipe_search import holds, not_held, worst_end
from accel.results.text import interval, metric_name, significant

ROLES = ("cell", "control", "plain", "conventional")
MOST = 2  # alternatives of each kind


@dataclass(frozen=True)
class Answer:
    """`recommended`: the cheapest row that loses nothing that a user would miss; None where there is none. `safer` ones
    cost more and leave less loss open, `cheaper` ones cost less and are not shown to lose."""

    recommended: Row | None
    safer: Sequence[Row]
    cheaper: Sequence[Row]
    validated: int


def answer(study: Comparison, rates: Mapping[str, float] | None = None) -> Answer:
    """The answer that the rows of a study give; `rates`: what a MAC costs by the name of a precision (1, if it is not
    there)."""
    rows = [row for row in study.done if row.role in ROLES]
    prices = [
        (price, i) for i, row in enumerate(rows) if (price := _price(study, row, rates)) is not None and price < 1
    ]
    ordered = [rows[i] for _, i in sorted(prices)]
    holding = [row for row in ordered if holds(study, row)]
    best = holding[0] if holding else None
    left = {row.label: worst_end(study, row) for row in ordered}
    safer = [row for row in holding[1:] if left[row.label] < left[best.label]] if best else []
    below = ordered[: ordered.index(best)] if best else ordered
    open_ones = [row for row in below if "worse" not in study.verdicts(row).values() and left[row.label] is not None]
    cheaper = sorted(open_ones, key=lambda row: left[row.label])
    return Answer(best, safer[:MOST], cheaper[:MOST], len(rows))


def told(study: Comparison, found: Answer, search: dict[str, Any]) -> str:
    """The answer as text."""
    names, base = ", ".join(map(metric_name, study.gates)), study.baseline
    lines = [
        f"Tried: {search['tried']} recipes by {search['optimiser']['label']}, {search['cost']['nfe']:,} evaluations of "
        f"the denoiser ({search['refused']} combinations were refused by the methods' checks); {found.validated} were "
        f"validated on N = {base.quality['n']:,} of seed {base.quality['seed']}, which chose nothing, against "
        f"{base.label}."
    ]
    if found.recommended is None:
        lines.append(
            f"Nothing is recommended: no cheaper recipe is shown to be non-inferior to {base.label} in "
            f"{names or 'any value'}."
        )
    else:
        lines.append(f"Recommended: {found.recommended.label}")
        lines.append(f"  {_why(study, found.recommended, search.get('rates'))}")
    for heading, rows in (("Safer", found.safer), ("Cheaper", found.cheaper)):
        for row in rows:
            lines.append(f"{heading}: {row.label}")
            lines.append(f"  {_why(study, row, search.get('rates'))}")
    return "\n".join(lines)


def _price(study: Comparison, row: Row, rates: Mapping[str, float] | None = None) -> float | None:
    """What a recipe costs in that of the baseline: time, or MACs by their rates where no time was measured."""
    if timed := _timing(study, row):
        return 1 / timed["speedup"]["value"]
    ratio = study.macs_ratio(row)
    return None if ratio is None else ratio * _rate(row, rates)


def _rate(row: Row, rates: Mapping[str, float] | None) -> float:
    return rates.get(row.quality["axes"]["precision"], 1.0) if rates else 1.0


def _timing(study: Comparison, row: Row) -> dict[str, Any] | None:
    return study.timing(row, device_of(row.timing)) if row.timing else None


def _why(study: Comparison, row: Row, rates: Mapping[str, float] | None) -> str:
    said = []
    if timed := _timing(study, row):
        apart = ", not told apart from 1" if no_speed(timed) else ""
        said.append(f"{interval(timed['speedup'], unit='×')} as fast{apart}")
    if (ratio := study.macs_ratio(row)) is not None:
        rate = _rate(row, rates)
        each = f", each in {rate:g} of the time" if rate != 1 and not timed else ""
        said.append(f"{significant(100 * ratio)} % of the MACs{each}")
    if holds(study, row):
        gates = [f"{metric_name(key)} {_delta(study, row, key)}" for key in study.verdicts(row)]
        return f"{'; '.join(said)}; holds in {', '.join(gates)}."
    return f"{'; '.join(said)}; {not_held(study, row)}."


def _delta(study: Comparison, row: Row, key: str) -> str:
    delta, margin = study.delta(row, study.baseline, key), study.margin(key, study.baseline)
    _, most = losses(delta, key in HIGHER)
    return f"Δ {interval(delta, sign=True)} (a loss of at most {max(most, 0):.2g}, margin {margin:.2g})"
