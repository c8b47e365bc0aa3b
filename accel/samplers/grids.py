"""Timestep grids at the scheduler seam, by the options that diffusers' schedulers have for them.

`trailing`, `linspace`, `leading`: Lin et al. 2024 (arXiv:2305.08891), Table 2; `karras`: Karras et al. 2022, eq. 5
(rho = 7), the same power law in sigma; `exponential`: uniform in log sigma. Both lead from the largest sigma of the
training schedule to its smallest; from there the sampler takes its last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accel.errors import IncompatibleError, unknown

_OPTIONS = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}


@dataclass(frozen=True)
class Grid:
    """A named timestep grid; `trailing` is what every suite uses unless told otherwise."""

    name: str = "trailing"
    EPOCH = 2

    def __post_init__(self) -> None:
        if self.name not in _OPTIONS:
            raise unknown("grid", self.name, _OPTIONS)

    def options(self, scheduler_class: type) -> dict[str, Any]:
        """Scheduler config entries for this grid; IncompatibleError when the class has no such option."""
        import inspect

        options = _OPTIONS[self.name]
        accepted = inspect.signature(scheduler_class.__init__).parameters
        if missing := [k for k in options if k not in accepted]:
            fits = [n for n, o in _OPTIONS.items() if all(k in accepted for k in o)]
            raise IncompatibleError(
                f"{scheduler_class.__name__} has no {missing[0]}, so grid {self.name!r} cannot be used with it; "
                f"it takes: {', '.join(fits) or 'its own grid only (grid=none)'}."
            )
        if self.name in ("karras", "exponential") and "timestep_spacing" in accepted:
            # Euler and Heun take the ends of the power law from the spacing: `trailing` would leave out the low sigmas.
            return options | {"timestep_spacing": "linspace"}
        return dict(options)
