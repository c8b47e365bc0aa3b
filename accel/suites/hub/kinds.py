"""The pipeline classes that suite `hub` runs, and what each needs to be told so that nothing but the recipe decides.

A class is known by the signatures of its constructor (its parts) and of its calls (what may be asked of it): `kind_of`
reads them, and says what is missing where a class cannot be run. What no signature tells is in `OWN`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from accel.core.guiders import guider_parts
from accel.core.pipelines import IMAGE_SCALE, SCALE, TRUE_SCALE, arguments, draws_by_itself
from accel.errors import ConfigError, unknown


@dataclass(frozen=True)
class Kind:
    """One pipeline class, by its name in model_index.json.

    `guided`: the argument of a call that asks for guidance, None without one. `true_cfg_scale` asks for it beside a
    negative prompt, and `guidance_scale` is then a number that a distilled network is told. `unguided`: the number at
    which nothing is guided; a scale s of accel's (u + s (c - u), none at 1) is asked for as s - 1 + unguided.
    """

    name: str
    condition: str = "prompt"  # prompt | label | none
    sized: bool = True  # may be asked for a size
    told_size: bool = True  # by arguments of its calls; else by that of its input images
    side: int | None = None  # of its images where nothing is said, in pixels; None: see configs.image_size
    across: int | None = None  # their width, where it is not the height
    frames: bool = False  # makes videos
    sequence: int | None = None  # its own max_sequence_length; None: it has no such argument
    guided: str | None = SCALE
    negative: bool = True  # takes negative prompts
    image: bool = False  # begins in the middle, at an input image
    mask: bool = False  # and replaces what is white in a mask
    edits: str | None = None  # shown an image, from noise alone, which it edits, or makes a video of: `always`, `asked`
    image_scale: bool = False  # its guidance towards that image has a scale of its own
    together: bool = True  # image i of a batch goes with prompt i; else all are of one prompt, and a batch is one
    control: str | None = None  # the argument of its calls that takes the images of a condition
    control_scale: float | None = None  # how much a ControlNet adds where nothing is said; None: there is none
    modes: int | None = None  # kinds of conditions that it was trained for, one of which is said; None: of one
    settled: bool = True  # false: its calls draw a condition's latents by no generator that a caller gives
    area: bool = False  # takes the product of height and width, too
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


# Never loaded; where guidance is by an object, the recipe decides it.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker", "pe", "pe_tokenizer", "guider",
          "ocr_guider")  # fmt: skip
PIXEL = ("DDPMPipeline", "DDIMPipeline")
# Whether an unsafe-looking image is blackened, a watermark is drawn, a caption is cleaned (which depends on what else
# is installed) or written anew by a language model is switched off: it would enter the metrics. Sizes are taken as
# they are said, not as the nearest bin.
LOADED = {"requires_safety_checker": False, "add_watermarker": False}
CALLED = {
    "clean_caption": False,
    "skip_text_cleaning": True,
    "use_resolution_binning": False,
    "use_pe": False,
    "enable_prompt_rewrite": False,
    "_auto_resize": False,
}
# What no signature tells. HiDream scales whatever size it is asked for to its own area.
OWN: Mapping[str, Mapping[str, Any]] = {
    "DiTPipeline": {"condition": "label", "told_size": False},
    **{name: {"condition": "none", "signed": True, "told_size": False} for name in PIXEL},
    "ZImagePipeline": {"side": 1024},
    "HiDreamImagePipeline": {"sized": False, "told_size": False, "side": 1024},
    "BriaPipeline": {"side": 1024},
    "MochiPipeline": {"side": 480, "across": 848},
    "BriaFiboPipeline": {"side": 1024},
    "PRXPipeline": {"side": 512},
    "HunyuanImagePipeline": {"side": 2048},
    "QwenImage21Pipeline": {"side": 1024},
    "QwenImageEditPipeline": {"side": 1024},
    "QwenImageEditPlusPipeline": {"side": 1024},
    "LongCatImageEditPipeline": {"sized": False, "side": 1024},
    "Kandinsky5I2IPipeline": {"sized": False, "told_size": False, "side": 1024},
    "WanImageToVideoPipeline": {"load": {"image_encoder": None, "image_processor": None}},
}
# Classes that make images from prompts alone, too; all others with an argument `image` need one.
WITHOUT_IMAGE = ("FluxKontextPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "QwenImage21Pipeline")
# Those that make videos of images, by networks that need no other encoder for them than the autoencoder.
OF_IMAGES = ("CogVideoXImageToVideoPipeline", "LTXImageToVideoPipeline", "WanImageToVideoPipeline")
# Of those that edit, or begin at, images the classes whose calls take one for each prompt: to the others several are
# one prompt's.
TOGETHER = (
    "FluxKontextPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline",
    "CogVideoXImageToVideoPipeline", "LTXImageToVideoPipeline",
)  # fmt: skip
SHARING = "its ControlNet runs layers of its transformer, which caches and precisions change"
MERGED = "its network and its ControlNet are evaluated as one, layer by layer"
UNABLE = {
    "GlmImagePipeline": "its language model draws tokens by no generator that a caller gives",
    "ZImageControlNetPipeline": SHARING,
    "ZImageControlNetInpaintPipeline": SHARING,
    "StableDiffusionControlNetXSPipeline": MERGED,
    "StableDiffusionXLControlNetXSPipeline": MERGED,
    "DreamLitePipeline": "its calls put the rows of its three conditions in an order of their own",
    "StableDiffusionLatentUpscalePipeline": "it enlarges images",
    "CosmosTextToWorldPipeline": "it refuses to run without its safety checker",
    "LTXI2VLongMultiPromptPipeline": "it makes a video in windows, each a trajectory of its own",
    "SkyReelsV2DiffusionForcingPipeline": "its frames have timesteps of their own",
    "UniDiffuserPipeline": "it draws images and texts jointly",
    "HunyuanDiTPAGPipeline": "it runs guided by classifier-free and by perturbed-attention guidance at once, and not "
    "otherwise (use HunyuanDiTPipeline)",
    **{
        f"IF{task}Pipeline": "its network predicts a variance beside the noise, which few samplers take"
        for task in ("", "Img2Img", "Inpainting")
    },
}
PACKAGES = {"PRXPipeline": "ftfy", "WanImageToVideoPipeline": "ftfy"}  # that a class asks for when it runs
FRAMES = "num_frames"
SECOND = "transformer_2"  # to which a pipeline changes by itself, below a noise level (Wan 2.2)
CONTROLNET, CONTROL_SCALE, CONTROL_MODE = "controlnet", "controlnet_conditioning_scale", "control_mode"
UNION = "ControlNetUnion"  # in the names of classes whose ControlNet was trained for several kinds of conditions
FED = ("self", "prompt", "class_labels", "image", "mask_image", "control_image")
NEEDED = ("num_inference_steps", "generator", "output_type")
# An argument, or a part, of a class that suite hub does not feed: what it stands for.
FOREIGN_ARGUMENTS = {
    "audio_length_in_s": "it makes sound",
    "video_length": "it makes videos by moving one image",
    "video": "it edits videos",
    "conditioning_frames": "it makes videos of conditions, frame by frame",
    "control_video": "it makes videos of conditions, frame by frame",
    "control_mask": "it needs a mask of its condition (control_mask)",
    "images": "it needs images (images)",
    "gligen_phrases": "it needs regions with phrases (gligen_phrases)",
    "source_embeds": "it needs directions of an edit (source_embeds)",
    "noise_level": "it needs an image to enlarge (image)",
}
FOREIGN_PARTS = {
    r"audio_vae|vocoder": "it makes sound beside videos, by its part {}",
    r"guider|ocr_guider": "it guides by an object ({}) that it does not run without",
    r"prior_\w+|prior": "it is a cascade, whose part {} makes a trajectory of its own",
    r"depth_estimator": "it needs depth maps, of its part {}",
    r"siglip|adapter": "it needs images, for its part {}",
    r"(?!unet$|transformer$)\w*(unet|transformer)\w*": "it has a further denoiser, {}, beside the accelerated one",
}  # fmt: skip


def kind_of(name: str) -> Kind:
    """The kind of a pipeline class of diffusers; ConfigError for a name that it does not have, and for one that needs
    more than prompts or class labels, which is named."""
    if name in PIXEL:
        return Kind(name, **_own(name))
    cls = pipeline_class(name)
    if (package := PACKAGES.get(name)) and find_spec(package) is None:
        raise ConfigError(f"the pipeline class {name} needs {package}; install it.")
    if reason := lacking(cls):
        raise ConfigError(
            f"suite hub cannot run a {name}: {reason}. Allowed: classes that make images or videos from prompts."
        )
    return _described(cls)


def pipeline_class(name: str) -> type:
    """The class of the installed diffusers. ConfigError if there is none, or packages that it needs are missing."""
    import diffusers

    found = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
    if packages := getattr(found, "_backends", None):  # what stands in for a class whose packages are missing
        raise ConfigError(f"the pipeline class {name} needs {' and '.join(packages)}; install it.")
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise unknown("pipeline class", name, [*PIXEL, *COMMON])
    return found


# What an unknown name is compared with: diffusers has hundreds of classes.
COMMON = (
    "AuraFlowPipeline", "ChromaPipeline", "CogView4Pipeline", "DiTPipeline", "Flux2KleinPipeline", "FluxPipeline",
    "HiDreamImagePipeline", "HunyuanDiTPipeline", "LatentConsistencyModelPipeline", "Lumina2Pipeline",
    "PixArtAlphaPipeline", "PixArtSigmaPipeline", "QwenImagePipeline", "SanaPipeline", "StableDiffusion3Pipeline",
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "ZImagePipeline",
)  # fmt: skip


@lru_cache(maxsize=64)
def lacking(cls: type) -> str | None:
    """Why suite hub cannot run a pipeline class, by its signatures; None if it can."""
    asked, parts = arguments(cls), inspect.signature(cls.__init__).parameters
    spared = {SECOND, *(part for part in guider_parts(cls) if part in getattr(cls, "_optional_components", ()))}
    for pattern, reason in FOREIGN_PARTS.items():
        if found := [part for part in parts if re.fullmatch(pattern, part) and part not in spared]:
            return reason.format(found[0])
    for argument, reason in FOREIGN_ARGUMENTS.items():
        if argument in asked:
            return reason
    if "prompt" not in asked and "condition" not in OWN.get(cls.__name__, {}):
        return "its calls take no prompt"
    if not {"unet", "transformer"} & set(parts):
        return "it has no part unet or transformer to accelerate"
    if FRAMES in asked and "image" in asked and cls.__name__ not in OF_IMAGES:
        return f"it makes videos of images, of which suite hub knows {', '.join(OF_IMAGES)}"
    if missing := [name for name in NEEDED if name not in asked]:
        return f"its calls take no {missing[0]}"
    image, control = {"image", "strength"} <= set(asked), _control(asked, parts)
    if "prompt" in asked and not control and "image" not in asked and not {"height", "width"} <= set(asked):
        return "its calls take no height and width"
    if "prompt" in asked and not {SCALE, TRUE_SCALE} & set(asked) and not guider_parts(cls):
        return f"its calls take no {SCALE}"
    needed = [p.name for p in asked.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if others := [name for name in needed if name not in FED]:
        return f"its calls need {others[0]}"
    if cls.__name__ in UNABLE:
        return UNABLE[cls.__name__]
    if "mask_image" in asked and not image:
        return "it needs an image and a mask, and takes no strength"
    return None


def _described(cls: type) -> Kind:
    """What the signatures of `cls` say, and over it what `OWN` does."""
    asked = arguments(cls)
    sequence = asked["max_sequence_length"].default if "max_sequence_length" in asked else None
    height, width = (asked[side].default if side in asked else None for side in ("height", "width"))
    control = _control(asked, inspect.signature(cls.__init__).parameters)
    edits = "image" in asked and "strength" not in asked and control != "image"
    scale = asked[CONTROL_SCALE].default if CONTROL_SCALE in asked else None
    kind = Kind(
        cls.__name__,
        sized={"height", "width"} <= set(asked) or "image" in asked,
        told_size={"height", "width"} <= set(asked),
        side=height if isinstance(height, int) else None,
        across=width if isinstance(height, int) and isinstance(width, int) and width != height else None,
        frames=FRAMES in asked,
        area="max_area" in asked,
        sequence=sequence if isinstance(sequence, int) else None,
        guided=next((name for name in (TRUE_SCALE, SCALE) if name in asked), None),
        negative="negative_prompt" in asked,
        image="strength" in asked,
        mask="mask_image" in asked,
        edits=("asked" if cls.__name__ in WITHOUT_IMAGE else "always") if edits else None,
        image_scale=IMAGE_SCALE in asked,
        control=control,
        control_scale=float(scale) if isinstance(scale, (int, float)) else None,
        settled=not draws_by_itself(cls),
        together=not edits or cls.__name__ in TOGETHER,
        load=_present(LOADED, inspect.signature(cls.__init__).parameters),
        call=_present(CALLED, asked),
    )
    return replace(kind, **_own(cls.__name__))


def _control(asked: Collection[str], parts: Collection[str]) -> str | None:
    """The argument that takes the images of a condition; of a ControlNet's class it may be its only one of images."""
    if "control_image" in asked:
        return "control_image"
    return "image" if CONTROLNET in parts and "image" in asked and "strength" not in asked else None


def controlled(name: str, union: bool = False) -> str:
    """The class that diffusers has for a pipeline class under a ControlNet: StableDiffusionImg2ImgPipeline ->
    StableDiffusionControlNetImg2ImgPipeline; `union`: under one for several kinds of conditions."""
    own = UNION if union else "ControlNet"
    return re.sub(r"((PAG)?(Img2Img|Inpaint)?Pipeline)$", rf"{own}\1", name, count=1)


def _own(name: str) -> dict[str, Any]:
    own = dict(OWN.get(name, {}))
    return own | ({"sized": False, "negative": False} if "condition" in own else {})


def _present(fixed: Mapping[str, Any], accepted: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in fixed.items() if name in accepted}
