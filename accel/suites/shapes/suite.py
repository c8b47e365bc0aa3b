"""Suite `shapes`: text to image in miniature, Stable Diffusion's own classes on 64x64 pictures of coloured shapes.

Prompts are captions of scenes that are never seen in training; every second one asks for a pair of shape and colour
that no training picture has. Distances between images are taken of the 8-bit pixels on the scale -1..1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.suites import decoders
from accel.suites.base import (
    ASSETS,
    Origin,
    Reference,
    Student,
    Suite,
    TinyAutoencoder,
    beside,
    check_manifest,
    load_frozen,
    load_network,
    load_pipeline,
    remedy,
    to_uint8,
)
from accel.suites.hub.models import quiet
from accel.suites.shapes import data
from accel.suites.shapes.adherence import detect, right
from accel.suites.shapes.captions import wanted
from accel.suites.shapes.models import ShapeDetector
from accel.suites.students import folder_of, students

REMEDY = remedy("shapes")


@dataclass(frozen=True)
class ShapesSuite(Suite):
    """Sample i shows prompt i. Reference: features of 2,048 pictures of scenes drawn as those of the prompts are;
    floor: 512 more pictures with captions of their own."""

    weights: str = str(ASSETS / "shapes")
    converged_steps: int = 50
    name: str = "shapes"
    feature_space: str = "shapes"

    def fingerprint(self) -> dict[str, str]:
        manifest = check_manifest(Path(self.weights), REMEDY)
        kept = (".safetensors", "config.json", "vocab.json", "merges.txt")
        # The judges count, too: shards hold their features and scores. The reference has an identity of its own.
        found = {k: v for k, v in manifest.items() if k.endswith(kept) and k != "reference.safetensors"}
        return found | {"prompts": _sha256("\n".join(prompt(i) for i in range(64)))}

    def pipeline(self) -> Any:
        quiet()
        from diffusers import StableDiffusionPipeline

        check_manifest(Path(self.weights), REMEDY)
        return load_pipeline(StableDiffusionPipeline, Path(self.weights) / "large", torch_dtype=torch.float32)

    def origin(self) -> Origin:
        options = {"torch_dtype": torch.float32, "use_safetensors": True}
        return Origin("StableDiffusionPipeline", str((Path(self.weights) / "large").absolute()), options)

    def models(self) -> dict[str, torch.nn.Module]:
        from diffusers import UNet2DConditionModel

        return {"small": load_network(UNet2DConditionModel, Path(self.weights) / "small" / "unet")}

    def students(self) -> dict[str, Student]:
        from diffusers import UNet2DConditionModel

        return students(folder_of(Path(self.weights)), UNet2DConditionModel, self.name)

    def decoders(self) -> dict[str, TinyAutoencoder]:
        return decoders.decoders(decoders.folder_of(Path(self.weights)), self.name)

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        return {"prompt": [prompt(i) for i in range(start, stop)]}

    def asked(self, words: Sequence[str]) -> dict[str, Any]:
        return {"prompt": list(words)}

    def notes(self, pipe: Any, n: int) -> dict[str, Any]:
        """`captions`: the first prompts, to be shown beside the pictures."""
        return {"captions": [prompt(i) for i in range(min(n, 10))]}

    def converged(self, guidance: Guidance | None) -> Recipe:
        """UniPC on the Karras grid, as for `digits`."""
        options = {"solver_order": 2, "final_sigmas_type": "zero"}
        sampler = DiffusersSampler("UniPCMultistepScheduler", self.converged_steps, "unipc", options)
        return Recipe(sampler, Grid("karras"), guidance)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        judge = detector(self.weights)
        return judge.features(beside(judge, self.to_uint8(images))).cpu()

    def per_sample(self, images: torch.Tensor, conditions: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`adherence`: the fraction of the prompt's objects that are right; `exact`: the whole scene is, in every
        stated detail and with nothing beside; `clip_score`: by the CLIP model of the suite."""
        pictures, prompts = self.to_uint8(images), conditions["prompt"]
        orders = [wanted(text) for text in prompts]
        judged = [right(o, f) for o, f in zip(orders, detect(detector(self.weights), pictures), strict=True)]
        return {
            "adherence": torch.tensor([count / len(o.things) for o, (count, _) in zip(orders, judged, strict=True)]),
            "exact": torch.tensor([float(exact) for _, exact in judged]),
            "clip_score": clip_score(self.weights)(pictures, prompts),
        }

    def reference(self) -> Reference:
        features = load_file(Path(self.weights) / "reference.safetensors")["features"].double()
        return Reference("shapes/reference", features, self.reference_identity()["sha256"])

    def reference_identity(self) -> dict[str, Any]:
        manifest = check_manifest(Path(self.weights), REMEDY)
        # Its features, and the network that made them.
        identity = _sha256(manifest["reference.safetensors"] + manifest["detector.safetensors"])
        return {"name": "shapes/reference", "n": data.REFERENCE, "sha256": identity}

    def held_out(self) -> tuple[torch.Tensor, dict[str, Any]]:
        drawn = data.samples("held_out", data.HELD_OUT, 1)
        return data.pictures("held_out", data.HELD_OUT), {"prompt": [s.captions[0] for s in drawn]}

    def to_uint8(self, images: torch.Tensor) -> torch.Tensor:
        # StableDiffusionPipeline returns 0..1.
        return images if images.dtype == torch.uint8 else to_uint8(images.float() * 2 - 1)

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        return self.to_uint8(images)


@lru_cache(maxsize=100_000)
def prompt(index: int) -> str:
    """Prompt of sample `index`."""
    return data.sample("prompts", index).captions[0]


@lru_cache(maxsize=2)
def detector(weights: str) -> ShapeDetector:
    """The detector in float32 on the CPU, ready for inference. Kept and shared: it is not to be moved."""
    check_manifest(Path(weights), REMEDY)
    return load_frozen(ShapeDetector, Path(weights) / "detector.safetensors")


@lru_cache(maxsize=2)
def clip_score(weights: str) -> Any:
    """The CLIP score by the suite's own CLIP model, on the CPU."""
    from accel.metrics.networks import ClipScore

    check_manifest(Path(weights), REMEDY)
    return ClipScore.load(Path(weights) / "clip", device="cpu")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
