"""Noise levels of suite `digits`: a small classifier that tells sigma from x_0 + sigma eps alone.

The Gibbs step sigma ~ p(sigma | x) of Denoising Langevin Gibbs (accel/samplers/langevin_gibbs.py) needs it. Kim & Ye
2023 (arXiv:2209.14593) train one on data plus noise of log-uniform level with the cross-entropy of the level's index.

256 pixels of pure noise give their level to 1 / sqrt(2 * 256) = 4.4 % and nothing can do better without knowing x_0,
so that levels 6 % apart are fine enough. The range ends well below the last step of any sampler and well above the
levels at which digits of one class begin to differ.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.samplers import DenoisingLangevinGibbs, Sampler
from accel.samplers.langevin_chain import LevelEstimator
from accel.suites.base import ASSETS, check_manifest, load_frozen, remedy
from accel.suites.digits.data import SIZE

REMEDY = remedy("digits_levels")
LEVELS = 128
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0
FILE = "levels.safetensors"
WAVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # angular frequencies in log rms, which runs from about -0.3 to 3


def sigmas() -> torch.Tensor:
    """The levels (LEVELS,), float64, log-uniform from SIGMA_MIN to SIGMA_MAX."""
    ends = torch.tensor([SIGMA_MIN, SIGMA_MAX], dtype=torch.float64).log()
    return torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64).exp()


class LevelNet(nn.Module):
    """Logits (B, LEVELS) of the level of x_0 + sigma eps (B, 1, 16, 16), in the scale in which x_0 lies in [-1, 1].

    The network sees the image divided by its root mean square, about sqrt(1 + sigma^2), which keeps its input of one
    size whatever sigma is, and the logarithm of that number as waves of several lengths. Beside filtered images it is
    given the logarithm of their local power, from which a level follows over three decades.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, 16, 5, padding=2, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(32, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.SiLU()
        )
        self.head = nn.Sequential(nn.Linear(64 + 2 * len(WAVES), 128), nn.SiLU(), nn.Linear(128, LEVELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rms = x.flatten(1).square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        filtered = self.filters(x / rms[..., None, None])
        power = nn.functional.avg_pool2d(filtered.square(), 2).add(1e-6).log()
        features = self.body(torch.cat([nn.functional.avg_pool2d(filtered, 2), power], 1)).mean((2, 3))
        phase = rms.log() * rms.new_tensor(WAVES)
        return self.head(torch.cat([features, phase.sin(), phase.cos()], 1))


class LevelClassifier(LevelEstimator):
    """The most probable level, by a trained `LevelNet` from folder `name`; `sha256` is that of its weights' file."""

    shape = (1, SIZE, SIZE)
    bounds = (SIGMA_MIN, SIGMA_MAX)

    def __init__(self, net: LevelNet, name: str, sha256: str) -> None:
        self.net, self.name, self.sha256, self.levels = net.eval().requires_grad_(False), name, sha256, sigmas()
        self._copies = {next(net.parameters()).device: self.net}

    def __reduce__(self) -> tuple[Any, ...]:
        return level_classifier, (self.name,)  # pickled by name: the weights are in their file

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """sigma (B,), float64, of x (B, 1, 16, 16) = x_0 + sigma eps."""
        # On the CPU: argmax there takes the first of equal ones, and a chain needs its levels as numbers anyway.
        return self.levels[self._at(x.device)(x.float()).cpu().argmax(1)]

    def _at(self, device: torch.device) -> nn.Module:
        # The network on the device of a chain, a copy for each: `level_classifier` shares this object.
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.net).to(device)
        return self._copies[device]


@lru_cache(maxsize=4)
def level_classifier(weights: str = "digits") -> LevelClassifier:
    """The classifier in folder `weights` (`digits`: the shipped one), in float32.

    Raises IntegrityError when a file is missing or damaged.
    """
    folder = ASSETS / "digits_levels" if weights == "digits" else Path(weights)
    manifest = check_manifest(folder, REMEDY)
    return LevelClassifier(load_frozen(LevelNet, folder / FILE), weights, manifest[FILE])


def langevin_gibbs(sampler: Sampler, classifier: str = "digits", **settings: Any) -> DenoisingLangevinGibbs:
    """Denoising MCMC by Langevin-Gibbs chains before `sampler`, for samples like those of suite `digits`.

    `classifier`: the folder of the noise-level classifier, `digits` for the shipped one; `settings`: those of
    DenoisingLangevinGibbs. Raises IntegrityError when a file of the classifier is missing or damaged.
    """
    return DenoisingLangevinGibbs(sampler, estimator=level_classifier(classifier), **settings)
