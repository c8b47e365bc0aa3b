"""Part `speed`: realised speed-ups against those that multiply-accumulates promise, on networks that people deploy.

One trajectory of a batch on latents, without text encoders and autoencoder: what a method gains at the denoiser and its
scheduler. All methods of a network and batch run in interleaved rounds, the plain network twice (the A/A floor), after
rounds until times are stable. The honest control is the plain network with half the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from accel.benches.device_job import KIND, Job, emptied, peaks, reason, reset_peaks
from accel.benches.device_networks import NETWORKS, Network, ShapesPipeline
from accel.core.device_state import sensors
from accel.core.recipe import Recipe, accelerate
from accel.evaluation.intervals import median_interval
from accel.evaluation.timing import interleave, stopwatch, warmed
from accel.guidance import CFG, AdaptiveGuidance, IntervalCFG
from accel.records import describe
from accel.registry import method

PART = "speed"
STEPS = 8
BATCHES = (1, 4)
PLAIN, AGAIN = "plain", "again"
SECONDS = 14.0  # of rounds aimed at for one network and batch
COUNTED = ("macs", "nfe", "strip", "counted_at")
WARMUP = 10  # rounds at most
LEAST, MOST = 6, 30  # rounds
# Noise levels with guidance: sigma / alpha as Kynkaanniemi et al. 2024 for SDXL (arXiv:2404.07724); a flow's own sigma.
INTERVAL, FLOW_INTERVAL = (0.28, 5.42), (0.25, 0.92)


def recipes(network: Network, steps: int | None = None) -> dict[str, Recipe]:
    """What is measured on a network, by name, in so many steps (None: STEPS); the first is the plain network."""
    steps = STEPS if steps is None else steps
    plain = Recipe(
        method("sampler", "flow_euler" if network.flow else "dpmpp_2m", steps=steps),
        guidance=CFG(network.scale) if network.scale > 1 else None,
    )
    found = {PLAIN: plain} | {name: replace(plain, cache=cache) for name, cache in _caches(network.family).items()}
    if network.scale > 1:
        # With random weights no cosine means anything: guidance ends at half the steps.
        interval = FLOW_INTERVAL if network.flow else INTERVAL
        halfway = AdaptiveGuidance(network.scale, threshold=-1.0, decision="batch", min_steps=steps // 2 - 1)
        found["interval guidance"] = replace(plain, guidance=IntervalCFG(network.scale, *interval))
        found["adaptive guidance"] = replace(plain, guidance=halfway)
    found["half the steps"] = replace(plain, sampler=replace(plain.sampler, steps=steps // 2))
    return found


def _caches(family: str) -> dict[str, Any]:
    every = lambda n: {"interval": n}  # noqa: E731
    if family == "unet":
        return {
            "deepcache 1:3, branch 1": method("cache", "deepcache", interval=3, branch=1),
            "deepcache 1:5, branch 2": method("cache", "deepcache", interval=5, branch=2),
            "encoder propagation 1:3": method("cache", "encoder_propagation", schedule=every(3)),
        }
    return {
        "fora 1:3": method("cache", "fora", schedule=every(3)),
        "taylorseer 1:3, order 2": method("cache", "taylorseer", schedule=every(3)),
        "inheritance of blocks 1:2": method("cache", "inheritance", level="block", schedule=every(2)),
        # With random weights no threshold means anything: all steps but the first skip the blocks.
        "diffusers first_block, threshold 10": method("cache", "diffusers_first_block", options={"threshold": 10.0}),
        "diffusers mag": method("cache", "diffusers_mag"),
    }


def run(job: Job, networks: Sequence[Network] | None = None, batches: Sequence[int] = BATCHES) -> bool:
    """Measure what has no record yet, batch by batch over all networks; False if the time ended first."""
    for batch in batches:
        for network in NETWORKS.values() if networks is None else networks:
            if not _group(job, network, batch):
                return False
    return True


def _group(job: Job, network: Network, batch: int) -> bool:
    made = recipes(network)
    whats = {name: _what(job, network, batch, name, recipe) for name, recipe in made.items()}
    pending = [name for name in made if not job.done(PART, whats[name])]
    if not pending:
        return True
    if job.left() < 10:
        return False
    job.tell(f"speed: {network.name}, batch {batch}, {len(pending)} methods; {job.left():.0f} s left")
    try:
        bed = Bed(network.pipeline(job.device, dtype_on(job.device)), job.device, batch)
        found = measured(bed, made, pending, job, _known(job, network, made, batch))
    except Exception as error:
        found = {name: reason(error) for name in pending}
    bed = None
    emptied(job.device)
    for name, row in (found or {}).items():
        job.save(PART, whats[name], row)
    return found is not None


def _what(job: Job, network: Network, batch: int, name: str, recipe: Recipe) -> dict[str, Any]:
    what = {"network": network.name, "batch": batch, "method": name, "steps": STEPS}
    return what | {"dtype": str(dtype_on(job.device)).removeprefix("torch."), "recipe": describe(recipe)}


def _known(job: Job, network: Network, made: Mapping[str, Recipe], batch: int) -> dict[str, Any]:
    """Counted costs an image, from the records of another batch: they do not depend on it, and counting takes time."""
    found = {}
    for other in BATCHES:
        for name, recipe in made.items() if other != batch else ():
            kept = job.results.load(KIND, job.key(PART, _what(job, network, other, name, recipe)))
            if kept is not None and "macs" in kept:
                found[name] = kept
    return found


def dtype_on(device: str) -> torch.dtype:
    """bfloat16 on an accelerator, float32 on a CPU."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


@dataclass
class Bed:
    """A pipeline on its device, and the latents and conditions of one batch."""

    pipe: ShapesPipeline
    device: str
    batch: int

    def __post_init__(self) -> None:
        network, dtype = self.pipe.network, self.pipe.denoiser.dtype
        self.latents = torch.randn(self.batch, *network.architecture.shape, device=self.device, dtype=dtype)
        rows = self.batch * (2 if network.scale > 1 else 1)
        self.conditions = network.conditions(rows, self.device, dtype)

    def sample(self, recipe: Recipe) -> torch.Tensor:
        """Latents after all steps; the pipeline runs `recipe` already."""
        return self.pipe(self.latents, self.conditions, recipe.sampler.steps, recipe.guidance_scale)

    def artefacts(self, recipe: Recipe) -> dict[str, Any] | None:
        """What the recipe's cache has to measure beforehand, on this batch."""
        if recipe.cache is None or not recipe.cache.calibrated:
            return None
        return {"cache": recipe.cache.calibrate(self.pipe, recipe, lambda other, start, stop: self.sample(other))}

    def arm(self, recipe: Recipe, artefacts: Any = None) -> Callable[[], AbstractContextManager[Callable[[], Any]]]:
        """An arm of interleaved rounds."""

        @contextmanager
        def context() -> Iterator[Callable[[], Any]]:
            with accelerate(self.pipe, recipe, artefacts=artefacts):
                yield lambda: self.sample(recipe)

        return context

    def trial(self, recipe: Recipe, artefacts: Any = None, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Counted cost of one trajectory, unless it is `known`; then time, peak memory and finiteness of another."""
        if known is None:
            with accelerate(self.pipe, recipe, artefacts=artefacts, count_macs=True) as run:
                self.sample(recipe)
                known = {"macs": run.macs, "nfe": run.nfe, "strip": run.strip, "counted_at": self.batch}
        kept: list[torch.Tensor] = []
        reset_peaks(self.device)
        with self.arm(recipe, artefacts)() as sample:
            seconds = stopwatch(lambda: kept.append(sample()), self.device)
        return {
            **{key: known[key] for key in COUNTED},
            "trial_seconds": seconds,
            **peaks(self.device),
            "finite": bool(torch.isfinite(kept[0]).all()),
        }


def measured(
    bed: Bed, made: Mapping[str, Recipe], names: Sequence[str], job: Job, known: Mapping[str, Any]
) -> dict[str, dict] | None:
    """What a record says of each of `names`; None if there is no time for the rounds. `known`: counted costs."""
    trials: dict[str, dict[str, Any]] = {}
    artefacts: dict[str, Any] = {}
    for name in dict.fromkeys([PLAIN, *names]):
        if job.left() < 0:
            return None
        try:
            made[name].check(bed.pipe)
            artefacts[name] = bed.artefacts(made[name])
            trials[name] = bed.trial(made[name], artefacts[name], known.get(name))
        except Exception as error:  # refused, out of memory or broken: its own row
            trials[name] = reason(error)
        emptied(bed.device, collect="macs" not in trials[name])
    if "macs" not in trials[PLAIN]:
        return dict.fromkeys(names, trials[PLAIN])
    running = [name for name in trials if "macs" in trials[name]]
    arms = {name: bed.arm(made[name], artefacts[name]) for name in running}
    timed = rounds(arms | {AGAIN: bed.arm(made[PLAIN])}, job)
    if timed is None:
        return None
    shared, seconds = timed
    return {name: row(name, trials, seconds, shared) if name in running else trials[name] for name in names}


def rounds(arms: Mapping[str, Any], job: Job) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What all arms share in their records, and the seconds of each in interleaved rounds; None if time is short."""
    before = sensors(job.device)
    warm = warmed(arms, job.device, most=WARMUP, seconds=min(SECONDS, job.left() / 3))
    count = min(MOST, max(LEAST, round(SECONDS / warm["round_seconds"])), job.left() // warm["round_seconds"])
    if count < LEAST:
        return None
    seconds = interleave(arms, int(count), job.device, warmup=0)
    shared = {"rounds": int(count), "warmup": warm, "before": before, "after": sensors(job.device)}
    return shared, seconds


def row(
    name: str, trials: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, np.ndarray], shared: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of one method. Times are of a trajectory of the whole batch."""
    own, plain = trials[name], trials[PLAIN]
    both = (seconds[PLAIN] + seconds[AGAIN]) / 2
    found = {
        "ms": median_interval(seconds[name] * 1000),
        "p50_ms": float(np.quantile(seconds[name], 0.5) * 1000),
        "p99_ms": float(np.quantile(seconds[name], 0.99) * 1000),
        "plain_ms": median_interval(both * 1000),
        "aa": median_interval(seconds[PLAIN] / seconds[AGAIN]),
    }
    if name != PLAIN:
        found["speedup"] = speedup = median_interval(both / seconds[name])
        found["ideal"] = ideal = plain["macs"] / own["macs"]
        found["share"] = {key: value / ideal for key, value in speedup.items()}
    return {**own, **found, **shared}
