"""Values with intervals: the delete-group jackknife, and paired comparison on common seeds.

Delete-group jackknife: Quenouille 1956; Efron & Tibshirani 1993, ch. 11; unequal group sizes: Busing, Meijer &
van der Leeden 1999. It is used instead of the bootstrap because FID is biased in N: resampling with replacement adds
that bias a second time and its percentile intervals then miss even the mean of the statistic.

Samples whose conditions repeat after `period` samples (sample i shows class i mod 10) are a stratified draw: whole
periods are the unit that is drawn again, so groups consist of them (Efron & Tibshirani 1993, sec. 8.3). A group that
cuts a period leaves out other classes than another group does, and calls that spread; no set of samples has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit  # scipy.stats, with its t.ppf of the same value, takes half a second to import

from accel.errors import ConfigError, check_int

CONFIDENCE = 0.95
MIN_N = 60  # samples of a study: three in each of twenty groups
LEAST_PERIODS = 6  # below it groups of whole periods are too few, and t(0.975) too large, to tell anything


def usable_period(n: int, period: int) -> int:
    """`period` where n samples hold LEAST_PERIODS whole ones, else 1, whose intervals are then wider than need be."""
    return period if n >= LEAST_PERIODS * period else 1


def groups(n: int, count: int = 20, period: int = 1) -> np.ndarray:
    """Group index of each of `n` samples: `count` contiguous groups of whole periods, as equal as these allow.

    B = floor(n / period) blocks b_i = min(floor(i / period), B - 1), so that a partial last period joins the last whole
    one; g_i = floor(b_i G / B), shape (n,), with G = min(count, B) groups. Contiguous, so that a group is a range of
    seeds, as a shard is. An n of whole periods is best: what a partial one shows counts as spread between groups.
    Raises ConfigError unless B >= 2: one group has no spread. (A metric may need more samples than that to be defined
    without a group; it checks this itself.)
    """
    check_int("count", count, 2)
    check_int("n", n, 1)
    check_int("period", period, 1)
    if (blocks := n // period) < 2:
        whole = "" if period == 1 else f", {blocks} whole periods of {period},"
        raise ConfigError(f"found {n} samples{whole} for jackknife groups; needed: at least {2 * period}.")
    block = np.minimum(np.arange(n) // period, blocks - 1)
    return block * min(count, blocks) // blocks


def group_sizes(n: int, count: int = 20, period: int = 1) -> np.ndarray:
    """Samples m_g in each of the contiguous groups of `groups`, shape (G,)."""
    return np.bincount(groups(n, count, period))


@dataclass(frozen=True)
class Estimate:
    """A statistic of `n` samples, its 95 % interval and the delete-group values that the interval comes from.

    `value` is the statistic T_n of the whole sample, and [lo, hi] = T_n -+ t(0.975, G - 1) se is centred on it: it
    covers E[T_n], "what this number would be on other seeds at the same n". That is what a table prints and compares,
    because a published FID is FID_n too. For a statistic with bias c / n (FID, recall) the interval does *not* cover
    the limit n -> infinity. `corrected` approximates that limit, with the bias removed to first order, and
    `corrected_interval` (same se, centred on it) covers it; both agree for an unbiased statistic such as a mean or KID.
    The first order is not enough for FID of few samples: measured in 48 dimensions, `corrected_interval` covered the
    limit 95 % of the time at n / D >= 4, 91 % at 2 and below 50 % at 1, while [lo, hi] kept covering E[T_n].
    The interval is not clipped to the range of the statistic, so a FID near 0 may have lo < 0.

    `replicates[g]` is T of the n - m_g samples outside group g, or what has the same meaning (accel/metrics/
    half_samples.py). They are kept so that two estimates on common seeds can be compared later without their features,
    see `paired`. Groups are those of `groups(n, G, period)`.
    """

    value: float
    lo: float
    hi: float
    n: int
    replicates: tuple[float, ...]
    corrected: float
    period: int = 1

    @classmethod
    def from_replicates(cls, value: float, replicates: Sequence[float], n: int, period: int = 1) -> Estimate:
        """Estimate from T_n and its G delete-group values T_(g), groups as `groups(n, G, period)` gives them.

        corrected = G T_n - sum_g (1 - m_g / n) T_(g);  se as in `standard_error`. Busing et al. 1999; for equal
        groups it is the textbook G T_n - (G - 1) mean_g T_(g). Raises ConfigError for a non-finite value, and for
        more values than there are groups.
        """
        value, values = float(value), np.asarray(replicates, dtype=np.float64)
        sizes = _sizes(n, len(values), period)
        if not (math.isfinite(value) and np.isfinite(values).all()):
            bad = [g for g in range(len(values)) if not math.isfinite(values[g])]
            raise ConfigError(f"the statistic is {value} and not finite without groups {bad}; needed: finite numbers.")
        # The textbook form, rearranged around T_n: no cancellation of G T_n when all replicates are nearly equal.
        corrected = float(value + np.sum((1 - sizes / n) * (value - values)))
        half = _quantile(len(values) - 1) * standard_error(value, values, n, period)
        return cls(value, value - half, value + half, n, tuple(values.tolist()), corrected, period)

    @property
    def se(self) -> float:
        """Jackknife standard error, of `value` and (to first order) of `corrected`."""
        return standard_error(self.value, self.replicates, self.n, self.period)

    @property
    def design(self) -> tuple[int, int, int]:
        """What two estimates must share to be paired: n, number of groups, period."""
        return self.n, len(self.replicates), self.period

    @property
    def corrected_interval(self) -> tuple[float, float]:
        """95 % interval of the limit n -> infinity: `corrected` -+ the half-width of [lo, hi]."""
        half = (self.hi - self.lo) / 2
        return self.corrected - half, self.corrected + half

    @property
    def apart(self) -> bool:
        """Whether the interval of a difference excludes 0; if not, that is no evidence that the two sides are equal."""
        return not self.lo <= 0 <= self.hi

    def to_dict(self) -> dict:
        """Plain JSON types; `from_dict` gives back an equal estimate."""
        return {**asdict(self), "replicates": list(self.replicates)}

    @classmethod
    def from_dict(cls, data: Mapping) -> Estimate:
        """Inverse of `to_dict`; without a period, as records were before there was one, it is 1. Raises ConfigError
        when another key is missing or one is unknown."""
        needed, data = [field.name for field in fields(cls)], {"period": 1, **data}
        if set(data) != set(needed):
            raise ConfigError(f"an estimate has the keys {sorted(data)}; needed: exactly {sorted(needed)}.")
        return cls(**{**data, "replicates": tuple(data["replicates"])})


@lru_cache(maxsize=64)
def _quantile(freedom: int) -> float:
    """t(0.975, freedom): a table asks for the same thousands of times."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


@lru_cache(maxsize=256, typed=True)
def _sizes(n: int, count: int, period: int) -> np.ndarray:
    """Sizes of exactly `count` groups."""
    sizes = group_sizes(n, count, period)
    if len(sizes) != count:
        raise ConfigError(f"found {count} delete-group values of {n} samples, period {period}; needed: {len(sizes)}.")
    return sizes


def standard_error(value: float, replicates: Sequence[float], n: int, period: int = 1) -> float:
    """Delete-group jackknife standard error for group sizes m_g that need not be equal.

    se^2 = (1 / G) sum_g (P_g - P)^2 / (h_g - 1),  P_g = h_g T_n - (h_g - 1) T_(g),  h_g = n / m_g, where
    P = sum_g (m_g / n) P_g. For a mean, P_g is the mean of group g. Busing et al. 1999.
    """
    replicates = np.asarray(replicates, dtype=np.float64)
    h = n / _sizes(n, len(replicates), period)
    pseudo = (h - 1) * (value - replicates)  # P_g - T_n: the shift by T_n drops out of the variance
    centred = pseudo - np.sum(pseudo / h)
    return float(np.sqrt(np.mean(centred**2 / (h - 1))))


def jackknife(statistic: Callable[[np.ndarray], float], n: int, count: int = 20, period: int = 1) -> Estimate:
    """Estimate of `statistic`, a function of the indices (sorted, int, of 0..n-1) of the samples that are kept.

    Calls it G + 1 times: on all samples, then without each of the G groups of `groups(n, count, period)`. A metric
    with a cheaper way to its delete-group values goes to `Estimate.from_replicates` directly.
    """
    group = groups(n, count, period)
    value = float(statistic(np.arange(n)))
    replicates = [float(statistic(np.flatnonzero(group != g))) for g in range(group[-1] + 1)]
    return Estimate.from_replicates(value, replicates, n, period)


def paired(a: Estimate, b: Estimate) -> Estimate:
    """Difference a - b of two estimates on common seeds, with the interval of the difference.

    D_(g) = A_(g) - B_(g): group g holds the same seeds on both sides, so what the seeds contribute to both cancels, and
    the interval is narrower than that of two independent runs the more alike their samples are. The bias in n mostly
    cancels too. Neither happens when the seeds differ, which cannot be seen from the numbers: the caller must know.
    Raises ConfigError when n, the number of groups or the period differ.
    """
    for what, left, right in zip(("n", "groups", "period"), a.design, b.design, strict=True):
        if left != right:
            raise ConfigError(f"a paired comparison of {what} = {left} with {what} = {right}; needed: the same {what}.")
    differences = [left - right for left, right in zip(a.replicates, b.replicates, strict=True)]
    return Estimate.from_replicates(a.value - b.value, differences, a.n, a.period)


def beaten_by(estimates: Sequence[Estimate], higher: bool = False) -> list[int]:
    """For each estimate the number of others that are better: whose paired difference's interval excludes 0.

    `paired` for all pairs at once, as se^2 of a difference needs only the centred pseudo-values of its two sides.
    All must have the same n, groups and period. `higher`: whether higher is better.
    """
    if not estimates:
        return []
    n, count, period = estimates[0].design
    if any(x.design != estimates[0].design for x in estimates):
        raise ConfigError("estimates of different n, groups or period cannot be paired; needed: the same of both.")
    values = np.array([x.value for x in estimates])
    h = n / _sizes(n, count, period)
    pseudo = (h - 1) * (values[:, None] - np.array([x.replicates for x in estimates]))
    centred = pseudo - np.sum(pseudo / h, axis=1, keepdims=True)
    factor = _quantile(count - 1)
    found = []
    for value, own in zip(values, centred, strict=True):
        half = factor * np.sqrt(np.mean((centred - own) ** 2 / (h - 1), axis=1))
        gain = (values - value) if higher else (value - values)
        found.append(int(np.sum(gain > half)))
    return found


def mean_estimate(values: Sequence[float], count: int = 20, period: int = 1) -> Estimate:
    """Mean of one value per sample, shape (n,), with its interval; for PSNR, CLIP score and the like.

    A jackknife of a mean is the t-interval over group means. Raises ConfigError for another shape, for non-finite
    values (naming the first sample), and for fewer than two periods.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ConfigError(f"per-sample values have shape {values.shape}; allowed: one number for each sample.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ConfigError(f"{len(bad)} of {len(values)} values are not finite, the first at sample {bad[0]}.")
    return jackknife(lambda kept: values[kept].mean(), len(values), count, period)
