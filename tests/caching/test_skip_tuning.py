"""Skip-Tuning: the ramp, the window, composition with caches, and where GroupNorm cancels it."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot

from accel.benches.architectures import ARCHITECTURES
from accel.caching import DeepCache, EncoderPropagation
from accel.caching.schedules import Uniform
from accel.caching.skip_tuning import SkipTuning, rho, straddling
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError


def by_hand(net, factors, inputs):
    """A forward in which the skip tensors themselves are multiplied: `factors` by number from the shallowest."""
    handles, below = [], 0
    for block in reversed(net.up_blocks):

        def before(module, args, kwargs, below=below):
            skips = args[1] if len(args) > 1 else kwargs["res_hidden_states_tuple"]
            scaled = tuple(s * factors[below + i] for i, s in enumerate(skips))
            return (args[0], scaled, *args[2:]), {k: v for k, v in kwargs.items() if k != "res_hidden_states_tuple"}

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        below += len(block.resnets)
    with torch.no_grad():
        output = net(**inputs)[0]
    for handle in handles:
        handle.remove()
    return output


def test_ramp_is_a_line_from_the_deepest_to_the_shallowest():
    assert [round(rho(n, 4, 0.7, 1.0), 6) for n in (4, 3, 2, 1)] == [0.7, 0.8, 0.9, 1.0]
    assert rho(1, 1, 0.5, 0.9) == 0.9


def test_every_skip_has_its_factor(pipe, run, ddim):
    seen = []
    count = 9
    tuning = SkipTuning(0.6, 1.1)
    with accelerate(pipe, Recipe(ddim(1), skip=tuning)) as traced:
        step = traced.scheduler.step

        def noted(output, t, sample, *args, **kwargs):
            seen.append((output.clone(), t, sample.clone()))
            return step(output, t, sample, *args, **kwargs)

        traced.scheduler.step = noted
        run()
    ((output, t, sample),) = seen
    inputs = {"sample": sample, "timestep": t, "class_labels": torch.tensor([0, 1]), "return_dict": False}
    expected = by_hand(pipe.unet, [rho(n, count, 0.6, 1.1) for n in range(1, count + 1)], inputs)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(output, by_hand(pipe.unet, [1.0] * count, inputs), atol=1e-3)


def test_factors_of_one_change_nothing_and_all_is_restored(pipe, run, ddim):
    before = snapshot(pipe)
    with accelerate(pipe, Recipe(ddim(4))):
        expected = run()
    with accelerate(pipe, Recipe(ddim(4), skip=SkipTuning(1.0, 1.0))):
        assert torch.equal(run(), expected)
    with accelerate(pipe, Recipe(ddim(4), skip=SkipTuning(0.5))):
        assert not torch.equal(run(), expected)
    assert not [b for b in pipe.unet.up_blocks if b._forward_pre_hooks]
    assert_same(before, snapshot(pipe))


def test_window_bounds_the_steps(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(4))):
        plain = run()
    images = {}
    for window in ((0, 1), (0, 0.5), (0.5, 1), (0, 0.2)):
        with accelerate(pipe, Recipe(ddim(4), skip=SkipTuning(0.5, begin=window[0], end=window[1]))):
            images[window] = run()
    assert all(not torch.equal(image, plain) for image in images.values())
    assert not torch.equal(images[0, 0.5], images[0.5, 1])
    with accelerate(pipe, Recipe(ddim(4), skip=SkipTuning(0.5, begin=0.0, end=0.25))):
        assert torch.equal(run(), images[0, 0.2]), "the first step alone"


@pytest.mark.parametrize(
    "cache", [DeepCache(1, 2), DeepCache(2, 9), EncoderPropagation(Uniform(1))], ids=lambda c: c.label
)
def test_caches_that_change_nothing_change_nothing_here(pipe, run, ddim, cache):
    """Steps that are full are those without a cache; at the deepest branch only the mid block is stale."""
    recipe = Recipe(ddim(2), skip=SkipTuning(0.6))
    with accelerate(pipe, recipe):
        expected = run()
    with accelerate(pipe, Recipe(ddim(2), skip=SkipTuning(0.6), cache=cache)):
        found = run()
    if cache == DeepCache(2, 9):
        assert 0 < (found - expected).abs().mean() < 0.1
    else:
        assert torch.equal(found, expected)


def test_stored_skips_are_scaled_once(pipe, run, ddim):
    """Encoder propagation on features of the same step: the decoder's output is the full one, not one scaled twice."""
    from accel.caching.decoder_view import DecoderView

    with accelerate(pipe, Recipe(ddim(1), skip=SkipTuning(0.6))) as traced:
        traced.scheduler.set_timesteps(1)
        x, labels = torch.randn(1, 1, 16, 16), torch.tensor([3])
        call = {"timestep": torch.tensor(999), "class_labels": labels, "return_dict": False}
        view = DecoderView(pipe.unet)
        traced.clock._locate(None)
        forward = type(pipe.unet).forward
        with torch.no_grad():
            (expected,), features = view.capture(lambda: forward(pipe.unet, sample=x, **call))
            (found,) = view.forward(features, sample=x, **call)
            (again,) = view.forward(features, sample=x, **call)
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_group_norm_cancels_the_factor_where_no_group_straddles():
    sd, _ = ARCHITECTURES["Stable Diffusion 1.5"].build()
    mixed = [number for number, mixes in straddling(sd).items() if mixes]
    assert len(straddling(sd)) == 12
    assert mixed == [3, 4, 6, 7]  # up3.0, up2.2, up2.0 and up1.2


@pytest.mark.parametrize("hidden", [8, 6])
def test_what_cancelling_means(hidden):
    """GroupNorm of (hidden, rho skip): equal to that of (hidden, skip) if and only if no group holds both."""
    norm, h, s = torch.nn.GroupNorm(4, 16, eps=1e-8), torch.randn(2, hidden, 5, 5), torch.randn(2, 16 - hidden, 5, 5)
    plain, scaled = norm(torch.cat([h, s], 1)), norm(torch.cat([h, 0.7 * s], 1))
    assert torch.allclose(plain, scaled, atol=1e-5) == (hidden % 4 == 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"bottom": -0.1}, "skip.bottom is -0.1"), ({"begin": 0.5, "end": 0.4}, "allowed: begin < end"),
     ({"end": 1.5}, "skip.end is 1.5")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        SkipTuning(**settings)


def test_a_network_without_skips_is_refused(ddim):
    from tiny import dit_pipeline

    with pytest.raises(IncompatibleError, match="has no down and up blocks"):
        Recipe(ddim(4), skip=SkipTuning()).check(dit_pipeline())
