"""Denoising MCMC by Langevin-Gibbs: samplers that start from a Markov chain near the data instead of from pure noise.

Kim & Ye, "Denoising MCMC for Accelerating Diffusion-Based Generative Models", ICML 2023 (arXiv:2209.14593). In the
variance-exploding view of a model, x = x_t / alpha = x_0 + sigma eps and score = -eps(x, sigma) / sigma, a chain

    x <- x + eta/2 score(x, sigma) + sqrt(eta) z,    sigma <- argmax_k p(sigma_k | x),    z ~ N(0, I)

walks over noisy samples and their noise levels; the second half is a Gibbs step, approximated as in the authors' code
by the most probable level of a classifier. Every `skip` steps one sample is taken: of the states visited, that of
smallest sigma, which an ordinary sampler then brings to sigma = 0. That is cheaper than the whole way from noise, and
the samples of a chain share what its beginning cost. They are correlated and of one condition: a distribution needs
many chains, and an interval that takes samples for independent is too narrow unless its groups hold whole chains.

Deviations from the authors' code:

* The state taken is brought from its own sigma to the common `sigma_start`: from below by noise of variance
  sigma_start^2 - sigma^2, which is exact in distribution, from above by one Euler step of the probability-flow ODE,
  x + (sigma_start - sigma) eps, of first order in the difference. All samples then share one grid, which many samplers
  and every pipeline that takes latents can run; theirs has a grid for each sample.
* A state is taken together with its noise prediction, which the chain evaluates there anyway. So the Euler step is
  free, the cost is fixed, and no two samples begin in the same state; theirs counts a sample's last state for the next
  one, too.
* The chain begins like theirs with a few-step sample and noise on top: the x_0 of `start_steps` steps of
  DPM-Solver++(2M) down to sigma_start / 2, noise of `sigma_start`, then `burn_in` Langevin-Gibbs steps (theirs: 37
  evaluations of Karras' stochastic sampler, noise of 0.5, 20 steps, of two step sizes).
* No Tweedie step at the end: samplers here end at sigma = 0.

Known limit: where noise dominates, a step raises sigma^2 by eta^2 / (4 sigma^2), for it is the unadjusted Langevin
algorithm and the level is measured anew. So sigma^4 grows by eta^2 / 2 a step, as in theirs: chains are not for ever.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from accel.core.denoiser import denoiser_name
from accel.core.sampler import Sampler
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError, IncompatibleError, check_float, check_int
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.langevin_chain import Chains, LevelEstimator
from accel.samplers.noise_schedule import NoiseSchedule, noise_schedule
from accel.samplers.scheduler import BaseScheduler


@dataclass(frozen=True)
class DenoisingLangevinGibbs(Sampler):
    """`sampler` from `sigma_start` on; what it starts from comes from Langevin-Gibbs chains (see the module).

    `steps`: of `sampler`, whose own number is replaced (None: kept). `estimator`: tells the noise levels, such as
    accel.suites.digits.levels.level_classifier(); records keep its name as `classifier`, and its `sha256`. `step_size`:
    eta, in squared data units. `start_steps`: evaluations from noise, `burn_in`: Langevin steps before the first
    sample, `skip`: Langevin steps a sample. `chain`: samples of one chain; they must be of one condition, so that
    samples are generated in groups of `chain` times the suite's period. `sigma_start`: sigma / alpha where `sampler`
    begins; the nearest whole timestep is taken.

    Evaluations a sample: (start_steps + burn_in) / chain + skip + those of `sampler`. The classifier's are not counted,
    but its time is. Raises ConfigError for values out of range and IncompatibleError, with the reason, for a sampler
    that cannot start in the middle, a guidance that looks at the noise level, and a pipeline that takes no latents.
    """

    sampler: Sampler
    steps: int | None = None
    estimator: InitVar[LevelEstimator | None] = None
    step_size: float = 1.0
    start_steps: int = 8
    burn_in: int = 0
    skip: int = 1
    chain: int = 1
    sigma_start: float = 1.0
    classifier: str = field(init=False, default="")
    sha256: str = field(init=False, default="")

    def __post_init__(self, estimator: LevelEstimator | None) -> None:
        if not isinstance(self.sampler, Sampler) or not is_dataclass(self.sampler):
            raise ConfigError(f"sampler.sampler is {self.sampler!r}; allowed: a sampler, such as that of dpmpp_2m.")
        if isinstance(self.sampler, DenoisingLangevinGibbs):
            raise ConfigError("sampler.sampler is a DenoisingLangevinGibbs again; allowed: a sampler without a chain.")
        check_float("sampler.step_size", self.step_size, 1e-9, 1e6)
        for name, low in (("start_steps", 1), ("burn_in", 0), ("skip", 1), ("chain", 1)):
            check_int(f"sampler.{name}", getattr(self, name), low)
        steps = self.sampler.steps if self.steps is None else self.steps
        object.__setattr__(self, "sampler", replace(self.sampler, steps=steps))  # checks them
        object.__setattr__(self, "steps", steps)
        if not isinstance(estimator, LevelEstimator):
            raise ConfigError(
                f"sampler.estimator is {estimator!r}; allowed: what tells noise levels, with name, shape, bounds and "
                "sha256, such as accel.suites.digits.levels.level_classifier()."
            )
        check_float("sampler.sigma_start", self.sigma_start, *estimator.bounds)
        for name, value in (("estimator", estimator), ("classifier", estimator.name), ("sha256", estimator.sha256)):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        length = self.chain if self.chain > 1 else ""
        return f"dmcmc{length}[{self.sampler.name}]"

    @property
    def label(self) -> str:
        return f"{self.name}-{self.steps}"

    @property
    def evaluations(self) -> int:
        return math.ceil((self.start_steps + self.burn_in) / self.chain) + self.skip + self.sampler.evaluations

    def group(self, period: int) -> int:
        return self.chain * period if self.chain > 1 else 1

    def prepared(self, pipe: Any, recipe: Any, artefact: Any = None) -> DenoisingLangevinGibbs:
        """This sampler, after checking that `pipe` and the recipe's guidance can work with it."""
        net = getattr(pipe, denoiser_name(pipe))
        if "latents" not in inspect.signature(type(pipe).__call__).parameters:
            raise IncompatibleError(
                f"{type(pipe).__name__} takes no latents, so {self.name} cannot hand over where its chain has come to; "
                "use another sampler."
            )
        if (found := _sample_shape(net)) != self.estimator.shape:
            raise IncompatibleError(
                f"the noise-level classifier {self.classifier!r} knows samples of shape {self.estimator.shape}, those "
                f"of this model have {found}; train one for it, or use another sampler."
            )
        if recipe.guidance is not None and not recipe.guidance.plain:
            raise IncompatibleError(
                f"guidance {recipe.guidance.label} may look at the noise level, which differs from chain to chain in "
                f"one evaluation of {self.name}; use guidance=cfg or none."
            )
        if self.sampler.calibrated or self.sampler.prepared(pipe, recipe) is not self.sampler:
            raise IncompatibleError(
                f"the numbers of {self.sampler.name} belong to a trajectory from pure noise, and {self.name} starts in "
                "the middle; give numbers of your own, or use another sampler."
            )
        return self

    def build(self, config: Mapping[str, Any], grid: Grid | None = None) -> Any:
        """The scheduler of `sampler`, on the part of `grid` (None: of its own grid) that begins at `sigma_start`."""
        schedule = noise_schedule(config)
        start = self.start_timestep(schedule)
        own = self.sampler.build(config)
        times = self._times(own, grid or _grid_of(own), schedule, start)
        try:
            scheduler = self.sampler.build(config, ExplicitGrid(timesteps=tuple(times)))
        except IncompatibleError as error:
            raise IncompatibleError(
                f"{self.name} starts {self.sampler.name} in the middle, at timestep {start}, which it cannot: {error}"
            ) from error
        scheduler.set_timesteps(self.steps, **_dynamic(scheduler))
        scheduler.latents_scale = _latents_scale(scheduler, float(schedule.alpha_sigma(start)[0]))
        return _warning_without_chain(scheduler, self.name)

    def run(self, pipe: Any, clock: Trajectory, call: dict[str, Any]) -> Any:
        with torch.no_grad():
            latents = Chains(self, pipe, clock, call).latents()
        scheduler = pipe.scheduler
        scheduler.latents_given = True
        try:
            return self.sampler.run(pipe, clock, call | {"latents": latents * scheduler.latents_scale})
        finally:
            scheduler.latents_given = False

    def start_timestep(self, schedule: NoiseSchedule) -> int:
        """Where `sampler` begins: the whole timestep nearest to `sigma_start`; diffusers' samplers take no others."""
        low, high = schedule.rho(np.array([schedule.t_min, schedule.t_max]))
        check_float("sampler.sigma_start", self.sigma_start, float(low), float(high))
        return round(float(schedule.timestep(self.sigma_start)))

    def _times(self, scheduler: Any, grid: Grid, schedule: NoiseSchedule, start: int) -> np.ndarray:
        config = scheduler.config
        to_zero = (config.get("final_sigma") or config.get("final_sigmas_type") or "zero") == "zero"
        options = (self.steps, to_zero, config.get("steps_offset", 0))
        try:
            return grid.times(schedule.starting_at(start), *options)
        except ConfigError as error:
            grid.times(schedule, *options)  # the error of a grid that is wrong anyway
            raise IncompatibleError(f"{self.name} starts at timestep {start}, but {error}") from error


def _sample_shape(net: Any) -> tuple[int, ...]:
    size = net.config.get("sample_size")
    if size is None:  # nothing that a classifier of images could be held against
        return ()
    return (net.config.in_channels, *([size, size] if isinstance(size, int) else size))


def _grid_of(scheduler: Any) -> Grid:
    # The grid that a scheduler has of its own.
    if isinstance(scheduler, BaseScheduler):
        return scheduler.grid
    config = scheduler.config
    if config.get("use_karras_sigmas"):
        return Grid("karras")
    return (
        Grid("exponential")
        if config.get("use_exponential_sigmas")
        else Grid(config.get("timestep_spacing", "trailing"))
    )


def _dynamic(scheduler: Any) -> dict[str, float]:
    # The pipeline will know the exponent of dynamic shifting; explicit timesteps are not shifted.
    return {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}


def _latents_scale(scheduler: Any, alpha: float) -> float:
    """What x = x_t / alpha is multiplied by to be the `latents` of a pipeline.

    A pipeline multiplies latents by `init_noise_sigma`, and the model gets what `scale_model_input` makes of that: x_t.
    """
    t, one = scheduler.timesteps[0], torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scaled = copy.deepcopy(scheduler).scale_model_input(one, t)  # a copy: it sets the position
    return alpha / float(scaled) / float(scheduler.init_noise_sigma)


def _warning_without_chain(scheduler: Any, name: str) -> Any:
    # Called by itself the pipeline would begin with pure noise, which is not what is at sigma_start.
    inner = scheduler.set_timesteps
    scheduler.latents_given = False

    @functools.wraps(inner)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        if not scheduler.latents_given:
            warnings.warn(
                f"the pipeline was called directly, so {name} starts from pure noise in the middle of the schedule; "
                "call what `accelerate` yields: run(...).",
                stacklevel=2,
            )
        inner(*args, **kwargs)

    scheduler.set_timesteps = set_timesteps
    return scheduler
