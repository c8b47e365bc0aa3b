"""Intervals from balanced half-samples, for statistics that a jackknife misjudges.

A jackknife looks at the statistic where almost all samples are there. A share of points inside nearest-neighbour balls
changes there in jumps that depend on several samples at once: its delete-group values spread more than those of whole
sets do (Efron & Stein 1981: on the wide side whatever the statistic is). Balanced repeated replication (McCarthy 1969,
"Pseudo-replication: half samples") compares halves of the samples instead.

G groups are split into halves in G - 1 ways s_r, s_rg = 1 or -1: the rows of a Hadamard matrix of order G but the
constant one, so that each way halves the groups and each two ways are orthogonal. With d_r = T(half +) - T(half -)

    se^2 = 1 / (G - 1) sum_r d_r^2 / 4,    x_g - T_n = (1 / 2) sum_r s_rg d_r.

For a mean x_g is the mean of group g, and se is the jackknife's, exactly. For any statistic the x_g stand for the
groups, and T_n - (x_g - T_n) / (G - 1) for the value without group g, of the same se: an `Estimate` like any other.

A half is a sample of n / 2, so that d_r^2 / 2 is V(n / 2), without bias; that V(n) is half of it, as for a mean, is an
assumption. A share of M fixed points that are covered is another kind: however many the samples, whether a point is
covered depends on the few that are nearest to it, and V(n) does not fall below that of M such throws. With

    V(n) ~ 1 / n + c / M,    V(n) / V(n / 2) = (M + c n) / (2 M + c n)

(1 / 2 for n << M, 1 for n >> M) all x_g - T_n are sqrt(2 V(n) / V(n / 2)) times as large. c = 3 is measured, for balls
that reach the third neighbour: points near one another are covered together.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from accel.errors import ConfigError
from accel.metrics.statistics import Estimate, group_sizes

TOGETHER = 3  # c: as many points of the reference are covered together, as the spread over sets of samples says
ORDERS = (20, 12, 8, 4)  # q + 1 of primes q with q mod 4 = 3


def order(n: int, count: int = 20, period: int = 1) -> int:
    """The number of groups: the largest of ORDERS that `groups(n, count, period)` reaches. ConfigError below 4."""
    reached = len(group_sizes(n, count, period))
    if reached < ORDERS[-1]:
        raise ConfigError(f"found {reached} groups of {n} samples, period {period}, for half-samples; needed: at least "
                          f"{ORDERS[-1]}.")  # fmt: skip
    return next(g for g in ORDERS if g <= reached)


@lru_cache(maxsize=len(ORDERS))
def splits(count: int) -> np.ndarray:
    """The balanced splits s (G - 1, G) of G groups, 1 and -1: s s^T = G I, each row sums to 0 (Paley 1933).

    With q = G - 1 prime and q mod 4 = 3: s_rg = 1 if g - r is a square mod q, -1 if not or if g = r; 1 for g = q.
    """
    if count not in ORDERS:
        raise ConfigError(f"half-samples of {count} groups; allowed: {', '.join(map(str, ORDERS))}.")
    q = count - 1
    squares = {i * i % q for i in range(1, q)}
    return np.array([[1 if (g - r) % q in squares else -1 for g in range(q)] + [1] for r in range(q)])


def widening(n: int, points: int) -> float:
    """sqrt(2 V(n) / V(n / 2)), 1 to sqrt(2): for a share of so many fixed points that n samples cover."""
    return math.sqrt(2 * (points + TOGETHER * n) / (2 * points + TOGETHER * n))


def halves_estimate(value: float, halves: np.ndarray, n: int, period: int = 1, points: int | None = None) -> Estimate:
    """Estimate from T_n and T(half +), T(half -) of each row of `splits(G)`, shape (G - 1, 2); `corrected` is T_n.
    `points`: of how many fixed points T is the share that is covered (None: V(n) falls as that of a mean does).

    Groups of `groups(n, G, period)` need not be equal. With M the samples of a half, and T(M) = T_n - b log(n / M) what
    a half of this size has on average (b is fitted; 0 for a mean), D_r = M+ (T+ - T(M+)) - M- (T- - T(M-)) and
    m_g (x_g - T_n) = (1 / G) sum_r s_rg D_r: the formulas of the module's head where groups are equal, and Busing's
    jackknife for a mean where they are not.
    """
    halves = np.asarray(halves, dtype=np.float64)
    split, sizes = splits(len(halves) + 1), group_sizes(n, len(halves) + 1, period)
    own = np.stack([(split > 0) @ sizes, (split < 0) @ sizes], axis=1)
    lost = np.log(n / own)
    slope = np.sum(own * (value - halves)) / np.sum(own * lost)
    difference = (own * (halves - value + slope * lost)) @ [1, -1]
    shift = split.T @ difference / len(sizes) / sizes
    found = Estimate.from_replicates(value, value - shift / (n / sizes - 1), n, period)
    return found if points is None else widened(found, points)


def widened(estimate: Estimate, points: int) -> Estimate:
    """An estimate of halves whose V(n) falls as a mean's, as that of a share of so many points."""
    by, value = widening(estimate.n, points), estimate.value
    replicates = [value + by * (own - value) for own in estimate.replicates]
    return Estimate.from_replicates(value, replicates, estimate.n, estimate.period)
