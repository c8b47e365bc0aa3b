"""DEIS: Diffusion Exponential Integrator Sampler, every variant of the paper.

Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", ICLR 2023 (arXiv:2204.13902). With rho =
sigma / alpha the probability-flow ODE is d(x / alpha) / d rho = eps(x, t), and

    x_{i+1} = alpha_{i+1} / alpha_i x_i + alpha_{i+1} sum_{j=0..k} C_j eps_{i-j},   k = min(r, i)

* `tab`, `rhoab`, `logrhoab`: C_j integrates the polynomial through the last k + 1 noise predictions in t, rho or log
  rho (accel/samplers/quadrature.py). r = 0 is DDIM. `logrhoab` with r = solver_order - 1 is what diffusers ships as
  DEIS.
* `rhork`: an explicit Runge-Kutta method in rho, one evaluation a stage. A flow begins at rho = infinity, so that its
  first step runs in sigma, d x / d sigma = eps - x_0, by the same tableau.
* `ipndm`: the weights of constant steps, C_j = c_j (rho_{i+1} - rho_i) (Liu et al. 2022, arXiv:2202.09778).

Deviations from the authors' code: exact weights (theirs are rectangle sums), any prediction type, thresholding, an end
at sigma = 0, `lower_order_final` as in diffusers, no rounding of timesteps. Between integer timesteps log rho is linear
in t (theirs: alpha_bar).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from accel.errors import AccelError, ConfigError, check_int, unknown
from accel.samplers.noise_schedule import NoiseSchedule
from accel.samplers.quadrature import adams_bashforth
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options

MAX_ORDER = 3
SHORT = 15  # steps below which diffusers lowers the order of the last ones
IPNDM = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def constant_steps(schedule: NoiseSchedule, rho: np.ndarray, end: float) -> np.ndarray:
    """C_j = c_j (end - rho_i), (K,), with the Adams-Bashforth weights c of equal steps, whatever the steps are.

    `rho` (K,): the noise levels of eps, newest first. Liu et al. 2022 (arXiv:2202.09778).
    """
    return np.array(IPNDM[len(rho) - 1]) * (end - rho[0])


# C_j of each multistep variant, a function of (schedule, rho=, end=).
MULTISTEP: dict[str, Callable[..., np.ndarray]] = {
    "tab": partial(adams_bashforth, coordinate="t"),
    "rhoab": partial(adams_bashforth, coordinate="rho"),
    "logrhoab": partial(adams_bashforth, coordinate="logrho"),
    "ipndm": constant_steps,
}
VARIANTS = (*MULTISTEP, "rhork")


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage times c, stage weights a (row s holds s numbers), result weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int


TABLEAUX = {
    "euler": Tableau((0.0,), ((),), (1.0,), 1),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2), 2),
    "midpoint": Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0), 2),
    "kutta": Tableau((0.0, 1 / 2, 1.0), ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6), 3),
    "ralston3": Tableau((0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 3 / 9, 4 / 9), 3),
    "heun3": Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3),
    "houwen3": Tableau((0.0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4), 3),
    "ssprk3": Tableau((0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3),
    "rk4": Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4
    ),
}


def adams_bashforth_weights(
    c: np.ndarray, alpha: float, sigma: float, conversion: Sequence[float]
) -> tuple[float, float, tuple[float, ...]]:
    """(a, b, w) of `adams_bashforth_step`, which make it the exponential integrator of Zhang & Chen 2023.

        x_{i+1} = alpha x_0 + sigma eps_i + alpha sum_{j=1..k} C_j (eps_{i-j} - eps_i)
                = alpha / alpha_i x_i + alpha sum_{j=0..k} C_j eps_{i-j},   for the C_j add up to rho_{i+1} - rho_i

    In the first form everything is finite at alpha_i = 0. c (k,): C_1..C_k; alpha, sigma: at i + 1; conversion: (p, q,
    r, s) of x_0 = p x_i + q output and eps_i = r x_i + s output.
    """
    p, q, r, s = conversion
    c = alpha * c
    own = sigma - c.sum()
    return float(alpha * p + own * r), float(alpha * q + own * s), tuple(map(float, c))


def adams_bashforth_step(
    x: torch.Tensor, output: torch.Tensor, earlier: Sequence[torch.Tensor], a: float, b: float, w: Sequence[float]
) -> torch.Tensor:
    """x_{i+1} = a x_i + b output_i + sum_{j=1..k} w_j eps_{i-j}; all (B, ...), earlier: eps_{i-1}, eps_{i-2}, ..."""
    result = (a * x).add_(output, alpha=b)
    for weight, eps in zip(w, earlier, strict=False):
        result.add_(eps, alpha=weight)
    return result


def runge_kutta_in_sigma(
    x: torch.Tensor, slopes: Sequence[torch.Tensor], weights: Sequence[float], h: float
) -> torch.Tensor:
    """x_i + h sum_s w_s (eps_s - x_0s), (B, ...): a stage, or the end, of a step of a flow of width h in sigma.

    slopes: eps_s - x_0s of the stages so far, as many as weights. Everything is finite at alpha_i = 0.
    """
    result = x.clone()
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            result.add_(slope, alpha=float(weight * h))
    return result


def runge_kutta_stage(
    x0: torch.Tensor, slopes: Sequence[torch.Tensor], weights: Sequence[float], alpha: float, sigma: float, h: float
) -> torch.Tensor:
    """The state (B, ...) at (alpha, sigma) of a Runge-Kutta step of width h in rho: its next stage, or its end.

        x = alpha x_0 + sigma eps_1 + alpha h sum_{s>1} w_s (eps_s - eps_1)
          = alpha (x_i / alpha_i + h sum_s w_s eps_s),   for the w_s add up to (sigma / alpha - rho_i) / h

    x0 (B, ...): the prediction of the first stage; slopes: eps_1, eps_2, ... of the stages so far; weights: as many, a
    row of the tableau. In the first form everything is finite at alpha_i = 0.
    """
    result = (float(alpha) * x0).add_(slopes[0], alpha=float(sigma))
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            result.add_(slope - slopes[0], alpha=float(alpha * weight * h))
    return result


class DEISScheduler(BaseScheduler):
    """DEIS with `variant` in tab | rhoab | logrhoab | rhork | ipndm.

    `ab_order`: the paper's r, 0 to 3, earlier predictions used beside the current one (classical order r + 1);
    diffusers' `solver_order` is r + 1. `tableau`: of `rhork`, see TABLEAUX. `lower_order_final`: let r fall towards the
    end: true in trajectories of fewer than 15 steps (as in diffusers), an integer n of fewer than n, false never. A
    last step to sigma = 0 is always of order 0. Further options: `BaseScheduler`. Raises ConfigError for an order that
    the variant does not have, or for too few steps to reach it.
    """

    @register_to_config
    @with_schedule_options
    def __init__(
        self,
        variant: str = "tab",
        ab_order: int = 3,
        tableau: str = "heun",
        lower_order_final: bool | int = False,
        **options: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise unknown("DEIS variant", str(variant), VARIANTS)
        check_int(f"ab_order of variant {variant}", ab_order, 0, MAX_ORDER)
        if tableau not in TABLEAUX:
            raise unknown("Runge-Kutta tableau", str(tableau), TABLEAUX)
        if not isinstance(lower_order_final, bool):
            check_int("lower_order_final", lower_order_final, 0)
        super().__init__(**options)

    @property
    def order(self) -> int:
        """Evaluations a step."""
        return self.stages(self.config)

    @staticmethod
    def stages(options: Any) -> int:
        """Evaluations a step of a scheduler with these options."""
        rk = options.get("variant", "tab") == "rhork"
        return len(TABLEAUX[options.get("tableau", "heun")].b) if rk else 1

    def _plan(self, nodes: Nodes) -> np.ndarray:
        if self.config.variant == "rhork":
            return self._plan_stages(nodes)
        r = self.config.ab_order
        if nodes.steps <= r:
            raise ConfigError(
                f"{nodes.steps} steps are too few for ab_order={r}: step i can use i earlier predictions; allowed: "
                f"ab_order <= {nodes.steps - 1}, or at least {r + 1} steps."
            )
        limit = self.config.lower_order_final
        limit = SHORT * limit if isinstance(limit, bool) else limit
        remaining = np.arange(nodes.steps - 1, -1, -1)
        self._orders = np.minimum(r, remaining) if nodes.steps < limit else np.full(nodes.steps, r)
        if self.config.final_sigma == "zero":
            self._orders[-1] = 0
        self._weights = {}
        for i in range(nodes.steps):
            self._weights_of(i, min(int(self._orders[i]), i))
        return nodes.t[:-1]

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        if self.config.variant == "rhork":
            return self._advance_stage(index, output, sample)
        nodes = self.nodes
        output = self.thresholded(output, sample, nodes.alpha[index], nodes.sigma[index])
        history = self.memory.setdefault("eps", [])  # newest first
        weights, (r, s) = self._weights_of(index, min(int(self._orders[index]), len(history)))
        result = adams_bashforth_step(sample, output, history, *weights)
        if self.config.ab_order:
            history.insert(0, output if r == 0 and s == 1 else (r * sample).add_(output, alpha=s))
            del history[self.config.ab_order :]
        return result

    def _weights_of(self, i: int, k: int) -> tuple[tuple[Any, ...], tuple[float, float]]:
        # Of the step from i with k earlier predictions: those of `adams_bashforth_step`, and (r, s) of eps_i.
        if (i, k) not in self._weights:
            nodes = self.nodes
            conversion = self.conversion(nodes.alpha[i], nodes.sigma[i])
            c = self._coefficients(nodes.rho[i - k : i + 1][::-1], nodes.rho[i + 1])
            weights = adams_bashforth_weights(c[1:], nodes.alpha[i + 1], nodes.sigma[i + 1], conversion)
            self._weights[i, k] = weights, tuple(map(float, conversion[2:]))
        return self._weights[i, k]

    def _coefficients(self, rho: np.ndarray, end: float) -> np.ndarray:
        if len(rho) == 1:
            return np.array([end - rho[0]])
        return MULTISTEP[self.config.variant](self.schedule, rho=rho, end=end)

    def _plan_stages(self, nodes: Nodes) -> np.ndarray:
        # One entry an evaluation: (step, stage, timestep, alpha, sigma). A step to sigma = 0 is Euler's.
        tableau, self._stages = TABLEAUX[self.config.tableau], []
        for i in range(nodes.steps):
            start, end = nodes.rho[i], nodes.rho[i + 1]
            used = tableau if end > 0 else TABLEAUX["euler"]
            for s, c in enumerate(used.c):
                if c in (0.0, 1.0):
                    at = i + int(c)
                    t, alpha, sigma = nodes.t[at], nodes.alpha[at], nodes.sigma[at]
                elif nodes.alpha[i] == 0:
                    sigma = nodes.sigma[i] + c * (nodes.sigma[i + 1] - nodes.sigma[i])
                    t, alpha = sigma * self.schedule.total, 1 - sigma
                else:
                    rho = start + c * (end - start)
                    t, (alpha, sigma) = self.schedule.timestep(rho), self.schedule.of_rho(rho)
                self._stages.append((i, s, used, *map(float, (t, alpha, sigma))))
        return np.array([stage[3] for stage in self._stages])

    def _advance_stage(self, index: int, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        step, s, tableau, _, alpha, sigma = self._stages[index]
        slopes = self.memory.setdefault("eps", [])
        if len(slopes) != s:
            raise AccelError(
                f"evaluation {index} is stage {s + 1} of a Runge-Kutta step, but the step was not begun; start at the "
                "first stage of a step."
            )
        output = self.thresholded(output, sample, alpha, sigma)
        p, q, r, o = self.conversion(alpha, sigma)
        x0, eps, nodes = p * sample + q * output, r * sample + o * output, self.nodes
        from_noise = nodes.alpha[step] == 0
        if s == 0:
            self.memory["base"] = sample if from_noise else x0
        slopes.append(eps - x0 if from_noise else eps)
        last = s + 1 == len(tableau.b)
        weights = tableau.b if last else tableau.a[s + 1]
        if from_noise:
            h = nodes.sigma[step + 1] - nodes.sigma[step]
            result = runge_kutta_in_sigma(self.memory["base"], slopes, weights, h)
        else:
            alpha, sigma = (nodes.alpha[step + 1], nodes.sigma[step + 1]) if last else self._stages[index + 1][4:]
            h = nodes.rho[step + 1] - nodes.rho[step]
            result = runge_kutta_stage(self.memory["base"], slopes, weights, alpha, sigma, h)
        if last:
            self.memory = {}
        return result
