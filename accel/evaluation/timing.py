"""Latency by interleaved rounds: A, B, A, B, ... so that a drift of the machine's speed cancels in the ratio.

Every round times baseline and recipes twice each; either against itself is its A/A floor, below which a ratio says
nothing. Several recipes share a round, and so its baseline. Rounds are added until the speed-ups' intervals are narrow
enough; on the CPU those that others disturbed are thrown away (accel.evaluation.load). Medians with intervals by order
statistics (accel.evaluation.intervals). CUDA: events around the whole pipeline call.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from accel.core.devices import device_lock
from accel.core.recipe import Recipe, accelerate
from accel.core.stages import stage_seconds
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.evaluation.intervals import half_width, median_interval
from accel.evaluation.load import Reading, Round, calm, foreign_load, read
from accel.locks import locked
from accel.suites.base import Suite

Clock = Callable[[], float]
PROTOCOL = 2  # of a timing record; 1, or none in the record: three arms, rounds by number, bootstrap intervals
DISTURBED = 0.25  # of a timing whose disturbance is more than that, ms/image is not to be kept
STAGE_CALLS = 3  # of which a recipe's stages are the medians
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
    with closing(rounds(arms, device, warmup, clock)) as found:
        taken = list(itertools.islice(found, repetitions))
    return {name: np.array([r.seconds[name] for r in taken]) for name in arms}


def rounds(
    arms: Mapping[str, Arm],
    device: torch.device | str = "cpu",
    warmup: int = 1,
    clock: Clock | None = None,
    read: Callable[[], Reading] = read,
) -> Iterator[Round]:
    """Rounds without end, after `warmup` ones that are forgotten; the device is held until the iterator is closed.

    Each visits the arms in turn, every other one backwards; an arm that is taken out of the mapping is visited no more.
    `read`: the clocks by which a round on the CPU is judged.
    """
    watched = torch.device(device).type == "cpu"
    with locked(device_lock(device)):
        for r in itertools.count(-warmup):
            seconds, processor = {}, {}
            begin = read() if watched else None
            for name in list(arms)[:: 1 if r % 2 == 0 else -1]:
                with arms[name]() as run:
                    before = time.process_time()
                    seconds[name] = stopwatch(run, device, clock)
                    processor[name] = time.process_time() - before
            if r >= 0:
                yield Round(seconds, processor, foreign_load(begin, read())) if watched else Round(seconds)


class Taken(NamedTuple):
    """Rounds that were kept: seconds of each arm (shape (rounds,)), how many others were thrown away, how many of the
    kept ones are disturbed, and whether the interval was narrow enough at the end."""

    seconds: dict[str, np.ndarray]
    rejected: int
    tolerated: int
    narrow: bool


OnRound = Callable[[int, int, int, int], None]  # kept, expected, at least, at most
Ratio = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # seconds of arms -> one value a round


def enough(taken: Sequence[Round], ratio: Ratio, least: int, most: int, precision: float) -> Taken | None:
    """What is kept of these rounds of the same arms, once that is enough: the interval of the median of `ratio` is
    narrow, half its width at most `precision` of the median, with at least `least` kept rounds, or there are `most`.
    None: more are needed.

    Looking after each round makes an interval cover a little less than its 95 %: it ends when it happens to be narrow.
    """
    kept, tolerated = calm(taken)
    if kept.sum() < least:
        return None
    seconds = _seconds(taken, kept)
    narrow = half_width(ratio(seconds)) <= precision
    return Taken(seconds, int((~kept).sum()), tolerated, narrow) if narrow or kept.sum() >= most else None


def expected(taken: Sequence[Round], ratio: Ratio, least: int, most: int, precision: float) -> tuple[int, int]:
    """(kept, in all): how many of these rounds are kept, and how many will probably have been when they are enough: the
    width of an interval goes with 1 / sqrt(rounds)."""
    kept = calm(taken)[0]
    width = half_width(ratio(_seconds(taken, kept)))
    count = int(kept.sum())
    needed = count * min(1e3, width / precision if precision else 1e3) ** 2 if width > precision else 0
    return count, max(count, min(most, max(least, math.ceil(needed))))


def _seconds(taken: Sequence[Round], kept: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds of each arm in the rounds that are kept."""
    return {name: np.array([r.seconds[name] for r in taken])[kept] for name in taken[0].seconds}


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


def disturbance(measured: Mapping[str, Any], beside: Iterable[float] = ()) -> float:
    """How disturbed a timing was, the most of: how far the interval of the baseline's A/A floor reaches from 1; by what
    share the baseline was slower than the fastest of the timings `beside` it (ms of the same baseline on the same
    machine); the share of disturbed rounds among those kept. A drift or a load cancels in ratios, not in ms/image."""
    floor = max(abs(measured["aa"]["lo"] - 1), abs(measured["aa"]["hi"] - 1))
    slower = measured["baseline_ms"]["value"] / min(beside, default=math.inf) - 1
    return max(floor, slower, measured.get("tolerated", 0) / max(1, measured.get("repetitions", 1)))


def disturbed(record: Mapping[str, Any]) -> bool:
    """Whether a timing record is to be made again; those made before disturbances were kept are not."""
    return record.get("disturbance", 0.0) > DISTURBED


def calmest(
    measure: Callable[[Sequence[int]], Sequence[dict[str, Any]]], count: int, beside: Iterable[float] = ()
) -> list[dict[str, Any]]:
    """What `measure` finds at each of the places 0..count-1, with its `disturbance` and whether it is `calm` (of which
    ms/image is to be kept); the calmest of several times where that is too large: `measure` is asked for them again. A
    machine that is busy throughout is not tried again at once: its rounds have been repeated already, as often as is
    allowed."""
    beside, best = list(beside), {}
    places = list(range(count))
    for _ in range(TRIES):
        for place, measured in zip(places, measure(places), strict=True):
            found = round(disturbance(measured, beside), 4)
            if place not in best or found < best[place]["disturbance"]:
                best[place] = measured | {"disturbance": found, "calm": found <= DISTURBED}
        again = [place for place in places if disturbed(best[place])]
        if not (places := [place for place in again if not best[place].get("tolerated")]):
            break
    return [best[place] for place in range(count)]


def time_recipes(
    pipe: Any,
    suite: Suite,
    recipes: Sequence[Recipe],
    baseline: Recipe,
    *,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Sequence[Mapping[str, Any] | None] | None = None,
    batch: int = 8,
    repetitions: int = 9,
    most_repetitions: int = 25,
    precision: float = 0.05,
    on_round: OnRound = lambda kept, expected, least, most: None,
) -> list[dict[str, Any]]:
    """Times of `recipes` and `baseline` in one process, each twice a round: baseline, recipes, baseline, recipes.
    Simulated recipes are refused. `artefacts`: of each recipe.

    With seconds b, b' of the baseline and r, r' of a recipe in one round, medians over the rounds and intervals:
    `speedup` (b + b') / (r + r'), `aa` b / b', `aa_recipe` r / r'; `baseline_ms`, `ms_per_image` their mean times an
    image. `repetitions`: rounds that were kept, at least that many and at most `most_repetitions`; `stopped`: `narrow`
    if half the width of the speed-up's interval came down to `precision` of it, `most` if not; `rejected`: rounds that
    were thrown away because others used the processor; `tolerated`: such rounds that had to be kept, because at most
    as many are thrown away as are kept; `together`: how many recipes the first round had. A recipe leaves the rounds
    when it has enough of them, and only its own arms and the baseline's tell which of its rounds are disturbed.
    `stages`: ms an image of each stage (accel.core.stages), medians of further calls, outside the rounds.
    `on_round` is told at the beginning and after each round how many were kept and how many it will probably be in all,
    of the recipe that takes most.
    """
    if simulated := [r.label for r in (*recipes, baseline) if r.simulated]:
        raise ConfigError(
            f"{simulated[0]} is simulated: its time would be that of the imitation, so it is never timed."
        )

    def arm(which: Recipe, own: Mapping[str, Any] | None) -> Arm:
        @contextmanager
        def context() -> Iterator[Callable[[], Any]]:
            with accelerate(pipe, which, models=models, artefacts=own):
                yield lambda: generate(pipe, suite, which, seed=0, start=0, stop=batch, batch=batch)

        return context

    own = [arm(which, given) for which, given in zip(recipes, artefacts or [None] * len(recipes), strict=True)]
    first, again = ([f"recipe {i}{a}" for i in range(len(own))] for a in ("", " again"))
    arms = {}
    for name, names in (("baseline", first), ("again", again)):
        arms |= {name: arm(baseline, None), **dict(zip(names, own, strict=True))}
    taken: list[Round] = []
    ended: dict[int, dict[str, Any]] = {}
    on_round(0, repetitions, repetitions, most_repetitions)
    with closing(rounds(arms, pipe.device)) as timed:
        while len(ended) < len(recipes):
            taken.append(next(timed))
            outlook = []
            for i in set(range(len(recipes))) - set(ended):
                names = {"baseline": "baseline", "again": "again", first[i]: "recipe", again[i]: "recipe again"}
                seen = [_renamed(one, names) for one in taken]
                if (end := enough(seen, _speedup, repetitions, most_repetitions, precision)) is not None:
                    ended[i] = _measured(end, batch) | {"together": len(recipes)}
                    del arms[first[i]], arms[again[i]]
                else:
                    outlook.append(expected(seen, _speedup, repetitions, most_repetitions, precision))
            if len(ended) < len(recipes):
                on_round(*max(outlook, key=lambda one: one[1] - one[0]), repetitions, most_repetitions)
    with locked(device_lock(pipe.device)):
        return [ended[i] | {"stages": _stages(pipe, own[i], batch)} for i in range(len(recipes))]


def _stages(pipe: Any, arm: Arm, batch: int) -> dict[str, float]:
    with arm() as run:
        taken = [stage_seconds(pipe, run) for _ in range(STAGE_CALLS)]
    return {stage: 1000 / batch * float(np.median([one[stage] for one in taken])) for stage in taken[0]}


def _renamed(one: Round, names: Mapping[str, str]) -> Round:
    """The arms `names` of a round, under other names."""
    pick = {new: one.seconds[old] for old, new in names.items()}
    return Round(pick, {new: one.processor[old] for old, new in names.items() if old in one.processor}, one.foreign)


def _speedup(seconds: Mapping[str, np.ndarray]) -> np.ndarray:
    return (seconds["baseline"] + seconds["again"]) / (seconds["recipe"] + seconds["recipe again"])


def _measured(taken: Taken, batch: int) -> dict[str, Any]:
    seconds = taken.seconds

    def ms(one: str, other: str) -> dict[str, float]:
        return median_interval((seconds[one] + seconds[other]) / 2 * 1000 / batch)

    return {
        "protocol": PROTOCOL,
        "ms_per_image": ms("recipe", "recipe again"),
        "baseline_ms": ms("baseline", "again"),
        "speedup": median_interval(_speedup(seconds)),
        "aa": median_interval(seconds["baseline"] / seconds["again"]),
        "aa_recipe": median_interval(seconds["recipe"] / seconds["recipe again"]),
        "repetitions": len(seconds["recipe"]),
        "rejected": taken.rejected,
        "tolerated": taken.tolerated,
        "stopped": "narrow" if taken.narrow else "most",
        "batch": batch,
    }
