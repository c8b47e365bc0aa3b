"""Part `contract`: every registered method on the device against the CPU, on tiny suites at quick settings.

For each method the greatest difference of its images, beside that of the pipeline without it; how often an evaluation
makes the host wait for the device beyond that pipeline, line by line; or why it is refused there. What a method learns,
it learns on either device for itself. Float32 products are float32 itself (no TF32) on the device.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from accel.benches.compatibility import methods
from accel.benches.device_job import Job, reason
from accel.core.recipe import Recipe
from accel.precision.executed.tf32 import float32_products
from accel.records import describe, digest
from accel.testing.bench import Bench, bench
from accel.testing.contract import TINY
from accel.testing.gpu import waits_beyond, watched
from accel.testing.quick import recipe

PART = "contract"


def run(job: Job, chosen: list[tuple[str, str]] | None = None) -> bool:
    """Measure what has no record yet; False if the time ended first. `chosen`: (axis, choice); None: all methods."""
    there = {suite: Bench(suite, job.device) for suite in TINY}
    plain: dict[str, tuple[torch.Tensor, torch.Tensor, Counter]] = {}
    # Quantisers last: they learn the longest.
    for axis, choice in sorted(methods(), key=lambda m: m[0] == "precision") if chosen is None else chosen:
        try:
            made = recipe(**{axis: choice})
            what = {"axis": axis, "choice": choice, "recipe": describe(made)}
        except Exception as error:
            made, what = error, {"axis": axis, "choice": choice}
        if axis == "grid" and choice == "searched":
            what["recipe"] = None  # it names a file of this process
        if job.done(PART, what):
            continue
        if job.left() < 0:
            return False
        start = time.perf_counter()
        if isinstance(made, Exception):
            found = reason(made)
        else:
            with float32_products("ieee"):
                found = measured(made, axis, there, plain)
        job.save(PART, what, found | {"seconds": time.perf_counter() - start})
    return True


def measured(made: Recipe, axis: str, there: dict[Any, Bench], plain: dict) -> dict[str, Any]:
    """The first tiny suite that `made` fits, and what was found there on both devices; or the reason why not."""
    reasons = []
    for suite in TINY:
        on = there[suite]
        refused = bench(suite).refusal(made, machine=False) or on.refusal(made)
        if refused:
            reasons.append(refused)
            continue
        try:
            return {"suite": suite.name} | _compared(bench(suite), on, made, axis, plain)
        except Exception as error:  # one method's failure is its own row
            return {"suite": suite.name} | reason(error)
    return {"refused": reasons[0]}


def _compared(here: Bench, there: Bench, made: Recipe, axis: str, plain: dict) -> dict[str, Any]:
    without = made if axis == "sampler" else replace(made, **{axis: None})
    only_there = here.refusal(made) is not None  # what no CPU runs is held against the pipeline without it
    expected = here.images(without if only_there else made)[0]
    found, waits = watched(there, made)
    base = None
    if without != made:
        key = digest([there.suite.name, describe(without)])
        if key not in plain:
            plain[key] = (here.images(without)[0], *watched(there, without))
        base = plain[key]
    beyond = waits_beyond(waits, base[2] if base else Counter(), axis == "sampler")
    return {
        "difference": _off(found, expected),
        "plain_difference": _off(base[1], base[0]) if base else None,
        "against": "plain" if only_there else "cpu",
        "range": float(expected.max() - expected.min()),
        "waits": {" ".join(wait): count for wait, count in beyond.items()},
        "plain_waits": sum(base[2].values()) if base else sum(waits.values()) - sum(beyond.values()),
    }


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())
