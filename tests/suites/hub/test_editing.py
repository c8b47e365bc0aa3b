"""Editing an image by a prompt: a folder of images, image i with prompt i, and the plain pipeline as judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hub_modern import qwen_edit
from PIL import Image

from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import index as hub_index
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import kind_of

pytestmark = pytest.mark.usefixtures("plain_kernels")
QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
KINDS = ("sd_pix2pix", "sdxl_pix2pix", "flux_kontext", "flux2_klein")
ROWS = {"sd_pix2pix": 3, "sdxl_pix2pix": 3}  # of a guided evaluation


@pytest.fixture
def suite_of(hub_suite, pictures):
    """suite_of(kind) -> its suite on that folder."""
    return lambda kind, **own: hub_suite(kind, inputs=Inputs(str(pictures), **own.pop("inputs", {})), **own)


def sampler(kind: str, steps: int = 3):
    return method("sampler", "flow_euler" if "flux" in kind else "ddim", steps=steps)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_plain_pipeline(kind, guided, suite_of, hub_pipe):
    side = 64 if kind == "flux2_klein" else 16  # the least of its own
    suite, pipe = suite_of(kind, **({"height": side, "width": side} if side > 16 else {})), hub_pipe(kind)
    made = Recipe(sampler(kind), guidance=CFG(3.0) if guided else None)
    count = 2 if suite.kind.together else 1
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, count, count)
    assert run.nfe == 3 * (ROWS.get(kind, 2) if guided else 1)
    assert found.shape == (count, 3, side, side)
    original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
    try:
        null = {"negative_prompt": [""] * count} if guided and kind == "flux_kontext" else {}
        call = suite.conditions(0, count) | suite.guidance_arguments(made) | null
        expected = pipe(**call, generator=generators(0, 0, count), num_inference_steps=3, output_type="pt").images
        assert torch.equal(found, expected)
        other = dict(call, image=suite.conditions(2, 2 + count)["image"])
        expected = pipe(**other, generator=generators(0, 0, count), num_inference_steps=3, output_type="pt").images
    finally:
        pipe.scheduler = original
    assert not torch.equal(found, expected), "the image that is edited changes nothing"


CACHES = [("flux_kontext", "fora")] + [
    ("sd_pix2pix", name) for name in ("deepcache", "encoder_propagation", "inheritance", "taylorseer", "fora")
]


@pytest.mark.parametrize(("kind", "name"), CACHES)
def test_a_cache_keeps_each_condition_s_rows_of_each_sample(kind, name, suite_of, hub_pipe):
    """A sample is what it is alone, and the cache saves work: with three conditions rows are those of one of three."""
    suite, pipe = suite_of(kind), hub_pipe(kind)
    plain = Recipe(sampler(kind, 4), guidance=CFG(3.0))
    made = Recipe(sampler(kind, 4), guidance=CFG(3.0), cache=method("cache", name))
    with accelerate(pipe, plain, count_macs=True) as run:
        generate(pipe, suite, plain, 0, 0, 1, 1)
    with accelerate(pipe, made, count_macs=True) as cached:
        both = generate(pipe, suite, made, 0, 0, 2, 2)
        alone = generate(pipe, suite, made, 0, 1, 2, 1)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    assert cached.macs < run.macs


@pytest.mark.parametrize("kind", ["sd_pix2pix", "flux_kontext"])
def test_experiment(kind, suite_of, tmp_path):
    suite = suite_of(kind, converged_steps=4, converged_sampler="flow_euler" if "flux" in kind else "ddim")
    guidance = CFG(2.0) if kind == "sd_pix2pix" else None
    record = Runner(suite, QUICK, Results(tmp_path)).quality(
        Recipe(sampler(kind, 2), guidance=guidance, cache=method("cache", "fora"))
    )
    assert record["values"]["distance"]["value"] > 0
    assert record["cost"]["nfe"] == (6 if guidance else 2)
    assert "partial" in record["strip"]


def test_what_a_guidance_of_two_conditions_cannot_do_is_refused(suite_of, hub_pipe):
    pipe = hub_pipe("sd_pix2pix")
    for name in ("apg", "cfgpp"):
        made = Recipe(sampler("sd_pix2pix"), guidance=method("guidance", name))
        with pytest.raises(IncompatibleError, match=r"by 3 predictions .*Use guidance=cfg, interval or ag"):
            made.check(pipe)
    suite = suite_of("sd_pix2pix")
    made = Recipe(sampler("sd_pix2pix"), guidance=CFG(3.0))
    call = suite.conditions(0, 1) | {"image_guidance_scale": 0.5, "guidance_scale": 3.0}
    with accelerate(pipe, made), pytest.raises(AccelError, match="expects a batch of cond, image, uncond"):
        pipe(**call, generator=generators(0, 0, 1))


def test_image_and_its_scale_identify_a_run(suite_of, hub_suite, pictures):
    known = suite_of("sd_pix2pix").fingerprint()
    assert known["setting image scale"] == "1.5"
    assert "setting strength" not in known
    assert suite_of("sd_pix2pix", inputs={"image_scale": 2.0}).fingerprint() != known
    assert suite_of("flux_kontext").fingerprint() != hub_suite("flux_kontext").fingerprint()
    assert not {"inputs", "setting image scale"} & set(hub_suite("flux_kontext").fingerprint())
    call = suite_of("sd_pix2pix", inputs={"image_scale": 2.0}).conditions(1, 2)
    assert call["image_guidance_scale"] == 2.0
    stored = np.asarray(Image.open(pictures / "01.png"))[:, 2:18]  # cropped about its centre
    assert torch.equal(call["image"][0], torch.from_numpy(stored.copy()).permute(2, 0, 1).float() / 255)
    picture = suite_of("flux2_klein").conditions(1, 2)["image"]
    assert np.array_equal(np.asarray(picture), stored)
    assert "image" not in hub_suite("flux2_klein").conditions(0, 2), "it makes images from prompts alone, too"


def test_what_is_missing_is_said_before_any_work(suite_of, hub_suite, pictures):
    with pytest.raises(ConfigError, match=r"edits images, and suite\.inputs\.path is empty"):
        hub_suite("sd_pix2pix").check(60)
    with pytest.raises(ConfigError, match=r"takes no masks; leave suite\.inputs\.masks out"):
        hub_suite("flux_kontext", inputs=Inputs(str(pictures), str(pictures))).check(60)
    with pytest.raises(ConfigError, match=r"suite\.inputs\.image_scale is 0\.5"):
        Inputs(image_scale=0.5)
    with pytest.raises(ConfigError, match=r"take one image.*evaluation\.batch=1"):
        suite_of("flux2_klein").conditions(0, 2)
    suite_of("flux2_klein").check(60)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_qwen_image_edit_is_the_plain_pipeline(scale, monkeypatch, pictures):
    """Its own processor needs torchvision, so that it is not loaded from disk here."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: (32, 32, None))
    pipe, kind = qwen_edit(), kind_of("QwenImageEditPipeline")
    pipe.set_progress_bar_config(disable=True)
    call = Inputs(str(pictures)).arguments(kind, [0], 32, 32) | {
        "prompt": ["a red cat"], "negative_prompt": ["b"], "height": 32, "width": 32, "true_cfg_scale": scale,
        "num_inference_steps": 3, "output_type": "latent",
    }  # fmt: skip
    made = Recipe(sampler("flux"), guidance=CFG(scale) if scale > 1 else None)
    with accelerate(pipe, made) as run:
        found = pipe(**call, generator=generators(0, 0, 1)).images
    assert run.nfe == 3 * (2 if scale > 1 else 1)
    original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
    assert torch.equal(found, pipe(**call, generator=generators(0, 0, 1)).images)
    pipe.scheduler = original
    with accelerate(pipe, Recipe(sampler("flux"), guidance=made.guidance, cache=method("cache", "fora"))) as run:
        assert not torch.equal(found, pipe(**call, generator=generators(0, 0, 1)).images)
    assert "partial" in run.strip
    assert "forward" not in vars(getattr(pipe, denoiser_name(pipe)))


def test_a_processor_that_cannot_be_made_here_names_its_package(monkeypatch, hub_folder):
    monkeypatch.setattr(hub_index, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Qwen2VLProcessor, which needs torchvision; install it"):
        hub_index._check_class(hub_folder("sd"), "processor", "transformers", "Qwen2VLProcessor")
