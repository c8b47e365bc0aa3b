"""Networks that are told the guidance scale (`time_cond_proj_dim` of a UNet2DConditionModel), in place of guidance."""

from __future__ import annotations

import math

import torch
from torch import nn

from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.devices import send
from accel.errors import IncompatibleError


def guidance_embedding(scales: torch.Tensor, width: int) -> torch.Tensor:
    """What a network with `time_cond_proj_dim` = width is told of guidance scales s (B,): sin and cos of 1000 (s - 1)
    at frequencies from 1 to 1e-4 (B, width), as `get_guidance_scale_embedding` of diffusers' pipelines (Meng et al.
    2023, arXiv:2210.03142)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=scales.dtype) * -(math.log(10000.0) / (half - 1)))
    angles = 1000 * (scales - 1)[:, None] * frequencies[None]
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width - 2 * half))


def width_of(net: nn.Module) -> int:
    """How many numbers `net` is told a scale by; IncompatibleError if by none."""
    width = getattr(net, "config", {}).get("time_cond_proj_dim")
    if not width:
        raise IncompatibleError(
            f"{type(net).__name__} cannot be told a guidance scale: it has no time_cond_proj_dim, which "
            "UNet2DConditionModel alone has; build one scale in."
        )
    return width


def telling(node: Node, inner: Denoise, scale: float) -> Denoise:
    """`inner`, whose network is told `scale` at each evaluation."""
    width, known = width_of(node.net), {}

    def told(inputs: Inputs) -> torch.Tensor:
        key = inputs.rows, inputs.sample.device
        if key not in known:
            row = guidance_embedding(torch.tensor([scale], dtype=torch.float32), width)
            known[key] = send(row.expand(inputs.rows, -1).contiguous(), inputs.sample.device)
        return inner(inputs.given(timestep_cond=known[key]))

    return told


def with_scale_input(net: nn.Module, width: int = 256) -> nn.Module:
    """A copy of `net`, a UNet2DConditionModel, that can be told a guidance scale by `width` numbers. Its prediction
    does not depend on it yet: their projection is zero (diffusers draws it at random), so that it begins as `net`."""
    kind = type(net)
    if "time_cond_proj_dim" not in getattr(net, "config", {}):
        width_of(net)
    own = kind.from_config(net.config, time_cond_proj_dim=width)
    nn.init.zeros_(own.time_embedding.cond_proj.weight)
    own.load_state_dict(net.state_dict() | {"time_embedding.cond_proj.weight": own.time_embedding.cond_proj.weight})
    return own.to(next(net.parameters()).dtype).train(net.training)
