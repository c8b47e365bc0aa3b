"""Multiply-accumulate operations that really execute, counted by torch's FlopCounterMode (attention included)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

T = TypeVar("T")


def _eager() -> AbstractContextManager:
    compiling = "torch._dynamo" in sys.modules  # importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _cpu_sdpa_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    # torch counts the fused attention of CUDA only; on CPU it would be 0.
    return sdpa_flop_count(query, key, value)


def _mapping() -> dict:
    packet = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return {} if packet is None else {packet: _cpu_sdpa_flops}


def count_macs(run: Callable[[], T]) -> tuple[T, int]:
    """Run and count: MACs = FLOPs / 2 of matrix products, convolutions and attention (softmax and norms excluded).

    Compiled parts run as they were before torch.compile, whose fused kernels would not be seen.
    """
    with FlopCounterMode(display=False, custom_mapping=_mapping()) as counter, _eager():
        result = run()
    return result, counter.get_total_flops() // 2
