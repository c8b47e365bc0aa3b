"""TF32: float32 with the tensor cores' 19-bit inputs (8 bits of exponent, 10 of mantissa), executed for real.

Matrix products and convolutions of the denoiser's evaluations round their float32 inputs to TF32 and sum in float32;
all else, the sampler and other networks are not touched: torch's switches are global, and are set within each
evaluation only. (torch's own default is TF32 in convolutions and float32 in matrix products.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from accel.core.denoiser import Node
from accel.core.precision import Precision
from accel.precision.executed.hardware import require_capability

LEAST = (8, 0)  # compute capability


@dataclass(frozen=True)
class TF32(Precision):
    """Float32 with products and convolutions in TF32, on CUDA devices of capability 8.0 or above."""

    @property
    def label(self) -> str:
        return "tf32"

    def check_machine(self, nets) -> None:
        require_capability(self.label, nets, LEAST)

    def prepare(self, node: Node) -> None:
        node.within = tf32_products


def tf32_products() -> AbstractContextManager[None]:
    """Within the context float32 products and convolutions use TF32 where the device has it; then as before."""
    return float32_products("tf32")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Within the context float32 products and convolutions of CUDA devices are computed in `precision`: tf32, or ieee
    (float32 itself)."""
    parts = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn))
    # torch 2.9 and later forbid to mix their new switches with the old ones.
    new = hasattr(parts[1], "fp32_precision")
    name, value = ("fp32_precision", precision) if new else ("allow_tf32", precision == "tf32")
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, value)
        yield
    finally:
        for part, kept in zip(parts, before, strict=True):
            setattr(part, name, kept)
