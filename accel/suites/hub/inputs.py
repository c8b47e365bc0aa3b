"""Input images of image-to-image, inpainting and editing: a folder, whose image i goes with prompt i, and one of masks.

Images are read as references are (accel/suites/hub/image_folder.py): cropped about the centre to the aspect ratio and
resized to the size of the generated ones. What is white (above half) in a mask is replaced, what is black is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accel.core.pipelines import IMAGE_SCALE
from accel.errors import ConfigError, Refusals, check_float, check_int
from accel.suites.hub import image_folder
from accel.suites.hub.kinds import CONTROL_MODE, CONTROL_SCALE, UNION, Kind


@dataclass(frozen=True)
class Inputs:
    """The images of folder `path`, and where a model inpaints the masks of folder `masks`. `strength`: the part of the
    trajectory that is run, from noise of that level on the image; 1 leaves nothing of it. `image_scale`: of guidance
    towards an image that is edited, where a pipeline has one (InstructPix2Pix: image_guidance_scale). `control`: the
    images of a condition, such as edges, and `control_scale` how much of what a ControlNet makes of them is added
    (None: the pipeline's own). `control_mode`: the number of their kind, for a ControlNet that was trained for several
    (ControlNet-Union)."""

    path: str | None = None
    masks: str | None = None
    strength: float = 0.6
    image_scale: float = 1.5
    control: str | None = None
    control_scale: float | None = None
    control_mode: int | None = None

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            refusals.ask(check_float, "suite.inputs.strength", self.strength, 0.01, 1.0)
            refusals.ask(check_float, "suite.inputs.image_scale", self.image_scale, 1.0)
            if self.control_scale is not None:
                refusals.ask(check_float, "suite.inputs.control_scale", self.control_scale, 0.0)
            if self.control_mode is not None:
                refusals.ask(check_int, "suite.inputs.control_mode", self.control_mode, 0)

    def shown(self, kind: Kind) -> bool:
        """Whether calls of a pipeline of this kind get images."""
        return kind.image or kind.edits == "always" or (kind.edits == "asked" and self.path is not None)

    def check(self, kind: Kind, n: int) -> None:
        """ConfigError unless there are what a pipeline of this kind takes: `n` images, as many masks if it inpaints."""
        name = kind.name
        with Refusals() as refusals:
            refusals.ask(self._check_control, kind, n)
            if not (kind.image or kind.edits):
                if self.path or self.masks:
                    refusals.add(ConfigError(f"{name} takes no images; leave suite.inputs out."))
                return
            if self.path:
                refusals.ask(image_folder.files, self.path, None, n)
            elif kind.image:
                refusals.add(ConfigError(f"a {name} begins at images, and suite.inputs.path is empty; give a folder."))
            elif kind.edits == "always":
                does = "makes videos of" if kind.frames else "edits"
                refusals.add(ConfigError(f"a {name} {does} images, and suite.inputs.path is empty; give a folder."))
            if kind.mask and not self.masks:
                refusals.add(
                    ConfigError(f"a {name} inpaints, and suite.inputs.masks is empty; give a folder of masks.")
                )
            elif kind.mask:
                refusals.ask(image_folder.files, self.masks, None, n)
            elif self.masks:
                refusals.add(ConfigError(f"a {name} takes no masks; leave suite.inputs.masks out."))

    def _check_control(self, kind: Kind, n: int) -> None:
        with Refusals() as refusals:
            if kind.control and not self.control:
                refusals.add(
                    ConfigError(
                        f"a {kind.name} is told by images of a condition, and suite.inputs.control is empty; give a "
                        "folder."
                    )
                )
            elif kind.control:
                refusals.ask(image_folder.files, self.control, None, n)
            elif self.control:
                refusals.add(
                    ConfigError(
                        f"{kind.name} takes no images of a condition; leave suite.inputs.control out, or give "
                        "suite.controlnet."
                    )
                )
            if self.control_scale is not None and kind.control_scale is None:
                refusals.add(ConfigError(f"{kind.name} has no ControlNet; leave suite.inputs.control_scale out."))
            mode, modes = self.control_mode, kind.modes
            if modes is None and mode is not None:
                refusals.add(
                    ConfigError(
                        f"{kind.name} has no ControlNet for several kinds of conditions; leave "
                        "suite.inputs.control_mode out."
                    )
                )
            elif modes is not None and (mode is None or mode >= modes):
                said = "empty" if mode is None else mode
                refusals.add(
                    ConfigError(
                        f"this ControlNet was trained for {modes} kinds of conditions, and suite.inputs.control_mode "
                        f"is {said}; allowed: 0..{modes - 1}, as its authors number them."
                    )
                )

    def arguments(self, kind: Kind, indices: Sequence[int], height: int, width: int) -> dict[str, Any]:
        """What a pipeline of this kind is called with for the images of these indices: (B, 3, H, W) and masks
        (B, 1, H, W), 0..1, or one picture; those of a condition are pictures, which each pipeline scales as its
        ControlNet wants them. ConfigError for several where all would be of one prompt."""
        told = {}
        if kind.control:
            files = image_folder.files(self.control, None, 1)
            told[kind.control] = [Image.fromarray(_pixels(_at(files, i), height, width)) for i in indices]
        if kind.modes is not None and UNION in kind.name:  # takes a batch of images for each of several kinds
            told |= {kind.control: [told[kind.control]], CONTROL_MODE: [self.control_mode]}
        elif kind.modes is not None:
            told[CONTROL_MODE] = self.control_mode
        if kind.control_scale is not None:
            told[CONTROL_SCALE] = self._control_scale(kind)
        return told | self._images(kind, indices, height, width)

    def _images(self, kind: Kind, indices: Sequence[int], height: int, width: int) -> dict[str, Any]:
        if not self.shown(kind):
            return {}
        if kind.edits:
            found = self._edited(kind, indices, height, width)
            return found | ({IMAGE_SCALE: self.image_scale} if kind.image_scale else {})
        found = {"image": self._read(self.path, indices, height, width), "strength": self.strength}
        if kind.mask:
            found["mask_image"] = (self._read(self.masks, indices, height, width).mean(1, keepdim=True) > 0.5).float()
        return found

    def identity(self, kind: Kind) -> dict[str, str]:
        """Hashes of the files in order, and the settings that calls of this kind of pipeline are told."""
        folders = {"inputs": self.path} if self.shown(kind) else {}
        folders |= {"masks": self.masks} if kind.mask else {}
        folders |= {"control": self.control} if kind.control else {}
        found = {name: image_folder.sha256(image_folder.files(folder, None, 1)) for name, folder in folders.items()}
        if kind.image:
            found["setting strength"] = f"{self.strength:g}"
        if kind.control_scale is not None:
            found["setting control scale"] = f"{self._control_scale(kind):g}"
        if kind.modes is not None:
            found["setting control mode"] = str(self.control_mode)
        return found | ({"setting image scale": f"{self.image_scale:g}"} if kind.image_scale else {})

    def _control_scale(self, kind: Kind) -> float:
        return kind.control_scale if self.control_scale is None else float(self.control_scale)

    def _edited(self, kind: Kind, indices: Sequence[int], height: int, width: int) -> dict[str, Any]:
        if kind.together:
            return {"image": self._read(self.path, indices, height, width)}
        if len(indices) > 1:
            raise ConfigError(
                f"calls of a {kind.name} take one image: several would all go with each prompt; use evaluation.batch=1 "
                "and evaluation.timing_batch=1."
            )
        file = _at(image_folder.files(self.path, None, 1), indices[0])
        return {"image": Image.fromarray(_pixels(file, height, width))}

    def _read(self, folder: str, indices: Sequence[int], height: int, width: int) -> torch.Tensor:
        files = image_folder.files(folder, None, 1)
        return torch.stack([_tensor(_at(files, i), height, width) for i in indices])


def _at(files: Sequence[Path], i: int) -> Path:
    # What is measured has as many as prompts (`Inputs.check`); who asks for more words begins the folder again.
    return files[i % len(files)]


def _tensor(path: Path, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(_pixels(path, height, width)).permute(2, 0, 1).float() / 255


def _pixels(path: Path, height: int, width: int) -> np.ndarray:
    try:
        return np.array(image_folder.read(path, height, width))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"the input image {path} cannot be read ({' '.join(str(error).split())}).") from error
