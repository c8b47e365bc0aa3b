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

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from accel.denoiser import LATER, Node
from accel.errors import ConfigError, check_float, check_int
from accel.precision.base import Sample
from accel.precision.calibration import evaluate, predict, record
from accel.precision.calibration_sets import CalibrationSet, Call, StridedSteps
from accel.precision.fake_quant import WEIGHT, FakeQuant, quantisable, swap
from accel.precision.levels import Levels
from accel.precision.quantised import FLOAT_BITS, InputQuantiser, QuantisedLayer, channel_dim, run_layer
from accel.precision.rounding import AdaRound, Rounding
from accel.precision.weights import scales_of, sliced, to_rows
from accel.trajectory import Trajectory


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

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        models: Mapping[str, nn.Module] | None = None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """As the base class's, the tuned layers' weights and limits tuned."""
        made = super().calibrate(pipe, recipe, sample, models, artefacts)
        calls = record(pipe, recipe, lambda: sample(recipe, 0, self.calibration.samples), models, artefacts)
        for name, net in recipe.nets(pipe, models).items():
            own = [call for batch in calls.get(name, ()) for call in batch]
            for patterns, scales in ((self.time_layers, False), (self.attention_layers, True)):
                self._tune(name, net, own, made[name], patterns, scales)
        return made

    def _tune(
        self,
        name: str,
        net: nn.Module,
        calls: Sequence[Call],
        artefact: dict[str, torch.Tensor],
        patterns: Sequence[str],
        scales: bool,
    ) -> None:
        layers = {k: m for k, m in quantisable(net, self.keep).items() if any(fnmatch(k, p) for p in patterns)}
        if not layers or not self.iterations:
            return
        generator, clock = torch.Generator().manual_seed(0), Trajectory()
        full = copy.deepcopy(net)
        with ExitStack() as undo:
            # Everything quantised as it will run, the layers to tune in a form that has gradients.
            node = Node(name, net, clock, undo, artefact=artefact)
            self.prepare(node)
            tuned = {k: Tuned(net.get_submodule(k), self._scales(k, m, net)) for k, m in layers.items()}
            for k, module in tuned.items():
                swap(node, k, module)
            wanted, found = (undo.enter_context(outputs(n, layers)) for n in (full, net))
            rates = [{"params": [m.latent for m in tuned.values()], "lr": self.lr}]
            if scales and self.activation_bits != FLOAT_BITS:
                rates.append({"params": [m.inputs.log_scale for m in tuned.values()], "lr": self.scale_lr})
            optimizer = torch.optim.Adam(rates)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
            for _ in range(self.iterations):
                call = drawn(calls, self.batch, generator)
                clock.stage, clock.num_steps = call.step, call.steps
                target = evaluate(name, full, call)
                with torch.enable_grad():
                    loss = (predict(name, net, call) - target).square().mean()
                    loss = loss + sum((found[k] - wanted[k]).square().mean() for k in layers)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                optimizer.step()
                decay.step()
            for k, module in tuned.items():
                artefact[k + WEIGHT] = module.weight().detach().clone()
                if scales and self.activation_bits != FLOAT_BITS:
                    artefact[k] = module.inputs.limits()

    def _scales(self, name: str, layer: nn.Module, net: nn.Module) -> list[torch.Tensor]:
        parts = sliced(layer.weight.detach(), self._slices(net).get(name, ()))
        rows = [to_rows(part, self.granularity) for part in parts]
        return [scales_of(r, self.weight_bits, self.weight_range) for r in rows]


class Tuned(nn.Module):
    """A quantised layer with gradients: of a latent weight, straight through the rounding, and of activation scales.

    Begins at exactly what `quantised`, whose weight is on the levels of `scales`, one (G, 1) for each slice, computes.
    """

    def __init__(self, quantised: QuantisedLayer, scales: Sequence[torch.Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "quantised", quantised)
        self.scales, self.levels = list(scales), Levels(quantised.weight_bits, symmetric=True)
        self.latent = nn.Parameter(self._begin(quantised))
        self.inputs = (
            None if quantised.inputs is None else LearnedInputs(quantised.inputs, channel_dim(quantised.layer))
        )

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

    def weight(self) -> torch.Tensor:
        """The weight on its levels."""
        made = [
            self.levels.learned(part.reshape(len(scale), -1), scale, torch.zeros_like(scale)).reshape(part.shape)
            for part, scale in zip(self._parts(self.latent), self.scales, strict=True)
        ]
        return torch.cat(made, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.quantised.layer
        return run_layer(layer, self.weight(), layer.bias, x if self.inputs is None else self.inputs(x))


class LearnedInputs(nn.Module):
    """An input quantiser whose scales have gradients (LSQ); begins at exactly what `quantiser` does."""

    def __init__(self, quantiser: InputQuantiser, dim: int) -> None:
        super().__init__()
        self.quantiser, self.dim = quantiser, dim
        own = torch.tensor(quantiser.parameters)  # (groups, slices, 2)
        self.log_scale = nn.Parameter(own[..., 0].log())
        self.register_buffer("zero", own[..., 1])

    def limits(self) -> torch.Tensor:
        """(groups, slices, 2): the range that the levels cover."""
        scale, top = self.log_scale.detach().exp(), self.quantiser.levels.high
        return torch.stack([-self.zero * scale, (top - self.zero) * scale], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        group = self.quantiser.group() if len(self.zero) > 1 else 0
        scale, zero = self.log_scale[group].exp(), self.zero[group]
        parts = x.split(self.quantiser.channels, self.dim) if len(zero) > 1 else (x,)
        levels = self.quantiser.levels
        return torch.cat([levels.learned(p, s, z) for p, s, z in zip(parts, scale, zero, strict=True)], self.dim)


@contextmanager
def outputs(net: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The last output of each of the layers, by name."""
    seen: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in layers:

            def note(module, args, output, name=name):
                seen[name] = output

            hooks.callback(net.get_submodule(name).register_forward_hook(note).remove)
        yield seen


def drawn(calls: Sequence[Call], batch: int, generator: torch.Generator) -> Call:
    """`batch` random rows of a random evaluation."""
    call = calls[int(torch.randint(len(calls), (1,), generator=generator))]
    rows = torch.randint(call.inputs.rows, (min(batch, call.inputs.rows),), generator=generator)
    return call.picked(rows.tolist())
