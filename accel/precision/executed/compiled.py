"""torch.compile of the whole denoiser, executed for real: one fused program, its weights frozen into it.

By inductor with constant folding and packed weights (its `freezing`), for the shapes of each call. The timestep and its
sinusoid stay in float32; the scheduler's arithmetic and the latents keep their dtype. What is fastest depends on the
instruction set: bfloat16 is where the processor multiplies it (AMX, AVX512-BF16), and may lose to float32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn

from accel.errors import unknown
from accel.precision.executed.cast import DTYPES, SHORT, cast_bytes
from accel.precision.executed.whole import Forward, Whole

BACKENDS = ("inductor", "aot_eager", "eager", "none")


@dataclass(frozen=True)
class Compiled(Whole):
    """Run the denoiser in `dtype` (float32, bfloat16 or float16), compiled by `backend`.

    backend: inductor; or, to test and to find out where a fault comes from, aot_eager and eager, which trace without
    compiling, and none, which does not even trace.
    """

    dtype: str = "bfloat16"
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown("precision.dtype", self.dtype, DTYPES)
        check_backend(self.backend)

    @property
    def label(self) -> str:
        return f"{SHORT[self.dtype]}({how_compiled(self.backend)})"

    @property
    def compute(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def convert(self, net: nn.Module, kwargs: dict[str, Any], calls: Sequence[dict[str, Any]]) -> Forward:
        return compiled(net, self.backend)

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        return cast_bytes(net, self.compute)


def compiled(net: nn.Module, backend: str = "inductor") -> Callable[..., Any]:
    """`net` as one compiled graph, specialised to the shapes of the first call; call it without gradients.

    Raises at the first call where the network is not a single graph.
    """
    if backend == "none":
        return net

    def run(*args: Any, **kwargs: Any) -> Any:
        return net(*args, **kwargs)

    # torch keeps at most 8 compilations of one code object, and runs what exceeds them uncompiled, silently.
    own = FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)
    made, frozen = torch.compile(own, fullgraph=True, dynamic=False, backend=backend), []

    def call(*args: Any, **kwargs: Any) -> Any:
        if frozen:
            return made(*args, **kwargs)
        from torch._inductor import config

        # Tracing reads this switch from the global settings, not from the options of one compilation.
        with config.patch(freezing=True):
            output = made(*args, **kwargs)
        frozen.append(True)
        return output

    return call


def how_compiled(backend: str) -> str:
    """A backend in labels."""
    return {"inductor": "compiled", "none": "not compiled"}.get(backend, backend)


def check_backend(backend: str) -> None:
    """ConfigError for an unknown backend of torch.compile."""
    if backend not in BACKENDS:
        raise unknown("precision.backend", str(backend), BACKENDS)
