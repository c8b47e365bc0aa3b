"""Fake-quantised denoisers: integer weights and activations imitated in floating point (quality only, never timed).

Uniform quantisation (levels.py beside this file) of the weight and the input of every convolution and linear layer but
those matching `keep` (timestep and class embeddings). Weights: symmetric, a scale for each output channel. Activations:
affine, a scale for each layer's input. What the fields choose, by the paper that has it:

* PTQ4DM (arXiv:2211.15736): `calibration` on states at normally distributed timesteps, ranges of least L_p error.
* Q-Diffusion (arXiv:2302.04304): `calibration` on every k-th step, learned `rounding` of blocks, and `split`: where a
  shortcut reads the concatenation of decoder features and a skip, both parts have scales of their own (on real hardware
  that is two products and a sum).
* Timestep `groups` (Q-DM, TDQ, QuEST): other activation scales for each of so many groups of neighbouring steps.
* `attention_bits`: the products within attention (attention.py); `bias_correction`: biases that give
  the plain network's mean output (quantised.py).
* MixDQ (arXiv:2405.17873): `exempt_tokens` first text tokens (the start token, whose activations are huge and the same
  for every prompt) stay in floating point where keys and values are made of the text.
Deviation from all of them: inputs rather than outputs are quantised, as integer kernels need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch
from torch import nn

from accel.core.artefacts import unlike
from accel.core.attention import other_kernels
from accel.core.denoiser import Node
from accel.core.job import Job
from accel.core.method import LATER
from accel.core.precision import Calibrating, Precision, plain_bytes, text_encoders
from accel.core.trajectory import Trajectory
from accel.digests import weights_digest
from accel.errors import ConfigError, IncompatibleError, check_int
from accel.precision.layers import quantisable
from accel.precision.simulated.attention import (
    FACTORS,
    QuantisedProducts,
    attentions,
    observe_products,
    quantise_attention,
)
from accel.precision.simulated.calibration import Observer, check_observed, observe, observed, step_group
from accel.precision.simulated.calibration_sets import CalibrationSet, Call, Trajectories
from accel.precision.simulated.levels import Levels, Range
from accel.precision.simulated.quantised import (
    FLOAT_BITS,
    InputQuantiser,
    QuantisedLayer,
    channel_dim,
    corrected_bias,
    swap,
)
from accel.precision.simulated.reconstruction import Keeper, kept, reconstructed, units_of
from accel.precision.simulated.rounding import Rounding
from accel.precision.simulated.weights import Granularity, check_granularity, nearest_weight, scale_count

TEXT = ("*attn2.to_k", "*attn2.to_v")  # cross-attention's layers that read the text
WEIGHT, BIAS = "|weight", "|bias"  # what follows a layer's name in an artefact
MODEL = "|model"  # digest of the weights that an artefact was made for


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
    attention_bits: int = field(default=FLOAT_BITS, metadata=LATER)
    bias_correction: bool = field(default=False, metadata=LATER)
    text_encoder: bool = field(default=False, metadata=LATER)  # the pipeline's text encoders as well

    kind = "simulated"
    refines: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        for name in ("weight_bits", "activation_bits", "attention_bits"):
            if getattr(self, name) != FLOAT_BITS:
                check_int(f"precision.{name}", getattr(self, name), 2, 16)
        check_granularity(self.granularity)
        check_int("precision.groups", self.groups, 1)
        check_int("precision.exempt_tokens", self.exempt_tokens, 0)
        if self.text_encoder and self.refines:
            raise ConfigError(f"{type(self).__name__} tunes denoisers only; use precision.text_encoder=false.")
        if self.bias_correction and (self.refines or self.weight_bits == FLOAT_BITS):
            raise ConfigError(
                "precision.bias_correction is for weights that are rounded and then left; use bias_correction=false."
            )
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
            f"attention{self.attention_bits}" if self.attention_bits != FLOAT_BITS else "",
            "bias" if self.bias_correction else "",
            "text" if self.text_encoder else "",
            self._kept_label,
        ]
        return f"w{self.weight_bits}a{self.activation_bits}({','.join(filter(None, ['sim', *said]))})"

    @property
    def _kept_label(self) -> str:
        usual = type(self).__dataclass_fields__["keep"].default
        more, less = ([k for k in a if k not in b] for a, b in ((self.keep, usual), (usual, self.keep)))
        return " ".join(["float", *more, *(f"not {k}" for k in less)]) if more or less else ""

    @property
    def calibrated(self) -> bool:
        quantised = min(self.activation_bits, self.attention_bits) != FLOAT_BITS
        return quantised or self.rounding is not None or self.bias_correction

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            if not quantisable(net, self.keep):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no convolution or linear layer to quantise; "
                    "use precision=none."
                )
            if self.attention_bits != FLOAT_BITS and not attentions(net):
                raise IncompatibleError(
                    f"{name!r} ({type(net).__name__}) has no attention to quantise; use precision.attention_bits=32."
                )
            if self.attention_bits != FLOAT_BITS and (kernels := other_kernels(net)):
                raise IncompatibleError(
                    f"the attention of {name!r} is computed by {', '.join(sorted(kernels))}, in whose kernel nothing "
                    "is quantised; use precision.attention_bits=32, or a backend of PyTorch (suite.attention=native)."
                )
        if recipe.cache and self.calibrated and self.calibration.replayed:
            raise IncompatibleError(
                f"{self.label} is calibrated on single evaluations, which do not know the cached features of "
                f"{recipe.cache.label}; use cache=none, or calibrate in the trajectory: precision.calibration with "
                "_target_ accel.precision.Trajectories."
            )

    def learned(self, given: Calibrating) -> dict[str, dict[str, torch.Tensor]]:
        """For each network of the recipe its artefact: under a layer's name what its input quantiser covers, [low,
        high] or (groups, slices, 2), under the name with `|weight` a weight whose rounding was learned, with `|bias`
        a corrected bias, and under an attention's name with `|q`, `|k`, `|v` what the factors' quantisers cover;
        `|model` says which weights it was made for.
        """
        chosen, recipe, job = self.calibration, given.recipe, given.job
        looks = {name: self._look(net) for name, net in given.nets().items()}
        beside = {name: self._look(net) for name, net in self._encoders(given.pipe).items()}
        looks |= beside
        seen = recipe if chosen.cached else replace(recipe, cache=None)

        def run() -> None:
            with ExitStack() as hooks:
                for look in beside.values():
                    hooks.enter_context(look.hooks(lambda: 0))
                given.sample(seen, 0, chosen.samples)

        calls = observed(
            given.pipe, seen, run, lambda name, group: looks[name].hooks(group), chosen, self.groups, given.models,
            given.artefacts, keep=self.refines,
        )  # fmt: skip
        check_observed({name: look.observers for name, look in looks.items()})
        made = {name: self._limits(look.observers) for name, look in looks.items()}
        todo = [(name, look, unit) for name, look in looks.items() for unit in look.units]
        for done, (name, look, unit) in enumerate(todo, 1):
            weights = job.part(f"{name}/{unit}", lambda look=look, unit=unit: self._rounded(look, unit))
            made[name] |= {member + WEIGHT: weight for member, weight in weights.items()}
            job.on_step(done, len(todo))
        for name, look in looks.items():
            if self.bias_correction:
                made[name] |= self._biases(look, made[name])
            self.refine(name, look.net, [call for batch in calls.get(name, ()) for call in batch], made[name], job)
            made[name][MODEL] = weights_digest(look.net)
        return made

    def _look(self, net: nn.Module) -> _Look:
        layers, slices, products = quantisable(net, self.keep), self._slices(net), self._attentions(net)
        values = self.activation_range.kind != "minmax"
        observers = {
            k: Observer(self.groups, slices.get(k, ()), channel_dim(m), values, self.bias_correction)
            for k, m in layers.items()
        }
        factors = [name + factor for name in products for factor in FACTORS]
        observers |= {k: Observer(self.groups, (), -1, values) for k in factors}
        units = units_of(net, layers, self.rounding.unit) if self.rounding else {}
        return _Look(net, layers, slices, products, observers, units, {unit: Keeper() for unit in units})

    def _limits(self, observers: Mapping[str, Observer]) -> dict[str, torch.Tensor]:
        levels, products = (Levels(b, symmetric=False) for b in (self.activation_bits, self.attention_bits))
        found = {k: o.limits(self.activation_range, products if "|" in k else levels) for k, o in observers.items()}
        return {k: limits.flatten() if limits.numel() == 2 else limits for k, limits in found.items()}

    def _rounded(self, look: _Look, unit: str) -> dict[str, torch.Tensor]:
        return reconstructed(
            look.net, unit, look.units[unit], look.keepers.pop(unit), self.rounding, self.weight_bits,
            self.granularity, self.weight_range, look.slices,
        )  # fmt: skip

    def _biases(self, look: _Look, artefact: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for k, layer in look.layers.items():
            weight = artefact.get(k + WEIGHT)
            weight = self._nearest(layer, self.weight_bits, look.slices.get(k, ())) if weight is None else weight
            found[k + BIAS] = corrected_bias(layer, weight, look.observers[k].mean)
        return found

    def refine(
        self, name: str, net: nn.Module, calls: Sequence[Call], artefact: dict[str, torch.Tensor], job: Job
    ) -> None:
        """Better a network's artefact on the evaluations of its trajectories, kept for methods with `refines`."""

    def prepare_pipeline(self, pipe: Any, undo: ExitStack, artefacts: Mapping[str, Any] | None = None) -> None:
        for name, net in self._encoders(pipe).items():
            self.prepare(Node(name, net, Trajectory(), undo, artefact=(artefacts or {}).get(name)))

    def prepare(self, node: Node) -> None:
        if {self.weight_bits, self.activation_bits, self.attention_bits} == {FLOAT_BITS}:
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
            quantised = QuantisedLayer(layer, weight, inputs, artefact.get(name + BIAS), exempt, bits)
            swap(node.net, name, quantised, node.undo)
        for name, module in self._attentions(node.net).items():
            limits = {factor: artefact[name + factor].reshape(self.groups, 1, 2) for factor in FACTORS}
            factors = {k: InputQuantiser(self.attention_bits, own, group=group) for k, own in limits.items()}
            quantise_attention(module, QuantisedProducts(self.attention_bits, factors), node.undo)

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

    def _encoders(self, pipe: Any) -> dict[str, nn.Module]:
        return text_encoders(pipe) if self.text_encoder else {}

    def _attentions(self, net: nn.Module) -> dict[str, nn.Module]:
        return {} if self.attention_bits == FLOAT_BITS else attentions(net)

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
        if MODEL in artefact and unlike(artefact, {MODEL: weights_digest(node.net)}):
            raise ConfigError(
                f"the artefact of {self.label} was made for other weights than those of {node.name!r}; calibrate again "
                "for this model."
            )
        return artefact


@dataclass(frozen=True)
class _Look:
    """What a calibration looks at in a network, and what it sees."""

    net: nn.Module
    layers: Mapping[str, nn.Module]
    slices: Mapping[str, Sequence[int]]
    products: Mapping[str, nn.Module]
    observers: dict[str, Observer]
    units: Mapping[str, list[str]]
    keepers: dict[str, Keeper]

    @contextmanager
    def hooks(self, group: Callable[[], int]) -> Iterator[None]:
        with (
            observe(self.layers, self.observers, group),
            kept(self.net, self.keepers),
            observe_products(self.products, self.observers, group),
        ):
            yield


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
