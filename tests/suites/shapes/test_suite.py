"""Suite `shapes`: its shipped networks do what the suite says of them, and its prompts are what is judged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from shipped import check_shipped

from accel.config import choice_of
from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.errors import IntegrityError
from accel.evaluation.generate import generate
from accel.suites.base import ASSETS, to_uint8
from accel.suites.shapes import ShapesSuite, data
from accel.suites.shapes.adherence import NAMES, detect
from accel.suites.shapes.captions import COLUMNS, ROWS, place, vocabulary, wanted
from accel.suites.shapes.models import CHANNELS, LATENT, MAX_TOKENS, SCHEDULER, build_unet
from accel.suites.shapes.scene import HELD_OUT, render
from accel.suites.shapes.suite import clip_score, detector

SHIPPED = ASSETS / "shapes"
pytestmark = pytest.mark.skipif(
    not (SHIPPED / "large" / "unet").exists(),
    reason="the weights of suite shapes are not here: make train SUITE=shapes",
)


@pytest.fixture(scope="module")
def suite() -> ShapesSuite:
    return ShapesSuite()


@pytest.fixture(scope="module")
def text_pipe(suite):
    return suite.pipeline()


@pytest.fixture(scope="module")
def held_out(suite):
    images, conditions = suite.held_out()
    return images[:256], conditions["prompt"][:256]


# --- shipped files


def test_shipped_files_are_small_half_precision_and_listed():
    check_shipped(SHIPPED, 18e6)


def test_damaged_weights_are_refused_with_the_remedy(tmp_path):
    copied = Path(shutil.copytree(SHIPPED, tmp_path / "shapes"))
    with (copied / "small" / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00\x01")
    with pytest.raises(IntegrityError, match=r"damaged.*make train SUITE=shapes"):
        ShapesSuite(weights=str(copied)).pipeline()


def test_pipeline_is_a_stock_stable_diffusion(text_pipe, suite):
    from diffusers import StableDiffusionPipeline

    assert type(text_pipe) is StableDiffusionPipeline
    assert {k: text_pipe.scheduler.config[k] for k in SCHEDULER} == SCHEDULER
    for name, net in (("large", text_pipe.unet), ("small", suite.models()["small"])):
        fresh = build_unet(name)
        assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
        assert not net.training


def test_small_is_at_least_five_times_cheaper(text_pipe, suite):
    inputs = {
        "sample": torch.zeros(1, CHANNELS, LATENT, LATENT),
        "timestep": 5,
        "encoder_hidden_states": torch.zeros(1, MAX_TOKENS, 128),
    }
    with torch.no_grad():
        nets = (text_pipe.unet, suite.models()["small"])
        large, small = (count_macs(lambda net=net: net(**inputs))[1] for net in nets)
    assert large > 5 * small


def test_words_are_single_tokens_and_captions_fit(text_pipe):
    tokenizer = text_pipe.tokenizer
    assert tokenizer.model_max_length == MAX_TOKENS
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    prompts = [s.captions[0] for s in data.samples("prompts", 500)]
    assert max(len(ids) for ids in tokenizer(prompts).input_ids) <= MAX_TOKENS
    assert tokenizer.decode(tokenizer("quixotic zebra").input_ids, skip_special_tokens=True).strip() == "quixotic zebra"


# --- what judges


def test_detector_finds_what_is_drawn(suite, held_out):
    """Held-out pictures: the detector is right about nearly every object, so that adherence measures the generator."""
    images, _ = held_out
    found = detect(detector(suite.weights), images)
    scenes = [data.sample("held_out", i).scene for i in range(len(images))]
    same = sum(len(f) == len(s.things) for f, s in zip(found, scenes, strict=True))
    assert same / len(images) > 0.97
    pairs = [(min(f, key=lambda o, t=t: (o.x - t.x) ** 2 + (o.y - t.y) ** 2), t)
             for f, s in zip(found, scenes, strict=True) for t in s.things if f]  # fmt: skip
    for name in NAMES:
        assert sum(getattr(o, name) == getattr(t, name) for o, t in pairs) / len(pairs) > 0.99, name
    assert sum(abs(o.x - t.x) < 1.5 and abs(o.y - t.y) < 1.5 for o, t in pairs) / len(pairs) > 0.97


def test_scores_of_real_pictures_and_of_mismatched_prompts(suite, held_out):
    images, prompts = held_out
    own = suite.per_sample(images, {"prompt": prompts})
    other = suite.per_sample(images, {"prompt": prompts[1:] + prompts[:1]})
    assert own["adherence"].mean() > 0.98
    assert own["exact"].mean() > 0.95
    assert other["adherence"].mean() < 0.2
    assert own["clip_score"].mean() > other["clip_score"].mean() + 20
    assert own["clip_score"].shape == own["adherence"].shape == (len(images),)


def test_clip_tells_captions_from_their_rivals(suite, held_out):
    """Rivals have the same words in another order, or one attribute changed."""
    images, prompts = held_out
    rivals = [data.sample("held_out", i).false[0] for i in range(len(images))]
    score = clip_score(suite.weights)
    assert (score(images, prompts) > score(images, rivals)).double().mean() > 0.75


def test_clip_knows_the_places(suite):
    """Captions of one object in one of nine fields, against the same caption with each other field."""
    fields = ["centre" if (r, c) == ("middle", "centre") else f"{r} {c}" for r in ROWS for c in COLUMNS]
    scenes = [s for s in (data.sample("held_out", i).scene for i in range(512)) if len(s.things) == 1][:60]
    images = torch.stack([torch.from_numpy(render(s)).permute(2, 0, 1) for s in scenes])
    score = clip_score(suite.weights)
    found = torch.stack(
        [score(images, [f"a {s.things[0].colour} {s.things[0].shape} in the {f}" for s in scenes]) for f in fields]
    )
    spots = [place(s.things[0].x, s.things[0].y) for s in scenes]
    own = torch.tensor([ROWS.index(r) * 3 + COLUMNS.index(c) for r, c in spots])
    assert (found.argmax(0) == own).double().mean() > 0.7


def test_reference_is_of_the_pictures_and_the_detector(suite):
    reference = suite.reference()
    assert reference.features.shape == (data.REFERENCE, 96)
    assert reference.identity() == suite.reference_identity()
    with torch.inference_mode():
        fresh = suite.features(data.pictures("reference", 16))
    torch.testing.assert_close(reference.features[:16].float(), fresh, atol=2e-2, rtol=2e-3)


# --- what is generated


def test_conditions_depend_on_the_index_only(suite):
    whole = suite.conditions(0, 20)["prompt"]
    assert suite.conditions(7, 12)["prompt"] == whole[7:12]
    assert len(set(whole)) == 20
    for i, text in enumerate(whole):
        assert bool({(w.shape, w.colour) for w in wanted(text).things} & set(HELD_OUT)) == (i % 2 == 1)


def test_guided_pictures_follow_their_prompts(suite, text_pipe):
    """At few steps and few samples, a wide margin: chance is below 5 %."""
    guidance = choice_of("guidance", "cfg", "guidance.scale=3.0")
    recipe = Recipe(choice_of("sampler", "dpmpp_2m", "sampler.steps=10"), None, guidance)
    with accelerate(text_pipe, recipe):
        images = generate(text_pipe, suite, recipe, 0, 0, 24, 24)
    scores = suite.per_sample(images, suite.conditions(0, 24))
    assert scores["adherence"].mean() > 0.6
    assert suite.stored(images).dtype == torch.uint8


def test_autoencoder_keeps_the_pictures(text_pipe, held_out):
    images = held_out[0][:32]
    x = images.float() / 127.5 - 1
    with torch.inference_mode():
        found = text_pipe.vae.encode(x).latent_dist
        latents = found.mean * text_pipe.vae.config.scaling_factor
        back = to_uint8(text_pipe.vae.decode(latents / text_pipe.vae.config.scaling_factor).sample)
    assert (latents.var() + found.var.mean()).sqrt() == pytest.approx(1, abs=0.1)  # of sampled latents
    assert (back.float() - images.float()).abs().mean() < 6
