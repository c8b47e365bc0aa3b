"""A benchmark on one device that resumes: records by content, and a time limit that holds between measurements."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from accel.core.device_state import execution
from accel.core.environment import environment, instruction_set, out_of_memory, with_provenance
from accel.errors import AccelError
from accel.records import Results, digest

KIND = "device"  # of the records
OUT_OF_MEMORY = "out of memory"


@dataclass
class Job:
    """Where to measure, where records go, and until when (seconds of time.monotonic)."""

    device: str
    results: Results
    until: float = float("inf")
    tell: Any = print

    def left(self) -> float:
        """Seconds until the limit; negative after it."""
        return self.until - time.monotonic()

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and device, part of every record's id."""
        return environment(self.device)

    def key(self, part: str, what: Mapping[str, Any]) -> str:
        """Id of the record of `what` in `part` on this device with these versions."""
        return digest({"part": part, **what, "environment": self.environment})

    def done(self, part: str, what: Mapping[str, Any]) -> bool:
        """Whether its record is there and says a result. What failed by an unexpected error is tried again."""
        kept = self.results.load(KIND, self.key(part, what))
        return kept is not None and "failed" not in kept

    def save(self, part: str, what: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Write the record of `what` at once."""
        head = {"kind": KIND, "id": self.key(part, what), "part": part, "environment": self.environment}
        made_on = {"isa": instruction_set(self.device), "execution": execution(self.device)}
        self.results.save(with_provenance({**head, **made_on, **what, **found}))


def reason(error: Exception) -> dict[str, str]:
    """What a record says in place of numbers: `refused`, out of memory as its `result`, or `failed`."""
    if out_of_memory(error):
        return {"result": OUT_OF_MEMORY}
    if isinstance(error, AccelError):
        return {"refused": str(error)}
    lines = str(error).strip().splitlines()
    return {"failed": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}


def emptied(device: torch.device | str, collect: bool = True) -> None:
    """Give back the memory of `device` that nothing uses; `collect`: also what only circles of objects hold."""
    if collect:
        gc.collect()
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def reset_peaks(device: torch.device | str) -> None:
    """Begin to measure peaks of memory anew; nothing on a CPU."""
    emptied(device, collect=False)
    if torch.device(device).type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device | str) -> dict[str, float | None]:
    """Peak allocated and reserved MiB since `reset_peaks`, weights included; None on a CPU."""
    if torch.device(device).type != "cuda":
        return {"allocated_mib": None, "reserved_mib": None}
    found = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return dict(zip(("allocated_mib", "reserved_mib"), (n / 2**20 for n in found), strict=True))
