"""Overhead of the harness: the pipeline inside `accelerate` with an empty recipe against the bare pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from accel.evaluation.environment import environment
from accel.evaluation.generate import generate
from accel.evaluation.timing import interleave, median_interval
from accel.recipe import Recipe, accelerate
from accel.suites.base import Suite


def measure_overhead(suite: Suite, steps: int, batch: int, repetitions: int, device: str = "cpu") -> dict[str, Any]:
    """Ratio accelerated / bare of interleaved rounds (median, 95 % interval), with the A/A floor bare / bare."""
    pipe = suite.pipeline().to(device)
    pipe.scheduler = suite.converged(None).sampler.build(pipe.scheduler.config)
    labels = suite.conditions(0, batch)

    def bare() -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        pipe(**labels, generator=generators, num_inference_steps=steps, output_type="pt")

    @contextmanager
    def plain() -> Iterator[Callable[[], None]]:
        yield bare

    @contextmanager
    def inside() -> Iterator[Callable[[], None]]:
        with accelerate(pipe, Recipe()):
            yield bare

    generate(pipe, suite, Recipe(), 0, 0, batch, batch)  # the first call of a process pays for set-up
    seconds = interleave({"bare": plain, "inside": inside, "again": plain}, repetitions, device)
    both = (seconds["bare"] + seconds["again"]) / 2
    return {
        "suite": suite.name,
        "steps": steps,
        "batch": batch,
        "repetitions": repetitions,
        "ratio": median_interval(seconds["inside"] / both),
        "aa": median_interval(seconds["bare"] / seconds["again"]),
        "bare_ms": median_interval(both * 1000),
        "environment": environment(device),
    }
