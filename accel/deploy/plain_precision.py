"""Executed precisions as lines of Python that need torch alone: casts, torch.compile of the whole network, TF32.

The lines stand in a script after `pipe` is loaded, and put a function in the place of the denoiser's forward that does
what the recipe does there (accel.precision.executed): floating-point arguments go in as the dtype, however they nest,
but what is called timestep; predictions come back in the dtype of the sample. A cast changes the weights in place, and
`dtype` of the network says what it was between evaluations, for pipelines draw their noise in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import signature_of
from accel.core.precision import Precision
from accel.precision import TF32, Cast, Compiled
from accel.precision.executed.cast import DTYPES, cast_tensors

NARROW = '''

def narrow(value, dtype):
    """Floating-point tensors in `dtype`, however they nest; what is called timestep stays as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {{name: own if name == "timestep" else narrow(own, dtype) for name, own in value.items()}}
    return type(value)(narrow(own, dtype) for own in value) if isinstance(value, (list, tuple)) else value


def cast(net, dtype):
    """Weights in `dtype`{but}; layers that embed a timestep take inputs of any dtype."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point(){unless}:
            tensor.data = tensor.data.to(dtype)
    for part in net.modules():
        if re.search("Time.*Embed", type(part).__name__):
            for layer in filter(lambda own: isinstance(own, torch.nn.Linear), part.modules()):
                layer.register_forward_pre_hook(lambda own, args: tuple(x.to(own.weight.dtype) for x in args))


net = pipe.{net}
names = list(inspect.signature(type(net).forward).parameters)[1:]
'''
CAST = '''\
cls, forward, inside = type(net), net.forward, []
cast(net, {dtype})
# Between evaluations the network says {before}: pipelines ask it what to draw their noise in.
dtype = property(lambda self: cls.dtype.fget(self) if inside else {before})
net.__class__ = type(cls.__name__, (cls,), {{"dtype": dtype, "__module__": cls.__module__}})


def around(*args, **kwargs):
    """The denoiser in {dtype}; noise, sampler and timestep stay in {before}."""
    kwargs = dict(zip(names, args)) | kwargs
    wrapped, like = kwargs.pop("return_dict", True), kwargs[names[0]].dtype
    inside.append(True)
    try:
        made = forward(**narrow(kwargs, {dtype}), return_dict=False)[0].to(like)
    finally:
        inside.clear()
    return Transformer2DModelOutput(sample=made) if wrapped else (made,)


net.forward = around
'''
COMPILED = '''\
twin = copy.deepcopy(net).eval().requires_grad_(False)
cast(twin, {dtype})


def run(**kwargs):
    return twin(**kwargs)


torch._dynamo.config.cache_size_limit = 64  # each number of images is a graph of its own
compiled = {compiled}


def around(*args, **kwargs):
    """The denoiser in {dtype} as one graph; noise, sampler and timestep stay in {before}."""
    kwargs = dict(zip(names, args)) | kwargs
    wrapped, sample = kwargs.pop("return_dict", True), kwargs[names[0]]
    kwargs |= {{"timestep": torch.as_tensor(kwargs["timestep"], device=sample.device), "return_dict": False}}
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        made = compiled(**dict(sorted(narrow(kwargs, {dtype}).items())))[0].to(sample.dtype)
    return Transformer2DModelOutput(sample=made) if wrapped else (made,)


net.forward = around
'''
TF32_ALONE = '''

forward = pipe.{net}.forward
parts = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn))
switch, on = ("fp32_precision", "tf32") if hasattr(parts[1], "fp32_precision") else ("allow_tf32", True)


def around(*args, **kwargs):
    """The denoiser's products and convolutions in TF32, nobody else's."""
    before = [getattr(part, switch) for part in parts]
    try:
        for part in parts:
            setattr(part, switch, on)
        return forward(*args, **kwargs)
    finally:
        for part, kept in zip(parts, before):
            setattr(part, switch, kept)


pipe.{net}.forward = around
'''
OUTPUT = "from diffusers.models.modeling_outputs import Transformer2DModelOutput"


@dataclass(frozen=True)
class Lines:
    """`setup` after the pipeline is loaded; `modules` of Python to import, `further` whole lines that import."""

    setup: str = ""
    modules: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


def lines_of(precision: Precision, net: nn.Module, name: str) -> Lines | None:
    """What makes `pipe.<name>`, of which `net` is the plain one, run in `precision`; None if that needs accel."""
    makes = MAKES.get(type(precision))
    return makes(precision, net, name) if makes and "return_dict" in signature_of(net).parameters else None


def _cast(precision: Cast, net: nn.Module, name: str) -> Lines:
    dtype = DTYPES[precision.dtype]
    if all(tensor.dtype == dtype for tensor in cast_tensors(net, dtype)):
        return Lines()
    return Lines(_narrow(net, name, dtype) + CAST.format(dtype=dtype, before=net.dtype), ("inspect", "re"), (OUTPUT,))


def _compiled(precision: Compiled, net: nn.Module, name: str) -> Lines:
    how = f"torch.compile(run, fullgraph=True, dynamic=False, backend={precision.backend!r})"
    compiled = "run" if precision.backend == "none" else how
    text = COMPILED.format(dtype=precision.compute, before=net.dtype, compiled=compiled)
    further = (OUTPUT, "import torch._dynamo", "import torch._inductor.config")
    return Lines(_narrow(net, name, precision.compute) + text, ("copy", "inspect", "re"), further)


def _tf32(precision: TF32, net: nn.Module, name: str) -> Lines:
    return Lines(TF32_ALONE.format(net=name))


MAKES: Mapping[type, Callable[[Any, nn.Module, str], Lines]] = {Cast: _cast, Compiled: _compiled, TF32: _tf32}


def _narrow(net: nn.Module, name: str, dtype: torch.dtype) -> str:
    """NARROW for a class that keeps some modules in float32, or none."""
    kept = sorted(getattr(net, "_keep_in_fp32_modules", None) or ()) if dtype != torch.float32 else []
    unless = f" and {set(kept)!r}.isdisjoint(name.split('.'))" if kept else ""
    return NARROW.format(net=name, but=", but what its class keeps in float32" * bool(kept), unless=unless)
