"""Further classes, from disk: a small experiment of each with its kind of sampler and a cache; the plain pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from hub_modern import MODERN as WITHOUT
from hub_modern import PACKAGED

from accel.core.denoiser import denoiser_name
from accel.core.guiders import guiders
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub.prompts import Prompts

MODERN = WITHOUT | PACKAGED
QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
BETAS = ("sd_pag", "sdxl_pag", "pixart_sigma_pag", "kandinsky3", "hunyuan_dit", "lcm", "cogview3")
# Samplers of the command line cannot drive two; sixty images of Kandinsky 3, and of PRX, take seconds.
UNGUIDED = {"lcm": ["distilled from guided predictions"]}
WHOLE = [kind for kind in MODERN if kind not in ("lcm", "cogview3", "kandinsky3", "prx")]


@pytest.fixture(autouse=True)
def packages(request):
    """Krea 2's network, which keeps parts in float32, is loaded with accelerate alone."""
    if "[krea2]" in request.node.name:
        pytest.importorskip("accelerate", reason="needs the extra `hub`")


@pytest.fixture(autouse=True)
def text(monkeypatch):
    """PRX asks for ftfy, which mends broken text; there is none in the prompts here."""
    from types import SimpleNamespace

    from diffusers.pipelines.prx import pipeline_prx

    monkeypatch.setattr("accel.suites.hub.kinds.find_spec", lambda name: name)
    monkeypatch.setattr(pipeline_prx, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


def sampler(kind: str, steps: int = 2):
    if kind == "lcm":
        return DiffusersSampler("LCMScheduler", steps)
    return method("sampler", "ddim" if kind in BETAS else "flow_euler", steps=steps)


@pytest.mark.parametrize("kind", WHOLE)
def test_experiment_of_every_class(kind, hub_suite, tmp_path):
    suite = hub_suite(kind, converged_steps=1, converged_sampler="ddim" if kind in BETAS else "flow_euler")
    record = Runner(suite, QUICK, Results(tmp_path)).quality(Recipe(sampler(kind), cache=method("cache", "fora")))
    assert record["values"]["distance"]["value"] > 0
    assert record["cost"]["nfe"] == (4 if "pag" in kind else 2), "perturbed attention is a second row of each sample"
    assert record["notes"]["prompts"]["count"] == 60
    assert "partial" in record["strip"]


@pytest.mark.parametrize("kind", [kind for kind in MODERN if kind != "cogview3"])
def test_harness_changes_nothing_but_the_scheduler(kind, hub_suite, hub_pipe):
    """Without guidance and with it, the images are those of a user who sets the scheduler by hand; or the guidance is
    refused."""
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    for guidance in (None, CFG(3.0)) if kind != "prx" else (None,):  # whose own guided calls are of one image
        made = Recipe(sampler(kind), guidance=guidance)
        call = suite.conditions(0, 2) | suite.guidance_arguments(made)
        if suite.kind.guided == "true_cfg_scale":  # which guides where there is a negative prompt, too
            call = {"negative_prompt": ["", ""]} | call
        try:
            with accelerate(pipe, made):
                found = generate(pipe, suite, made, 0, 0, 2, 2)
        except AccelError as error:
            if guidance is None or not any(reason in str(error) for reason in UNGUIDED.get(kind, ())):
                raise
            continue
        assert kind not in UNGUIDED or guidance is None
        original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
        guider = ClassifierFreeGuidance(3.0) if guidance and guiders(pipe) else None
        try:
            for name in guiders(pipe):
                setattr(pipe, name, guider)
            expected = pipe(**call, generator=generators(0, 0, 2), num_inference_steps=2, output_type="pt").images
        finally:
            pipe.scheduler = original
            for name in guiders(pipe):
                setattr(pipe, name, None)
        assert torch.equal(found, expected)
        if MODERN[kind].side:
            assert found.shape == (2, 3, MODERN[kind].side, MODERN[kind].side)


@pytest.mark.parametrize("kind", MODERN)
def test_the_size_that_is_said_is_the_pipelines_own(kind, hub_suite, hub_pipe):
    """Where its class computes one when it is built; others say it in the signature of a call."""
    suite, pipe = hub_suite(kind, height=None, width=None), hub_pipe(kind)
    cells = getattr(pipe, "default_sample_size", None)
    if cells is None or kind == "hidream":
        cells = getattr(pipe, denoiser_name(pipe)).config.get("sample_size")
    if kind == "prx":
        assert suite.image_size == (512, 512), "its class's default, which a folder of its own may change"
    elif suite.kind.side is None:
        assert suite.image_size == (cells * pipe.vae_scale_factor,) * 2
    else:
        assert suite.image_size == ((2048, 2048) if kind == "hunyuan_image" else (1024, 1024))


def test_scales_are_asked_for_as_each_pipeline_means_them(hub_suite, prompt_file):
    """Qwen-Image by a scale of its own name; Z-Image steps with c + w (c - u), which is u + s (c - u) at s = 1 + w."""
    qwen, guided = hub_suite("qwen_image"), Recipe(guidance=CFG(4.0))
    assert [qwen.guidance_arguments(made) for made in (guided, Recipe())] == [
        {"true_cfg_scale": 4.0}, {"true_cfg_scale": 1.0}
    ]  # fmt: skip
    assert hub_suite("flux_kontext").guidance_arguments(guided) == {"true_cfg_scale": 4.0, "guidance_scale": 3.5}
    assert hub_suite("z_image").guidance_arguments(guided) == {"guidance_scale": 3.0}
    assert hub_suite("sana").guidance_arguments(guided) == {"guidance_scale": 4.0}
    assert hub_suite("hunyuan_image").guidance_arguments(guided) == {}, "its guider is put there by the recipe"
    blurry = Prompts(str(prompt_file), negative="blurry")
    assert hub_suite("qwen_image", prompts=blurry).conditions(0, 2)["negative_prompt"] == ["blurry"] * 2
    assert hub_suite("qwen_image", prompts=blurry).guidance_arguments(Recipe())["negative_prompt"] is None
    with pytest.raises(
        ConfigError, match=r"Flux2KleinPipeline has no negative prompts; leave suite\.prompts\.negative"
    ):
        hub_suite("flux2_klein", prompts=blurry).check(60)


def test_kontext_keeps_the_size_that_it_is_asked_for(hub_suite):
    """Its pipeline scales both sides to an area of its own, 1024 x 1024, unless it is told another."""
    assert hub_suite("flux_kontext", height=16, width=24).conditions(0, 1)["max_area"] == 16 * 24


def test_classes_that_only_their_own_scheduler_drives_say_so(hub_pipe):
    ddim, lcm = Recipe(method("sampler", "ddim", steps=2)), "cannot drive DDIMScheduler"
    with pytest.raises(IncompatibleError, match="snr_shift_scale"):
        ddim.check(hub_pipe("cogview3"), {})
    with accelerate(hub_pipe("lcm"), ddim), pytest.raises(IncompatibleError, match=lcm):
        hub_pipe("lcm")("a cat", num_inference_steps=2, height=16, width=16)


def test_a_network_that_is_loaded_with_accelerate_alone_says_so(hub_folder, hub_suite, monkeypatch):
    suite = hub_suite("krea2")
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a Krea2Transformer2DModel, parts of which .* needs accelerate"):
        suite.pipeline()


def test_guidance_that_a_pipeline_never_asks_for_is_refused_before_work(hub_suite):
    """A klein that is distilled for few steps ignores every scale; Krea 2 has the same entry and is guided."""
    suite, made = hub_suite("flux2_klein"), Recipe(sampler("flux2_klein"), guidance=CFG(3.0))
    pipe = suite.pipeline()
    made.check(pipe)
    pipe.register_to_config(is_distilled=True)
    with pytest.raises(IncompatibleError, match=r"Flux2KleinPipeline is distilled for few steps .*Use guidance=none"):
        made.check(pipe)
    plain = Recipe(sampler("flux2_klein"))
    with accelerate(pipe, plain) as run:
        generate(pipe, suite, plain, 0, 0, 2, 2)
    assert run.nfe == 2


@pytest.mark.parametrize(
    ("axis", "name"), [("guidance", "interval"), ("guidance", "ag"), ("guidance", "apg"), ("cache", "tgate")]
)
def test_what_leaves_out_rows_of_perturbed_attention_is_refused(axis, name, hub_suite):
    pipe, plain = hub_suite("sd_pag").pipeline(), Recipe(sampler("sd_pag"), guidance=CFG(3.0))
    plain.check(pipe)
    with pytest.raises(IncompatibleError, match=rf"three rows of each image .*{axis}=.*\(StableDiffusionPipeline\)"):
        replace(plain, **{axis: method(axis, name)}).check(pipe)
