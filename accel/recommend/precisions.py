"""Which precisions a search is offered: those that run here, are deployed as they were measured, and save time.

A cast leaves the MACs what they are, so the search is told what a MAC costs in each precision: the median over a few
rounds of (seconds of a short trajectory in it) / (seconds of the same one without), in alternation, measured once
before the search. Whoever is not faster by that is not offered. Precisions that only imitate their arithmetic save no
time and are not asked about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from accel.config import recipe_from
from accel.core.environment import instruction_set
from accel.core.guidance import Guidance
from accel.core.precision import Precision
from accel.core.recipe import Recipe, accelerate
from accel.errors import StorageError
from accel.evaluation.generate import generate
from accel.evaluation.timing import Arm, rounds
from accel.precision.executed.cast import DTYPES, Cast
from accel.studies.runner import FAILURES, Runner

CHOICES = (
    "precision=bf16",
    "precision=fp16",
    "precision=tf32",
    "precision=compiled",
    "precision=compiled precision.dtype=float32",
    "precision=torchao_int8",
    "precision=torchao_fp8",
    "precision=static_int8",
)
# What multiplies short numbers: of a CPU instructions as `instruction_set` names them, of a GPU the capability.
PRODUCTS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_1", "avx10_2", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_1", "avx10_2", "asimdhp"),
}
CAPABLE = {torch.bfloat16: (8, 0), torch.float16: (5, 3)}
WORTH = 0.95  # of the plain time at most
SHARE = 0.02  # of the budget that measuring may take
ROUNDS, STEPS, BATCH = 5, 4, 8
SLOW = 2.0  # times the plain time, after which a precision is not measured on
COMPILING, SHAPES = 0.2, 6  # share of the budget; batch shapes that a search and a validation meet
COMPILATION = 180  # seconds of one, before the first is known


@dataclass(frozen=True)
class Rates:
    """`rates`: what a MAC costs in each choice that is offered, in that of the plain one. `refused`: why others are
    not, by choice. `compiling`: seconds that compilations take from the budget."""

    rates: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    compiling: float = 0.0


def method_of(choice: str) -> Precision:
    """The precision of an override such as `precision=bf16`."""
    return recipe_from(tuple(choice.split())).precision


def unfit(choice: str, runner: Runner, guidances: Sequence[Guidance | None]) -> str | None:
    """Why a choice cannot pay on the pipeline and device of `runner`, beside these guidances; None if it may."""
    method = method_of(choice)
    plain, device = _dtype(runner), torch.device(runner.device)
    short = DTYPES[method.dtype] if isinstance(method, Cast) else getattr(method, "compute", torch.float32)
    more = torch.finfo(short).bits - torch.finfo(plain).bits if plain.is_floating_point else 1
    if more > 0 or (more == 0 and isinstance(method, Cast)):
        return f"{_name(short)} has no fewer bits than the pipeline's own {_name(plain)}."
    if short in PRODUCTS and device.type == "cpu" and not set(PRODUCTS[short]) & set(instruction_set(device)):
        names = ", ".join(PRODUCTS[short])
        return f"this CPU has no products of {_name(short)} (none of {names}), which is then slower than float32."
    if short in CAPABLE and device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABLE[short]:
        least = ".".join(map(str, CAPABLE[short]))
        return f"this GPU has no products of {_name(short)}, which begin with compute capability {least}."
    if method.whole and method.calibrated:
        return "it is calibrated and compiled for each recipe anew, for which a search has no time."
    if method.whole and (varying := [own.label for own in guidances if own is not None and own.varies]):
        return (
            f"it is compiled for each number of rows, and {varying[0]} evaluates another one for every few samples; "
            "search.axes.guidance=[...] without that, and a search.axes.precision=[...] of your own, ask for it."
        )
    return None


def measured(runner: Runner, choices: Sequence[str], row: float, budget: float) -> Rates:
    """The rates of `choices`, and what is found not to run, or to save nothing. `row`: seconds of a denoiser row;
    `budget`: seconds in all, of which SHARE are for this, and COMPILING for what compiles."""
    rates, refused, compiling, nets = {}, {}, 0.0, 1 + len(set(runner.models) - set(runner.suite.students()))
    if not choices:
        return Rates()
    plain = runner.suite.converged(None)
    plain = replace(plain, sampler=replace(plain.sampler, steps=STEPS))
    batch = min(BATCH, runner.evaluation.batch, int(SHARE * budget / (row * STEPS * (1 + ROUNDS) * (1 + len(choices)))))
    if batch < 1:
        why = f"measuring what it saves would take more than {SHARE:.0%} of the budget."
        return Rates({}, dict.fromkeys(choices, why))
    arms = {"plain": _arm(runner, plain, batch)}
    least = _seconds(arms["plain"])
    for choice in choices:
        method = method_of(choice)
        if method.whole and SHAPES * nets * COMPILATION > COMPILING * budget:
            minutes = SHAPES * nets * COMPILATION / COMPILING / 60
            refused[choice] = f"its compilations take minutes each; budget={minutes:.0f}m, or more, has room for them."
            continue
        arm = _arm(runner, replace(plain, precision=method), batch)
        try:
            took = _seconds(arm)
        except StorageError:
            raise
        except (*FAILURES, TypeError) as error:
            refused[choice] = " ".join(str(error).split())[:300] or type(error).__name__
            continue
        if method.whole and took * SHAPES * nets > COMPILING * budget:
            refused[choice] = f"one compilation took {took:.0f} s, and {SHAPES * nets} of them are too many here."
        elif not method.whole and took > SLOW * least and (took := _seconds(arm)) > SLOW * least:
            refused[choice] = _slow(took / least)
        else:
            arms[choice] = arm
            compiling += took * SHAPES * nets if method.whole else 0.0
    if len(arms) > 1:
        with closing(rounds(arms, runner.device, warmup=0)) as timed:
            taken = list(islice(timed, ROUNDS))
        for choice in [name for name in arms if name != "plain"]:
            ratio = float(np.median([one.seconds[choice] / one.seconds["plain"] for one in taken]))
            if ratio > WORTH:
                refused[choice] = _slow(ratio)
            else:
                rates[choice] = round(ratio, 3)
    return Rates(rates, refused, compiling)


def _slow(ratio: float) -> str:
    return f"it takes {ratio:.2f} of the time of precision=none here; offered is what takes {WORTH:g} at most."


def _arm(runner: Runner, recipe: Recipe, batch: int) -> Arm:
    @contextmanager
    def context() -> Iterator[Callable[[], Any]]:
        with accelerate(runner.pipe, recipe):
            yield lambda: generate(runner.pipe, runner.suite, recipe, 0, 0, batch, batch)

    return context


def _seconds(arm: Arm) -> float:
    """Of one run, all that is made for it included."""
    begin = time.perf_counter()
    with arm() as run:
        run()
    return time.perf_counter() - begin


def _dtype(runner: Runner) -> torch.dtype:
    net = Recipe().nets(runner.pipe)["base"]
    return getattr(net, "dtype", None) or next((p.dtype for p in net.parameters()), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
