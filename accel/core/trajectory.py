"""The clock: one object that knows where in the sampling trajectory a denoiser call is.

It is driven by the scheduler alone: `set_timesteps` begins a trajectory, `step` moves it on. Caches, stitches and
guidance ask it and never count calls themselves, so nothing leaks from one batch of images to the next, and samplers
with several evaluations a step (Heun) are counted right.

Terms: a *stage* is one `scheduler.step` call; a *step* is one solver step and holds `scheduler.order` stages (Heun: 2);
*slot* is the stage's place within its step; *call* numbers the denoiser calls within one stage.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from accel.errors import AccelError, ConfigError, IncompatibleError

REUSED = "reused"  # the event, and the mode in a trace, of an evaluation that a cache answered with an earlier one


@dataclass(frozen=True)
class NetworkCall:
    """One network evaluation that really happened. `rows` counts batch rows, `macs` all of them (None: not counted).

    `denoiser` is false for a network that a method uses beside the denoisers (a classifier): MACs, but no NFE.
    """

    step: int
    stage: int
    call: int
    timestep: float
    sigma: float
    model: str
    mode: str
    rows: int
    macs: int | None = None
    denoiser: bool = True


@dataclass(frozen=True)
class Event:
    """Something that a method decided while sampling: where, what, and for which samples of the batch."""

    step: int
    stage: int
    timestep: float
    sigma: float
    name: str
    samples: tuple[int, ...]


@dataclass
class Trajectory:
    """Position in the current trajectory and the trace of what was evaluated; see the module's terms.

    `prelude`: evaluations made before the trajectory to prepare its initial samples (see `keep_as_prelude`).
    `generator`: what step noise is drawn from where the pipeline gives its scheduler none (DiT, SD3, Flux).
    `sign`: of the network's output in what the pipeline steps with.
    """

    stage: int = -1
    call: int = -1
    num_steps: int = 0
    samples: int = 0
    rows: int = 0
    trace: list[NetworkCall] = field(default_factory=list)
    prelude: list[NetworkCall] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    runs: int = 0
    generator: torch.Generator | list[torch.Generator] | None = None
    sign: float = 1.0
    _scheduler: object = None
    _timesteps: torch.Tensor | None = None
    _times: list[float] = field(default_factory=list)
    _sigmas: list[float] | None = None
    _alphas: torch.Tensor | None = None
    _stages: int = 0
    _order: int = 1
    _offset: int = 0
    _resets: list[Callable[[], None]] = field(default_factory=list)
    _checks: list[Callable[[], None]] = field(default_factory=list)
    _outputs: list[Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Solver step index, counted from the first step of this run (img2img starts at 0 too)."""
        return self.step_of(self.stage)

    def step_of(self, stage: int) -> int:
        """Solver step that a stage belongs to."""
        return stage // self._order

    @property
    def slot(self) -> int:
        """Which evaluation of the solver step this is (0 for single-evaluation samplers)."""
        return self.slot_of(self.stage)

    def slot_of(self, stage: int) -> int:
        """Place of a stage within its solver step."""
        return stage % self._order

    @property
    def stages(self) -> int:
        """Number of stages of this trajectory, known from the first evaluation on."""
        return self._stages

    @property
    def timesteps(self) -> torch.Tensor:
        """The timestep of every stage of this trajectory, on the CPU."""
        return self._timesteps[self._offset :]

    @property
    def scheduler(self) -> object:
        """The scheduler that drives this trajectory."""
        return self._scheduler

    @property
    def timestep(self) -> float:
        """The timestep of this stage (read from a CPU copy: asking never synchronises a GPU)."""
        return self._times[self._offset + self.stage]

    @property
    def step_timestep(self) -> float:
        """The timestep at which this solver step began."""
        return self._times[self._offset + self.step * self._order]

    @property
    def index(self) -> int:
        """Index of this stage among all that the scheduler has, which begin before it where a pipeline skips some."""
        return self._offset + self.stage

    @property
    def sigma_after(self) -> float:
        """The scheduler's `sigmas` where its next step ends (a copy on the host); IndexError if it has none."""
        return (self._sigmas or [])[self.index + 1]

    @property
    def sigma(self) -> float:
        """Noise level of this stage: sigma / alpha for variance-preserving models, sigma of [0, 1] for flow models.

        Infinite where there is noise alone (zero terminal SNR), nan under a scheduler that does not tell.
        """
        at = self._offset + self.stage
        if self._sigmas is not None and at < len(self._sigmas):
            return self._sigmas[at]
        return level_of(self._alphas, self.timestep)

    def on_reset(self, reset: Callable[[], None]) -> None:
        """Call `reset` at the begin and the end of every trajectory: the place to drop per-run state."""
        self._resets.append(reset)

    def on_stage(self, check: Callable[[], None]) -> None:
        """Call `check` after each scheduler step, when the number of samples is known."""
        self._checks.append(check)

    def on_output(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Step with `change(prediction)` in the place of the prediction that the pipeline hands to its scheduler."""
        self._outputs.append(change)

    def stepped_with(self, prediction: torch.Tensor) -> torch.Tensor:
        """What the scheduler steps with where the pipeline hands it `prediction`."""
        for change in self._outputs:
            prediction = change(prediction)
        return prediction

    def begin(self, scheduler) -> None:
        """Start a trajectory over `scheduler.timesteps`; every method's state is reset."""
        self._scheduler = scheduler
        self._timesteps = torch.as_tensor(scheduler.timesteps).cpu()
        self._times = [float(t) for t in self._timesteps]
        sigmas = getattr(scheduler, "sigmas", None)  # FlowMatch schedulers have them on the device
        self._sigmas = None if sigmas is None else torch.as_tensor(sigmas).tolist()
        self._alphas = getattr(scheduler, "alphas_cumprod", None)
        if self._sigmas is None and self._alphas is None:
            # Consistency models' schedulers list where the last step ends, too.
            if getattr(scheduler, "config", {}).get("prediction_type") == "trigflow":
                self._sigmas = [level_of_angle(t) for t in self._times]
            self._timesteps, self._times = self._timesteps[:-1], self._times[:-1]
        self._order = int(getattr(scheduler, "order", 1))
        self.stage, self.call, self.num_steps, self._stages = 0, -1, 0, 0
        self.samples = self.rows = 0
        self.trace.clear()
        self.events.clear()
        self._reset()

    def enter(self, rows: int, timestep: Any = None) -> None:
        """Note one denoiser call with `rows` batch rows (called by the outermost wrapper only).

        `timestep`: what the denoiser was called with, by which a trajectory that begins in the middle is found.
        """
        if self._scheduler is None or self.stage < 0:
            raise AccelError("the denoiser was called before scheduler.set_timesteps(); call it to begin a trajectory.")
        if self._stages == 0:
            self._locate(timestep)
        if self.stage >= self._stages:
            raise AccelError(
                f"the denoiser was called after the last of {self._stages} evaluations; "
                "call scheduler.set_timesteps() to begin a new trajectory."
            )
        self.call += 1
        self.rows = rows

    def advance(self, samples: int) -> None:
        """Note one `scheduler.step` on `samples` images."""
        self.samples = samples
        for check in self._checks:
            check()
        self.stage += 1
        self.call = -1
        if self._stages and self.stage == self._stages:
            self.runs += 1
            self._reset()

    def note(self, model: str, mode: str, rows: int, macs: int | None, denoiser: bool = True) -> None:
        """Append one network evaluation to the trace."""
        where = (self.step, self.stage, self.call, self.timestep, self.sigma)
        self.trace.append(NetworkCall(*where, model, mode, rows, macs, denoiser))

    def mark(self, name: str, samples: Iterable[int]) -> None:
        """Append one decision of a method, made now for `samples` of the batch, to the events."""
        self.events.append(Event(self.step, self.stage, self.timestep, self.sigma, name, tuple(samples)))

    def keep_as_prelude(self) -> None:
        """Count what was evaluated until now as preparation of the trajectory that follows."""
        self.prelude += self.trace
        self.trace.clear()

    def _locate(self, timestep: Any) -> None:
        # Known at the first evaluation: image-to-image pipelines leave out the first timesteps after set_timesteps.
        # Some schedulers are told (begin index), some find it when they scale the input (step index), others never do.
        told = (getattr(self._scheduler, name, None) for name in ("begin_index", "step_index"))
        index = next((int(i) for i in told if i is not None), None)
        self._offset = self._index_of(timestep) if index is None else index
        self._stages = len(self._timesteps) - self._offset
        self.num_steps = -(-self._stages // self._order)

    def _index_of(self, timestep: Any) -> int:
        # Denoisers of flows may get sigma, or 1 - sigma, in the place of the timestep. Where parts of a sample have a
        # time of their own (the frame that a video begins at is clean) the greatest is the sample's.
        if timestep is None or len(self._times) < 2:
            return 0
        wanted = float(torch.as_tensor(timestep).max())
        sigmas = (self._sigmas or [])[: len(self._times)]
        for scale in (self._times, sigmas, [1 - sigma for sigma in sigmas]):
            near = (i for i, t in enumerate(scale) if abs(t - wanted) <= 1e-4 * max(1.0, abs(wanted)))
            if (found := next((i for i in near if i % self._order == 0), None)) is not None:
                return found
        return 0

    def _reset(self) -> None:
        for reset in self._resets:
            reset()


def level_of_angle(t: float) -> float:
    """sigma / alpha = tan t of a model on an arc, x_t = cos t x_0 + sin t z: inf from pi / 2 on, which diffusers rounds
    up."""
    return math.tan(t) if t < math.pi / 2 - 1e-7 else math.inf


def level_of(alphas_cumprod: torch.Tensor | None, timestep: float) -> float:
    """sigma / alpha = sqrt((1 - alpha_bar) / alpha_bar) at a timestep: inf at alpha_bar = 0, nan without a table."""
    if alphas_cumprod is None:
        return math.nan
    alpha_bar = float(alphas_cumprod[round(timestep)])
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf


def warn_of_single_precision(scheduler: Any, like: torch.Tensor) -> None:
    """Say so where a pipeline works in float64 and its scheduler rounds every sample to float32, as some of diffusers'
    (DPM-Solver++, Euler) do. Tried on a fresh scheduler: without a prediction a step is linear in the sample, also for
    two that float32 cannot tell apart."""
    with _disable_current_modes():  # nobody who counts memory or operations sees the trial
        _warn_of_single_precision(scheduler, like)


def _warn_of_single_precision(scheduler: Any, like: torch.Tensor) -> None:
    apart = 2.0**-30
    try:
        ends = []
        for more in (0.0, apart):
            fresh = type(scheduler).from_config(scheduler.config)
            fresh.set_timesteps(max(3, scheduler.num_inference_steps or 0))
            x = torch.full((1, *like.shape[1:]), 2.0**-20 * (1 + more), dtype=torch.float64)  # nothing is clipped
            ends.append(fresh.step(torch.zeros_like(x), fresh.timesteps[0], x, return_dict=False)[0])
    except Exception:  # a scheduler that needs more than that to be tried
        return
    if ((ends[1] - ends[0] - apart * ends[0]).abs() > 1e-2 * apart * ends[0].abs()).any():
        warnings.warn(
            f"{type(scheduler).__name__} rounds every sample to float32, although the pipeline works in float64: no "
            "error below about 1e-7 can be had. Samplers of a recipe step in float64, but on flows and Lu's lambdas; "
            "so do accel's own (ddim_accel, unipc_accel, deis_tab, dc_dpmpp_2m).",
            stacklevel=4,
        )


def attach_clock(
    scheduler, clock: Trajectory, steps: int | None = None, copies: int = 1, gridded: bool = False
) -> None:
    """Make `scheduler` drive `clock`, by instance attributes only (the class is untouched).

    With `steps` the number of inference steps that a pipeline asks for is replaced: the recipe decides. `copies`: rows
    that the scheduler gets for each image. `gridded`: the recipe decides the timesteps, too.
    """
    set_timesteps, step = scheduler.set_timesteps, scheduler.step
    accepted = inspect.signature(step).parameters
    draws, anything = "generator" in accepted, any(p.kind is p.VAR_KEYWORD for p in accepted.values())

    @functools.wraps(set_timesteps)
    def clocked_set_timesteps(num_inference_steps=None, *args, **kwargs):
        if steps is not None and gridded:
            kwargs.pop("timesteps", None)
        if steps is not None and kwargs.get("timesteps") is None:
            # Flow pipelines always pass sigmas, made from their own number of steps.
            kwargs.pop("sigmas", None)
            num_inference_steps = steps
        elif steps is not None and len(kwargs["timesteps"]) != steps:
            raise ConfigError(
                f"the pipeline was asked for {len(kwargs['timesteps'])} timesteps of its own, and the recipe's sampler "
                f"has {steps} steps; call it without them (a recipe takes them as grid=explicit)."
            )
        set_timesteps(num_inference_steps, *args, **kwargs)
        clock.begin(scheduler)

    @functools.wraps(step)
    def clocked_step(model_output, timestep, sample, *args, **kwargs):
        if not anything and (strange := sorted(kwargs.keys() - accepted.keys())):
            raise IncompatibleError(
                f"the pipeline hands {type(scheduler).__name__} a {strange[0]} at each step, which it does not take; "
                "use a sampler such as ddim or dpmpp_2m, or one of accel's own."
            )
        if draws and clock.generator is not None and not args and kwargs.get("generator") is None:
            own = clock.generator
            kwargs["generator"] = own * copies if isinstance(own, list) else own
        model_output = clock.stepped_with(model_output)
        result = step(model_output, timestep, sample, *args, **kwargs)
        mended = getattr(scheduler, "in_double", False)  # see Sampler.in_double
        if sample.dtype == torch.float64 and clock.stage == clock.runs == 0 and not mended:
            warn_of_single_precision(scheduler, sample)
        clock.advance(len(sample) // copies)
        return result

    scheduler.clock = clock
    scheduler.set_timesteps = clocked_set_timesteps
    scheduler.step = clocked_step
