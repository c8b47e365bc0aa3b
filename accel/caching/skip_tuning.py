"""Skip-Tuning: scale the skip connections of a UNet, most at the bottom, without training.

Paper: Ma et al. 2024, "The Surprising Effectiveness of Skip-Tuning in Diffusion Sampling" (arXiv:2402.15170). Each skip
tensor is multiplied by rho just before it is concatenated, on a straight line from `bottom` for the deepest skip to
`top` for the shallowest: with K skips, numbered 1 (the shallowest) to K,

    rho_n = bottom + (top - bottom) (K - n) / (K - 1)

Its coefficients were found for each model and number of steps; they were not at hand, so the defaults are ours.
`begin` and `end` bound the steps where it acts, as fractions of the trajectory (its time-dependent variants).

Where it does little: the layer that takes a skip begins with a GroupNorm over hidden and skip channels together. Where
no group holds channels of both, the norm divides the factor out again, and it acts through the residual's 1 x 1
convolution alone; `straddling` tells which layers of a network mix the two. In Stable Diffusion 1.5 that is 4 of 12.
Nothing is scaled in place: caches may keep the tensors, which they take before they are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from accel.caching.decoder_view import SKIPS, skips_of
from accel.caching.unet_view import skip_count
from accel.core.denoiser import Denoise, Node
from accel.core.method import Method
from accel.core.window import Window
from accel.errors import check_float


@dataclass(frozen=True)
class SkipTuning(Method):
    """Factors `bottom` (deepest skip) to `top` (shallowest) within the steps from `begin` to `end`."""

    uneven: ClassVar[bool] = True
    bottom: float = 0.9
    top: float = 1.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("bottom", "top"):
            check_float(f"skip.{name}", getattr(self, name), 0.0)
        _ = self.window  # whose making checks it

    @property
    def window(self) -> Window:
        return Window(self.begin, self.end, "skip")

    @property
    def label(self) -> str:
        return f"skip{self.bottom:g}-{self.top:g}{self.window.label}"

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            skip_count(net, name)

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, count, below = node.clock, skip_count(node.net, node.name), 0
        for block in reversed(node.net.up_blocks):
            handle = block.register_forward_pre_hook(self._hook(clock, below, count), with_kwargs=True)
            node.undo.callback(handle.remove)
            below += len(block.resnets)
        return inner

    def _hook(self, clock, below: int, count: int):
        def scale(module, args, kwargs):
            if not self.window.holds(clock.step, clock.num_steps):
                return None
            skips = enumerate(skips_of(args, kwargs), below + 1)
            scaled = tuple(skip * rho(number, count, self.bottom, self.top) for number, skip in skips)
            if SKIPS in kwargs:
                return args, kwargs | {SKIPS: scaled}
            return (args[0], scaled, *args[2:]), kwargs

        return scale


def rho(number: int, count: int, bottom: float, top: float) -> float:
    """rho_n = bottom + (top - bottom) (K - n) / (K - 1) of skip n of K, n = 1 the shallowest; K = 1: top."""
    share = (count - number) / (count - 1) if count > 1 else 1.0
    return bottom + (top - bottom) * share


def straddling(net: nn.Module) -> dict[int, bool]:
    """For each skip, by number from the shallowest: whether a norm group of its layer mixes it with hidden channels."""
    channels = [net.conv_in.out_channels]
    for block in net.down_blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in block.downsamplers or ()]
    layers = [resnet for block in reversed(net.up_blocks) for resnet in reversed(block.resnets)]
    found = {}
    for number, (skip, layer) in enumerate(zip(channels, layers, strict=True), 1):
        group = layer.in_channels // layer.norm1.num_groups
        found[number] = (layer.in_channels - skip) % group != 0
    return found
