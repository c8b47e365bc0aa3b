"""The contract on a GPU: a method gives the CPU's images there, and does not make the host wait at every step."""

from __future__ import annotations

from collections import Counter

import torch

from accel.core.recipe import Recipe
from accel.testing.bench import Bench, Case
from accel.testing.elsewhere import DEVICE, Elsewhere


def same_on_a_gpu(case: Case) -> None:
    """On a pretended GPU (`Elsewhere`) what the method learns and samples is the CPU's bit for bit, and no evaluation
    makes the host wait more often than the same pipeline without the method, or than a sampler's own library does."""
    on = case.first()
    expected = on.images(case.recipe)[0]
    with Elsewhere() as device:
        there = Bench(on.suite, DEVICE)
        try:
            found, waits = _watched(device, there, case.recipe)
        except RuntimeError as error:
            raise AssertionError(f"{case.label} fails on a GPU: {error}") from error
        plain = _watched(device, there, case.with_method(None))[1] if case.axis != "sampler" else Counter()
    assert found.shape == expected.shape, f"{case.label} gives other shapes on a GPU"
    off = float((found - expected).abs().max())
    assert off == 0, f"{case.label} differs on a GPU by {off:.2g}, although every operation computes the same there"
    beyond = {line: count - plain[line] for line, count in waits.items() if count > plain[line]}
    if case.axis == "sampler":  # what diffusers' schedulers read is theirs, in every pipeline
        beyond = {line: count for line, count in beyond.items() if not line[1].startswith("diffusers.schedulers.")}
    assert sum(beyond.values()) <= case.waits, (
        f"{case.label} makes the host wait for the GPU at every step: {beyond}; keep what is needed on the device, or "
        "copies of numbers on the host (accel.core.devices.send does not wait)"
    )


def _watched(device: Elsewhere, there: Bench, recipe: Recipe) -> tuple[torch.Tensor, Counter]:
    """Images, and by place in the code the most waits of an evaluation after the first."""
    most: Counter = Counter()
    with there.accelerated(recipe) as run:
        before, step = None, run.scheduler.step

        def watched(*args, **kwargs):
            nonlocal before
            result = step(*args, **kwargs)
            if before is not None:
                for line, count in (device.waits - before).items():
                    most[line] = max(most[line], count)
            before = device.waits.copy()
            return result

        run.scheduler.step = watched
        return there.generate(recipe).cpu(), most


ON_A_GPU = {"gpu": same_on_a_gpu}
