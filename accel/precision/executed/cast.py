"""Whole-network floating-point casts: weights and activations in one dtype, executed for real.

The scheduler's arithmetic, the latents and the timestep keep their dtype; predictions are cast back. Modules that a
network's class keeps in float32 (`_keep_in_fp32_modules`) stay so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from accel.core.denoiser import Node
from accel.core.precision import Precision
from accel.errors import unknown
from accel.precision.layers import time_embedders

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
        tensors = [t for t in cast_tensors(node.net, dtype) if t.dtype != dtype]
        if not tensors:
            return
        _keep_dtype_outside(node)
        for tensor in tensors:
            node.undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.to(dtype)
        for hook in fit_inputs(node.net):
            node.undo.callback(hook.remove)
        node.dtype = dtype

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        return cast_bytes(net, DTYPES[self.dtype])


def fit_inputs(net: nn.Module) -> list[RemovableHandle]:
    """Let the layers that embed a timestep, and what is joined with it, take inputs of any dtype; the hooks.

    Some networks compute all of that in the dtype of the timestep, which stays float32.
    """
    embedders = map(net.get_submodule, sorted(time_embedders(net, combined=True)))
    layers = {id(m): m for embedder in embedders for m in embedder.modules() if isinstance(m, nn.Linear)}
    return [layer.register_forward_pre_hook(_as_weight) for layer in layers.values()]


def _as_weight(layer: nn.Linear, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(layer.weight.dtype) for x in args)


def cast_bytes(net: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of all parameters and buffers with the floating-point ones in `dtype`."""
    size = torch.finfo(dtype).bits // 8
    cast = {id(t) for t in cast_tensors(net, dtype)}
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * (size if id(t) in cast else t.element_size()) for t in tensors)


def cast_tensors(net: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """The floating-point parameters and buffers that are cast to `dtype`: all but those of the modules that the
    network's class keeps in float32, as `from_pretrained(torch_dtype=...)` does."""
    named = [*net.named_parameters(), *net.named_buffers()]
    whole = set() if dtype == torch.float32 else set(getattr(net, "_keep_in_fp32_modules", None) or ())
    return [t for name, t in named if t.is_floating_point() and whole.isdisjoint(name.split("."))]


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
