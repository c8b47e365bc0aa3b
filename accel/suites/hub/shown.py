"""What sample i of suite `hub` shows, and the arguments by which its pipeline is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel.core.pipelines import TRUE_SCALE, scale_arguments
from accel.core.recipe import Recipe
from accel.errors import check_int
from accel.suites.base import labels
from accel.suites.hub import files as hub_files
from accel.suites.hub import models as hub_models
from accel.suites.hub import student as hub_student
from accel.suites.hub.classes import spread
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import FRAMES, Kind
from accel.suites.hub.prompts import Prompts
from accel.suites.hub.scored import Scored


class Shown(Scored):
    """A suite whose samples are of prompts of a file, with images of folders where its pipeline takes such, of class
    labels, or of nothing."""

    folder: Path
    kind: Kind
    variant: str | None
    height: int | None
    width: int | None
    max_sequence_length: int | None
    prompts: Prompts
    inputs: Inputs
    classes: Sequence[int] | None
    distilled_guidance: float
    student: str | None

    @property
    def period(self) -> int:
        """After so many samples the conditions repeat."""
        kind = self.kind.condition
        if kind == "prompt":
            return len(self.prompts.texts())
        return len(self._classes) if kind == "label" else 1

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        kind, count = self.kind.condition, range(start, stop)
        if kind == "none":
            return self._common(len(count)) | {"batch_size": len(count)}
        if kind == "prompt":
            shown = {"prompt": [self.prompts.at(i) for i in count]}
            return self._common(len(count)) | shown | self._images([i % self.period for i in count])
        classes = self._classes
        return self._common(len(count)) | {"class_labels": [classes[i % len(classes)] for i in count]}

    def asked(self, words: Sequence[str]) -> dict[str, Any]:
        kind = self.kind.condition
        if kind == "none":
            return super().asked(words)
        own = {"prompt": list(words)} if kind == "prompt" else {"class_labels": labels(words, range(self._class_count))}
        return self._common(len(words)) | own | self._images(range(len(words)))

    def _common(self, count: int) -> dict[str, Any]:
        """What is the same for all of `count` samples."""
        kind = self.kind
        common = dict(kind.call) | (self._sizes() if kind.told_size else {})
        if kind.frames:
            common[FRAMES] = self.frames
        if kind.area and common.keys() >= {"height", "width"}:  # else the sides are scaled to the default area
            common["max_area"] = self.height * self.width
        if kind.condition != "prompt":
            return common
        if self.max_sequence_length is not None:
            common["max_sequence_length"] = self.max_sequence_length
        if self.prompts.negative is not None:
            common["negative_prompt"] = [self.prompts.negative] * count
        return common

    def guidance_arguments(self, recipe: Recipe) -> dict[str, Any]:
        kind, scale = self.kind, recipe.guidance_scale
        asked = scale_arguments(kind.cls(), scale, self.distilled_guidance if self._distilled else None)
        if kind.guided == TRUE_SCALE and scale <= 1 and self.prompts.negative is not None:
            asked["negative_prompt"] = None  # nothing asks for it
        return asked

    def notes(self, pipe: Any, n: int) -> dict[str, Any]:
        if self.kind.condition != "prompt":
            return {}
        prompts, kind = [self.prompts.at(i) for i in range(n)], self.kind
        limits = hub_models.limits(pipe, kind, self.max_sequence_length)
        if self.clip:
            limits["clip_score"] = self._clip.tokenizer, self._clip.max_length
        cut = {name: hub_models.longer(prompts, *limit) for name, limit in limits.items()}
        found = {"prompts": {"count": n, "truncated": cut, "limits": {k: limit for k, (_, limit) in limits.items()}}}
        lines = [f"{k} cuts {cut[k]} of {n} prompts at {limit} tokens." for k, (_, limit) in limits.items() if cut[k]]
        return found | ({"warnings": lines} if lines else {})

    def _images(self, indices: Sequence[int]) -> dict[str, Any]:
        return self.inputs.arguments(self.kind, indices, *self.image_size)

    def _sizes(self) -> dict[str, int]:
        return {} if self.height is None else {"height": self.height, "width": self.width}

    @property
    def _denoiser(self) -> str:
        return hub_files.denoiser_of(self.folder)

    @property
    def _distilled(self) -> bool:
        return hub_student.told(self.student, self._denoiser, self.folder, self.variant)

    @property
    def _class_count(self) -> int:
        count = hub_files.config_of(self.folder, "transformer").get("num_embeds_ada_norm")
        check_int(f"num_embeds_ada_norm in the config of {self.folder / 'transformer'}", count, 1)
        return count

    @property
    def _classes(self) -> tuple[int, ...]:
        return tuple(self.classes) if self.classes else spread(self._class_count)
