"""T-Stitch: a small denoiser takes the first, noisiest part of the trajectory, a large one the rest.

Paper: Pan et al., "T-Stitch: Accelerating Sampling in Pre-Trained Diffusion Models with Trajectory Stitching", ICLR
2025 (arXiv:2402.14167), sec. 3. With fractions r_1, r_2, ... of N solver steps, model m takes the steps up to
round((r_1 + ... + r_m) N); the pipeline's own denoiser takes what is left. Rounding is half up, by solver-step index.
The released scripts have four rules that disagree. `rule`: `step` is the paper's text, above; `time` is that of the
scripts for DiT and latent diffusion: model m takes the steps with 1 - t / T <= r_1 + ... + r_m, T training timesteps,
whatever the sampler's grid. Those for Stable Diffusion round down instead. Models of different classes (a UNet and a
transformer) may share a trajectory if space and conditioning are the same, or if they have a conditioning of their own
(accel/core/conditioning.py); each is called by its own argument names.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import torch

from accel.core.denoiser import Denoise, Inputs
from accel.core.method import LATER, Stitch
from accel.core.networks import check_shared
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError, check_float, unknown


def milestones(fractions: Sequence[float], num_steps: int) -> list[int]:
    """First step after each model's share: floor((r_1 + ... + r_m) N + 1/2), N solver steps."""
    return [math.floor(total * num_steps + 0.5 + 1e-9) for total in accumulate(fractions)]


def model_by_step(fractions: Sequence[float], step: int, num_steps: int) -> int:
    """The m, from 0, whose share solver step `step` of `num_steps` falls in; len(fractions) after the last share."""
    return bisect_right(milestones(fractions, num_steps), step)


def model_by_time(fractions: Sequence[float], timestep: float, timesteps: int) -> int:
    """The first m, from 0, with 1 - t / T <= r_0 + ... + r_m, T training timesteps; len(fractions) if there is none."""
    return bisect_left([total + 1e-9 for total in accumulate(fractions)], 1 - timestep / timesteps)


RULES: Mapping[str, Callable[[Sequence[float], Trajectory], int]] = {
    "step": lambda fractions, clock: model_by_step(fractions, clock.step, clock.num_steps),
    "time": lambda fractions, clock: model_by_time(
        fractions, clock.step_timestep, clock.scheduler.config.num_train_timesteps
    ),
}


@dataclass(frozen=True)
class TStitch(Stitch):
    """`models` (names, small to large) take `fractions` of the steps; the pipeline's denoiser takes the rest."""

    uneven: ClassVar[bool] = True
    models: Sequence[str] = ("small",)
    fractions: Sequence[float] = (0.4,)
    rule: str = field(default="step", metadata=LATER)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("stitch.rule", str(self.rule), RULES)
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "fractions", tuple(float(f) for f in self.fractions))
        for f in self.fractions:
            check_float("stitch.fractions", f, 0.0, 1.0)
        if len(self.models) != len(self.fractions):
            raise ConfigError(
                f"stitch has {len(self.models)} models {self.models} but {len(self.fractions)} fractions "
                f"{self.fractions}; give one fraction for each model."
            )
        if sum(self.fractions) > 1 + 1e-9:
            raise ConfigError(f"stitch.fractions {self.fractions} sum to {sum(self.fractions):g}; allowed: at most 1.")

    @property
    def label(self) -> str:
        # The usual single model need not be named.
        said = [] if self.models == ("small",) else [",".join(self.models)]
        said += [] if self.rule == "step" else ["t"]
        return "tstitch" + "+".join(f"{100 * f:g}%" for f in self.fractions) + (f"({';'.join(said)})" if said else "")

    def owner(self, clock: Trajectory) -> int:
        """Which model takes the clock's step: its index among `models`, or their number for the pipeline's own."""
        return RULES[self.rule](self.fractions, clock)

    def check(self, nets, recipe) -> None:
        check_shared({name: nets[name] for name in ("base", *self.models)}, "stitching", "stitch")

    def combine(self, denoisers: Mapping[str, Denoise], clock: Trajectory) -> Denoise:
        """One denoiser that hands each call to the model of its step; `denoisers` by name, `base` is the pipeline's."""
        order = [*(denoisers[name] for name in self.models), denoisers["base"]]

        def denoise(inputs: Inputs) -> torch.Tensor:
            return order[self.owner(clock)](inputs)

        return denoise
