"""What is said of a study whose rows have cost and times alone (`Suite.unscored`)."""

from __future__ import annotations

from accel.results.comparison import Comparison


def unscored(study: Comparison) -> list[str]:
    """Why there are no scores, and what else is to be known of such rows; nothing where they are scored."""
    notes = [own for row in study.done if (own := row.quality.get("notes") or {}).get("unscored")]
    said = [warning for own in notes for warning in own.get("warnings", ())]
    return list(dict.fromkeys([*(f"No scores: {own['unscored']}." for own in notes), *said]))
