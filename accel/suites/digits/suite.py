"""Suite `digits`: class-conditional handwritten digits, 16x16 pixels, with denoisers `large` (base) and `small`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.errors import IntegrityError
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.suites.base import (
    ASSETS,
    Reference,
    Student,
    Suite,
    beside,
    check_manifest,
    labels,
    load_frozen,
    load_pipeline,
    remedy,
)
from accel.suites.digits import data
from accel.suites.digits.models import DigitClassifier, PixelClassifier
from accel.suites.pipeline import PixelPipeline
from accel.suites.students import folder_of, students

REMEDY = remedy("digits")


@dataclass(frozen=True)
class DigitsSuite(Suite):
    """Classes are uniform: sample i is digit i mod 10. Reference: 1,285 training images; floor: as many of each digit
    among 512 held-out ones."""

    weights: str = str(ASSETS / "digits")
    converged_steps: int = 50
    name: str = "digits"
    feature_space: str = "digits"
    period = data.CLASSES
    fid_margin = 0.1  # about what going from 20 to 16 plain steps costs

    @property
    def denoisers(self) -> Path:
        """The folder of the denoisers; that of the classifier is `weights`."""
        return Path(self.weights)

    def fingerprint(self) -> dict[str, str]:
        manifest = check_manifest(self.denoisers, remedy(self.name))
        return {k: v for k, v in manifest.items() if k.endswith((".safetensors", "config.json"))}

    def load(self, cls: type, folder: str) -> Any:
        """The pipeline of class `cls` in a folder of `denoisers`, after checking every file there."""
        check_manifest(self.denoisers, remedy(self.name))
        return load_pipeline(cls, self.denoisers / folder)

    def pipeline(self) -> Any:
        return self.load(PixelPipeline, "large")

    def models(self) -> dict[str, torch.nn.Module]:
        return {"small": self.load(PixelPipeline, "small").unet}

    def students(self) -> dict[str, Student]:
        return students(folder_of(self.denoisers), PixelPipeline, self.name)

    def classifier(self) -> PixelClassifier:
        return PixelClassifier(copy.deepcopy(classifier(self.weights)))

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        return {"class_labels": [i % data.CLASSES for i in range(start, stop)]}

    def asked(self, words: Sequence[str]) -> dict[str, Any]:
        return {"class_labels": labels(words, range(data.CLASSES))}

    def strata(self, conditions: dict[str, Any]) -> list[int]:
        return conditions["class_labels"]

    def converged(self, guidance: Guidance | None) -> Recipe:
        """UniPC on the Karras grid: its small last steps converge far sooner than those of the trailing grid."""
        options = {"solver_order": 2, "final_sigmas_type": "zero"}
        sampler = DiffusersSampler("UniPCMultistepScheduler", self.converged_steps, "unipc", options)
        return Recipe(sampler, Grid("karras"), guidance)

    def shipped(self) -> Path:
        """The converged samples of seed 0 without guidance; `accel bench converged` makes them."""
        return ASSETS / "digits_converged" / "images.safetensors"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        judge = classifier(self.weights)
        return judge.features(beside(judge, data.to_uint8(images))).cpu()

    def per_sample(self, images: torch.Tensor, conditions: dict[str, Any]) -> dict[str, torch.Tensor]:
        """`accuracy`: the classifier sees the wanted class. `nearest`: RMS distance to the nearest training image, to
        be held against that of held-out images: much smaller means that training images are reproduced."""
        labels = torch.tensor(conditions["class_labels"])
        judge, images = classifier(self.weights), images.cpu()
        predicted = judge(beside(judge, data.to_uint8(images))).argmax(1).cpu()
        train = data.to_model(data.load("train")[0]).flatten(1)
        nearest = torch.cdist(images.float().clamp(-1, 1).flatten(1), train).amin(1) / train.shape[1] ** 0.5
        return {"accuracy": (predicted == labels).float(), "nearest": nearest}

    def reference(self) -> Reference:
        return _reference(self.weights)

    def reference_identity(self) -> dict[str, Any]:
        manifest = check_manifest(Path(self.weights), REMEDY)
        return {"name": "digits/train", "n": data.TRAIN, "sha256": _identity(manifest)}

    def held_out(self) -> tuple[torch.Tensor, dict[str, Any]]:
        images, labels = data.load("held_out")
        return data.to_model(images), {"class_labels": labels.tolist()}


@lru_cache(maxsize=2)
def classifier(weights: str) -> DigitClassifier:
    """The feature classifier in float32 on the CPU, ready for inference. Kept and shared: it is not to be moved."""
    check_manifest(Path(weights), REMEDY)
    return load_frozen(DigitClassifier, Path(weights) / "classifier.safetensors")


@lru_cache(maxsize=2)
def _reference(weights: str) -> Reference:
    images, labels = data.load("train")
    manifest = check_manifest(Path(weights), REMEDY)
    found = data_hash("train")
    if (expected := manifest.get("data:train")) != found:
        raise IntegrityError(
            f"the reference images differ: sha256 {found[:12]}..., expected {str(expected)[:12]}.... scikit-learn's "
            "digits or Pillow's bicubic filter changed; install the versions of constraints.txt, or train again with "
            "`make train SUITE=digits` for a new reference."
        )
    with torch.inference_mode():
        features = classifier(weights).features(images).double()
    return Reference("digits/train", features, _identity(manifest), labels)


def _identity(manifest: dict[str, str]) -> str:
    # The images and the network that turns them into features: a change of either is another reference.
    return hashlib.sha256((manifest["data:train"] + manifest["classifier.safetensors"]).encode()).hexdigest()


def data_hash(part: str) -> str:
    """sha256 of the images and labels of one part of the split."""
    images, labels = data.load(part)
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
