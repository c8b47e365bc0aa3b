"""A layer whose weight and input are quantised: the module that stands in a convolution's or linear layer's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from accel.precision.simulated.levels import Levels

FLOAT_BITS = 32


class InputQuantiser:
    """x -> x^: affine levels for the whole tensor, others for each group of steps and each slice of channels.

    limits: (groups, slices, 2), the range that is covered; `channels`: the size of each slice of dimension 1 (of the
    last one, for a linear layer), none for a single slice; `group()` says which group the present step is in.
    """

    def __init__(
        self,
        bits: int,
        limits: torch.Tensor,
        channels: Sequence[int] = (),
        group: Callable[[], int] = lambda: 0,
    ) -> None:
        self.levels, self.channels, self.group = Levels(bits, symmetric=False), tuple(channels), group
        scale, zero = self.levels.parameters(limits[..., 0].double(), limits[..., 1].double())
        self.parameters = [
            [(s, int(z)) for s, z in zip(*rows, strict=True)]
            for rows in zip(scale.tolist(), zero.tolist(), strict=True)
        ]

    def __call__(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        own = self.parameters[self.group() if len(self.parameters) > 1 else 0]
        if len(own) == 1:
            return self._quantise(x, *own[0])
        parts = x.split(self.channels, dim)
        return torch.cat([self._quantise(part, *p) for part, p in zip(parts, own, strict=True)], dim)

    def _quantise(self, x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, self.levels.low, self.levels.high)


class QuantisedLayer(nn.Module):
    """A convolution or linear layer on a quantised-dequantised `weight` and input; shares the original's bias.

    `exempt_tokens`: so many first tokens of the input (B, T, C) take the plain layer instead. `weight_bits`: of
    `weight`, for the count of bit operations.
    """

    def __init__(
        self,
        layer: nn.Module,
        weight: torch.Tensor,
        inputs: InputQuantiser | None = None,
        bias: torch.Tensor | None = None,
        exempt_tokens: int = 0,
        weight_bits: int = FLOAT_BITS,
    ) -> None:
        super().__init__()
        # Kept out of _modules: the original stays a part of the plain network only.
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "own_bias", bias)
        self.inputs, self.exempt_tokens = inputs, exempt_tokens
        self.weight_bits = weight_bits
        self.register_buffer("weight", weight)

    @property
    def activation_bits(self) -> int:
        return FLOAT_BITS if self.inputs is None else self.inputs.levels.bits

    @property
    def bias(self) -> torch.Tensor | None:
        return self.layer.bias if self.own_bias is None else self.own_bias

    @property
    def in_features(self) -> int:
        return self.layer.in_features  # StableDiffusionXLPipeline reads that of the network's first linear layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.exempt_tokens:
            first, rest = x[:, : self.exempt_tokens], x[:, self.exempt_tokens :]
            return torch.cat([self.layer(first), self._quantised(rest)], 1)
        return self._quantised(x)

    def _quantised(self, x: torch.Tensor) -> torch.Tensor:
        return run_layer(
            self.layer, self.weight, self.bias, x if self.inputs is None else self.inputs(x, channel_dim(self.layer))
        )


def channel_dim(layer: nn.Module) -> int:
    """Dimension of the input that holds the channels."""
    return 1 if isinstance(layer, nn.Conv2d) else -1


def run_layer(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """What `layer` computes of x with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def corrected_bias(layer: nn.Module, weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The bias with which the expected output is that of the plain weight: b + (W - W^) E[x] (Nagel et al. 2019,
    arXiv:1906.04721, sec. 4.2); mean (C,): E[x] of the input channels. Padding at a picture's edge is left out."""
    error = (layer.weight.detach() - weight).double()
    if isinstance(layer, nn.Conv2d):
        image = mean.to(error).reshape(-1, 1, 1).expand(-1, *error.shape[2:])
        shift = nn.functional.conv2d(image[None], error, groups=layer.groups).flatten()
    else:
        shift = nn.functional.linear(mean.to(error), error)
    bias = 0.0 if layer.bias is None else layer.bias.detach()
    return (bias + shift).to(weight.dtype)


def swap(net: nn.Module, name: str, module: nn.Module, undo: ExitStack) -> None:
    """Put `module` in the place of the layer `name` of `net`; the way back goes on `undo`."""
    parent, _, child = name.rpartition(".")
    modules = net.get_submodule(parent)._modules
    undo.callback(modules.__setitem__, child, modules[child])
    modules[child] = module
