"""Suite `digits_dit`: the handwritten digits of suite `digits`, from diffusion transformers (DiT) on pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from accel.suites.base import ASSETS, load_pipeline
from accel.suites.digits.suite import DigitsSuite
from accel.suites.pipeline import PixelPipeline, PixelTransformerPipeline


@dataclass(frozen=True)
class DigitsDiTSuite(DigitsSuite):
    """Data, classifier, reference, floor and noise schedule are those of suite `digits`, whose folder is `weights`, so
    that its UNets can be stitched with the transformers, which are in `dit_weights`."""

    dit_weights: str = str(ASSETS / "digits_dit")
    name: str = "digits_dit"

    @property
    def denoisers(self) -> Path:
        return Path(self.dit_weights)

    def pipeline(self) -> PixelTransformerPipeline:
        return self.load(PixelTransformerPipeline, "large")

    def models(self) -> dict[str, torch.nn.Module]:
        """`small`, and the UNets of suite `digits`: `unet` and `unet_small`."""
        small = self.load(PixelTransformerPipeline, "small").transformer
        unets = {"unet": "large", "unet_small": "small"}
        return {"small": small} | {
            name: load_pipeline(PixelPipeline, Path(self.weights) / folder).unet for name, folder in unets.items()
        }
