"""A tiny decoder for a hub pipeline: in recipes that ask for it, and in no other."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny

from accel.core.recipe import Recipe, accelerate
from accel.deploy.apply import apply
from accel.deploy.recipe_file import load_recipe
from accel.errors import ConfigError, IncompatibleError, IntegrityError
from accel.evaluation.generate import generate
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

PLAIN = Recipe(method("sampler", "ddim", steps=2))
TINY = Recipe(PLAIN.sampler, decoder=method("decoder", "tiny"))


@pytest.fixture(autouse=True)
def fast(few_ranges):
    pass


@pytest.fixture(scope="module")
def folder(hub_suite, tmp_path_factory):
    """A random tiny autoencoder for the latents of the tiny Stable Diffusion."""
    vae = hub_suite("sd").pipeline().vae.config
    blocks = len(vae.block_out_channels)
    torch.manual_seed(0)
    net = AutoencoderTiny(
        latent_channels=vae.latent_channels, encoder_block_out_channels=(4,) * blocks, num_encoder_blocks=(0,) * blocks,
        decoder_block_out_channels=(4,) * blocks, num_decoder_blocks=(1,) + (0,) * (blocks - 1),
    )  # fmt: skip
    place = tmp_path_factory.mktemp("decoders") / "taesd"
    net.save_pretrained(place)
    return place


def images(suite, recipe):
    pipe, models = suite.pipeline(), suite.networks()
    with accelerate(pipe, recipe, models=models):
        return generate(pipe, suite, recipe, 0, 0, 2, 2)


def test_only_recipes_that_ask_for_it_get_it(folder, hub_suite):
    plain, suite = hub_suite("sd"), hub_suite("sd", decoder=str(folder))
    assert suite.fingerprint() == plain.fingerprint(), "no other image changes"
    want = images(plain, PLAIN)
    assert torch.equal(images(suite, PLAIN), want)
    own = images(suite, TINY)
    assert own.shape == want.shape
    assert not torch.equal(own, want)
    with pytest.raises(IncompatibleError, match="there is no decoder, but 'tiny' is named; use decoder=none"):
        images(plain, TINY)


def test_its_files_are_part_of_what_identifies_its_images(folder, hub_suite, tmp_path):
    suite = hub_suite("sd", decoder=str(folder))
    other = tmp_path / "other"
    net = AutoencoderTiny.from_pretrained(folder)
    next(net.decoder.parameters()).data += 1
    net.save_pretrained(other)
    evaluation = Evaluation(n=60, batch=2, shard=20, timing=False)

    def ids(decoder):
        runner = Runner(hub_suite("sd", decoder=str(decoder)), evaluation, Results(tmp_path / "r"))
        return runner.generation_id(PLAIN), runner.generation_id(TINY)

    (plain, own), (same, changed) = ids(folder), ids(other)
    assert plain == same
    assert len({plain, own, changed}) == 3
    assert {*suite.decoders()["tiny"].fingerprint} == {
        "decoder/config.json", "decoder/diffusion_pytorch_model.safetensors",
    }  # fmt: skip


def test_what_is_no_tiny_autoencoder_is_refused(folder, hub_suite, hub_folder, tmp_path):
    for source, said in (
        (hub_folder("sd") / "vae", r"suite\.decoder is of class AutoencoderKL; allowed: AutoencoderTiny"),
        (tmp_path, r"suite\.decoder is .*, which has no config\.json; allowed: the folder of a tiny autoencoder"),
        (tmp_path / "nowhere", r"there is no folder .*nowhere \(suite\.decoder\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            hub_suite("sd", decoder=str(source)).check(2)
    hub_suite("sd", decoder=str(folder)).check(2)


def test_a_recipe_file_keeps_it_by_its_digest(folder, hub_suite, tmp_path):
    suite = hub_suite("sd", decoder=str(folder))
    pipe, models = suite.pipeline(), suite.networks()
    TINY.save(tmp_path / "saved", pipe=pipe, models=models)
    saved = load_recipe(tmp_path / "saved")
    assert saved.recipe == TINY
    assert {*saved.model["models"]} == {"tiny"}
    call = {"prompt": "a", "output_type": "pt", "num_inference_steps": 2, "guidance_scale": 1.0}

    def made(pipe):
        return pipe(**call, generator=torch.Generator().manual_seed(0)).images

    with accelerate(pipe, TINY, models=models):
        want = made(pipe)
    with apply(pipe, tmp_path / "saved", models=dict(models)):
        assert torch.equal(made(pipe), want)
    wrong = AutoencoderTiny.from_pretrained(folder).eval()
    next(wrong.decoder.parameters()).data += 1
    with pytest.raises((ConfigError, IncompatibleError, IntegrityError), match="tiny"):
        apply(pipe, tmp_path / "saved", models={"tiny": wrong})
