"""T-GATE: cross-attention is computed until a gate step, and its outputs are reused from there on, without guidance.

Liu et al. 2024, "Faster Diffusion via Temporal Attention Decomposition" (arXiv:2404.02747; first version
"Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models"). With F_i what cross-attention i adds,
and m the gate:

    steps 0 .. m - 1   everything runs, both halves of a guided batch; the outputs of step m - 1 are kept:
                       F_i = (F_i(uncond) + F_i(cond)) / 2
    steps m .. N - 1   no cross-attention runs, F_i stands in its place. One evaluation, the conditional half's, is the
                       prediction of both: guidance ends, and with it half of the cost

The authors use m = 10 of 25 steps for SDXL, 15 for PixArt-alpha. `halves` is `one` as there, or `both`: each half keeps
its own F_i, and guidance goes on; then it is inheritance of attn2 after a gate. Deviations: the gate counts solver
steps, and each stage of a multi-stage solver keeps outputs of its own. The paper's second version also reuses
self-attention at intervals, which is not done here (cache=inheritance with cache.match=attn1 does). Halves that come in
calls of their own keep each its own F_i, and both are evaluated. Transformers that attend to text and image jointly
(SD3, Flux) have no cross-attention and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from accel.caching.module_cache import ModuleCache
from accel.caching.parts import branches
from accel.caching.rows import Kept, selected
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.guidance import spread
from accel.errors import IncompatibleError, check_int, unknown

HALVES = ("one", "both")


@dataclass(frozen=True)
class TGate(ModuleCache):
    """`gate`: the first step without cross-attention. `halves`: whether `one` evaluation answers for both from
    there."""

    gate: int = 10
    halves: str = "one"

    def __post_init__(self) -> None:
        check_int("cache.gate", self.gate, 1)
        if self.halves not in HALVES:
            raise unknown("cache.halves", str(self.halves), HALVES)

    @property
    def label(self) -> str:
        return f"tgate{self.gate}" + ("(both)" if self.halves == "both" else "")

    @property
    def drops_parts(self) -> bool:
        return self.halves == "one"

    def modules(self, net: nn.Module, name: str) -> list[str]:
        found = [own for own in branches(net) if _is_cross(own, net.get_submodule(own))]
        if not found:
            raise IncompatibleError(
                f"T-GATE reuses cross-attention to a text, and {name!r} ({type(net).__name__}) has none; use "
                "cache=easycache, or cache=none."
            )
        return found

    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        return [frozenset(modules) if step < self.gate else frozenset() for step in range(num_steps)]

    def shared(self, parts: list[Kept]) -> list[Kept]:
        return mean_of(parts) if self.halves == "one" else parts

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        cached, clock = super().attach(node, inner), node.clock

        def denoise(inputs: Inputs) -> torch.Tensor:
            if self.halves == "both" or len(inputs.parts) < 2 or clock.step < self.gate or clock.num_steps == 1:
                return cached(inputs)
            return spread(cached(inputs.take("cond")), inputs)

        return denoise


def mean_of(parts: Sequence[Kept]) -> list[Kept]:
    """Each part with the mean of all, tensor by tensor, row by row: in a sample's rows over the parts that have it."""
    if len({part.members for part in parts}) == 1:
        mean = tuple(sum(same) / len(parts) for same in zip(*(part.tensors for part in parts), strict=True))
        return [part._replace(tensors=mean) for part in parts]
    having: dict[int, list[Kept]] = {}
    for part in parts:
        for sample in part.held:
            having.setdefault(sample, []).append(selected(part, (sample,), 1))
    means = {sample: mean_of(own)[0].tensors for sample, own in having.items()}
    rows = [zip(*(means[sample] for sample in part.held), strict=True) for part in parts]
    return [part._replace(tensors=tuple(map(torch.cat, own))) for part, own in zip(parts, rows, strict=True)]


def _is_cross(name: str, module: nn.Module) -> bool:
    return name.endswith("attn2") and getattr(module, "is_cross_attention", True)
