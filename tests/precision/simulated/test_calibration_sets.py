"""Calibration sets: which evaluations are looked at, at which timestep and on which state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG, AdaptiveGuidance
from accel.precision import FakeQuant
from accel.precision.simulated.calibration import record
from accel.precision.simulated.calibration_sets import DrawnTimesteps, StridedSteps
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 10, "ddim", {"set_alpha_to_one": True})
T = 1000


@pytest.fixture(scope="module")
def calls(pipe, digits):
    """The evaluations of five samples in a guided trajectory of ten steps."""
    recipe = Recipe(DDIM, guidance=CFG(2.0), precision=FakeQuant())
    ((batch,),) = record(pipe, recipe, lambda: generate(pipe, digits, recipe, 99, 0, 5, 5)).values()
    return batch


def drawn(calls, **settings):
    return list(DrawnTimesteps(**settings).chosen(calls, T, torch.Generator().manual_seed(3)))


def test_a_recording_holds_every_evaluation_as_it_was(pipe, digits, calls):
    assert [c.step for c in calls] == list(range(10))
    assert {c.steps for c in calls} == {10}
    seen = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    recipe = Recipe(DDIM, guidance=CFG(2.0))
    try:
        with accelerate(pipe, recipe):
            generate(pipe, digits, recipe, 99, 0, 5, 5)
    finally:
        handle.remove()
    for call, x in zip(calls, seen, strict=True):
        assert torch.equal(call.inputs.sample, x)
        assert float(call.inputs.kwargs["timestep"]) == call.timestep
        assert call.alpha**2 + call.sigma**2 == pytest.approx(1, abs=1e-6)
    assert not any(hasattr(m, "hook") for m in pipe.unet.modules())


def test_strides_take_all_samples_at_every_kth_step(calls):
    assert list(StridedSteps(stride=3).chosen(calls, T, torch.Generator())) == [calls[i] for i in (0, 3, 6, 9)]


def test_each_sample_stands_at_one_step_with_its_own_state(calls):
    chosen = drawn(calls, timesteps="uniform")
    rows = 0
    for call in chosen:
        own = next(c for c in calls if c.timestep == call.timestep)
        assert (call.inputs.kwargs["timestep"] == call.timestep).all()
        for x in call.inputs.sample:
            assert any(torch.equal(x, other) for other in own.inputs.sample)
        rows += call.inputs.rows
    assert rows == 2 * 5, "both halves of the guidance, each sample once"
    assert len({c.timestep for c in chosen}) > 1


def test_evaluations_of_samples_that_are_guided_no_more_are_passed_over(pipe, digits):
    """Their parts differ; what is drawn is of evaluations in which each sample has both of its halves, or one."""
    for threshold in (0.999, 0.998, 0.995, 0.99, 0.98, 0.97):
        recipe = Recipe(DDIM, guidance=AdaptiveGuidance(2.0, threshold), precision=FakeQuant())
        ((batch,),) = record(pipe, recipe, lambda: generate(pipe, digits, recipe, 99, 0, 5, 5)).values()  # noqa: B023
        uneven = [call for call in batch if call.inputs.uneven]
        if uneven and not batch[-1].inputs.uneven:
            break
    else:
        pytest.fail("all samples switch at once at every threshold")
    chosen = drawn(batch, timesteps="uniform")
    whole = [call for call in batch if not call.inputs.uneven and call.inputs.rows == batch[-1].inputs.rows]
    known = {call.step: call.inputs.sample for call in whole}
    assert sum(call.inputs.rows for call in chosen) == batch[-1].inputs.rows
    for call in chosen:
        assert call.step in known
        for x in call.inputs.sample:
            assert any(torch.equal(x, own) for own in known[call.step])


def test_the_released_pairing_shows_the_state_of_the_mirrored_noise_level(calls):
    """State of T - 1 - t, told that it is at t."""
    right = drawn(calls, timesteps="single", mean=0.1)
    wrong = drawn(calls, timesteps="single", mean=0.1, released=True)
    assert [c.timestep for c in right] == [c.timestep for c in wrong] == [calls[9].timestep] == [99.0]
    assert torch.equal(right[0].inputs.sample, calls[9].inputs.sample)
    assert torch.equal(wrong[0].inputs.sample, calls[1].inputs.sample)


def test_sources(calls):
    at = calls[6]
    noise, image, diffused = (
        drawn(calls, timesteps="single", mean=0.4, source=s)[0] for s in ("noise", "image", "diffused")
    )
    assert noise.timestep == image.timestep == diffused.timestep == at.timestep
    assert torch.equal(image.inputs.sample, calls[-1].inputs.sample)
    assert noise.inputs.sample.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(*noise.inputs.sample.chunk(2)), "both halves of the guidance see one state"
    rest = (diffused.inputs.sample - at.alpha * calls[-1].inputs.sample) / at.sigma
    torch.testing.assert_close(rest, noise.inputs.sample, atol=1e-5, rtol=1e-5)


def test_timesteps_follow_their_distribution():
    generator = torch.Generator().manual_seed(0)
    t = DrawnTimesteps(mean=0.4, deviation=0.1).draw(20000, T, generator)
    assert t.mean().item() == pytest.approx(400, abs=3)
    assert t.std().item() == pytest.approx(100, abs=3)
    wide = DrawnTimesteps(mean=0.4, deviation=0.4).draw(20000, T, generator)
    assert (wide == 0).float().mean().item() == pytest.approx(0.159, abs=0.01)  # clamped, as in the released code
    assert (wide == T - 1).float().mean().item() == pytest.approx(0.067, abs=0.01)
    assert set(DrawnTimesteps(timesteps="single", mean=0.5).draw(3, T, generator).tolist()) == {500.0}
    uniform = DrawnTimesteps(timesteps="uniform").draw(20000, T, generator)
    assert uniform.mean().item() == pytest.approx(499.5, abs=8)


def test_replayed_ranges_are_those_of_the_chosen_evaluations(pipe, digits):
    recipe = Recipe(DDIM, precision=FakeQuant(calibration=StridedSteps(stride=5)))
    sample = lambda *drawn: generate(pipe, digits, recipe, 99, 0, 3, 3)  # noqa: E731
    found = recipe.precision.calibrate(pipe, recipe, sample)["base"]["conv_in"]
    ((batch,),) = record(pipe, recipe, sample).values()
    seen = torch.cat([batch[0].inputs.sample, batch[5].inputs.sample])
    assert found.tolist() == [seen.min().item(), seen.max().item()]
    whole = replace(recipe, precision=FakeQuant())
    every = whole.precision.calibrate(pipe, whole, sample)["base"]["conv_in"]
    assert every[0] <= found[0]
    assert found[1] <= every[1]


def test_replayed_sets_are_refused_under_a_cache_with_the_way_out(pipe):
    recipe = Recipe(DDIM, cache=DeepCache(2, 1), precision=FakeQuant(calibration=DrawnTimesteps()))
    with pytest.raises(IncompatibleError, match=r"do not know the cached features.*Trajectories"):
        recipe.check(pipe)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"unknown calibration.timesteps 'gauss'"):
        DrawnTimesteps(timesteps="gauss")
    with pytest.raises(ConfigError, match=r"unknown calibration.source 'images'. Did you mean image"):
        DrawnTimesteps(source="images")
    with pytest.raises(ConfigError, match=r"calibration.stride is 0"):
        StridedSteps(stride=0)
