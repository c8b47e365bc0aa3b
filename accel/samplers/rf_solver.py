"""RF-Solver: the second-order solver of rectified flows.

Wang et al. 2024, "Taming Rectified Flow for Inversion and Editing" (arXiv:2411.04746). On x = (1 - sigma) x_0 + sigma
eps with the velocity v = dx / d sigma = eps - x_0, a step of D = sigma_{i+1} - sigma_i < 0 is the Taylor expansion to
second order with a finite difference for the derivative,

    x_mid = x + D/2 v(x, sigma_i),  v' = (v(x_mid, sigma_i + D/2) - v) / (D/2),  x' = x + D v + D^2/2 v'

in which v cancels: x' = x + D v(x_mid, sigma_i + D/2), the explicit midpoint rule. That is the form computed here, two
evaluations a step, so that Euler with twice the steps is its equal in cost. The paper's inversion (D > 0) and its
sharing of attention features for editing are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from accel.errors import AccelError, IncompatibleError
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options


def flow_velocity(x: torch.Tensor, output: torch.Tensor, conversion: Sequence[float]) -> torch.Tensor:
    """v = eps - x_0 (B, ...) of a model's output on x; conversion: its (p, q, r, s), see `convert`."""
    p, q, r, s = conversion
    return ((r - p) * x).add_(output, alpha=s - q)


def half_step(x: torch.Tensor, velocity: torch.Tensor, width: float) -> torch.Tensor:
    """x_mid = x + D/2 v(x, sigma_i): where the second evaluation is; all (B, ...), D = `width` in sigma."""
    return x.add(velocity, alpha=width / 2)


def midpoint_step(x: torch.Tensor, velocity: torch.Tensor, width: float) -> torch.Tensor:
    """x' = x + D v(x_mid, sigma_i + D/2), x from the beginning of the step; all (B, ...), D = `width` in sigma."""
    return x.add(velocity, alpha=width)


class RFSolverScheduler(BaseScheduler):
    """RF-Solver for flow models: second order, two evaluations a step, from sigma = 1 itself to 0.

    Takes the config of a FlowMatch scheduler, or one with use_flow_sigmas=true. Options: `BaseScheduler`. Raises
    IncompatibleError for a model that is not a flow.
    """

    order = 2

    @register_to_config
    @with_schedule_options
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.schedule.flow:
            raise IncompatibleError(
                "RFSolverScheduler needs a flow model (config of a FlowMatch scheduler, or use_flow_sigmas=true), and "
                "this model has a schedule of betas; use DEISScheduler or another solver of its ODE."
            )

    @staticmethod
    def stages(options: Any) -> int:
        """Evaluations a step of a scheduler with these options."""
        return 2

    def _plan(self, nodes: Nodes) -> np.ndarray:
        """The timesteps of each step: its beginning and its middle in sigma."""
        middle = (nodes.sigma[:-1] + nodes.sigma[1:]) / 2
        at = np.stack([nodes.sigma[:-1], middle], 1).ravel()
        self._at = [(float(1 - s), float(s)) for s in at]
        self._width = [float(d) for d in np.diff(nodes.sigma)]
        return np.stack([nodes.t[:-1], middle * self.schedule.total], 1).ravel()

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        step, slot = divmod(index, 2)
        alpha, sigma = self._at[index]
        output = self.thresholded(output, sample, alpha, sigma)
        velocity = flow_velocity(sample, output, self.conversion(alpha, sigma))
        if slot == 0:
            self.memory = {"start": sample}
            return half_step(sample, velocity, self._width[step])
        if "start" not in self.memory:
            raise AccelError(
                f"the trajectory begins at evaluation {index}, in the middle of step {step}; begin at an even one "
                "(set_begin_index(2 * step))."
            )
        return midpoint_step(self.memory.pop("start"), velocity, self._width[step])
