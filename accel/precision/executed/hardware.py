"""What executed precisions need of the machine: a package, a CPU, a GPU of some compute capability."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from accel.errors import IncompatibleError


def require_package(label: str, package: str, extra: str) -> None:
    """IncompatibleError unless `package`, which the optional extra installs, is there."""
    if find_spec(package) is None:
        raise IncompatibleError(
            f"{label} needs the package {package}, which is not installed; install it with "
            f"pip install 'accel-diffusion[{extra}]', or use precision=bf16, fp16 or fp32."
        )


def require_cpu(label: str, nets: Mapping[str, nn.Module]) -> None:
    """IncompatibleError unless all networks are on the CPU."""
    for name, net in nets.items():
        if (device := device_of(net)).type != "cpu":
            raise IncompatibleError(
                f"{label} runs on the CPU only, but {name!r} is on {device}; use evaluation.device=cpu, or "
                "precision=compiled."
            )


def require_capability(label: str, nets: Mapping[str, nn.Module], least: tuple[int, int]) -> None:
    """IncompatibleError unless all networks are on CUDA devices of compute capability `least` or above."""
    for name, net in nets.items():
        device = device_of(net)
        found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if found is None or found < least:
            there = f"{device}" if found is None else f"{device} of capability {found[0]}.{found[1]}"
            raise IncompatibleError(
                f"{label} needs a CUDA device of compute capability {least[0]}.{least[1]} or above, but {name!r} is on "
                f"{there}; use another device, or precision=bf16, fp16 or fp32."
            )


def device_of(net: nn.Module) -> torch.device:
    """Where the network's tensors are; a network without any is on the CPU."""
    return next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
