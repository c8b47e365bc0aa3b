"""Any scheduler class as a recipe's sampler: accel's, anybody's, and diffusers' as baselines with comparable settings.

diffusers' own: each starts at the last training timestep (`trailing` grid), ends at sigma = 0 and leaves the
predictions unclipped, so that a difference between two rows is a difference of the solver. Deviations:
`DEISMultistepScheduler` has no `final_sigmas_type`; it ends at sigma(t = 0), 0.01 for linear betas. `DDIMScheduler`
moves by T // N timesteps, which is its grid's step only if N divides T.

On flow models: `FlowMatchEulerDiscreteScheduler` is given the trailing grid, as flow pipelines do (its own wastes the
last evaluation on the step from sigma = 1 / T), or explicit timesteps, which are those that the model gets, whatever
its shift; `FlowMatchHeunDiscreteScheduler` takes no sigmas and has its own grid, uniform from 1 to 1 / T with 2 N - 1
evaluations; UniPC and DPM-Solver++ start at sigma = 1 - 1 / T. Classes that know no flows, or end before sigma = 0
(DEIS, SA-Solver: at 1 / N), are refused.

Those that few-step students need: `LCMScheduler` has the times of its training as its own grid (see conf/sampler/lcm);
`TCDScheduler` gets its gamma at each step (`each_step`); `SCMScheduler` is of trigflow models alone, see `trigflow`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from accel.core.method import CODE, LATER
from accel.core.sampler import Sampler
from accel.errors import ConfigError, IncompatibleError, check_float, check_int, unknown
from accel.samplers.double import step_in_double
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.noise_schedule import NoiseSchedule, flow_entries, is_flow, noise_schedule, refuse_others
from accel.samplers.scheduler import BaseScheduler
from accel.samplers.scheduler_classes import evaluations_a_step, scheduler_class, scheduler_name
from accel.samplers.trigflow import build_trigflow, for_trigflow, is_trigflow

# Over the model's own config where the class has the option; only some classes can clip.
COMPARABLE = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
# Grids that are uniform in t, which a scheduler of flows may still shift.
LINEAR = ("trailing", "linspace", "leading")
# Numbers that the `step` of a class may take, from the least to the greatest; whatever else it takes is the pipeline's.
STEP_NUMBERS = {"eta": (0.0, 1.0)}
# Options of a flow's scheduler by which the sigmas that it is given become others, besides its shift.
RESHAPED = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class DiffusersSampler(Sampler):
    """A scheduler by class name, diffusers' or accel's: `steps` solver steps, `options` over the model's config,
    `each_step` what its `step` is told (`eta` of DDIM and TCD), whatever a pipeline tells it.

    A scheduler of anybody else is given by its dotted path, `mypkg.samplers.MyScheduler`, or as the class itself, of
    which the field keeps the path (of accel's and diffusers' classes the name). ConfigError for what is no scheduler.
    """

    scheduler: str = field(metadata=CODE)
    steps: int
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    each_step: Mapping[str, float] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "each_step", dict(self.each_step or {}) or None)
        cls = scheduler_class(self.scheduler)
        object.__setattr__(self, "scheduler", scheduler_name(cls, self.scheduler))
        object.__setattr__(self, "name", self.name or cls.__name__.removesuffix("Scheduler"))
        check_int("sampler.steps", self.steps, 1)
        accepted = inspect.signature(cls).parameters
        for key in self.options:
            if key not in accepted:
                raise unknown(f"option of {self.scheduler}", key, accepted)
        told = [name for name in STEP_NUMBERS if name in inspect.signature(cls.step).parameters]
        for key, value in (self.each_step or {}).items():
            if not told:
                raise ConfigError(f"{self.scheduler} takes no number at each step; leave sampler.each_step out.")
            if key not in told:
                raise unknown(f"argument of a step of {self.scheduler}", key, told)
            check_float(f"sampler.each_step.{key}", value, *STEP_NUMBERS[key])
        evaluations_a_step(cls, self.options)  # says what is wrong with a class that does not tell

    @property
    def scheduler_class(self) -> type:
        """The class that `scheduler` names."""
        return scheduler_class(self.scheduler)

    @property
    def label(self) -> str:
        told = ",".join(f"{key}={value:g}" for key, value in (self.each_step or {}).items())
        return f"{self.name}{f'({told})' if told else ''}-{self.steps}"

    @property
    def evaluations(self) -> int:
        return self.steps * evaluations_a_step(self.scheduler_class, self.options)

    def build(self, config: Mapping[str, Any], grid: Grid | None = None) -> Any:
        """The scheduler on the model's own noise schedule; ConfigError when `steps` exceeds it."""
        scheduler = self._build(config, grid)
        if self.each_step:
            scheduler.step = _told(scheduler.step, self.each_step)
        return scheduler

    def _build(self, config: Mapping[str, Any], grid: Grid | None) -> Any:
        total = config.get("num_train_timesteps", 1000)
        if self.steps > total:
            raise ConfigError(
                f"sampler.steps is {self.steps}, more than the {total} timesteps of the model's schedule; "
                f"allowed: 1..{total}."
            )
        cls = self.scheduler_class
        if for_trigflow(cls) or is_trigflow(config):
            return self._tried(build_trigflow(cls, config, self.options, grid, self.steps))
        if not issubclass(cls, BaseScheduler) and (_for_flows(cls) or is_flow(config)):
            return self._build_flow(cls, dict(config), grid)
        accepted = inspect.signature(cls).parameters
        refuse_others(config, accepted)
        own = {k: v for k, v in COMPARABLE.items() if k in accepted}
        overrides = own | self.options | (grid.options(cls) if grid else {})
        scheduler = cls.from_config(dict(config), **overrides)
        times = grid.explicit(cls, noise_schedule(config), self.steps) if grid else None
        if times is not None:
            scheduler.set_timesteps = _fixed(scheduler.set_timesteps, timesteps=times)
        elif isinstance(scheduler, BaseScheduler):
            # What does not fit fails here, before any work. The pipeline will know the exponent of dynamic shifting.
            scheduler.set_timesteps(self.steps, mu=1.0 if scheduler.config.use_dynamic_shifting else None)
        return self._tried(scheduler)

    def in_double(self, scheduler: Any) -> None:
        if not isinstance(scheduler, BaseScheduler):
            step_in_double(scheduler)

    def _build_flow(self, cls: type, config: dict[str, Any], grid: Grid | None) -> Any:
        accepted = inspect.signature(cls).parameters
        if not is_flow(config):
            raise IncompatibleError(
                f"{self.scheduler} needs a flow model, and this model has a schedule of betas; use a sampler of "
                "diffusion models, such as ddim, dpmpp_2m or unipc."
            )
        if not _for_flows(cls) and not {"use_flow_sigmas", "final_sigmas_type"} <= accepted.keys():
            raise IncompatibleError(
                f"{self.scheduler} cannot run a flow model down to sigma = 0; use FlowMatchEulerDiscreteScheduler, "
                "UniPCMultistepScheduler, DPMSolverMultistepScheduler, or one of accel's own samplers of flows."
            )
        takes_sigmas = _for_flows(cls) and "sigmas" in inspect.signature(cls.set_timesteps).parameters
        explicit = takes_sigmas and isinstance(grid, ExplicitGrid) and not any(config.get(name) for name in RESHAPED)
        if grid and not explicit and not (takes_sigmas and type(grid) is Grid and grid.name in LINEAR):
            raise IncompatibleError(
                f"grid {grid.name!r} cannot be used with {self.scheduler} on a flow model, where it means something "
                "else or nothing; use grid=none, or one of accel's own samplers."
            )
        refuse_others(config, accepted)
        own = flow_entries(config)
        own = {"shift": own["flow_shift"]} if _for_flows(cls) else own
        scheduler = cls.from_config(config, **own | self.options)
        if takes_sigmas:
            total = config.get("num_train_timesteps", 1000)
            times = (grid or Grid()).times(NoiseSchedule(total, None, float(total)), self.steps)
            sigmas = unshifted(times / total, scheduler.shift) if explicit else times / total
            scheduler.set_timesteps = _fixed(scheduler.set_timesteps, sigmas=sigmas.tolist())
        return self._tried(scheduler)

    def _tried(self, scheduler: Any) -> Any:
        """`scheduler`, if its steps can be made; IncompatibleError where diffusers' arithmetic fails, or ends in what
        is no number: at the edges of a noise schedule."""
        if isinstance(scheduler, BaseScheduler):
            return scheduler
        takes_mu = "mu" in inspect.signature(scheduler.set_timesteps).parameters
        needs_mu = takes_mu and scheduler.config.get("use_dynamic_shifting")
        try:
            with np.errstate(all="ignore"):
                scheduler.set_timesteps(self.steps, **({"mu": 1.0} if needs_mu else {}))
            reason = _unusable(scheduler)
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            reason = f"{type(error).__name__}{f': {said[:200]}' if said else ''}"
        if reason:
            raise IncompatibleError(
                f"{self.scheduler} cannot make {self.steps} steps on this model's noise schedule ({reason}); use "
                "another grid (grid=none for its own), another number of steps, or one of accel's own samplers, such as"
                " deis_logrhoab."
            )
        return scheduler


def unshifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """What a flow's shift m turns into `sigmas` (N,): the s with m s / (1 + (m - 1) s) = sigma (Esser et al. 2024,
    arXiv:2403.03206, eq. 23), s = sigma / (m - (m - 1) sigma)."""
    return sigmas / (shift - (shift - 1) * sigmas)


def _told(step: Callable[..., Any], values: Mapping[str, float]) -> Callable[..., Any]:
    # Pipelines hand eta to every step that takes it, 0 unless a caller says more: the recipe decides.
    @functools.wraps(step)
    def told(*args, **kwargs):
        return step(*args, **kwargs | values)

    told.fixed = dict(values)
    return told


def _for_flows(cls: type) -> bool:
    return any(base.__name__.startswith("FlowMatch") for base in cls.__mro__)


def _unusable(scheduler: Any) -> str | None:
    # What is wrong with the steps that a scheduler made, if anything.
    for name in ("timesteps", "sigmas"):
        values = torch.as_tensor(getattr(scheduler, name, 0.0)).double()
        if not values.isfinite().all():
            return f"its {name} are {values.tolist()[:4]}"
    times = torch.as_tensor(scheduler.timesteps)
    if evaluations_a_step(type(scheduler), scheduler.config) == 1 and len(times) > 1 and times[0] == times[1]:
        # They find their first step by its timestep, and would take the second one.
        return f"two noise levels are both at its first timestep, {float(times[0]):g}"
    return None


def _fixed(set_timesteps: Callable[..., None], **values: list[float]) -> Callable[..., None]:
    # The grid instead of the number of steps; a pipeline's own explicit timesteps or sigmas still win.
    @functools.wraps(set_timesteps)
    def with_grid(num_inference_steps=None, device=None, timesteps=None, sigmas=None, **kwargs):
        given = {k: v for k, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        set_timesteps(device=device, **(given or values), **kwargs)

    with_grid.fixed = values
    return with_grid
