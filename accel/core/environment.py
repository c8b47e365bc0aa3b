"""What a number was made on: versions, device, threads; and by which accel."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import accel

CPUINFO = Path("/proc/cpuinfo")
ROOT = Path(accel.__file__).resolve().parents[1]  # of the clone, or site-packages
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
    """Versions, device and threads, for the record; part of the id of every timing."""
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


def with_provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` whose `environment` also says what made it. Of a finished record: no id may depend on this."""
    return {**record, "environment": {**record.get("environment", {}), **provenance()}}


def threads_wait() -> str | None:
    """What the environment says of how OpenMP's threads wait for each other, on which times depend; None: nothing."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or None


@lru_cache(maxsize=1)
def provenance() -> dict[str, str | None]:
    """`accel` (its version) and `commit` (None where unknown), `transformers` and `wandb` where they are installed, and
    `omp_wait`, how threads of torch wait.

    Asked once a process: a clone may move on while a study runs.
    """
    found: dict[str, str | None] = {"accel": accel.__version__, "commit": _commit(), "omp_wait": threads_wait()}
    for name in ("transformers", "wandb"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the clone that accel is imported from, `-dirty` if its code was changed; of pip's source, if that was git."""
    if not _is_clone():
        return _installed_commit()
    if not (head := _git("rev-parse", "HEAD")):
        return None
    return head + "-dirty" * bool(_git("status", "--porcelain", "--", "accel", "conf"))


def _is_clone() -> bool:
    project = ROOT / "pyproject.toml"
    return (ROOT / ".git").exists() and project.is_file() and 'name = "accel-diffusion"' in project.read_text()


def _git(*command: str) -> str | None:
    """What git says in the clone; None if it cannot be asked."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # in a hook they name another repository
    try:
        told = subprocess.run(["git", *command], cwd=ROOT, env=own, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() if told.returncode == 0 else None


def _installed_commit() -> str | None:
    try:
        package = distribution("accel-diffusion")
    except PackageNotFoundError:
        return None
    if Path(str(package.locate_file("accel/__init__.py"))).resolve() != Path(accel.__file__).resolve():
        return None  # another copy is installed
    source = json.loads(package.read_text("direct_url.json") or "{}")  # PEP 610
    return source.get("vcs_info", {}).get("commit_id")
