"""What students and tiny decoders cost: the bill of their training, and after how many images it is paid."""

from __future__ import annotations

import math
from typing import Any

from accel.results.columns import ABSENT, Column, grid, recipe_column
from accel.results.comparison import Comparison, Row, group_of
from accel.results.text import significant

WORSE = "worse"
TEXT = (
    "Training of all stages together; its seconds are those that passed, whatever else the machine did, and a backward "
    "pass counts as two evaluations. "
    "Teacher images: so many images of the baseline take as many MACs as the training did. Break-even: the number of "
    "images from which training and sampling together take fewer MACs than sampling with the cheapest row that needs "
    "no training and is worse than the student in none of the values that a user would miss."
)
DECODED = " A decoder's bill is added; MACs of images are the denoiser's, so that a decoder alone breaks even in none."


def trained(study: Comparison) -> list[Row]:
    """The rows of a study whose records say what their student, or their decoder, cost."""
    return [row for row in study.competing if bill_of(row)]


def bill_of(row: Row) -> dict[str, Any]:
    """What the student and the decoder of a row cost together; `kind` says which they are. Empty without either."""
    if not (bills := {key: own for key in ("student", "decoder") if (own := row.quality.get(key))}):
        return {}
    kinds = [own.get("kind", key) for key, own in bills.items()]
    seen = [part for own in bills.values() for part in str(own.get("data", "")).split(", ") if part]
    added = {key: sum(own.get(key) or 0 for own in bills.values()) for key in ("seconds", "steps", "samples", "macs")}
    return added | {"kind": " + ".join(kinds), "data": ", ".join(dict.fromkeys(seen))}


def rival(study: Comparison, row: Row) -> Row | None:
    """The cheapest row without a student that is worse than `row` in no value that a user would miss; None without."""
    free = [
        other for other in study.competing
        if not bill_of(other) and group_of(other.quality) == group_of(row.quality)
    ]  # fmt: skip
    held = [other for other in free if WORSE not in study.verdicts(other, row).values()]
    return min(held, key=lambda other: other.cost("macs") or math.inf, default=None)


def break_even(bill: dict[str, Any], row: Row, other: Row | None) -> float | None:
    """Images n with C + n c = n c': C the training, c and c' of an image in MACs. None where nothing is saved."""
    saved = (other.cost("macs") or 0) - (row.cost("macs") or 0) if other else 0
    return math.ceil(bill["macs"] / saved) if saved > 0 else None


def students_section(study: Comparison) -> str:
    """The bills as a table, with how to read it; empty without students."""
    rows = trained(study)
    if not rows:
        return ""

    def bill(key: str) -> Any:
        return lambda row: _number(bill_of(row).get(key))

    def teacher_images(row: Row) -> str:
        own = study.baseline.cost("macs") if study.baseline else None
        return _number(bill_of(row)["macs"] / own) if own else ABSENT

    def even(row: Row) -> str:
        if not row.quality.get("student"):
            return ABSENT
        other = rival(study, row)
        found = break_even(bill_of(row), row, other)
        if found:
            return f"{_number(found)}, against {other.label}"
        return f"never: {other.label} takes as few MACs or fewer" if other else "no row is as good"

    columns = [
        recipe_column(),
        Column("kind", lambda row: bill_of(row)["kind"]),
        Column("training s", bill("seconds")),
        Column("steps", bill("steps")),
        Column("samples", bill("samples")),
        Column("saw", lambda row: bill_of(row)["data"]),
        Column("teacher images", teacher_images),
        Column("break-even images", even),
    ]
    text = TEXT + (DECODED if any(row.quality.get("decoder") for row in rows) else "")
    return f"{text}\n\n{grid(columns, rows)}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}" if value >= 100 else significant(value)
