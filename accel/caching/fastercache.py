"""FasterCache: self-attention is extrapolated between its runs, the unconditional half from the conditional one.

Lv et al. 2024, "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality", ICLR 2025
(arXiv:2410.19355); its released code for Latte is what is followed here, in fractions of its 50 steps.

    dynamic feature reuse   from `begin` on self-attention runs at every `interval`-th step; between, with F and F' its
                            last two outputs, it gives F + w (F - F'), w = `weight`
    CFG-Cache               from `guidance_begin` on both halves are evaluated at every `guidance_interval`-th step.
                            Their difference u - c is kept, in two parts: d_low within a circle of min(H, W) // 5 about
                            frequency 0, d_high outside. Between, c alone is evaluated, and u = c + d_low + d_high; at
                            each such step d_low (before the part `turn` of the trajectory) or d_high (after it) is
                            first multiplied by `factor`

Deviations: decided by solver steps, each stage of a multi-stage solver with features of its own. Where both halves are
evaluated after steps at which one was, attention runs, as in the released code, where the kept rows do not suffice. The
paper lets w grow from 0 to 1, its code has 1/2. `guidance_interval` = 1 leaves guidance alone, `interval` = 1
attention. Halves that come in calls of their own are both evaluated, and so are all of more than two branches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from accel.caching.module_cache import ModuleCache
from accel.caching.parts import branches, layers, role
from accel.caching.rows import Kept, selected
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.guidance import by_part, halves, joined, spread
from accel.errors import IncompatibleError, check_float, check_int

_SELF = re.compile(r"(^|\.)attn1?$")
_LAYER = re.compile(r"\.attentions\.\d+$")  # an attention of a UNet without text is a layer of its own


@dataclass(frozen=True)
class FasterCache(ModuleCache):
    """See the module; fractions are of the trajectory's steps."""

    interval: int = 2
    begin: float = 0.3
    weight: float = 0.5
    guidance_interval: int = 5
    guidance_begin: float = 0.34
    factor: float = 1.1
    turn: float = 0.88
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("interval", "guidance_interval"):
            check_int(f"cache.{name}", getattr(self, name), 1)
        for name in ("begin", "guidance_begin", "turn"):
            check_float(f"cache.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("weight", "factor"):
            check_float(f"cache.{name}", getattr(self, name), 0.0)

    @property
    def label(self) -> str:
        return f"fastercache({self.interval},{self.guidance_interval})"

    @property
    def drops_parts(self) -> bool:
        return self.guidance_interval > 1

    def modules(self, net: nn.Module, name: str) -> list[str]:
        found = [own for own in branches(net) if _SELF.search(role(own))]
        found = found or [own for own in layers(net) if _LAYER.search(own)]
        if not found:
            raise IncompatibleError(
                f"FasterCache reuses self-attention, and {name!r} ({type(net).__name__}) has none; use "
                "cache=easycache, or cache=none."
            )
        return found

    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        every = frozenset(modules)
        own = (skips(step, num_steps, self.begin, self.interval) for step in range(num_steps))
        whole = (self._evaluates_both_again(step, num_steps) for step in range(num_steps))
        return [frozenset() if skip and not both else every for skip, both in zip(own, whole, strict=True)]

    def _evaluates_both_again(self, step: int, num_steps: int) -> bool:
        before, now = (skips(k, num_steps, self.guidance_begin, self.guidance_interval) for k in (step - 1, step))
        return before and not now

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        cached, clock = super().attach(node, inner), node.clock
        if self.guidance_interval == 1:
            return cached
        differences: dict[tuple[int, int], Kept] = {}  # of both halves: low and high frequencies
        clock.on_reset(differences.clear)
        node.state.append(differences)

        def denoise(inputs: Inputs) -> torch.Tensor:
            if set(inputs.parts) != {"uncond", "cond"}:
                return cached(inputs)
            key, null = (clock.slot, clock.call), inputs.blocks[inputs.parts.index("uncond")]
            between = skips(clock.step, clock.num_steps, self.guidance_begin, self.guidance_interval)
            known = differences.get(key) if between else None
            kept = None if known is None else selected(known, null.members, len(null.samples))
            if kept is not None:
                low, high = amplified(*kept.tensors, self.factor, clock.step < self.turn * clock.num_steps)
                differences[key] = kept._replace(tensors=(low, high))
                c = cached(inputs.take("cond"))
                return joined(by_part(spread(c, inputs), inputs)["uncond"] + low + high, c, inputs)
            prediction = cached(inputs)
            u, c = halves(prediction, inputs)
            own = by_part(spread(c, inputs), inputs)["uncond"]
            differences[key] = Kept(split(u - own), null.members, len(null.samples))
            return prediction

        return denoise


def skips(step: int, num_steps: int, begin: float, interval: int) -> bool:
    """Whether solver step `step` of `num_steps` lies between two runs: from the part `begin` on all but each
    `interval`-th."""
    return step % interval != 0 and step >= begin * num_steps


def split(difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The frequencies of a difference (B, C, ..., H, W) within min(H, W) // 5 of 0, and the others: their sum is it."""
    if difference.dim() < 4:
        raise IncompatibleError(
            f"FasterCache splits predictions by the frequencies of an image, and got one of shape "
            f"{tuple(difference.shape)}; use cache.guidance_interval=1."
        )
    height, width = difference.shape[-2:]
    y, x = (torch.fft.fftfreq(n, 1 / n, device=difference.device) for n in (height, width))
    near = y[:, None] ** 2 + x**2 <= (min(height, width) // 5) ** 2
    exact = difference.to(torch.promote_types(difference.dtype, torch.float32))
    low = torch.fft.ifft2(torch.fft.fft2(exact) * near).real.to(difference.dtype)
    return low, difference - low


def amplified(low: torch.Tensor, high: torch.Tensor, factor: float, early: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Low frequencies times `factor` while it is `early`, high ones afterwards."""
    return (factor * low, high) if early else (low, factor * high)
