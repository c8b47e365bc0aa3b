"""The pipeline classes that suite `hub` runs, and what each needs to be told so that nothing but the recipe decides."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One pipeline class, by its name in model_index.json."""

    name: str
    condition: str = "prompt"  # prompt | label | none
    sized: bool = True  # takes height and width
    sequence: int | None = None  # its own max_sequence_length; None: it has no such argument
    separate: bool = False  # guidance_scale is embedded, and the null prediction a call of its own
    signed: bool = False  # output_type="pt" is -1..1, not clipped; else 0..1
    load: Mapping[str, Any] = field(default_factory=dict)  # for from_pretrained
    call: Mapping[str, Any] = field(default_factory=dict)  # for every call

    def cls(self) -> type:
        """The class."""
        if self.name in PIXEL:
            from accel.suites.pipeline import PixelPipeline

            return PixelPipeline
        import diffusers

        return getattr(diffusers, self.name)

    def loading(self) -> dict[str, Any]:
        """Arguments of from_pretrained: `load`, and None for every part that is never loaded."""
        absent = (name for name in UNUSED if name in inspect.signature(self.cls().__init__).parameters)
        return dict(self.load) | dict.fromkeys(absent)


# Whether an unsafe-looking image is blackened, a watermark is drawn or a caption is cleaned (which depends on what else
# is installed) is switched off: it would enter the metrics. Sizes are taken as they are said, not as the nearest bin.
_PIXART = {"clean_caption": False, "use_resolution_binning": False}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # never loaded
PIXEL = ("DDPMPipeline", "DDIMPipeline")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("StableDiffusionPipeline", load={"requires_safety_checker": False}),
        Kind("StableDiffusionXLPipeline", load={"add_watermarker": False}),
        Kind("PixArtAlphaPipeline", sequence=120, call=_PIXART),
        Kind("PixArtSigmaPipeline", sequence=300, call=_PIXART),
        Kind("StableDiffusion3Pipeline", sequence=256),
        Kind("FluxPipeline", sequence=512, separate=True),
        Kind("DiTPipeline", "label", sized=False),
        *(Kind(name, "none", sized=False, signed=True) for name in PIXEL),
    )
}
