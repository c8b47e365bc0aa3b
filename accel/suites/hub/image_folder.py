"""Real images of a folder as references: which files, in which order, and how they are brought to one size.

Files are those with an image suffix, below the folder at any depth, sorted by their path. Each is converted to RGB,
cropped about its centre to the wanted aspect ratio, and resized by Pillow's bicubic filter, which is antialiased when
it shrinks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from accel.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112  # of EXIF
BATCH = 64  # images in memory at a time
RESIZE = "RGB, centre crop to the aspect ratio, Pillow bicubic"


@lru_cache(maxsize=8)
def files(folder: str, n: int | None, least: int) -> tuple[Path, ...]:
    """The first `n` (None: all) images; ConfigError if there are fewer than `n`, or than `least`."""
    root = Path(folder).expanduser()
    found = sorted((p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES), key=lambda p: p.as_posix())
    if len(found) < max(least, n or 0):
        raise ConfigError(
            f"{root} holds {len(found)} images ({', '.join(SUFFIXES)}); needed: at least {max(least, n or 0)}."
        )
    return tuple(found[:n])


@lru_cache(maxsize=8)
def sha256(paths: tuple[Path, ...]) -> str:
    """Hash of the contents in order; names do not matter. Files are taken not to change while the process runs."""
    each = (hashlib.sha256(p.read_bytes()).hexdigest() for p in paths)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def read(path: Path, height: int, width: int) -> np.ndarray:
    """One image as bytes (height, width, 3), see the module; OSError or ValueError if it cannot be read."""
    with Image.open(path) as image:
        _check_readable(image)
        image = image.convert("RGB")
        scale = min(image.width / width, image.height / height)
        w, h = width * scale, height * scale
        left, top = (image.width - w) / 2, (image.height - h) / 2
        box = (left, top, left + w, top + h)
        if image.size == (width, height):
            return np.array(image)
        return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _check_readable(image: Image.Image) -> None:
    """ValueError for what RGB bytes would show otherwise than the file does: Pillow converts it without a word."""
    stored = " ".join(str(tile[-1]) for tile in image.tile)  # RGB;16B is of 16 bits, though Pillow's mode for it is RGB
    image.load()
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; needed: one picture")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr") or ";16" in stored:
        raise ValueError(
            f"its pixels are of mode {image.mode} ({stored}), more than 8 bits a channel; convert it to 8-bit RGB"
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise ValueError("it is transparent in places; put it on a background")
    if (turned := image.getexif().get(ORIENTATION, 1)) not in (0, 1):
        raise ValueError(f"it is to be turned (EXIF orientation {turned}); store it upright")


def features(
    paths: tuple[Path, ...], network: Callable[[torch.Tensor], torch.Tensor], height: int, width: int
) -> torch.Tensor:
    """Features (N, D) of the images; ConfigError that names every file that cannot be read."""
    parts, bad = [], []
    for a in range(0, len(paths), BATCH):
        images = []
        for path in paths[a : a + BATCH]:
            try:
                images.append(torch.from_numpy(read(path, height, width)).permute(2, 0, 1))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                bad.append(f"{path.name} ({' '.join(str(error).split())})")
        if images and not bad:  # otherwise only the names of the rest are of interest
            parts.append(network(torch.stack(images)))
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ConfigError(
            f"{len(bad)} of {len(paths)} reference images cannot be read: {', '.join(bad[:10])}{more}. Remove or "
            "replace them."
        )
    return torch.cat(parts)
