"""Suite `digits_dit`: its shipped transformers, their pipeline, and stitching with the UNets of suite `digits`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shipped import check_shipped

from accel.config import choice_of
from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.evaluation.score import score, score_images
from accel.guidance.cfg import CFG
from accel.suites.base import ASSETS
from accel.suites.digits.dit import DigitsDiTSuite
from accel.suites.digits.models import NULL_LABEL, SCHEDULER, build_dit

SHIPPED = ASSETS / "digits_dit"


@pytest.fixture(scope="module")
def suite() -> DigitsDiTSuite:
    # Without the weights every test here fails with the remedy; they ship with the repository.
    suite = DigitsDiTSuite()
    suite.fingerprint()
    return suite


@pytest.fixture(scope="module")
def dit(suite):
    return suite.pipeline()


def dpmpp(steps: int):
    return choice_of("sampler", "dpmpp_2m", f"sampler.steps={steps}")


def images(suite, pipe, recipe: Recipe, count: int, models=None):
    with accelerate(pipe, recipe, models=models) as run:
        return generate(pipe, suite, recipe, 0, 0, count, count), run


def test_shipped_files_are_small_half_precision_and_listed():
    check_shipped(SHIPPED, 4e6)


def test_networks_and_scheduler_are_what_the_code_builds(suite, dit):
    assert type(dit.transformer).__name__ == "DiTTransformer2DModel"
    for size, net in (("large", dit.transformer), ("small", suite.models()["small"])):
        fresh = build_dit(size)
        assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert not net.training
    assert {k: dit.scheduler.config[k] for k in SCHEDULER} == SCHEDULER


def test_small_is_at_least_five_times_cheaper(suite, dit):
    inputs = (torch.zeros(1, 1, 16, 16), torch.tensor([5]), torch.tensor([1]))
    with torch.no_grad():
        large, small = (
            count_macs(lambda net=net: net(*inputs))[1] for net in (dit.transformer, suite.models()["small"])
        )
    assert large > 5 * small


def test_an_untrained_transformer_predicts_nothing():
    """DiT's zero initialisation: the output layer and every block's gates begin at zero."""
    net = build_dit("small")
    x = torch.randn(2, 1, 16, 16)
    assert net(x, torch.tensor([5, 900]), torch.tensor([1, NULL_LABEL])).sample.abs().max() == 0


def test_digits_are_recognised_and_near_the_reference(suite, dit):
    made, run = images(suite, dit, Recipe(dpmpp(15)), 100)
    assert run.nfe == 15
    conditions = suite.conditions(0, 100)
    found = score(suite, score_images(suite, made, conditions), None)
    assert found["accuracy"].value > 0.93
    assert found["fid_digits"].value < 6
    assert found["nearest"].value > 0.1, "not copies of training images"


def test_guidance_is_that_of_two_calls(dit):
    """One doubled batch [null, class] against two calls, and a timestep for every row."""
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = dit(class_labels=[3, 7], latents=x, num_inference_steps=1, guidance_scale=2.0, output_type="pt").images
    dit.scheduler.set_timesteps(1)
    t = dit.scheduler.timesteps[0]
    with torch.no_grad():
        null, cond = (
            dit.transformer(x, t.expand(2), torch.tensor(labels)).sample for labels in ([NULL_LABEL] * 2, [3, 7])
        )
    expected = dit.scheduler.step(null + 2.0 * (cond - null), t, x).prev_sample
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"at least one in 0\.\.9"):
        dit(class_labels=[11])


def test_a_transformer_and_a_unet_share_a_trajectory(suite, dit):
    """Pixels, noise schedule and classes are the same, so that a UNet may begin what a transformer ends."""
    for first in ("unet_small", "small"):
        stitch = replace(choice_of("stitch", "tstitch", "stitch.fractions=[0.4]"), models=(first,))
        made, run = images(suite, dit, Recipe(dpmpp(10), guidance=CFG(1.5), stitch=stitch), 20, suite.models())
        assert [e.model for e in run.trace] == [first] * 4 + ["base"] * 6
        conditions = suite.conditions(0, 20)
        assert suite.per_sample(made, conditions)["accuracy"].mean() > 0.85
