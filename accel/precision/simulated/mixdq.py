"""MixDQ: bits for each layer by its sensitivity, and text keys and values that spare the start token.

Zhao et al. 2024, "MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled Mixed
Precision Quantization" (arXiv:2405.17873). (1) The first text token, the same for every prompt and hundreds of times
larger than the others, stays in floating point (`exempt_tokens`). (2) Each layer alone is quantised to each number of
bits. Layers that decide what is shown (`content`: cross-attention and feed-forward) are scored by the structural
similarity of the images, all others by the signal to quantisation noise of the network's output, in decibels.
(3) Integer programmes (accel/precision/simulated/allocation.py) give each group the bits of the greatest sum of scores.
How the budget is shared between the groups is tried at `shares`; the least error of the images wins.
Deviations: images and evaluations are the model's own samples (theirs: COCO prompts on a one-step model); the budget is
a bound, not a band; weights only, activations have one number of bits; no layer is excepted by name. `objective: error`
instead maximises minus the sum of the relative noise, in which layers that never matter do not count; the paper sums
decibels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Sample
from accel.core.method import LATER
from accel.core.precision import Calibrating
from accel.core.recipe import accelerate
from accel.errors import ConfigError, check_float, check_int, needs, unknown
from accel.precision.layers import quantisable
from accel.precision.simulated.allocation import allocate
from accel.precision.simulated.bits import layer_macs
from accel.precision.simulated.calibration import evaluate, record
from accel.precision.simulated.calibration_sets import Call
from accel.precision.simulated.fake_quant import FakeQuant

OBJECTIVES = ("decibel", "error")
BUDGETS = ("size", "operations")
BITS, SCORES = "|bits", "|scores"  # what follows a layer's name in an artefact


@dataclass(frozen=True)
class MixDQ(FakeQuant):
    """Mean weight bits of at most `budget`, from `candidates`; `weight_bits` is not used. The mean is over weights
    (`budget_of: size`, bytes to store), or over products (`operations`, bit operations to execute)."""

    budget: float = 4.0
    candidates: Sequence[int] = (2, 4, 8)
    content: Sequence[str] = ("*attn2*", "*.ff.*")
    content_candidates: Sequence[int] = (2, 4, 8)
    budget_of: str = field(default="size", metadata=LATER)
    objective: str = "decibel"
    samples: int = 16  # images and evaluations that sensitivities are measured on
    shares: Sequence[float] = (0.7, 0.85, 1.0, 1.15, 1.3)  # of the budget, that the content layers get as their mean
    exempt_tokens: int = field(default=1, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidates", "content_candidates"):
            given = tuple(sorted(getattr(self, name)))
            object.__setattr__(self, name, given)
            if not given:
                raise ConfigError(f"precision.{name} is empty; allowed: numbers of bits in [2, 16].")
            for bits in given:
                check_int(f"precision.{name}", bits, 2, 16)
        object.__setattr__(self, "content", tuple(self.content))
        object.__setattr__(self, "shares", tuple(self.shares))
        check_float("precision.budget", self.budget, 2.0, 16.0)
        check_int("precision.samples", self.samples, 1)
        if self.budget_of not in BUDGETS:
            raise unknown("precision.budget_of", str(self.budget_of), BUDGETS)
        if self.objective not in OBJECTIVES:
            raise unknown("precision.objective", str(self.objective), OBJECTIVES)
        if self.rounding or self.bias_correction or self.text_encoder:
            raise ConfigError(
                "MixDQ rounds the denoisers' weights to the nearest level; use precision.rounding=null, "
                "precision.bias_correction=false and precision.text_encoder=false."
            )

    @property
    def label(self) -> str:
        objective = "" if self.objective == "decibel" else ",error"
        spent = "" if self.budget_of == "size" else ",operations"
        return f"mixdq w{self.budget:g}a{self.activation_bits}(sim{objective}{spent})"

    @property
    def calibrated(self) -> bool:
        return True

    def bits_of(self, layer: str, artefact: Mapping[str, torch.Tensor] | None) -> int:
        if artefact is None or layer + BITS not in artefact:
            raise ConfigError(
                f"the bits of {layer!r} are not allocated yet; make the artefact with recipe.precision.calibrate(pipe, "
                "recipe, ...), or run the recipe with `python -m accel`, which does."
            )
        return int(artefact[layer + BITS])

    def learned(self, given: Calibrating) -> dict[str, dict[str, torch.Tensor]]:
        """As the base class's, with the bits of each layer under its name and `|bits`, and its scores, one for each
        candidate, under `|scores`."""
        made = super().learned(given)
        pipe, sample, models, artefacts, job = given.pipe, given.sample, given.models, given.artefacts, given.job
        plain = replace(given.recipe, precision=None)
        calls = record(pipe, given.recipe, lambda: sample(plain, 0, self.samples), models, artefacts)
        for name, net in given.nets().items():
            layers = quantisable(net, self.keep)

            def images(bits: Mapping[str, int], name=name, net=net, layers=layers) -> torch.Tensor:
                with self._quantised(net, {k: layers[k] for k in bits}, bits):
                    return sample_of(pipe, plain, sample, self.samples, models, artefacts)

            shown = {k for k in layers if self._shown(k)}
            own = [c for batch in calls.get(name, ()) for c in batch]
            noise = self._noise_of(name, net, layers, own)
            full = images({}) if shown else None
            scores = {}
            for done, k in enumerate(layers, 1):

                def score(k=k, full=full, images=images, noise=noise) -> dict[str, torch.Tensor]:
                    one = (lambda b: similarity(images({k: b}), full)) if self._shown(k) else (lambda b: noise(k, b))
                    return {"scores": torch.tensor([one(b) for b in self._candidates(k)], dtype=torch.float64)}

                found = job.part(f"{name}/{k}{SCORES}", score)["scores"].tolist()
                scores[k] = dict(zip(self._candidates(k), found, strict=True))
                job.on_step(done, len(layers))
            sizes = {k: m.weight.numel() for k, m in layers.items()}
            if self.budget_of == "operations":
                with layer_macs(layers) as sizes:
                    evaluate(name, net, own[0])
            bits = self._allocated(scores, sizes, shown, images)
            made[name] |= {k + BITS: torch.tensor(b) for k, b in bits.items()}
            made[name] |= {k + SCORES: torch.tensor(list(own.values())) for k, own in scores.items()}
        return made

    @contextmanager
    def _quantised(self, net: nn.Module, layers: Mapping[str, nn.Module], bits: Mapping[str, int]) -> Iterator[None]:
        """Weights of `layers` at `bits`, everything else as it is."""
        slices, plain = self._slices(net), {k: m.weight.data for k, m in layers.items()}
        try:
            for k, layer in layers.items():
                layer.weight.data = self._nearest(layer, bits[k], slices.get(k, ()))
            yield
        finally:
            for k, layer in layers.items():
                layer.weight.data = plain[k]

    def _noise_of(
        self, name: str, net: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]
    ) -> Callable[[str, int], float]:
        """The score of a layer at some bits, by the noise of the network's output."""
        # Every step counts alike: the mean over evaluations of one step each, not over trajectories.
        wanted = [evaluate(name, net, call) for call in calls]

        def score(layer: str, bits: int) -> float:
            with self._quantised(net, {layer: layers[layer]}, {layer: bits}):
                noise = [
                    ((evaluate(name, net, call) - full).square().mean() / full.square().mean()).item()
                    for call, full in zip(calls, wanted, strict=True)
                ]
            return self._score(sum(noise) / len(noise))

        return score

    def _score(self, noise: float) -> float:
        if self.objective == "error":
            return -noise
        return -10 * torch.tensor(max(noise, 1e-20)).log10().item()

    def _candidates(self, layer: str) -> Sequence[int]:
        return self.content_candidates if self._shown(layer) else self.candidates

    def _shown(self, layer: str) -> bool:
        return any(fnmatch(layer, pattern) for pattern in self.content)

    def _allocated(
        self, scores: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], shown: set[str], images: Callable
    ) -> dict[str, int]:
        groups = [{k: scores[k] for k in scores if (k in shown) == content} for content in (True, False)]
        if not all(groups):
            return allocate(scores, sizes, self.budget)
        of_content, of_rest = (sum(sizes[k] for k in group) for group in groups)
        full, best = images({}), None
        for share in self.shares:
            first = self.budget * share
            second = (self.budget * (of_content + of_rest) - first * of_content) / of_rest
            try:
                bits = allocate(groups[0], sizes, first) | allocate(groups[1], sizes, second)
            except ConfigError:
                continue  # this way of sharing the budget leaves too little for one group
            error = (images(bits) - full).square().mean().item()
            if best is None or error < best[0]:
                best = (error, bits)
        if best is None:
            raise ConfigError(
                f"no share of the budget of {self.budget:g} bits leaves each group the fewest bits of its layers; "
                "raise precision.budget, or allow fewer bits in precision.candidates."
            )
        return best[1]


def sample_of(pipe: Any, recipe: Any, sample: Sample, count: int, models, artefacts) -> torch.Tensor:
    """Images of the first `count` samples of the recipe."""
    with accelerate(pipe, recipe, models=models, artefacts=artefacts):
        return sample(recipe, 0, count)


def similarity(images: torch.Tensor, others: torch.Tensor) -> float:
    """Structural similarity (Wang et al. 2004) with a window as large as the image, so of its global structure; images
    (N, C, H, W) in [0, 1]."""
    torchmetrics = needs("torchmetrics.functional.image", "bench", "the structural similarity of MixDQ")
    side = min(images.shape[-2:])
    window = side if side % 2 else side - 1
    found = torchmetrics.structural_similarity_index_measure(
        images.clamp(0, 1), others.clamp(0, 1), gaussian_kernel=False, kernel_size=window, data_range=1.0
    )
    return float(found)
