"""Suite `digits`: its data, its shipped networks, and what happens when a file of either changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shipped import check_shipped

from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, IntegrityError
from accel.evaluation.generate import generate
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.suites.base import ASSETS, check_manifest, load_pipeline, write_manifest
from accel.suites.digits import DigitsSuite, data
from accel.suites.digits.models import SCHEDULER, build_unet
from accel.suites.digits.suite import _reference, classifier, data_hash
from accel.suites.pipeline import PixelPipeline

SHIPPED = ASSETS / "digits"


@pytest.fixture(scope="module")
def manifest() -> dict[str, str]:
    return json.loads((SHIPPED / "MANIFEST.json").read_text())


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of the shipped weights that a test may damage."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "digits"))


# --- data


def test_the_converged_recipe_has_converged(digits, pipe):
    """Against another solver and grid with 199 evaluations: far closer than any recipe that is compared with it."""
    fine = Recipe(DiffusersSampler("HeunDiscreteScheduler", 100), Grid("exponential"))
    images = []
    for recipe in (fine, digits.converged(None), Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 50))):
        with accelerate(pipe, recipe):
            images.append(generate(pipe, digits, recipe, 0, 0, 1, 1))
    error, plain = ((x - images[0]).square().mean().sqrt().item() for x in images[1:])
    assert error < 2e-3
    assert plain > 2 * error  # the trailing grid at equal cost, whose last step is long


def test_split_is_disjoint_complete_and_stratified():
    _, labels = data.digits()
    train, held_out = data.split()
    assert (len(train), len(held_out)) == (data.TRAIN, data.HELD_OUT) == (1285, 512)
    assert not set(train) & set(held_out)
    assert sorted([*train, *held_out]) == list(range(1797))
    share = 512 / 1797
    for c in range(10):
        of_class = (labels == c).sum()
        assert abs((labels[held_out] == c).sum() - share * of_class) <= 1, "to the nearest image"


def test_no_held_out_image_is_in_the_training_set():
    """Otherwise the real-vs-real floor and the nearest-neighbour score would flatter."""
    train, held_out = ({x.numpy().tobytes() for x in data.load(part)[0]} for part in ("train", "held_out"))
    assert not train & held_out


def test_images_are_enlarged_scans():
    from sklearn.datasets import load_digits

    images, labels = data.digits()
    assert images.shape == (1797, 16, 16)
    assert images.dtype == np.uint8
    assert labels.tolist() == load_digits().target.tolist()
    assert images.min() == 0
    assert images.max() == 255
    # Averaging 2x2 pixels undoes the enlargement but for the bicubic filter's blur; a shift by a pixel would not fit.
    scans = load_digits().images.ravel()
    assert np.corrcoef(images.reshape(1797, 8, 2, 8, 2).mean((2, 4)).ravel(), scans)[0, 1] > 0.99
    shifted = np.roll(images, 1, axis=2).reshape(1797, 8, 2, 8, 2)
    assert np.corrcoef(shifted.mean((2, 4)).ravel(), scans)[0, 1] < 0.95


def test_data_is_the_manifests(manifest):
    assert data_hash("train") == manifest["data:train"]
    assert data_hash("train") != data_hash("held_out")
    data.digits.cache_clear()
    data.split.cache_clear()
    assert data_hash("train") == manifest["data:train"], "computed twice from the source"


def test_model_range_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_model(every)), every)
    assert data.to_model(every).min() == -1
    assert data.to_model(every).max() == 1
    assert data.to_uint8(torch.tensor([-3.0, 5.0, 0.0039])).tolist() == [0, 255, 128]  # clipped, rounded half up


# --- shipped networks


def test_classifier_knows_held_out_digits(digits):
    images, labels = data.load("held_out")
    with torch.inference_mode():
        logits = classifier(digits.weights)(images)
    assert (logits.argmax(1) == labels).float().mean() >= 0.97
    features = classifier(digits.weights).features(images[:7])
    assert features.shape == (7, 64)
    assert torch.isfinite(features).all()
    torch.testing.assert_close(digits.features(data.to_model(images[:7])), features, atol=1e-5, rtol=1e-5)


def test_classifier_passes_gradients_whoever_loaded_it(digits):
    """Scores ask for it in inference mode, a guidance differentiates through it afterwards."""
    classifier.cache_clear()
    with torch.inference_mode():
        digits.features(torch.zeros(1, 1, 16, 16))
    x = torch.zeros(1, 1, 16, 16, requires_grad=True)
    digits.classifier()(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_shipped_files_are_small_half_precision_and_listed():
    check_shipped(SHIPPED, 10e6)


def test_networks_are_what_the_code_builds(pipe, models):
    for name, net in (("large", pipe.unet), ("small", models["small"])):
        fresh = build_unet(name)
        assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert not net.training
        assert all(torch.isfinite(p).all() for p in net.parameters())


def test_both_networks_were_trained_on_the_schedule_of_the_code():
    configs = [
        json.loads((SHIPPED / n / "scheduler" / "scheduler_config.json").read_text()) for n in ("large", "small")
    ]
    assert configs[0] == configs[1]
    assert {k: configs[0][k] for k in SCHEDULER} == SCHEDULER


def test_small_is_at_least_five_times_cheaper(pipe, models):
    inputs = {"sample": torch.zeros(1, 1, 16, 16), "timestep": 5, "class_labels": torch.tensor([1])}
    with torch.no_grad():
        large, small = (count_macs(lambda net=net: net(**inputs))[1] for net in (pipe.unet, models["small"]))
    assert large > 5 * small
    assert pipe.unet.num_parameters() > 5 * models["small"].num_parameters()


# --- what to generate, and the reference


def test_conditions_depend_on_the_index_only(digits):
    assert digits.conditions(8, 13) == {"class_labels": [8, 9, 0, 1, 2]}
    whole = digits.conditions(0, 30)["class_labels"]
    assert digits.conditions(17, 22)["class_labels"] == whole[17:22]


def test_reference_names_its_images_and_its_feature_network(digits, copied):
    reference = digits.reference()
    assert reference.features.shape == (1285, 64)
    assert reference.features.dtype == torch.float64
    assert reference.identity() == digits.reference_identity()
    held_out, conditions = digits.held_out()
    assert len(held_out) == len(conditions["class_labels"]) == 512
    # Another feature network is another reference, although the images are the same.
    content = json.loads((copied / "MANIFEST.json").read_text())
    state = load_file(copied / "classifier.safetensors")
    state["head.2.bias"] += 1
    save_file(state, copied / "classifier.safetensors")
    write_manifest(copied, {"data:train": content["data:train"]})
    other = DigitsSuite(weights=str(copied))
    assert other.reference_identity()["sha256"] != digits.reference_identity()["sha256"]
    assert other.fingerprint() != digits.fingerprint()


def test_per_sample_scores_of_real_images(digits):
    """Held-out digits are recognised and are not copies of training images; training images are their own copies."""
    images, conditions = digits.held_out()
    some = {k: v[:64] for k, v in conditions.items()}
    with torch.inference_mode():
        scores = digits.per_sample(images[:64], some)
        wrong = digits.per_sample(images[:64], {"class_labels": [(y + 1) % 10 for y in some["class_labels"]]})
        known, labels = data.load("train")
        copies = digits.per_sample(data.to_model(known[:16]), {"class_labels": labels[:16].tolist()})
    assert scores["accuracy"].mean() > 0.9
    assert wrong["accuracy"].mean() < 0.1
    assert scores["nearest"].min() > 0.02
    assert copies["nearest"].max() < 1e-3


# --- integrity


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WEIGHTS = ["classifier.safetensors", "large/unet/diffusion_pytorch_model.safetensors", "small/unet/config.json"]


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "missing"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_named_with_the_remedy(copied, name, how):
    suite = DigitsSuite(weights=str(copied))
    suite.fingerprint()
    path = copied / name
    if how == "flipped bit":
        damage(path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    said = f"weights file .*{name} is {'missing' if how == 'missing' else 'damaged: sha256'}.*git checkout.*make train"
    for use in (suite.fingerprint, suite.pipeline, suite.reference_identity, lambda: classifier(suite.weights)):
        with pytest.raises(IntegrityError, match=said) as caught:
            use()
        assert isinstance(caught.value, AccelError)


def test_changed_reference_images_are_refused(copied):
    """Another scikit-learn or Pillow would change the images: FID would be against something else."""
    _reference.cache_clear()
    path = copied / "MANIFEST.json"
    content = json.loads(path.read_text())
    content["data:train"] = hashlib.sha256(b"other images").hexdigest()
    path.write_text(json.dumps(content))
    suite = DigitsSuite(weights=str(copied))
    suite.fingerprint()  # the weights are in order
    with pytest.raises(
        IntegrityError, match=r"reference images differ: sha256 .* expected .*constraints\.txt.*make train"
    ):
        suite.reference()


@pytest.mark.parametrize("what", ["no folder", "no manifest", "damaged manifest"])
def test_without_a_manifest_there_are_no_weights(copied, what):
    if what == "no folder":
        shutil.rmtree(copied)
    elif what == "no manifest":
        (copied / "MANIFEST.json").unlink()
    else:
        text = (copied / "MANIFEST.json").read_text()
        (copied / "MANIFEST.json").write_text(text[: len(text) // 2])
    with pytest.raises(IntegrityError, match=r"git checkout.*make train"):
        DigitsSuite(weights=str(copied)).fingerprint()


def test_manifest_round_trip(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "a.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path, {"data:train": "0" * 64})
    found = check_manifest(tmp_path, "REMEDY")
    assert found == {"net/a.safetensors": hashlib.sha256(b"weights").hexdigest(), "data:train": "0" * 64}
    (tmp_path / "net" / "a.safetensors").write_bytes(b"Weights")  # same size
    with pytest.raises(IntegrityError, match="REMEDY"):
        check_manifest(tmp_path, "REMEDY")


def test_saved_networks_load_as_they_were(tmp_path):
    """Weights ship in fp16, written as by the trainings; the suite runs them in float32."""
    torch.manual_seed(0)
    net = build_unet("small").eval()
    PixelPipeline(unet=net.half(), scheduler=DDPMScheduler(**SCHEDULER)).save_pretrained(tmp_path / "small")
    with safe_open(tmp_path / "small" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118 (not a dict)
    loaded = load_pipeline(PixelPipeline, tmp_path / "small").unet
    torch.manual_seed(0)
    for a, b in zip(build_unet("small").parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
