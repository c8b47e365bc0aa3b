"""DPM-Solver++(3M) with the second derivative that its Taylor expansion asks for: third order, as the name says.

Lu et al. 2022 (arXiv:2211.01095) for data prediction, Lu et al. 2022 (arXiv:2206.00927) for noise prediction. With
lambda = ln(alpha / sigma), h = lambda_{i+1} - lambda_i, r_j = (lambda_{i-j} - lambda_{i-j-1}) / h, d_j = (m_{i-j} -
m_{i-j-1}) / r_j, and primes for i + 1:

    D1 = d_0 + r_0 / (r_0 + r_1) (d_0 - d_1),   D2 = (d_0 - d_1) / (r_0 + r_1)
    data   x_{i+1} = sigma'/sigma x_i - alpha' (e^-h - 1) m_i + alpha' phi_2 D1 - alpha' phi_3 c D2
    noise  x_{i+1} = alpha'/alpha x_i - sigma' (e^h - 1) m_i - sigma' psi_2 D1 - sigma' psi_3 c D2
    phi_2 = (e^-h - 1) / h + 1,   phi_3 = (e^-h - 1 + h) / h^2 - 1/2,   psi_2 = (e^h - 1) / h - 1,
    psi_3 = (e^h - 1 - h) / h^2 - 1/2

h^2 times the second derivative of the parabola through m_i, m_{i-1}, m_{i-2} is 2 D2, so that c = 2. The authors' code
and diffusers' `DPMSolverMultistepScheduler(solver_order=3)` have c = 1, which makes them methods of second order.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config

from accel.errors import ConfigError, unknown
from accel.samplers.noise_schedule import flow_entries, is_flow, refuse_others

ALGORITHMS = ("dpmsolver", "dpmsolver++")


def _with_diffusers_options(init):
    """Show the options of diffusers' class in the signature, with 3 as the default of `solver_order`."""
    shown = inspect.signature(DPMSolverMultistepScheduler.__init__)
    options = [p.replace(default=3) if n == "solver_order" else p for n, p in shown.parameters.items()]
    shown = shown.replace(parameters=options)

    @functools.wraps(init)
    def wrapped(*args, **kwargs):
        return init(**{"solver_order": 3} | shown.bind(*args, **kwargs).arguments)

    wrapped.__signature__ = shown
    return wrapped


def missing_curvature(
    outputs: Sequence[torch.Tensor], lambda_: Sequence[float], scale: float, data: bool
) -> torch.Tensor:
    """What the shipped update, with c = 1, lacks of the Taylor term of the second derivative, where c = 2, (B, ...).

        data   -alpha' phi_3 D2,   phi_3 = (e^-h - 1 + h) / h^2 - 1/2
        noise  -sigma' psi_3 D2,   psi_3 = (e^h - 1 - h) / h^2 - 1/2
        D2 = ((m_i - m_{i-1}) / r_0 - (m_{i-1} - m_{i-2}) / r_1) / (r_0 + r_1)

    outputs: m_{i-2}, m_{i-1}, m_i, each (B, ...); lambda_: theirs and lambda_{i+1}; scale: alpha' (data) or sigma'
    (noise). Lu et al. 2022 (see the module).
    """
    early, before, now, end = lambda_
    h = end - now
    r0, r1 = (now - before) / h, (before - early) / h
    z = -h if data else h
    weight = -scale * ((math.expm1(z) - z) / z**2 - 0.5)
    m2, m1, m0 = outputs
    weight /= r0 + r1
    missing = (weight / r0) * m0
    return missing.add_(m1, alpha=-weight / r0 - weight / r1).add_(m2, alpha=weight / r1)


class CorrectedDPMSolver3MScheduler(DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler of order 3 with c = 2 in place of 1.

    All options are that class's, but `solver_order` must be 3 and `algorithm_type` dpmsolver++ or dpmsolver: for the
    stochastic ones there is no such expansion. First and last steps of lower order are unchanged. Raises ConfigError.
    """

    @register_to_config
    @_with_diffusers_options
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.config.solver_order != 3:
            raise ConfigError(
                f"solver_order is {self.config.solver_order!r}; allowed: 3. This class corrects the update of order 3, "
                "for lower orders use DPMSolverMultistepScheduler."
            )
        if self.config.algorithm_type not in ALGORITHMS:
            raise unknown("algorithm_type of the corrected 3M", str(self.config.algorithm_type), ALGORITHMS)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """As diffusers', but the config of a FlowMatch scheduler makes this one a scheduler of flows.

        Raises IncompatibleError for a config whose noise levels this class does not have (EDM, CogVideoX).
        """
        if isinstance(config, Mapping):
            refuse_others(config, inspect.signature(cls).parameters)
            kwargs = (flow_entries(config) if is_flow(config) else {}) | kwargs
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def multistep_dpm_solver_third_order_update(
        self, model_output_list: list[torch.Tensor], *args: Any, sample: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """x_{i+1} (B, ...) from the last three outputs, newest last, and x_i = `sample`: diffusers' and (c - 1) D2."""
        shipped = super().multistep_dpm_solver_third_order_update(model_output_list, *args, sample=sample, **kwargs)
        sigmas = self.sigmas[self.step_index - 2 : self.step_index + 2].double()
        alphas, sigmas = (v.tolist() for v in self._sigma_to_alpha_sigma_t(sigmas))
        lambda_ = [math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
        if lambda_[-1] == lambda_[-2]:  # diffusers repeats the last sigma of some grids; there is nothing to correct
            return shipped
        data = self.config.algorithm_type == "dpmsolver++"
        return shipped + missing_curvature(model_output_list[-3:], lambda_, (alphas if data else sigmas)[-1], data)
