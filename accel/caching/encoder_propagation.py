"""Encoder propagation: run the UNet's encoder at key steps only, and the decoder at every step on what it left.

Paper: Li et al., "Faster Diffusion: Rethinking the Role of the UNet Encoder in Diffusion Models", NeurIPS 2024
(arXiv:2312.09608), sec. 3.2-3.4. At a key step the whole UNet runs, and the hidden state and all skip tensors that
enter the decoder are stored; at the other steps only the decoder runs, with that step's own time embedding.
A non-key prediction does not depend on x_t at all. So up to `group` of them are computed in one batch (the paper's
parallel decoding; 1: one after the other): the same numbers at `group` times the decoder's memory. For the same reason
samplers that add noise are refused: the network would never see it.
Prior noise injection (sec. 3.4): x_t + alpha z_T in the later half of the steps, alpha = `prior_noise` (paper: 0.003
with 50 steps of DDIM; 0, the default: off), z_T the initial latents. Where it enters is read differently in the
released code: here as in its parallel form, just before the scheduler's step, at every such step.
Deviations: key steps are solver steps, and each stage of a multi-stage solver keeps features of its own; a step whose
guidance needs rows that are not stored is a key step. Works on class-conditional and SDXL-style UNets, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from accel.caching.decoder_view import DecoderView
from accel.caching.rows import Kept, parted, rows_of
from accel.caching.schedules import Schedule, Uniform
from accel.caching.unet_view import skip_count
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.devices import send
from accel.core.method import Method
from accel.errors import IncompatibleError, check_float, check_int
from accel.samplers.noise import adds_noise


@dataclass(frozen=True)
class EncoderPropagation(Method):
    """`schedule`: the key steps. `group`: decoder steps in one batch at most. `prior_noise`: alpha."""

    uneven: ClassVar[bool] = True
    schedule: Schedule = field(default_factory=lambda: Uniform(4))
    group: int = 1
    prior_noise: float = 0.0

    def __post_init__(self) -> None:
        check_int("cache.group", self.group, 1)
        check_float("cache.prior_noise", self.prior_noise, 0.0)

    @property
    def label(self) -> str:
        parallel = f"x{self.group}" if self.group > 1 else ""
        return f"encprop{self.schedule.label}{parallel}" + (f"z{self.prior_noise:g}" if self.prior_noise else "")

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            skip_count(net, name)
        if recipe.sampler and recipe.sampler.steps > 1:
            self.schedule.full(recipe.sampler.steps)
        if self.group > 1 and recipe.stitch:
            raise IncompatibleError(
                "cache.group > 1 computes predictions of later steps ahead, which after a switch another model would "
                "make; use cache.group=1, or stitch=none."
            )

    def check_around(self, scheduler, models) -> None:
        if adds_noise(scheduler):
            raise IncompatibleError(
                f"encoder propagation does not see the noise that {type(scheduler).__name__} adds at each step; use a "
                "deterministic sampler such as ddim or dpmpp_2m, or cache=deepcache."
            )

    def follow(self, scheduler, node) -> None:
        if not self.prior_noise:
            return
        step, clock, initial = scheduler.step, node.clock, {}
        clock.on_reset(initial.clear)

        @functools.wraps(step)
        def noisy_step(model_output, timestep, sample, *args, **kwargs):
            start = initial.setdefault("latents", sample)
            if injects(clock.step, clock.num_steps) and clock.slot == 0:
                sample = injected(sample, start, self.prior_noise)
            return step(model_output, timestep, sample, *args, **kwargs)

        scheduler.step = noisy_step

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        view, clock = DecoderView(node.net, node.name), node.clock
        key_steps: set[int] = set()
        features: dict[tuple[int, int, str], Kept] = {}
        ahead: dict[tuple[int, int, str], Kept] = {}
        for state in (key_steps, features, ahead):
            clock.on_reset(state.clear)
        node.state += [features, ahead]

        def gathered(kept: dict, where: int, inputs: Inputs) -> list[torch.Tensor] | None:
            # What is kept for the rows of `inputs` at slot or stage `where`, or None if some of it is not there.
            found = [kept.get((where, clock.call, part)) for part in inputs.parts]
            return None if None in found else rows_of(found, inputs)

        def decode(inputs: Inputs, stages: list[int]) -> torch.Tensor | None:
            tensors = [gathered(features, clock.slot_of(stage), inputs) for stage in stages]
            if None in tensors:
                return None
            joint = tuple(torch.cat(same) if len(stages) > 1 else same[0] for same in zip(*tensors, strict=True))
            if len(stages) > 1:
                times = send(clock.timesteps[stages].repeat_interleave(inputs.rows), inputs.sample.device)
                inputs = inputs.tiled(len(stages)).given(timestep=times)
            return node.evaluate(inputs, lambda **kwargs: view.forward(joint, **kwargs), "decoder")

        def denoise(inputs: Inputs) -> torch.Tensor:
            if not key_steps:
                # Samplers may evaluate beside their steps, each time as a trajectory of one step.
                key_steps.update(self.schedule.full(clock.num_steps) if clock.num_steps > 1 else {0})
            if clock.step not in key_steps:
                if ready := gathered(ahead, clock.stage, inputs):
                    return ready[0]
                keys = [clock.step_of(stage) in key_steps for stage in range(clock.stages)]
                stages = together(keys, clock.stage, self.group)
                predictions = decode(inputs, stages)
                if predictions is not None:
                    own = predictions.chunk(len(stages))
                    for stage, prediction in zip(stages[1:], own[1:], strict=True):
                        keep(ahead, stage, inputs, (prediction,))
                    return own[0]
            prediction, tensors = view.capture(lambda: inner(inputs))
            keep(features, clock.slot, inputs, tensors)
            return prediction

        def keep(kept: dict, where: int, inputs: Inputs, tensors: tuple[torch.Tensor, ...]) -> None:
            for part, own in zip(inputs.parts, parted(tensors, inputs, "the UNet's encoder"), strict=True):
                kept[where, clock.call, part] = own

        return denoise


def together(keys: Sequence[bool], stage: int, group: int) -> list[int]:
    """Stages whose decoders run in one batch: `stage` and those after it up to a key step, `group` at most.

    keys: for each stage of the trajectory whether it belongs to a key step.
    """
    end = next((later for later in range(stage + 1, len(keys)) if keys[later]), len(keys))
    return list(range(stage, min(end, stage + group)))


def injects(step: int, num_steps: int) -> bool:
    """Whether prior noise enters at solver step `step`: in the later half of the steps."""
    return 2 * step >= num_steps


def injected(x: torch.Tensor, initial: torch.Tensor, alpha: float) -> torch.Tensor:
    """x_t + alpha z_T, both (B, C, ...)."""
    return x + alpha * initial
