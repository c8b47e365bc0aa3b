"""Part `stack`: bfloat16 beside float32 and TF32, channels_last, and compiled blocks, each against plain bfloat16.

Blocks are compiled one by one, as suite.compile=true does, and run under a cache, too. Compilations are counted: those
of the first trajectories, and those after them, of which there should be none. On a CPU, whose networks are float32,
the first rows are the same arithmetic as plain.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from accel.benches.device_job import Job, emptied, reason
from accel.benches.device_networks import NETWORKS, Network
from accel.benches.device_speed import AGAIN, PLAIN, Bed, dtype_on, recipes, rounds
from accel.core.compiling import compilations, compile_blocks
from accel.core.recipe import Recipe
from accel.evaluation.intervals import median_interval
from accel.evaluation.timing import stopwatch
from accel.precision.executed.tf32 import float32_products
from accel.records import describe

PART = "stack"
CACHED = {"unet": "deepcache 1:3, branch 1", "transformer": "fora 1:3"}
SETTLED = 3  # trajectories, after which nothing should be compiled any more


@dataclass(frozen=True)
class Variant:
    """How the network runs: float32 or the device's own dtype, with products in `products` (ieee or tf32), its memory
    order, compiled blocks, and under its family's cache or not. needs: seconds that it may take."""

    name: str
    float32: bool = False
    products: str = ""
    channels_last: bool = False
    compiled: bool = False
    cached: bool = False
    needs: float = 30.0


COMPILED = (
    Variant("compiled blocks", compiled=True, needs=75),
    Variant("compiled blocks + cache", compiled=True, cached=True, needs=75),
)
PRECISIONS = (Variant("tf32", float32=True, products="tf32"), Variant("fp32", float32=True, products="ieee"))
LAST = (Variant("channels_last", channels_last=True),)
# In order of worth. Flux in float32 would take all of the time.
STACK: dict[str, tuple[Variant, ...]] = {
    "DiT-XL/2 512": (*COMPILED, *PRECISIONS),
    "Stable Diffusion 1.5": (*LAST, *COMPILED, *PRECISIONS),
    "Flux.1-dev": COMPILED,
    "Stable Diffusion XL": (*LAST, *COMPILED, *PRECISIONS),
}


def run(
    job: Job,
    networks: Sequence[Network] | None = None,
    stack: Mapping[str, Sequence[Variant]] = STACK,
    backend: str = "inductor",
) -> bool:
    """Measure what has no record yet; False if the time ended first."""
    whole = True
    for network in [NETWORKS[name] for name in stack] if networks is None else networks:
        for variant in stack[network.name]:
            what = _what(job, network, variant, backend)
            if job.done(PART, what):
                continue
            if job.left() < variant.needs:  # a shorter one may still fit
                whole = False
                continue
            job.tell(f"stack: {network.name}, {variant.name}; {job.left():.0f} s left")
            try:
                found = measured(job, network, variant, backend)
            except Exception as error:  # no compiler, out of memory: its own row
                found = reason(error)
            forget()
            emptied(job.device)
            if found is None:
                whole = False
                continue
            job.save(PART, what, found)
    return whole


def _what(job: Job, network: Network, variant: Variant, backend: str) -> dict[str, Any]:
    recipe = _recipe(network, variant)
    what = {"network": network.name, "batch": 1, "method": variant.name, "steps": recipe.sampler.steps}
    dtype = "float32" if variant.float32 else str(dtype_on(job.device)).removeprefix("torch.")
    return what | {
        "dtype": dtype,
        "recipe": describe(recipe),
        "backend": backend if variant.compiled else None,
    }


def _recipe(network: Network, variant: Variant) -> Recipe:
    return recipes(network)[CACHED[network.family] if variant.cached else PLAIN]


def measured(job: Job, network: Network, variant: Variant, backend: str) -> dict[str, Any] | None:
    """The numbers of one variant against the plain network in the same rounds; None if there is no time for them."""
    base = Bed(network.pipeline(job.device, dtype_on(job.device)), job.device, 1)
    own = torch.float32 if variant.float32 else dtype_on(job.device)
    bed = Bed(network.pipeline(job.device, own), job.device, 1)
    if variant.channels_last:
        bed.pipe.denoiser.to(memory_format=torch.channels_last)
    if variant.compiled:
        compile_blocks(bed.pipe.denoiser, backend=backend)
    plain, recipe = recipes(network)[PLAIN], _recipe(network, variant)
    arm = bed.arm(recipe, bed.artefacts(recipe))

    @contextmanager
    def context() -> Iterator[Any]:
        with float32_products(variant.products) if variant.products else nullcontext(), arm() as sample:
            yield sample

    begin, graphs = time.perf_counter(), compilations()
    with limits() as hit:
        times = []
        for _ in range(SETTLED if variant.compiled else 1):
            with context() as sample:
                times.append(stopwatch(sample, job.device))
        settled = compilations()
        timed = rounds({PLAIN: base.arm(plain), "variant": context, AGAIN: base.arm(plain)}, job)
    if timed is None:
        return None
    shared, seconds = timed
    both = (seconds[PLAIN] + seconds[AGAIN]) / 2
    found = {
        "ms": median_interval(seconds["variant"] * 1000),
        "plain_ms": median_interval(both * 1000),
        "speedup": median_interval(both / seconds["variant"]),
        "aa": median_interval(seconds[PLAIN] / seconds[AGAIN]),
        "first_seconds": times[0],
        "setup_seconds": time.perf_counter() - begin - float(sum(s.sum() for s in seconds.values())),
    }
    if variant.compiled:
        found |= {"graphs": settled - graphs, "recompilations": compilations() - settled, "limit_hit": len(hit) > 0}
    return found | shared


def forget() -> None:
    """Drop compiled graphs of networks that are gone."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextmanager
def limits() -> Iterator[list[str]]:
    """Within the context a list fills with what torch.compile says of limits after which it no longer compiles."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "recompile_limit" in record.getMessage() or "cache_size_limit" in record.getMessage():
                found.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
