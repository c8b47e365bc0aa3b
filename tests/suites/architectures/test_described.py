"""The architectures that ship: the parameters of the published weights, and what a share of the layers is."""

from __future__ import annotations

import json

import pytest
import torch

from accel.errors import ConfigError
from accel.suites.architectures import ArchSuite, made
from accel.suites.architectures import described as archs
from accel.suites.hub import files as hub_files

CLIP_L, BIG_G, T5, VAE, VAE_16, VAE_VIDEO = 123_060_480, 694_659_840, 4_762_310_656, 83_653_863, 83_819_683, 126_892_531
# Of the published weights, part by part. DiT: diffusers gives each of the 28 blocks an embedding of time and class of
# its own, 27 x 2,777,472 more than the paper's 675,129,632, and keeps the paper's 294,912 places as a buffer.
PARAMETERS = {
    "sd15": {"text_encoder": CLIP_L, "unet": 859_520_964, "vae": VAE},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": BIG_G, "unet": 2_567_463_684, "vae": VAE},
    "dit_xl_2": {"transformer": 675_129_632 + 27 * 2_777_472 - 294_912, "vae": VAE},
    "pixart": {"text_encoder": T5, "transformer": 610_856_096, "vae": VAE},
    "sd3": {
        "text_encoder": 123_650_304, "text_encoder_2": BIG_G, "text_encoder_3": T5, "transformer": 2_028_328_000,
        "vae": VAE_16,
    },
    "flux_dev": {"text_encoder": CLIP_L, "text_encoder_2": T5, "transformer": 11_901_408_320, "vae": VAE_16},
    "wan": {"text_encoder": 5_680_910_336, "transformer": 1_418_996_800, "vae": VAE_VIDEO},
    "qwen_image": {"text_encoder": 8_292_166_656, "transformer": 20_430_401_088, "vae": VAE_VIDEO},
    "sana": {"text_encoder": 2_614_341_888, "transformer": 1_604_462_752, "vae": 312_250_275},
}  # fmt: skip


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_are_those_of_the_published_weights(arch):
    suite = ArchSuite(arch=arch)
    found = made.sizes(suite.folder, torch.bfloat16)
    assert {name: count for name, (count, _) in found.items()} == PARAMETERS[arch]
    assert found["vae"][1] == 2 * found["vae"][0]
    suite.check(60)


def test_all_that_ship_say_their_source_and_are_counted():
    assert archs.names() == sorted(PARAMETERS)
    for name in archs.names():
        own = json.loads((archs.HERE / f"{name}.json").read_text())
        assert "/" in own["source"]
        assert own["dtype"] in ("float16", "bfloat16")
    shared = json.loads((archs.HERE / "encoders.json").read_text())
    assert shared["source"].keys() == shared.keys() - {"source"}


def test_a_share_of_the_layers():
    config = {"num_layers": 19, "num_single_layers": 38, "transformer_layers_per_block": [1, 2, 10], "width": 7}
    config |= {"text_config": {"num_hidden_layers": 4, "layer_types": list("abcd")}, "sample_size": 128}
    assert archs.scaled(config, 0.5, 0.25) == {
        "num_layers": 10, "num_single_layers": 19, "transformer_layers_per_block": [1, 1, 5], "width": 7,
        "text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]}, "sample_size": 32,
    }  # fmt: skip
    assert archs.scaled(config, 1.0, 1.0) == config
    assert archs.scaled(config, 0.01, 1.0)["num_layers"] == 1


def test_smaller_ones_are_told_apart():
    whole, half = ArchSuite(arch="flux_dev"), ArchSuite(arch="flux_dev", layers=0.5, resolution=0.5)
    assert (whole.image_size, half.image_size) == ((1024, 1024), (512, 512))
    assert (whole.name, half.name) == ("arch", "arch_layers0.5_resolution0.5")
    assert hub_files.config_of(half.folder, "transformer")["num_single_layers"] == 19
    assert hub_files.config_of(half.folder, "vae") == hub_files.config_of(whole.folder, "vae")
    assert whole.fingerprint()["configs"] != half.fingerprint()["configs"]
    assert ArchSuite(arch="dit_xl_2", resolution=0.5).image_size == (128, 128), "its model has one size"
    assert ArchSuite(arch="wan").image_size == (480, 832)


def test_one_that_is_not_there(tmp_path, configs):
    with pytest.raises(ConfigError, match=r"suite\.arch is 'sdxk'; allowed: dit_xl_2, flux_dev, .* or a folder"):
        ArchSuite(arch="sdxk")
    with pytest.raises(ConfigError, match=r"has no model_index\.json"):
        ArchSuite(arch=str(tmp_path))
    folder = configs("sd")
    index = json.loads((folder / "model_index.json").read_text())
    for part in ("scheduler", "unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        for file in (folder / part).glob("*.json"):
            (tmp_path / part / file.name).write_text(file.read_text().replace("UNet2DConditionModel", "UNet2DModel"))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="has unet as UNet2DConditionModel, and its config is that of UNet2DModel"):
        ArchSuite(arch=str(tmp_path)).check(60)


def test_an_implementation_of_its_own_is_refused(tmp_path, configs):
    import shutil

    folder = shutil.copytree(configs("sd"), tmp_path / "own")
    path = folder / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "owner/kernels"}))
    with pytest.raises(ConfigError, match="may be code of its own"):
        ArchSuite(arch=str(folder)).check(60)
