"""Base of everything that goes to the scheduler seam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from accel.core.trajectory import Trajectory


class TimestepGrid(Protocol):
    """What a recipe asks of a timestep grid; accel.samplers.grids.Grid is the base of all."""

    name: str
    keyed: bool

    def check(self, weights: Mapping[str, str]) -> None:
        """Raise ConfigError if it was made for other `weights`: digests of the networks that run, by name."""


class Sampler:
    """A sampler's configuration; `build` makes the diffusers scheduler that the pipeline will run.

    EPOCH is part of a run's identity: raise it when a change alters the numbers that the sampler produces.
    """

    EPOCH = 1
    name: str
    steps: int
    label: str

    @property
    def evaluations(self) -> int:
        """Denoiser calls of one trajectory, at most; more than `steps` for multi-stage solvers."""
        return self.steps

    def build(self, config: dict[str, Any], grid: Any = None) -> Any:
        """A scheduler for a model trained with scheduler `config`, on the timestep `grid` (None: the sampler's own)."""
        raise TypeError(f"{type(self).__name__} does not say how to build its scheduler")

    def in_double(self, scheduler: Any) -> None:
        """Make `scheduler`, which `build` made, step in float64, if it does not anyway: the pipeline works in it."""

    @property
    def calibrated(self) -> bool:
        """Whether the sampler needs an artefact, which `calibrate` makes."""
        return False

    @property
    def predicts(self) -> bool:
        """Whether it evaluates the model outside the pipeline's loop, each time as a trajectory of its own."""
        return self.calibrated

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> Sampler:
        """The sampler with all its numbers, those of its artefact included."""
        return self

    def run(self, pipe: Any, clock: Trajectory, call: dict[str, Any]) -> Any:
        """The pipeline's result for the arguments `call`; a sampler that prepares the initial noise does it here."""
        return pipe(**call)

    def group(self, period: int) -> int:
        """Samples that must be generated together; `period`: after so many samples the suite's conditions repeat."""
        return 1
