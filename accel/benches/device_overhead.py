"""Part `overhead`: what the harness costs on the device: an empty recipe against the bare pipeline, scheduler steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.benches.device_job import Job, emptied, reason
from accel.benches.overhead import measure_overhead
from accel.benches.schedulers import measure_schedulers
from accel.core.device_state import sensors
from accel.suites.base import Suite
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite

PART = "overhead"
STEPS = 20


def run(job: Job, cases: Sequence[tuple[Suite, int]] | None = None, repetitions: int = 15, steps: int = STEPS) -> bool:
    """Measure what has no record yet; False if the time ended first. cases: (suite, batch)."""
    if cases is None:
        cases = ((DigitsSuite(), 1), (DigitsSuite(), 8), (MixtureSuite(), 8))
    for suite, batch in cases:
        what = {"case": "accelerate", "suite": suite.name, "batch": batch, "steps": steps}
        if not _saved(job, what, lambda s=suite, b=batch: measure_overhead(s, steps, b, repetitions, job.device)):
            return False
    what = {"case": "schedulers", "steps": STEPS}
    return _saved(job, what, lambda: {"schedulers": _schedulers(STEPS, repetitions, job.device)})


def _schedulers(steps: int, repetitions: int, device: str) -> list[dict[str, Any]]:
    found = measure_schedulers(steps, repetitions, device)
    return [{k: v for k, v in one.items() if k not in ("environment", "isa")} for one in found]


def _saved(job: Job, what: dict[str, Any], measure: Any) -> bool:
    if job.done(PART, what):
        return True
    if job.left() < 15:
        return False
    job.tell(f"overhead: {' '.join(map(str, what.values()))}; {job.left():.0f} s left")
    before = sensors(job.device)
    try:
        found = measure()
    except Exception as error:
        found = reason(error)
    emptied(job.device)
    kept = {k: v for k, v in found.items() if k not in ("environment", "isa")}
    job.save(PART, what, kept | {"before": before, "after": sensors(job.device)})
    return True
