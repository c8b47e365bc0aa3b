"""Noise levels as functions of the time, and what is made of images, noise and velocities at them.

x_t = alpha x_0 + sigma eps; a network predicts v = alpha eps - sigma x_0 (Salimans & Ho 2022, arXiv:2202.00512), or
of a flow, where alpha = 1 - sigma, v = eps - x_0. Times are arrays (B,) in float64, and levels pairs of such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from accel.samplers.noise_schedule import NoiseSchedule

END = -1.0  # the time at which sigma = 0, below every timestep
Level = tuple[np.ndarray, np.ndarray]  # alpha and sigma, (B,) each


@dataclass(frozen=True)
class Levels:
    """Noise levels as functions of times (B,) in float64, END among them: a schedule with the step to sigma = 0."""

    schedule: NoiseSchedule

    def at(self, times: np.ndarray) -> Level:
        """(alpha, sigma) of times (B,)."""
        alpha, sigma = self.schedule.alpha_sigma(np.maximum(times, self.schedule.t_min))
        ended = times < self.schedule.t_min
        return np.where(ended, 1.0, alpha), np.where(ended, 0.0, sigma)

    def between(self, t: np.ndarray, s: np.ndarray, parts: int) -> np.ndarray:
        """`parts` + 1 times from t to s (parts + 1, B), uniform in rho^(1/7) as Karras' grid; END stays the last."""
        root = [self.schedule.rho(np.maximum(times, self.schedule.t_min)) ** (1 / 7) for times in (t, s)]
        shares = np.arange(parts + 1)[:, None] / parts
        found = self.schedule.timestep((root[0] + shares * (root[1] - root[0])) ** 7)
        found[0], found[-1] = t, s
        return found


def column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """values (B,) as (B, 1, 1, 1) of the dtype and device of `like`."""
    return torch.as_tensor(values).to(like).reshape(-1, *[1] * (like.dim() - 1))


def clean(x: torch.Tensor, v: torch.Tensor, alpha: np.ndarray, sigma: np.ndarray, flow: bool) -> torch.Tensor:
    """x_0 of a velocity at x_t: alpha x - sigma v; of a flow's x - sigma v."""
    return (x if flow else column(alpha, x) * x) - column(sigma, x) * v


def ddim(x: torch.Tensor, x0: torch.Tensor, now: Level, then: Level) -> torch.Tensor:
    """One DDIM step of x_t with a predicted x_0: alpha_s x_0 + (sigma_s / sigma_t) (x_t - alpha_t x_0)."""
    (alpha, sigma), (alpha_s, sigma_s) = now, then
    return column(alpha_s, x) * x0 + column(sigma_s / sigma, x) * (x - column(alpha, x) * x0)


def renoised(x0: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
    """x_t = alpha x_0 + sigma eps."""
    return column(level[0], x0) * x0 + column(level[1], x0) * noise


def velocity(x0: torch.Tensor, noise: torch.Tensor, level: Level, flow: bool) -> torch.Tensor:
    """alpha eps - sigma x_0 (Salimans & Ho 2022); of a flow eps - x_0."""
    return noise - x0 if flow else column(level[0], x0) * noise - column(level[1], x0) * x0


def draw_times(levels: Levels, between: tuple[float, float], count: int, generator: torch.Generator) -> np.ndarray:
    """Whole timesteps (count,), uniform between two shares of the schedule."""
    low, high = (levels.schedule.t_min + share * (levels.schedule.t_max - levels.schedule.t_min) for share in between)
    return torch.randint(round(low), round(high) + 1, (count,), generator=generator).double().numpy()
