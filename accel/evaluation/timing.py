"""Latency by interleaved repetitions: A, B, A, B, ... so that a drift of the machine's speed cancels in the ratio.

Every round times the recipe once and the baseline twice; the baseline against itself is the A/A floor, below which a
ratio says nothing. Medians with 95 % intervals by bootstrap over rounds. CUDA: events around the whole pipeline call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from accel.core.devices import device_lock
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.files import locked
from accel.suites.base import Suite

Clock = Callable[[], float]
DISTURBED = 0.25  # of a timing whose disturbance is more than that, ms/image is not to be kept
TRIES = 2  # at once; what is disturbed still is timed again by the next command


def stopwatch(run: Callable[[], Any], device: torch.device | str = "cpu", clock: Clock | None = None) -> float:
    """Seconds that `run` takes, all of its GPU work included. `clock`: for work on the CPU; none is a wall clock.

    CUDA: events on that device's current stream. Other accelerators: a wall clock around work that has ended.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):  # an event is recorded where the current device is
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            return begin.elapsed_time(end) / 1000
    clock = clock or time.perf_counter
    _finish(device)
    start = clock()
    run()
    _finish(device)
    return clock() - start


def _finish(device: torch.device) -> None:
    """Wait until an accelerator other than CUDA (xpu, mps) has done its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


Arm = Callable[[], AbstractContextManager[Callable[[], Any]]]


def interleave(
    arms: Mapping[str, Arm], repetitions: int, device="cpu", warmup: int = 1, clock: Clock | None = None
) -> dict[str, np.ndarray]:
    """Seconds of each arm, shape (repetitions,): rounds visit the arms in turn, every other round backwards.

    An arm is a context that gives what is to be timed; entering and leaving it (set-up) is not timed. Meanwhile nobody
    else of this harness times or generates on the device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with locked(device_lock(device)):
        for r in range(-warmup, repetitions):
            for name in list(arms)[:: 1 if r % 2 == 0 else -1]:
                with arms[name]() as run:
                    elapsed = stopwatch(run, device, clock)
                if r >= 0:
                    seconds[name].append(elapsed)
    return {name: np.array(values) for name, values in seconds.items()}


def warmed(
    arms: Mapping[str, Arm], device="cpu", tolerance: float = 0.02, most: int = 10, seconds: float = float("inf")
) -> dict[str, Any]:
    """Rounds of all arms whose times are forgotten, until the last three rounds' medians over the arms agree within
    `tolerance`, or `most` rounds or `seconds` are over.

    rounds: how many; stable: whether they agree; spread: of the last three; round_seconds: of the last one, with the
    entering and leaving of its arms.
    """
    medians: list[float] = []
    begin = time.perf_counter()
    with locked(device_lock(device)):
        while True:
            start, taken = time.perf_counter(), []
            for arm in arms.values():
                with arm() as run:
                    taken.append(stopwatch(run, device))
            medians.append(float(np.median(taken)))
            last, now = medians[-3:], time.perf_counter()
            spread = max(last) / min(last) - 1
            stable = len(last) == 3 and spread <= tolerance
            if stable or len(medians) >= most or now - begin > seconds:
                return {"rounds": len(medians), "stable": stable, "spread": spread, "round_seconds": now - start}


def median_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Median with its 95 % percentile-bootstrap interval. values: (rounds,), or (rounds, k) with k values a round,
    which are not independent: rounds are drawn, never single values."""
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    lo, hi = np.quantile(np.median(values[index].reshape(draws, -1), axis=1), [0.025, 0.975])
    return {"value": float(np.median(values)), "lo": float(lo), "hi": float(hi)}


def ratio_interval(one: np.ndarray, other: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Ratio of the medians of two series of rounds that were not interleaved, with its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    drawn = [np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1) for values in (one, other)]
    lo, hi = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return {"value": float(np.median(one) / np.median(other)), "lo": float(lo), "hi": float(hi)}


def disturbance(measured: Mapping[str, Any], beside: Iterable[float] = ()) -> float:
    """How disturbed a timing was: how far the interval of its A/A floor reaches from 1, or by what share its baseline
    was slower than the fastest of the timings `beside` it (ms of the same baseline on the same machine), if that is
    more. A drift or a load cancels in ratios, not in ms/image."""
    floor = max(abs(measured["aa"]["lo"] - 1), abs(measured["aa"]["hi"] - 1))
    return max(floor, measured["baseline_ms"]["value"] / min(beside, default=math.inf) - 1)


def disturbed(record: Mapping[str, Any]) -> bool:
    """Whether a timing record is to be made again; those made before disturbances were kept are not."""
    return record.get("disturbance", 0.0) > DISTURBED


def calmest(measure: Callable[[], dict[str, Any]], beside: Iterable[float] = ()) -> dict[str, Any]:
    """What `measure` finds, with its `disturbance`; the calmest of several times where that is too large."""
    beside, tried = list(beside), []
    while len(tried) < TRIES and (not tried or disturbed(tried[-1])):
        measured = measure()
        tried.append(measured | {"disturbance": round(disturbance(measured, beside), 4)})
    return min(tried, key=lambda measured: measured["disturbance"])


def time_recipe(
    pipe: Any,
    suite: Suite,
    recipe: Recipe,
    baseline: Recipe,
    *,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Any] | None = None,
    batch: int = 8,
    repetitions: int = 9,
) -> dict[str, Any]:
    """ms/image of `recipe` and `baseline`, speed-up (ratio of rounds) and A/A floor. Simulated recipes are refused."""
    if simulated := [r.label for r in (recipe, baseline) if r.simulated]:
        raise ConfigError(
            f"{simulated[0]} is simulated: its time would be that of the imitation, so it is never timed."
        )

    @contextmanager
    def arm(which: Recipe) -> Iterator[Callable[[], Any]]:
        with accelerate(pipe, which, models=models, artefacts=artefacts if which is recipe else None):
            yield lambda: generate(pipe, suite, which, seed=0, start=0, stop=batch, batch=batch)

    arms = {"baseline": lambda: arm(baseline), "recipe": lambda: arm(recipe), "again": lambda: arm(baseline)}
    seconds = interleave(arms, repetitions, pipe.device)
    both = (seconds["baseline"] + seconds["again"]) / 2
    return {
        "ms_per_image": median_interval(seconds["recipe"] * 1000 / batch),
        "baseline_ms": median_interval(both * 1000 / batch),
        "speedup": median_interval(both / seconds["recipe"]),
        "aa": median_interval(seconds["baseline"] / seconds["again"]),
        "repetitions": repetitions,
        "batch": batch,
    }
