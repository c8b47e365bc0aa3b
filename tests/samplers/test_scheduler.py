"""What every scheduler of accel must do to stand in for one of diffusers': configs, positions, state, pipelines."""

from __future__ import annotations

import ast
import copy
import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from tiny import dit_pipeline

import accel.samplers
from accel.errors import AccelError, IncompatibleError
from accel.samplers import DEISScheduler
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.scheduler import BaseScheduler

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = LINEAR | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
OWN = {
    name: cls
    for name, cls in vars(accel.samplers).items()
    if isinstance(cls, type) and issubclass(cls, BaseScheduler) and cls is not BaseScheduler
}
# Settings to try a class at, beside its defaults; a class that is not named here is tried at those alone.
SETTINGS = {
    "DEISScheduler": [
        {"variant": "tab", "ab_order": 1},
        {"variant": "ipndm", "ab_order": 3},
        {"variant": "rhork", "tableau": "heun"},
        {"variant": "rhork", "tableau": "kutta"},
    ],
    "DCSolverScheduler": [{"solver_order": 3, "solver_type": "bh1"}, {"predict_x0": False, "corrector": False}],
    "PredictorCorrectorScheduler": [{"sde": "ve"}, {"predictor": "ancestral", "corrector": "none"}],
}
CASES = [(name, options) for name in OWN for options in [{}, *SETTINGS.get(name, [])]]


def label(value) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


each = pytest.mark.parametrize(("name", "options"), CASES, ids=label)
STEPS = 6


def accepts(name: str, config) -> bool:
    """Whether the class runs models with this schedule: some are for flows only, some for diffusion only."""
    try:
        OWN[name](**config)
    except IncompatibleError:
        return False
    return True


def config_of(name: str) -> dict:
    return SD if accepts(name, SD) else FLOW


def scheduler_of(name: str, options, **changes) -> BaseScheduler:
    return OWN[name](**config_of(name) | dict(options) | changes)


def gauss(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X = gauss(3, 2, 4, 4)


def generators(seeds=(1, 2, 3)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def model(scheduler, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A nonlinear network: as large as a prediction of noise or velocity is, another at every timestep."""
    inputs = scheduler.scale_model_input(x, t).double()
    return (0.8 * inputs + 0.3 * torch.sin(3 * inputs + float(t) / 200)).to(x.dtype)


def advance(scheduler, x, timesteps, sources) -> torch.Tensor:
    for t in timesteps:
        x = scheduler.step(model(scheduler, x, t), t, x, generator=sources).prev_sample
    return x


def start(scheduler, x=X) -> torch.Tensor:
    return x * scheduler.init_noise_sigma


def run(scheduler, x=X, steps: int = STEPS, seeds=(1, 2, 3)) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    return advance(scheduler, start(scheduler, x), scheduler.timesteps, generators(seeds))


def stages_before(scheduler, steps: int) -> int:
    return steps * scheduler.order


def test_the_schedulers_are_found():
    assert {"DEISScheduler"} <= set(OWN)
    assert set(SETTINGS) <= set(OWN)
    assert all(issubclass(cls, diffusers.SchedulerMixin) for cls in OWN.values())


# --- configs

# diffusers hands on what a config says, and what it leaves at the old class's default becomes the new class's default.
SOURCES = {
    "DPMSolverMultistep": {"solver_order": 2, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    "DDIM": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"},
    "EulerDiscrete": {"timestep_spacing": "linspace", "final_sigmas_type": "zero"},
    "PNDM": {"skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading"},
    "UniPCMultistep": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    },
}
KEPT = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


@pytest.mark.parametrize("source", SOURCES)
@each
def test_config_of_a_diffusers_scheduler_becomes_this_one_and_back(name, options, source):
    theirs = getattr(diffusers, f"{source}Scheduler")(**SD, **SOURCES[source])
    if not accepts(name, SD):
        with pytest.raises(IncompatibleError, match=r".{40,}"):
            OWN[name].from_config(theirs.config)
        return
    ours = OWN[name].from_config(theirs.config, **options)
    assert {k: ours.config[k] for k in options} == options
    assert {k: ours.config[k] for k in KEPT} == {k: theirs.config[k] for k in KEPT}
    assert ours.schedule.identity == noise_schedule(theirs.config).identity
    expected = "karras" if theirs.config.get("use_karras_sigmas") else theirs.config["timestep_spacing"]
    assert ours.grid.name == expected
    back = type(theirs).from_config(ours.config)
    assert {k: back.config[k] for k in KEPT} == {k: theirs.config[k] for k in KEPT}
    assert back.config["timestep_spacing"] == theirs.config["timestep_spacing"]
    for scheduler in (ours, back):
        scheduler.set_timesteps(STEPS)


OTHER_GRIDS = {
    "use_beta_sigmas": diffusers.DPMSolverMultistepScheduler(use_beta_sigmas=True),
    "lambda_min_clipped": diffusers.DPMSolverMultistepScheduler(lambda_min_clipped=-5.1),
    "shift_terminal": diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1),
}
OTHER_MODELS = {
    "sigma_data": diffusers.EDMEulerScheduler(),
    "sampling_eps": diffusers.ScoreSdeVeScheduler(),
    "s_churn": diffusers.KarrasVeScheduler(),
    "timestep_type 'continuous'": diffusers.EulerDiscreteScheduler(timestep_type="continuous"),
    "invert_sigmas": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "snr_shift_scale": diffusers.CogVideoXDDIMScheduler(),
}


@pytest.mark.parametrize("key", OTHER_GRIDS)
def test_grid_that_only_diffusers_has_is_refused_unless_one_is_named(key):
    config = OTHER_GRIDS[key].config
    with pytest.raises(IncompatibleError, match=f"{key}=.*from_config"):
        DEISScheduler.from_config(config)
    scheduler = DEISScheduler.from_config(config, grid="exponential")
    assert scheduler.grid.name == "exponential"
    assert DEISScheduler.from_config(scheduler.config).grid.name == "exponential"


@pytest.mark.parametrize("key", OTHER_MODELS)
def test_config_of_another_kind_of_model_is_refused(key):
    with pytest.raises(IncompatibleError, match=rf"has {key}.*Keep this pipeline's own"):
        DEISScheduler.from_config(OTHER_MODELS[key].config)


def test_lu_lambdas_are_the_exponential_grid():
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    theirs.set_timesteps(8)
    ours = DEISScheduler.from_config(theirs.config)
    ours.set_timesteps(8)
    assert ours.grid.name == "exponential"
    assert torch.allclose(ours.sigmas[:-1], theirs.sigmas[:-1], rtol=1e-3)


@each
def test_leading_grid_of_a_config_has_its_offset(name, options):
    if not accepts(name, SD):
        return
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(STEPS)
    ours = OWN[name].from_config(theirs.config, **options)
    ours.set_timesteps(STEPS)
    np.testing.assert_array_equal(ours.nodes.t[:-1], theirs.timesteps.numpy())


@pytest.mark.parametrize("from_file", [False, True])
@each
def test_config_of_a_flow_scheduler_makes_a_scheduler_of_flows(name, options, from_file, tmp_path):
    """Only a config that was loaded from a file names its class."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.save_pretrained(tmp_path)
    config = diffusers.FlowMatchEulerDiscreteScheduler.load_config(tmp_path) if from_file else theirs.config
    if not accepts(name, FLOW):
        with pytest.raises(IncompatibleError, match=r".{40,}"):
            OWN[name].from_config(config)
        return
    options = dict(options) | ({"predict_x0": True} if "predict_x0" in options else {})  # eps is unknown at alpha = 0
    ours = OWN[name].from_config(config, **options)
    assert ours.schedule.flow
    assert (ours.config["prediction_type"], ours.config["flow_shift"]) == ("flow_prediction", 3.0)
    ours.set_timesteps(STEPS)
    sigma = 1 - np.arange(STEPS) / STEPS
    np.testing.assert_allclose(ours.nodes.sigma[:-1], 3 * sigma / (1 + 2 * sigma), rtol=1e-12)
    again = OWN[name].from_config(ours.config)
    assert again.schedule.flow
    assert again.config["flow_shift"] == 3.0
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config).config["num_train_timesteps"] == 1000


@each
def test_dynamic_shifting_is_that_of_diffusers(name, options):
    if not accepts(name, FLOW) or options.get("predict_x0") is False:
        return
    for kind, mu in (("exponential", 1.15), ("linear", 2.0)):
        settings = {"use_dynamic_shifting": True, "time_shift_type": kind}
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
        sigmas = np.linspace(1, 1 / STEPS, STEPS)
        theirs.set_timesteps(sigmas=sigmas.tolist(), mu=mu)
        ours = OWN[name].from_config(theirs.config, **options)
        for call in ({"sigmas": sigmas.tolist()}, {"num_inference_steps": STEPS}):
            ours.set_timesteps(**call, mu=mu)
            np.testing.assert_allclose(ours.nodes.sigma, theirs.sigmas.numpy(), rtol=1e-6)


@each
def test_every_option_is_in_the_signature_and_survives_a_file(name, options, tmp_path):
    """diffusers looks options up in the signature; what it does not find there it drops."""
    shown = inspect.signature(OWN[name].__init__).parameters
    assert set(inspect.signature(BaseScheduler.__init__).parameters) <= set(shown)
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    changes = {"grid": "karras", "steps_offset": 2, "num_train_timesteps": 500}
    scheduler = scheduler_of(name, options, **changes)
    scheduler.save_pretrained(tmp_path)
    loaded = OWN[name].from_pretrained(tmp_path)
    public = [{k: v for k, v in s.config.items() if k[0] != "_"} for s in (loaded, scheduler)]
    assert public[0] == public[1]
    assert torch.equal(run(loaded), run(scheduler))
    assert len(loaded) == 500


@each
def test_unknown_options_are_refused(name, options):
    with pytest.raises(TypeError, match="colver_order"):
        scheduler_of(name, options, colver_order=2)


# --- the interface


@each
def test_tables_have_the_shape_that_pipelines_expect(name, options):
    scheduler = scheduler_of(name, options)
    assert len(scheduler) == len(scheduler.timesteps) == 1000
    scheduler.set_timesteps(STEPS)
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas
    assert scheduler.num_inference_steps == STEPS
    assert len(sigmas) == len(timesteps) + 1
    assert (STEPS - 1) * scheduler.order < len(timesteps) <= STEPS * scheduler.order
    assert (sigmas[1:] <= sigmas[:-1] + 1e-6).all() or scheduler.order > 2
    assert sigmas[-1] == 0
    levels = scheduler.schedule.alpha_sigma(timesteps.double().numpy())[1]
    if not scheduler.schedule.flow:
        levels = scheduler.schedule.rho(timesteps.double().numpy())
    np.testing.assert_allclose(sigmas[:-1].numpy(), levels, rtol=1e-6)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None


@each
def test_whole_timesteps_are_integers_and_others_fractions(name, options):
    scheduler = scheduler_of(name, options, grid="trailing")
    scheduler.set_timesteps(STEPS)
    if scheduler.schedule.flow or (scheduler.timesteps != scheduler.timesteps.round()).any():
        assert scheduler.timesteps.dtype == torch.float64
    else:
        assert scheduler.timesteps.dtype == torch.int64
    scheduler = scheduler_of(name, options, grid="exponential")
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.dtype == torch.float64


@each
def test_noised_data_is_what_the_model_expects(name, options):
    """The model's input for `add_noise`d data is alpha x0 + sigma eps, at one timestep or at one for each sample."""
    scheduler = scheduler_of(name, options)
    scheduler.set_timesteps(STEPS)
    noise, t = gauss(3, 2, 4, 4, seed=5), scheduler.timesteps[stages_before(scheduler, 2)]
    alpha, sigma = scheduler.schedule.alpha_sigma(float(t))
    state = scheduler.add_noise(X, noise, t.reshape(1))
    expected = float(alpha) * X + float(sigma) * noise
    torch.testing.assert_close(scheduler.scale_model_input(state, t), expected, rtol=1e-12, atol=1e-12)
    three = torch.tensor([10, 400, 900])
    together = scheduler.add_noise(X, noise, three)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], scheduler.add_noise(X[i : i + 1], noise[i : i + 1], three[i]))
    assert scheduler.add_noise(X.half(), noise.half(), three).dtype == torch.float16
    if scheduler.schedule.flow:
        torch.testing.assert_close(scheduler.scale_noise(X, t.reshape(1), noise), state)


@each
def test_scaling_the_input_any_number_of_times_changes_nothing(name, options):
    scheduler = scheduler_of(name, options)
    expected = run(scheduler)
    scheduler.set_timesteps(STEPS)
    x, sources = start(scheduler), generators()
    for t in scheduler.timesteps:
        first = scheduler.scale_model_input(x, t)
        assert torch.equal(first, scheduler.scale_model_input(x, t))
        assert first.shape == x.shape
        x = advance(scheduler, x, [t], sources)
    assert torch.equal(x, expected)


@each
def test_a_trajectory_moves_and_can_be_repeated(name, options):
    scheduler = scheduler_of(name, options)
    first = run(scheduler)
    assert first.isfinite().all()
    assert (first - X).abs().max() > 0.1
    assert torch.equal(first, run(scheduler)), "set_timesteps drops what an earlier trajectory left"
    assert torch.equal(first, run(scheduler_of(name, options)))
    scheduler.set_timesteps(STEPS + 3)
    advance(scheduler, start(scheduler), scheduler.timesteps[:4], generators())
    assert torch.equal(first, run(scheduler)), "also when it was abandoned, on another grid"
    scheduler.set_timesteps(STEPS)
    assert torch.equal(first, run(scheduler)), "calling it twice is calling it once"


@each
def test_step_leaves_its_arguments_alone_and_gives_a_tuple_on_request(name, options):
    scheduler = scheduler_of(name, options)
    scheduler.set_timesteps(STEPS)
    x = start(scheduler)
    for t in scheduler.timesteps:
        output, sample = model(scheduler, x, t), x.clone()
        given = output.clone()
        result = scheduler.step(output, t, sample, generator=generators(), return_dict=False)
        assert isinstance(result, tuple)
        assert len(result) == 1
        assert torch.equal(output, given)
        assert torch.equal(sample, x)
        x = result[0]


@each
def test_step_takes_a_generator(name, options):
    """One, a list, or none; a deterministic scheduler draws nothing from it, a stochastic one everything."""
    scheduler = scheduler_of(name, options)
    expected = run(scheduler, seeds=(1, 2, 3))
    other = run(scheduler, seeds=(4, 5, 6))
    scheduler.set_timesteps(STEPS)
    single, again = (torch.Generator().manual_seed(1) for _ in range(2))
    before = torch.random.get_rng_state()
    advance(scheduler, start(scheduler), scheduler.timesteps, single)
    assert torch.equal(before, torch.random.get_rng_state())
    stochastic = not torch.equal(expected, other)
    assert torch.equal(single.get_state(), again.get_state()) != stochastic
    if not stochastic:
        scheduler.set_timesteps(STEPS)
        assert torch.equal(advance(scheduler, start(scheduler), scheduler.timesteps, None), expected)


@each
def test_a_sample_does_not_depend_on_its_batch(name, options):
    scheduler = scheduler_of(name, options)
    together = run(scheduler)
    for i in range(3):
        alone = run(scheduler, X[i : i + 1], seeds=(i + 1,))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@each
def test_samples_keep_their_dtype(name, options, dtype):
    """The arithmetic is float32 then, so that a history in half precision costs its last digits only."""
    scheduler = scheduler_of(name, options)
    exact = run(scheduler)
    low = run(scheduler, X.to(dtype))
    assert low.dtype == dtype
    if torch.equal(exact, run(scheduler, seeds=(4, 5, 6))):  # noise in another dtype is other noise
        tolerance = {torch.float16: 0.03, torch.bfloat16: 0.3, torch.float32: 1e-4}[dtype]
        assert (low.double() - exact).abs().max() < tolerance * exact.abs().max()
    mixed = scheduler_of(name, options)
    mixed.set_timesteps(STEPS)
    output, t = model(mixed, X, mixed.timesteps[0]), mixed.timesteps[0]
    sample = start(mixed).to(dtype)
    assert mixed.step(output.float(), t, sample, generator=generators()).prev_sample.dtype == dtype


@each
def test_the_result_can_be_differentiated(name, options):
    """A search for a scheduler's numbers, or guidance by a classifier, needs the gradient through a step."""
    scheduler = scheduler_of(name, options)
    scheduler.set_timesteps(STEPS)
    x, scale = start(scheduler), torch.ones((), dtype=torch.float64, requires_grad=True)
    x = advance(scheduler, scale * x, scheduler.timesteps[: scheduler.order], generators())
    (gradient,) = torch.autograd.grad(x.sum(), scale)
    assert gradient.isfinite()
    assert gradient != 0


# --- position and state


@each
def test_a_trajectory_can_begin_in_the_middle(name, options):
    """As image-to-image pipelines do: by `set_begin_index`, or by the timestep of the first step alone.

    It is then the trajectory of the remaining grid, with nothing of the part that was left out.
    """
    scheduler = scheduler_of(name, options, grid="trailing")
    for skipped in (1, 2, 4):
        scheduler.set_timesteps(STEPS)
        first = stages_before(scheduler, skipped)
        rest, nodes = scheduler.timesteps[first:], scheduler.nodes
        x = scheduler.add_noise(X, gauss(3, 2, 4, 4, seed=5), rest[:1])
        by_timestep = advance(scheduler, x, rest, generators())
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(first)
        by_index = advance(scheduler, x, rest, generators())
        assert torch.equal(by_timestep, by_index)
        with pytest.raises(AccelError, match="more than"):
            scheduler.step(x, rest[-1], x)

        if skipped == 4:  # too few steps for some to begin with; in the middle the order grows again
            assert by_index.isfinite().all()
            continue
        fresh = scheduler_of(name, options)
        fresh.set_timesteps(timesteps=nodes.t[skipped:-1].tolist())
        expected = advance(fresh, x, fresh.timesteps, generators())
        torch.testing.assert_close(by_index, expected, rtol=1e-9, atol=1e-9)


@each
def test_state_can_be_saved_and_continued(name, options):
    """In the same scheduler, as often as wanted, and in a fresh one on the same grid."""
    scheduler = scheduler_of(name, options)
    for at in range(1, 2 * scheduler.order + 2):
        scheduler.set_timesteps(STEPS)
        x = advance(scheduler, start(scheduler), scheduler.timesteps[:at], generators())
        state, rest = scheduler.state_dict(), scheduler.timesteps[at:]
        first = advance(scheduler, x, rest, generators((7, 8, 9)))
        scheduler.load_state_dict(state)
        assert torch.equal(first, advance(scheduler, x, rest, generators((7, 8, 9))))
        fresh = scheduler_of(name, options)
        fresh.set_timesteps(STEPS)
        fresh.load_state_dict(state)
        assert fresh.step_index == at
        assert torch.equal(first, advance(fresh, x, rest, generators((7, 8, 9))))


@each
def test_a_copy_goes_its_own_way(name, options):
    scheduler = scheduler_of(name, options)
    scheduler.set_timesteps(STEPS)
    at = scheduler.order + 1
    x = advance(scheduler, start(scheduler), scheduler.timesteps[:at], generators())
    twin = copy.deepcopy(scheduler)
    state, rest = scheduler.state_dict(), scheduler.timesteps[at:]
    advance(twin, -x, rest, generators((4, 5, 6)))
    first = advance(scheduler, x, rest, generators((7, 8, 9)))
    twin.load_state_dict(state)
    assert torch.equal(first, advance(twin, x, rest, generators((7, 8, 9))))


@each
def test_a_position_that_does_not_exist_is_one_clear_error(name, options):
    scheduler = scheduler_of(name, options)
    with pytest.raises(AccelError, match="before set_timesteps"):
        scheduler.step(X, 999, X)
    scheduler.set_timesteps(STEPS)
    with pytest.raises(AccelError, match="is not in this trajectory"):
        scheduler.step(X, float(scheduler.timesteps[0]) - 3, X, generator=generators())


# --- in pipelines of diffusers


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """A random Stable Diffusion of a few thousand weights, with a tokenizer of two words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = transformers.CLIPTextConfig(
            vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(block_out_channels=(4, 8), latent_channels=4, norm_num_groups=4,
                                      down_block_types=("DownEncoderBlock2D",) * 2,
                                      up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
        text_encoder = transformers.CLIPTextModel(text)
    scheduler = diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    return {
        "vae": vae.eval(), "unet": unet.eval(), "text_encoder": text_encoder.eval(), "tokenizer": tokenizer,
        "scheduler": scheduler, "safety_checker": None, "feature_extractor": None,
    }  # fmt: skip


def in_place(pipe, name: str, options) -> None:
    """Exchange the pipeline's scheduler as anyone would; a class for flows gets the config of a flow."""
    config = pipe.scheduler.config
    if not accepts(name, SD):
        config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    pipe.scheduler = OWN[name].from_config(config, **options)
    pipe.set_progress_bar_config(disable=True)


class Counted:
    """Counts the calls of a network inside the context."""

    def __init__(self, net):
        self.net, self.calls = net, 0

    def __enter__(self):
        self.handle = self.net.register_forward_hook(lambda *args: setattr(self, "calls", self.calls + 1))
        return self

    def __exit__(self, *error):
        self.handle.remove()


def evaluations(scheduler, steps: int) -> set[int]:
    """`order` evaluations a step, of which the last step to sigma = 0 may save all but one."""
    return {steps * scheduler.order, (steps - 1) * scheduler.order + 1}


def check(call, net, scheduler, steps: int) -> torch.Tensor:
    with Counted(net) as counted:
        first = call()
    assert counted.calls in evaluations(scheduler, steps)
    assert counted.calls == len(scheduler.timesteps) - (scheduler.begin_index or 0)
    assert np.isfinite(first).all()
    assert first.std() > 1e-3
    np.testing.assert_array_equal(first, call())
    return first


@each
def test_drop_in_for_stable_diffusion(components, name, options):
    pipe = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    in_place(pipe, name, options)

    def call(steps=4, **changes):
        source = [torch.Generator().manual_seed(i) for i in range(2)]
        settings = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"} | changes
        return pipe(["a", "b a"], generator=source, **settings).images

    images = check(call, pipe.unet, pipe.scheduler, 4)
    assert images.shape == (2, 16, 16, 3)
    noise = call(output_type="latent")
    drawn = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    assert (torch.as_tensor(noise) - drawn).abs().max() > 0.1, "not the noise that it began with"
    assert np.abs(call(5) - images).max() > 1e-4


@each
def test_drop_in_for_image_to_image(components, name, options):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    in_place(pipe, name, options)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def call(strength=0.5):
        source = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "np"}
        return pipe("a", image, strength=strength, generator=source, **settings).images

    images = check(call, pipe.unet, pipe.scheduler, 3)
    assert pipe.scheduler.begin_index == 3 * pipe.scheduler.order
    assert np.abs(call(1.0) - images).max() > 1e-4


@each
def test_drop_in_for_dit(name, options):
    pipe = dit_pipeline()
    in_place(pipe, name, options)

    def call():
        torch.manual_seed(0)  # this pipeline gives a scheduler no generator
        source = [torch.Generator().manual_seed(i) for i in range(2)]
        return pipe([1, 2], 1.0, source, 4, output_type="np").images

    with torch.random.fork_rng():
        images = check(call, pipe.transformer, pipe.scheduler, 4)
    assert images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("name", OWN)
def test_a_saved_pipeline_has_its_scheduler(components, name, tmp_path):
    pipe = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    in_place(pipe, name, SETTINGS.get(name, [{}])[-1])
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is OWN[name]
    images = [
        p("a", generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
        for p in (pipe, loaded)
    ]
    np.testing.assert_array_equal(*images)


def imported(nodes) -> set[str]:
    """Packages that statements import."""
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_transformers_is_imported_where_text_is_and_torchvision_nowhere():
    """What a process has loaded then: tests/cli/test_door.py."""
    for path in Path(accel.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if "transformers" not in text and "torchvision" not in text:
            continue
        tree = ast.parse(text)
        assert "transformers" not in imported(tree.body), path
        assert "torchvision" not in imported(ast.walk(tree)), path
