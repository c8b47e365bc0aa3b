"""SeaCache: reuse while the change of the input, through a filter that follows its noise level, adds up to little.

Chung et al. 2026, "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", CVPR 2026
(arXiv:2602.18993). At x_t = a x_0 + b noise, with a signal of power S(f) = |f|^-p, the best linear denoiser has the
frequency response a S / (a^2 S + b^2): low frequencies early, all of them late. Through it a change of the input is one
of content and not of noise. Along each axis, f in cycles a pixel:

    G(f) = a / (a^2 + b^2 |f|^p),   the product over the axes divided by its mean
    y_t = IFFT(G FFT(x_t)),   e_t = |y_t - y_(t-1)| / |y_(t-1)|,   |.| the mean absolute value
    reuse while the sum of e since the last run is below the threshold

No fit: one threshold, the authors' is 0.3 for FLUX (p = 2) and 0.1 to 0.2 for video (p = 3). The first and the last
step run. Deviations: filtered is the network's input x_t, as in diffusers' own SeaCache, where the authors filter the
modulated input of the first block; so UNets and transformers are alike, but an input of packed tokens (Flux) has no
axes to filter along and is refused. All y are filtered, where the authors keep an unfiltered one at steps that always
run. Each sample is decided by itself (decision=batch: all together, as released). `reuse`: see
accel/caching/step_reuse.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.caching.step_cache import Mean, Signal, StepCache, exact, relative_change
from accel.caching.step_reuse import AUTO
from accel.caching.step_rows import Rows
from accel.core.denoiser import Denoise, Inputs, Node, signature_of
from accel.core.devices import send
from accel.core.trajectory import Trajectory
from accel.errors import IncompatibleError, check_float
from accel.samplers.noise_schedule import is_flow

PACKED = ("img_ids", "img_shapes")  # arguments of transformers whose images come as tokens
LEAST = 1e-6  # of a: pure noise has no signal to look at


@dataclass(frozen=True)
class SeaCache(StepCache):
    """`threshold` of the filtered input's change; `power`: p of the signal's spectrum; `first`, `last` steps run."""

    threshold: float = 0.3
    first: int = 1
    last: int = 1
    decision: str = "per_sample"
    reuse: str = AUTO
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("cache.power", self.power, 0.0)

    @property
    def label(self) -> str:
        return f"seacache({self.said(*[f'p{self.power:g}'] * (self.power != 2.0))})"

    @property
    def indicator(self) -> str:
        return "relative change of the filtered input"

    def check(self, nets: Mapping[str, nn.Module], recipe: Any) -> None:
        super().check(nets, recipe)
        for net in nets.values():
            if not signature_of(net).parameters.keys().isdisjoint(PACKED):
                raise without_axes(net)

    def signal(self, node: Node, inner: Denoise) -> Signal:
        return Filtered(node, self.power)

    def change(self, past: Rows, now: torch.Tensor, mean: Mean) -> torch.Tensor:
        return relative_change(now, past["seen"], mean)


class Filtered(Signal):
    """The input through the filter of its noise level."""

    def __init__(self, node: Node, power: float) -> None:
        self.node, self.power = node, power

    def before(self, inputs: Inputs) -> torch.Tensor:
        x = inputs.sample
        if x.dim() < 4:
            raise without_axes(self.node.net)
        gain = sea_gain(x.shape[2:], *mixture(self.node.clock), self.power)
        return filtered(x.to(exact(x)), send(gain.to(exact(x)), x.device))


def without_axes(net: nn.Module) -> IncompatibleError:
    """What is said of a network that takes images as rows of tokens."""
    return IncompatibleError(
        f"SeaCache filters images along their axes, and {type(net).__name__} takes rows of tokens; use cache=teacache "
        "or cache=easycache, or cache=none."
    )


def mixture(clock: Trajectory) -> tuple[float, float]:
    """a and b of x = a x_0 + b noise, as the network gets it, at the clock's place."""
    sigma = clock.sigma
    if is_flow(clock.scheduler.config):
        return 1 - sigma, sigma
    if math.isinf(sigma):
        return 0.0, 1.0
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def sea_gain(sizes: Sequence[int], a: float, b: float, power: float) -> torch.Tensor:
    """G (sizes) of float64: the product over axes of a / (a^2 + b^2 |f|^power), divided by its mean."""
    a, gain = max(a, LEAST), torch.ones((), dtype=torch.float64)
    for size in sizes:
        f = torch.fft.fftfreq(size, dtype=torch.float64).abs()
        gain = gain[..., None] * (a / (a**2 + b**2 * f**power))
    return gain / gain.mean()


def filtered(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """x (B, C, ...) through a filter of real gain (...), over all axes but the first two."""
    axes = tuple(range(2, x.dim()))
    return torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * gain, dim=axes).real
