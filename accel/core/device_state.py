"""What a device is and does while something is timed on it: driver, settings, clocks, temperature, who else uses it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
SDP = ("flash", "mem_efficient", "cudnn", "math")  # torch's implementations of attention


def execution(device: torch.device | str) -> dict[str, Any]:
    """Settings of this process that decide how fast `device` is: versions, TF32, allocator, kinds of attention."""
    backends = torch.backends
    found: dict[str, Any] = {
        "tf32_matmul": _tf32(backends.cuda.matmul),
        "tf32_cudnn": _tf32(getattr(backends.cudnn, "conv", backends.cudnn)),
        "cudnn_benchmark": backends.cudnn.benchmark,
        "allocator": next((os.environ[name] for name in ALLOCATOR if os.environ.get(name)), "default"),
        "sdp": [name for name in SDP if getattr(backends.cuda, f"{name}_sdp_enabled", bool)()],
        "cuda": torch.version.cuda,
        "cudnn": backends.cudnn.version() if torch.version.cuda else None,
    }
    if torch.device(device).type == "cuda":
        found["driver"] = _asked(device, lambda nvml, _: _text(nvml.nvmlSystemGetDriverVersion()))
        found["memory_mib"] = _memory(device)
    return found


def sensors(device: torch.device | str) -> dict[str, Any]:
    """Clocks (MHz), power and its limit (W), temperature (degrees C), use (%) and other processes of a GPU now.

    Told by the package pynvml; what it, or the driver, does not say is left out. Nothing of other devices.
    """
    found = {name: _asked(device, ask) for name, ask in QUESTIONS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _others(nvml: Any, handle: Any) -> int:
    """How many other processes compute there (0 too where a container hides them)."""
    return sum(one.pid != os.getpid() for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle))


QUESTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sm_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
    "sm_max_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
    "power_w": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    "power_limit_w": lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
    "temperature_c": lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    "use_percent": lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    "other_processes": _others,
}


def _asked(device: torch.device | str, ask: Callable[[Any, Any], Any]) -> Any:
    """What `ask(nvml, handle)` says; None for another kind of device, without pynvml, and where that refuses."""
    if torch.device(device).type != "cuda":
        return None
    with suppress(Exception):  # optional in every respect: no package, no driver, no permission, no such sensor
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        return ask(nvml, _handle(nvml, torch.device(device)))
    return None


def _handle(nvml: Any, device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(torch.cuda.get_device_properties(index).uuid)  # CUDA's own numbers are not NVML's
    return nvml.nvmlDeviceGetHandleByUUID((uuid if uuid.startswith("GPU-") else f"GPU-{uuid}").encode())


def _memory(device: torch.device | str) -> int | None:
    index = torch.device(device).index
    total = getattr(torch.cuda.get_device_properties(0 if index is None else index), "total_memory", None)
    return None if total is None else total // 2**20


def _tf32(part: Any) -> bool:
    """Whether float32 products of `part` of torch.backends are TF32. torch 2.9 and later have a new switch."""
    told = getattr(part, "fp32_precision", None)
    return part.allow_tf32 if told is None else told == "tf32"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
