"""diffusers' own schedulers as baselines, with the settings that make them comparable.

Each starts at the last training timestep (`trailing` grid), ends at sigma = 0 and leaves the predictions unclipped, so
that a difference between two rows is a difference of the solver. Deviations: `DEISMultistepScheduler` has no
`final_sigmas_type`; it ends at sigma(t = 0), 0.01 for linear betas. `DDIMScheduler` moves by T // N timesteps, which is
its grid's step only if N divides T.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accel.errors import ConfigError, check_int, unknown
from accel.samplers.base import Sampler
from accel.samplers.grids import Grid

# Over the model's own config where the class has the option; only some classes can clip.
COMPARABLE = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}


@dataclass(frozen=True)
class DiffusersSampler(Sampler):
    """A diffusers scheduler by class name: `steps` solver steps, `options` over the model's scheduler config."""

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
        return self.steps * self._class().order

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
        return cls.from_config(dict(config), **overrides)

    def _class(self) -> type:
        import diffusers

        cls = getattr(diffusers, self.scheduler, None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin) and hasattr(cls, "from_config")):
            known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
            raise unknown("diffusers scheduler", self.scheduler, known)
        return cls
