"""Short videos: frames asked for, the plain pipeline as judge, caches that act, and scores frame by frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hub_modern import VIDEOS
from PIL import Image

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.deploy.pictures import png
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation import score as scoring
from accel.evaluation.generate import generate
from accel.guidance import CFG, IntervalCFG
from accel.metrics import fid, statistics
from accel.metrics.distributions import quality
from accel.metrics.similarity import Similarity, psnr
from accel.metrics.temporal import temporal_difference
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.base import Reference
from accel.suites.hub import HubSuite
from accel.suites.hub.kinds import kind_of

pytestmark = pytest.mark.usefixtures("plain_kernels")
QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
DRIVEN = [kind for kind in VIDEOS if kind != "cogvideox"]  # by samplers of the command line


def sampler(kind: str, steps: int = 3):
    return method("sampler", "ddim" if kind == "animate_diff" else "flow_euler", steps=steps)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", DRIVEN)
def test_videos_are_those_of_the_plain_pipeline(kind, guided, hub_suite, pipe_of):
    suite, pipe = hub_suite(kind), pipe_of(kind)
    made = Recipe(sampler(kind), guidance=CFG(3.0) if guided else None)
    with accelerate(pipe, made) as run:
        found = generate(pipe, suite, made, 0, 0, 2, 2)
        alone = generate(pipe, suite, made, 0, 1, 2, 1)
    assert run.nfe == (6 if guided else 3)
    side = VIDEOS[kind].side or 16
    assert found.shape == (2, VIDEOS[kind].frames, 3, side, side)
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-5)
    original, pipe.scheduler = pipe.scheduler, made.sampler.build(pipe.scheduler.config)
    try:
        null = {"negative_prompt": ["", ""]} if guided and suite.kind.guided == "true_cfg_scale" else {}
        call = suite.conditions(0, 2) | suite.guidance_arguments(made) | null
        expected = pipe(**call, generator=generators(0, 0, 2), num_inference_steps=3, output_type="pt").frames
    finally:
        pipe.scheduler = original
    assert torch.equal(found, expected)
    assert found.std(dim=1).max() > 1e-3, "frames are all one"


def test_a_class_without_samplers_of_the_command_line_runs_its_own(hub_suite, pipe_of):
    suite, pipe, made = hub_suite("cogvideox"), pipe_of("cogvideox"), Recipe(guidance=CFG(3.0))
    call = suite.conditions(0, 2) | suite.guidance_arguments(made) | {"num_inference_steps": 3, "output_type": "pt"}
    with accelerate(pipe, made) as run:
        found = pipe(**call, generator=generators(0, 0, 2)).frames
    assert run.nfe == 6
    assert torch.equal(found, pipe(**call, generator=generators(0, 0, 2)).frames)
    with accelerate(pipe, Recipe(guidance=made.guidance, cache=method("cache", "fora"))):
        assert not torch.equal(found, pipe(**call, generator=generators(0, 0, 2)).frames)


# A transformer has no skips, and PAB counts calls, of which Wan and HunyuanVideo make two a step.
REFUSED = {(kind, name) for kind in ("ltx", "wan") for name in ("deepcache", "encoder_propagation")}
REFUSED |= {("wan", "diffusers_pab"), ("hunyuan_video", "diffusers_pab")}
CACHES = ("deepcache", "encoder_propagation", "fora", "taylorseer", "inheritance", "diffusers_pab", "easycache")


def outcome(pipe, suite, made: Recipe) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Videos of samples 0 and 1, of sample 1 alone, and MACs; None where the recipe is refused, with a reason."""
    try:
        with accelerate(pipe, made, count_macs=True) as run:
            return generate(pipe, suite, made, 0, 0, 2, 2), generate(pipe, suite, made, 0, 1, 2, 1), run.macs
    except IncompatibleError as error:
        reason = str(error)
    assert len(reason) > 60
    return None


WHOLE: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor, float]] = {}  # what is made without a cache
FEW = {"wan22": ("fora", "easycache"), "hunyuan_video": ("fora", "diffusers_pab")}
CASES = [(kind, name) for kind in DRIVEN for name in FEW.get(kind, CACHES)]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_cache_acts_or_refuses_and_a_video_is_what_it_is_alone(kind, name, hub_suite, pipe_of):
    suite, pipe = hub_suite(kind), pipe_of(kind)
    options, steps = ({"threshold": 1e9}, 8) if name == "easycache" else ({}, 4)  # each network's first three are whole
    plain = Recipe(sampler(kind, steps), guidance=CFG(3.0))
    cached = outcome(pipe, suite, replace(plain, cache=method("cache", name, **options)))
    assert (cached is None) == ((kind, name) in REFUSED)
    if cached is None:
        return
    videos, alone, macs = cached
    torch.testing.assert_close(videos[1:], alone, rtol=0, atol=1e-5)
    if (kind, steps) not in WHOLE:
        WHOLE[kind, steps] = outcome(pipe, suite, plain)
    whole, _, most = WHOLE[kind, steps]
    assert macs < most, "it sits idle"
    assert not torch.equal(videos, whole)


@pytest.mark.parametrize("kind", DRIVEN)
def test_guidance_leaves_out_rows_with_all_of_their_frames(kind, hub_suite, pipe_of):
    """Outside its interval there is none: the conditional rows alone, which AnimateDiff tells a text for each frame."""
    suite, pipe = hub_suite(kind), pipe_of(kind)
    plain, never = Recipe(sampler(kind)), Recipe(sampler(kind), guidance=IntervalCFG(4.0, sigma_lo=1e6, sigma_hi=1e7))
    outcomes = []
    for made in (plain, never):
        with accelerate(pipe, made, count_macs=True) as run:
            outcomes.append(generate(pipe, suite, made, 0, 0, 2, 2))
        assert run.nfe == 3
    torch.testing.assert_close(*outcomes, rtol=0, atol=1e-5)


def test_experiment(hub_suite, tmp_path):
    suite = hub_suite("animate_diff", converged_steps=4, converged_sampler="ddim")
    made = Recipe(sampler("animate_diff", 2), cache=method("cache", "fora"))
    record = Runner(suite, QUICK, Results(tmp_path)).quality(made)
    values = record["values"]
    assert values["distance"]["value"] > 0
    assert 0 < values["temporal"]["value"] < 2
    assert values["temporal"]["n"] == 60, "videos"
    assert record["cost"]["nfe"] == 2
    picture = Image.open(next((tmp_path / "records/quality").glob("*.png")))
    assert picture.height == 16


def test_temporal_difference_is_the_mean_step_of_a_pixel():
    still = torch.full((1, 4, 3, 2, 2), 9, dtype=torch.uint8)
    ramp = torch.arange(4, dtype=torch.uint8).mul(51).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)
    assert temporal_difference(torch.cat([still, ramp])).tolist() == pytest.approx([0.0, 51 / 127.5])
    assert temporal_difference(still[:, :1]).tolist() == [0.0]
    with pytest.raises(ConfigError, match=r"needed: uint8 \(B, F, C, H, W\)"):
        temporal_difference(still.float())


class Features(HubSuite):
    """Features of a picture that are its first pixel's two channels and their product."""

    def _network_or_none(self):
        def network(pictures):
            assert pictures.ndim == 4
            red, green = (pictures[:, c, 0, 0].float() / 255 for c in (0, 1))
            return torch.stack([red, green, red * green], 1)

        network.name = "tiny"
        return network

    def reference(self):
        return Reference("tiny", torch.rand(200, 3, generator=torch.Generator().manual_seed(9)), "0" * 64)

    def feature_scores(self, features, period=1):
        return {}

    @property
    def period(self):
        return 10**6  # prompts of a file, none of which is repeated


def drawn(count: int, frames: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, frames, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_every_frame_is_a_picture_and_a_video_is_whole_in_one_group(hub_suite):
    """The judge: a jackknife over videos by hand. Frames of one video are alike, so groups that cut one would call two
    halves of a video independent."""
    suite, videos = Features(model=hub_suite("animate_diff").model, frames=3), drawn(60, 3)
    features = suite.features(videos)
    assert features.shape == (60, 3, 3)
    assert torch.equal(features[7, 2], suite.features(videos[7:8])[0, 2])
    found = scoring.score(suite, {"features": features, "images": videos}, None)["fid_tiny"]
    distance, flat = fid.frechet_to(suite.reference().features.double()), features.double()
    expected = statistics.jackknife(lambda kept: distance(flat[torch.from_numpy(kept)].flatten(0, 1)), 60)
    assert found.n == 180
    assert found.design == (180, 20, 3)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.se == pytest.approx(expected.se, rel=1e-9)


def test_frames_that_are_all_one_tell_no_more_than_one(hub_suite):
    """Copies narrow no interval: of a share (precision) it is the very same."""
    suite, videos = Features(model=hub_suite("animate_diff").model, frames=3), drawn(60, 1)
    single, copies = suite.features(videos), suite.features(videos.expand(-1, 4, -1, -1, -1))
    reference = suite.reference().features
    one = quality(single.flatten(0, 1).double(), reference, "tiny")
    many = scoring.score(suite, {"features": copies, "images": videos}, None)
    for name in ("precision", "fid_tiny"):
        assert many[name].value == pytest.approx(one[name].value, rel=0.05)
        assert many[name].se == pytest.approx(one[name].se, rel=0.05)
    assert many["precision"].se == pytest.approx(one["precision"].se, rel=1e-9)


def test_scores_of_a_video_are_means_over_its_frames(hub_suite, monkeypatch):
    suite, videos = hub_suite("animate_diff", clip="a folder"), drawn(3, 4)
    asked = []

    def clip(pictures, captions):
        asked.append(captions)
        return pictures[:, 0, 0, 0].double()

    monkeypatch.setattr(type(suite), "_clip", property(lambda self: clip))
    found = suite.per_sample(videos, {"prompt": ["a", "b", "c"]})
    assert asked == [["a"] * 4 + ["b"] * 4 + ["c"] * 4]
    assert found["clip_score"].tolist() == videos[:, :, 0, 0, 0].double().mean(1).tolist()
    values = scoring.similarities(suite, Similarity(("psnr",)), videos, drawn(3, 4).flip(0), None)
    expected = psnr(videos.flatten(0, 1).double() / 255, drawn(3, 4).flip(0).flatten(0, 1).double() / 255)
    assert values["psnr"].value == pytest.approx(float(expected.mean()))
    assert values["psnr"].n == 3


def test_a_video_is_written_as_an_animated_picture(tmp_path):
    (tmp_path / "one.png").write_bytes(png(drawn(1, 4)[0], {"sample": "0"}))
    with Image.open(tmp_path / "one.png") as image:
        assert image.n_frames == 4
        image.seek(3)
        assert image.convert("RGB").getpixel((0, 0)) == tuple(drawn(1, 4)[0, 3, :, 0, 0].tolist())


def test_frames_identify_a_run_and_are_asked_for(hub_suite):
    suite = hub_suite("ltx")
    assert suite.conditions(0, 2)["num_frames"] == 9
    assert suite.fingerprint()["setting frames"] == "9"
    assert hub_suite("ltx", frames=17).fingerprint() != suite.fingerprint()
    assert "setting frames" not in hub_suite("sd").fingerprint()
    assert hub_suite("cogvideox", height=None, width=None).image_size == (16, 16)
    assert hub_suite("wan", height=None, width=None).image_size == (480, 832)
    assert kind_of("WanPipeline").frames
    assert not kind_of("StableDiffusionPipeline").frames


def test_what_cannot_be_is_said(hub_suite, monkeypatch):
    def refused(message: str, kind: str, **settings):
        with pytest.raises(ConfigError, match=message):
            hub_suite(kind, **settings).check(60)

    refused("makes videos, and suite.frames is empty; say how many", "ltx", frames=None)
    refused(r"StableDiffusionPipeline makes pictures; leave suite\.frames out", "sd", frames=4)
    refused(r"suite\.frames is 9, and the motion modules of .* know 8", "animate_diff", frames=9)
    with pytest.raises(ConfigError, match=r"suite\.frames is 0"):
        HubSuite(frames=0)
    with pytest.raises(ConfigError, match=r"makes 9 of that, as its autoencoder wants; use suite\.frames=9"):
        hub_suite("ltx", frames=12).stored(drawn(1, 9))
