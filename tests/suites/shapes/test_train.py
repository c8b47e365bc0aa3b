"""Training of suite `shapes`: losses that are small where they should be, and the whole way from nothing to a suite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.core.decoder import distilled_from
from accel.core.macs import count_macs
from accel.digests import weights_hex
from accel.errors import ConfigError
from accel.suites.shapes import ShapesSuite, data, decoder
from accel.suites.shapes import train as trainer
from accel.suites.shapes.adherence import NAMES, detect
from accel.suites.shapes.models import CHANNELS, ShapeDetector
from accel.suites.shapes.train import contrastive_loss, detection_loss, detector_targets
from accel.suites.training.loop import TrainConfig

SAMPLES = data.samples("train", 12, 0)


def perfect_maps(samples) -> dict[str, torch.Tensor]:
    """What a detector that makes no mistake returns."""
    maps = {name: torch.zeros(len(samples), count, 16, 16) for name, count in ShapeDetector.HEADS.items()}
    maps["heat"] -= 12
    for b, s in enumerate(samples):
        for thing in s.scene.things:
            column, row = int(thing.x / 4), int(thing.y / 4)
            maps["heat"][b, 0, row, column] = 12
            maps["offset"][b, :, row, column] = torch.tensor([thing.x / 4 - column, thing.y / 4 - row])
            for name, names in NAMES.items():
                maps[name][b, names.index(getattr(thing, name)), row, column] = 30
    return maps


def test_detection_loss_is_zero_for_a_perfect_detector_only():
    targets, maps = detector_targets(SAMPLES), perfect_maps(SAMPLES)
    assert detection_loss(maps, targets) < 1e-3
    for name in maps:
        other = {"heat": -maps[name], "offset": maps[name] + 0.5}.get(name, maps[name].roll(1, 1))
        spoilt = maps | {name: other}
        assert detection_loss(spoilt, targets) > 0.1, name


def test_targets_and_detections_are_inverse():
    """Scenes -> perfect maps -> objects: the same objects, within float32."""

    class Perfect(torch.nn.Module):
        def forward(self, images):
            return perfect_maps(SAMPLES)

    for objects, s in zip(detect(Perfect(), torch.zeros(len(SAMPLES), 3, 64, 64)), SAMPLES, strict=True):
        assert len(objects) == len(s.scene.things)
        for thing in s.scene.things:
            found = min(objects, key=lambda o, t=thing: abs(o.x - t.x) + abs(o.y - t.y))
            assert (found.x, found.y) == pytest.approx((thing.x, thing.y), abs=1e-3)
            assert all(getattr(found, name) == getattr(thing, name) for name in NAMES)


def test_contrastive_loss_of_known_embeddings():
    images = torch.eye(4, 8)
    rivals = torch.roll(torch.eye(8), 4, 0)[:4]  # orthogonal to all
    scale = torch.tensor(100.0).log()
    assert contrastive_loss(images, torch.cat([images, rivals]), scale) < 1e-6
    # All the same: chance, ln 8 of the texts and ln 4 of the images.
    same = torch.ones(4, 8) / 8**0.5
    chance = (torch.tensor(8.0).log() + torch.tensor(4.0).log()) / 2
    assert contrastive_loss(same, torch.cat([same, same]), scale) == pytest.approx(float(chance), abs=1e-5)
    # A rival that is as near as the caption itself costs ln 2 one way.
    loss = contrastive_loss(images, torch.cat([images, images]), scale)
    assert loss == pytest.approx(float(torch.tensor(2.0).log()) / 2, abs=1e-5)


def test_reading_loss_is_zero_for_a_perfect_reader_only():
    texts = [c for s in data.samples("train", 12, 2) for c in s.captions]
    targets = trainer.reading_targets(texts)
    assert (targets >= 0).all(-1).equal((targets >= 0).any(-1))
    one_hot = [
        torch.nn.functional.one_hot(targets[..., i].long().clamp(min=0), len(values))
        for i, values in enumerate(trainer.READ.values())
    ]
    assert trainer.reading_loss(torch.cat(one_hot, -1) * 30.0, targets) < 1e-3
    for i in range(len(one_hot)):
        spoilt = torch.cat([part.roll(1, -1) if j == i else part for j, part in enumerate(one_hot)], -1)
        assert trainer.reading_loss(spoilt * 30.0, targets) > 1, list(trainer.READ)[i]


def test_targets_of_reading_are_at_the_tokens_of_the_words(tmp_path):
    text = "a red star in the top left and a big blue ring"
    tokenizer = trainer.build_tokenizer(tmp_path)
    ids = trainer.tokens(tokenizer, [text])[0]
    (targets,) = trainer.reading_targets([text])
    place = list(trainer.READ).index("place")
    said = [trainer.READ["place"][t] for t in targets[targets[:, 0] >= 0][:, place].tolist()]
    words = [tokenizer.decode([t]).strip() for t in ids[targets[:, 0] >= 0].tolist()]
    assert words == ["star", "in", "the", "top", "left", "ring"]
    assert said == [None] * 4 + [("top", "left"), None]


@pytest.fixture
def tiny(monkeypatch):
    """Two steps a part on a few scenes."""
    monkeypatch.setattr(trainer.data, "TRAIN", 48)
    monkeypatch.setattr(trainer.data, "REFERENCE", 8)
    monkeypatch.setattr(trainer, "WORKERS", 0)
    own = {k: v for k, v in trainer.PARTS.items() if isinstance(v, TrainConfig)}
    parts = {k: replace(v, steps=2, batch=8, checkpoint_every=1) for k, v in own.items()}
    monkeypatch.setattr(trainer, "PARTS", parts)
    monkeypatch.setattr(decoder, "TRAINING", parts[decoder.NAME])
    monkeypatch.setattr(decoder, "PICTURES", 40)


def test_from_nothing_to_a_suite(tiny, tmp_path):
    seen = {}
    for part in trainer.PARTS:
        trainer.train_part(
            part, tmp_path / "work", tmp_path / "shapes", on_step=lambda s, x, p=part: seen.setdefault(p, []).append(x)
        )
    assert {k: len(v) for k, v in seen.items()} == dict.fromkeys(trainer.PARTS, 2)
    suite = ShapesSuite(weights=str(tmp_path / "shapes"))
    pipe = suite.pipeline()
    images = pipe(**suite.conditions(0, 2), num_inference_steps=2, output_type="pt", guidance_scale=2.0).images
    scores = suite.per_sample(images, suite.conditions(0, 2))
    assert set(scores) == {"adherence", "exact", "clip_score"}
    assert suite.features(images).shape == (2, 96)
    assert suite.reference().features.shape == (8, 96)
    assert {"small"} == set(suite.models())
    check_tiny(suite, tmp_path)


def check_tiny(suite: ShapesSuite, tmp_path) -> None:
    """The tiny decoder says whose it is and what it cost, and a resumed training is the uninterrupted one."""
    (name, tiny), *others = suite.decoders().items()
    vae = suite.pipeline().vae
    origin = distilled_from(tiny.load())
    assert (name, others, origin.autoencoder) == ("tiny", [], weights_hex(vae))
    assert (tiny.bill["steps"], tiny.bill["samples"], tiny.bill["data"]) == (2, 16, "training images")
    net, z = tiny.load(), torch.zeros(1, CHANNELS, 8, 8)
    own, theirs = (count_macs(lambda f=f: f(z))[1] for f in (net.decoder, vae.decode))
    assert tiny.bill["macs"] == 16 * 3 * own + 40 * theirs
    weights = tmp_path / "shapes_decoders/tiny/diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        trainer.train_part("tiny", again, tmp_path / "shapes", on_step=stop)
    trainer.train_part("tiny", again, tmp_path / "shapes")
    trainer.train_part("tiny", again, tmp_path / "shapes")  # finished: nothing is left to do
    assert weights.read_bytes() == before


def test_denoisers_need_what_comes_before_them(tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"vae.* is missing; train the parts in order: vae, detector, clip, large, small"
    ):
        trainer.train_part("large", tmp_path / "work", tmp_path / "shapes")


def test_whitening_keeps_the_pictures_and_makes_the_latents_white():
    torch.manual_seed(0)
    vae = trainer.build_vae().eval()
    x = trainer.to_model(data.pictures("train", 48))
    with torch.no_grad():
        vae.quant_conv.bias[:CHANNELS] += 3  # an offset, and channels of very different size
        vae.quant_conv.weight[0] *= 50
        before = vae.encode(x).latent_dist
        pictures = vae.decode(before.mean).sample
        variance = before.var.mean((0, 2, 3))
        trainer.whiten(vae, before.mean, variance)
        after = vae.encode(x).latent_dist
        again = vae.decode(after.mean).sample
    torch.testing.assert_close(again, pictures, atol=2e-3, rtol=1e-3)
    flat = after.mean.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(CHANNELS, dtype=torch.float64), atol=1e-3, rtol=0)
    # Samples are white: the means' covariance, and that of the noise, which went the same way.
    raw = before.mean.double().transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(raw) + variance.double().diag())
    into = vectors @ (values**-0.5).diag() @ vectors.T
    sampled = torch.cov(flat) + into @ variance.double().diag() @ into.T
    torch.testing.assert_close(sampled, torch.eye(CHANNELS, dtype=torch.float64), atol=5e-3, rtol=0)
    torch.testing.assert_close(after.var.mean((0, 2, 3)).double(), (into**2) @ variance.double(), atol=1e-3, rtol=1e-2)
