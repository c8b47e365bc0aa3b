"""`evaluation.n=auto`: how many samples decide a study, from the variance seen so far.

Looking again and again until a difference is told apart raises the rate of false alarms: four looks at 5 % are some
12 %. So the sample size follows Stein's two-stage rule (1945): the next N is that at which a recipe that loses nothing
would be called non-inferior with a probability of 80 %, a function of the paired standard errors of the open
comparisons, never of which side these are on. One look is left that Stein has not: a study in which all is decided ends
at the pilot, so a row of a longer one was looked at twice (some 8 %). What is still undecided then has a loss near its
margin, and stays undecided.
"""

from __future__ import annotations

from accel.metrics.verdicts import UNDECIDED, ceil_to, needed_n
from accel.results.comparison import Comparison, Row


def undecided(study: Comparison) -> list[tuple[Row, str]]:
    """(row, value) wherever the verdict against the baseline is open in a value that a user would miss."""
    rows = [row for row in study.competing if row is not study.baseline]
    return [(row, key) for row in rows for key, word in study.verdicts(row).items() if word == UNDECIDED]


def next_n(study: Comparison, n: int, most: int, step: int) -> tuple[int | None, str]:
    """The N, a multiple of `step` and at most `most`, that the open verdicts need (None where n is enough, or the cap),
    and that in words. n counts all samples of a row."""
    still, wanted = undecided(study), 0.0
    for row, key in still:
        delta, margin = study.delta(row, study.baseline, key), study.margin(key, study.baseline)
        wanted = max(wanted, needed_n(delta.se, delta.n, margin, len(delta.replicates)))
    rows = len({id(row) for row, _ in still})
    found = min(most, ceil_to(min(wanted, most), step))
    if found > n:
        return found, f"{rows} rows are undecided at N = {n:,}; going on to N = {found:,}."
    if not rows:
        return None, f"at N = {n:,} every row is decided."
    why = "their losses are near the margins" if wanted <= n else "at the cap"
    return None, f"at N = {n:,} {rows} rows stay undecided, {why}; all others are decided."
