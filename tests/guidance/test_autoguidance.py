"""Autoguidance: two networks, one condition."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import AutoGuidance
from accel.precision import FakeQuant
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True, "clip_sample": False})


def test_prediction_is_the_extrapolation_by_hand(pipe, models, run):
    with accelerate(pipe, Recipe(DDIM, guidance=AutoGuidance(2.5)), models=models) as traced:
        found = run()
    assert [(e.model, e.rows) for e in traced.trace] == [("base", 2), ("small", 2)] * 4
    assert traced.nfe == 8
    scheduler = DDIM.build(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    x = torch.cat([torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            good, bad = (net(x, t, class_labels=torch.tensor([0, 1])).sample for net in (pipe.unet, models["small"]))
            x = scheduler.step(bad + 2.5 * (good - bad), t, x).prev_sample
    assert torch.equal(found, x)


def test_macs_are_those_of_both_networks(pipe, models, run):
    def macs(guidance, net=None):
        with accelerate(net or pipe, Recipe(DDIM, guidance=guidance), models=models, count_macs=True) as traced:
            run()
        return traced.macs

    both = macs(AutoGuidance(2.0))
    plain = macs(None)
    assert plain < both < 2 * plain


def test_cache_serves_each_network_and_precision_reaches_both(pipe, models, run):
    recipe = Recipe(DDIM, guidance=AutoGuidance(2.0), cache=DeepCache(2, 2))
    with accelerate(pipe, recipe, models=models) as traced:
        run()
    modes = ["full", "full", "shallow", "shallow"] * 2
    assert [e.mode for e in traced.trace] == modes
    recipe = Recipe(DDIM, guidance=AutoGuidance(2.0), precision=FakeQuant(8, 8))
    assert set(recipe.precision.calibrate(pipe, recipe, lambda *drawn: run(), models)) == {"base", "small"}


def test_unconditional_networks_can_guide():
    from tiny import pixels

    def net(seed):
        torch.manual_seed(seed)
        return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
                           down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip

    pipe = pixels(net(0), DDIMScheduler(clip_sample=False))
    with accelerate(pipe, Recipe(DDIM, guidance=AutoGuidance(2.0, "other")), models={"other": net(1)}) as traced:
        pipe(batch_size=1, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert traced.nfe == 8


def test_what_cannot_guide(pipe, models):
    with pytest.raises(ConfigError, match=r"unknown guidance model 'smal'. Did you mean small"):
        Recipe(DDIM, guidance=AutoGuidance(2.0, "smal")).check(pipe, models)
    with pytest.raises(ConfigError, match="unknown guidance model 'classifier'"):
        Recipe(DDIM, guidance=AutoGuidance(2.0, "classifier")).check(pipe, models)
    with pytest.raises(IncompatibleError, match="there is no other model to guide with, but 'small' is named"):
        Recipe(DDIM, guidance=AutoGuidance()).check(pipe)
    with pytest.raises(IncompatibleError, match="autoguidance by 'small' is nothing where the stitch"):
        Recipe(DDIM, guidance=AutoGuidance(), stitch=TStitch()).check(pipe, models)
    Recipe(DDIM, guidance=AutoGuidance(model="tiny"), stitch=TStitch()).check(pipe, models | {"tiny": models["small"]})
    with pytest.raises(ConfigError, match=r"guidance.weight is 0.5"):
        AutoGuidance(0.5)


def test_a_network_of_another_latent_space_is_refused(pipe):
    other = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    with pytest.raises(IncompatibleError, match=r"autoguidance needs models of one latent space.*guidance=none"):
        Recipe(DDIM, guidance=AutoGuidance(2.0, "other")).check(pipe, {"other": other})
