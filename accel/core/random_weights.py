"""Networks with random weights, made where and in which numbers they will run: the speed of a shape needs no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

UNSET = (torch.empty, torch.empty_like, torch.empty_strided)  # what these give is whatever was in memory


class _Made(TorchFunctionMode):
    """Tensors that are made without a device are made on this one, and what nobody fills is zero.

    Unlike torch's own `with device:` it is asked before a pretended device is (accel.testing.elsewhere).
    """

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self.device, self.makers = torch.device(device), _device_constructors()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.makers and kwargs.get("device") is None:
            kwargs = kwargs | {"device": self.device}
        made = func(*args, **kwargs)
        return made.zero_() if func in UNSET and not made.is_meta else made


@contextmanager
def random_weights(device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """Within the context modules are made on `device` in `dtype`, by their own initialisation from `seed`."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), _Made(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
