"""Static int8 of convolutions and linear layers on x86 CPUs, executed by inductor's fused integer kernels.

PyTorch 2 export quantisation (torchao.quantization.pt2e, X86InductorQuantizer): the exported graph is observed on
recorded evaluations of the model's own trajectories, converted, and compiled with frozen weights. Weights: int8,
symmetric, a scale for each output channel. Activations: uint8, affine, one range for each layer's input over all
timesteps (histogram observers). All else, attention's products included, is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from accel.core.environment import instruction_set
from accel.core.macs import tensors
from accel.core.precision import plain_bytes
from accel.errors import IncompatibleError
from accel.precision.executed.compiled import check_backend, compiled, how_compiled
from accel.precision.executed.hardware import require_cpu, require_package
from accel.precision.executed.recorded_inputs import Positional
from accel.precision.executed.whole import Forward, Whole
from accel.precision.layers import KEEP, left_float, quantisable
from accel.precision.simulated.calibration_sets import StridedSteps


@dataclass(frozen=True)
class StaticInt8(Whole):
    """Static W8A8 of all convolutions and linear layers but those matching `keep`; on the CPU.

    backend: as for `Compiled`.
    """

    calibration: StridedSteps = field(default=StridedSteps(samples=4, stride=2))
    keep: Sequence[str] = KEEP
    backend: str = "inductor"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        check_backend(self.backend)

    @property
    def label(self) -> str:
        return f"w8a8(static,{how_compiled(self.backend)})"

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        for name, net in nets.items():
            if not quantisable(net, self.keep):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no convolution or linear layer to quantise; "
                    "use precision=none."
                )

    def check_machine(self, nets) -> None:
        require_cpu(self.label, nets)
        require_package(self.label, "torchao", "torchao")

    def convert(self, net: nn.Module, kwargs: dict[str, Any], calls: Sequence[dict[str, Any]]) -> Forward:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer()
        for name in left_float(net, self.keep):
            quantizer.set_module_name_qconfig(f"net.{name}", None)
        no_vnni = not any("vnni" in name for name in instruction_set())
        config = x86.get_default_x86_inductor_quantization_config(reduce_range=no_vnni)
        for kind in (nn.Conv2d, nn.Linear):  # by default also what lies between them, integers included
            quantizer.set_module_type_qconfig(kind, config)
        graph = torch.export.export(Positional(net, kwargs), tuple(tensors(kwargs)), strict=False).module()
        observed = prepare_pt2e(graph, quantizer)
        for call in calls:
            observed(*tensors(call))
        run = compiled(convert_pt2e(observed), self.backend)
        return lambda **kwargs: run(*tensors(kwargs))

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        """One byte for each weight of the quantised layers, a float32 scale for each of their outputs, all else as it
        is."""
        total = plain_bytes(net)
        for layer in quantisable(net, self.keep).values():
            weight = layer.weight
            total += weight.numel() * (1 - weight.element_size()) + 4 * len(weight)
        return total
