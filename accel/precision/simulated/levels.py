"""Uniform quantisers: integer levels, their scales, and how the range that they cover is chosen.

Nagel et al. 2021 (arXiv:2106.08295), sec. 2: x_q = clamp(round(x / s) + z, lo, hi) and x^ = s (x_q - z), with scale s
and zero point z. Symmetric: z = 0 and levels -(2^(b-1) - 1) .. 2^(b-1) - 1, s = max|x| / hi. Affine: levels
0 .. 2^b - 1 that cover [min(low, 0), max(high, 0)], so that zero is a level.

Ranges (observers) see the numbers of each quantiser as one row (G, n):

* `minmax`: the smallest and the largest;
* `percentile`: quantiles 1 - q and q of the row, which lets go of outliers;
* `lp`: the min-max range shrunk by the factor whose quantisation error sum |x - x^|^p is least. p = 2 is the mean
  squared error; PTQ4DM (arXiv:2211.15736, sec. 3.3) has p = 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accel.errors import check_float, unknown

TINY = 1e-12  # the least scale: of a row that holds zeros only
SHRINKS = 80  # candidates of the L_p search, from 1 down to SHRINK
SHRINK = 0.2
RANGES = ("minmax", "percentile", "lp")


@dataclass(frozen=True)
class Levels:
    """The integers of `bits` bits, around zero (`symmetric`) or from zero on."""

    bits: int
    symmetric: bool

    @property
    def low(self) -> int:
        return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def parameters(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point (both like `low`) of levels that cover [low, high] and zero."""
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            scale = torch.maximum(-low, high) / self.high
            return scale.clamp_min(TINY), torch.zeros_like(scale)
        scale = ((high - low) / self.high).clamp_min(TINY)
        return scale, (-low / scale).round().clamp(self.low, self.high)

    def integers(self, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """x_q, as floating-point numbers."""
        return ((x / scale).round() + zero).clamp(self.low, self.high)

    def nearest(self, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """x^ of every x: what the integers stand for."""
        return (self.integers(x, scale, zero) - zero) * scale

    def learned(self, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """x^ with gradients: straight through the rounding, for x within the range (Bengio et al. 2013,
        arXiv:1308.3432), and for the scale as in LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3): round(x/s) - x/s
        within the range, the end level beyond it."""
        ratio = x / scale
        rounded = ratio + (ratio.round() - ratio).detach()
        return ((rounded + zero).clamp(self.low, self.high) - zero) * scale


@dataclass(frozen=True)
class Range:
    """How a quantiser's range is chosen: `minmax`, `percentile` (of `quantile`) or `lp` (of power `p`)."""

    kind: str = "minmax"
    quantile: float = 0.999
    p: float = 2.4

    def __post_init__(self) -> None:
        if self.kind not in RANGES:
            raise unknown("range", str(self.kind), RANGES)
        check_float("range.quantile", self.quantile, 0.5, 1.0)
        check_float("range.p", self.p, 0.5, 10.0)

    @property
    def label(self) -> str:
        return {"minmax": "", "percentile": f"q{100 * self.quantile:g}%", "lp": f"L{self.p:g}"}[self.kind]

    def limits(self, rows: torch.Tensor, levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
        """(low, high), both (G,), for rows (G, n)."""
        low, high = torch.aminmax(rows, dim=1)
        if self.kind == "percentile":
            at = torch.tensor([1 - self.quantile, self.quantile], dtype=rows.dtype, device=rows.device)
            low, high = torch.quantile(rows, at, dim=1)
        if self.kind == "lp":
            shrink = self._shrink(rows, low, high, levels)
            low, high = low * shrink, high * shrink
        return low, high

    def _shrink(self, rows, low, high, levels: Levels) -> torch.Tensor:
        best, factor = torch.full_like(low, torch.inf), torch.ones_like(low)
        for candidate in torch.linspace(1.0, SHRINK, SHRINKS).tolist():
            scale, zero = levels.parameters(low * candidate, high * candidate)
            error = (levels.nearest(rows, scale[:, None], zero[:, None]) - rows).abs().pow(self.p).sum(1)
            better = error < best
            best, factor = torch.where(better, error, best), torch.where(better, candidate, factor)
        return factor
