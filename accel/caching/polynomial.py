"""Polynomials that make of a change of a network's input one of its output: fitted to a model, or published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch

DEGREE = 4
# Of ali-vilab/TeaCache, the highest power first.
PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "flux": (4.98651651e2, -2.83781631e2, 5.58554382e1, -3.82021401, 2.64230861e-1),
    "hunyuan_video": (7.33226126e2, -4.01131952e2, 6.75869174e1, -3.14987800, 9.61237896e-2),
    "ltx": (2.14700694e1, -1.28016453e1, 2.31279151, 7.92487521e-1, 9.69274326e-3),
    "mochi": (-3.51241319e3, 8.11675948e2, -6.09400215e1, 2.42429681, 3.05291719e-3),
    "lumina_next": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
    "latte": (-2.46434137e3, 3.08044764e2, 8.07447667e1, -4.11385132, 1.11001402e-1),
    "opensora": (2.17546007e2, -1.18329252e2, 2.68662585e1, -4.59364272e-2, 4.84426240e-2),
    "opensora_plan": (2.05943668e5, -1.48759286e4, 3.06085986e2, 1.31418080, 2.39658469e-3),
}


@dataclass(frozen=True)
class Polynomial:
    """p(r) = sum_j c_j r^j, coefficients from the highest power on: of r within [low, high], outside the value at its
    end; and between 0 and `most`."""

    coefficients: tuple[float, ...]
    low: float = 0.0
    high: float = inf
    most: float = inf

    def __call__(self, r: torch.Tensor) -> torch.Tensor:
        return polynomial(r.clamp(self.low, self.high), self.coefficients).clamp(0, self.most)


def polynomial(r: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    """sum_j c_j r^j, coefficients from the highest power on, in the shape of r; by Horner's rule."""
    value = torch.zeros_like(r)
    for coefficient in coefficients:
        value = value * r + coefficient
    return value


def fit(r: torch.Tensor, change: torch.Tensor, degree: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients (degree + 1,), the highest power first, of the polynomial of r that is nearest to `change` by least
    squares (of several the shortest in powers of r / max r), and its r^2. Both (M,), float64; nan of none."""
    powers = torch.arange(degree, -1, -1, dtype=r.dtype)
    if not len(r):
        return torch.full_like(powers, torch.nan), r.new_tensor(torch.nan)
    scale = r.abs().max().clamp(min=torch.finfo(r.dtype).tiny)
    features = (r / scale)[:, None] ** powers
    solution = torch.linalg.lstsq(features, change[:, None], driver="gelsd").solution[:, 0]
    left = (change - features @ solution).square().sum()
    spread = (change - change.mean()).square().sum()
    return solution / scale**powers, 1 - left / spread if spread > 0 else torch.ones_like(spread)
