"""Cascade polynomial regression: compensation ratios for (steps, guidance scale) pairs that were never searched.

Zhao et al. 2024 (arXiv:2409.03755), sec. 3.3: with s = step / NFE, n = NFE / 50 and g = scale / 12,

    q(step, NFE, scale) = sum_p s^p sum_k g^k sum_m c_pkm n^m

a polynomial in s whose coefficients are polynomials in g whose coefficients are polynomials in n. That is linear in c,
so it is solved as ridge-regularised least squares instead of by iterative curve fitting. Degrees: the authors' 3, 2, 2
at most, and never more than the fitted values of n and g can determine. The regression knows the range that it was
fitted on; outside it, a prediction is that of the nearest pair inside, with a warning. Ratios are clipped to the range
of those it was fitted to: cubics in s are erratic.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accel.errors import ConfigError
from accel.records import read_json, write_json

DEGREES = (3, 2, 2)  # of s, g, n
STEPS_UNIT, SCALE_UNIT = 50.0, 12.0
RIDGE = 1e-4


@dataclass(frozen=True)
class Cascade:
    """A fitted regression: `coefficients` (s, g, n degrees + 1), the fitted ranges of steps, scale and ratio."""

    coefficients: np.ndarray
    steps: tuple[int, int]
    scales: tuple[float, float]
    ratios: tuple[float, float]
    dc_order: int

    @classmethod
    def fit(cls, searched: Mapping[tuple[int, float], Sequence[float]], dc_order: int = 2) -> Cascade:
        """From searched ratios by (steps, guidance scale); ConfigError if there are too few pairs."""
        if len(searched) < 2:
            raise ConfigError(f"{len(searched)} searched (steps, scale) pairs; a regression needs at least 2.")
        rows, values = [], []
        for (steps, scale), ratios in searched.items():
            if len(ratios) != steps:
                raise ConfigError(f"{len(ratios)} ratios for {steps} steps at scale {scale:g}; allowed: one a step.")
            for step in range(dc_order, steps):
                rows.append((*_position(step, steps), *_levels(steps, scale)))
                values.append(ratios[step])
        if not rows:
            raise ConfigError(f"no searched pair has more than dc_order={dc_order} steps; its ratios are all 1.")
        s, g, n = np.array(rows).T
        degrees = tuple(min(d, len(np.unique(v)) - 1) for d, v in zip(DEGREES, (s, g, n), strict=True))
        design = _features(s, g, n, degrees)
        # Towards q = 1, no compensation, where the data say nothing.
        scaled = np.vstack([design, np.sqrt(RIDGE * len(rows)) * np.eye(design.shape[1])])
        right = np.concatenate([np.array(values) - 1, np.zeros(design.shape[1])])
        c = np.linalg.lstsq(scaled, right, rcond=None)[0].reshape([d + 1 for d in degrees])
        c[0, 0, 0] += 1
        keys = np.array(list(searched), float)
        return cls(
            c,
            (int(keys[:, 0].min()), int(keys[:, 0].max())),
            (float(keys[:, 1].min()), float(keys[:, 1].max())),
            (float(min(values)), float(max(values))),
            dc_order,
        )

    def predict(self, steps: int, scale: float, dc_order: int = 2) -> list[float]:
        """Ratios for `steps` at guidance `scale`; a warning says when that is outside the fitted range."""
        if dc_order != self.dc_order:
            raise ConfigError(f"the regression was fitted for dc_order={self.dc_order}, not {dc_order}.")
        inside = (int(np.clip(steps, *self.steps)), float(np.clip(scale, *self.scales)))
        if inside != (steps, scale):
            warnings.warn(
                f"compensation ratios for {steps} steps at scale {scale:g} are outside what the regression was fitted "
                f"on (steps {self.steps[0]}..{self.steps[1]}, scale {self.scales[0]:g}..{self.scales[1]:g}); those for "
                f"{inside[0]} steps at {inside[1]:g} are used.",
                stacklevel=2,
            )
        ratios = [1.0] * steps
        for step in range(dc_order, steps):
            at = [np.array([v]) for v in (*_position(step, steps), *_levels(*inside))]
            degrees = [d - 1 for d in self.coefficients.shape]
            ratios[step] = float(np.clip(_features(*at, degrees)[0] @ self.coefficients.ravel(), *self.ratios))
        return ratios

    def save(self, path: Path) -> None:
        """Write as hashed JSON."""
        ranges = {"steps": self.steps, "scales": self.scales, "ratios": self.ratios, "dc_order": self.dc_order}
        write_json(path, json.loads(json.dumps(ranges)) | {"coefficients": self.coefficients.tolist()})

    @classmethod
    def load(cls, path: Path) -> Cascade:
        """Read what `save` wrote; ConfigError if there is no such file, IntegrityError if it is damaged."""
        if not path.exists():
            raise ConfigError(f"there is no cascade regression at {path}; make one with accel bench cascade.")
        c = read_json(path)
        try:
            ranges = (tuple(c[k]) for k in ("steps", "scales", "ratios"))
            return cls(np.array(c["coefficients"]), *ranges, c["dc_order"])
        except KeyError as error:
            raise ConfigError(f"{path} is not a cascade regression: it has no {error}.") from error


def _position(step: int, steps: int) -> tuple[float]:
    return ((step + 1) / steps,)  # the paper counts steps from 1


def _levels(steps: float, scale: float) -> tuple[float, float]:
    return scale / SCALE_UNIT, steps / STEPS_UNIT


def _features(s: np.ndarray, g: np.ndarray, n: np.ndarray, degrees: Sequence[int]) -> np.ndarray:
    powers = [np.vander(v, d + 1, increasing=True) for v, d in zip((s, g, n), degrees, strict=True)]
    return np.einsum("ip,ik,im->ipkm", *powers).reshape(len(s), -1)
