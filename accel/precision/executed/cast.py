"""Whole-network floating-point casts: weights and activations in one dtype, executed for real.

The scheduler's arithmetic, the latents and the timestep keep their dtype; predictions are cast back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Node
from accel.core.precision import Precision
from accel.errors import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Cast(Precision):
    """Run the denoiser in `dtype`: float32, bfloat16 or float16. float32 on a float32 network changes nothing."""

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown("precision.dtype", self.dtype, DTYPES)

    @property
    def label(self) -> str:
        return SHORT[self.dtype]

    def prepare(self, node: Node) -> None:
        dtype = DTYPES[self.dtype]
        tensors = [
            t for t in (*node.net.parameters(), *node.net.buffers()) if t.is_floating_point() and t.dtype != dtype
        ]
        if not tensors:
            return
        _keep_dtype_outside(node)
        for tensor in tensors:
            node.undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.to(dtype)
        node.dtype = dtype

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        return cast_bytes(net, DTYPES[self.dtype])


def cast_bytes(net: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all parameters and buffers with the floating-point ones in `dtype`."""
    size = torch.finfo(dtype).bits // 8
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * (size if t.is_floating_point() else t.element_size()) for t in tensors)


def _keep_dtype_outside(node: Node) -> None:
    """Between evaluations `net.dtype` stays what it was: pipelines draw their noise, and sample, in that dtype.

    diffusers derives it from the parameters in a property, which only a subclass can override on one object; within an
    evaluation it is the true one, which the networks' own forward needs.
    """
    net, cls = node.net, type(node.net)
    derived = getattr(cls, "dtype", None)
    if isinstance(derived, property):
        before = net.dtype
        shown = property(lambda self: derived.fget(self) if node.evaluating else before)
        node.undo.callback(setattr, net, "__class__", cls)
        net.__class__ = type(cls.__name__, (cls,), {"dtype": shown, "__module__": cls.__module__})
