"""Input images of image-to-image and inpainting: a folder, whose image i goes with prompt i, and one of masks.

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

from accel.errors import ConfigError, Refusals, check_float
from accel.suites.hub import image_folder


@dataclass(frozen=True)
class Inputs:
    """The images of folder `path`, and where a model inpaints the masks of folder `masks`. `strength`: the part of the
    trajectory that is run, from noise of that level on the image; 1 leaves nothing of it."""

    path: str | None = None
    masks: str | None = None
    strength: float = 0.6

    def __post_init__(self) -> None:
        check_float("suite.inputs.strength", self.strength, 0.01, 1.0)

    def check(self, name: str, n: int, mask: bool) -> None:
        """ConfigError unless there are `n` images, for a pipeline class `name`, and as many masks if it inpaints."""
        with Refusals() as refusals:
            if not self.path:
                refusals.add(ConfigError(f"a {name} begins at images, and suite.inputs.path is empty; give a folder."))
            else:
                refusals.ask(image_folder.files, self.path, None, n)
            if mask and not self.masks:
                refusals.add(
                    ConfigError(f"a {name} inpaints, and suite.inputs.masks is empty; give a folder of masks.")
                )
            elif mask:
                refusals.ask(image_folder.files, self.masks, None, n)
            elif self.masks:
                refusals.add(ConfigError(f"a {name} takes no masks; leave suite.inputs.masks out."))

    def arguments(self, indices: Sequence[int], height: int, width: int, mask: bool) -> dict[str, Any]:
        """What a pipeline is called with for the images of these indices: (B, 3, H, W) and masks (B, 1, H, W), 0..1."""
        found = {"image": self._read(self.path, indices, height, width), "strength": self.strength}
        if mask:
            found["mask_image"] = (self._read(self.masks, indices, height, width).mean(1, keepdim=True) > 0.5).float()
        return found

    def identity(self, mask: bool) -> dict[str, str]:
        """Hashes of the files in order, and the strength."""
        folders = {"inputs": self.path} | ({"masks": self.masks} if mask else {})
        found = {name: image_folder.sha256(image_folder.files(folder, None, 1)) for name, folder in folders.items()}
        return found | {"setting strength": f"{self.strength:g}"}

    def _read(self, folder: str, indices: Sequence[int], height: int, width: int) -> torch.Tensor:
        files = image_folder.files(folder, None, 1)
        return torch.stack([_tensor(files[i], height, width) for i in indices])


def _tensor(path: Path, height: int, width: int) -> torch.Tensor:
    try:
        pixels = image_folder.read(path, height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"the input image {path} cannot be read ({' '.join(str(error).split())}).") from error
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
