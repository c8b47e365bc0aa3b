"""BinaryDM: weights of one bit, found by training the quantised network to do what the full one does.

Zheng et al. 2025, "BinaryDM: Accurate Weight Binarization for Efficient Diffusion Models" (arXiv:2404.05662, second
version). Each output channel of a layer has w^ = s_1 sign(w). Training:

* *Evolvable basis*: at first w^ = s_1 sign(w) + s_2 sign(w - s_1 sign(w)), both scales learned, with a penalty
  `tau` |s_2| that takes the second basis away; the second stage has the first alone, so the network ends at one bit.
* *Low-rank representation mimicking*: outputs of the residual blocks, projected to the leading quarter of the principal
  directions of the full network's *channels*, are pulled to the full network's (weight `mimicking`).
* Activations have learned scales (LSQ); gradients of sign are straight-through within [-1, 1] times the scale.
The first and the last layers (`keep`) stay in floating point.
Deviations: no data: the loss is the squared difference of the two networks' outputs on states of the full network's own
trajectories, where the authors train on images; principal directions are those of channels, as the text says (the
released code takes them over the width of the picture); thousands of iterations, not hundreds of thousands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from accel.core.method import LATER
from accel.errors import ConfigError, check_float, check_int
from accel.precision.layers import quantisable
from accel.precision.simulated.calibration_sets import CalibrationSet, StridedSteps
from accel.precision.simulated.distillation import LearnedInputs, Objective, Outputs, Training
from accel.precision.simulated.fake_quant import BIAS, WEIGHT, FakeQuant
from accel.precision.simulated.quantised import FLOAT_BITS, QuantisedLayer, run_layer

BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
RANK = 4  # one of so many principal directions is mimicked


@dataclass(frozen=True)
class BinaryDM(FakeQuant):
    """W1A`activation_bits` (2..16, or 32); `weight_bits` is 1."""

    weight_bits: int = 1
    activation_bits: int = 4
    keep: Sequence[str] = ("time_embedding.*", "class_embedding*", "*time_emb_proj", "conv_in", "conv_out")
    calibration: CalibrationSet = field(default=StridedSteps(samples=256, stride=1), metadata=LATER)
    iterations: int = 3000
    evolving: float = 0.5  # share of the iterations with the second basis
    batch: int = 32
    lr: float = 1e-3
    tau: float = 0.09
    mimicking: float = 1e-4
    seed: int = 0

    refines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight_bits != 1:
            raise ConfigError(f"precision.weight_bits is {self.weight_bits}; allowed for BinaryDM: 1.")
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.activation_bits != FLOAT_BITS:
            check_int("precision.activation_bits", self.activation_bits, 2, 16)
        if self.rounding or self.split or self.exempt_tokens or self.granularity != "channel":
            raise ConfigError(
                "BinaryDM trains its weights; rounding, split, exempt_tokens and granularity do not apply."
            )
        check_int("precision.groups", self.groups, 1)
        check_int("precision.iterations", self.iterations, 1)
        check_int("precision.batch", self.batch, 1)
        check_float("precision.evolving", self.evolving, 0.0, 1.0)
        for name in ("lr", "tau", "mimicking"):
            check_float(f"precision.{name}", getattr(self, name), 0.0)

    @property
    def label(self) -> str:
        return f"binarydm w1a{self.activation_bits}(sim)"

    @property
    def calibrated(self) -> bool:
        return True

    def refine(self, name, net, calls, artefact, job) -> None:
        """Train: weights (`|weight`), biases (`|bias`) and activation limits."""
        trained = Training("trained", self.iterations, self.batch, self.seed).run(
            name, net, calls, self.prepare, artefact, layers=quantisable(net, self.keep), job=job,
            stand_in=lambda k, layer: Binary(layer),
            rates=lambda own: [{"params": [p for m in own.values() for p in m.parameters()], "lr": self.lr}],
            objective=_Mimicking(self, net),
        )  # fmt: skip
        for k, module in trained.items():
            artefact[k + WEIGHT] = module.hard()
            if module.bias is not None:
                artefact[k + BIAS] = module.bias.detach().clone()
            if module.inputs is not None:
                artefact[k] = module.inputs.limits()

    def _nearest(self, layer: nn.Module, bits: int, channels: Sequence[int]) -> torch.Tensor:
        rows = layer.weight.detach().flatten(1)
        return (rows.abs().mean(1, keepdim=True) * sign(rows)).reshape(layer.weight.shape)


class _Mimicking(Objective):
    """Blocks' outputs along the full network's principal directions; at first both bases, the second penalised."""

    def __init__(self, method: BinaryDM, net: nn.Module) -> None:
        self.method = method
        self.watched = tuple(k for k, m in net.named_modules() if type(m).__name__ in BLOCKS)

    def begin(self, wanted: Outputs, trained: Mapping[str, Binary]) -> None:
        self.modules = trained.values()
        self.bases = {k: principal(wanted[k]) for k in self.watched}

    def step(self, progress: float) -> None:
        for module in self.modules:
            module.evolving = progress < self.method.evolving

    def loss(self, wanted: Outputs, found: Outputs) -> torch.Tensor | float:
        errors = [projected(found[k], self.bases[k]) - projected(wanted[k], self.bases[k]) for k in self.watched]
        total = self.method.mimicking * sum(e.square().mean() for e in errors)
        second = [m.second.abs().mean() for m in self.modules if m.evolving]
        return total + self.method.tau * sum(second) / len(self.modules)


class Binary(nn.Module):
    """A layer in training: latent weight, scales of both bases, bias, activation scales."""

    def __init__(self, quantised: QuantisedLayer) -> None:
        super().__init__()
        object.__setattr__(self, "quantised", quantised)
        layer = quantised.layer
        rows = layer.weight.detach().flatten(1)
        self.evolving = True
        self.latent = nn.Parameter(rows.clone())
        first = rows.abs().mean(1, keepdim=True).clamp_min(1e-8)
        self.first = nn.Parameter(first.clone())
        self.second = nn.Parameter((rows - first * sign(rows)).abs().mean(1, keepdim=True))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.inputs = LearnedInputs.of(quantised)

    @property
    def weight(self) -> torch.Tensor:
        """s_1 sign(w), while evolving + s_2 sign(w - s_1 sign(w))."""
        made = self.first * straight_sign(self.latent, self.first)
        if self.evolving:
            rest = self.latent - (self.first * sign(self.latent)).detach()
            made = made + self.second * straight_sign(rest, self.first)
        return made.reshape(self.quantised.layer.weight.shape)

    def hard(self) -> torch.Tensor:
        """s_1 sign(w), exactly."""
        return (self.first * sign(self.latent)).detach().reshape(self.quantised.layer.weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run_layer(self.quantised.layer, self.weight, self.bias, x if self.inputs is None else self.inputs(x))


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1 or 1: that of zero is 1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def straight_sign(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """sign(x) with the gradient of clamp(x / s, -1, 1)."""
    clipped = (x / scale.detach()).clamp(-1, 1)
    return clipped + (sign(x) - clipped).detach()


def principal(x: torch.Tensor) -> torch.Tensor:
    """The leading quarter of the principal directions of the channels of x (B, C, H, W) or (B, T, C): (C, C / 4)."""
    flat = _channels_last(x).double()
    covariance = torch.cov(flat.T)
    _, vectors = torch.linalg.eigh(covariance)
    return vectors[:, -max(1, len(vectors) // RANK) :].to(x.dtype)


def projected(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Coordinates of each place's channels in `basis`."""
    return _channels_last(x) @ basis


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return (x.movedim(1, -1) if x.dim() == 4 else x).flatten(0, -2)
