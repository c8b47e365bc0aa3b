"""What a number was made on: versions, device, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
# For products of short numbers, as Linux names them: x86 by generation, then ARM.
INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "amx_fp16", "avx10_1", "avx10_2", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the processor's model and instruction set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    model = next((x.partition(":")[2].strip() for x in _cpuinfo() if x.startswith("model name")), model)
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


def _cpuinfo() -> list[str]:
    return CPUINFO.read_text().splitlines() if CPUINFO.exists() else []


def instruction_set(device: torch.device | str = "cpu") -> list[str]:
    """What decides which precision is fast: a CPU's instructions for short numbers, a GPU's compute capability (sm_90).

    Kept beside `environment` in records, never in what identifies them. A limit that was put on oneDNN is among them.
    """
    if torch.device(device).type == "cuda":
        return ["sm_{}{}".format(*torch.cuda.get_device_capability(device))]
    told = getattr(torch.cpu, "get_capabilities", dict)()
    flags = next((x.partition(":")[2].split() for x in _cpuinfo() if x.startswith(("flags", "Features"))), [])
    flags += [name for name, there in told.items() if there is True]
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        flags.append("amx_tile")
    limits = [f"oneDNN<={limit}" for limit in (os.environ.get("ONEDNN_MAX_CPU_ISA"),) if limit]
    return [name for name in INSTRUCTIONS if name in flags] + limits


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out (torch has several ways to say so)."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        s in text for s in ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    )
