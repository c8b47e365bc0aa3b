"""`PixelPipeline`: real checkpoint layouts, equality with diffusers' own loop, guidance, generators, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DModel,
)

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG
from accel.samplers import DiffusersSampler
from accel.suites.base import load_pipeline
from accel.suites.pipeline import PixelPipeline


def tiny_unet(**changes) -> UNet2DModel:
    """google/ddpm-cifar10-32 in miniature: unconditional RGB with attention and a mid block."""
    settings = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (4, 8),
        "norm_num_groups": 4, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**settings | changes).eval().requires_grad_(False)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def pixel(unet, scheduler=None) -> PixelPipeline:
    pipe = PixelPipeline(unet, scheduler or DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A checkpoint as DDPMPipeline saves it today: unet/ and scheduler/."""
    folder = tmp_path_factory.mktemp("nested") / "ddpm"
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flat(nested, tmp_path_factory):
    """The layout of google/ddpm-cifar10-32: everything at the root, a config from before class labels existed."""
    folder = tmp_path_factory.mktemp("flat") / "ddpm"
    folder.mkdir()
    shutil.copy(nested / "model_index.json", folder)
    shutil.copy(nested / "scheduler" / "scheduler_config.json", folder)
    shutil.copy(nested / "unet" / "diffusion_pytorch_model.safetensors", folder)
    config = json.loads((nested / "unet" / "config.json").read_text())
    since = ("num_class_embeds", "class_embed_type", "dropout", "add_attention", "attn_norm_num_groups",
             "downsample_type", "upsample_type", "resnet_time_scale_shift", "num_train_timesteps", "time_embedding_dim",
             "mid_block_type")  # fmt: skip
    old = {k: v for k, v in config.items() if k not in since and k != "_diffusers_version"}
    (folder / "config.json").write_text(json.dumps(old | {"_diffusers_version": "0.0.4"}))
    return folder


# --- unconditional checkpoints


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_unconditional_checkpoint_gives_the_images_of_diffusers(layout, request):
    folder = request.getfixturevalue(layout)
    ours = load_pipeline(PixelPipeline, folder)
    assert isinstance(ours, PixelPipeline)
    assert ours.null_label is None
    ours.scheduler = DDIMScheduler.from_config(ours.scheduler.config)
    saved, loaded = tiny_unet().state_dict(), ours.unet.state_dict()
    assert all(torch.equal(saved[k], loaded[k]) for k in saved)
    theirs = DDIMPipeline(ours.unet, ours.scheduler)  # the same object: kernels round by the alignment of the weights
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(3, generators(5, 6, 7), num_inference_steps=5, output_type="np").images
    found = ours(batch_size=3, generator=generators(5, 6, 7), num_inference_steps=5, output_type="np").images
    assert found.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(found, expected)
    one = [p(batch_size=2, generator=generators(5)[0], num_inference_steps=3, output_type="np") for p in (ours, theirs)]
    np.testing.assert_array_equal(one[0].images, one[1].images)


def test_unconditional_checkpoint_runs_recipes(nested):
    pipe = load_pipeline(PixelPipeline, nested)
    with accelerate(pipe, Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 6))) as run:
        pil = pipe(batch_size=2, generator=generators(0, 1)).images
    assert [image.size for image in pil] == [(8, 8)] * 2
    assert run.nfe == 6
    # A scale without classes is no guidance: nothing is doubled.
    with accelerate(pipe, Recipe(DiffusersSampler("DDIMScheduler", 2))) as run:
        pipe(batch_size=2, generator=generators(0, 1), guidance_scale=3.0)
    assert [e.rows for e in run.trace] == [2, 2]


def test_number_of_images_without_labels(nested):
    pipe = load_pipeline(PixelPipeline, nested)
    assert pipe(num_inference_steps=1, output_type="pt").images.shape == (1, 3, 8, 8)
    assert (
        len(pipe(latents=torch.randn(4, 3, 8, 8), num_inference_steps=1, output_type="pt", return_dict=False)[0]) == 4
    )


# --- class-conditional


def test_guided_sampling_equals_a_hand_written_loop(pipe):
    """Two separate calls for each step: eps = eps(x, null) + s (eps(x, c) - eps(x, null))."""
    scale, steps, labels = 2.5, 4, torch.tensor([7, 1, 4])
    noise = torch.cat([torch.randn(1, 1, 16, 16, generator=g) for g in generators(3, 4, 5)])
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = noise.clone()
    with torch.no_grad():
        for t in scheduler.timesteps:
            c = pipe.unet(x, t, class_labels=labels).sample
            u = pipe.unet(x, t, class_labels=torch.full_like(labels, 10)).sample
            x = scheduler.step(u + scale * (c - u), t, x).prev_sample
    found = {}
    ours = pixel(pipe.unet, DDIMScheduler.from_config(scheduler.config))
    call = {"class_labels": labels, "num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt"}
    found["generators"] = ours(generator=generators(3, 4, 5), **call).images
    found["latents"] = ours(latents=noise, **call).images
    recipe = Recipe(DiffusersSampler("DDIMScheduler", steps), guidance=CFG(scale))
    with accelerate(ours, recipe):
        found["accelerated"] = ours(generator=generators(3, 4, 5), **call).images
    for name, images in found.items():
        torch.testing.assert_close(images, x, atol=1e-3, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(found["generators"], found["latents"])
    assert torch.equal(found["generators"], found["accelerated"])
    plain = ours(generator=generators(3, 4, 5), **call | {"guidance_scale": 1.0}).images
    assert (plain - x).abs().max() > 0.05, "guidance does something"


def test_null_label_samples_the_unconditional_model(pipe):
    """A label of its own: without guidance it is the marginal, with guidance u + s (u - u) = u."""
    call = {"class_labels": [10, 10], "num_inference_steps": 3, "output_type": "pt"}
    plain, guided = (pipe(generator=generators(0, 1), guidance_scale=s, **call).images for s in (1.0, 4.0))
    torch.testing.assert_close(plain, guided, atol=2e-3, rtol=0)


def test_output_types(pipe):
    call = {"class_labels": [1, 2], "num_inference_steps": 2}
    raw, array, pil = (pipe(generator=generators(0, 1), output_type=o, **call).images for o in ("pt", "np", "pil"))
    expected = (raw / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pil]), (expected[..., 0] * 255).round())


# --- generators


def seen_noise(pipe, count, generator, **kwargs):
    """The first input of the denoiser."""
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        images = pipe(class_labels=list(range(count)), generator=generator, num_inference_steps=3, output_type="pt",
                      **kwargs).images  # fmt: skip
    finally:
        handle.remove()
    return seen[0], images


def test_a_sample_does_not_depend_on_its_batch(pipe):
    together, images = seen_noise(pipe, 3, generators(10, 11, 12))
    alone, _ = seen_noise(pipe, 1, generators(12))
    assert torch.equal(together[2:], alone), "its noise, bit for bit"
    label = pipe(class_labels=[2], generator=generators(12), num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(images[2:], label, atol=1e-3, rtol=0)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerAncestralDiscreteScheduler])
def test_stochastic_samplers_draw_from_the_samples_own_generators(pipe, scheduler):
    ours = pixel(pipe.unet, scheduler.from_config(pipe.scheduler.config))
    call = {"num_inference_steps": 4, "output_type": "pt"}
    images = ours(class_labels=[1, 2, 3], generator=generators(1, 2, 3), **call).images
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(ours(class_labels=[1, 2, 3], generator=generators(1, 2, 3), **call).images, images)
    alone = ours(class_labels=[3], generator=generators(3), **call).images
    torch.testing.assert_close(images[2:], alone, atol=1e-3, rtol=0)
    # The step noise is drawn: the same initial noise with other generators afterwards gives other images.
    noise = torch.cat([torch.randn(1, 1, 16, 16, generator=g) for g in generators(1, 2, 3)])
    other = ours(class_labels=[1, 2, 3], latents=noise, generator=generators(4, 5, 6), **call).images
    assert (other - images).flatten(1).abs().amax(1).min() > 0.05
    # And not from the same numbers as the initial noise.
    used = generators(1)
    ours(class_labels=[1], generator=used, **call)
    drawn = generators(1)[0]
    torch.randn(1, 1, 16, 16, generator=drawn)
    assert not torch.equal(used[0].get_state(), drawn.get_state())


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, r"class_labels is missing; this model needs labels in 0\.\.9"),
     ({"class_labels": [0, 11]}, r"class_labels are \[0, 11\]; allowed: at least one in 0\.\.9"),
     ({"class_labels": [-1]}, r"class_labels are \[-1\]"), ({"class_labels": []}, r"class_labels are \[\]"),
     ({"class_labels": [1], "latents": torch.zeros(2, 1, 16, 16)}, r"shape \(2, 1, 16, 16\); allowed: \(1"),
     ({"class_labels": [1], "latents": torch.zeros(1, 3, 16, 16)}, r"allowed: \(1, 1, 16, 16\)")],
)  # fmt: skip
def test_bad_arguments(pipe, arguments, said):
    with pytest.raises(ConfigError, match=said):
        pipe(num_inference_steps=1, **arguments)


@pytest.mark.parametrize("content", ["weights", "code"])
def test_pickles_are_never_loaded(nested, tmp_path, content):
    """A folder that has a pickle only is refused, even one with the right weights, and code in it does not run."""
    folder = tmp_path / "pickled"
    shutil.copytree(nested, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()

    class Code:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    state = tiny_unet().state_dict() if content == "weights" else {"x": Code()}
    torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot load .*pickled.*safetensors weights are loaded, never pickles"):
        load_pipeline(PixelPipeline, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_what_is_not_a_pipeline_folder(tmp_path, what):
    folder = tmp_path / "model"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    with pytest.raises(ConfigError, match=r"model is not a diffusers pipeline folder \(it has no model_index.json\)"):
        load_pipeline(PixelPipeline, folder)


def test_folder_without_its_weights(nested, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(nested, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot load"):
        load_pipeline(PixelPipeline, folder)


def test_damaged_model_index(nested, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(nested, folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot load"):
        load_pipeline(PixelPipeline, folder)
