"""Intervals of medians of rounds that were timed, and of ratios of such medians.

A median's interval is between two order statistics, exact for any continuous distribution (David & Nagaraja, Order
Statistics, 3rd ed. 2003, section 7.1): of n independent values the number below the median is Binomial(n, 1/2), so

    P(x_(l) <= median <= x_(n+1-l)) = 1 - 2 P(B <= l - 1),  B ~ Binomial(n, 1/2).

The largest l with at least 95 % is taken. Fewer than six values have none: even their range covers the median with
1 - 2^(1-n) < 95 % only.
"""

from __future__ import annotations

import math

import numpy as np

COVERAGE = 0.95
LEAST = 6  # values that an interval of the median takes


def order_statistics(n: int, coverage: float = COVERAGE) -> tuple[int, float]:
    """(l, P): the interval from the l-th smallest to the l-th largest of n values covers their median with P.

    l is the largest with P >= coverage; 1, with a P below it, where there is none (n < 6 for 95 %).
    """
    tail, found = 0.5**n, (1, 1 - 2 * 0.5**n)  # tail: P(B <= l - 1)
    for place in range(2, n // 2 + 1):
        tail += math.comb(n, place - 1) * 0.5**n
        if 1 - 2 * tail < coverage:
            break
        found = place, 1 - 2 * tail
    return found


def median_interval(values: np.ndarray) -> dict[str, float]:
    """Median with its interval by order statistics: `value`, `lo`, `hi` in the unit of the values.

    values: (rounds,), or (rounds, k) with k values a round: these are not independent, so the median of each round
    counts as one value. Below six rounds there is no interval of 95 %: lo and hi are then the range, and `coverage`
    (absent otherwise) says with what probability it covers the median.
    """
    once = np.sort(np.median(np.reshape(values, (len(values), -1)), axis=1))
    place, coverage = order_statistics(len(once))
    found = {"value": float(np.median(once)), "lo": float(once[place - 1]), "hi": float(once[-place])}
    return found if coverage >= COVERAGE else found | {"coverage": coverage}


def half_width(values: np.ndarray) -> float:
    """Half the width of the median's interval over the median: how precisely it is known."""
    found = median_interval(values)
    return (found["hi"] - found["lo"]) / (2 * abs(found["value"])) if found["value"] else math.inf


def ratio_interval(one: np.ndarray, other: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Ratio of the medians of two series of rounds that were not interleaved, with its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = [np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1) for values in (one, other)]
    lo, hi = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return {"value": float(np.median(one) / np.median(other)), "lo": float(lo), "hi": float(hi)}
