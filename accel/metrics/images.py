"""Images for networks that take a fixed size: resize, crop, normalise.

Resizing is Pillow's, on bytes: what the CLIP and DINOv2 papers' code and transformers' PIL image processors do, bit for
bit and on every device. torch's antialiased bicubic differs from it by up to two counts of 255 on noise when it
resizes bytes, and by tens when it resizes floats, because Pillow rounds and clips between its two passes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accel.errors import ConfigError

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """bytes (B, 3, H, W) -> (x / 255 - mean) / std, float32, resized and then cropped about the centre.

    `resize` is (height, width), or an int for the shorter edge with the aspect ratio kept (the longer edge rounded
    down); `crop` is (height, width), and must lie inside the resized image.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    mean: Triple
    std: Triple
    resample: str = "BICUBIC"  # a name of PIL.Image.Resampling

    @classmethod
    def of_processor(cls, processor: Any) -> Preprocessing:
        """What transformers' CLIPImageProcessor does (any version, PIL or torchvision); ConfigError if it does more."""
        settings = processor.to_dict()
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if not settings.get(key, True):
                raise ConfigError(f"the image processor has {key}={settings[key]}; allowed: true.")
        if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ConfigError(f"the image processor has rescale_factor={settings['rescale_factor']}; allowed: 1/255.")
        size, crop = settings["size"], settings["crop_size"] if settings.get("do_center_crop", True) else None
        return cls(
            size["shortest_edge"] if size.get("shortest_edge") else (size["height"], size["width"]),
            crop and (crop["height"], crop["width"]),
            tuple(settings["image_mean"]),
            tuple(settings["image_std"]),
            Image.Resampling(settings["resample"]).name,
        )

    def identity(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, h, w) float32, on the CPU."""
        pixels = torch.stack([torch.from_numpy(self._resized(image)) for image in images.cpu()])
        mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.permute(0, 3, 1, 2) / 255 - mean) / std

    def _resized(self, image: Tensor) -> np.ndarray:
        """One image, resized and cropped: bytes (h, w, 3)."""
        height, width = self._size(*image.shape[1:])
        array = image.permute(1, 2, 0).contiguous().numpy()
        if array.shape[:2] != (height, width):
            array = np.array(Image.fromarray(array).resize((width, height), Image.Resampling[self.resample]))
        crop = self.crop or (height, width)
        if crop[0] > height or crop[1] > width:
            raise ConfigError(f"a crop to {crop} of an image resized to {(height, width)}; needed: a smaller crop.")
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        return array[top : top + crop[0], left : left + crop[1]]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize
        short, long = min(height, width), max(height, width)
        long = int(self.resize * long / short)
        return (self.resize, long) if height <= width else (long, self.resize)
