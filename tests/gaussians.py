"""Data whose scores and trajectories are known: velocities of a point and of normal data, and their exact maps."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from accel.samplers.noise_schedule import noise_schedule
from accel.suites.digits.models import FLOW_SCHEDULER, SCHEDULER
from accel.suites.training.noising import column

SCHEDULES = {"betas": noise_schedule(SCHEDULER), "flow": noise_schedule(FLOW_SCHEDULER | {"shift": 1.0})}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def towards(x0, levels):
    """The velocity of a data set of one point `x0`, whose trajectories are straight: DDIM is exact on them."""

    def predict(x, t):
        alpha, sigma = levels.at(t.numpy())
        own = torch.as_tensor(x0, dtype=x.dtype).expand_as(x)
        return ((x if levels.schedule.flow else column(alpha, x) * x) - own) / column(sigma, x)

    return predict


def gaussian(mean, std, levels):
    """The velocity of normal data, and the exact map from time t to u."""

    def parts(t):
        alpha, sigma = levels.at(t)
        return alpha, np.sqrt(alpha**2 * std**2 + sigma**2)

    def predict(x, t):
        (alpha, whole), (_, sigma) = parts(t.numpy()), levels.at(t.numpy())
        share = column(alpha * std**2 / whole**2, x)
        x0 = mean + share * (x - column(alpha, x) * mean)
        return ((x if levels.schedule.flow else column(alpha, x) * x) - x0) / column(sigma, x)

    def move(x, t, u):
        (alpha, whole), (after, wide) = parts(t), parts(u)
        return column(after, x) * mean + column(wide / whole, x) * (x - column(alpha, x) * mean)

    return predict, move


class Point(nn.Module):
    """The network of data of one point, which it learns: v towards `x0`."""

    def __init__(self, x0: float, levels) -> None:
        super().__init__()
        self.x0, self.levels = nn.Parameter(torch.tensor(x0, dtype=torch.float64)), levels

    def forward(self, x, t, class_labels=None, return_dict=False):
        return (towards(self.x0, self.levels)(x, t.double().cpu()),)


class Normal(nn.Module):
    """The network of normal data, whose mean and deviation it learns."""

    def __init__(self, mean: float, std: float, levels) -> None:
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (mean, np.log(std)))
        self.levels = levels

    def forward(self, x, t, class_labels=None, return_dict=False):
        alpha, sigma = (column(each, x) for each in self.levels.at(t.double().numpy()))
        variance = (2 * self.log_std).exp()
        x0 = self.mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * self.mean)
        return (((x if self.levels.schedule.flow else alpha * x) - x0) / sigma,)


class Affine(nn.Module):
    """A student of one step that makes std * x + mean of its noise."""

    def __init__(self, mean: float, std: float, levels) -> None:
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (mean, std))
        self.levels = levels

    def forward(self, x, t, class_labels=None, return_dict=False):
        alpha, sigma = (column(each, x) for each in self.levels.at(t.double().numpy()))
        return (((x if self.levels.schedule.flow else alpha * x) - (self.std * x + self.mean)) / sigma,)
