"""The production stack in place: a cast, 8-bit linear layers and compiled blocks, under every cache and guidance.

What runs a network as one piece (`compiled`, `torchao_int8`) can go with no cache, for nothing can look into it. Here
the network's modules stay where they are: the weights of its linear layers become torchao's (int8 or float8, see
`torchao`), the blocks that repeat are compiled one by one (diffusers' compile_repeated_blocks), and both are taken back
afterwards. A cache's decisions stay outside of what is compiled, or are one graph more for each of them: with and
without the module, for each number of rows. All are made in the first trajectory of a shape
(diffusers' FirstBlockCache needs one more at the second, when its hooks find a state);
`accel.core.compiling.compilations` counts them.

Limits: what is between the blocks is not fused, so that one compiled piece may be faster; 8-bit products without
compiled blocks quantise by separate operators, which is slower than none; the float weights are kept beside the 8-bit
ones until they are put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.core.compiling import compile_blocks, repeated_blocks, room_to_compile, uncompiled
from accel.core.denoiser import Node
from accel.core.precision import Precision
from accel.errors import IncompatibleError, unknown
from accel.precision.executed.cast import DTYPES, SHORT, Cast, cast_bytes
from accel.precision.executed.compiled import check_backend, how_compiled
from accel.precision.executed.torchao import (
    SCHEMES,
    check_linear,
    check_torchao,
    linear_bytes,
    linear_layers,
    quantise_linear,
)
from accel.precision.layers import KEEP

NONE = "none"


@dataclass(frozen=True)
class InPlace(Precision):
    """The denoiser in `dtype`, its linear layers outside `keep` in 8 bits by `linear` (none, weights, dynamic or
    float8), its repeated blocks compiled by `backend` (none: not compiled)."""

    dtype: str = "bfloat16"
    linear: str = "dynamic"
    backend: str = "inductor"
    keep: Sequence[str] = KEEP

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.dtype not in DTYPES:
            raise unknown("precision.dtype", str(self.dtype), DTYPES)
        if self.linear not in (NONE, *SCHEMES):
            raise unknown("precision.linear", str(self.linear), (NONE, *SCHEMES))
        check_backend(self.backend)

    @property
    def label(self) -> str:
        how = ["in place"] if self.linear == NONE else ["in place", SHORT[self.dtype]]
        how += [] if self.backend == NONE else [f"{how_compiled(self.backend)} blocks"]
        what = SHORT[self.dtype] if self.linear == NONE else f"{SCHEMES[self.linear]} linear"
        return f"{what}({','.join(how)})"

    def check(self, nets, recipe) -> None:
        if self.linear != NONE:
            check_linear(nets, self.keep)
        for name, net in nets.items():
            if self.backend != NONE and not repeated_blocks(net):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no repeated blocks to compile; use precision.backend=none, "
                    "or precision=compiled, which compiles it as a whole."
                )
            if self.backend != NONE and any(m._compiled_call_impl is not None for m in net.modules()):
                raise IncompatibleError(
                    f"blocks of {name!r} ({type(net).__name__}) are compiled already; use suite.compile=false, or "
                    "precision.backend=none."
                )

    def check_machine(self, nets) -> None:
        if self.linear != NONE:
            check_torchao(self.label, self.linear, nets)

    def prepare(self, node: Node) -> None:
        Cast(self.dtype).prepare(node)
        if self.linear != NONE:
            for layer in linear_layers(node.net, self.keep).values():
                node.undo.callback(_weight_back, layer, layer.weight)
            quantise_linear(node.net, self.linear, self.keep)
        if self.backend != NONE:
            for block in compile_blocks(node.net, backend=self.backend):
                node.undo.callback(uncompiled, block)
            node.undo.enter_context(room_to_compile([node.net]))

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        dtype = DTYPES[self.dtype]
        return cast_bytes(net, dtype) if self.linear == NONE else linear_bytes(net, self.linear, dtype, self.keep)


def _weight_back(layer: nn.Linear, weight: nn.Parameter) -> None:
    layer.weight = weight
    layer.__dict__.pop("extra_repr", None)  # torchao's
