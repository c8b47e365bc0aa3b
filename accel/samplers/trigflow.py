"""Models on an arc (sCM, SANA-Sprint): the noise level is an angle, and what runs them is SCMScheduler.

    x_t = cos(t) x_0 + sin(t) z,  z ~ N(0, sigma_d^2),  t from pi / 2 (noise) to 0,
    f(x_t, t) = cos(t) x_t - sin(t) F(x_t, t)         the prediction of x_0,
    x_s = cos(s) f(x_t, t) + sin(s) z'                a step to s < t with new noise,

so sigma / alpha = tan t. Source: Lu & Song 2024 (arXiv:2410.11081), section 3; Chen et al. 2025 (arXiv:2503.09641).
The times without a grid are those of diffusers: 1.5708 and 1.3 for two steps, else N equal ones from 1.5708 to 0. Its
pipeline asks for 1.3 at any number of steps, and fails at all but two; here the recipe decides.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.errors import IncompatibleError
from accel.samplers.grids import ExplicitGrid, Grid

LARGEST = 1.5708  # the first angle, as diffusers has it: a little more than pi / 2
MIDDLE = 1.3  # the second of two


@dataclass(frozen=True)
class Angles:
    """The schedule of an arc, as far as a list of times is checked against it."""

    t_max: float = LARGEST
    t_min: float = 1e-3


def angles(steps: int) -> np.ndarray:
    """The N evaluation angles that diffusers takes, (N,) float64, largest first."""
    if steps == 2:
        return np.array([LARGEST, MIDDLE])
    return np.linspace(LARGEST, 0, steps + 1)[:-1]


def is_trigflow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler config is of a model on an arc."""
    return config.get("prediction_type") == "trigflow"


def for_trigflow(cls: type) -> bool:
    """Whether a scheduler class steps models on an arc: it predicts on one unless told otherwise."""
    option = inspect.signature(cls).parameters.get("prediction_type")
    return option is not None and option.default == "trigflow"


def build_trigflow(
    cls: type, config: Mapping[str, Any], options: Mapping[str, Any], grid: Grid | None, steps: int
) -> Any:
    """A scheduler of `cls` for the model of `config` at the angles of `grid`, or its own. IncompatibleError where one
    of both is of another kind, or the grid is no list of angles."""
    if not is_trigflow(config):
        raise IncompatibleError(
            f"{cls.__name__} is for models whose noise level is an angle (trigflow: SANA-Sprint), and this model has "
            "timesteps; use sampler=lcm, or flow_lcm for a flow."
        )
    if not for_trigflow(cls):
        raise IncompatibleError(
            f"this model's noise level is an angle (trigflow: SANA-Sprint), which {cls.__name__} does not know; use "
            "sampler=scm."
        )
    if grid is not None and not isinstance(grid, ExplicitGrid):
        raise IncompatibleError(
            f"grid {grid.name!r} is one of timesteps, and this model has angles; use grid=none, or grid=explicit with "
            f"angles from {LARGEST:g} down, such as grid.timesteps=[1.5708,1.3]."
        )
    times = angles(steps) if grid is None else grid.times(Angles(), steps)
    scheduler = cls.from_config(dict(config), **options)
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def at_angles(num_inference_steps=None, device=None, timesteps=None, **kwargs):
        ends = [*map(float, times), 0.0]
        set_timesteps(steps, timesteps=ends, device=device, max_timesteps=None, intermediate_timesteps=None)

    at_angles.fixed = plain_arguments(times, grid is None)
    scheduler.set_timesteps = at_angles
    return scheduler


def plain_arguments(times: np.ndarray, own: bool) -> dict[str, float | None] | None:
    """What a plain call of SANA-Sprint's pipeline is told for the same angles; None where nothing says them: its own
    `timesteps` end in an error of diffusers 0.42."""
    if len(times) > 2 and not own:
        return None
    return {"max_timesteps": float(times[0]), "intermediate_timesteps": float(times[1]) if len(times) == 2 else None}
