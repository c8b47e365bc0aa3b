"""Convergence of samplers: error to the exact probability-flow ODE of suite `mixture` against NFE, with fitted orders.

Both ends are fixed: from the model's largest noise level to its smallest, where the exact solution is known to 1e-12.
A sampler that ends at sigma = 0 only is compared there; its last step is of order 1 whatever its order is before.
Order: minus the slope of log(error) over log(steps), fitted over the `TAIL` largest numbers of steps above rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from rich.progress import track

from accel.benches.convergence_table import write_convergence
from accel.benches.options import parser
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError
from accel.records import Results, digest
from accel.samplers import DiffusersSampler, Sampler
from accel.samplers.grids import Grid, PowerGrid
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution

STEPS = (5, 10, 20, 40, 80, 160, 320)
SAMPLES = 32
TAIL = 3
ROUNDING = 1e-11  # errors below are no longer those of the sampler
GRIDS: Mapping[str, Grid] = {
    "trailing": Grid("trailing"),
    "t_quadratic": PowerGrid(space="t", kappa=2.0, name="t_quadratic"),
    "karras": Grid("karras"),
    "exponential": Grid("exponential"),
}


@dataclass(frozen=True)
class Contestant:
    """A sampler of the table: scheduler class, its options, the order that theory gives it, and where it ends.

    `epoch` is part of its records' ids: raised when a change alters its numbers."""

    name: str
    scheduler: str
    order: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    end: str = "min"
    epoch: int = 1

    def sampler(self, steps: int) -> Sampler:
        return DiffusersSampler(self.scheduler, steps, self.name, dict(self.options))


def contestants() -> list[Contestant]:
    """Every deterministic sampler of the harness, and diffusers' own."""
    zero, deis = {"final_sigma": "min"}, "DEISScheduler"
    own = [
        Contestant(f"{variant} r={r}", deis, r + 1, zero | {"variant": variant, "ab_order": r})
        for variant in ("tab", "rhoab", "logrhoab")
        for r in range(4)
        if r or variant == "tab"
    ]
    own += [Contestant("ipndm r=3", deis, None, zero | {"variant": "ipndm", "ab_order": 3})]
    own += [
        Contestant(f"rhork {t}", deis, order, zero | {"variant": "rhork", "tableau": t})
        for t, order in (("heun", 2), ("midpoint", 2), ("kutta", 3), ("ralston3", 3), ("rk4", 4))
    ]
    free = {"lower_order_final": False}
    own += [
        Contestant(f"unipc p={p} (accel)", "DCSolverScheduler", p + 1, zero | free | {"solver_order": p})
        for p in (1, 2, 3)
    ]
    last = {"final_sigmas_type": "sigma_min"}
    multistep, pp = "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}
    theirs = [
        Contestant("ddim (diffusers)", "DDIMScheduler", 1, {"set_alpha_to_one": False}),
        Contestant("dpmpp_2m (diffusers)", multistep, 2, last | free | pp | {"solver_order": 2}),
        Contestant("dpmpp_3m (diffusers)", multistep, 2, last | free | pp | {"solver_order": 3}),
        Contestant("dpmpp_3m corrected", "CorrectedDPMSolver3MScheduler", 3, last | free | pp),
        Contestant("unipc p=2 (diffusers)", "UniPCMultistepScheduler", 3, last | free | {"solver_order": 2}),
        Contestant("unipc p=3 (diffusers)", "UniPCMultistepScheduler", 4, last | free | {"solver_order": 3}),
        Contestant("deis p=3 (diffusers)", "DEISMultistepScheduler", 3, free | {"solver_order": 3}),
        Contestant("heun (diffusers)", "HeunDiscreteScheduler", 2, {}, end="zero"),
    ]
    # 2: they step in float64. DDIM has no levels that could be rounded.
    return own + [replace(c, epoch=1 if c.scheduler == "DDIMScheduler" else 2) for c in theirs]


def measure(
    contestant: Contestant,
    grid: str,
    steps: tuple[int, ...] = STEPS,
    samples: int = SAMPLES,
    on_point: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Errors (root mean square over samples and dimensions) by number of steps, NFE counted, and the fitted order."""
    pipe, noise, labels, exact = _problem(samples)
    points = []
    for count in steps:
        recipe = Recipe(contestant.sampler(count), grid=GRIDS[grid])
        try:
            recipe.check(pipe)
        except ConfigError:  # diffusers' schedulers that take whole timesteps only
            break
        with accelerate(pipe, recipe) as run:
            result = pipe(class_labels=labels, latents=noise, output_type="pt").images
        error = float((result - exact[contestant.end]).square().mean().sqrt())
        points.append({"steps": count, "nfe": run.nfe, "error": error if np.isfinite(error) else None})
        on_point(count)
    return {
        "sampler": contestant.name,
        "scheduler": contestant.scheduler,
        "options": dict(contestant.options),
        "grid": grid,
        "end": contestant.end,
        "theory": contestant.order,
        "order": fitted_order(points),
        "points": points,
        "samples": samples,
    }


def fitted_order(points: list[dict[str, Any]]) -> float | None:
    """Minus the least-squares slope of log(error) over log(steps) in the last `TAIL` points above rounding error."""
    usable = [p for p in points if p["error"] is not None and p["error"] > ROUNDING][-TAIL:]
    if len(usable) < 2:
        return None
    x, y = (np.log([p[k] for p in usable]) for k in ("steps", "error"))
    return float(-np.polyfit(x, y, 1)[0])


def jobs() -> Iterator[tuple[Contestant, str]]:
    """Every sampler on every grid that it takes."""
    config = MixtureSuite().pipeline().scheduler.config
    for contestant in contestants():
        for name, grid in GRIDS.items():
            try:
                contestant.sampler(10).build(config, grid)
            except AccelError:
                continue
            yield contestant, name


@lru_cache(maxsize=2)
def _problem(samples: int):
    suite = MixtureSuite()
    pipe = suite.pipeline()
    net = pipe.unet
    shape = (1, *net.sample_shape)
    noise = [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators(0, 0, samples)]
    noise, labels = torch.cat(noise), torch.tensor(suite.conditions(0, samples)["class_labels"])
    start, smallest = float(net.rho(net.config.num_train_timesteps - 1)), float(net.rho(0))
    exact = {
        "min": exact_solution(net, noise, labels, start, smallest),
        "zero": exact_solution(net, noise, labels, start, 0.0),
    }
    return pipe, noise, labels, exact


def main(words: Sequence[str]) -> None:
    """`accel bench convergence`: records, tables/convergence.* and figures/convergence.png."""
    options = parser(__doc__, "bench convergence")
    options.add_argument("--samples", type=int, default=SAMPLES)
    args = options.parse_args(words)
    torch.set_num_threads(1)  # eight dimensions: threads only cost
    results = Results(args.results)
    for place, (contestant, grid) in enumerate(track(list(jobs()), "convergence")):
        asked = {"sampler": contestant.name, "scheduler": contestant.scheduler, "options": dict(contestant.options),
                 "grid": grid, "steps": list(STEPS), "samples": args.samples, "epoch": contestant.epoch}  # fmt: skip
        key = digest(asked)
        if not results.path("convergence", key).exists():
            measured = measure(contestant, grid, samples=args.samples)
            results.save({"kind": "convergence", "id": key, "place": place, **measured})
    for path in write_convergence(results):
        print(path)
