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

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from accel.denoiser import LATER, Node
from accel.errors import ConfigError, check_float, check_int
from accel.precision.base import Sample
from accel.precision.calibration import evaluate, predict, record
from accel.precision.calibration_sets import CalibrationSet, Call, StridedSteps
from accel.precision.fake_quant import BIAS, WEIGHT, FakeQuant, quantisable, swap
from accel.precision.quantised import FLOAT_BITS, QuantisedLayer, channel_dim, run_layer
from accel.precision.quest import LearnedInputs, drawn, outputs
from accel.trajectory import Trajectory

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

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        models: Mapping[str, nn.Module] | None = None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """For each network the trained layers' activation limits, weights (`|weight`) and biases (`|bias`)."""
        made = super().calibrate(pipe, recipe, sample, models, artefacts)
        calls = record(pipe, recipe, lambda: sample(recipe, 0, self.calibration.samples), models, artefacts)
        for name, net in recipe.nets(pipe, models).items():
            self._train(name, net, [call for batch in calls.get(name, ()) for call in batch], made[name])
        return made

    def _nearest(self, layer: nn.Module, bits: int, channels: Sequence[int]) -> torch.Tensor:
        rows = layer.weight.detach().flatten(1)
        return (rows.abs().mean(1, keepdim=True) * sign(rows)).reshape(layer.weight.shape)

    def _train(self, name: str, net: nn.Module, calls: Sequence[Call], artefact: dict[str, torch.Tensor]) -> None:
        layers, generator, clock = quantisable(net, self.keep), torch.Generator().manual_seed(self.seed), Trajectory()
        full = copy.deepcopy(net)
        blocks = [k for k, m in net.named_modules() if type(m).__name__ in BLOCKS]
        with ExitStack() as undo:
            node = Node(name, net, clock, undo, artefact=artefact)
            self.prepare(node)
            trained = {k: Binary(net.get_submodule(k)) for k in layers}
            for k, module in trained.items():
                swap(node, k, module)
            wanted, found = (undo.enter_context(outputs(n, blocks)) for n in (full, net))
            bases: dict[str, torch.Tensor] = {}
            optimizer = torch.optim.AdamW(
                [p for m in trained.values() for p in m.parameters()], self.lr, weight_decay=0
            )
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
            for i in range(self.iterations):
                call = drawn(calls, self.batch, generator)
                clock.stage, clock.num_steps = call.step, call.steps
                evolving = i < self.evolving * self.iterations
                for module in trained.values():
                    module.evolving = evolving
                target = evaluate(name, full, call)
                if not bases:
                    bases = {k: principal(wanted[k]) for k in blocks}
                with torch.enable_grad():
                    loss = (predict(name, net, call) - target).square().mean()
                    for k in blocks:
                        error = projected(found[k], bases[k]) - projected(wanted[k], bases[k])
                        loss = loss + self.mimicking * error.square().mean()
                    if evolving:
                        loss = loss + self.tau * sum(m.second.abs().mean() for m in trained.values()) / len(trained)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                optimizer.step()
                decay.step()
            for k, module in trained.items():
                module.evolving = False
                artefact[k + WEIGHT] = module.hard()
                if module.bias is not None:
                    artefact[k + BIAS] = module.bias.detach().clone()
                if module.inputs is not None:
                    limits = module.inputs.limits()
                    artefact[k] = limits.flatten() if limits.numel() == 2 else limits


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
        self.inputs = None if quantised.inputs is None else LearnedInputs(quantised.inputs, channel_dim(layer))

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
        return run_layer(self.quantised.layer, self.weight(), self.bias, x if self.inputs is None else self.inputs(x))


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
