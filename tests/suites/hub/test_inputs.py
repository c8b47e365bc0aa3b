"""Image-to-image and inpainting: a folder of input images, image i with prompt i, and the plain pipeline as judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hub_modern import IMAGES
from PIL import Image

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import kind_of
from accel.suites.hub.prompts import Prompts

QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
INPAINT = ("sd_inpaint", "sd_inpaint9")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of sixty images of 20 x 16 pixels, and of as many masks, whose left half is white."""
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("inputs")
    for name in ("images", "masks"):
        (root / name).mkdir()
    mask = np.zeros((16, 20), np.uint8)
    mask[:, :10] = 255
    for i in range(60):
        Image.fromarray(draw.integers(0, 256, (16, 20, 3), np.uint8)).save(root / "images" / f"{i:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
    return root


@pytest.fixture
def suite_of(hub_suite, folders):
    """suite_of(kind) -> its suite on these folders."""

    def suite(kind: str, **settings):
        masks = str(folders / "masks") if kind in INPAINT else None
        return hub_suite(kind, inputs=Inputs(str(folders / "images"), masks, strength=0.5), **settings)

    return suite


def sampler(kind: str, steps: int = 4):
    return method("sampler", "flow_euler" if "flux" in kind else "ddim", steps=steps)


@pytest.mark.parametrize("kind", IMAGES)
def test_half_of_the_trajectory_is_run_as_the_plain_pipeline_runs_it(kind, suite_of):
    suite = suite_of(kind)
    pipe, made = suite.pipeline(), Recipe(sampler(kind), guidance=None if "flux" in kind else CFG(3.0))
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
    assert run.nfe == (2 if "flux" in kind else 4), "two of four steps"
    original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
    call = suite.conditions(0, 2) | suite.guidance_arguments(made)
    expected = pipe(**call, generator=generators(0, 0, 2), num_inference_steps=4, output_type="pt").images
    assert torch.equal(found, expected)
    pipe.scheduler = original
    assert found.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["sd_img2img", "sd_inpaint9", "flux_img2img"])
def test_experiment(kind, suite_of, tmp_path):
    suite = suite_of(kind, converged_steps=6, converged_sampler="flow_euler" if "flux" in kind else "ddim")
    made = Recipe(sampler(kind), cache=method("cache", "fora"))
    record = Runner(suite, QUICK, Results(tmp_path)).quality(made)
    assert record["values"]["distance"]["value"] > 0
    assert record["cost"]["nfe"] == 2
    assert "partial" in record["strip"]


def test_image_i_goes_with_prompt_i_and_what_is_white_is_replaced(suite_of, folders):
    call = suite_of("sd_inpaint").conditions(1, 3)
    stored = np.asarray(Image.open(folders / "images" / "01.png"))[:, 2:18]  # cropped about its centre
    assert torch.equal(call["image"][0], torch.from_numpy(stored.copy()).permute(2, 0, 1).float() / 255)
    assert call["mask_image"].shape == (2, 1, 16, 16)
    assert call["mask_image"][0, 0, 0].tolist() == [1.0] * 8 + [0.0] * 8
    assert call["strength"] == 0.5
    assert "mask_image" not in suite_of("sd_img2img").conditions(0, 1)
    assert "height" not in suite_of("sd_img2img").conditions(0, 1), "its calls take none"


def test_images_masks_and_strength_identify_a_run(suite_of, hub_suite, folders, tmp_path):
    known = suite_of("sd_inpaint").fingerprint()
    assert {"inputs", "masks", "setting strength"} <= set(known)
    assert {"inputs", "setting strength"} & set(suite_of("sd_inpaint").model_fingerprint()) == set()
    (tmp_path / "one.png").write_bytes((folders / "images" / "00.png").read_bytes())
    others = [
        Inputs(str(folders / "images"), str(folders / "masks"), 0.6),
        Inputs(str(tmp_path), str(folders / "masks"), 0.5),
    ]
    for inputs in others:
        assert hub_suite("sd_inpaint", inputs=inputs).fingerprint() != known
    assert not {"inputs", "setting strength"} & set(hub_suite("sd").fingerprint())


def test_what_is_missing_is_said_before_any_work(hub_suite, folders, tmp_path, prompt_file):
    images, masks = str(folders / "images"), str(folders / "masks")

    def refused(kind, inputs, message):
        with pytest.raises(ConfigError, match=message):
            hub_suite(kind, inputs=inputs).check(60)

    refused("sd_img2img", Inputs(), r"begins at images, and suite\.inputs\.path is empty")
    refused("sd_inpaint", Inputs(images), r"inpaints, and suite\.inputs\.masks is empty")
    refused("sd_img2img", Inputs(images, masks), r"takes no masks; leave suite\.inputs\.masks out")
    refused("sd", Inputs(images), r"StableDiffusionPipeline takes no images; leave suite\.inputs out")
    refused("sd_img2img", Inputs(str(tmp_path)), "holds 0 images")
    with pytest.raises(ConfigError, match=r"suite\.inputs\.strength is 1\.5"):
        Inputs(images, strength=1.5)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"the input image .*broken\.png cannot be read"):
        hub_suite("sd_img2img", inputs=Inputs(str(tmp_path)), prompts=Prompts(str(prompt_file))).conditions(0, 1)


def test_signatures_tell_which_classes_begin_at_images():
    assert (kind_of("StableDiffusionImg2ImgPipeline").image, kind_of("StableDiffusionImg2ImgPipeline").mask) == (
        True,
        False,
    )
    assert kind_of("FluxInpaintPipeline").mask
    assert not kind_of("FluxKontextPipeline").image, "its image is no beginning"
