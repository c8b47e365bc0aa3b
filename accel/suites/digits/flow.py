"""Suite `digits_flow`: the handwritten digits of suite `digits`, from a rectified flow instead of a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.samplers import DiffusersSampler
from accel.samplers.grids import PowerGrid
from accel.suites.base import ASSETS
from accel.suites.digits.suite import DigitsSuite
from accel.suites.pipeline import PixelPipeline


@dataclass(frozen=True)
class DigitsFlowSuite(DigitsSuite):
    """Data, classifier, reference and floor are those of suite `digits`, whose folder is `weights`; the denoiser, v =
    eps - x_0 on x = (1 - sigma) x_0 + sigma eps, is in `flow_weights`."""

    flow_weights: str = str(ASSETS / "digits_flow")
    converged_steps: int = 100
    name: str = "digits_flow"

    @property
    def denoisers(self) -> Path:
        return Path(self.flow_weights)

    def pipeline(self) -> PixelPipeline:
        return self.load(PixelPipeline, "flow")

    def models(self) -> dict[str, torch.nn.Module]:
        return {}

    def converged(self, guidance: Guidance | None) -> Recipe:
        """RF-Solver on the quadratic grid: close to the data the velocity changes fast, and uniform steps miss it."""
        sampler = DiffusersSampler("RFSolverScheduler", self.converged_steps, "rf_solver")
        return Recipe(sampler, PowerGrid(space="t", kappa=2.0), guidance)
