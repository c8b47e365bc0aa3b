"""Integer and 8-bit floating-point linear layers by torchao, executed for real.

torchao quantises linear layers only: the convolutions, most of a UNet's work, run in `dtype`. Weights: int8, symmetric,
a scale for each output. Activations: as they are (`weights`), int8 with a scale for each token found while running
(`dynamic`), or both in float8 e4m3 (`float8`, on GPUs of capability 8.9 or above). Without torch.compile every product
quantises by separate operators, which is slower than no quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.errors import IncompatibleError, unknown
from accel.precision.executed.cast import DTYPES, SHORT, cast_bytes
from accel.precision.executed.compiled import compiled
from accel.precision.executed.hardware import require_capability, require_package
from accel.precision.executed.whole import Forward, Whole
from accel.precision.layers import KEEP, quantisable

SCHEMES = {"weights": "w8", "dynamic": "w8a8", "float8": "fp8"}
CONFIGS = {
    "weights": "Int8WeightOnlyConfig",
    "dynamic": "Int8DynamicActivationInt8WeightConfig",
    "float8": "Float8DynamicActivationFloat8WeightConfig",
}
FLOAT8_LEAST = (8, 9)  # compute capability


@dataclass(frozen=True)
class TorchAO(Whole):
    """Linear layers in 8 bits by `scheme` (weights, dynamic or float8), all else in `dtype`; those matching `keep` too.

    compile: whether the network is then compiled as a whole.
    """

    scheme: str = "dynamic"
    dtype: str = "bfloat16"
    compile: bool = True
    keep: Sequence[str] = KEEP

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.scheme not in SCHEMES:
            raise unknown("precision.scheme", str(self.scheme), SCHEMES)
        if self.dtype not in DTYPES:
            raise unknown("precision.dtype", str(self.dtype), DTYPES)

    @property
    def label(self) -> str:
        how = ",compiled" if self.compile else ""
        return f"{SCHEMES[self.scheme]} linear(torchao,{SHORT[self.dtype]}{how})"

    @property
    def compute(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        check_linear(nets, self.keep)

    def check_machine(self, nets) -> None:
        check_torchao(self.label, self.scheme, nets)

    def convert(self, net: nn.Module, kwargs: dict[str, Any], calls: Sequence[dict[str, Any]]) -> Forward:
        quantise_linear(net, self.scheme, self.keep)
        return compiled(net) if self.compile else net

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        """One byte for each weight of the quantised layers, a scale in `dtype` for each of their outputs (float8: one
        float32 for the layer), all else in `dtype`."""
        return linear_bytes(net, self.scheme, self.compute, self.keep)


def check_linear(nets: Mapping[str, nn.Module], keep: Sequence[str]) -> None:
    """IncompatibleError for a network without a linear layer outside `keep`."""
    for name, net in nets.items():
        if not linear_layers(net, keep):
            raise IncompatibleError(
                f"{name!r} ({type(net).__name__}) has no linear layer to quantise, and torchao quantises no other; "
                "use precision=compiled or static_int8."
            )


def check_torchao(label: str, scheme: str, nets: Mapping[str, nn.Module]) -> None:
    """IncompatibleError without the package, or without a GPU that computes in float8 where `scheme` does."""
    if scheme == "float8":
        require_capability(label, nets, FLOAT8_LEAST)
    require_package(label, "torchao", "torchao")


def linear_layers(net: nn.Module, keep: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that are quantised, by name."""
    return {name: layer for name, layer in quantisable(net, keep).items() if isinstance(layer, nn.Linear)}


def quantise_linear(net: nn.Module, scheme: str, keep: Sequence[str]) -> None:
    """Put quantised weights into the linear layers of `net`, in place."""
    from torchao import quantization

    wanted = set(linear_layers(net, keep))
    # Its recommended settings of inductor would hold for the whole process from then on.
    config = getattr(quantization, CONFIGS[scheme])(set_inductor_config=False)
    quantization.quantize_(net, config, filter_fn=lambda module, name: name in wanted)


def linear_bytes(net: nn.Module, scheme: str, dtype: torch.dtype, keep: Sequence[str]) -> int:
    """Bytes of `net` with those layers quantised and all else in `dtype`."""
    total, size = cast_bytes(net, dtype), torch.finfo(dtype).bits // 8
    for layer in linear_layers(net, keep).values():
        scales = 4 if scheme == "float8" else layer.out_features * size
        total += layer.weight.numel() * (1 - size) + scales
    return total
