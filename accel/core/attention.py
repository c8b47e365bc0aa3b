"""Which kernel computes a network's attention: layers of diffusers' transformers ask for a backend by its name.

Most backends call PyTorch's `scaled_dot_product_attention`. What looks there (the count of operations, quantised
products) does not see kernels of other packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

IN_PYTORCH = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
BACKEND = "_attention_backend"  # diffusers' attribute of an attention's processor; None: the default


def processors(net: nn.Module) -> list[Any]:
    """The processors of the attention layers of `net` that ask for a backend."""
    found = (getattr(module, "processor", None) for module in net.modules())
    return [processor for processor in found if hasattr(processor, BACKEND)]


def other_kernels(net: nn.Module) -> set[str]:
    """The backends of `net` that are not PyTorch's own attention."""
    asked = {getattr(processor, BACKEND) for processor in processors(net)} - {None}
    return {str(getattr(backend, "value", backend)) for backend in asked} - {*IN_PYTORCH}


@contextmanager
def in_pytorch(net: nn.Module) -> Iterator[None]:
    """Until the context ends, the attention of `net` is PyTorch's own where it is another kernel's."""
    before = {} if not other_kernels(net) else {id(p): (p, getattr(p, BACKEND)) for p in processors(net)}
    try:
        for processor, _ in before.values():
            setattr(processor, BACKEND, "native")
        yield
    finally:
        for processor, backend in before.values():
            setattr(processor, BACKEND, backend)
