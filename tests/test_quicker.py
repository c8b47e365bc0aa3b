"""What tests look up once (tests/quicker.py) is what diffusers and Hydra find."""

from __future__ import annotations

import copy
import inspect

import pytest
import quicker
import torch
from diffusers import DDIMScheduler
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_processor import AttnProcessor
from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from omegaconf import OmegaConf
from tiny import Proportional, stable_diffusion

from accel import config


def test_dtypes_are_those_that_diffusers_finds():
    net, kept = stable_diffusion().unet, stable_diffusion().unet.half()
    kept._keep_in_fp32_modules = ["conv_in"]
    kept.conv_in.float()
    nets = [net, copy.deepcopy(net).double(), kept, Proportional()]  # the last has a buffer alone
    assert [quicker._dtype_of(one) for one in nets] == [quicker._dtype(one) for one in nets]
    assert [quicker._dtype_of(one) for one in nets] == [torch.float32, torch.float64, torch.float16, torch.float64]
    apply_layerwise_casting(net.up_blocks, torch.float16, torch.bfloat16)
    assert quicker._hooked(net)
    assert net.dtype == quicker._dtype(net) == torch.bfloat16


@pytest.mark.parametrize("bound", [DDIMScheduler().step, AttnProcessor().__call__], ids=["step", "processor"])
def test_signatures_are_those_of_inspect(bound):
    for made in (bound, bound.__func__, bound):
        assert quicker._signature(made) == inspect.signature(made)
    assert "self" in quicker._signature(bound.__func__).parameters
    assert "self" not in quicker._signature(bound).parameters


def test_a_config_file_is_read_again_when_it_has_changed(tmp_path):
    source = SourcesRegistry.instance().resolve("file")("main", f"file://{tmp_path}")
    for value in (1, 22, 1):
        (tmp_path / "a.yaml").write_text(f"x: {value}\n")
        found = [source.load_config("a") for _ in range(2)]
        assert [dict(one.config) for one in found] == [{"x": value}] * 2
        found[0].config.x = found[0].header["package"] = None  # nobody else sees it
        assert source.load_config("a").config.x == value


def test_hydra_reads_no_file_for_a_second_composition(monkeypatch):
    first = config._composed(["experiment=demo"])
    monkeypatch.setattr(OmegaConf, "load", None)
    assert config._composed(["experiment=demo"]) == first


def test_a_default_may_refer_to_another_one(tmp_path):
    (tmp_path / "config.yaml").write_text("defaults: [_self_, a: one, b: '${a}']\n")
    for group, choice in (("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{choice}.yaml").write_text(f"x: {choice}\ny: ${{.x}}!\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for choice in ("one", "two"):
            cfg = compose("config", [f"a={choice}"])
            assert (cfg.b.x, cfg.b.y) == (choice, f"{choice}!")
