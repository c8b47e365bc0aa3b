"""`Predictor`: what a pipeline would step with, as a function of (x, t), and a pipeline that nobody touched."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from snapshots import assert_same, snapshot
from tiny import dit_pipeline

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DEISScheduler
from accel.samplers.predictor import Predictor
from accel.suites.mixture import MixtureSuite
from accel.suites.pipeline import PixelPipeline

LABELS = [0, 3, 1]
T = 333.123456789  # a fraction that float32 does not hold


@pytest.fixture(scope="module")
def mixture() -> PixelPipeline:
    return MixtureSuite().pipeline()


@pytest.fixture(scope="module")
def dit_pipe():
    return dit_pipeline()


def noise(*shape: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def x_mixture(count: int = 3) -> torch.Tensor:
    return noise(count, 1, 2, 4)


def guided(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    return uncond + scale * (cond - uncond)


@torch.no_grad()
def direct(pipe: PixelPipeline, x: torch.Tensor, t, labels: list[int], scale: float) -> torch.Tensor:
    """The network itself, one call for each half."""
    net, dtype = pipe.unet, x.dtype

    def half(labels: list[int]) -> torch.Tensor:
        return net(x.to(net.dtype), t, class_labels=torch.tensor(labels), return_dict=False)[0].to(dtype)

    cond = half(labels)
    return cond if scale == 1 else guided(half([pipe.null_label] * len(labels)), cond, scale)


# --- the prediction


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("t", [0.0, T, 999.0])
def test_prediction_is_that_of_the_network_in_float64(mixture, t, scale):
    x = x_mixture()
    predict = Predictor(mixture, class_labels=LABELS, guidance_scale=scale)
    torch.testing.assert_close(predict(x, t), direct(mixture, x, t, LABELS, scale), rtol=0, atol=1e-13)
    assert predict.calls == 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_prediction_of_a_trained_network_is_the_same(pipe, scale):
    x, labels = noise(3, 1, 16, 16, dtype=torch.float32), [7, 0, 9]
    with torch.no_grad():
        found = Predictor(pipe, class_labels=labels, guidance_scale=scale)(x, 420.5)
    t = torch.tensor(420.5)  # UNet2DModel would cut a number that is no tensor down to an integer
    torch.testing.assert_close(found, direct(pipe, x, t, labels, scale), rtol=0, atol=2e-5)


def test_without_a_condition_only_the_sample_counts():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(4, 8),
                      norm_num_groups=4, down_block_types=("DownBlock2D",) * 2,
                      up_block_types=("UpBlock2D",) * 2).eval()  # fmt: skip
    pipe, x = PixelPipeline(net, DDPMScheduler()), noise(2, 3, 8, 8, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        assert torch.equal(Predictor(pipe, batch_size=2)(x, 500), net(x, 500).sample)


@pytest.mark.parametrize("channels", [4, 8], ids=["noise", "noise and variance"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_dit_with_the_condition_first_gives_one_half(scale, channels):
    """DiTPipeline draws its own noise, stacks (conditional, null) and hands both halves to the scheduler."""
    pipe = dit_pipeline(out_channels=channels)
    x, classes = noise(2, 4, 8, 8, dtype=torch.float32), [5, 900]
    found = Predictor(pipe, class_labels=classes, guidance_scale=scale)(x, 77.5)

    def half(labels):
        t = torch.full((2,), 77.5)
        return pipe.transformer(x, timestep=t, class_labels=torch.tensor(labels)).sample[:, :4]

    expected = half(classes) if scale == 1 else guided(half([1000] * 2), half(classes), scale)
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@torch.no_grad()
def test_stable_diffusion(scale):
    pytest.importorskip("transformers")  # diffusers imports the pipeline only with it
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4,
                               cross_attention_dim=8, attention_head_dim=4,
                               down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                               up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).eval()  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=4).eval()
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    pipe = StableDiffusionPipeline(vae, None, None, net, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    text, empty = noise(2, 3, 8, dtype=torch.float32, seed=1), torch.zeros(2, 3, 8)
    x = noise(2, 4, 8, 8, dtype=torch.float32)

    predict = Predictor(pipe, prompt_embeds=text, negative_prompt_embeds=empty, guidance_scale=scale, height=8, width=8)
    cond = net(x, 650.25, encoder_hidden_states=text).sample
    expected = cond if scale == 1 else guided(net(x, 650.25, encoder_hidden_states=empty).sample, cond, scale)
    torch.testing.assert_close(predict(x, 650.25), expected, rtol=0, atol=1e-5)
    float_betas = scheduler.alphas_cumprod.double()[[0, 400, 999]]
    alpha_bar = 1 / (1 + predict.schedule.rho(np.array([0, 400, 999])) ** 2)
    np.testing.assert_allclose(alpha_bar, float_betas, rtol=1e-4)


def test_arguments_of_the_pipeline_call_do_not_get_in_the_way(mixture):
    """What runs a pipeline may pass on the whole call."""
    x = x_mixture()
    plain = Predictor(mixture, class_labels=LABELS)(x, T)
    more = {"num_inference_steps": 30, "output_type": "np", "return_dict": False, "latents": 0 * x}
    assert torch.equal(Predictor(mixture, class_labels=LABELS, **more)(x, T), plain)


@pytest.mark.parametrize(
    "options",
    [{"final_sigma": "min"}, {"use_dynamic_shifting": True}, {"thresholding": True}, {"use_karras_sigmas": True},
     {"grid": [900.0, 3.0]}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_any_timestep_can_be_asked_for_whatever_the_scheduler_does(mixture, options):
    pipe = PixelPipeline(mixture.unet, DEISScheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    predict = Predictor(pipe, class_labels=LABELS)
    for t in (predict.schedule.t_min, T, predict.schedule.t_max):
        torch.testing.assert_close(predict(x_mixture(), t), direct(mixture, x_mixture(), t, LABELS, 1.0))


# --- gradients


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gradient_agrees_with_finite_differences(mixture, scale):
    predict = Predictor(mixture, class_labels=LABELS, guidance_scale=scale)
    x, direction, weight = x_mixture(), noise(3, 1, 2, 4, seed=1), noise(3, 1, 2, 4, seed=2)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (weight * predict(x, 300.5)).sum()

    inner = x.clone().requires_grad_()
    slope = (torch.autograd.grad(value(inner), inner)[0] * direction).sum()
    h = 1e-5
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert abs(slope) > 0.1
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=0)


def test_no_graph_is_kept_where_gradients_are_off(mixture):
    predict, x = Predictor(mixture, class_labels=LABELS), x_mixture().requires_grad_()
    assert predict(x, T).requires_grad
    with torch.no_grad():
        assert not predict(x, T).requires_grad


# --- a timestep for each row


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_timesteps_of_rows_equal_calls_row_by_row(mixture, scale):
    x, times = x_mixture(), torch.tensor([999.0, 12.25, 500.0])
    found = Predictor(mixture, class_labels=LABELS, guidance_scale=scale)(x, times)
    for i, t in enumerate(times.tolist()):
        alone = Predictor(mixture, class_labels=[LABELS[i]], guidance_scale=scale)(x[i : i + 1], t)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@torch.no_grad()
def test_timesteps_of_rows_on_networks(pipe, dit_pipe, scale):
    cases = ((pipe, noise(3, 1, 16, 16, dtype=torch.float32)), (dit_pipe, noise(3, 4, 8, 8, dtype=torch.float32)))
    for own, x in cases:
        found = Predictor(own, class_labels=LABELS, guidance_scale=scale)(x, torch.tensor([999.0, 12.25, 500.0]))
        for i, t in enumerate((999.0, 12.25, 500.0)):
            alone = Predictor(own, class_labels=[LABELS[i]], guidance_scale=scale)(x[i : i + 1], t)
            torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-4)


def test_timesteps_of_rows_inside_guidance(mixture):
    x, times = x_mixture(), torch.tensor([999.0, 12.25, 500.0])
    plain = Predictor(mixture, class_labels=LABELS, guidance_scale=2.0)(x, times)
    with accelerate(mixture, Recipe(guidance=CFG(2.0))) as run:
        predict = Predictor(mixture, run.clock, class_labels=LABELS, guidance_scale=2.0)
        torch.testing.assert_close(predict(x, times), plain, rtol=0, atol=1e-13)


def test_one_timestep_as_a_tensor_is_for_all_rows(mixture):
    predict, x = Predictor(mixture, class_labels=LABELS), x_mixture()
    for t in (torch.tensor(500), torch.tensor([500.0])):
        assert torch.equal(predict(x, t), predict(x, 500))


def test_another_number_of_timesteps_than_rows_is_refused(mixture):
    with pytest.raises(ConfigError, match="2 timesteps for 4 samples"):
        Predictor(mixture, class_labels=[0, 1, 2, 3])(x_mixture(4), torch.tensor([10.0, 20.0]))


# --- the pipeline afterwards


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("times", [T, torch.tensor([999.0, 12.25, 500.0])], ids=["one", "rows"])
def test_pipeline_is_what_it_was(pipe, times):
    x, labels = noise(3, 1, 16, 16, dtype=torch.float32), [7, 0, 9]
    before, state = snapshot(pipe), torch.random.get_rng_state()
    predict = Predictor(pipe, class_labels=labels, guidance_scale=2.0)
    assert_same(before, snapshot(pipe))
    with torch.no_grad():
        predict(x, times)
    assert_same(before, snapshot(pipe))
    assert torch.equal(torch.random.get_rng_state(), state)

    def interrupt(*args):
        raise Interrupted

    handle = pipe.unet.conv_out.register_forward_hook(interrupt)
    try:
        with contextlib.suppress(Interrupted):
            predict(x, times)
            pytest.fail("the network was not called")
    finally:
        handle.remove()
    assert_same(before, snapshot(pipe))
    with pytest.raises(ConfigError, match="class_labels"):
        Predictor(pipe, class_labels=[99] * 3)(x, times)
    assert_same(before, snapshot(pipe))
    assert predict.calls == 1


def test_forward_that_was_shadowed_before_is_put_back(mixture):
    with accelerate(mixture, Recipe(guidance=CFG(2.0))) as run:
        shadow, scheduler = mixture.unet.__dict__["forward"], mixture.scheduler
        predict = Predictor(mixture, run.clock, class_labels=LABELS, guidance_scale=2.0)
        for t in (T, torch.tensor([1.0, 2.0, 3.0])):
            predict(x_mixture(), t)
            assert mixture.unet.__dict__["forward"] is shadow
            assert mixture.scheduler is scheduler
    assert "forward" not in mixture.unet.__dict__


# --- inside accelerate


def test_guidance_of_the_recipe_is_followed_and_noted(mixture):
    x = x_mixture()
    schedule = Predictor(mixture).schedule
    interval = IntervalCFG(3.0, sigma_lo=float(schedule.rho(200)), sigma_hi=float(schedule.rho(600)))
    bare = {(s, t): direct(mixture, x, t, LABELS, s) for s in (1.0, 3.0) for t in (100.0, T, 800.0)}
    for guidance in (CFG(3.0), interval):
        with accelerate(mixture, Recipe(guidance=guidance)) as run:
            predict = Predictor(mixture, run.clock, class_labels=LABELS, guidance_scale=3.0)
            for t in (100.0, T, 800.0):
                on = guidance is not interval or t == T
                torch.testing.assert_close(predict(x, t), bare[3.0 if on else 1.0, t], rtol=0, atol=1e-12)
                (noted,) = run.trace
                assert (noted.rows, noted.mode, noted.timestep) == (6 if on else 3, "full", t)
                assert noted.sigma == pytest.approx(float(schedule.rho(t)), rel=1e-6)


def test_noted_evaluations_can_be_kept_for_the_trajectory_that_follows(mixture):
    with accelerate(mixture, Recipe(guidance=CFG(3.0))) as run:
        predict = Predictor(mixture, run.clock, class_labels=LABELS, guidance_scale=3.0)
        for t in (900, 500):
            predict(x_mixture(), t)
            run.clock.keep_as_prelude()
        mixture(class_labels=LABELS, guidance_scale=3.0, num_inference_steps=4, output_type="pt")
        assert run.nfe == 2 * (2 + 4)
        assert run.clock.runs == 1, "an evaluation outside of the loop is no trajectory"


@pytest.mark.parametrize("guidance", [CFG(3.0), IntervalCFG(3.0, 0.5, 20.0)], ids=lambda g: g.label)
@torch.no_grad()
def test_guidance_of_the_recipe_with_the_condition_first(dit_pipe, guidance):
    x, classes = noise(2, 4, 8, 8, dtype=torch.float32), [5, 900]
    bare = {s: Predictor(dit_pipe, class_labels=classes, guidance_scale=s) for s in (1.0, 3.0)}
    with accelerate(dit_pipe, Recipe(guidance=guidance)) as run:
        predict = Predictor(dit_pipe, run.clock, class_labels=classes, guidance_scale=3.0)
        found = {t: (predict(x, t), run.trace[0].rows) for t in (20.0, 600.0)}
    for t, (prediction, rows) in found.items():
        on = not isinstance(guidance, IntervalCFG) or t == 600
        assert rows == (4 if on else 2)
        torch.testing.assert_close(prediction, bare[3.0 if on else 1.0](x, t), rtol=0, atol=1e-5)


# --- conversions


KINDS = {
    "epsilon": lambda x0, eps, alpha, sigma: eps,
    "sample": lambda x0, eps, alpha, sigma: x0,
    "v_prediction": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}


@pytest.mark.parametrize("thresholding", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_output_becomes_noise_and_velocity(mixture, kind, thresholding):
    """The outputs that the prediction types define (Ho 2020; Salimans & Ho 2022, v; Liu et al. 2022, flow)."""
    if kind == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler()
    else:
        scheduler = DDPMScheduler(prediction_type=kind, thresholding=thresholding)
    predict = Predictor(PixelPipeline(mixture.unet, scheduler))
    x0, eps = noise(2, 1, 2, 4), noise(2, 1, 2, 4, seed=1)
    for t in (1.0, T, 999.0):
        if kind == "flow":
            alpha, sigma = 1 - t / 1000, t / 1000
        else:
            alpha_bar = np.exp(np.interp(t, np.arange(1000), np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))))
            alpha, sigma = (float(v) for v in predict.schedule.alpha_sigma(t))
            assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-14)
            assert alpha**2 == pytest.approx(alpha_bar, rel=1e-3)
        x, output = alpha * x0 + sigma * eps, KINDS[kind](x0, eps, alpha, sigma)
        torch.testing.assert_close(predict.to_eps(output, x, t), eps, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(predict.to_flow(output, x, t), eps - x0, rtol=0, atol=1e-9)


def test_velocity_at_the_beginning_of_a_flow_needs_no_division(mixture):
    predict = Predictor(PixelPipeline(mixture.unet, FlowMatchEulerDiscreteScheduler()))
    x0, eps = noise(2, 1, 2, 4), noise(2, 1, 2, 4, seed=1)
    assert torch.equal(predict.to_flow(eps - x0, eps, 1000.0), eps - x0)
    torch.testing.assert_close(predict.to_eps(eps - x0, eps, 1000.0), eps)
