"""Numbers of the host for a device, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch

PINNING = ("cuda", "xpu")  # from page-locked memory these copy while the host goes on


def send(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, array or list `values` of the host on `device`; the host does not wait for the copy."""
    tensor, device = torch.as_tensor(values, dtype=dtype), torch.device(device)
    if device.type not in PINNING or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
