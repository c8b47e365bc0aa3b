"""CLIP score against the model's own logits, torchmetrics and the rules of its tokenizer, on a tiny random CLIP."""

from __future__ import annotations

import json
import logging
import shutil
import warnings

import pytest
import torch

from accel.errors import ConfigError
from accel.metrics.clip import Adapter
from accel.metrics.networks import ClipScore, feature_network

CAPTIONS = ["a cat", "red dog", "x", "cat 9"]
LONG = ["cat cat cat cat cat cat cat cat cat cat dog", "dog dog dog dog dog dog dog dog dog"]


@pytest.fixture
def score(clip_folder):
    return ClipScore.load(clip_folder, device="cpu")


def processor(score, clip_folder):
    import transformers

    cls = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return cls.from_pretrained(clip_folder)


def negated(score):
    """The same CLIP with every cosine's sign changed."""
    import copy

    other = copy.copy(score)
    other.model = copy.deepcopy(score.model)
    with torch.no_grad():
        other.model.visual_projection.weight.neg_()
    return other


# --- the score ------------------------------------------------------------------------------------------------------


def test_the_score_is_100_times_the_cosine_in_the_models_own_logits(score, clip_folder, images):
    pixels = processor(score, clip_folder)(images=list(images()), return_tensors="pt")["pixel_values"]
    tokens = score.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = score.model(pixel_values=pixels, **tokens)
    expected = 100 * output.logits_per_image.diagonal() / score.model.logit_scale.exp()
    found = score(images(), CAPTIONS)
    assert found.dtype == torch.float64
    assert found.shape == (4,)
    assert found.numpy() == pytest.approx(expected.double().numpy(), abs=1e-4)
    assert found.std() > 1  # the model tells the pairs apart, or nothing would be tested


def test_negative_cosines_stay_negative(score, images):
    both = torch.stack([score(images(), CAPTIONS), negated(score)(images(), CAPTIONS)])
    assert both.amin(0).max() < -0.1
    assert both[0].numpy() == pytest.approx(-both[1].numpy(), abs=1e-9)


def test_each_pair_stands_alone(score, images):
    """The same score whatever else is in the call and however it is batched."""
    whole = score(images(), CAPTIONS)
    alone = torch.cat([score(images()[i : i + 1], [CAPTIONS[i]]) for i in range(4)])
    score.batch = 3
    assert whole.numpy() == pytest.approx(alone.numpy(), abs=1e-4)
    assert whole.numpy() == pytest.approx(score(images(), CAPTIONS).numpy(), abs=1e-4)
    swapped = score(images(), CAPTIONS[::-1])
    assert (whole - swapped).abs().min() > 0.01


def test_cosines_are_float64(score, images, monkeypatch):
    """Embeddings of 1e25 overflow a float32 norm, and parallel ones have cosine 1 to the last digits."""
    direction = 1e25 * torch.tensor([[1.0, 2.0, 3.0]])
    monkeypatch.setattr(score, "_embed_images", lambda images: direction)
    monkeypatch.setattr(score, "_embed_texts", lambda captions: direction)
    assert float(score(images(1), ["a"])) == pytest.approx(100, abs=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_torchmetrics_gives_the_same_mean_before_it_clamps(score, clip_folder, images, sign):
    from torchmetrics.multimodal.clip_score import CLIPScore

    score = score if sign > 0 else negated(score)
    adapter = Adapter(score, processor(score, clip_folder))
    metric = CLIPScore(model_name_or_path=lambda: (adapter, adapter.processor))
    pictures = images(4, 40, 48)
    metric.update(pictures, CAPTIONS)
    mean = float(score(pictures, CAPTIONS).mean())
    assert float(metric.score / metric.n_samples) == pytest.approx(mean, abs=1e-4)
    assert float(metric.compute()) == pytest.approx(max(mean, 0), abs=1e-4)
    assert abs(mean) > 0.1


def test_torchmetrics_gives_the_same_mean_of_captions_that_are_cut(score, clip_folder, images):
    from torchmetrics.multimodal.clip_score import CLIPScore

    adapter = Adapter(score, processor(score, clip_folder))
    metric = CLIPScore(model_name_or_path=lambda: (adapter, adapter.processor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(images(2), LONG)
        mean = float(score(images(2), LONG).mean())
    assert float(metric.score / metric.n_samples) == pytest.approx(mean, abs=1e-4)


def test_transformers_4_returns_tensors(score, images, monkeypatch):
    expected = score(images(), CAPTIONS)
    for name in ("get_image_features", "get_text_features"):
        method = getattr(score.model, name)

        def tensor(*args, method=method, **kwargs):
            output = method(*args, **kwargs)
            return output if isinstance(output, torch.Tensor) else output.pooler_output

        monkeypatch.setattr(score.model, name, tensor)
    assert torch.equal(score(images(), CAPTIONS), expected)


# --- long captions --------------------------------------------------------------------------------------------------


def test_long_captions_are_cut_before_the_end_token_and_told_apart(score, images):
    with pytest.warns(UserWarning, match=r"more than 12 tokens are cut .* 'cat cat"):
        tokens = score.tokens(LONG)
    assert tokens["input_ids"].shape == (2, 12)
    assert set(tokens["input_ids"][:, -1].tolist()) == {score.tokenizer.eos_token_id}
    assert score.truncated == 2
    same = images(1).expand(2, -1, -1, -1)
    scores = score(same, LONG)
    assert abs(float(scores[0] - scores[1])) > 0.01


def test_cut_captions_are_announced_once_and_counted_once(score, images):
    with pytest.warns(UserWarning, match="are cut") as caught:
        score(images(2), LONG)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(images(2), [LONG[0], "x"])
    assert score.truncated == 2


def test_captions_that_fit_are_not_counted(score, images, caplog):
    fits = "cat " * 10  # ten tokens, start and end: the whole context
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="transformers"):
        warnings.simplefilter("error")
        score(images(2), [fits, ""])
    assert score.truncated == 0
    with pytest.warns(UserWarning, match="are cut"):
        score(images(1), [fits + "cat"])
    assert score.truncated == 1


def test_the_wrong_end_token_of_older_configs_changes_nothing(score, images, monkeypatch):
    """They say eos_token_id = 2; transformers then pools at the highest token, and our padding is that token too."""
    expected = score(images(), CAPTIONS)
    # transformers 4.57 keeps the id one module further in
    text = getattr(score.model.text_model, "text_model", score.model.text_model)
    assert text.eos_token_id == score.tokenizer.eos_token_id
    monkeypatch.setattr(text, "eos_token_id", 2)
    assert torch.equal(score(images(), CAPTIONS), expected)
    monkeypatch.setattr(text, "eos_token_id", 5)  # told apart: no caption has token 5, the first one is pooled
    assert not torch.equal(score(images(), CAPTIONS), expected)


# --- image features -------------------------------------------------------------------------------------------------


def test_image_features_are_the_normalised_embeddings(score, clip_folder, images):
    found = score.image_features(images())
    assert found.shape == (4, score.num_features) == (4, 8)
    assert found.norm(dim=1).numpy() == pytest.approx([1] * 4, abs=1e-6)
    network = feature_network("clip", clip_folder, device="cpu")
    assert network.unavailable() is None
    assert (network.name, network.num_features) == ("clip", 8)
    assert torch.equal(network(images()), found)
    product = 100 * (found * score.text_features(CAPTIONS)).sum(1)
    assert product.numpy() == pytest.approx(score(images(), CAPTIONS).numpy(), abs=1e-4)


def test_the_identity_names_weights_and_no_place(score, clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    identity = ClipScore.load(copy, device="cpu").identity()
    assert identity == score.identity() == json.loads(json.dumps(identity))
    assert str(tmp_path) not in str(identity)
    assert identity["network"] == "CLIP 2x16, patch 8, 32 px, D = 8"
    assert feature_network("clip", copy, device="cpu").identity()["weights_sha256"] == identity["weights_sha256"]


def test_the_identity_of_a_given_model_follows_its_values(score, clip_folder):
    given = [ClipScore(s.model, s.tokenizer, processor(s, clip_folder)).identity() for s in (score, negated(score))]
    assert given[0]["weights_sha256"] != given[1]["weights_sha256"]
    assert given[0]["vocabulary_sha256"] == score.identity()["vocabulary_sha256"]


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "captions", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ["a", "b"], "torch.float32; needed: uint8"),
        (torch.zeros(2, 1, 8, 8).byte(), ["a", "b"], r"shape \(2, 1, 8, 8\); needed: \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8).byte(), ["a"], r"shape \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8).byte(), [], r"shape \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8).byte().numpy(), ["a", "b"], "images are ndarray"),
        (torch.zeros(2, 3, 8, 8).byte(), ["a"], "found 2 images and 1 captions"),
        (torch.zeros(2, 3, 8, 8).byte(), [], "found no captions"),
        (torch.zeros(2, 3, 8, 8).byte(), "ab", "captions are str; needed: a list"),
        (torch.zeros(2, 3, 8, 8).byte(), ["a", None], "needed: a list of strings"),
    ],
)
def test_unusable_input_is_refused(score, pictures, captions, message):
    with pytest.raises(ConfigError, match=message):
        score(pictures, captions)


def test_a_batch_must_be_positive(clip_folder):
    with pytest.raises(ConfigError, match="batch is 0"):
        ClipScore.load(clip_folder, batch=0)
    with pytest.raises(ConfigError, match="batch is 0"):
        feature_network("clip", clip_folder, batch=0)


def test_a_folder_without_tokenizer_is_refused(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    (copy / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"not complete; needed: tokenizer.json, or vocab.json and merges.txt"):
        ClipScore.load(copy)
