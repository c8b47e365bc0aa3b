"""accel's DeepCache against the package `DeepCache` of its authors: time of full and of shallow steps, same network.

Trajectories of both run interleaved in one process, accel's twice (the A/A floor). Also how much of the speed-up that
the MACs promise is realised: (plain time / cached time) / (plain MACs / cached MACs).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from accel.benches.options import parser
from accel.benches.overhead_table import write_deepcache
from accel.caching import DeepCache
from accel.core.environment import environment, instruction_set, with_provenance
from accel.core.recipe import Recipe, accelerate
from accel.errors import needs
from accel.evaluation.intervals import median_interval
from accel.records import Results, digest
from accel.suites.pipeline import PixelPipeline

STEPS = 20
NETS: dict[str, dict[str, Any]] = {
    "tiny": {"sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 2},
    "mid-size": {"sample_size": 32, "block_out_channels": (64, 128, 256), "layers_per_block": 2},
}


def build(name: str) -> nn.Module:
    """A random UNet2DModel without attention; `layers_per_block` is 2, which the package needs."""
    from diffusers import UNet2DModel

    levels = len(NETS[name]["block_out_channels"])
    torch.manual_seed(0)
    net = UNet2DModel(**NETS[name], down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels)
    return net.eval().requires_grad_(False)


def measure_deepcache(name: str, interval: int, branch: int, repetitions: int) -> dict[str, Any]:
    """Ratios accel / package of full and of shallow steps, with the A/A floor, and the realised share of the ideal."""
    theirs = needs("DeepCache", "deepcache", "this benchmark")
    from diffusers import DDIMScheduler

    pipe = PixelPipeline(build(name), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, pipe.unet.config.sample_size, pipe.unet.config.sample_size)

    def seconds() -> np.ndarray:
        """Seconds of each step's denoiser call in one trajectory."""
        x, taken = noise, []
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps:
            start = time.perf_counter()
            output = pipe.unet(x, t, return_dict=False)[0]
            taken.append(time.perf_counter() - start)
            x = pipe.scheduler.step(output, t, x, return_dict=False)[0]
        return np.array(taken)

    @contextmanager
    def ours() -> Iterator[None]:
        with accelerate(pipe, Recipe(cache=DeepCache(interval, branch))):
            yield

    @contextmanager
    def package() -> Iterator[None]:
        helper = theirs.DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch - 1)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    @contextmanager
    def plain() -> Iterator[None]:
        yield

    arms: dict[str, Callable[[], AbstractContextManager]] = {
        "ours": ours, "package": package, "plain": plain, "again": ours
    }  # fmt: skip
    taken: dict[str, list[np.ndarray]] = {arm: [] for arm in arms}
    with torch.no_grad():
        for r in range(-2, repetitions):
            for arm in list(arms)[:: 1 if r % 2 == 0 else -1]:
                with arms[arm]():
                    seconds()  # what is made once, when a context is entered, counts for neither
                    found = seconds()
                if r >= 0:
                    taken[arm].append(found)
        with accelerate(pipe, Recipe(cache=DeepCache(interval, branch)), count_macs=True) as run:
            seconds()
            cached = run.macs
        with accelerate(pipe, Recipe(), count_macs=True) as run:
            seconds()
            ideal = run.macs / cached
    times = {arm: np.stack(values) for arm, values in taken.items()}
    full = np.arange(STEPS) % interval == 0

    def ratio(a: str, b: str, steps: np.ndarray) -> np.ndarray:
        """Of each round."""
        return np.median(times[a][:, steps], 1) / np.median(times[b][:, steps], 1)

    def both(other: str, steps: np.ndarray) -> dict[str, float]:
        # Rounds of both of accel's arms, not their mean: that of two skewed times lies above the median of one.
        return median_interval(np.stack([ratio(arm, other, steps) for arm in ("ours", "again")], 1))

    return {
        "net": name,
        "interval": interval,
        "branch": branch,
        "repetitions": repetitions,
        "steps": STEPS,
        "full": both("package", full),
        "shallow": both("package", ~full),
        "aa": median_interval(ratio("ours", "again", full)),
        "ideal": ideal,
        "realised": median_interval(
            np.stack([times["plain"].sum(1) / times[arm].sum(1) for arm in ("ours", "again")], 1) / ideal
        ),
        "plain_ms": median_interval(times["plain"].mean(1) * 1000),
        "isa": instruction_set("cpu"),
        "environment": environment("cpu"),
    }


def main(words: Sequence[str]) -> None:
    """`accel bench deepcache`: records and tables/deepcache_speed.md."""
    options = parser(__doc__, "bench deepcache")
    options.add_argument("--repetitions", type=int, default=40)
    args = options.parse_args(words)
    results = Results(args.results)
    settings = [(net, interval, branch) for net in NETS for interval in (2, 4) for branch in (1, 2, 4)]
    for place, (net, interval, branch) in enumerate(settings):
        measured = measure_deepcache(net, interval, branch, args.repetitions)
        key = digest({k: measured[k] for k in ("net", "interval", "branch", "environment")})
        results.save(with_provenance({"kind": "deepcache", "id": key, "place": place, **measured}))
    for path in write_deepcache(results):
        print(path.read_text())
