"""How many samples the margins need, from the paired standard errors of the records that are there.

A recipe that loses nothing is called non-inferior with a probability of 80 % at
N = n ((t(0.975) + t(0.8)) se / margin)^2, se being its paired standard error against the baseline at n
(`accel.metrics.verdicts.needed_n`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from accel.errors import AccelError
from accel.metrics.verdicts import POWER, Margins, ceil_to, needed_n
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.text import metric_name

QUANTILES = (0.5, 0.9)  # shares of the comparisons seen


@dataclass(frozen=True)
class Need:
    """What one value needs: `n[i]` samples for the share QUANTILES[i] of the comparisons that were seen."""

    key: str
    seen: int
    n: tuple[float, ...]


def needs(results: Results, suite: str, margins: Margins, study: str | None = None) -> list[Need]:
    """What each value that a user would miss needs, of the records of `study` if it has any, else of all of its
    suite."""
    found: dict[str, list[float]] = {}
    for name in [study] if study in results.studies() else results.studies():
        try:
            if (results.load_study(name) or {}).get("suite") != suite:
                continue
            loaded = replace(Comparison.load(results, name), margins=margins)
        except AccelError:  # damaged: what computes will say so
            continue
        if loaded.baseline is None:
            continue
        for row in loaded.competing:
            for key in loaded.verdicts(row):
                if (delta := loaded.delta(row, loaded.baseline, key)) is not None and delta.se:
                    margin = loaded.margin(key, loaded.baseline)
                    found.setdefault(key, []).append(needed_n(delta.se, delta.n, margin, len(delta.replicates)))
    order = margins.gates(found)
    return [Need(key, len(found[key]), tuple(ceil_to(_quantile(found[key], q)) for q in QUANTILES)) for key in order]


def _quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q)) if all(map(math.isfinite, values)) else math.inf  # a margin of 0


def needs_text(results: Results, suite: str, margins: Margins, study: str | None = None) -> str:
    """`needs` as lines for a terminal."""
    found = needs(results, suite, margins, study)
    if not found:
        return (
            "N that the margins need: not known yet, as there is no record of this suite to take a standard error from."
        )
    most = QUANTILES[-1]
    lines = [
        f"N that the margins need (non-inferior with a probability of {POWER:.0%} if nothing is lost; from the paired "
        "standard errors seen so far, which fall as 1/sqrt(N); of FID with the margin at the N of those records):"
    ]
    lines += [
        f"  {metric_name(need.key)}: N = {need.n[0]:,} for half of the comparisons seen ({need.seen}), {need.n[1]:,} "
        f"for {most:.0%} of them"
        if math.isfinite(need.n[0])
        else f"  {metric_name(need.key)}: no N will do for a margin of 0"
        for need in found
    ]
    return "\n".join(lines)
