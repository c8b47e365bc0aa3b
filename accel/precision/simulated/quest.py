"""QuEST: after rounding is learned, the layers that low bits hurt most are tuned on the network's own output.

Wang et al. 2025, "QuEST: Low-bit Diffusion Model Quantization via Efficient Selective Finetuning" (arXiv:2402.03666,
sec. 4). Activations have scales for each of `groups` of neighbouring steps. Then two stages of Adam on evaluations of
the model's own trajectories, drawn over all steps:

1. the projections of the time embedding (`time_layers`): their weights;
2. layers around attention (`attention_layers`): their weights, and their activation scales;

each with the loss |f^(x) - f(x)|^2 of the network's output plus the same of every tuned layer's output, f in full
precision, and straight-through gradients.
Deviations: all steps are tuned together in both stages (theirs: the first stage step after step); a larger learning
rate in far fewer iterations (theirs: 1e-5 in tens of thousands). In their W4A4 activations have a scale for each
channel, which no integer kernel can run: here it is one for each tensor. The released code leaves out the layers' part
of the second stage; here it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch
from torch import nn

from accel.core.job import Job
from accel.core.method import LATER
from accel.errors import ConfigError, check_float, check_int
from accel.precision.layers import quantisable
from accel.precision.simulated.calibration_sets import CalibrationSet, Call, StridedSteps
from accel.precision.simulated.distillation import LearnedInputs, Objective, Outputs, Training
from accel.precision.simulated.fake_quant import WEIGHT, FakeQuant
from accel.precision.simulated.levels import Levels
from accel.precision.simulated.quantised import FLOAT_BITS, QuantisedLayer, run_layer
from accel.precision.simulated.rounding import AdaRound, Rounding
from accel.precision.simulated.weights import parts_of, sliced


@dataclass(frozen=True)
class QuEST(FakeQuant):
    """AdaRound of blocks, grouped activation scales and two stages of selective tuning."""

    weight_bits: int = 4
    activation_bits: int = 4
    keep: Sequence[str] = ("time_embedding.*", "class_embedding*")
    rounding: Rounding | None = field(default=AdaRound(unit="block"), metadata=LATER)
    calibration: CalibrationSet = field(default=StridedSteps(samples=64, stride=1), metadata=LATER)
    groups: int = field(default=10, metadata=LATER)
    time_layers: Sequence[str] = ("*time_emb_proj", "*norm1.linear", "*norm1.emb.*")
    attention_layers: Sequence[str] = ("*to_q", "*to_k", "*to_v", "*to_out.0", "*.ff.*")
    iterations: int = 300  # of each stage
    batch: int = 16
    lr: float = 3e-4  # of the weights
    scale_lr: float = 1e-3  # of the activation scales, relative to them

    refines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.exempt_tokens or self.weight_bits == FLOAT_BITS:
            raise ConfigError(
                f"QuEST tunes quantised weights of all tokens; found weight_bits={self.weight_bits} and "
                f"exempt_tokens={self.exempt_tokens}; allowed: weight_bits in [2, 16] and exempt_tokens=0."
            )
        super().__post_init__()
        for name in ("time_layers", "attention_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_int("precision.iterations", self.iterations, 0)
        check_int("precision.batch", self.batch, 1)
        check_float("precision.lr", self.lr, 0.0, 1.0)
        check_float("precision.scale_lr", self.scale_lr, 0.0, 1.0)

    @property
    def label(self) -> str:
        return f"quest {super().label}"

    def refine(self, name, net, calls, artefact, job) -> None:
        """Tune the named layers' weights, and of those around attention the activation scales."""
        self._tune("time", self.time_layers, name, net, calls, artefact, job)
        self._tune("attention", self.attention_layers, name, net, calls, artefact, job)

    def _tune(
        self,
        stage: str,
        patterns: Sequence[str],
        name: str,
        net: nn.Module,
        calls: Sequence[Call],
        artefact: dict[str, torch.Tensor],
        job: Job,
    ) -> None:
        layers = {k: m for k, m in quantisable(net, self.keep).items() if any(fnmatch(k, p) for p in patterns)}
        scales = stage == "attention" and self.activation_bits != FLOAT_BITS
        if not layers or not self.iterations:
            return
        slices = self._slices(net)
        split = {
            k: parts_of(m.weight, self.weight_bits, self.granularity, self.weight_range, slices.get(k, ()))
            for k, m in layers.items()
        }

        def rates(tuned: Mapping[str, Tuned]) -> list[dict[str, Any]]:
            groups = [{"params": [m.latent for m in tuned.values()], "lr": self.lr}]
            if scales:
                groups.append({"params": [m.inputs.log_scale for m in tuned.values()], "lr": self.scale_lr})
            return groups

        tuned = Training(stage, self.iterations, self.batch).run(
            name, net, calls, self.prepare, artefact, layers=layers, rates=rates, objective=_Layers(layers), job=job,
            stand_in=lambda k, layer: Tuned(layer, [part.scale for part in split[k]]),
        )  # fmt: skip
        for k, module in tuned.items():
            artefact[k + WEIGHT] = module.weight.detach().clone()
            if scales:
                artefact[k] = module.inputs.limits()


class _Layers(Objective):
    """The tuned layers' own outputs."""

    def __init__(self, layers: Iterable[str]) -> None:
        self.watched = tuple(layers)

    def loss(self, wanted: Outputs, found: Outputs) -> torch.Tensor | float:
        return sum((found[k] - wanted[k]).square().mean() for k in self.watched)


class Tuned(nn.Module):
    """A quantised layer with gradients: of a latent weight, straight through the rounding, and of activation scales.

    Begins at exactly what `quantised`, whose weight is on the levels of `scales`, one (G, 1) for each slice, computes.
    """

    def __init__(self, quantised: QuantisedLayer, scales: Sequence[torch.Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "quantised", quantised)
        self.scales, self.levels = list(scales), Levels(quantised.weight_bits, symmetric=True)
        self.latent = nn.Parameter(self._begin(quantised))
        self.inputs = LearnedInputs.of(quantised)

    def _begin(self, quantised: QuantisedLayer) -> torch.Tensor:
        # The original weight, as far as it is rounded to where it was.
        pairs = zip(self._parts(quantised.layer.weight.detach()), self._parts(quantised.weight), strict=True)
        kept = [
            b.reshape(len(s), -1) + (a - b).reshape(len(s), -1).clamp(-0.49 * s, 0.49 * s)
            for (a, b), s in zip(pairs, self.scales, strict=True)
        ]
        return torch.cat([k.reshape(p.shape) for k, p in zip(kept, self._parts(quantised.weight), strict=True)], 1)

    def _parts(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sliced(weight, self.quantised.inputs.channels if len(self.scales) > 1 else ())

    @property
    def weight(self) -> torch.Tensor:
        """The weight on its levels."""
        made = [
            self.levels.learned(part.reshape(len(scale), -1), scale, torch.zeros_like(scale)).reshape(part.shape)
            for part, scale in zip(self._parts(self.latent), self.scales, strict=True)
        ]
        return torch.cat(made, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.quantised.layer
        return run_layer(layer, self.weight, layer.bias, x if self.inputs is None else self.inputs(x))
