"""Classifier-free guidance, on all steps or on an interval of noise levels.

CFG: Ho & Salimans 2022 (arXiv:2207.12598), eps = u + s (c - u): `classifier_free`, which the pipeline itself computes.
Interval: Kynkaanniemi et al. 2024 (arXiv:2404.07724), eq. 5: s applies where sigma_lo < sigma <= sigma_hi, 1 elsewhere.
Outside the interval only the conditional half is evaluated and returned for both halves: u + s (c - u) = c.
Deviation: none; sigma is sigma / alpha, as in the paper's EDM notation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from accel.core.guidance import Scaled
from accel.errors import ConfigError, check_float


@dataclass(frozen=True)
class CFG(Scaled):
    """Classifier-free guidance at every step: two network rows an image and evaluation. scale 1: none."""

    @property
    def label(self) -> str:
        return f"cfg{self.scale:g}"


@dataclass(frozen=True)
class IntervalCFG(Scaled):
    """Guidance where sigma_lo < sigma <= sigma_hi only; elsewhere one network row an image."""

    sigma_lo: float = 0.0
    sigma_hi: float = float("inf")
    changes_conditional: ClassVar[bool] = False
    branchwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.sigma_lo", self.sigma_lo, 0.0)
        check_float("guidance.sigma_hi", self.sigma_hi, 0.0)
        if self.sigma_lo >= self.sigma_hi:
            raise ConfigError(f"guidance interval ({self.sigma_lo}, {self.sigma_hi}] is empty; sigma_lo must be lower.")

    @property
    def label(self) -> str:
        return f"cfg{self.scale:g}({self.sigma_lo:g},{self.sigma_hi:g}]"

    def guide(self, inputs, inner, node):
        if in_interval(node.clock.sigma, self.sigma_lo, self.sigma_hi):
            return inner(inputs)
        cond = inner(inputs.take("cond"))
        return torch.cat([cond] * len(inputs.parts))


def in_interval(sigma: float, lo: float, hi: float) -> bool:
    """Whether guidance applies at noise level sigma: lo < sigma <= hi (Kynkaanniemi et al. 2024, eq. 5)."""
    return lo < sigma <= hi
