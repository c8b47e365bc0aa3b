"""Tiny decoders in the place of a pipeline's own: what they are given, what they leave alone, and what they refuse."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

import accel
from accel.core.decoder import FILE, Distilled, distilled
from accel.core.denoiser import replaced
from accel.core.recipe import Recipe, accelerate
from accel.core.stages import stage_seconds
from accel.decoders import TinyDecoder
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError, IntegrityError
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.base import TinyAutoencoder
from accel.suites.decoders import folder_of, load, save
from accel.testing.suites import TinySuite

TINY = TinySuite("transformer")
RECIPE = Recipe(method("sampler", "ddim", steps=2), decoder=TinyDecoder("tiny"))


def kl(scaling: float = 0.5, shift: float | None = 0.25, **changes) -> AutoencoderKL:
    settings = {"block_out_channels": (4,), "latent_channels": 4, "norm_num_groups": 4}
    torch.manual_seed(0)
    return AutoencoderKL(**settings | {"scaling_factor": scaling, "shift_factor": shift} | changes).eval()


def tiny(**changes) -> AutoencoderTiny:
    settings = {"latent_channels": 4, "num_encoder_blocks": (0,), "num_decoder_blocks": (1,)}
    settings |= dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (4,))
    torch.manual_seed(1)
    return AutoencoderTiny(**settings | changes).eval()


def test_it_decodes_the_latents_of_the_denoiser_and_nothing_else_changes():
    pipe, models = TINY.pipeline(), TINY.networks()
    call = {"class_labels": [1, 2], "guidance_scale": 1.0, "num_inference_steps": 2, "return_dict": False}

    def latents_and_images(recipe):
        seen, generators = [], [torch.Generator().manual_seed(i) for i in range(2)]
        with accelerate(pipe, recipe, models=models):
            decode = pipe.vae.decode
            listening = lambda z, *args, **kwargs: seen.append(z.clone()) or decode(z, *args, **kwargs)  # noqa: E731
            with replaced(pipe.vae, "decode", listening):
                (images,) = pipe(**call, generator=generators, output_type="np")
        return seen[0], torch.from_numpy(images).permute(0, 3, 1, 2)

    z, images = latents_and_images(RECIPE)
    plain, own = latents_and_images(Recipe(RECIPE.sampler))
    assert torch.equal(z, plain), "up to there it is the same trajectory"
    with torch.no_grad():
        want = models["tiny"].decode(z * pipe.vae.config.scaling_factor).sample
        theirs = pipe.vae.decode(z).sample
    assert torch.equal(images, (want / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(own, (theirs / 2 + 0.5).clamp(0, 1))
    assert "decode" not in vars(pipe.vae)


@pytest.mark.parametrize("shift", [None, 0.25])
def test_scale_and_shift_of_the_autoencoder_are_undone(shift):
    own, net, latents = kl(shift=shift), tiny(), torch.randn(2, 4, 8, 8)
    decode = TinyDecoder("tiny").decoding(own, net)
    z = latents / 0.5 + (shift or 0.0)
    with torch.no_grad():
        want = net.decode(latents).sample
    torch.testing.assert_close(decode(z).sample, want)
    assert torch.equal(decode(z, return_dict=False)[0], decode(z).sample)
    assert decode(z.double()).sample.dtype == torch.float64, "pictures have the dtype of what was handed over"


def test_encoding_stays_the_pipelines_own():
    pipe, x = TINY.pipeline(), torch.rand(1, 3, 8, 8)
    before = pipe.vae.encode(x).latent_dist.mean
    with accelerate(pipe, RECIPE, models=TINY.networks()):
        assert torch.equal(pipe.vae.encode(x).latent_dist.mean, before)


def test_its_time_is_the_decoders():
    pipe, called = TINY.pipeline(), []
    net = TINY.decoders()["tiny"].load()
    net.decoder.register_forward_hook(lambda *args: called.append(1))
    with accelerate(pipe, RECIPE, models={"tiny": net}):
        taken = stage_seconds(pipe, lambda: pipe([1], guidance_scale=1.0, num_inference_steps=2))
    assert called == [1]
    assert 0 < taken["decoder"] < sum(taken.values())


def test_applied_it_decodes_within_calls_alone():
    pipe, models = TINY.pipeline(), TINY.networks()
    own, z = pipe.vae, torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        plain = own.decode(z).sample
    call = {"class_labels": [3], "output_type": "np"}
    with accelerate(pipe, RECIPE, models=models):
        want = pipe(**call, guidance_scale=1.0, num_inference_steps=2,
                    generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    applied = accel.apply(pipe, RECIPE, models=models)
    for _ in range(2):
        assert (pipe(**call, generator=torch.Generator().manual_seed(0)).images == want).all()
        with torch.no_grad():
            assert torch.equal(own.decode(z).sample, plain)
    applied.remove()
    assert not {"decode", "forward"} & {*vars(own)}


def refusal(own, net, name="tiny") -> str:
    pipe = SimpleNamespace(**({} if own is None else {"vae": own}))
    with pytest.raises((IncompatibleError, ConfigError)) as caught:
        TinyDecoder(name).check(pipe, {"tiny": net, "other": torch.nn.Linear(1, 1)})
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_what_mends_it():
    own, net = kl(), tiny()
    TinyDecoder("tiny").check(SimpleNamespace(vae=own), {"tiny": net})
    assert "no decoder, for its denoiser makes the pictures; use decoder=none" in refusal(None, net)
    assert refusal(own, net, "tinier") == "unknown decoder 'tinier'. Did you mean tiny? Allowed: tiny."
    assert "'other' is a Linear, and decoder=tiny needs an AutoencoderTiny" in refusal(own, net, "other")
    assert "takes latents of 8 channels and 1 pixels, and those of this pipeline have 4 and 1" in refusal(
        own, tiny(latent_channels=8)
    )
    two = tiny(
        num_encoder_blocks=(0, 0), num_decoder_blocks=(1, 0), encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
    )  # fmt: skip
    assert "4 channels and 2 pixels, and those of this pipeline have 4 and 1" in refusal(own, two)
    assert "scaled by more than a factor and a shift" in refusal(kl(latents_mean=[0.0] * 4), net)
    with pytest.raises(IncompatibleError, match="there is no decoder, but 'tiny' is named; use decoder=none"):
        TinyDecoder("tiny").check(SimpleNamespace(vae=own), {})
    with pytest.raises(ConfigError, match=r"decoder\.model is empty"):
        TinyDecoder()


def test_one_of_another_autoencoder_is_refused():
    own, net = kl(), tiny()
    distilled(net, Distilled(weights_hex(own)))
    TinyDecoder("tiny").check(SimpleNamespace(vae=own), {"tiny": net})
    other = kl()
    with torch.no_grad():
        other.post_quant_conv.bias += 1
    assert "was distilled from an autoencoder with the digest" in refusal(other, net)


def test_a_saved_one_is_what_it_was_and_damage_is_found(tmp_path):
    net, folder = tiny(), folder_of(tmp_path / "shapes") / "tiny"
    assert folder == tmp_path / "shapes_decoders/tiny"
    save(net.half(), Distilled("abc", {"seconds": 3.0}), folder)
    assert "block_out_channels" not in json.loads((folder / "config.json").read_text()), "which no class takes"
    again = load(folder, "shapes")
    assert weights_hex(again.half()) == weights_hex(net)
    assert json.loads((folder / FILE).read_text()) == {"autoencoder": "abc", "bill": {"seconds": 3.0}}
    (folder / FILE).write_text("{}")
    with pytest.raises(IntegrityError, match="make train SUITE=shapes"):
        load(folder, "shapes")
    with pytest.raises(IntegrityError, match=r"decoder\.json is not of a decoder"):
        Distilled.load(folder)


def test_a_record_says_what_it_cost(monkeypatch, tmp_path):
    """What it is held against is the pipeline's own decoder, so that its loss is part of the distance."""
    found = {"tiny": TinyAutoencoder(TINY.decoders()["tiny"].load, {"kind": "x"}, {"seconds": 3.0, "steps": 2})}
    monkeypatch.setattr(TinySuite, "decoders", lambda self: found)
    monkeypatch.setattr(TinySuite, "converged", lambda self, guidance: Recipe(RECIPE.sampler, None, guidance))
    evaluation = Evaluation(n=60, batch=60, shard=60, distance_n=60, timing=False)
    runner = Runner(TINY, evaluation, Results(tmp_path))
    record, plain = runner.quality(RECIPE), runner.quality(RECIPE.unaccelerated)
    assert record["decoder"] == {"seconds": 3.0, "steps": 2}
    assert record["axes"]["decoder"] == "tiny"
    assert record["cost"]["nfe"] == plain["cost"]["nfe"] == 2
    assert record["cost"]["macs"] == plain["cost"]["macs"], "of the denoiser"
    assert record["values"]["distance"]["value"] > 0.1
    assert "decoder" not in plain
    assert record["samples"] != plain["samples"]


def test_it_is_part_of_a_recipe_and_no_part_of_what_it_is_held_against():
    assert RECIPE.label == "ddim-2 + tiny"
    assert RECIPE.axes()["decoder"] == "tiny"
    assert not RECIPE.plain
    assert RECIPE.unaccelerated == Recipe(RECIPE.sampler)
    assert {*RECIPE.parts()} == {"plain", "decoder"}
