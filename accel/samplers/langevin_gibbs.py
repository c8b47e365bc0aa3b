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
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from accel.core.denoiser import denoiser_name
from accel.core.sampler import Sampler
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError, IncompatibleError, check_float, check_int
from accel.guidance.cfg import CFG
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.noise_schedule import NoiseSchedule, noise_schedule
from accel.samplers.scheduler import BaseScheduler, convert

# Arguments of a pipeline call that say how to sample, not what.
NOT_CONDITIONS = ("generator", "latents", "output_type", "return_dict", "num_inference_steps", "timesteps", "sigmas")


class LevelEstimator(ABC):
    """Tells the noise level of x_0 + sigma eps. `shape`: (C, H, W) of the images that it knows; `bounds`: its smallest
    and largest sigma; `sha256`: what identifies it in records."""

    shape: tuple[int, int, int]
    bounds: tuple[float, float]
    sha256: str

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """sigma (B,), float64 on the CPU, of x (B, C, H, W)."""


@dataclass(frozen=True)
class DenoisingLangevinGibbs(Sampler):
    """`sampler` from `sigma_start` on; what it starts from comes from Langevin-Gibbs chains (see the module).

    `steps`: of `sampler`, whose own number is replaced (None: kept). `classifier`: `digits`, or a folder that training
    wrote; `sha256` is that of its weights. `step_size`: eta, in squared data units. `start_steps`: evaluations from
    noise, `burn_in`: Langevin steps before the first sample, `skip`: Langevin steps a sample. `chain`: samples of one
    chain; they must be of one condition, so that samples are generated in groups of `chain` times the suite's period.
    `sigma_start`: sigma / alpha where `sampler` begins; the nearest whole timestep is taken.

    Evaluations a sample: (start_steps + burn_in) / chain + skip + those of `sampler`. The classifier's are not counted,
    but its time is. Raises ConfigError for values out of range and IncompatibleError, with the reason, for a sampler
    that cannot start in the middle, a guidance that looks at the noise level, and a pipeline that takes no latents.
    """

    sampler: Sampler
    steps: int | None = None
    classifier: str | LevelEstimator = "digits"
    step_size: float = 1.0
    start_steps: int = 8
    burn_in: int = 0
    skip: int = 1
    chain: int = 1
    sigma_start: float = 1.0
    sha256: str = field(init=False, default="")

    def __post_init__(self) -> None:
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
        low, high = self.estimator.bounds
        check_float("sampler.sigma_start", self.sigma_start, low, high)
        object.__setattr__(self, "sha256", self.estimator.sha256)

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

    @property
    def estimator(self) -> LevelEstimator:
        """What tells noise levels; IntegrityError if its weights are missing or damaged."""
        if isinstance(self.classifier, LevelEstimator):
            return self.classifier
        from accel.suites.digits.levels import level_classifier

        return level_classifier(self.classifier)

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
        if recipe.guidance is not None and type(recipe.guidance) is not CFG:
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
        start = self._start(schedule)
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
            latents = _Chains(self, pipe, clock, call).latents()
        scheduler = pipe.scheduler
        scheduler.latents_given = True
        try:
            return self.sampler.run(pipe, clock, call | {"latents": latents * scheduler.latents_scale})
        finally:
            scheduler.latents_given = False

    def _start(self, schedule: NoiseSchedule) -> int:
        # A whole timestep: diffusers' samplers take no others.
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


class _Chains:
    """The chains of one pipeline call, from noise to the samples at `sigma_start`."""

    def __init__(self, own: DenoisingLangevinGibbs, pipe: Any, clock: Trajectory, call: Mapping[str, Any]) -> None:
        self.own, self.pipe, self.clock, self.estimator = own, pipe, clock, own.estimator
        config = pipe.scheduler.config
        self.schedule = noise_schedule(config)
        self.kind = config.get("prediction_type", "flow_prediction" if self.schedule.flow else "epsilon")
        ends = np.array([self.schedule.t_min, self.schedule.t_max])
        self.bounds = tuple(self.schedule.rho(ends).tolist())  # what the model knows
        self.start = float(self.schedule.rho(own._start(self.schedule)))
        net = getattr(pipe, denoiser_name(pipe))
        self.device, self.given = net.device, net.dtype
        self.dtype = torch.promote_types(net.dtype, torch.float32)
        self.rows, self.each, self.common = _conditions(call)
        self.chains = _chains([_key(self.each, i) for i in range(self.rows)], own.chain)
        source = call.get("generator")
        sources = [source[c[0]] if isinstance(source, Sequence) else source for c in self.chains]
        self.generators = [_child(g) for g in sources]

    def latents(self) -> torch.Tensor:
        """x (rows, C, H, W) at `sigma_start`, in the order of the call's rows."""
        own = self.own
        self._only(len(self.chains))
        x = self._from_noise()
        sigma = self._level(x)
        for _ in range(own.burn_in):
            x, sigma = self._langevin(x, sigma, self._eps(x, sigma))
        result = torch.empty(self.rows, *x.shape[1:], dtype=self.dtype, device=self.device)
        for k in range(len(self.chains[0])):
            alive = sum(len(c) > k for c in self.chains)  # the longest come first
            if alive < len(x):
                x, sigma = x[:alive], sigma[:alive]
                self._only(alive)
            taken, best = torch.full_like(sigma, torch.inf), (x, x)
            for _ in range(own.skip):
                eps = self._eps(x, sigma)
                lower = _column(sigma < taken, x).bool()
                best = tuple(torch.where(lower, new, old) for new, old in zip((x, eps), best, strict=True))
                taken = torch.minimum(sigma, taken)
                x, sigma = self._langevin(x, sigma, eps)
            result[[c[k] for c in self.chains[:alive]]] = self._brought(*best, taken)
        return result.to(self.given)

    def _brought(self, x: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        up = (self.start**2 - sigma.square()).clamp(min=0).sqrt()
        down = (self.start - sigma).clamp(max=0)
        return x + _column(down, x) * eps + _column(up, x) * self._noise()

    def _only(self, count: int) -> None:
        # Go on with the first `count` chains.
        from accel.samplers.predictor import Predictor  # it needs accel.samplers

        heads = [c[0] for c in self.chains[:count]]
        conditions = {
            k: v[heads] if isinstance(v, torch.Tensor) else [v[i] for i in heads] for k, v in self.each.items()
        }
        if "batch_size" in self.common:
            conditions["batch_size"] = count
        self.count = count
        self.predictor = Predictor(self.pipe, self.clock, **self.common | conditions)

    def _noise(self) -> torch.Tensor:
        shape = (1, *self.estimator.shape)
        drawn = [torch.randn(shape, generator=g, dtype=self.dtype) for g in self.generators[: self.count]]
        return torch.cat(drawn).to(self.device)

    def _output(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        # The model's output for x_t, noted as preparation.
        output = self.predictor(x.to(self.given), t).to(self.dtype)
        self.clock.keep_as_prelude()
        return output

    def _eps(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = self.schedule.timestep(sigma.numpy())
        alpha, s = (_column(torch.from_numpy(v), x) for v in self.schedule.alpha_sigma(t))
        times = torch.from_numpy(t).to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        _, _, r, q = convert(self.kind, alpha, s)
        return r * (alpha * x) + q * self._output(alpha * x, times)

    def _langevin(self, x: torch.Tensor, sigma: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        eta = self.own.step_size
        x = x - _column(eta / 2 / sigma, x) * eps + math.sqrt(eta) * self._noise()
        return x, self._level(x)

    def _level(self, x: torch.Tensor) -> torch.Tensor:
        return self.estimator(x).clamp(*self.bounds)

    def _from_noise(self) -> torch.Tensor:
        # DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095) in steps that are equal in log sigma.
        levels = torch.from_numpy(np.geomspace(self.bounds[1], self.start, self.own.start_steps + 1))
        ratio = float(levels[1] / levels[0])
        x, before = levels[0] * self._noise(), None
        for level in levels[:-1]:
            x0 = x - level * self._eps(x, level.expand(len(x)))
            x = ratio * x + (1 - ratio) * (x0 if before is None else 1.5 * x0 - 0.5 * before)
            before = x0
        return x


def _conditions(call: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(rows, what each row has of its own, what all have in common) of a pipeline's arguments."""
    if call.get("latents") is not None:
        raise ConfigError("latents are given, but a Langevin-Gibbs chain makes them; leave them out.")
    if call.get("num_images_per_prompt", 1) != 1:
        raise ConfigError("num_images_per_prompt is not 1; repeat the prompt instead, one for each image.")
    wanted = {k: v for k, v in call.items() if k not in NOT_CONDITIONS and v is not None}
    listed = {k: len(v) for k, v in wanted.items() if _is_list(v)}
    source = call.get("generator")
    rows = len(source) if isinstance(source, Sequence) else max([wanted.get("batch_size", 1), *listed.values()])
    each = {k: wanted[k] for k, length in listed.items() if length == rows}
    return rows, each, {k: v for k, v in wanted.items() if k not in each}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim > 0)


def _key(each: Mapping[str, Any], row: int) -> tuple[Any, ...]:
    values = [v[row] for v in each.values()]
    return tuple(v.cpu().numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v) for v in values)


def _chains(keys: Sequence[Any], length: int) -> list[list[int]]:
    """Rows of equal keys, in order, cut into chains of `length`; the longest chains first."""
    members: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    chains = [rows[i : i + length] for rows in members.values() for i in range(0, len(rows), length)]
    return sorted(chains, key=len, reverse=True)


def _child(generator: torch.Generator | None) -> torch.Generator:
    # A generator of the chain's own: how far it runs must not show in what the sampler itself draws.
    device = generator.device if generator is not None else "cpu"
    seed = torch.randint(2**62, (), generator=generator, device=device)
    return torch.Generator().manual_seed(int(seed))


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


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
