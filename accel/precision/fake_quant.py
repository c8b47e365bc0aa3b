"""Fake-quantised denoisers: integer weights and activations imitated in floating point (quality only, never timed).

Uniform quantisation (accel/precision/levels.py) of the weight and the input of every convolution and linear layer but
those matching `keep` (timestep and class embeddings). Weights: symmetric, a scale for each output channel. Activations:
affine, a scale for each layer's input. What the fields choose, by the paper that has it:

* PTQ4DM (arXiv:2211.15736): `calibration` on states at normally distributed timesteps, ranges of least L_p error.
* Q-Diffusion (arXiv:2302.04304): `calibration` on every k-th step, learned `rounding` of blocks, and `split`: where a
  shortcut reads the concatenation of decoder features and a skip, both parts have scales of their own (on real hardware
  that is two products and a sum).
* Timestep `groups` (Q-DM, TDQ, QuEST): other activation scales for each of so many groups of neighbouring steps.
* MixDQ (arXiv:2405.17873): `exempt_tokens` first text tokens (the start token, whose activations are huge and the same
  for every prompt) stay in floating point where keys and values are made of the text.
Deviation from all of them: inputs rather than outputs are quantised, as integer kernels need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from accel.denoiser import LATER, Node
from accel.errors import ConfigError, IncompatibleError, check_int
from accel.precision.base import Precision, Sample, plain_bytes
from accel.precision.calibration import Observer, check_observed, observe, observed, step_group
from accel.precision.calibration_sets import CalibrationSet, Trajectories
from accel.precision.levels import Levels, Range
from accel.precision.quantised import FLOAT_BITS, InputQuantiser, QuantisedLayer, channel_dim
from accel.precision.reconstruction import Keeper, kept, reconstructed, units_of
from accel.precision.rounding import Rounding
from accel.precision.weights import Granularity, check_granularity, nearest_weight, scale_count

TEXT = ("*attn2.to_k", "*attn2.to_v")  # cross-attention's layers that read the text
WEIGHT, BIAS = "|weight", "|bias"  # what follows a layer's name in an artefact


@dataclass(frozen=True)
class FakeQuant(Precision):
    """W`weight_bits` A`activation_bits`, 2..16 or 32 (32: left in floating point; W32A32 changes nothing)."""

    weight_bits: int = 8
    activation_bits: int = 8
    keep: Sequence[str] = ("time_embedding.*", "class_embedding*", "*time_emb_proj")
    granularity: Granularity = field(default="channel", metadata=LATER)
    weight_range: Range = field(default=Range(), metadata=LATER)
    activation_range: Range = field(default=Range(), metadata=LATER)
    rounding: Rounding | None = field(default=None, metadata=LATER)
    calibration: CalibrationSet = field(default=Trajectories(), metadata=LATER)
    groups: int = field(default=1, metadata=LATER)
    split: bool = field(default=False, metadata=LATER)
    exempt_tokens: int = field(default=0, metadata=LATER)

    kind = "simulated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) != FLOAT_BITS:
                check_int(f"precision.{name}", getattr(self, name), 2, 16)
        check_granularity(self.granularity)
        check_int("precision.groups", self.groups, 1)
        check_int("precision.exempt_tokens", self.exempt_tokens, 0)
        if self.rounding and self.weight_bits == FLOAT_BITS:
            raise ConfigError(
                "precision.rounding is for quantised weights; set precision.weight_bits, or rounding=null."
            )

    @property
    def label(self) -> str:
        said = [
            "" if self.granularity == "channel" else f"per {self.granularity}",
            self.rounding.label if self.rounding else "",
            f"w{self.weight_range.label}" if self.weight_range.label else "",
            f"a{self.activation_range.label}" if self.activation_range.label else "",
            self.calibration.label,
            "split" if self.split else "",
            f"{self.groups} groups" if self.groups > 1 else "",
            f"-{self.exempt_tokens} tokens" if self.exempt_tokens else "",
        ]
        return f"w{self.weight_bits}a{self.activation_bits}({','.join(filter(None, ['sim', *said]))})"

    @property
    def calibrated(self) -> bool:
        return self.activation_bits != FLOAT_BITS or self.rounding is not None

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            if not quantisable(net, self.keep):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no convolution or linear layer to quantise; "
                    "use precision=none."
                )
        if recipe.cache and self.calibrated and self.calibration.replayed:
            raise IncompatibleError(
                f"{self.label} is calibrated on single evaluations, which do not know the cached features of "
                f"{recipe.cache.label}; use cache=none, or calibrate in the trajectory: precision.calibration with "
                "_target_ accel.precision.Trajectories."
            )

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        models: Mapping[str, nn.Module] | None = None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """For each network of the recipe its artefact: under a layer's name what its input quantiser covers, [low,
        high] or (groups, slices, 2), and under the name with `|weight` a weight whose rounding was learned.

        For the rest see the base class.
        """
        nets = recipe.nets(pipe, models)
        layers = {name: quantisable(net, self.keep) for name, net in nets.items()}
        slices = {name: self._slices(net) for name, net in nets.items()}
        observers = {name: self._observers(own, slices[name]) for name, own in layers.items()}
        units = {name: self._units(net, layers[name]) for name, net in nets.items()}
        keepers = {name: {unit: Keeper() for unit in own} for name, own in units.items()}

        @contextmanager
        def hooks(name: str, group: Callable[[], int]) -> Iterator[None]:
            with observe(layers[name], observers[name], group), kept(nets[name], keepers[name]):
                yield

        def run() -> None:
            sample(recipe, 0, self.calibration.samples)

        observed(pipe, recipe, run, hooks, self.calibration, self.groups, models, artefacts)
        check_observed(observers)
        levels = Levels(self.activation_bits, symmetric=False)
        made: dict[str, dict[str, torch.Tensor]] = {name: {} for name in nets}
        for name, own in observers.items():
            for layer, observer in own.items():
                limits = observer.limits(self.activation_range, levels)
                made[name][layer] = limits.flatten() if limits.numel() == 2 else limits
        for name, own in units.items():
            for unit, members in own.items():
                weights = reconstructed(
                    nets[name], unit, members, keepers[name].pop(unit), self.rounding, self.weight_bits,
                    self.granularity, self.weight_range, slices[name],
                )  # fmt: skip
                made[name] |= {member + WEIGHT: weight for member, weight in weights.items()}
        return made

    def prepare(self, node: Node) -> None:
        if self.weight_bits == FLOAT_BITS and self.activation_bits == FLOAT_BITS:
            return
        layers, slices = quantisable(node.net, self.keep), self._slices(node.net)
        artefact = self._checked(node, layers)
        group = lambda: step_group(node.clock.step, node.clock.num_steps, self.groups)  # noqa: E731
        for name, layer in layers.items():
            channels, bits = slices.get(name, ()), self.bits_of(name, artefact)
            weight = artefact.get(name + WEIGHT)
            weight = self._nearest(layer, bits, channels) if weight is None else weight.to(layer.weight)
            inputs = None
            if self.activation_bits != FLOAT_BITS:
                limits = artefact[name].reshape(self.groups, max(1, len(channels)), 2)
                inputs = InputQuantiser(self.activation_bits, limits, channels, group)
            exempt = self.exempt_tokens if any(fnmatch(name, k) for k in TEXT) else 0
            swap(node, name, QuantisedLayer(layer, weight, inputs, artefact.get(name + BIAS), exempt, bits))

    def bits_of(self, layer: str, artefact: Mapping[str, torch.Tensor] | None) -> int:
        """The bits of a layer's weight."""
        return self.weight_bits

    def model_bytes(self, net: nn.Module, artefact: Mapping[str, torch.Tensor] | None = None) -> int:
        """Weights at their bits plus one float32 for each scale; all else as it is."""
        total, slices = plain_bytes(net), self._slices(net)
        for name, layer in quantisable(net, self.keep).items():
            w, bits = layer.weight, self.bits_of(name, artefact)
            if bits != FLOAT_BITS:
                scales = scale_count(w, self.granularity, slices.get(name, ()))
                total += -w.numel() * w.element_size() + (w.numel() * bits + 7) // 8 + 4 * scales
        return total

    def _nearest(self, layer: nn.Module, bits: int, channels: Sequence[int]) -> torch.Tensor:
        if bits == FLOAT_BITS:
            return layer.weight.detach()
        return nearest_weight(layer.weight, bits, self.granularity, self.weight_range, channels)

    def _observers(self, layers: Mapping[str, nn.Module], slices: Mapping[str, Sequence[int]]) -> dict[str, Observer]:
        values = self.activation_range.kind != "minmax"
        return {k: Observer(self.groups, slices.get(k, ()), channel_dim(m), values) for k, m in layers.items()}

    def _units(self, net: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
        return units_of(net, layers, self.rounding.unit) if self.rounding else {}

    def _slices(self, net: nn.Module) -> dict[str, tuple[int, int]]:
        return shortcut_slices(net) if self.split else {}

    def _checked(self, node: Node, layers: Mapping[str, nn.Module]) -> Mapping[str, torch.Tensor]:
        artefact = node.artefact or {}
        found = {name for name in artefact if "|" not in name}
        if self.calibrated and found != set(layers):
            said = f"ranges for {len(found)} layers" if artefact else "none"
            raise ConfigError(
                f"W{self.weight_bits}A{self.activation_bits} needs activation ranges for the {len(layers)} layers of "
                f"{node.name!r}, found {said}; make them with recipe.precision.calibrate(pipe, recipe, ...) and pass "
                "them as `artefacts`, or run it with `python -m accel`, which calibrates by itself."
            )
        return artefact


def swap(node: Node, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the layer `name` of the node's network until the recipe is detached."""
    parent, _, child = name.rpartition(".")
    modules = node.net.get_submodule(parent)._modules
    node.undo.callback(modules.__setitem__, child, modules[child])
    modules[child] = module


def quantisable(net: nn.Module, keep: Sequence[str]) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, without those matching a `keep` pattern."""
    found = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    return {n: m for n, m in found.items() if not any(fnmatch(n, k) for k in keep)}


def left_float(net: nn.Module, keep: Sequence[str]) -> list[str]:
    """Names of the convolutions and linear layers that match a `keep` pattern."""
    return sorted(set(quantisable(net, ())) - set(quantisable(net, keep)))


def shortcut_slices(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Layers that read [decoder features | skip] as they are, the shortcut convolutions of a UNet's up blocks, with the
    channels of both parts. A network without up blocks has none."""
    slices: dict[str, tuple[int, int]] = {}
    blocks = getattr(net, "up_blocks", None)
    if not isinstance(blocks, nn.ModuleList) or getattr(net, "mid_block", None) is None:
        return slices
    hidden = net.mid_block.resnets[-1].out_channels
    for i, block in enumerate(blocks):
        for j, resnet in enumerate(block.resnets):
            if resnet.conv_shortcut is not None:
                slices[f"up_blocks.{i}.resnets.{j}.conv_shortcut"] = (hidden, resnet.in_channels - hidden)
            hidden = resnet.out_channels
    return slices
