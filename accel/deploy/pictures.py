"""Images of a recipe as PNG files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from accel.core.recipe import accelerate
from accel.deploy.opened import Opened
from accel.errors import ConfigError, check_int
from accel.evaluation.generate import Asked, Shown, batches, generate
from accel.files import write_atomic

MILLISECONDS = 125  # that a frame of a video is shown


def pictures(
    opened: Opened, words: Sequence[str], folder: Path, seed: int = 0, count: int = 1, batch: int = 8
) -> Iterator[tuple[Path, str]]:
    """Write sample i as <seed>-<i>.png and give its path and what it shows, as soon as it is made.

    `words`: labels or prompts, of which each gets `count` samples, in turn: sample i shows words[i mod their number].
    None: samples 0..count-1 of the suite, as they were measured. Each starts from the noise of (seed, i), whatever the
    batch. ConfigError, before any work, for words that the model cannot show, a suite that makes no pictures, and files
    that are there already.
    """
    suite = opened.suite
    check_int("--seed", seed, 0)
    check_int("--count", count, 1)
    check_int("--batch", batch, 1)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to is {str(folder)!r}, a file; allowed: a folder for the images.")
    if not suite.pictures:
        raise ConfigError(f"suite {suite.name!r} makes points, no pictures; there is nothing to look at.")
    shown: Shown = Asked(suite, tuple(words)) if words else suite
    total = count * max(1, len(words))
    if not words:
        suite.check(total)
    paths = [folder / f"{seed}-{i:06d}.png" for i in range(total)]
    if there := [path for path in paths if path.exists()]:
        raise ConfigError(f"{there[0]} is there already; choose another folder with --to, or delete it.")
    recipe, saved = opened.saved.recipe, opened.saved
    group = recipe.sampler.group(shown.period) if recipe.sampler else 1
    opened.check()
    with accelerate(opened.pipe, recipe, models=opened.models, artefacts=saved.artefacts):
        for a, b in batches(0, total, -(-batch // group) * group):
            images = generate(opened.pipe, shown, recipe, seed, a, b, b - a, "--batch ")
            for i, image in zip(range(a, b), suite.to_uint8(images), strict=True):
                said = words[i % len(words)] if words else _shown(suite.conditions(i, i + 1))
                about = {"recipe": recipe.label, "seed": str(seed), "sample": str(i), "shows": said}
                write_atomic(paths[i], png(image, about))
                yield paths[i], said


def png(picture: torch.Tensor, about: Mapping[str, str]) -> bytes:
    """A picture, uint8 (C, H, W) with 1 or 3 channels, as a PNG file that holds `about` as text; a video (F, C, H, W)
    as an animated one."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, data = PngInfo(), io.BytesIO()
    for name, value in about.items():
        info.add_itxt(name, value)
    pixels = (picture if picture.ndim == 4 else picture[None]).permute(0, 2, 3, 1).numpy()
    first, *others = (Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in pixels)
    moving = {"save_all": True, "append_images": others, "duration": MILLISECONDS, "loop": 0} if others else {}
    first.save(data, "png", pnginfo=info, **moving)
    return data.getvalue()


def _shown(conditions: Mapping[str, object]) -> str:
    """What one sample shows, of a suite's own conditions."""
    found = [conditions[name] for name in ("prompt", "class_labels") if name in conditions]
    return str(found[0][0]) if found else ""
