"""Multiply-accumulate operations that really execute, counted by the formulas of torch's FlopCounterMode (attention
included)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def _eager() -> AbstractContextManager:
    compiling = "torch._dynamo" in sys.modules  # importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _sdpa_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """q k^T and its product with v: torch counts the fused attention of CUDA only; on CPU it would be 0."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def _addmm_flops(bias, a, b, out_shape=None, **kwargs) -> int:
    """As torch's, which asks the shapes of a and b for their shapes once more."""
    (rows, inner), columns = a, b[-1]
    return 2 * rows * inner * columns


@lru_cache(maxsize=1)
def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of an operation by its packet, from its arguments and (`out_val`) its result."""
    packet = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    own = {torch.ops.aten.addmm: _addmm_flops} | ({} if packet is None else {packet: _sdpa_flops})
    return FlopCounterMode(display=False, custom_mapping=own).flop_registry


class _Counter(TorchDispatchMode):
    """FLOPs of all operations within the context, in a third of the time that FlopCounterMode takes: that notes for
    every module what runs in it, and asks of each call again whether its operation consists of others."""

    WHOLE = {torch.ops.prim.device.default}  # noqa: RUF012 (it grows): operations that consist of no others

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self.WHOLE:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self.WHOLE.add(func)
        result = func(*args, **kwargs)
        if (formula := _formulas().get(func.overloadpacket)) is not None:
            self.flops += _flops(formula, args, kwargs, result)
        return result


def _flops(formula: Callable[..., int], args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    """torch's own wrapper takes the shapes of all tensors in whatever nesting, for longer than the operation runs."""
    if (of_shapes := getattr(formula, "__wrapped__", None)) is None:
        return formula(*args, **kwargs, out_val=result)
    named = {name: _shape(value) for name, value in kwargs.items()}
    out = _shape(result) if isinstance(result, torch.Tensor) else tuple(map(_shape, result))
    return of_shapes(*map(_shape, args), **named, out_shape=out)


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else value


def tensors(made: Any) -> list[torch.Tensor]:
    """The tensors of what an operation takes or gives, in whatever nesting of tuples, lists and dicts, in the order in
    which `denoiser.mapped` meets them: sooner than torch's `tree_leaves`, which asks of every number what kind of
    container it is."""
    if isinstance(made, torch.Tensor):
        return [made]
    found: list[torch.Tensor] = []
    _collect((made,), found)
    return found


def _collect(values: Iterable[Any], found: list[torch.Tensor]) -> None:
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def count_macs(run: Callable[[], T]) -> tuple[T, int]:
    """Run and count: MACs = FLOPs / 2 of matrix products, convolutions and attention (softmax and norms excluded).

    Compiled parts run as they were before torch.compile, whose fused kernels would not be seen.
    """
    with _Counter() as counter, _eager():
        result = run()
    return result, counter.flops // 2
