"""The ratio search: what it minimises, that it never makes held-out samples worse, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from scipy.optimize import minimize_scalar
from tiny import gaussian_flow

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG
from accel.samplers import DCSolverScheduler
from accel.samplers.predictor import Predictor
from accel.search import ratios as module
from accel.search.ratios import RatioSearch, search_ratios
from accel.search.trajectories import converged_states, refined, trajectory
from accel.suites.mixture import MixtureSuite
from accel.suites.pipeline import PixelPipeline

QUICK = RatioSearch(noises=6, held_out=6, iterations=5, reference=40)
# Solver, order of its compensation and guidance scale; 5 to 8 steps.
SOLVERS = {
    "unipc-5": (5, {}, 1.0),
    "unipc-5-cfg": (5, {}, 3.0),
    "unipc-6": (6, {}, 3.0),
    "unipc3-8-cfg": (8, {"solver_order": 3, "solver_type": "bh1"}, 3.0),
    "ddim-6": (6, {"solver_order": 1, "corrector": False}, 1.0),
    "dpmpp_2m-8-cfg": (8, {"corrector": False}, 3.0),
    "dc_order-1-6": (6, {"dc_order": 1}, 1.0),
    "dc_order-3-7-cfg": (7, {"dc_order": 3}, 3.0),
}


@pytest.fixture(scope="module")
def mixture() -> PixelPipeline:
    return MixtureSuite().pipeline()


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler_of(pipe, steps: int, **options) -> DCSolverScheduler:
    scheduler = DCSolverScheduler.from_config(pipe.scheduler.config, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def predictor(pipe, count: int, scale: float = 1.0, **kwargs) -> Predictor:
    return Predictor(pipe, **kwargs, class_labels=[i % 4 for i in range(count)], guidance_scale=scale)


def squared(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (x - target).flatten(1).square().mean(1)


@pytest.fixture(scope="module")
def searched(mixture):
    """searched(name) -> the scheduler, the predictor, the noises and what the search found, computed once."""
    known = {}

    def searched(name: str):
        if name not in known:
            steps, options, scale = SOLVERS[name]
            scheduler, predict = scheduler_of(mixture, steps, **options), predictor(mixture, QUICK.samples, scale)
            with torch.enable_grad():  # whichever test asks first
                found = search_ratios(scheduler, predict, noise(12), QUICK)
            known[name] = scheduler, predict, noise(12), found
        return known[name]

    return searched


# --- what is found


@pytest.mark.parametrize("name", SOLVERS)
def test_ratios_are_within_the_bound_and_1_before_there_is_a_history(searched, name):
    scheduler, _, _, found = searched(name)
    first = scheduler.config.dc_order
    assert len(found.ratios) == scheduler.nodes.steps
    assert found.ratios[:first] == [1.0] * first
    assert all(abs(q - 1) <= QUICK.bound for q in found.ratios)
    assert any(q != 1 for q in found.ratios), "compensation helps every one of these solvers"
    assert all(found.ratios[i] == 1 for i in found.rejected)


@pytest.mark.parametrize("name", SOLVERS)
def test_errors_are_those_of_the_solver_with_and_without_the_ratios(searched, name):
    """Through `step`, as a pipeline runs it, on the noises that the search fitted and on those it held out."""
    scheduler, predict, x, found = searched(name)
    exact = converged_states(scheduler, predict, x, QUICK.reference)[-1]
    for place, ratios in enumerate((None, found.ratios)):
        own = DCSolverScheduler.from_config(scheduler.config, compensation_ratios=ratios)
        own.set_timesteps(scheduler.nodes.steps)
        errors = squared(trajectory(own, predict, x)[-1], exact)
        assert found.fit[place] == pytest.approx(float(errors[:6].mean()), rel=1e-9)
        assert found.held_out[place] == pytest.approx(float(errors[6:].mean()), rel=1e-9)
    assert found.held_out[1] < found.held_out[0]
    assert found.fit[1] < found.fit[0], "nothing that the search promises, but on the mixture it is so"


@pytest.mark.parametrize("name", SOLVERS)
@torch.no_grad()
def test_every_ratio_helps_its_step_on_fitted_and_on_held_out_noises(searched, name):
    """With the earlier ratios as found, the state after the step comes closer to the converged trajectory."""
    scheduler, predict, x, found = searched(name)
    exact = converged_states(scheduler, predict, x, QUICK.reference)
    for i in (i for i, q in enumerate(found.ratios) if q != 1):
        with_it, without = (
            squared(state_after(scheduler, predict, x, [*found.ratios[:i], q], i), exact[i + 1])
            for q in (found.ratios[i], 1.0)
        )
        assert with_it[:6].mean() < without[:6].mean(), i
        assert with_it[6:].mean() < without[6:].mean(), i


def state_after(scheduler, predict, x, ratios: list[float], i: int) -> torch.Tensor:
    """x_{i+1} of a solver with these first ratios, corrected where it has a corrector."""
    steps = scheduler.nodes.steps
    own = DCSolverScheduler.from_config(scheduler.config, compensation_ratios=[*ratios, *[1.0] * (steps - len(ratios))])
    own.set_timesteps(steps)
    for t in own.timesteps[: i + 1]:
        x = own.step(predict(x, float(t)), t, x).prev_sample
    if i + 1 < steps and own.corrects(i):
        t = own.timesteps[i + 1]
        own.step(predict(x, float(t)), t, x)
        x = own.memory["sample"]
    return x


@pytest.mark.parametrize("options", [{}, {"corrector": False}, {"solver_order": 3}], ids=["unipc", "2m", "unipc3"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_ratio_is_the_minimum_of_the_error_after_its_step(mixture, options, scale):
    """scipy, without a gradient, on the solver's own steps; the same noises twice, so that none is rejected."""
    settings = RatioSearch(noises=3, held_out=3, iterations=60, bound=0.9, reference=40)
    x, labels = noise(3, seed=2).repeat(2, 1, 1, 1), [0, 1, 2] * 2
    predict = Predictor(mixture, class_labels=labels, guidance_scale=scale)
    scheduler = scheduler_of(mixture, 4, **options)
    with torch.enable_grad():
        ratios, _ = all_ratios(scheduler, predict, x, settings)
    exact = converged_states(scheduler, predict, x, settings.reference)
    for i in (2, 3):

        def error(q: float, i=i) -> float:
            return float(squared(state_after(scheduler, predict, x, [*ratios[:i], q], i), exact[i + 1]).mean())

        best = minimize_scalar(error, bounds=(0.1, 1.9), method="bounded", options={"xatol": 1e-4})
        assert error(ratios[i]) <= best.fun * (1 + 1e-3) + 1e-12
        assert error(ratios[i]) < error(1.0)
        if 0.2 < best.x < 1.8:  # an inner minimum; towards the bound tanh is flat, and the search slow
            assert ratios[i] == pytest.approx(best.x, abs=0.03)


def all_ratios(scheduler, predict, x, settings) -> tuple[list[float], list[int]]:
    """Found ratios of every step, whatever they do to the end of the trajectory."""
    kept = []

    def fit(*args):
        kept.append(plain_fit(*args))
        return kept[-1]

    plain_fit, module._fit = module._fit, fit
    try:
        found = search_ratios(scheduler, predict, x, settings)
    finally:
        module._fit = plain_fit
    return [1.0] * scheduler.config.dc_order + kept, found.rejected


def test_same_noises_same_ratios_whatever_the_random_state(mixture):
    scheduler, settings = scheduler_of(mixture, 5), replace(QUICK, noises=2, held_out=2)
    first = search_ratios(scheduler, predictor(mixture, 4), noise(4), settings)
    torch.rand(7)
    again = search_ratios(scheduler, predictor(mixture, 4), noise(4), settings)
    assert (first.ratios, first.fit, first.held_out) == (again.ratios, again.fit, again.held_out)
    other = search_ratios(scheduler, predictor(mixture, 4), noise(4, seed=1), settings)
    assert other.ratios != first.ratios


def test_bound_of_zero_gives_ones(mixture):
    found = search_ratios(scheduler_of(mixture, 5), predictor(mixture, 12), noise(12), replace(QUICK, bound=0.0))
    assert (found.ratios, found.rejected) == ([1.0] * 5, [])
    assert found.fit[0] == found.fit[1]
    assert found.held_out[0] == found.held_out[1]


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_steps_for_any_ratio_give_ones(mixture, steps):
    found = search_ratios(scheduler_of(mixture, steps), predictor(mixture, 12), noise(12), QUICK)
    assert found.ratios == [1.0] * steps


def test_a_flow_can_be_searched():
    """A Gaussian flow has straight enough trajectories for few steps, and exact ones to be compared with."""
    pipe = gaussian_flow()
    settings = replace(QUICK, noises=4, held_out=4)
    x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = search_ratios(scheduler_of(pipe, 5), Predictor(pipe, batch_size=8), x, settings)
    assert found.held_out[1] < 0.9 * found.held_out[0]


# --- noises that were not fitted


@pytest.mark.parametrize("seed", range(6))
def test_a_single_fitted_noise_never_makes_the_held_out_ones_worse(mixture, seed):
    settings = RatioSearch(noises=1, held_out=4, iterations=6, lr=0.5, bound=5.0, reference=20)
    scheduler = scheduler_of(mixture, 6)
    found = search_ratios(scheduler, predictor(mixture, 5, 3.0), noise(5, seed), settings)
    assert found.held_out[1] <= found.held_out[0]
    assert max(abs(q - 1) for q in found.ratios) <= 5
    if found.ratios == [1.0] * 6:
        assert found.fit[0] == found.fit[1]


def test_ratios_that_harm_held_out_noises_are_rejected_step_by_step(mixture, monkeypatch):
    """Held-out noises whose target is the plain solver's own trajectory: no ratio can help them."""
    scheduler, predict, x = scheduler_of(mixture, 5, corrector=False), predictor(mixture, 12), noise(12)
    true = converged_states(scheduler, predict, x, QUICK.reference)
    plain = trajectory(scheduler_of(mixture, 5, corrector=False), predict, x)
    targets = [torch.cat([a[:6], b[6:]]) for a, b in zip(true, plain, strict=True)]
    monkeypatch.setattr(module, "converged_states", lambda *args: targets)
    found = search_ratios(scheduler, predict, x, QUICK)
    assert (found.ratios, found.rejected) == ([1.0] * 5, [2, 3, 4])
    assert found.held_out == (0.0, 0.0)
    assert found.fit[0] == found.fit[1] > 0


def test_all_ratios_fall_back_if_the_end_of_the_trajectory_is_no_better(mixture, monkeypatch):
    """Every step is improved on the way, but the end is where the plain solver ends."""
    scheduler, predict, x = scheduler_of(mixture, 5, corrector=False), predictor(mixture, 12), noise(12)
    true = converged_states(scheduler, predict, x, QUICK.reference)
    end = trajectory(scheduler_of(mixture, 5, corrector=False), predict, x)[-1]
    monkeypatch.setattr(module, "converged_states", lambda *args: [*true[:-1], end])
    ratios, rejected = all_ratios(scheduler, predict, x, QUICK)
    assert ratios[2] != 1
    assert 2 in rejected, "although it passed on its own step"
    found = search_ratios(scheduler, predict, x, QUICK)
    assert found.ratios == [1.0] * 5
    assert found.held_out == (0.0, 0.0)


def test_another_number_of_noises_is_refused(mixture):
    with pytest.raises(ConfigError, match="got 6 noises; allowed: 12"):
        search_ratios(scheduler_of(mixture, 5), predictor(mixture, 6), noise(6), QUICK)


# --- cost, progress, what is left alone


def test_progress_is_told_after_every_step(mixture):
    told = []
    search_ratios(scheduler_of(mixture, 5), predictor(mixture, 12), noise(12), replace(QUICK, iterations=1),
                  lambda done, total: told.append((done, total)))  # fmt: skip
    assert told == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("corrector", [True, False])
def test_model_calls_are_counted_and_no_more_than_needed(mixture, corrector):
    """Without a corrector a trial needs no evaluation: the reference, the searched and the plain trajectory do."""
    scheduler, predict, x = scheduler_of(mixture, 6, corrector=corrector), predictor(mixture, 12), noise(12)
    predict(x, 500)
    made = []
    handle = mixture.unet.register_forward_hook(lambda *args: made.append(1))
    try:
        found = search_ratios(scheduler, predict, x, QUICK)
    finally:
        handle.remove()
    reference = len(refined(scheduler, QUICK.reference)[0])
    trials = (6 - 2 - 1) * (QUICK.iterations + 2) if corrector else 0  # the last step is not corrected
    assert found.calls == len(made) == reference + 6 + 6 + trials


def unet_pipe() -> PixelPipeline:
    """A random class-conditional network with real weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DModel(sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4, 8),
                          norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, num_class_embeds=5,
                          up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    pipe = PixelPipeline(net.eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_want_their_gradients_as_before_and_have_none():
    pipe = unet_pipe()
    weights = list(pipe.unet.parameters())
    for weight in weights[::2]:
        weight.requires_grad_(False)
    before = [w.requires_grad for w in weights]
    settings = RatioSearch(noises=2, held_out=2, iterations=2, reference=8)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def stop(done: int, total: int) -> None:
        assert not any(w.requires_grad for w in weights)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_ratios(scheduler_of(pipe, 5), predictor(pipe, 4, 2.0), x, settings, stop)
    assert [w.requires_grad for w in weights] == before
    search_ratios(scheduler_of(pipe, 5), predictor(pipe, 4, 2.0), x, settings)
    assert [w.requires_grad for w in weights] == before
    assert all(w.grad is None for w in weights)
    assert "forward" not in pipe.unet.__dict__


def test_inside_guidance_of_a_recipe_the_ratios_are_those_of_the_bare_guided_pipeline(mixture):
    settings = replace(QUICK, noises=2, held_out=2, iterations=3, reference=20)
    bare = search_ratios(scheduler_of(mixture, 5), predictor(mixture, 4, 3.0), noise(4), settings)
    with accelerate(mixture, Recipe(guidance=CFG(3.0))) as run:
        predict = predictor(mixture, 4, 3.0, clock=run.clock)
        found = search_ratios(scheduler_of(mixture, 5), predict, noise(4), settings)
    assert found.ratios == pytest.approx(bare.ratios, abs=1e-9)
    assert found.ratios != search_ratios(scheduler_of(mixture, 5), predictor(mixture, 4), noise(4), settings).ratios


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"noises": 0}, "search.noises is 0"), ({"held_out": 0}, "search.held_out is 0"),
     ({"iterations": 0}, "search.iterations is 0"), ({"reference": 2.5}, "search.reference is 2.5"),
     ({"lr": 0.0}, "search.lr is 0.0"), ({"bound": -0.1}, "search.bound is -0.1"),
     ({"bound": float("nan")}, "search.bound is nan")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RatioSearch(**settings)
