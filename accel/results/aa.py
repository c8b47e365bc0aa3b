"""A/A: the same recipe on other seeds, through the whole tool. What is told apart there is a false alarm.

The two sides share no sample, so the variance of their difference is the sum of theirs, which is what the difference of
independent jackknife replicates has. At 95 % one in twenty comparisons is told apart by chance.
"""

from __future__ import annotations

from accel.metrics.statistics import Estimate, paired
from accel.metrics.verdicts import LEVEL
from accel.results.columns import Column
from accel.results.comparison import APART, Comparison, Row, metric_of
from accel.results.text import interval, metric_name, plus_minus

Pair = tuple[Row, Row]


def again(study: Comparison) -> list[Pair]:
    """(row, the same recipe on other seeds), in the order of the rows."""
    twins = {row.label: row for row in study.done if row.role == "aa"}
    return [(row, twins[row.label]) for row in study.competing if row.label in twins]


def aa_difference(pair: Pair, key: str) -> Estimate | None:
    """The difference of one recipe on two sets of seeds; None where it has no such value, or of other N."""
    one, other = (row.value(key) for row in pair)
    return paired(one, other) if one and other and one.n == other.n else None


def aa_keys(study: Comparison) -> list[str]:
    """The values that are compared: all that have a verdict."""
    pairs = again(study)
    metric = metric_of(pairs[0][0].quality)
    there = {key for pair in pairs for row in pair for key in row.quality["values"]}
    return [key for key in dict.fromkeys([metric, *study.compared]) if key in there]


def false_alarms(study: Comparison) -> tuple[int, int]:
    """How many comparisons are told apart, and of how many."""
    keys = aa_keys(study)
    found = [aa_difference(pair, key) for pair in again(study) for key in keys]
    known = [difference for difference in found if difference is not None]
    return sum(difference.apart for difference in known), len(known)


def aa_text(study: Comparison) -> str:
    """What the section says first."""
    from scipy.stats import binom  # half a second, which other tables do not take

    alarms, count = false_alarms(study)
    most = int(binom.ppf(1 - LEVEL, count, LEVEL))
    return (
        f"Each recipe once more on as many samples of other seeds; both sides are the same, so what is told apart is a "
        f"false alarm: {alarms} of {count} comparisons ({LEVEL * count:.1f} expected at 95 %; were they independent, "
        f"at most {most} in 19 of 20 tables). Values of one recipe, and recipes on the same seeds, are not independent."
    )


def aa_columns(study: Comparison) -> list[Column]:
    """Columns of pairs (row, the same on other seeds)."""

    def shown(key: str) -> Column:
        def text(pair: Pair) -> str | None:
            difference = aa_difference(pair, key)
            if difference is None:
                return None
            written = plus_minus(difference, sign=True) if key == "distance" else interval(difference, sign=True)
            return written + ("" if difference.apart else f" {APART}")

        return Column(f"Δ{metric_name(key)}", text)

    return [Column("recipe", lambda pair: pair[0].label, "recipe"), *map(shown, aa_keys(study))]
