"""What is said of a device: settings without it, sensors by NVML where that is there."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from accel.core.device_state import execution, sensors
from accel.precision.executed.tf32 import float32_products
from accel.testing.elsewhere import DEVICE, Elsewhere


class Refused(Exception):
    pass


def nvml() -> SimpleNamespace:
    def refused(*args):
        raise Refused("not supported")

    def handle(uuid):
        assert uuid == b"GPU-pretended-1", "CUDA's numbers are not NVML's"
        return "it"

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 3201}[kind],
        nvmlDeviceGetMaxClockInfo=refused,
        nvmlDeviceGetPowerUsage=lambda handle: 512_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetUtilizationRates=refused,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)],
    )


def test_sensors_say_what_the_driver_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    with Elsewhere():
        assert sensors(DEVICE) == {
            "sm_mhz": 1980, "memory_mhz": 3201, "power_w": 512.5, "power_limit_w": 700.0, "temperature_c": 41,
            "other_processes": 1,
        }  # fmt: skip
        assert execution(DEVICE)["driver"] == "580.1"
    assert sensors("cpu") == {}


def test_without_nvml_there_is_nothing_to_say(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Elsewhere():
        assert sensors(DEVICE) == {}
        assert execution(DEVICE)["driver"] is None


@pytest.mark.parametrize(("precision", "told"), [("tf32", True), ("ieee", False)])
def test_settings_are_those_of_the_moment(precision, told, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    before = execution("cpu")
    with float32_products(precision):
        assert (execution("cpu")["tf32_matmul"], execution("cpu")["tf32_cudnn"]) == (told, told)
    assert execution("cpu") == before
    assert before["allocator"] == "expandable_segments:True"
    assert "math" in before["sdp"]
    assert torch.backends.cuda.matmul.allow_tf32 is before["tf32_matmul"], "torch's old switch can still be read"
