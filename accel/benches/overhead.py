"""Overhead of the harness: the pipeline inside `accelerate` with an empty recipe against the bare pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from accel.benches.options import parser
from accel.benches.overhead_table import write_overhead
from accel.core.environment import environment, instruction_set, with_provenance
from accel.core.recipe import Recipe, accelerate
from accel.evaluation.generate import generate
from accel.evaluation.intervals import median_interval
from accel.evaluation.timing import interleave
from accel.records import Results, digest
from accel.suites.base import Suite
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite


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
        "isa": instruction_set(device),
        "environment": environment(device),
    }


def main(words: Sequence[str]) -> None:
    """`accel bench overhead`: records and tables/overhead.md."""
    options = parser(__doc__, "bench overhead")
    options.add_argument("--repetitions", type=int, default=40)
    args = options.parse_args(words)
    results = Results(args.results)
    for suite, batch in ((DigitsSuite(), 1), (DigitsSuite(), 8), (MixtureSuite(), 8)):
        measured = measure_overhead(suite, 20, batch, args.repetitions)
        key = digest({k: measured[k] for k in ("suite", "steps", "batch", "environment")})
        results.save(with_provenance({"kind": "bench", "id": key, **measured}))
    for path in write_overhead(results):
        print(path.read_text())
