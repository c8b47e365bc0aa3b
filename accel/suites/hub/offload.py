"""Where the weights of a pipeline wait while they are not needed: on the device, or in the host's memory.

`model`: each network comes to the device when it is called, and goes back when another is (one network's memory).
`group`: the denoiser's blocks and the text encoders' layers come one by one (one block's memory); the autoencoder stays
on the device. Both are diffusers' own, and change how long an image takes, and rounding at most. `layerwise` storage
keeps the denoiser's weights in 8-bit floats, in which they are rounded, and computes in the type that they had; it is
part of what identifies an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from accel.core.denoiser import denoiser_name
from accel.errors import ConfigError, check_installed

WAYS = ("none", "model", "group")
STORED = torch.float8_e4m3fn


def check(offload: str, device: str) -> None:
    """ConfigError unless the weights can wait elsewhere than on `device`, and the packages that move them are there."""
    if offload == "none":
        return
    if torch.device(device).type == "cpu":
        raise ConfigError(
            f"suite.offload={offload} keeps weights in the memory of the host while a GPU does not need them, and "
            "evaluation.device is the CPU, which has no other; use suite.offload=none, or a GPU."
        )
    check_installed(("accelerate",), "hub", f"suite.offload={offload}")


def place(pipe: Any, device: str, offload: str) -> Any:
    """`pipe` on `device`, its weights there or, by `offload`, only when they are needed."""
    check(offload, device)
    if offload == "none":
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=torch.device(device))
        return pipe
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            _group(part, device, denoiser=name == denoiser_name(pipe), whole=name in ("vae", "movq"))
    return pipe


def _group(part: nn.Module, device: str, denoiser: bool, whole: bool) -> None:
    from diffusers.hooks import apply_group_offloading

    if whole:  # decoded in parts that call no hook
        part.to(device)
        return
    blocks = {"offload_type": "block_level", "num_blocks_per_group": 1}
    how = blocks if denoiser else {"offload_type": "leaf_level"}
    apply_group_offloading(part, onload_device=torch.device(device), offload_device=torch.device("cpu"), **how)


def line(name: str) -> str:
    """The line of Python that does as `store` to the part `name` of `pipe` by diffusers alone."""
    return f"pipe.{name}.enable_layerwise_casting(storage_dtype={STORED}, compute_dtype=pipe.{name}.dtype)"


def store(net: nn.Module) -> None:
    """Keep the weights of `net` in 8-bit floats between its calls, but those that its class leaves as they are."""
    if not hasattr(net, "enable_layerwise_casting"):
        raise ConfigError(f"a {type(net).__name__} has no layerwise casting; use suite.layerwise_casting=false.")
    net.enable_layerwise_casting(storage_dtype=STORED, compute_dtype=net.dtype)
