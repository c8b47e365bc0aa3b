"""Score-SDE samplers on Gaussian data, whose score is known: N(MEAN, STD^2) in each of the dimensions.

The score is then linear, so that a predictor step is affine: x' = A x + c + S z. `moments` reads A, c and S off three
samples and propagates mean and variance through the scheduler exactly; only what concerns the corrector, whose step
depends on norms, is measured on many dimensions.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from accel.config import choice_of
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.registry import method
from accel.samplers import DiffusersSampler, PredictorCorrectorScheduler
from accel.samplers.grids import Grid
from accel.testing.elsewhere import DEVICE, Elsewhere

MEAN, STD = 0.5, 0.4
PREDICTORS = ["reverse_diffusion", "ancestral", "euler_maruyama"]
BOTH = list(itertools.product(PREDICTORS, ["vp", "ve"]))
SHAPE = (4, 1, 64, 64)


def scheduler(**options) -> PredictorCorrectorScheduler:
    return PredictorCorrectorScheduler(**options)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def eps_of(x_t: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[eps | x_t], from the joint Gaussian of x_0 and x_t."""
    return sigma * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def output_of(x_t: torch.Tensor, alpha: float, sigma: float, kind: str) -> torch.Tensor:
    eps = eps_of(x_t, alpha, sigma)
    x0 = (x_t - sigma * eps) / alpha
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]


def advance(made: PredictorCorrectorScheduler, x, generator, count: int | None = None, begin: int = 0) -> torch.Tensor:
    """`count` evaluations further (None: to the end), each with the exact model; a new scheduler starts at `begin`."""
    begin = made.step_index or made.begin_index or begin
    for index in range(begin, len(made.timesteps) if count is None else begin + count):
        t = made.timesteps[index]
        alpha, sigma = (float(v) for v in made.schedule.alpha_sigma(float(t)))
        output = output_of(made.scale_model_input(x, t), alpha, sigma, made.config.prediction_type)
        x = made.step(output, t, x, generator=generator).prev_sample
    return x


def begin(steps: int, **options) -> PredictorCorrectorScheduler:
    made = scheduler(**options)
    made.set_timesteps(steps)
    return made


def marginal(made: PredictorCorrectorScheduler, index: int = 0) -> tuple[float, float]:
    """Mean and variance of the state at noise level `index`."""
    alpha, sigma = made.nodes.alpha[index], made.nodes.sigma[index]
    scale = 1.0 if made.config.sde == "vp" else 1 / alpha
    return scale * alpha * MEAN, scale**2 * (alpha**2 * STD**2 + sigma**2)


def moments(steps: int, **options) -> tuple[float, float]:
    """Mean and variance of the samples of a predictor, started in the right marginal; exact."""
    made = begin(steps, corrector="none", **options)
    mean, variance = marginal(made)
    for i in range(steps):
        same, other = draw(2 * i, 1).item(), draw(2 * i + 1, 1).item()
        x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
        out = advance(made, x, generators(2 * i, 2 * i, 2 * i + 1), 1).flatten()
        a, s = float(out[0] - out[1]), float(out[1] - out[2]) / (same - other)
        mean, variance = a * mean + float(out[1]) - s * same, a**2 * variance + s**2
    return mean, variance


# --- convergence to the data


@pytest.mark.parametrize(("predictor", "sde"), BOTH)
def test_bias_of_mean_and_variance_vanishes_with_the_steps(predictor, sde):
    """To first order or faster: twice the steps, at most 0.6 of the bias. The ends t = 0 and T are no part of it."""
    found = {n: moments(n, predictor=predictor, sde=sde) for n in (125, 250, 500)}
    bias = {n: np.hypot(mean - MEAN, variance - STD**2) for n, (mean, variance) in found.items()}
    assert bias[250] < 0.6 * bias[125]
    assert bias[500] < 0.6 * bias[250]
    assert bias[500] < 0.02


def test_the_views_agree_ever_better_with_the_steps():
    """x_t and x_t / alpha are two discretisations of one SDE."""
    for predictor in PREDICTORS:
        gap = [np.abs(np.subtract(*(moments(n, predictor=predictor, sde=s) for s in ("vp", "ve")))).max()
               for n in (100, 400)]  # fmt: skip
        assert gap[1] < 0.5 * gap[0] + 1e-9, predictor
        assert gap[1] < 0.02, predictor


@pytest.mark.parametrize(("predictor", "sde"), BOTH)
def test_corrected_samples_have_the_datas_mean_and_variance(predictor, sde):
    """Langevin at snr 0.16 widens the variance by about snr^2 = 2.6 %, the last step at small sigma hardly."""
    made = begin(100, predictor=predictor, sde=sde)
    assert len(made.timesteps) == 200
    x = advance(made, draw(0, *SHAPE) * made.init_noise_sigma, generators(1, 2, 3, 4))
    assert x.mean() == pytest.approx(MEAN, abs=0.03)
    assert x.std() == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("start", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_langevin_alone_settles_at_its_stationary_variance(sde, start):
    """r = variance / marginal variance: in its units x' = (1 - u) x + sqrt(2 u) z, u = 2 a snr^2 / r.

    So r = 1 + a snr^2; a is 1 - beta (vp) or 1 (ve). The mean comes to the marginal's, and at snr -> 0 the marginal is
    invariant.
    """
    made = begin(20, sde=sde, corrector_steps=150, snr=0.5, predictor="none")
    level = 10
    made.set_begin_index(level * 150)
    mean, variance = marginal(made, level)
    x = mean + start * variance**0.5 * draw(0, *SHAPE)
    x = advance(made, x, generators(1, 2, 3, 4), 150)
    a = (made.nodes.alpha[level] / made.nodes.alpha[level + 1]) ** 2 if sde == "vp" else 1.0
    assert (sde == "vp") == (a < 0.7), "or the two would not differ here"
    assert x.var() / variance == pytest.approx(1 + 0.25 * a, rel=0.04)  # 16,384 numbers: 1.1 % standard error
    assert x.mean() == pytest.approx(mean, abs=0.05 * variance**0.5)


def test_annealed_langevin_dynamics_follows_the_levels():
    made = begin(200, sde="ve", predictor="none", corrector_steps=4, snr=0.3, grid="exponential")
    x = advance(made, draw(0, *SHAPE) * made.init_noise_sigma, generators(1, 2, 3, 4))
    assert x.mean() == pytest.approx(MEAN, abs=0.05)
    assert x.std() == pytest.approx(STD * (1 + 0.09) ** 0.5, abs=0.03)


# --- formulas


@pytest.mark.parametrize(("predictor", "sde"), BOTH)
def test_predictor_step_by_hand(predictor, sde):
    made = begin(8, predictor=predictor, sde=sde, corrector="none")
    made.set_begin_index(3)
    x, eps = draw(0, 2, 1, 2, 2), draw(1, 2, 1, 2, 2)
    found = made.step(eps, made.timesteps[3], x, generator=generators(5, 6)).prev_sample
    z = torch.stack([draw(5, 1, 2, 2), draw(6, 1, 2, 2)])
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[int(t) for t in made.timesteps[3:5]]]
    if sde == "ve":
        v = (1 - bar) / bar  # rho^2
        g = -eps / v[0] ** 0.5
        std = (v[1] * (v[0] - v[1]) / v[0]) ** 0.5 if predictor == "ancestral" else (v[0] - v[1]) ** 0.5
        expected = x + (v[0] - v[1]) * g + std * z
    else:
        beta, g = 1 - bar[0] / bar[1], -eps / (1 - bar[0]) ** 0.5
        rate = -np.log(1 - beta)
        expected = {
            "reverse_diffusion": 2 * x - (1 - beta) ** 0.5 * x + beta * g + beta**0.5 * z,
            "ancestral": (x + beta * g) / (1 - beta) ** 0.5 + beta**0.5 * z,
            "euler_maruyama": x + rate * (x / 2 + g) + rate**0.5 * z,
        }[predictor]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_langevin_step_by_hand_comes_before_the_predictor(sde):
    """Each sample has its own step size: the second one's score is three times the first's."""
    made = begin(8, sde=sde, snr=0.2)
    x, eps = draw(0, 2, 1, 2, 2), draw(1, 1, 1, 2, 2).repeat(2, 1, 1, 1)
    eps[1] *= 3
    found = made.step(eps, made.timesteps[0], x, generator=generators(5, 6)).prev_sample
    z = torch.stack([draw(5, 1, 2, 2), draw(6, 1, 2, 2)])
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[int(t) for t in (made.timesteps[0], made.timesteps[2])]]
    assert made.timesteps[0] == made.timesteps[1], "predictor and corrector at one noise level"
    g = -eps / ((1 - bar[0]) ** 0.5 if sde == "vp" else ((1 - bar[0]) / bar[0]) ** 0.5)
    a = bar[0] / bar[1] if sde == "vp" else 1.0
    for i in range(2):
        e = 2 * a * (0.2 * z[i].norm() / g[i].norm()) ** 2
        torch.testing.assert_close(found[i], x[i] + e * g[i] + (2 * e) ** 0.5 * z[i], rtol=1e-10, atol=1e-10)


def test_betas_are_the_grids_own():
    """On the full grid they are the model's betas, so that reverse diffusion is the discrete chain's."""
    made = begin(1000, corrector="none")
    betas = np.linspace(1e-4, 0.02, 1000)[::-1]
    found = np.array([c for _, _, c in made._steps[:-1]]) ** 2
    np.testing.assert_allclose(found, betas[:-1], rtol=1e-9)


def test_mean_of_vp_ancestral_is_the_ve_predictors():
    """(x + beta g) / sqrt(1 - beta), divided by alpha, is x / alpha + d g: they differ in the noise only."""
    vp, ve = (begin(6, predictor="ancestral", sde=s, corrector="none") for s in ("vp", "ve"))
    for i, ((a, b, _), (one, d, _)) in enumerate(zip(vp._steps, ve._steps, strict=True)):
        ratio = vp.nodes.alpha[i] / vp.nodes.alpha[i + 1]
        assert one == 1.0
        assert a * ratio == pytest.approx(1.0, rel=1e-12)
        assert b / vp.nodes.alpha[i + 1] == pytest.approx(d, rel=1e-9)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_prediction_types_agree(sde, kind):
    results = []
    for prediction in ("epsilon", kind):
        made = begin(5, sde=sde, prediction_type=prediction)
        results.append(advance(made, draw(0, 2, 1, 2, 2) * made.init_noise_sigma, generators(1, 2)))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


def test_thresholding_bounds_what_the_step_leads_to():
    """A step of VE, or of VP's ancestral predictor, to sigma = 0 gives the predicted x_0, so the thresholded one."""
    for options in ({"sde": "ve"}, {"sde": "vp", "predictor": "ancestral"}):
        made = begin(1, corrector="none", thresholding=True, dynamic_thresholding_ratio=0.5, **options)
        x = made.init_noise_sigma * draw(0, 2, 1, 4, 4)
        found = made.step(torch.zeros_like(x), made.timesteps[0], x).prev_sample
        assert found.abs().max() == pytest.approx(1.0, abs=1e-6)
        assert (found.abs() > 0.999).double().mean() >= 0.5, "all above the median are cut"
        assert torch.equal(found.sign(), x.sign())


# --- ends


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize(("predictor", "sde"), BOTH)
def test_last_step_has_no_noise_and_the_others_have(predictor, sde, final):
    made = begin(3, predictor=predictor, sde=sde, final_sigma=final, grid="linspace")
    x = advance(made, draw(0, 2, 1, 2, 2), generators(1, 2), 4)
    for more, same in ((1, False), (1, True)):  # the last corrector, then the last predictor
        outcomes = [advance(copy.deepcopy(made), x, generators(seed, seed + 1), more) for seed in (3, 7)]
        assert torch.equal(*outcomes) == same
        x = advance(made, x, generators(1, 2), more)
    assert (made.nodes.sigma[-1] == made.sigmas[-1] == 0) == (final == "zero")


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("predictor", [*PREDICTORS, "none"])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_finite_for_few_steps(sde, predictor, steps):
    for options in ({}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        made = begin(steps, sde=sde, predictor=predictor, **options)
        x = advance(made, draw(0, 2, 1, 4, 4) * made.init_noise_sigma, generators(1, 2))
        assert torch.isfinite(x).all()


def test_a_vanishing_score_takes_no_step():
    made = begin(3)
    x = draw(0, 2, 1, 2, 2)
    eps = draw(1, 2, 1, 2, 2)
    eps[0] = 0
    found = made.step(eps, made.timesteps[0], x, generator=generators(1, 2)).prev_sample
    assert torch.equal(found[0], x[0])
    assert not torch.equal(found[1], x[1])
    assert torch.isfinite(found).all()


# --- noise


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_samples_do_not_depend_on_their_batch(sde):
    x = draw(0, 3, 1, 4, 4)
    together = advance(begin(4, sde=sde), x, generators(1, 2, 3))
    alone = advance(begin(4, sde=sde), x[1:2], generators(2))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)
    assert (together[0] - advance(begin(4, sde=sde), x[:1], generators(2))[0]).abs().max() > 0.1, "its own generator"


def test_one_generator_none_and_lists():
    x = draw(0, 3, 1, 2, 2)
    a, b = (advance(begin(4), x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(a, advance(begin(4), x, generators(1))), "a list of one is one"
    torch.manual_seed(1)
    first = advance(begin(4), x, None)
    assert not torch.equal(first, advance(begin(4), x, None))
    with pytest.raises(ConfigError, match="list of 2 for 3 samples; allowed: one generator, or one for each"):
        advance(begin(4), x, generators(1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_half_precision_steps_in_float32(dtype):
    x = (0.3 * draw(0, 2, 1, 4, 4)).to(dtype)
    inner = dtype if dtype == torch.float64 else torch.float32
    found, expected = (begin(4).step(v, 999, v, generator=generators(1, 2)).prev_sample for v in (x, x.to(inner)))
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize(("predictor", "sde"), BOTH)
def test_snr_zero_is_the_predictor_alone(predictor, sde):
    x = draw(0, 2, 1, 2, 2)
    alone, zero, some = (advance(begin(5, predictor=predictor, sde=sde, **options), x, generators(1, 2))
                         for options in ({"corrector": "none"}, {"snr": 0.0, "corrector_steps": 2}, {}))  # fmt: skip
    assert torch.equal(alone, zero)
    assert not torch.equal(alone, some)


# --- as a diffusers scheduler


@pytest.mark.parametrize(
    ("options", "order"),
    [({}, 2), ({"corrector_steps": 3}, 4), ({"corrector": "none"}, 1), ({"predictor": "none"}, 1),
     ({"predictor": "none", "corrector_steps": 2}, 2), ({"corrector": "none", "corrector_steps": 3}, 1)],
)  # fmt: skip
def test_evaluations_of_a_step(options, order):
    made = begin(5, **options)
    assert made.order == PredictorCorrectorScheduler.stages(options) == order
    assert len(made.timesteps) == 5 * order
    assert made.timesteps.reshape(5, order).unique(dim=1).shape == (5, 1)
    assert len(made.timesteps.unique()) == 5
    assert DiffusersSampler("PredictorCorrectorScheduler", 5, options=options).evaluations == 5 * order
    assert len(made.sigmas) == 5 * order + 1


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_image_to_image_begins_at_a_step(sde):
    """From the marginal of level k, made by `add_noise`, and found by its timestep or by the begin index."""
    made = begin(40, sde=sde, corrector_steps=2)
    k, x0 = 20, MEAN + STD * draw(0, *SHAPE)
    t = made.timesteps[3 * k]
    x = made.add_noise(x0, draw(1, *SHAPE), t.repeat(4))
    mean, variance = marginal(made, k)
    assert x.mean() == pytest.approx(mean, abs=0.05 * variance**0.5)
    assert x.var() == pytest.approx(variance, rel=0.05)
    torch.testing.assert_close(x[:1], made.add_noise(x0[:1], draw(1, *SHAPE)[:1], t))
    indexed = copy.deepcopy(made)
    indexed.set_begin_index(3 * k)
    found = advance(indexed, x, generators(1, 2, 3, 4))
    assert found.std() == pytest.approx(STD, abs=0.05)
    assert torch.equal(found, advance(made, x, generators(1, 2, 3, 4), begin=3 * k)), "by the timestep"


def test_ve_is_scaled_as_diffusers_euler():
    """On one grid: initial noise, the model's input, and noised images."""
    from diffusers import EulerDiscreteScheduler

    options = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "leading"}
    ours, theirs = scheduler(**options, sde="ve"), EulerDiscreteScheduler(**options)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)
    theirs.set_timesteps(9)
    ours.set_timesteps(timesteps=theirs.timesteps.tolist())
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)
    assert ours.init_noise_sigma < 0.7 * scheduler(**options, sde="ve").init_noise_sigma, "of the grid's own beginning"
    x, noise, t = draw(0, 2, 1, 2, 2), draw(1, 2, 1, 2, 2), theirs.timesteps[3]
    torch.testing.assert_close(ours.scale_model_input(x, t), theirs.scale_model_input(x, t), rtol=1e-4, atol=1e-5)
    at = theirs.timesteps[[3, 7]]
    torch.testing.assert_close(ours.add_noise(x, noise, at), theirs.add_noise(x, noise, at), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sde": "ve", "predictor": "ancestral", "corrector_steps": 2, "snr": 0.1}])
def test_config_round_trip(options, tmp_path):
    made = scheduler(beta_schedule="scaled_linear", **options)
    made.save_pretrained(tmp_path)
    again = PredictorCorrectorScheduler.from_pretrained(tmp_path)
    assert {k: v for k, v in made.config.items() if k[0] != "_"} == {
        k: v for k, v in again.config.items() if k[0] != "_"
    }
    for one in (made, again):
        one.set_timesteps(3)
    x = draw(0, 2, 1, 2, 2)
    assert torch.equal(advance(made, x, generators(1, 2)), advance(again, x, generators(1, 2)))


def test_a_trajectory_can_be_resumed():
    made = begin(5, sde="ve")
    shared = generators(1, 2)
    middle = advance(made, draw(0, 2, 1, 2, 2), shared, 3)
    state, later = made.state_dict(), generators(3, 4)
    expected = advance(made, middle, later)
    again = begin(5, sde="ve")
    again.load_state_dict(state)
    assert torch.equal(advance(again, middle, generators(3, 4)), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"predictor": "reverse"}, "unknown predictor 'reverse'. Did you mean reverse_diffusion"),
     ({"corrector": "ald"}, "unknown corrector 'ald'.*Allowed: langevin, none"),
     ({"sde": "subvp"}, "unknown sde 'subvp'"),
     ({"corrector_steps": 0}, "corrector_steps is 0; allowed: an integer >= 1"),
     ({"snr": -0.1}, "snr is -0.1; allowed: a number >= 0"),
     ({"snr": float("nan")}, "snr is nan"),
     ({"predictor": "none", "corrector": "none"}, "nothing would move")],
)  # fmt: skip
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        scheduler(**options)


def test_flow_models_are_refused():
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(IncompatibleError, match="needs a diffusion model with betas, this is a flow model"):
        PredictorCorrectorScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(AccelError, match=r"call scheduler\.set_timesteps"):
        scheduler().step(torch.zeros(1, 1, 2, 2), 5, torch.zeros(1, 1, 2, 2))


# --- as the config has it


@pytest.mark.parametrize("name", ["pc", "pc_ve"])
def test_samplers_run_in_a_pipeline(name, pipe, digits):
    """Guided, on a grid of their own, and sample by sample as in any batch."""
    sampler = choice_of("sampler", name, "sampler.steps=3")
    recipe = Recipe(sampler, Grid("karras"))
    with accelerate(pipe, recipe) as run:
        images = generate(pipe, digits, recipe, 0, 0, 3, 3)
        alone = generate(pipe, digits, recipe, 0, 1, 2, 1)
        assert run.nfe == sampler.evaluations == 6
        assert run.clock.num_steps == 3
    assert torch.isfinite(images).all()
    torch.testing.assert_close(images[1:2], alone, rtol=0, atol=2e-3)


# --- on a device


@pytest.mark.parametrize(("name", "waits"), [("pc", False), ("pc_ve", False), ("theirs", True)])
def test_noise_of_a_step_makes_the_host_wait_for_diffusers_alone(name, waits):
    """Drawn by CPU generators as it is needed: accel's own schedulers send it without a wait."""
    theirs = DiffusersSampler("EulerAncestralDiscreteScheduler", 3)
    made = theirs if name == "theirs" else method("sampler", name, steps=3)
    with Elsewhere() as device:
        own = made.build({"num_train_timesteps": 1000, "clip_sample": False})
        own.set_timesteps(3, device=DEVICE)
        x, source = draw(0, 2, 1, 4, 4).float().to(DEVICE), generators(1, 2)
        times, seen = own.timesteps.cpu(), []
        for t in times:
            before = device.total
            x = own.step(x, t, x, generator=source, return_dict=False)[0]
            seen.append(device.total - before)
    assert [count > 0 for count in seen[1:-1]] == [waits] * (len(times) - 2), device.waits
