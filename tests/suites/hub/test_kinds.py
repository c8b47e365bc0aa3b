"""What suite `hub` reads from the signatures of pipeline classes: what it can run and how, and what others lack."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.suites.hub import kinds
from accel.suites.hub.kinds import FOREIGN_ARGUMENTS, OWN, PIXEL, TOGETHER, UNABLE, WITHOUT_IMAGE, Kind, kind_of

RUN = (
    "AuraFlowPipeline", "ChromaPipeline", "CogView3PlusPipeline", "CogView4Pipeline", "Flux2KleinPipeline",
    "Flux2Pipeline", "FluxKontextPipeline", "FluxPipeline", "HunyuanDiTPipeline", "Kandinsky3Pipeline",
    "Krea2Pipeline", "LatentConsistencyModelPipeline", "Lumina2Pipeline", "LuminaPipeline", "NucleusMoEImagePipeline",
    "OvisImagePipeline", "PixArtAlphaPipeline", "PixArtSigmaPAGPipeline", "PixArtSigmaPipeline", "QwenImage21Pipeline",
    "QwenImagePipeline", "SanaPAGPipeline", "SanaPipeline", "StableDiffusion3PAGPipeline", "StableDiffusion3Pipeline",
    "StableDiffusionPAGPipeline", "StableDiffusionPipeline", "StableDiffusionXLPAGPipeline",
    "StableDiffusionXLPipeline", "ZImagePipeline",
)  # fmt: skip
REFUSED = {
    "IFPipeline": "predicts a variance beside the noise",
    "HunyuanDiTPAGPipeline": "use HunyuanDiTPipeline",
    "GlmImagePipeline": "draws tokens by no generator",
    "KandinskyCombinedPipeline": "a cascade, whose part prior_prior",
    "KandinskyV22CombinedPipeline": "a cascade, whose part prior_prior",
    "WuerstchenCombinedPipeline": "a cascade, whose part prior_",
    "StableCascadeCombinedPipeline": "a cascade, whose part prior_",
    "Ideogram4Pipeline": "a further denoiser, unconditional_transformer",
    "StableDiffusionControlNetXSPipeline": "evaluated as one",
    "ZImageControlNetPipeline": "runs layers of its transformer",
    "ZImageControlNetInpaintPipeline": "runs layers of its transformer",
    "StableDiffusion3ControlNetInpaintingPipeline": "a mask of its condition",
    "AnimateDiffControlNetPipeline": "it makes videos",
    "HeliosPipeline": "it edits videos",
    "HeliosPyramidPipeline": "it edits videos",
    "HunyuanVideoImageToVideoPipeline": "it makes videos of images, of which suite hub knows",
    "LTX2Pipeline": "sound beside videos",
    "EasyAnimateControlPipeline": "frame by frame",
    "SkyReelsV2DiffusionForcingPipeline": "timesteps of their own",
    "StableVideoDiffusionPipeline": "its calls take no prompt",
    "ZImageOmniPipeline": "it needs images, for its part siglip",
    "ConsistencyModelPipeline": "its calls take no prompt",
    "StableDiffusionDepth2ImgPipeline": "it needs depth maps",
    "DreamLitePipeline": "an order of their own",
    "StableDiffusionUpscalePipeline": "an image to enlarge",
    "StableDiffusionLatentUpscalePipeline": "it enlarges images",
    "UniDiffuserPipeline": "images and texts jointly",
    "HunyuanVideo15Pipeline": "guides by an object .guider. that it does not run without",
    "StableDiffusionPipelin": "Did you mean StableDiffusionPipeline",
    "UNet2DConditionModel": "unknown pipeline class",
}


@pytest.fixture(scope="module")
def mapping():
    """The names of AutoPipelineForText2Image's classes."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_run_says_what_is_missing(name):
    with pytest.raises(ConfigError, match=REFUSED[name]):
        kind_of(name)


def test_of_autopipelines_classes_each_runs_or_says_why_not(mapping):
    named = {name for name in mapping if "Control" in name} - {*REFUSED}
    for name in named:
        kind = kind_of(name)
        assert kind.control, name
        assert kind.edits is None, name
    installed = {*RUN, "PRXPipeline", *REFUSED, *named, "KolorsPipeline", "KolorsPAGPipeline"}  # some need packages
    assert mapping - installed == set(), "classes that came with another diffusers: add them to RUN or REFUSED"
    import diffusers

    there = [name for name in RUN if hasattr(diffusers, name)]  # the lowest diffusers lacks some
    assert [kind_of(name).name for name in there] == there


def test_a_signature_tells_sizes_limits_and_how_guidance_is_asked_for():
    assert kind_of("StableDiffusionPipeline") == Kind(
        "StableDiffusionPipeline", load={"requires_safety_checker": False}
    )
    assert kind_of("FluxPipeline") == Kind("FluxPipeline", sequence=512, guided="true_cfg_scale")
    assert kind_of("StableDiffusion3Pipeline") == Kind("StableDiffusion3Pipeline", sequence=256)
    pixart = {"clean_caption": False, "use_resolution_binning": False}
    assert kind_of("PixArtAlphaPipeline") == Kind("PixArtAlphaPipeline", sequence=120, call=pixart)
    assert kind_of("SanaPipeline") == Kind("SanaPipeline", side=1024, sequence=300, call=pixart)
    assert kind_of("DiTPipeline") == Kind("DiTPipeline", "label", sized=False, told_size=False, negative=False)
    assert kind_of("DDPMPipeline") == Kind(
        "DDPMPipeline", "none", sized=False, told_size=False, negative=False, signed=True
    )
    assert kind_of("QwenImage21Pipeline") == Kind(
        "QwenImage21Pipeline", side=1024, guided="true_cfg_scale", edits="asked", together=False
    )
    assert not kind_of("Flux2KleinPipeline").negative
    kontext = kind_of("FluxKontextPipeline")
    assert (kontext.area, kontext.edits, kontext.call) == (True, "asked", {"_auto_resize": False})
    edit = kind_of("StableDiffusionInstructPix2PixPipeline")
    assert (edit.edits, edit.image_scale, edit.together, edit.sized, edit.told_size) == (
        "always",
        True,
        True,
        True,
        False,
    )
    edit = kind_of("QwenImageEditPipeline")
    assert (edit.edits, edit.guided, edit.together, edit.side) == ("always", "true_cfg_scale", False, 1024)
    assert kind_of("FluxFillPipeline").edits is None, "an inpainting class"


def test_what_is_kept_by_name_is_of_classes_that_exist():
    import diffusers

    kept = [name for name in {*OWN, *UNABLE, *WITHOUT_IMAGE, *TOGETHER} - set(PIXEL) if hasattr(diffusers, name)]
    assert len(kept) > 10
    for name in kept:
        kinds.pipeline_class(name)
    assert FOREIGN_ARGUMENTS.keys().isdisjoint(kinds.arguments(kind_of("FluxPipeline").cls()))


def test_a_package_that_a_class_asks_for_while_it_runs_is_named(monkeypatch):
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="PRXPipeline needs ftfy; install it"):
        kind_of("PRXPipeline")
    monkeypatch.setattr(kinds, "find_spec", lambda name: object())
    assert kind_of("PRXPipeline").call == {"skip_text_cleaning": True, "use_resolution_binning": False}
