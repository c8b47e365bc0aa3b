"""Adams-Bashforth of order 2 for the probability-flow ODE, in rho = sigma / alpha.

With y = x / alpha the ODE is dy / drho = eps. From rho to rho' = rho + h, after a step of h_ from rho_:

    y' = y + h (eps + h / (2 h_) (eps - eps_)),   first step: y' = y + h eps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from accel.core.sampler import Sampler
from accel.errors import IncompatibleError, check_int
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options


class AB2Scheduler(BaseScheduler):
    """A diffusers scheduler: `pipe.scheduler = AB2Scheduler.from_config(pipe.scheduler.config)`."""

    @register_to_config
    @with_schedule_options
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def _plan(self, nodes: Nodes) -> np.ndarray:
        if self.schedule.flow:
            raise IncompatibleError("ab2 divides by alpha, which is 0 where a flow begins; use sampler=rf_solver.")
        return nodes.t[:-1]  # one evaluation a step, where it begins

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        (alpha, alpha_end), sigma = self.nodes.alpha[index : index + 2].tolist(), float(self.nodes.sigma[index])
        _, _, r, s = self.conversion(alpha, sigma)
        eps, h = r * sample + s * output, float(np.diff(self.nodes.rho)[index])
        slope = eps
        if "eps" in self.memory:
            before = float(np.diff(self.nodes.rho)[index - 1])
            slope = eps + h / (2 * before) * (eps - self.memory["eps"])
        self.memory = {"eps": eps}
        return alpha_end * (sample / alpha + h * slope)


@dataclass(frozen=True)
class AB2(Sampler):
    """AB2Scheduler in a recipe: `steps` solver steps, one evaluation each."""

    steps: int = 10
    name: str = "ab2"

    def __post_init__(self) -> None:
        check_int("sampler.steps", self.steps, 1)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.steps}"

    def build(self, config: dict[str, Any], grid: Any = None) -> AB2Scheduler:
        options = grid.options(AB2Scheduler) if grid else {}
        scheduler = AB2Scheduler.from_config(config, **options)
        scheduler.set_timesteps(self.steps)  # what does not fit fails here, before any work
        return scheduler
