"""Adaptive projected guidance (APG): less oversaturation at high guidance scales.

Sadat, Hilliges & Weber 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
ICLR 2025 (arXiv:2410.02416). On predictions of x_0, D_c and D_u, with norms and products over all elements of a sample:

    d = D_c - D_u;   m <- d + momentum m,  d = m;   d <- d min(1, norm / |d|);   d_par = <d, D_c> / <D_c, D_c> D_c
    D = D_c + (s - 1) (d - d_par + eta d_par)

Momentum (negative: reverse momentum), norm clip and projection in this order. momentum 0, norm inf, eta 1 is
classifier-free guidance, here bit for bit: only the change d_APG - d is added to the predictions, to both halves alike,
and the pipeline's own u + s (c - u) does the rest. The paper recommends eta = 0 and, for SDXL, norm 15 and momentum
-0.5; a norm grows with the root of the number of elements, so it belongs to a model.

Deviations: none in the update. m starts from 0 with every trajectory and counts evaluations, so that a multi-stage
solver moves it more than once a step. |momentum| must be below 1, or m does not decay. In float64, as in the paper's
code. Shapes: predictions (2 B, C, ...), m (B, C, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from accel.core.guidance import Scaled, halves, joined
from accel.errors import ConfigError, check_float
from accel.guidance.spaces import exactly, latents, level, own, shifted


@dataclass(frozen=True)
class APG(Scaled):
    """CFG of `scale` whose difference of x_0 predictions goes through momentum, a clip at `norm` and a projection.

    `eta`: how much of the part parallel to the conditional prediction is kept. `norm`: inf, or 0, for no clip.
    """

    scale: float = 4.0
    eta: float = 0.0
    norm: float = float("inf")
    momentum: float = -0.5
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.eta", self.eta, 0.0)
        check_float("guidance.norm", self.norm, 0.0)
        check_float("guidance.momentum", self.momentum, -1.0, 1.0)
        if abs(self.momentum) == 1:
            raise ConfigError(f"guidance.momentum is {self.momentum:g}; allowed: between -1 and 1, or it never decays.")

    @property
    def label(self) -> str:
        return f"apg{self.scale:g}(eta={self.eta:g},r={self.norm:g},m={self.momentum:g})"

    def guide(self, inputs, inner, node):
        uncond, cond = halves(inner(inputs), inputs)
        x, at = latents(inputs.take("cond"), cond), level(node.clock)
        given = own(cond, x), own(uncond, x)
        cond_x0, uncond_x0 = (at.to("x0", v.to(exactly(v)), x.to(exactly(v))) for v in given)
        plain = cond_x0 - uncond_x0
        past = node.memory.get("difference", 0.0)
        update, node.memory["difference"] = apg(plain, cond_x0, past, self.eta, self.norm, self.momentum)
        change = at.change("x0", (self.scale - 1) * (update - plain))
        return joined(shifted(uncond, change), shifted(cond, change), inputs)


def apg(
    d: torch.Tensor, cond: torch.Tensor, past: torch.Tensor | float, eta: float, norm: float, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d_APG, m): what replaces d = D_c - D_u (B, C, ...) beside D_c, and the m to come as `past` next time (first: 0).

    m = d + momentum past,   d = m min(1, norm / |m|) (norm 0: no clip),   d_APG = d - (1 - eta) <d, D_c> / |D_c|^2 D_c
    """
    m = d + momentum * past if momentum else d
    d = m * (norm / _dot(m, m).sqrt()).clamp(max=1) if norm else m
    parallel = (_dot(d, cond) / _dot(cond, cond)).nan_to_num(0.0) * cond
    return d - (1 - eta) * parallel, m


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # (B, 1, ...): one number a sample
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
