"""Learned rounding of a network's weights, unit by unit: what a unit's output was is what it shall be.

A unit is one layer, or one block (residual block, attention block, transformer block) with all its quantised layers, as
in BRECQ (Li et al. 2021, arXiv:2102.05426) and Q-Diffusion (arXiv:2302.04304). Inputs and outputs of a unit are rows of
evaluations of the full-precision network, drawn from all that were observed with equal chance (reservoir sampling).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import first_output, mapped
from accel.precision.simulated.levels import Levels, Range
from accel.precision.simulated.quantised import run_layer, swap
from accel.precision.simulated.rounding import RoundedWeight, Rounding, fit
from accel.precision.simulated.weights import Granularity, Part, parts_of

ROWS = 64  # rows of each unit's input that its weights are fitted to
BLOCKS = ("ResnetBlock2D", "Attention", "BasicTransformerBlock", "Transformer2DModel", "FeedForward")


def units_of(net: nn.Module, layers: Iterable[str], kind: str) -> dict[str, list[str]]:
    """{unit: its layers}: each layer alone, or the outermost block that it is in (none: alone)."""
    found: dict[str, list[str]] = {}
    blocks = [n for n, m in net.named_modules() if kind == "block" and type(m).__name__ in BLOCKS]
    for layer in layers:
        around = [b for b in blocks if layer.startswith(b + ".")]
        found.setdefault(min(around, key=len) if around else layer, []).append(layer)
    return found


@dataclass
class Keeper:
    """Rows of what a unit got and gave: a sample of at most `size` of all rows that it saw."""

    size: int = ROWS
    seen: int = 0
    rows: list[tuple[tuple, dict, torch.Tensor]] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def note(self, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        """Look at one evaluation of the unit."""
        output = first_output(output)
        count = len(output)
        for i in range(count):
            self.seen += 1
            at = len(self.rows) if len(self.rows) < self.size else self.chance.randrange(self.seen)
            if at < self.size:
                row = mapped((args, dict(kwargs), output), lambda t, i=i: _row(t, i, count))
                self.rows[at : at + 1] = [row]

    def batch(self, index: Sequence[int]) -> tuple[tuple, dict, torch.Tensor]:
        """(args, kwargs, output) of these rows as one call."""
        return _joined([self.rows[i] for i in index])


@contextmanager
def kept(net: nn.Module, keepers: Mapping[str, Keeper]) -> Iterator[None]:
    """Within the context the keeper of each unit's name sees all evaluations of it."""
    with ExitStack() as hooks:
        for name, keeper in keepers.items():

            def note(module, args, kwargs, output, keeper=keeper):
                keeper.note(args, kwargs, output)

            hooks.callback(net.get_submodule(name).register_forward_hook(note, with_kwargs=True).remove)
        yield


def _row(tensor: torch.Tensor, i: int, count: int) -> torch.Tensor:
    own = tensor[i : i + 1] if tensor.dim() and len(tensor) == count else tensor
    return own.detach().clone(memory_format=torch.contiguous_format)  # GroupNorm's backward crashes on channels_last


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values) if first.dim() else first
    if isinstance(first, dict):
        return {k: _joined([v[k] for v in values]) for k in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(list(v)) for v in zip(*values, strict=True))
    return first


class _Rounding(nn.Module):
    """Stands in a layer's place while its rounding is learned: on levels once and for all unless it trains."""

    def __init__(self, layer: nn.Module, learned: list[RoundedWeight], parts: list[Part]) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)
        self.learned, self.shapes = nn.ModuleList(learned), [part.shape for part in parts]
        self.eval()

    @property
    def weight(self) -> torch.Tensor:
        made = [part.soft() if self.training else part.hard() for part in self.learned]
        return torch.cat([m.reshape(s) for m, s in zip(made, self.shapes, strict=True)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run_layer(self.layer, self.weight, self.layer.bias, x)


def reconstructed(
    net: nn.Module,
    unit: str,
    layers: Sequence[str],
    keeper: Keeper,
    scheme: Rounding,
    bits: int,
    granularity: Granularity,
    chosen: Range,
    slices: Mapping[str, Sequence[int]],
) -> dict[str, torch.Tensor]:
    """The rounded weight of each of a unit's layers: learned, or nearest where learning made the kept rows no better.

    `slices`: see accel.precision.simulated.quantised.InputQuantiser."""
    levels, learners = Levels(bits, symmetric=True), {}
    for name in layers:
        layer = net.get_submodule(name)
        parts = parts_of(layer.weight, bits, granularity, chosen, slices.get(name, ()))
        learners[name] = _Rounding(layer, [scheme.start(p.rows, p.scale, levels) for p in parts], parts)
    with ExitStack() as undo:
        for name, learner in learners.items():
            swap(net, name, learner, undo)
        module = net.get_submodule(unit)

        def error(index: torch.Tensor) -> torch.Tensor:
            args, kwargs, wanted = keeper.batch(index.tolist())
            channels = wanted.shape[1] if wanted.dim() == 4 else wanted.shape[-1]
            # Summed over channels, as AdaRound's lambda expects.
            return (first_output(module(*args, **kwargs)) - wanted).square().mean() * channels

        def weights() -> tuple[dict[str, torch.Tensor], float]:
            with torch.no_grad():
                now = {name: learner.weight for name, learner in learners.items()}
                return now, float(error(torch.arange(len(keeper.rows))))

        nearest, before = weights()
        for learner in learners.values():
            learner.train()
        fit(scheme, [w for learner in learners.values() for w in learner.learned], error, len(keeper.rows))
        for learner in learners.values():
            learner.eval()
        learned, after = weights()
        return learned if after < before else nearest
