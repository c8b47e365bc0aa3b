"""The instruction set: read off the machine, kept beside what identifies a record and never in it."""

from __future__ import annotations

import json

import pytest
import torch

from accel.core import environment as module
from accel.core.environment import environment, instruction_set
from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies.runner import Evaluation, Runner

CPUINFO = {
    "flags\t\t: fpu avx2 avx512f avx512_vnni nonsense\n": ["avx2", "avx512f", "avx512_vnni"],
    "flags : avx2 amx_tile amx_bf16 amx_int8": ["avx2", "amx_tile", "amx_int8", "amx_bf16"],
    "Features : fp asimd bf16 i8mm": ["asimd", "bf16", "i8mm"],
    "": [],
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(cpuinfo, told): what Linux and torch say of the processor."""

    def machine(cpuinfo: str, told=(), amx=False):
        path = tmp_path / "cpuinfo"
        path.write_text("model name : Testchip 9\n" + cpuinfo)
        monkeypatch.setattr(module, "CPUINFO", path)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(told), raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    return machine


@pytest.mark.parametrize(("cpuinfo", "expected"), CPUINFO.items())
def test_what_linux_says(machine, cpuinfo, expected):
    machine(cpuinfo)
    assert instruction_set() == expected


def test_what_torch_says_counts_too(machine, monkeypatch):
    machine("", {"avx2": True, "avx512_bf16": True, "amx_bf16": False, "architecture": "x86"}, amx=True)
    assert instruction_set() == ["avx2", "avx512_bf16", "amx_tile"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.6 has none
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert instruction_set() == []


def test_a_limit_on_the_kernels_is_said(machine, monkeypatch):
    machine("flags : avx2 amx_tile")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert instruction_set() == ["avx2", "amx_tile", "oneDNN<=AVX512_CORE_VNNI"]


def test_it_is_in_timing_records_but_not_in_their_identity(machine, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.evaluation.timing.generate", lambda *args, **kwargs: None)
    recipes = [Recipe(DiffusersSampler("DDIMScheduler", steps)) for steps in (2, 4)]

    def timing(folder, cpuinfo):
        machine(cpuinfo)
        runner = Runner(digits, Evaluation(device="cpu", repetitions=3), Results(tmp_path / folder))
        return runner.timing(*recipes)

    old, new = timing("old", ""), timing("new", "flags : avx512_vnni")
    assert (old["isa"], new["isa"]) == ([], ["avx512_vnni"])
    assert old["id"] == new["id"]
    assert old["environment"] == new["environment"]
    assert "avx512_vnni" not in json.dumps(new["environment"])
    assert set(environment()) == {"device", "device_name", "threads", "python", "system", "packages"}
