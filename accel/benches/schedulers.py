"""Overhead of the schedulers: one `step` against that of diffusers' DPM-Solver++ on latents of Stable Diffusion's size.

No model is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from accel.benches.options import parser
from accel.benches.overhead_table import write_schedulers
from accel.core.environment import environment, instruction_set, with_provenance
from accel.evaluation.intervals import median_interval
from accel.evaluation.timing import interleave
from accel.records import Results, digest
from accel.samplers import DiffusersSampler

LATENTS = (1, 4, 64, 64)
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp_3m (diffusers)": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "deis p=3 (diffusers)": ("DEISMultistepScheduler", {"solver_order": 3}),
    "unipc p=3 (diffusers)": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis tab r=2": ("DEISScheduler", {"variant": "tab", "ab_order": 2}),
    "deis tab r=3": ("DEISScheduler", {"variant": "tab", "ab_order": 3}),
    "deis logrhoab r=2": ("DEISScheduler", {"variant": "logrhoab", "ab_order": 2}),
    "ipndm r=3": ("DEISScheduler", {"variant": "ipndm", "ab_order": 3}),
    "unipc p=3": ("DCSolverScheduler", {"solver_order": 3}),
    "dc_solver p=3": ("DCSolverScheduler", {"solver_order": 3, "compensation_ratios": [1.0, 1.0] + [1.1] * 18}),
    "dpmpp_3m corrected": ("CorrectedDPMSolver3MScheduler", {"solver_order": 3}),
}
BASE = "dpmpp_3m (diffusers)"


def measure_schedulers(steps: int, repetitions: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time of one `step` of each of SCHEDULERS, as the ratio of interleaved rounds to BASE, which is timed twice.

    A round is a trajectory of `steps` steps on LATENTS in float32; `set_timesteps`, once an image, is timed apart.
    """
    output, sample = torch.randn(LATENTS, device=device), torch.randn(LATENTS, device=device)

    def arm(name: str):
        cls, options = SCHEDULERS[name]
        scheduler = DiffusersSampler(cls, steps, name, options).build({"beta_schedule": "scaled_linear"})

        def trajectory() -> None:
            for t in scheduler.timesteps:
                scheduler.step(output, t, sample, return_dict=False)

        @contextmanager
        def context() -> Iterator[Callable[[], None]]:
            scheduler.set_timesteps(steps, device=device)
            yield trajectory

        @contextmanager
        def setup() -> Iterator[Callable[[], None]]:
            yield lambda: scheduler.set_timesteps(steps, device=device)

        return context, setup

    made = {name: arm(name) for name in SCHEDULERS} | {"again": arm(BASE)}
    seconds = interleave({name: arms[0] for name, arms in made.items()}, repetitions, device, warmup=3)
    setup = interleave({name: arms[1] for name, arms in made.items()}, repetitions, device)
    both = (seconds[BASE] + seconds["again"]) / 2
    return [
        {
            "scheduler": name,
            "base": BASE,
            "steps": steps,
            "repetitions": repetitions,
            "step_us": median_interval(seconds[name] / steps * 1e6),
            "ratio": median_interval(seconds[name] / both),
            "aa": median_interval(seconds[BASE] / seconds["again"]),
            "set_timesteps_ms": median_interval(setup[name] * 1e3),
            "isa": instruction_set(device),
            "environment": environment(device),
        }
        for name in SCHEDULERS
    ]


def main(words: Sequence[str]) -> None:
    """`accel bench schedulers`: records and tables/scheduler_overhead.md."""
    options = parser(__doc__, "bench schedulers")
    options.add_argument("--repetitions", type=int, default=40)
    args = options.parse_args(words)
    results = Results(args.results)
    for place, measured in enumerate(measure_schedulers(20, args.repetitions)):
        key = digest({k: measured[k] for k in ("scheduler", "steps", "environment")})
        results.save(with_provenance({"kind": "scheduler", "id": key, "place": place, **measured}))
    for path in write_schedulers(results):
        print(path.read_text())
