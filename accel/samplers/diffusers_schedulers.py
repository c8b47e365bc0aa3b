"""Any scheduler class as a recipe's sampler: accel's own, and diffusers' as baselines with comparable settings.

diffusers' own: each starts at the last training timestep (`trailing` grid), ends at sigma = 0 and leaves the predictions unclipped, so
that a difference between two rows is a difference of the solver. Deviations: `DEISMultistepScheduler` has no
`final_sigmas_type`; it ends at sigma(t = 0), 0.01 for linear betas. `DDIMScheduler` moves by T // N timesteps, which is
its grid's step only if N divides T.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accel.errors import ConfigError, check_int, unknown
from accel.samplers.base import Sampler
from accel.samplers.grids import Grid
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.scheduler import BaseScheduler

# Over the model's own config where the class has the option; only some classes can clip.
COMPARABLE = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}


@dataclass(frozen=True)
class DiffusersSampler(Sampler):
    """A scheduler by class name, diffusers' or accel's: `steps` solver steps, `options` over the model's config."""

    scheduler: str
    steps: int
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "name", self.name or self.scheduler.removesuffix("Scheduler"))
        check_int("sampler.steps", self.steps, 1)
        cls = self._class()
        accepted = inspect.signature(cls).parameters
        for key in self.options:
            if key not in accepted:
                raise unknown(f"option of {self.scheduler}", key, accepted)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.steps}"

    @property
    def evaluations(self) -> int:
        cls = self._class()
        return self.steps * (cls.stages(self.options) if hasattr(cls, "stages") else cls.order)

    def build(self, config: Mapping[str, Any], grid: Grid | None = None) -> Any:
        """The scheduler on the model's own noise schedule; ConfigError when `steps` exceeds it."""
        total = config.get("num_train_timesteps", 1000)
        if self.steps > total:
            raise ConfigError(
                f"sampler.steps is {self.steps}, more than the {total} timesteps of the model's schedule; "
                f"allowed: 1..{total}."
            )
        cls = self._class()
        own = {k: v for k, v in COMPARABLE.items() if k in inspect.signature(cls).parameters}
        overrides = own | self.options | (grid.options(cls) if grid else {})
        scheduler = cls.from_config(dict(config), **overrides)
        times = grid.explicit(cls, noise_schedule(config), self.steps) if grid else None
        if times is not None:
            scheduler.set_timesteps = _fixed(scheduler.set_timesteps, times)
        elif isinstance(scheduler, BaseScheduler):
            scheduler.set_timesteps(self.steps)  # what does not fit fails here, before any work
        return scheduler

    def _class(self) -> type:
        import diffusers

        import accel.samplers

        cls = getattr(accel.samplers, self.scheduler, None) or getattr(diffusers, self.scheduler, None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin) and hasattr(cls, "from_config")):
            names = {*dir(diffusers), *dir(accel.samplers)} - {"BaseScheduler"}
            raise unknown("scheduler", self.scheduler, [n for n in names if n.endswith("Scheduler") and n[:4] != "Flax"])
        return cls


def _fixed(set_timesteps: Callable[..., None], times: list[int]) -> Callable[..., None]:
    # The grid instead of the number of steps; a pipeline's own explicit timesteps (image-to-image) still win.
    @functools.wraps(set_timesteps)
    def with_grid(num_inference_steps=None, device=None, timesteps=None, **kwargs):
        set_timesteps(timesteps=times if timesteps is None else timesteps, device=device, **kwargs)

    return with_grid
