"""The denoiser in OpenVINO's CPU runtime, executed for real: float32, bfloat16, or int8 by NNCF.

The network is exported by torch, converted, and compiled for the shapes of each call. int8 is static post-training
quantisation of convolutions and linear layers (NNCF, model type `transformer`), on recorded evaluations of the model's
own trajectories; what is left runs in `dtype`. In bfloat16 the runtime rounds every input, and a timestep above 256 has
no exact value there: so everything before a sine or cosine, the embedding of the timestep (and of Stable Diffusion XL's
sizes), is cut off and runs in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from accel.core.macs import tensors
from accel.errors import IncompatibleError, unknown
from accel.precision.executed.cast import DTYPES, SHORT, cast_bytes
from accel.precision.executed.hardware import require_cpu, require_package
from accel.precision.executed.openvino_model import (
    Waves,
    abilities,
    array,
    compiled_request,
    quantised,
    without_reports,
)
from accel.precision.executed.recorded_inputs import Positional
from accel.precision.executed.whole import Forward, Whole
from accel.precision.layers import KEEP, left_float, quantisable
from accel.precision.simulated.calibration_sets import StridedSteps

HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class OpenVINO(Whole):
    """Run the denoiser in OpenVINO on the CPU, in `dtype` (float32 or bfloat16); with `int8`, convolutions and linear
    layers but those matching `keep` in static W8A8.

    Threads are those of torch.
    """

    dtype: str = "bfloat16"
    int8: bool = False
    calibration: StridedSteps = field(default=StridedSteps(samples=4, stride=2))
    keep: Sequence[str] = KEEP

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.dtype not in HINTS:
            raise unknown("precision.dtype", str(self.dtype), HINTS)

    @property
    def label(self) -> str:
        return f"{'w8a8' if self.int8 else SHORT[self.dtype]}(openvino{',' + SHORT[self.dtype] if self.int8 else ''})"

    @property
    def calibrated(self) -> bool:
        return self.int8

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        for name, net in nets.items() if self.int8 else ():
            if not quantisable(net, self.keep):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no convolution or linear layer to quantise; use "
                    "precision.int8=false."
                )

    def check_machine(self, nets) -> None:
        require_cpu(self.label, nets)
        for package in ("openvino", "nncf") if self.int8 else ("openvino",):
            require_package(self.label, package, "openvino")
        if self.dtype == "bfloat16" and "BF16" not in (able := abilities()):
            raise IncompatibleError(
                f"{self.label} needs a processor that multiplies bfloat16 (AVX512-BF16 or AMX), and OpenVINO finds "
                f"only {', '.join(able)} here; use precision.dtype=float32."
            )

    def convert(self, net: nn.Module, kwargs: dict[str, Any], calls: Sequence[dict[str, Any]]) -> Forward:
        with without_reports():
            import openvino

            program = torch.export.export(Positional(net, kwargs), tuple(tensors(kwargs)), strict=False)
            model = openvino.convert_model(program)
            waves = Waves(model)
            if self.int8:
                inputs = [waves.inputs([array(t) for t in tensors(call)]) for call in calls]
                model = quantised(model, inputs, [f"net.{name}" for name in left_float(net, self.keep)])
        request = compiled_request(model, HINTS[self.dtype])

        def run(**kwargs: Any) -> torch.Tensor:
            found = request.infer(waves.inputs([array(t) for t in tensors(kwargs)]), share_inputs=True)
            return torch.from_numpy(found[0].copy())

        return run

    def model_bytes(self, net: nn.Module, artefact: Any = None) -> int:
        """One byte for each weight of the quantised layers, a float32 scale for each of their outputs, all else in
        `dtype`."""
        size = torch.finfo(DTYPES[self.dtype]).bits // 8
        total = cast_bytes(net, DTYPES[self.dtype])
        for layer in quantisable(net, self.keep).values() if self.int8 else ():
            total += layer.weight.numel() * (1 - size) + 4 * len(layer.weight)
        return total
