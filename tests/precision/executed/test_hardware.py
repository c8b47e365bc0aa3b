"""What a machine lacks is said at once: the package and how to install it, the device and which would do."""

from __future__ import annotations

import pytest
import torch

from accel.core.recipe import Recipe
from accel.errors import IncompatibleError
from accel.precision import OpenVINO, StaticInt8, TorchAO
from accel.precision.executed.hardware import device_of, require_capability, require_cpu, require_package


@pytest.mark.parametrize(
    ("precision", "missing", "extra"),
    [(TorchAO(), "torchao", "torchao"), (StaticInt8(), "torchao", "torchao"), (OpenVINO(), "openvino", "openvino"),
     (OpenVINO("float32", int8=True), "nncf", "openvino")],
)  # fmt: skip
def test_a_missing_package_names_its_extra(pipe, monkeypatch, precision, missing, extra):
    monkeypatch.setattr(
        "accel.precision.executed.hardware.find_spec", lambda name: None if name == missing else object()
    )
    expected = rf"needs the package {missing}, which is not installed; .* pip install 'accel-diffusion\[{extra}\]'"
    with pytest.raises(IncompatibleError, match=expected):
        Recipe(precision=precision).check(pipe)


def test_a_package_that_is_there_is_no_obstacle():
    require_package("x", "torch", "any")


@pytest.mark.parametrize(("found", "enough"), [((7, 5), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_capability(monkeypatch, found, enough):
    monkeypatch.setattr("accel.precision.executed.hardware.device_of", lambda net: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    nets = {"base": torch.nn.Linear(1, 1)}
    if enough:
        return require_capability("fp8", nets, (8, 9))
    with pytest.raises(
        IncompatibleError, match=rf"8\.9 or above, but 'base' is on cuda:0 of .* {found[0]}\.{found[1]}"
    ):
        require_capability("fp8", nets, (8, 9))


def test_float8_is_refused_on_the_cpu(pipe):
    with pytest.raises(IncompatibleError, match=r"capability 8\.9 or above, but 'base' is on cpu"):
        Recipe(precision=TorchAO("float8")).check(pipe)


def test_cpu_only():
    require_cpu("x", {"base": torch.nn.Linear(1, 1), "closed form": torch.nn.Identity()})
    assert device_of(torch.nn.Identity()).type == "cpu"
    with pytest.raises(IncompatibleError, match="x runs on the CPU only, but 'base' is on meta"):
        require_cpu("x", {"base": torch.nn.Linear(1, 1, device="meta")})
