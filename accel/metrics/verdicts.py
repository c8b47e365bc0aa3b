"""Better, worse, non-inferior, undecided: what a paired difference and its 95 % interval say, as pure functions.

A difference is *better* or *worse* when its interval excludes 0, *non-inferior* when its worse end stays inside a
margin stated beforehand, *equivalent* when both ends do, and *undecided* otherwise: an interval that contains 0 is no
evidence of equality. CONSORT extension for non-inferiority and equivalence trials: Piaggio et al., JAMA 2012. Several
comparisons: Holm 1979; Benjamini & Hochberg 1995. Sample size: Julious, Statistics in Medicine 2004.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit  # P(T <= t) of Student's t and its inverse, freedom first

from accel.errors import ConfigError, Refusals, check_float
from accel.metrics.statistics import CONFIDENCE, Estimate

UNDECIDED = "undecided"
# Direction first, then the margin. What the first word implies is not said again: what is better is non-inferior. What
# is worse and non-inferior lies inside the margin with both ends, so it is equivalent by the rule, too.
NON_INFERIOR = ("better, equivalent", "better", "equivalent", "non-inferior", "worse, non-inferior")
WORDS = (*NON_INFERIOR, UNDECIDED, "worse")
POWER = 0.8
LEVEL = 1 - CONFIDENCE


def words(lo: float, hi: float, margin: float | None = None, higher: bool = False) -> str:
    """One of WORDS for a difference with the 95 % interval [lo, hi]. `higher`: whether higher is better.

    With the interval turned so that positive is better, [a, b]: better if a > 0, worse if b < 0, non-inferior if
    a >= -margin, equivalent if b <= margin, too. Without a margin (None) nothing is non-inferior but what is better.
    """
    a, b = (lo, hi) if higher else (-hi, -lo)
    inside, both = margin is not None and a >= -margin, margin is not None and a >= -margin and b <= margin
    if a > 0:
        return "better, equivalent" if both else "better"
    if b < 0:
        return "worse, non-inferior" if inside else "worse"
    return "equivalent" if both else "non-inferior" if inside else UNDECIDED


def verdict(delta: Estimate, margin: float | None = None, higher: bool = False) -> str:
    """`words` of a paired difference."""
    return words(delta.lo, delta.hi, margin, higher)


@dataclass(frozen=True)
class Margins:
    """The largest loss of each value that is still non-inferior, in the value's own unit; None: no gate.

    `fid`: a fraction of the baseline's FID at the same N, and at least `fid_least` (absolute; None: what the suite
    states). `adherence`, `accuracy`, `exact` are fractions of 1 (0.01 is 1 point), `precision` and `recall` too;
    `clip_score` is in its points (100 cos), `distance` on the scale of pixels from -1 to 1. They say how tables are
    read, and change no record.
    """

    fid: float | None = 0.10
    fid_least: float | None = None
    adherence: float | None = 0.01
    exact: float | None = 0.01
    accuracy: float | None = 0.01
    clip_score: float | None = 0.5
    recall: float | None = 0.02
    precision: float | None = 0.02
    distance: float | None = None

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            for field in fields(self):
                if (value := getattr(self, field.name)) is not None:
                    refusals.ask(check_float, f"evaluation.margins.{field.name}", value, 0.0)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Margins:
        """Inverse of `to_dict`; the defaults of None, which manifests from before margins have."""
        known = {field.name for field in fields(cls)}
        if not isinstance(data or {}, Mapping) or set(data or {}) - known:
            raise ConfigError(f"margins are {data!r}; allowed: numbers for {', '.join(sorted(known))}.")
        return cls(**(data or {}))

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def stated(self, key: str) -> float | None:
        """The setting for a record's value `key`: `fid_digits` has that of `fid`."""
        return vars(self).get(_setting(key))

    def of(self, key: str, baseline: float) -> float | None:
        """The margin of value `key` where the baseline has the value `baseline`; None: no gate."""
        own = self.stated(key)
        return own if own is None or _setting(key) != "fid" else max(own * baseline, self.fid_least or 0.0)

    def gates(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that a user would miss, in a fixed order: a recipe must lose in none of them. Precision is
        none (it rises when samples lose their variety), but has a verdict."""
        order = [field.name for field in fields(self) if field.name != "precision"]
        found = [key for key in keys if self.stated(key) is not None and _setting(key) in order]
        return sorted(found, key=lambda key: (order.index(_setting(key)), key))


def _setting(key: str) -> str:
    head = key.partition("_")[0]
    return head if head == "fid" else key


def losses(delta: Estimate, higher: bool = False) -> tuple[float, float]:
    """How much worse a difference is, negative for a gain: by its value, and the most that its interval leaves open."""
    return (-delta.value, -delta.lo) if higher else (delta.value, delta.hi)


def p_value(delta: Estimate) -> float:
    """Two-sided p of a paired difference: 2 P(T >= |delta| / se), T with G - 1 degrees of freedom.

    It is below 0.05 exactly when the 95 % interval excludes 0. Without any spread: 1 if the difference is 0, else 0.
    """
    if not delta.se:
        return float(delta.value == 0)
    return float(2 * stdtr(len(delta.replicates) - 1, -abs(delta.value) / delta.se))


def non_inferiority_p(delta: Estimate, margin: float, higher: bool = False) -> float:
    """One-sided p of "at least as bad as the margin": P(T >= (margin - loss) / se), T with G - 1 degrees of freedom.

    It is below 0.025 exactly when the worse end of the 95 % interval stays inside the margin. A recipe that must lose
    in none of several values has the largest of their p (intersection-union test, Berger 1982: needs no correction).
    """
    loss, _ = losses(delta, higher)
    if not delta.se:
        return float(loss > margin)
    return float(stdtr(len(delta.replicates) - 1, (loss - margin) / delta.se))


def holm(p: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of m hypotheses Holm's step-down rejects: p_(i) <= level / (m - i + 1) for this and all smaller ones.

    Then none of the rejections is false with probability 1 - level, whatever depends on what.
    """
    survives, m = [False] * len(p), len(p)
    for i, at in enumerate(sorted(range(m), key=lambda k: p[k])):
        if p[at] > level / (m - i):
            break
        survives[at] = True
    return survives


def benjamini_hochberg(p: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of m hypotheses Benjamini and Hochberg's step-up rejects: all up to the last p_(i) <= level i / m.

    Then at most a share `level` of the rejections is false on average, under independence or positive dependence.
    """
    m, order = len(p), sorted(range(len(p)), key=lambda k: p[k])
    last = max((i for i, at in enumerate(order, 1) if p[at] <= level * i / m), default=0)
    rejected = set(order[:last])
    return [k in rejected for k in range(m)]


def needed_n(se: float, n: int, margin: float, groups: int = 20) -> float:
    """Samples with which a recipe that loses nothing is called non-inferior with a probability of 80 %.

    se is the paired standard error at n; se is proportional to 1 / sqrt(N), and the worse end of the interval must
    stay inside: (t(0.975) + t(0.8)) se(N) <= margin, so N = n ((t(0.975) + t(0.8)) se / margin)^2.
    """
    if not se:
        return 0.0
    factor = float(np.sum(stdtrit(groups - 1, [0.5 + CONFIDENCE / 2, POWER])))
    return n * (factor * se / margin) ** 2 if margin else math.inf


def ceil_to(n: float, step: int = 64) -> int | float:
    """The next multiple of `step` samples; infinity stays."""
    return math.ceil(n / step) * step if math.isfinite(n) else n
