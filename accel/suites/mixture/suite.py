"""Suite `mixture`: a Gaussian mixture whose noise prediction and probability-flow ODE solution are exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.core.seeds import generators
from accel.records import digest
from accel.samplers import DiffusersSampler
from accel.suites.base import Suite
from accel.suites.mixture.exact import exact_solution
from accel.suites.mixture.model import MixtureDenoiser
from accel.suites.pipeline import PixelPipeline

EPOCH = 2  # of the numbers: diffusers' samplers step in float64


@dataclass(frozen=True)
class MixtureSuite(Suite):
    """`mixture_seed` draws the mixture. Scored by the distance to the exact solution of the ODE; float64."""

    mixture_seed: int = 0
    name: str = "mixture"
    pictures: ClassVar[bool] = False

    def fingerprint(self) -> dict[str, str]:
        config = {k: v for k, v in _config(self.mixture_seed).items() if not k.startswith("_")}
        return {"mixture": digest(config, 64), "epoch": str(EPOCH)}

    def pipeline(self) -> PixelPipeline:
        from diffusers import DDPMScheduler

        net = MixtureDenoiser(seed=self.mixture_seed)
        schedule = {k: net.config[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
        pipe = PixelPipeline(net, DDPMScheduler(**schedule, clip_sample=False))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        classes = _config(self.mixture_seed)["num_class_embeds"] - 1  # the last one is the null label
        return {"class_labels": [i % classes for i in range(start, stop)]}

    def converged(self, guidance: Guidance | None) -> Recipe:
        options = {"solver_order": 2, "final_sigmas_type": "zero"}
        return Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 200, "dpmpp_2m", options), guidance=guidance)

    def solves(self, guidance: Guidance | None) -> bool:
        return guidance is None or guidance.plain

    def solve(self, pipe: PixelPipeline, recipe: Recipe, seed: int, start: int, stop: int) -> torch.Tensor:
        """Integrates d(x/alpha)/d(rho) from the last training timestep, where trailing grids start, to rho = 0."""
        net = pipe.unet
        shape = (1, *net.sample_shape)
        noise = [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators(seed, start, stop)]
        labels = torch.tensor(self.conditions(start, stop)["class_labels"])
        rho = float(net.rho(net.config.num_train_timesteps - 1))
        return exact_solution(net, torch.cat(noise), labels, rho, guidance_scale=recipe.guidance_scale)


@lru_cache(maxsize=8)
def _config(seed: int) -> dict[str, Any]:
    # Asked for every batch; the mixture itself need not be drawn for it.
    return dict(MixtureDenoiser(seed=seed).config)
