"""Videos of images: image i of a folder with prompt i, the plain pipeline as judge, and a first frame without noise."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import hub_tiny
import pytest
import torch
from hub_modern import OF_IMAGES

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import APG, CFG, AdaptiveGuidance, CFGPlusPlus, IntervalCFG
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import kinds
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import kind_of

pytestmark = pytest.mark.usefixtures("plain_kernels")
QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
DRIVEN = ("ltx_i2v", "wan_i2v")  # by samplers of the command line


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Wan's asks for ftfy, which mends broken text; there is none in the prompts here."""
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.setitem(kinds.PACKAGES, "WanImageToVideoPipeline", "torch")
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


@pytest.fixture
def suite_of(hub_suite, pictures):
    """suite_of(kind) -> its suite on that folder."""
    return lambda kind, **own: hub_suite(kind, **{"inputs": Inputs(str(pictures))} | own)


def recipe(kind: str, guidance=None, steps: int = 3, **own) -> Recipe:
    return Recipe(method("sampler", "flow_euler", steps=steps) if kind in DRIVEN else None, guidance=guidance, **own)


def plainly(pipe, suite, made: Recipe, count: int, **more):
    """Videos without accel: the recipe's scheduler put into the pipeline by hand."""
    original = pipe.scheduler
    if made.sampler:
        pipe.scheduler = made.sampler.build(original.config)
    try:
        call = suite.conditions(0, count) | suite.guidance_arguments(made) | more
        return pipe(**call, generator=generators(0, 0, count), num_inference_steps=3, output_type="pt").frames
    finally:
        pipe.scheduler = original


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", OF_IMAGES)
def test_videos_are_those_of_the_plain_pipeline(kind, guided, suite_of, pipe_of):
    suite, pipe, made = suite_of(kind), pipe_of(kind), recipe(kind, CFG(3.0) if guided else None)
    count = 2 if suite.kind.together else 1
    assert count == (1 if kind == "wan_i2v" else 2)
    if not made.sampler:  # nothing but its own scheduler knows its noise schedule
        with accelerate(pipe, made) as run:
            call = suite.conditions(0, 2) | suite.guidance_arguments(made) | {"num_inference_steps": 3}
            found = pipe(**call, generator=generators(0, 0, 2), output_type="pt").frames
    else:
        with accelerate(pipe, made) as run:
            found = generate(pipe, suite, made, 0, 0, count, count)
    assert run.nfe == (6 if guided else 3)
    assert found.shape[:2] == (count, OF_IMAGES[kind].frames)
    assert torch.equal(found, plainly(pipe, suite, made, count))
    other = {"image": suite.conditions(2, 2 + count)["image"]}
    assert not torch.equal(found, plainly(pipe, suite, made, count, **other)), "the image changes nothing"


def test_a_video_is_what_it_is_in_a_batch(suite_of, pipe_of):
    suite, pipe, made = suite_of("ltx_i2v"), pipe_of("ltx_i2v"), recipe("ltx_i2v", CFG(3.0))
    with accelerate(pipe, made):
        both, alone = generate(pipe, suite, made, 0, 0, 2, 2), generate(pipe, suite, made, 0, 1, 2, 1)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="take one image: several would all go with each prompt"):
        suite_of("wan_i2v").conditions(0, 2)


@pytest.mark.parametrize("name", ["fora", "taylorseer", "easycache"])
@pytest.mark.parametrize("kind", DRIVEN)
def test_caches_act(kind, name, suite_of, pipe_of):
    options = {"threshold": 1e9} if name == "easycache" else {}
    suite, pipe, plain = suite_of(kind), pipe_of(kind), recipe(kind, CFG(3.0), 6)
    outcomes = []
    for made in (plain, replace(plain, cache=method("cache", name, **options))):
        with accelerate(pipe, made, count_macs=True) as run:
            outcomes.append((generate(pipe, suite, made, 0, 0, 1, 1), run.macs))
    (whole, most), (cached, macs) = outcomes
    assert macs < most
    assert not torch.equal(whole, cached)


@torch.no_grad()
def test_a_first_frame_without_noise_is_no_matter_of_one_noise_level(suite_of, pipe_of):
    """LTX tells its network a time for each token; guidance that asks for x_0 at one level is refused, that which does
    not is the plain pipeline's."""
    suite, pipe = suite_of("ltx_i2v"), pipe_of("ltx_i2v")
    for guidance in (AdaptiveGuidance(3.0), APG(3.0), CFGPlusPlus()):
        made = recipe("ltx_i2v", guidance)
        with accelerate(pipe, made), pytest.raises(IncompatibleError, match="a time for each part of a sample"):
            generate(pipe, suite, made, 0, 0, 1, 1)
    made = recipe("ltx_i2v", IntervalCFG(3.0, 1e6, 1e7))
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, 1, 1)
    assert run.nfe == 3
    torch.testing.assert_close(found, plainly(pipe, suite, recipe("ltx_i2v"), 1), rtol=0, atol=1e-5)


def test_wan_s_image_is_no_part_of_what_guidance_compares(suite_of, pipe_of):
    suite, pipe = suite_of("wan_i2v"), pipe_of("wan_i2v")
    made = recipe("wan_i2v", AdaptiveGuidance(3.0, -1.0, min_steps=1))
    with accelerate(pipe, made) as run:
        generate(pipe, suite, made, 0, 0, 1, 1)
    assert run.nfe == 3 + 2, "two guided steps of three"


def test_experiment(suite_of, tmp_path):
    suite = suite_of("ltx_i2v", converged_steps=4, converged_sampler="flow_euler")
    suite.check(60)
    record = Runner(suite, QUICK, Results(tmp_path)).quality(recipe("ltx_i2v", steps=2))
    assert record["values"]["distance"]["value"] > 0
    assert record["cost"]["nfe"] == 2
    assert "inputs" in suite.fingerprint()


def test_what_cannot_be_is_said(suite_of, hub_suite, hub_folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"LTXImageToVideoPipeline makes videos of images, and suite\.inputs\.path is"
    ):
        hub_suite("ltx_i2v").check(60)
    with pytest.raises(ConfigError, match="of which suite hub knows CogVideoXImageToVideoPipeline, LTXImageToVideo"):
        kind_of("HunyuanVideoImageToVideoPipeline")
    folder = tmp_path / "wan"
    pipe = hub_tiny.builder("wan_i2v")()
    pipe.save_pretrained(folder)
    config = json.loads((folder / "transformer/config.json").read_text()) | {"image_dim": 8}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"sees its image by an image encoder, too \(image_dim in its config\)"):
        suite_of("wan_i2v", model=str(folder)).check(60)
