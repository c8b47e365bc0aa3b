"""Fake-quantised denoisers: integer weights and activations imitated in floating point (quality only, never timed).

Uniform quantisation, Nagel et al. 2021 (arXiv:2106.08295), sec. 2: x_q = clamp(round(x / s) + z, q_min, q_max),
x^ = s (x_q - z). Weights: symmetric, one scale for each output channel, s = max|w| / q_max. Activations: affine, one
scale for each layer's input, from the minimum and maximum over calibration trajectories, that is over all timesteps.
Which layers: every convolution and linear layer except those matching `keep` (timestep and class embeddings).
Deviations from PTQ4DM (arXiv:2211.15736): inputs rather than outputs are quantised, as integer kernels need, and the
calibration covers every step of the run's own sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import nn

from accel.denoiser import Node
from accel.errors import ConfigError, IncompatibleError, check_int
from accel.precision.base import Precision, plain_bytes

FLOAT_BITS = 32


@dataclass(frozen=True)
class FakeQuant(Precision):
    """W`weight_bits` A`activation_bits`, 2..16 or 32 (32: left in floating point; W32A32 changes nothing)."""

    weight_bits: int = 8
    activation_bits: int = 8
    keep: Sequence[str] = ("time_embedding.*", "class_embedding*", "*time_emb_proj")

    kind = "simulated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) != FLOAT_BITS:
                check_int(f"precision.{name}", getattr(self, name), 2, 16)

    @property
    def label(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}(sim)"

    @property
    def calibrated(self) -> bool:
        return self.activation_bits != FLOAT_BITS

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            if not quantisable(net, self.keep):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no convolution or linear layer to quantise; "
                    "use precision=none."
                )

    def prepare(self, node: Node) -> None:
        if self.weight_bits == FLOAT_BITS and self.activation_bits == FLOAT_BITS:
            return
        layers = quantisable(node.net, self.keep)
        ranges = node.artefact
        if self.calibrated and (ranges is None or set(ranges) != set(layers)):
            found = "none" if ranges is None else f"ranges for {len(ranges)} layers"
            raise ConfigError(
                f"W{self.weight_bits}A{self.activation_bits} needs activation ranges for the {len(layers)} layers of "
                f"{node.name!r}, found {found}; make them with accel.precision.calibration.calibrate(pipe, recipe, ...)"
                " and pass them as `artefacts`, or run it with `python -m accel`, which calibrates by itself."
            )
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            modules = node.net.get_submodule(parent)._modules
            node.undo.callback(modules.__setitem__, child, layer)
            limits = ranges[name] if self.calibrated else None
            modules[child] = QuantisedLayer(layer, self.weight_bits, self.activation_bits, limits)

    def model_bytes(self, net: nn.Module) -> int:
        """Weights at their bits plus one float32 scale an output channel; all else as it is."""
        total = plain_bytes(net)
        if self.weight_bits == FLOAT_BITS:
            return total
        for layer in quantisable(net, self.keep).values():
            w = layer.weight
            total += -w.numel() * w.element_size() + (w.numel() * self.weight_bits + 7) // 8 + 4 * len(w)
        return total


def quantisable(net: nn.Module, keep: Sequence[str]) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, without those matching a `keep` pattern."""
    found = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    return {n: m for n, m in found.items() if not any(fnmatch(n, k) for k in keep)}


class QuantisedLayer(nn.Module):
    """A convolution or linear layer on quantised-dequantised weight and input; shares the original's bias."""

    def __init__(self, layer: nn.Module, weight_bits: int, activation_bits: int, limits: torch.Tensor | None) -> None:
        super().__init__()
        # Kept out of _modules: the original stays a part of the plain network only.
        object.__setattr__(self, "layer", layer)
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        weight = layer.weight.detach()
        self.register_buffer(
            "weight", weight if weight_bits == FLOAT_BITS else fake_quantise_weight(weight, weight_bits)
        )
        if activation_bits != FLOAT_BITS:
            self.scale, self.zero_point = affine_parameters(float(limits[0]), float(limits[1]), activation_bits)

    @property
    def bias(self) -> torch.Tensor | None:
        return self.layer.bias

    @property
    def in_features(self) -> int:
        return self.layer.in_features  # StableDiffusionXLPipeline reads that of the network's first linear layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation_bits != FLOAT_BITS:
            top = 2**self.activation_bits - 1
            x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, top)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, self.weight, self.bias)
        return nn.functional.linear(x, self.weight, self.bias)


def fake_quantise_weight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric, for each output channel (dim 0), on the levels -(2^(b-1) - 1) .. 2^(b-1) - 1."""
    top = 2 ** (bits - 1) - 1
    scale = (weight.flatten(1).abs().amax(1) / top).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale.float(), zero, 0, -top, top)


def affine_parameters(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of levels 0 .. 2^b - 1 that cover [min(low, 0), max(high, 0)]; zero is a level."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = max((high - low) / top, 1e-12)
    return scale, int(min(top, max(0, round(-low / scale))))
