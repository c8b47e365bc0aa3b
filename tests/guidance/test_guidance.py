"""Guidance at the denoiser seam on both batch layouts, and diffusers' DiTPipeline through every axis."""

from __future__ import annotations

import contextlib

import pytest
import torch
from snapshots import assert_same, snapshot
from tiny import dit, dit_pipeline, run_dit

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, IncompatibleError
from accel.guidance import CFG, IntervalCFG
from accel.precision import Cast, FakeQuant
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
NEVER = {"sigma_lo": 1e6, "sigma_hi": 2e6}


@pytest.fixture
def dit_pipe():
    return dit_pipeline()


def outputs(pipe, net, recipe, call):
    """(inputs, prediction) of every call that the pipeline makes of its denoiser inside `recipe`, and the Run."""
    seen = []
    with accelerate(pipe, recipe) as traced:
        forward = net.forward

        def spy(*args, **kwargs):
            result = forward(*args, **kwargs)
            seen.append((args, kwargs, result[0] if isinstance(result, tuple) else result.sample))
            return result

        net.forward = spy
        try:
            call(recipe.guidance_scale)
        finally:
            net.forward = forward
    return seen, traced


# --- diffusers' DiTPipeline: (conditional, null), and the scheduler gets both halves


def test_interval_over_everything_equals_cfg_and_the_bare_pipeline(dit_pipe):
    dit_pipe.scheduler = DDIM.build(dit_pipe.scheduler.config)
    bare = run_dit(dit_pipe, 3.0)
    for guidance in (CFG(3.0), IntervalCFG(3.0)):
        with accelerate(dit_pipe, Recipe(DDIM, guidance=guidance)) as traced:
            assert torch.equal(run_dit(dit_pipe, 3.0), bare)
        assert [e.rows for e in traced.trace] == [4] * 4
        assert traced.nfe == 8
    assert not torch.equal(bare, run_dit(dit_pipe, 1.0))


def test_never_guided_is_the_conditional_prediction(dit_pipe):
    """Taking the wrong half would give the null class: the images of class 1000."""
    with accelerate(dit_pipe, Recipe(DDIM)) as plain:
        conditional = run_dit(dit_pipe, 1.0)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        null = dit_pipe([1000, 1000], 1.0, generators, output_type="pt").images
    assert plain.nfe == 4
    with accelerate(dit_pipe, Recipe(DDIM, guidance=IntervalCFG(3.0, **NEVER))) as traced:
        never = run_dit(dit_pipe, 3.0)
    assert torch.equal(never, conditional)
    assert (conditional - null).abs().max() > 1e-3
    assert [e.rows for e in traced.trace] == [2] * 4
    assert traced.nfe == 4


def test_rows_are_counted_step_by_step(dit_pipe):
    with accelerate(dit_pipe, Recipe(DDIM, guidance=IntervalCFG(3.0, 0.5, 20.0)), count_macs=True) as part:
        run_dit(dit_pipe, 3.0, count=3)
    inside = [0.5 < e.sigma <= 20.0 for e in part.trace]
    assert True in inside
    assert False in inside
    assert [e.rows for e in part.trace] == [6 if i else 3 for i in inside]
    assert part.nfe == sum(2 if i else 1 for i in inside)
    single, double = ({e.macs for e in part.trace if e.rows == rows} for rows in (3, 6))
    assert 2 * single.pop() == double.pop()


def test_what_the_transformer_pipeline_gets_back(dit_pipe):
    seen, _ = outputs(
        dit_pipe, dit_pipe.transformer, Recipe(DDIM, guidance=IntervalCFG(3.0, **NEVER)), lambda s: run_dit(dit_pipe, s)
    )
    for (hidden,), kwargs, predicted in seen:
        assert kwargs["class_labels"].tolist() == [7, 14, 1000, 1000]
        assert torch.equal(predicted[:2], predicted[2:])
        rows = {"timestep": kwargs["timestep"][:2], "class_labels": kwargs["class_labels"][:2]}
        with torch.no_grad():
            assert torch.equal(predicted[:2], dit_pipe.transformer(hidden[:2], **rows).sample)


def test_learned_sigma_keeps_its_channels(dit_pipe):
    """Checkpoints such as DiT-XL/2 predict eight channels; DiTPipeline guides the first four."""
    pipe = dit_pipeline(out_channels=8)
    with accelerate(pipe, Recipe(DDIM)):
        conditional = run_dit(pipe, 1.0)
    with accelerate(pipe, Recipe(DDIM, guidance=IntervalCFG(3.0, **NEVER))):
        assert torch.equal(run_dit(pipe, 3.0), conditional)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("guidance", [CFG(3.0), IntervalCFG(3.0, **NEVER)], ids=["cfg", "interval"])
def test_transformer_pipeline_called_without_guidance_is_an_error(dit_pipe, guidance, count):
    """Two plain images look like one doubled image to whoever counts rows."""
    with accelerate(dit_pipe, Recipe(DDIM, guidance=guidance)), pytest.raises(AccelError, match="guidance_scale=3"):
        run_dit(dit_pipe, 1.0, count=count)


# --- pixel pipeline: (null, conditional), and the scheduler gets the images


def test_both_halves_are_the_networks_own_predictions(pipe, run):
    def halves(guidance):
        return outputs(pipe, pipe.unet, Recipe(DDIM, guidance=guidance), lambda scale: run(scale, count=2, first=3))

    for guidance, inside in ((CFG(2.5), True), (IntervalCFG(2.5, **NEVER), False)):
        seen, traced = halves(guidance)
        assert len(seen) == 4
        for (x, t), kwargs, predicted in seen:
            assert kwargs["class_labels"].tolist() == [10, 10, 3, 4]
            u, c = predicted.chunk(2)
            with torch.no_grad():
                null, own = (pipe.unet(x[:2], t, class_labels=torch.tensor(y)).sample for y in ([10, 10], [3, 4]))
            torch.testing.assert_close(c, own, atol=1e-4, rtol=1e-4)
            if inside:
                torch.testing.assert_close(u, null, atol=1e-4, rtol=1e-4)
                assert (u - c).abs().max() > 1e-2, "the classes differ"
            else:
                assert torch.equal(u, c)
        assert traced.nfe == (8 if inside else 4)


def test_interval_borders_belong_to_the_lower_side(pipe, run):
    """Eq. 5 of the paper: sigma_lo < sigma <= sigma_hi."""
    with accelerate(pipe, Recipe(DDIM)) as plain:
        run()
    sigmas = [e.sigma for e in plain.trace]
    assert sigmas == sorted(sigmas, reverse=True)
    with accelerate(pipe, Recipe(DDIM, guidance=IntervalCFG(2.0, sigmas[2], sigmas[1]))) as traced:
        run(2.0)
    assert [e.rows for e in traced.trace] == [2, 4, 2, 2]


def test_unconditional_network_has_nothing_to_guide():
    from diffusers import DDPMScheduler, UNet2DModel

    from accel.suites.pipeline import PixelPipeline

    net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
                      down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    pipe = PixelPipeline(net, DDPMScheduler())
    Recipe(DDIM).check(pipe)
    with pytest.raises(IncompatibleError, match="'base' has neither classes nor cross-attention; use guidance=none"):
        Recipe(DDIM, guidance=CFG(2.0)).check(pipe)


# --- the other axes on the transformer pipeline


def test_unet_cache_is_refused_on_a_transformer(dit_pipe):
    state = snapshot(dit_pipe)
    said = r"base \(DiTTransformer2DModel\) has no down and up blocks"
    with pytest.raises(IncompatibleError, match=said), accelerate(dit_pipe, Recipe(DDIM, cache=DeepCache())):
        pass
    assert_same(state, snapshot(dit_pipe))


@pytest.mark.parametrize("precision", [FakeQuant(8, 8), FakeQuant(4, 32), Cast("bfloat16")], ids=lambda p: p.label)
def test_precision_on_a_transformer(dit_pipe, precision):
    recipe = Recipe(DDIM, guidance=CFG(3.0), precision=precision)
    plain = Recipe(DDIM, guidance=CFG(3.0))
    with accelerate(dit_pipe, plain):
        exact = run_dit(dit_pipe, 3.0)
    state, artefacts = snapshot(dit_pipe), None
    if precision.calibrated:
        artefacts = recipe.precision.calibrate(dit_pipe, recipe, lambda *drawn: run_dit(dit_pipe, 3.0))
        assert_same(state, snapshot(dit_pipe))
    with accelerate(dit_pipe, recipe, artefacts=artefacts) as traced:
        images = run_dit(dit_pipe, 3.0)
    assert 0 < (images.float() - exact).square().mean().sqrt() < 0.05
    assert traced.nfe == 8
    assert_same(state, snapshot(dit_pipe))
    with contextlib.suppress(KeyError), accelerate(dit_pipe, recipe, artefacts=artefacts):
        run_dit(dit_pipe, 3.0)
        raise KeyError
    assert_same(state, snapshot(dit_pipe))
    with accelerate(dit_pipe, plain):
        assert torch.equal(run_dit(dit_pipe, 3.0), exact)


def test_transformer_without_classes_is_conditional_by_its_embedding():
    """DiT's classes are `num_embeds_ada_norm`, not `num_class_embeds`."""
    CFG(2.0).check({"base": dit()}, Recipe())
