"""Base of everything that goes to the scheduler seam."""

from __future__ import annotations

from typing import Any


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
