"""Guidance on a pipeline with a third branch (InstructPix2Pix: text and image, image alone, neither)."""

from __future__ import annotations

import hub_tiny
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline

from accel.caching import DeepCache
from accel.core import pipelines
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance, IntervalCFG
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

SIX = DiffusersSampler("DDIMScheduler", 6, "ddim", {"clip_sample": False})
SCALE, IMAGE_SCALE = 3.0, 1.5


@pytest.fixture(scope="module")
def pipe():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sd = hub_tiny._sd(in_channels=8)
    pipe = StableDiffusionInstructPix2PixPipeline(
        sd.vae, sd.text_encoder, sd.tokenizer, sd.unet, sd.scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, scale=SCALE, **given) -> torch.Tensor:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    own = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {"num_inference_steps": 6, "guidance_scale": scale, "image_guidance_scale": IMAGE_SCALE} | given
    return pipe(list(hub_tiny.PROMPTS[:2]), image, generator=own, output_type="pt", **given).images


def images(pipe, recipe: Recipe, **given):
    with accelerate(pipe, recipe, models=given.pop("models", None)) as run:
        return call(pipe, recipe.guidance_scale, **given), run


def plain(pipe, scale=SCALE) -> torch.Tensor:
    before, pipe.scheduler = pipe.scheduler, SIX.build(pipe.scheduler.config)
    try:
        return call(pipe, scale)
    finally:
        pipe.scheduler = before


def test_the_order_of_the_parts_is_read_from_the_pipeline():
    for cls in (StableDiffusionInstructPix2PixPipeline, StableDiffusionXLInstructPix2PixPipeline):
        parts = pipelines.blocks(pipelines.layout(cls.__new__(cls)))
        assert parts == ("cond", "image", "uncond")


def test_what_never_ends_guidance_is_the_plain_pipeline(pipe):
    expected = plain(pipe)
    for guidance in (CFG(SCALE), AdaptiveGuidance(SCALE, threshold=2.0), IntervalCFG(SCALE)):
        found, run = images(pipe, Recipe(SIX, guidance=guidance))
        assert torch.equal(found, expected), guidance.label
        assert run.nfe == 18


def test_without_guidance_the_conditional_branch_alone_is_evaluated(pipe):
    found, run = images(pipe, Recipe(SIX, guidance=IntervalCFG(SCALE, 1e5, 1e6)))
    assert run.nfe == 6
    torch.testing.assert_close(found, plain(pipe, 1.0), rtol=1e-4, atol=1e-5)


def test_adaptive_guidance_ends_as_the_interval_does(pipe):
    """Two guided steps; the third pays for all branches, and ends guidance."""
    ag = AdaptiveGuidance(SCALE, threshold=-1.0, min_steps=2)
    found, run = images(pipe, Recipe(SIX, guidance=ag))
    assert run.nfe == 3 * 3 + 3
    assert [event.step for event in run.events] == [2]
    seen = []
    with accelerate(pipe, Recipe(SIX)) as plain_run:
        plain_run.clock.on_stage(lambda: seen.append(plain_run.clock.sigma))
        call(pipe, 1.0)
    interval = IntervalCFG(SCALE, (seen[1] + seen[2]) / 2)
    torch.testing.assert_close(found, images(pipe, Recipe(SIX, guidance=interval))[0], rtol=1e-4, atol=1e-5)


def test_guidance_ends_when_both_other_branches_agree(pipe, monkeypatch):
    """The cosine that counts is the least of the two."""
    from accel.guidance import adaptive

    told = iter([0.99, 0.5] + [0.99, 0.99] + [1.0] * 20)
    monkeypatch.setattr(adaptive, "similarity", lambda u, c: torch.full((len(u),), next(told)))
    _, run = images(pipe, Recipe(SIX, guidance=AdaptiveGuidance(SCALE, threshold=0.9, min_steps=0)))
    assert [(event.step, tuple(event.samples)) for event in run.events] == [(1, (0, 1))]
    assert run.nfe == 3 * 2 + 4


def test_samples_whose_guidance_ended_and_others_are_one_call(pipe, monkeypatch):
    """The first image ends after its second evaluation, the other after its fourth; then two branches of one sample and
    one of two are a call."""
    from accel.core.denoiser import Inputs
    from accel.guidance import adaptive

    found = {}
    for joint in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(Inputs, "joint", joint)
            for cache in (None, DeepCache(2, 1)):
                told = iter([[0.0, 0.0]] * 2 + [[1.0, 0.0]] * 2 + [[0.0]] * 2 + [[1.0]] * 2)  # two branches a step
                patched.setattr(adaptive, "similarity", lambda u, c, told=told: torch.tensor(next(told)))
                guidance = AdaptiveGuidance(SCALE, threshold=0.9, min_steps=0)
                found[joint, cache is None] = images(pipe, Recipe(SIX, guidance=guidance, cache=cache))
    rows = [[e.rows for e in run.trace if e.step == k] for k in range(6) for run in [found[True, True][1]]]
    assert rows == [[6], [6], [4], [4], [2], [2]]
    assert [e.rows for e in found[False, True][1].trace] == [6, 6, 2, 1, 1, 2, 1, 1, 2, 2]
    for plain in (True, False):
        torch.testing.assert_close(found[True, plain][0], found[False, plain][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", ["guided", "ended"])
def test_caches_and_stitches_keep_the_branches_apart(end, pipe):
    guidance = AdaptiveGuidance(SCALE, threshold=2.0 if end == "guided" else -1.0, min_steps=2)
    expected = images(pipe, Recipe(SIX, guidance=guidance))[0]
    cached = Recipe(SIX, guidance=guidance, cache=DeepCache(1, 1))
    assert torch.equal(images(pipe, cached)[0], expected)
    stitched = Recipe(SIX, guidance=guidance, stitch=TStitch(("small",), (0.5,)))
    assert torch.equal(images(pipe, stitched, models={"small": pipe.unet})[0], expected)
    shallow, run = images(pipe, Recipe(SIX, guidance=guidance, cache=DeepCache(2, 1)))
    assert not torch.equal(shallow, expected)
    assert run.strip != images(pipe, cached)[1].strip


@pytest.mark.parametrize("name", ["apg", "cfgpp", "linear_ag"])
def test_what_combines_two_predictions_is_refused(name, pipe):
    recipe = Recipe(SIX, guidance=method("guidance", name))
    with pytest.raises(
        IncompatibleError, match=r"by 3 predictions \(cond, image, uncond\).*guidance=cfg, interval or ag"
    ):
        recipe.check(pipe)


def test_a_call_without_its_branches_is_refused(pipe):
    with pytest.raises(AccelError, match="expects a batch of cond, image, uncond, but the denoiser got 2 rows"):
        images(pipe, Recipe(SIX, guidance=CFG(SCALE)), image_guidance_scale=0.5)
