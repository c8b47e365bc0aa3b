"""A pipeline's guided prediction as a function of (x, t): what searches, chains and ODE references evaluate.

Any diffusers pipeline computes `output = prediction(x, t, condition)`, guidance included, inside its sampling loop. A
one-step scheduler that hands in x and stops the loop at `scheduler.step` turns that into a function, without a word
about text encoders, batch doubling or the order of its halves, and differentiable because the pipeline's undecorated
`__call__` is used. Inside `accelerate` the recipe's guidance is part of it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config

from accel.core.companions import companions
from accel.core.denoiser import denoiser_name, signature_of
from accel.core.trajectory import Trajectory, attach_clock
from accel.errors import ConfigError, IncompatibleError
from accel.samplers.scheduler import BaseScheduler, with_schedule_options


class _Captured(Exception):
    """Ends the pipeline's loop once the prediction is there."""


class _OneStep(BaseScheduler):
    # Hands `sample` to the pipeline at `at` and keeps what the pipeline would step with.
    @register_to_config
    @with_schedule_options
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sample: torch.Tensor | None = None
        self.at = 0.0
        self.output: torch.Tensor | None = None

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None) -> None:
        super().set_timesteps(timesteps=[self.at], device=device)  # whatever the pipeline asked for

    def scale_model_input(self, sample, timestep=None):
        # `sample` may hold each row twice (guidance); pipelines that never call this got ours as `latents`.
        if self.sample is None:
            return sample
        return self.sample.repeat(len(sample) // len(self.sample), *[1] * (self.sample.ndim - 1))

    def step(self, model_output, timestep, sample, **kwargs):
        self.output = model_output[: len(self.sample)]
        raise _Captured


def seen_beside(pipe: Any, call: Mapping[str, Any]) -> str | None:
    """What the network is shown beside x, or what x is made of beside noise, in a `call` of `pipe`; None: nothing.

    Images of a condition that a ControlNet sees are no such thing.
    """
    if call.get("strength") is not None:
        return "begins at an image, in the middle of its trajectory"
    if call.get("image") is not None and not companions(pipe):
        return "shows its network an image"
    config = getattr(getattr(pipe, denoiser_name(pipe)), "config", {})
    taken, made = (config.get(f"{way}_channels") for way in ("in", "out"))
    if isinstance(taken, int) and isinstance(made, int) and taken > made:
        return f"shows its network {taken} channels, of which {made} are its sample's"
    return None


class Predictor:
    """`predictor(x, t)` -> the guided model output for samples x (B, C, H, W) in alpha x_0 + sigma eps scale.

    `call`: the pipeline's arguments (labels or prompts for the B samples, `guidance_scale`). t: a number, or (B,) ones.
    `clock`: of the surrounding `accelerate`, whose methods then take part; evaluations are noted there. `to_x0` and
    `to_eps` convert an output. The prediction is differentiable in x unless gradients are off.
    """

    def __init__(self, pipe: Any, clock: Trajectory | None = None, **call: Any) -> None:
        self.pipe, self.clock, self.call = pipe, clock, call
        self.calls = 0
        known = {k: v for k, v in pipe.scheduler.config.items() if k in (*_OneStep._get_init_keys(_OneStep), "shift")}
        # Any timestep of the schedule is allowed: its end and its shifting are a sampler's business.
        free = {"thresholding": False, "grid": None, "final_sigma": "zero", "use_dynamic_shifting": False}
        self._scheduler = _OneStep.from_config(known, **free)
        self._loop = inspect.unwrap(type(pipe).__call__)
        if clock is not None:
            attach_clock(self._scheduler, clock)
        accepted = inspect.signature(self._loop).parameters
        if why := seen_beside(pipe, call):
            raise IncompatibleError(
                f"{type(pipe).__name__} {why}, and this sampler, or the search of its numbers, evaluates the network "
                "beside the pipeline's loop, on samples alone; use a sampler of the scheduler seam that learns "
                "nothing, such as dpmpp_2m, ddim, or flow_euler for flows."
            )
        self._latents = "latents" in accepted
        self._fixed = {k: v for k, v in {"output_type": "pt", "num_inference_steps": 1}.items() if k in accepted}

    @property
    def schedule(self):
        """The model's noise schedule."""
        return self._scheduler.schedule

    @torch.no_grad()
    def initial_noise(self) -> torch.Tensor:
        """The unit-variance noise (B, ...) that the pipeline draws from `call["generator"]`, one for each sample."""
        found: list[torch.Tensor] = []

        def catch(bound: inspect.BoundArguments, sample_name: str) -> None:
            found.append(bound.arguments[sample_name][: len(self.call["generator"])].clone())
            raise _Captured

        probe, original = self._scheduler, self.pipe.scheduler
        probe.sample, probe.at, self.pipe.scheduler = None, float(self.schedule.t_max), probe
        try:
            with _before_forward(self.pipe, catch), contextlib.suppress(_Captured):
                self._loop(self.pipe, **self.call | self._fixed)
        finally:
            self.pipe.scheduler = original
        return found[0]

    def __call__(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        probe, original = self._scheduler, self.pipe.scheduler
        rows = isinstance(t, torch.Tensor) and t.numel() > 1
        probe.sample, probe.at = x, float(t.double().mean()) if rows else float(t)
        if rows and len(t) != len(x):
            raise ConfigError(f"{len(t)} timesteps for {len(x)} samples; allowed: one, or one for each sample.")
        latents = {"latents": x} if self._latents else {}
        self.pipe.scheduler = probe
        try:
            with _row_timesteps(self.pipe, t) if rows else _nothing():
                self._loop(self.pipe, **self.call | self._fixed | latents)
        except _Captured:
            self.calls += 1
            return probe.output
        finally:
            self.pipe.scheduler, probe.sample = original, None
        raise RuntimeError(f"{type(self.pipe).__name__} never called scheduler.step().")  # pragma: no cover

    def to_x0(self, output: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        """The prediction of the clean sample of a model output at timestep t."""
        p, q, _, _ = self._scheduler.conversion(*map(float, self.schedule.alpha_sigma(t)))
        return p * x + q * output

    def to_eps(self, output: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        """The noise prediction of a model output at timestep t."""
        _, _, r, s = self._scheduler.conversion(*map(float, self.schedule.alpha_sigma(t)))
        return r * x + s * output

    def to_flow(self, output: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        """eps - x_0 of a model output at timestep t."""
        p, q, r, s = self._scheduler.conversion(*map(float, self.schedule.alpha_sigma(t)))
        return (r - p) * x + (s - q) * output


@contextmanager
def _row_timesteps(pipe: Any, t: torch.Tensor) -> Iterator[None]:
    # Pipelines know one timestep for all rows; the denoiser takes one each.
    def change(bound: inspect.BoundArguments, sample_name: str) -> None:
        sample = bound.arguments[sample_name]
        bound.arguments["timestep"] = t.to(sample.device).repeat(len(sample) // len(t))

    with _before_forward(pipe, change):
        yield


@contextmanager
def _before_forward(pipe: Any, act: Callable[[inspect.BoundArguments, str], None]) -> Iterator[None]:
    # `act` gets the arguments of every denoiser call, and the name of the one that is the sample.
    net = getattr(pipe, denoiser_name(pipe))
    signature, inner = signature_of(net), net.forward
    sample_name = list(signature.parameters)[1]
    had = "forward" in net.__dict__

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(net, *args, **kwargs)
        act(bound, sample_name)
        return inner(*bound.args[1:], **bound.kwargs)

    net.forward = forward
    try:
        yield
    finally:
        if had:
            net.forward = inner
        else:
            del net.forward


@contextmanager
def _nothing() -> Iterator[None]:
    yield
