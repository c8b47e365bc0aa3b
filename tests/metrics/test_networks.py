"""What all feature networks share, DINOv2 on a tiny random checkpoint, and which checkpoints are refused."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from accel.errors import ConfigError
from accel.files import file_hash
from accel.metrics.base import exact_arithmetic, resolve_device
from accel.metrics.networks import ClipScore, feature_network
from accel.metrics.weights import files_sha256


@pytest.fixture
def copied(tmp_path):
    """copied(folder) -> a copy to spoil."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub whose cache is empty and that cannot be reached; the list of what was asked of it, local_files_only first.

    The cache can be filled by hand: `offline.cached[name] = folder`.
    """
    import huggingface_hub

    class Hub(list):
        cached = {}  # noqa: RUF012

    hub = Hub()

    def snapshot_download(name, local_files_only=False, allow_patterns=None):
        hub.append((name, local_files_only, allow_patterns))
        if local_files_only and name in hub.cached:
            return str(hub.cached[name])
        raise OSError("no route to the hub\nand much more")

    hub.cached = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


# --- the interface --------------------------------------------------------------------------------------------------


def test_names_are_checked():
    assert feature_network("none") is None
    with pytest.raises(ConfigError, match="Did you mean dinov2"):
        feature_network("dino")


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip"])
def test_nothing_is_loaded_before_it_is_needed(name, tmp_path):
    network = feature_network(name, tmp_path / "missing", device="cpu")
    assert network.name == name
    with pytest.raises(ConfigError) as caught:
        network(torch.zeros(1, 3, 8, 8).byte())
    assert network.unavailable() == str(caught.value)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_images_must_be_uint8_rgb(name, dino_folder, clip_folder):
    network = feature_network(name, {"dinov2": dino_folder, "clip": clip_folder}[name], device="cpu")
    with pytest.raises(ConfigError, match="needed: uint8"):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"needed: \(B, 3, H, W\)"):
        network(torch.zeros(1, 1, 8, 8).byte())


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, clip_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("dinov2", "clip"):
        reason = feature_network(name, clip_folder, device="cpu").unavailable()
        assert "needs transformers" in reason
        assert "pip install 'accel-diffusion[bench]'" in reason
    with pytest.raises(ConfigError, match="the CLIP score needs transformers"):
        ClipScore.load(clip_folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_refused():
    assert resolve_device(None) == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        feature_network("clip", device="cuda")


def test_arithmetic_is_exact_inside_and_as_before_outside():
    product = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (product @ product).dtype == torch.bfloat16
            with suppress(KeyError), exact_arithmetic():
                assert (product @ product).dtype == torch.float32
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cudnn.allow_tf32
                raise KeyError
            assert (product @ product).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch >= 2.9")
def test_arithmetic_is_exact_where_torchs_newer_settings_are_used():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        with exact_arithmetic():
            assert matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
    torch.get_float32_matmul_precision()


# --- DINOv2 ---------------------------------------------------------------------------------------------------------


def test_dinov2_features_are_the_class_token_of_the_square_resize(dino_folder, images):
    import transformers

    network = feature_network("dinov2", dino_folder, device="cpu", batch=3)
    batch = images(4, 60, 48)
    cls = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = cls(size={"height": 224, "width": 224}, do_center_crop=False, **imagenet)
    pixels = processor(images=list(batch), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = transformers.Dinov2Model.from_pretrained(dino_folder).eval()(pixels).pooler_output
    found = network(batch)
    assert found.shape == (4, network.num_features) == (4, 16)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert found.std(0).max() > 1e-3


def test_dinov2_says_what_it_is(dino_folder, copied):
    identity = feature_network("dinov2", copied(dino_folder), device="cpu").identity()
    assert identity["network"] == "DINOv2 2x16, patch 14"
    assert identity["weights_sha256"] == file_hash(dino_folder / "model.safetensors")
    assert identity["preprocessing"]["resize"] == [224, 224]
    assert json.loads(json.dumps(identity)) == identity


def test_weights_stored_in_half_precision_are_used_in_float32(dino_folder, copied, images):
    copy = copied(dino_folder)
    halves = {k: v.half() for k, v in load_file(copy / "model.safetensors").items()}
    save_file(halves, copy / "model.safetensors", {"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": "float16", "torch_dtype": "float16"}))
    found = feature_network("dinov2", copy, device="cpu")(images(1))
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(feature_network("dinov2", dino_folder, device="cpu")(images(1)), abs=2e-2)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def refusal(folder, name="dinov2") -> str:
    return feature_network(name, folder, device="cpu").unavailable()


def test_pickles_are_refused(clip_folder, copied):
    copy = copied(clip_folder)
    (copy / "model.safetensors").unlink()
    assert "has no safetensors; needed: model.safetensors" in refusal(copy, "clip")
    torch.save({}, copy / "pytorch_model.bin")
    reason = refusal(copy, "clip")
    assert "only pytorch_model.bin, and pickles, which can run code, are not loaded" in reason
    assert "save_pretrained" in reason
    with pytest.raises(ConfigError, match="pickles"):
        ClipScore.load(copy)


def test_another_model_is_refused(clip_folder, dino_folder):
    assert "holds a model of type 'clip'; needed: 'dinov2'" in refusal(clip_folder)
    assert "holds a model of type 'dinov2'; needed: 'clip'" in refusal(dino_folder, "clip")


def test_a_damaged_checkpoint_is_found_beforehand(dino_folder, copied):
    copy = copied(dino_folder)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot load Dinov2Model from" in refusal(copy)
    (copy / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(copy)
    (copy / "config.json").unlink()
    assert "has no config.json" in refusal(copy)


def test_weights_that_would_be_random_are_refused(dino_folder, copied):
    copy = copied(dino_folder)
    state = load_file(copy / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights of Dinov2Model, the first is layernorm.weight" in refusal(copy)


def test_a_hub_id_is_looked_up_locally_and_then_remotely(offline, dino_folder):
    reason = refusal("someone/dino")
    assert [local for _, local, _ in offline] == [True, False]
    assert all("*.bin" not in patterns and "*.py" not in patterns for _, _, patterns in offline)
    assert "'someone/dino' is not a local folder" in reason
    assert "(no route to the hub)" in reason
    assert "hf download someone/dino" in reason
    offline.cached["someone/dino"] = dino_folder
    offline.clear()
    assert refusal("someone/dino") is None
    assert [local for _, local, _ in offline] == [True]


def test_an_incomplete_cache_is_completed(offline, dino_folder, copied):
    offline.cached["someone/dino"] = copied(dino_folder)
    (offline.cached["someone/dino"] / "model.safetensors").unlink()
    assert "cannot be downloaded" in refusal("someone/dino")
    assert [local for _, local, _ in offline] == [True, False]


def test_an_error_without_a_text_is_still_a_reason(monkeypatch):
    import huggingface_hub

    def snapshot_download(*args, **kwargs):
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert "cannot be downloaded (TimeoutError)" in refusal("someone/dino")


@pytest.mark.parametrize("path", ["/nowhere/dino", "./dino", "weights/of/dino"])
def test_a_missing_folder_is_not_asked_of_the_hub(offline, path):
    assert f"there is no folder {path}" in refusal(path)
    assert not offline


def test_shards_are_hashed_together(tmp_path):
    for name, value in (("model-00001-of-00002.safetensors", 1.0), ("model-00002-of-00002.safetensors", 2.0)):
        save_file({"x": torch.tensor([value])}, tmp_path / name)
    both = files_sha256(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "model-00003-of-00003.safetensors")
    assert files_sha256(tmp_path) != both
    save_file({"x": torch.tensor([3.0])}, tmp_path / "model.safetensors")
    assert files_sha256(tmp_path) == file_hash(tmp_path / "model.safetensors")
