"""ControlNets: the plain pipeline as judge, and caches against what they keep, put in place by hooks."""

from __future__ import annotations

import shutil

import hub_tiny
import pytest
import torch
from hub_modern import CONTROL_NETS as NETS
from hub_modern import MODE
from PIL import Image

from accel.caching import DeepCache, EncoderPropagation
from accel.caching.schedules import Uniform
from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import control as hub_control
from accel.suites.hub.inputs import Inputs
from accel.suites.hub.kinds import controlled, kind_of

pytestmark = pytest.mark.usefixtures("plain_kernels")
QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
FLOWS = ("sd3", "flux", "flux_control", "flux_union")


@pytest.fixture(scope="session")
def suite_of(hub_suite, control_folder, pictures):
    """suite_of(kind, scale=None) -> its suite under its ControlNet, if it has one."""

    def suite(kind: str, scale: float | None = None, **own):
        net = {"controlnet": str(control_folder(NETS[kind]))} if kind in NETS else {}
        mode = own.pop("mode", MODE if kind.endswith("_union") else None)
        inputs = Inputs(control=str(pictures), control_scale=scale, control_mode=mode)
        return hub_suite(kind.removesuffix("_union"), inputs=inputs, **net | own)

    return suite


@pytest.fixture(scope="session")
def pipe_of(suite_of):
    """pipe_of(kind) -> the pipeline of that suite; tests must leave it as they found it."""
    made = {}

    def pipe(kind: str):
        if kind not in made:
            made[kind] = suite_of(kind).pipeline()
        return made[kind]

    return pipe


def sampler(kind: str, steps: int = 3):
    return method("sampler", "flow_euler" if kind in FLOWS else "ddim", steps=steps)


def plainly(pipe, suite, made: Recipe, steps: int, **more):
    """Images of samples 0 and 1 without accel: the recipe's scheduler put into the pipeline by hand."""
    null = {"negative_prompt": ["", ""]} if type(pipe).__name__.startswith("FluxControlNet") and made.guidance else {}
    call = suite.conditions(0, 2) | suite.guidance_arguments(made) | null | more
    original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
    try:
        return pipe(**call, generator=generators(0, 0, 2), num_inference_steps=steps, output_type="pt").images
    finally:
        pipe.scheduler = original


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", [*NETS, "flux_control"])
def test_images_are_those_of_the_plain_pipeline(kind, guided, suite_of, pipe_of):
    if guided and kind == "flux_control":
        pytest.skip("distilled: it is told the scale")
    suite, pipe = suite_of(kind), pipe_of(kind)
    made = Recipe(sampler(kind), guidance=CFG(3.0) if guided else None)
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
        alone = generate(pipe, suite, made, 0, 1, 2, 1)
    assert run.nfe == (6 if guided else 3)
    assert torch.equal(found, plainly(pipe, suite, made, 3))
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-4 if kind == "sdxl_union" else 1e-5)  # it adds more
    swapped = {suite.kind.control: suite.conditions(2, 4)[suite.kind.control]}
    assert not torch.equal(found, plainly(pipe, suite, made, 3, **swapped)), "the condition's image changes nothing"


def test_image_to_image_beside_one_begins_at_its_image(hub_suite, control_folder, pictures, tmp_path):
    for i, picture in enumerate(sorted(pictures.iterdir())):  # the conditions: the same in another order
        shutil.copy(picture, tmp_path / f"{59 - i:02d}.png")
    inputs = Inputs(str(pictures), strength=0.5, control=str(tmp_path))
    suite = hub_suite("sd_img2img", inputs=inputs, controlnet=str(control_folder("sd_control_net")))
    suite.check(60)
    pipe, made = suite.pipeline(), Recipe(sampler("sd", 4), guidance=CFG(3.0), cache=DeepCache(1, 2))
    assert type(pipe).__name__ == "StableDiffusionControlNetImg2ImgPipeline"
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
    assert run.nfe == 4, "two of four steps"
    assert torch.equal(found, plainly(pipe, suite, made, 4))
    call = suite.conditions(0, 2)
    assert {"image", "control_image", "strength", "controlnet_conditioning_scale"} <= set(call)
    assert call["controlnet_conditioning_scale"] == 0.8, "the pipeline's own"
    assert call["control_image"][0].tobytes() != suite.conditions(1, 2)["control_image"][0].tobytes()
    assert {"inputs", "control", "setting strength", "setting control scale"} <= set(suite.fingerprint())


def test_the_class_is_the_one_that_diffusers_has_for_both(suite_of):
    found = {kind: suite_of(kind).kind.name for kind in [*NETS, "flux_control"]}
    assert found == {
        "sd": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline",
        "sd3": "StableDiffusion3ControlNetPipeline", "flux": "FluxControlNetPipeline",
        "sdxl_union": "StableDiffusionXLControlNetUnionPipeline", "flux_union": "FluxControlNetPipeline",
        "flux_control": "FluxControlPipeline",
    }  # fmt: skip
    assert controlled("StableDiffusionXLPAGPipeline") == "StableDiffusionXLControlNetPAGPipeline"
    assert controlled("StableDiffusionInpaintPipeline") == "StableDiffusionControlNetInpaintPipeline"
    kind = kind_of("StableDiffusionControlNetImg2ImgPipeline")
    assert (kind.image, kind.control, kind.control_scale) == (True, "control_image", 0.8)


@pytest.mark.parametrize("kind", ["sdxl_union", "flux_union"])
def test_the_kind_of_a_condition_is_said(kind, suite_of, pipe_of):
    suite, pipe, made = suite_of(kind), pipe_of(kind), Recipe(sampler(kind))
    assert suite.kind.modes == (6 if kind == "sdxl_union" else 4)
    found = plainly(pipe, suite, made, 3)
    other = suite_of(kind, mode=1)
    assert not torch.equal(plainly(pipe, other, made, 3), found)
    assert other.fingerprint() != suite.fingerprint()
    assert suite.fingerprint()["setting control mode"] == str(MODE)
    for mode, said in ((None, "empty"), (9, "9")):
        with pytest.raises(
            ConfigError, match=rf"kinds of conditions, and suite\.inputs\.control_mode is {said}; allowed"
        ):
            suite_of(kind, mode=mode).check(60)
    with pytest.raises(ConfigError, match="has no ControlNet for several kinds of conditions; leave"):
        suite_of(kind.removesuffix("_union"), mode=1).check(60)
    with pytest.raises(ConfigError, match=r"suite\.inputs\.control_mode is -1"):
        Inputs(control_mode=-1)


def entry_of(net, branch: int):
    """(module whose input, or output, is the hidden state that enters the up layer of skip `branch`, its input?)."""
    for block in reversed(net.up_blocks):
        if branch <= len(block.resnets):
            layer = len(block.resnets) - branch
            if layer == 0:
                return block, True
            return (getattr(block, "attentions", None) or block.resnets)[layer - 1], False
        branch -= len(block.resnets)
    raise AssertionError


def kept_by_hand(net, branch: int, handles: list):
    """Hooks by which even evaluations keep the deep state of DeepCache at `branch`, and odd ones are given it."""
    module, is_input = entry_of(net, branch)
    count, kept = [0], {}

    def swap(value):
        if count[0] % 2 == 0:
            kept["state"] = value.clone()
            return value
        return kept["state"].clone()

    def before(_, args, kwargs):
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": swap(kwargs["hidden_states"])}
        return (swap(args[0]), *args[1:]), kwargs

    def after(_, args, output):
        return (swap(output[0]), *output[1:]) if isinstance(output, tuple) else swap(output)

    hook = (
        module.register_forward_pre_hook(before, with_kwargs=True) if is_input else module.register_forward_hook(after)
    )
    handles += [hook, net.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))]


@pytest.mark.parametrize("branch", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "guided"), [("sd", True), ("sd", False), ("sdxl", True)])
def test_deepcache_adds_each_residual_where_the_whole_network_does(kind, branch, guided, suite_of, pipe_of):
    """The judge: the whole network, ControlNet included, whose deep hidden state is overwritten by the kept one."""
    suite, pipe = suite_of(kind, 2.0), pipe_of(kind)
    made = Recipe(sampler(kind, 4), guidance=CFG(3.0) if guided else None)
    plain = plainly(pipe, suite, made, 4)
    with accelerate(pipe, Recipe(made.sampler, guidance=made.guidance, cache=DeepCache(1, branch))):
        assert torch.equal(generate(pipe, suite, made, 0, 0, 2, 2), plain), "interval 1"
    handles: list = []
    kept_by_hand(pipe.unet, branch, handles)
    try:
        expected = plainly(pipe, suite, made, 4)
    finally:
        for handle in handles:
            handle.remove()
    with accelerate(pipe, Recipe(made.sampler, guidance=made.guidance, cache=DeepCache(2, branch))) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
    assert run.strip == "base:full base:shallow base:full base:shallow"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert (found - plain).abs().max() > 1e-4, "the cache is really stale"
    without = plainly(pipe, suite_of(kind, 0.0), made, 4)
    assert (plain - without).abs().max() > 1e-2, "the ControlNet adds too little to be missed"


def test_encoder_propagation_keeps_the_residuals_in_the_skips(suite_of, pipe_of):
    """The judge: the whole network, whose decoder is given what entered it at the key step."""
    suite, pipe = suite_of("sd", 2.0), pipe_of("sd")
    made = Recipe(sampler("sd", 4), guidance=CFG(3.0))
    plain, count, kept = plainly(pipe, suite, made, 4), [0], {}

    def entering(index: int):
        def before(_, args, kwargs):
            if count[0] % 2 == 0:
                kept[index] = (
                    kwargs["hidden_states"].clone(),
                    tuple(s.clone() for s in kwargs["res_hidden_states_tuple"]),
                )
                return args, kwargs
            hidden, skips = kept[index]
            return args, kwargs | {"res_hidden_states_tuple": skips} | ({"hidden_states": hidden} if index == 0 else {})

        return before

    handles = [
        block.register_forward_pre_hook(entering(i), with_kwargs=True) for i, block in enumerate(pipe.unet.up_blocks)
    ]
    handles.append(pipe.unet.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1)))
    try:
        expected = plainly(pipe, suite, made, 4)
    finally:
        for handle in handles:
            handle.remove()
    with accelerate(pipe, Recipe(made.sampler, guidance=made.guidance, cache=EncoderPropagation(Uniform(2)))) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
    assert run.strip == "base:full base:decoder base:full base:decoder"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert (found - plain).abs().max() > 1e-4
    with accelerate(pipe, Recipe(made.sampler, guidance=made.guidance, cache=EncoderPropagation(Uniform(1)))):
        assert torch.equal(generate(pipe, suite, made, 0, 0, 2, 2), plain)


def test_its_evaluations_are_macs_and_no_nfe(suite_of, pipe_of):
    """A cache spares none of them."""
    suite, pipe, seen = suite_of("sd"), pipe_of("sd"), {}
    handle = pipe.controlnet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    for cache in (None, DeepCache(2, 1)):
        made = Recipe(sampler("sd", 4), cache=cache)
        with accelerate(pipe, made, count_macs=True) as run:
            generate(pipe, suite, made, 0, 0, 2, 2)
        beside = [call for call in run.trace if not call.denoiser]
        _, each = count_macs(lambda: pipe.controlnet(*seen["args"], **seen["kwargs"]))
        assert [call.macs for call in beside] == [each] * 4
        assert run.macs == (sum(call.macs for call in run.trace if call.denoiser) + 4 * each) / 2
        assert run.nfe == 4
        assert "forward" not in vars(pipe.controlnet)
    handle.remove()


def test_latents_that_a_pipeline_draws_by_itself_are_their_mean(pipe_of, hub_suite):
    """Stable Diffusion 3 samples its condition by the global generator."""
    vae, x = pipe_of("sd3").vae, torch.randn(2, 3, 16, 16)
    drawn = vae.encode(x).latent_dist
    assert torch.equal(drawn.sample(), drawn.mode())
    own = hub_suite("sd3").pipeline().vae.encode(x).latent_dist
    assert not torch.equal(own.sample(), own.mode()), "without a ControlNet the autoencoder is left alone"
    assert [kind_of(f"{name}Pipeline").settled for name in ("JoyImageEdit", "FluxControlNet")] == [False, True]
    assert torch.equal(drawn.sample(torch.Generator().manual_seed(3)), own.sample(torch.Generator().manual_seed(3)))


def test_caches_that_pass_blocks_by_together_are_refused(pipe_of, suite_of):
    pipe = pipe_of("flux")
    for cache in (method("cache", "diffusers_first_block"), method("cache", "cache_dit")):
        with pytest.raises(IncompatibleError, match=r"a controlnet adds to what is between them"):
            Recipe(sampler("flux"), cache=cache).check(pipe, machine=False)
    made = Recipe(sampler("flux", 4), cache=method("cache", "fora"))
    with accelerate(pipe, made) as run:
        generate(pipe, suite_of("flux"), made, 0, 0, 2, 2)
    assert "partial" in run.strip


def test_experiment(suite_of, tmp_path):
    suite = suite_of("sd", converged_steps=4, converged_sampler="ddim")
    record = Runner(suite, QUICK, Results(tmp_path)).quality(Recipe(sampler("sd", 2), cache=DeepCache(2, 1)))
    assert record["values"]["distance"]["value"] > 0
    assert record["cost"]["nfe"] == 2


def test_network_images_and_scale_identify_a_run(suite_of, hub_suite, control_folder, pictures, tmp_path):
    known = suite_of("sd").fingerprint()
    assert known["setting control scale"] == "1"
    assert {"control", "controlnet/config.json", "controlnet/diffusion_pytorch_model.safetensors"} <= set(known)
    assert suite_of("sd", 0.5).fingerprint() != known
    other = Inputs(control=str(tmp_path))
    shutil.copy(next(pictures.iterdir()), tmp_path / "one.png")
    net = {"controlnet": str(control_folder("sd_control_net"))}
    assert hub_suite("sd", inputs=other, **net).fingerprint() != known
    assert not {"control", "setting control scale"} & set(hub_suite("sd").fingerprint())
    call = suite_of("sd").conditions(1, 3)
    assert [picture.size for picture in call["image"]] == [(16, 16)] * 2
    assert call["controlnet_conditioning_scale"] == 1.0
    stored = Image.open(sorted(pictures.iterdir())[1]).crop((2, 0, 18, 16))
    assert call["image"][0].tobytes() == stored.tobytes()


def test_a_pipeline_that_was_saved_with_one_has_it(suite_of, hub_suite, control_folder, pictures, tmp_path):
    made = Recipe(sampler("sd"))
    suite = suite_of("sd")
    pipe = suite.pipeline()
    pipe.save_pretrained(tmp_path / "both")
    own = hub_suite("sd", model=str(tmp_path / "both"), inputs=Inputs(control=str(pictures)))
    own.check(60)
    assert torch.equal(plainly(own.pipeline(), own, made, 3), plainly(pipe, suite, made, 3))
    assert "controlnet/diffusion_pytorch_model.safetensors" in own.fingerprint()
    both = hub_suite("sd", model=str(tmp_path / "both"), controlnet=str(control_folder("sd_control_net")))
    with pytest.raises(ConfigError, match="has a ControlNet of its own; leave suite"):
        both.kind  # noqa: B018


def test_what_cannot_be_is_said_before_any_work(suite_of, hub_suite, control_folder, pictures, tmp_path):
    def refused(message: str, kind: str = "sd", inputs: Inputs | None = None, **settings):
        with pytest.raises(ConfigError, match=message):
            hub_suite(kind, inputs=inputs or Inputs(control=str(pictures)), **settings).check(60)

    net = str(control_folder("sd_control_net"))
    refused("suite.inputs.control is empty; give a folder", inputs=Inputs(), controlnet=net)
    refused("holds 0 images", inputs=Inputs(control=str(tmp_path)), controlnet=net)
    refused("takes no images of a condition; leave suite.inputs.control out")
    refused("has no ControlNet; leave suite.inputs.control_scale out", inputs=Inputs(control_scale=0.5))
    refused("is a ControlNetModel, and a FluxControlNetPipeline takes .*FluxControlNetModel", "flux", controlnet=net)
    refused("hub has no PixArtAlphaPipeline under a ControlNet", "pixart_alpha", controlnet=net)
    refused(r"has cross_attention_dim 8, and the network of .* has not", "sdxl", controlnet=net)
    refused("which has no config.json", controlnet=str(tmp_path))
    refused(r"there is no folder .*nowhere \(suite.controlnet\)", controlnet=str(tmp_path / "nowhere"))
    other = str(hub_tiny.save("sd", tmp_path / "other", layers_per_block=2))
    refused(r"stitch_models\.small has other layers", controlnet=net, stitch_models={"small": other})
    refused(r"suite\.student has other layers", controlnet=net, student=other)
    same = hub_suite("sd", inputs=Inputs(control=str(pictures)), controlnet=net)
    hub_suite("sd", inputs=same.inputs, controlnet=net, stitch_models={"same": same.model}).check(60)
    with pytest.raises(ConfigError, match=r"suite\.inputs\.control_scale is -1"):
        Inputs(control_scale=-1)
    pickled = shutil.copytree(net, tmp_path / "pickled")
    (pickled / "diffusion_pytorch_model.safetensors").rename(pickled / "diffusion_pytorch_model.bin")
    refused("has no safetensors weights", controlnet=str(pickled))


def test_lines_of_python_do_the_same_by_diffusers_alone(suite_of, pipe_of):
    suite = suite_of("sd3")
    origin = suite.origin()
    assert origin.name == "StableDiffusion3ControlNetPipeline"
    assert origin.options["controlnet"] is None
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    own = DiagonalGaussianDistribution.sample
    pipe = getattr(diffusers, origin.name).from_pretrained(origin.model, **origin.options)
    pipe.set_progress_bar_config(disable=True)
    made = Recipe(sampler("sd3"))
    try:
        exec("\n".join(origin.lines), {"pipe": pipe, "torch": torch})  # lines of this repository's own
        assert torch.equal(plainly(pipe, suite, made, 3), plainly(pipe_of("sd3"), suite, made, 3))
    finally:
        DiagonalGaussianDistribution.sample = own
    assert hub_control.lines(suite_of("sd").kind, None, None, torch.float32) == []
