"""The contract on a GPU: a method gives the CPU's images there, and does not make the host wait at every step."""

from __future__ import annotations

from collections import Counter

import torch

from accel.core.recipe import Recipe
from accel.testing.bench import Bench, Case
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.waits import Wait, counted_waits

LIBRARY = "diffusers.schedulers."  # what diffusers' schedulers read is theirs, in every pipeline


def same_on_a_gpu(case: Case) -> None:
    """On a pretended GPU (`Elsewhere`) what the method learns and samples is the CPU's bit for bit, and no evaluation
    makes the host wait more often than the same pipeline without the method, or than a sampler's own library does."""
    on = case.first()
    expected = on.fresh(case.recipe)
    with Elsewhere():
        there = Bench(on.suite, DEVICE)
        try:
            found, waits = watched(there, case.recipe)
        except RuntimeError as error:
            raise AssertionError(f"{case.label} fails on a GPU: {error}") from error
        plain = Counter() if case.axis == "sampler" else _waits(on, there, case.with_method(None))
    assert found.shape == expected.shape, f"{case.label} gives other shapes on a GPU"
    off = float((found - expected).abs().max())
    assert off == 0, f"{case.label} differs on a GPU by {off:.2g}, although every operation computes the same there"
    beyond = waits_beyond(waits, plain, case.axis == "sampler")
    assert sum(beyond.values()) <= case.waits, (
        f"{case.label} makes the host wait for the GPU at every step: {beyond}; keep what is needed on the device, or "
        "copies of numbers on the host (accel.core.devices.send does not wait)"
    )


def waits_beyond(waits: Counter[Wait], plain: Counter[Wait], sampler: bool) -> dict[Wait, int]:
    """By kind and line, the waits of an evaluation beyond those of the `plain` pipeline; for a sampler those that are
    not diffusers' own."""
    beyond = {line: count - plain[line] for line, count in waits.items() if count > plain[line]}
    return {line: count for line, count in beyond.items() if not (sampler and line[1].startswith(LIBRARY))}


def _waits(on: Bench, there: Bench, plain: Recipe) -> Counter[Wait]:
    return on.once("waits on a GPU", plain, lambda: watched(there, plain)[1])


def watched(there: Bench, recipe: Recipe) -> tuple[torch.Tensor, Counter[Wait]]:
    """Images on the CPU, and by kind and line the most waits of an evaluation after the first."""
    most: Counter[Wait] = Counter()
    with there.accelerated(recipe) as run, counted_waits() as seen:
        before, step = None, run.scheduler.step

        def counting(*args, **kwargs):
            nonlocal before
            result = step(*args, **kwargs)
            if before is not None:
                for line, count in (seen - before).items():
                    most[line] = max(most[line], count)
            before = seen.copy()
            return result

        run.scheduler.step = counting
        return there.generate(recipe).cpu(), most


ON_A_GPU = {"gpu": same_on_a_gpu}
