"""What a number was made on: versions, device, threads."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the processor's model and instruction set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0] if lines else model
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, device and threads, for the record."""
    packages = {}
    for name in ("torch", "diffusers", "torchmetrics", "numpy", "scipy", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
    }
