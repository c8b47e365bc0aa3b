"""Suite `mixture`: the closed forms are right, the exact ODE solution is exact, and samplers converge to it."""

from __future__ import annotations

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from accel.errors import AccelError, ConfigError
from accel.guidance import CFG, IntervalCFG
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution, guided_noise_prediction, solution_error
from accel.suites.mixture.model import MixtureDenoiser
from accel.suites.pipeline import PixelPipeline

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
NULL = 4
RHOS = [0.0, 0.03, 0.4, 3.0, 150.0]


@pytest.fixture(scope="module")
def model() -> MixtureDenoiser:
    return MixtureDenoiser(**SCHEDULE)


@pytest.fixture(scope="module")
def gaussian() -> MixtureDenoiser:
    return MixtureDenoiser(num_class_embeds=2, components_per_class=1, seed=5)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_for(count: int) -> torch.Tensor:
    return torch.arange(count) % NULL


def rmse(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


def torch_density(model: MixtureDenoiser, rho: float, label: int) -> MixtureSameFamily:
    """p_t(x | label) from torch.distributions with full covariance matrices: shares no formula with the model."""
    alpha = 1 / math.sqrt(1 + rho**2)
    covariance = torch.einsum("mij,mj,mkj->mik", model.rotations, model.stds**2, model.rotations)
    covariance = alpha**2 * covariance + (rho * alpha) ** 2 * torch.eye(8, dtype=torch.float64)
    # The class's own components only: Categorical turns a weight of 0 into 1e-16, which shows in the far tails.
    own = slice(None) if label == NULL else slice(3 * label, 3 * label + 3)
    normals = MultivariateNormal(alpha * model.means[own], covariance_matrix=covariance[own])
    return MixtureSameFamily(Categorical(probs=model.weights.flatten()[own]), normals)


# --- closed forms


@pytest.mark.parametrize("rho", RHOS)
def test_density_and_noise_prediction_match_torch_distributions(model, rho):
    for label in (0, 3, NULL):
        x = (noise(6) * 0.5).requires_grad_()
        log_density = torch_density(model, rho, label).log_prob(x.flatten(1))
        torch.testing.assert_close(model.log_density(x, rho, label), log_density, rtol=1e-10, atol=1e-10)
        score = torch.autograd.grad(log_density.sum(), x)[0]
        sigma = rho / math.sqrt(1 + rho**2)
        eps = model.noise_prediction(x.detach(), rho, label)
        torch.testing.assert_close(eps, -sigma * score, rtol=1e-9, atol=1e-10)


def test_null_label_is_the_marginal(model):
    x, rho = noise(8), 0.7
    conditional = torch.stack([model.log_density(x, rho, c) for c in range(NULL)])
    marginal = conditional.logsumexp(0) - math.log(NULL)
    torch.testing.assert_close(model.log_density(x, rho), marginal)
    posterior = (conditional - conditional.logsumexp(0)).exp()[..., None, None, None]
    mean = sum(p * model.noise_prediction(x, rho, c) for c, p in enumerate(posterior))
    torch.testing.assert_close(model.noise_prediction(x, rho, NULL), mean)
    assert rmse(mean, model.noise_prediction(x, rho, 0)) > 0.01


def test_single_gaussian_noise_prediction(gaussian):
    x, rho = noise(5), 0.8
    alpha = 1 / math.sqrt(1 + rho**2)
    covariance = gaussian.rotations[0] @ gaussian.stds[0].square().diag() @ gaussian.rotations[0].T
    noisy = alpha**2 * covariance + (rho * alpha) ** 2 * torch.eye(8, dtype=torch.float64)
    expected = rho * alpha * torch.linalg.solve(noisy, (x.flatten(1) - alpha * gaussian.means[0]).T).T
    for label in (0, 1):
        torch.testing.assert_close(gaussian.noise_prediction(x, rho, label).flatten(1), expected)


def test_samples_have_the_mixture_moments(model):
    count = 20_000
    for label in (2, NULL):
        x = model.sample(count, label, torch.Generator().manual_seed(1)).flatten(1)
        density = torch_density(model, 0.0, label)
        assert (x.mean(0) - density.mean).abs().max() < 5 * density.variance.max().sqrt() / math.sqrt(count)
        assert (x.var(0) / density.variance - 1).abs().max() < 0.06
        # E[log p] distinguishes the right covariances from the right marginal variances.
        independent = density.log_prob(density.sample((count,)))
        mine = density.log_prob(x)
        assert abs(mine.mean() - independent.mean()) < 5 * (mine.var() + independent.var()).sqrt() / math.sqrt(count)
    again = model.sample(count, NULL, torch.Generator().manual_seed(1)).flatten(1)
    assert torch.equal(x, again)


# --- timesteps and the call interface


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_levels_are_those_of_diffusers(schedule):
    config = {**SCHEDULE, "beta_schedule": schedule}
    alpha_bar = diffusers.DDPMScheduler(**config).alphas_cumprod.double()
    found = MixtureDenoiser(**config).rho(torch.arange(1000))
    # diffusers accumulates in float32; 1 - alpha_bar is what loses digits.
    torch.testing.assert_close(found, ((1 - alpha_bar) / alpha_bar).sqrt(), rtol=1e-3, atol=0)
    torch.testing.assert_close(1 / (1 + found**2), alpha_bar, rtol=0, atol=1e-6)


def test_fractional_timesteps(model):
    steps = torch.arange(1000)
    log_rho = model.rho(steps).log()
    assert torch.equal(log_rho, model.rho(steps.double()).log())
    torch.testing.assert_close(model.rho(steps[:-1] + 0.25).log(), 0.75 * log_rho[:-1] + 0.25 * log_rho[1:])
    for t in (0, 0.5, 998.5, 999, torch.tensor(17.25)):
        t_again = diffusers.EulerDiscreteScheduler(**SCHEDULE)._sigma_to_t(model.rho(t).numpy(), log_rho.numpy())
        assert float(t_again) == pytest.approx(float(t), abs=1e-6)


def test_forward_is_noise_prediction_at_rho(model):
    x, labels = noise(5), torch.tensor([0, 1, 2, 3, NULL])
    t = torch.tensor([0.0, 3.5, 400.0, 998.9, 999.0], dtype=torch.float64)
    mixed = model(x, t, labels).sample
    assert mixed.shape == x.shape
    for i in range(5):
        one = model(x[i : i + 1], t[i], class_labels=labels[i : i + 1], return_dict=False)[0]
        torch.testing.assert_close(mixed[i : i + 1], one)
        torch.testing.assert_close(one, model.noise_prediction(x[i : i + 1], model.rho(t[i]), int(labels[i])))
    assert torch.equal(model(x, 400, labels).sample, model(x, torch.tensor(400), labels).sample)
    assert torch.equal(model(x, 400.0, labels).sample, model(x, torch.full((5,), 400), labels).sample)


def test_float32_agrees_with_float64(model):
    single = MixtureDenoiser(**SCHEDULE).to(torch.float32)
    x, labels = noise(16), labels_for(16)
    assert single.dtype == torch.float32
    for t in (0, 10.5, 500, 999):
        found = single(x.float(), t, labels).sample
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), model(x, t, labels).sample, rtol=1e-4, atol=1e-4)


def test_other_shapes_and_seeds():
    rgb = MixtureDenoiser(sample_size=2, in_channels=3, out_channels=3, num_class_embeds=3, components_per_class=2)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert rgb(x, 10, torch.tensor([0, 2])).sample.shape == x.shape
    assert rgb.sample(4, 1).shape == (4, 3, 2, 2)
    half = rgb.to(torch.bfloat16)
    assert half(x.bfloat16(), 10, torch.tensor([0, 2])).sample.dtype == half.sample(2).dtype == torch.bfloat16
    assert not torch.equal(MixtureDenoiser(seed=1).means, MixtureDenoiser(seed=2).means)
    assert torch.equal(MixtureDenoiser(seed=1).rotations, MixtureDenoiser(seed=1).rotations)


# --- the exact solution


@pytest.mark.parametrize(("start", "end"), [(157.0, 0.0), (157.0, 0.02), (0.05, 20.0), (2.0, 2.0)])
def test_exact_solution_of_a_gaussian_is_linear(gaussian, start, end):
    x = noise(4)
    mean, stds, rotation = gaussian.means[0], gaussian.stds[0], gaussian.rotations[0]
    # x_bar - mu scales along each principal axis as sqrt(std^2 + rho^2).
    gain = ((stds**2 + end**2) / (stds**2 + start**2)).sqrt()
    x_bar = x.flatten(1) * math.sqrt(1 + start**2)
    expected = (mean + ((x_bar - mean) @ rotation * gain) @ rotation.T) / math.sqrt(1 + end**2)
    found = exact_solution(gaussian, x, 0, start, end)
    assert found.shape == x.shape
    assert (found.flatten(1) - expected).abs().max() < 1e-11


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_self_check_states_an_error_below_1e_minus_10(model, scale):
    arguments = (model, noise(4), labels_for(4), model.rho(999), 0.0, scale)
    assert solution_error(*arguments) < 1e-10
    assert solution_error(*arguments, rtol=1e-3, atol=1e-3) > 1e-6  # it can fail


def test_exact_solution_inverts_and_ignores_the_batch(model):
    x, labels = noise(130), labels_for(130)  # more than one chunk
    x0 = exact_solution(model, x, labels, 157.0)
    alone = exact_solution(model, x[128:], labels[128:], 157.0)
    torch.testing.assert_close(x0[128:], alone, rtol=0, atol=1e-10)
    back = exact_solution(model, x0[128:], labels[128:], 0.0, 157.0)
    torch.testing.assert_close(back, x[128:], rtol=0, atol=1e-9)
    # The flow takes unit noise to the data: log p(x0) must be that of data, not of noise.
    typical = model.log_density(model.sample(500, 0, torch.Generator().manual_seed(0)), 0.0, 0).mean()
    assert abs(model.log_density(x0, 0.0, labels)[labels == 0].mean() - typical) < 2.0


def test_guidance_scale_selects_the_prediction(model):
    x, labels = noise(3), labels_for(3)
    cond, uncond = model.noise_prediction(x, 1.5, labels), model.noise_prediction(x, 1.5, NULL)
    assert torch.equal(guided_noise_prediction(model, x, 1.5, labels, 1.0), cond)
    torch.testing.assert_close(guided_noise_prediction(model, x, 1.5, labels, 0.0), uncond)
    torch.testing.assert_close(guided_noise_prediction(model, x, 1.5, labels, 3.0), 3 * cond - 2 * uncond)
    unguided = exact_solution(model, x, NULL, 157.0, 0.5)
    torch.testing.assert_close(exact_solution(model, x, labels, 157.0, 0.5, 0.0), unguided, rtol=0, atol=1e-10)
    assert rmse(exact_solution(model, x, labels, 157.0, 0.5, 3.0), unguided) > 0.01


# --- convergence of samplers


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_order_of_hand_written_solvers(model, heun, order, scale):
    x, labels, start, end = noise(16), labels_for(16), float(model.rho(999)), 0.01

    def slope(x_bar: torch.Tensor, rho: float) -> torch.Tensor:
        return guided_noise_prediction(model, x_bar / math.sqrt(1 + rho**2), rho, labels, scale)

    def solve(steps: int) -> torch.Tensor:
        grid = torch.linspace(math.log(start), math.log(end), steps + 1, dtype=torch.float64).exp().tolist()
        x_bar = x * math.sqrt(1 + start**2)
        for rho, rho_next in pairwise(grid):
            first = slope(x_bar, rho)
            euler = x_bar + (rho_next - rho) * first  # DDIM is Euler in rho
            x_bar = x_bar + (rho_next - rho) * (first + slope(euler, rho_next)) / 2 if heun else euler
        return x_bar / math.sqrt(1 + end**2)

    exact = exact_solution(model, x, labels, start, end, scale)
    found = slopes([rmse(solve(steps), exact) for steps in (20, 40, 80, 160)])
    assert found == pytest.approx([order] * 3, abs=0.3)


class FractionalDPMSolver(diffusers.DPMSolverMultistepScheduler):
    """diffusers truncates the timesteps of its off-grid sigmas to integers; this one tells the model the truth."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device=device)
        log_rho = MixtureDenoiser(**SCHEDULE).log_rho.numpy()
        sigmas = self.sigmas[:-1].double().numpy()
        self.timesteps = torch.tensor([float(self._sigma_to_t(sigma, log_rho)) for sigma in sigmas])


@pytest.mark.parametrize(
    ("scheduler", "dtype", "lowest_slope", "error"),
    [
        (FractionalDPMSolver, torch.float64, 1.75, 3e-4),
        # Truncated timesteps leave a floor of 6e-4, whatever the dtype.
        (diffusers.DPMSolverMultistepScheduler, torch.float64, 0.1, 1e-3),
        (diffusers.DPMSolverMultistepScheduler, torch.float32, 0.1, 1e-3),
    ],
)
def test_diffusers_2m_converges_to_the_exact_solution(scheduler, dtype, lowest_slope, error):
    model = MixtureDenoiser(**SCHEDULE)
    x, labels, scale = noise(16), labels_for(16), 2.0
    exact = exact_solution(model, x, labels, model.rho(999), model.rho(0), scale)
    model.to(dtype)
    # Exponential sigmas are uniform in log rho; final_sigmas_type says that the last one is rho(0), not 0.
    settings = {"final_sigmas_type": "sigma_min", "use_exponential_sigmas": True, "lower_order_final": False}
    solver = scheduler(**SCHEDULE, **settings, solver_order=2)
    errors = [rmse(run(model, solver, x, labels, steps, scale), exact) for steps in (20, 40, 80, 160)]
    assert errors[-1] < error
    assert min(slopes(errors)) > lowest_slope
    assert slopes(errors)[0] == pytest.approx(2, abs=0.3)


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "trailing"},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    "HeunDiscreteScheduler": {"timestep_spacing": "trailing"},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
}


def run(model, scheduler, x, labels, steps, scale) -> torch.Tensor:
    pipe = PixelPipeline(unet=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt"}
    return pipe(class_labels=labels, latents=x, **arguments).images.double()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pipeline_runs_with_diffusers_schedulers(model, name, scale):
    x, labels = noise(8), labels_for(8)
    scheduler = getattr(diffusers, name)(**SCHEDULE, **SCHEDULERS[name])
    # 40 steps: DDIM's previous timestep is t - T // N, which leaves its own grid when N does not divide T.
    exact = exact_solution(model, x, labels, model.rho(999), guidance_scale=scale)
    assert rmse(run(model, scheduler, x, labels, 40, scale), exact) < 0.05
    assert rmse(exact.roll(4, 0), exact) > 0.2  # what a wrong sample would cost


def test_pipeline_makes_images_in_the_dtype_it_was_sent_to():
    pipe = PixelPipeline(unet=MixtureDenoiser(), scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [0, 1], "num_inference_steps": 2}
    assert pipe.unet.dtype == torch.float64
    assert [image.size for image in pipe(**arguments).images] == [(4, 2)] * 2
    pipe.to("cpu", torch.float32)
    assert pipe.unet.dtype == torch.float32
    assert pipe(**arguments, output_type="pt").images.dtype == torch.float32


# --- files and errors


def test_save_and_load_round_trip(tmp_path):
    model = MixtureDenoiser(seed=3, components_per_class=2, beta_schedule="scaled_linear")
    pipe = PixelPipeline(unet=model, scheduler=diffusers.DDIMScheduler(**SCHEDULE))
    pipe.save_pretrained(tmp_path)
    x, labels = noise(4), labels_for(4)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    for loaded in (
        MixtureDenoiser.from_pretrained(tmp_path / "unet"),
        PixelPipeline.from_pretrained(tmp_path).unet,
        MixtureDenoiser.from_config(model.config),
    ):
        assert loaded.dtype == torch.float64
        assert torch.equal(loaded(x, 12.5, labels).sample, model(x, 12.5, labels).sample)
    assert MixtureDenoiser.from_pretrained(tmp_path / "unet", dtype=torch.float32).dtype == torch.float32


def test_weights_come_from_the_file_not_from_the_seed(tmp_path):
    model = MixtureDenoiser()
    model.means += 0.125
    model.save_pretrained(tmp_path)
    assert torch.equal(MixtureDenoiser.from_pretrained(tmp_path).means, model.means)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m(x, 3, torch.tensor([0, 5])), r"\[0, 5\]; allowed: 0..4"),
        (lambda m, x: m(x, 3, torch.tensor([0, -1])), r"allowed: 0..4"),
        (lambda m, x: m(x, 3, torch.tensor([0, 1, 2])), "one for each of the 2 samples"),
        (lambda m, x: m(x, 3, torch.tensor([0.5, 1.0])), "allowed: integers"),
        (lambda m, x: m(x, 3), "class_labels is missing"),
        (lambda m, x: m(x[:, :, :1], 3, torch.tensor([0, 1])), r"\(2, 1, 1, 4\); allowed: \(B, 1, 2, 4\)"),
        (lambda m, x: m(x[0], 3, torch.tensor([0])), "sample has shape"),
        (
            lambda m, x: m(x, torch.tensor([1, 2, 3]), torch.tensor([0, 1])),
            r"shape \(3,\); allowed: a number or \(2,\)",
        ),
        (lambda m, x: m(x, 999.5, torch.tensor([0, 1])), r"timestep is 999.5; allowed: numbers in \[0, 999\]"),
        (lambda m, x: m(x, float("nan"), torch.tensor([0, 1])), "timestep is nan"),
        (lambda m, x: m.sample(0), "n is 0"),
        (lambda m, x: exact_solution(m, x, 7, 10.0), "allowed: 0..4"),
        (lambda m, x: exact_solution(m, x[:, 0], 0, 10.0), "sample has shape"),
        (lambda m, x: exact_solution(m, x, 0, -1.0), "rho_start is -1.0"),
        (lambda m, x: exact_solution(m, x, 0, 10.0, float("inf")), "rho_end is inf"),
        (lambda m, x: exact_solution(m, x, 0, 10.0, rtol=1e-20), "rtol is 1e-20"),
        (lambda m, x: exact_solution(MixtureDenoiser().float(), x, 0, 10.0), "torch.float32; allowed: torch.float64"),
        (lambda m, x: exact_solution(m, x * float("nan"), 0, 10.0), "not finite"),
        (lambda m, x: MixtureDenoiser(sample_size=(2, 4, 1)), "sample_size is"),
        (lambda m, x: MixtureDenoiser(sample_size=(0, 4)), "sample_size is 0"),
        (lambda m, x: MixtureDenoiser(num_class_embeds=1), "num_class_embeds is 1"),
        (lambda m, x: MixtureDenoiser(out_channels=2), "out_channels is 2"),
        (lambda m, x: MixtureDenoiser(prediction_type="v_prediction"), "unknown prediction_type 'v_prediction'"),
        (lambda m, x: MixtureDenoiser(beta_schedule="linaer"), "Did you mean linear"),
        (lambda m, x: MixtureDenoiser(beta_start=0.5), "beta_start is 0.5"),
    ],
)
def test_bad_input_is_one_clear_error(model, call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call(model, noise(2))
    assert isinstance(caught.value, AccelError)
    assert "\n" not in str(caught.value)


def test_exact_solution_is_that_of_plain_guidance_only():
    """Of any other guidance the converged sampler stands in for it."""
    suite = MixtureSuite()
    assert suite.solves(None)
    assert suite.solves(CFG(3.0))
    assert not suite.solves(IntervalCFG(3.0, sigma_lo=0.3, sigma_hi=5.0))
