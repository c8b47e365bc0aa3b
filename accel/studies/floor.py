"""The floor of a study: real held-out images against the reference, below which no sampler can be expected to score."""

from __future__ import annotations

from typing import Any

import torch

from accel.core.environment import provenance
from accel.evaluation.score import score, score_images
from accel.files import locked
from accel.records import digest
from accel.studies.runner import Runner


def floor(runner: Runner) -> dict[str, Any] | None:
    """The record of the floor, made now if it is not there; None for a suite without held-out images."""
    held_out = runner.suite.held_out()
    if held_out is None:
        return None
    images, conditions = held_out
    n = min(runner.evaluation.n, len(images))
    key = digest({"real": runner.suite.name, "n": n, "reference": runner.suite.reference_identity()})
    with locked(runner.results.root / "shards" / ".floor.lock"):
        return runner.find("quality", key) or _made(runner, key, images[:n], {k: v[:n] for k, v in conditions.items()})


def _made(runner: Runner, key: str, images: torch.Tensor, conditions: dict[str, torch.Tensor]) -> dict[str, Any]:
    tensors = score_images(runner.suite, images, conditions)
    values = score(runner.suite, tensors, None)
    runner.picture(key, tensors["images"])
    record = {
        "kind": "quality",
        "id": key,
        "label": "real images (held out)",
        "axes": {},
        "suite": runner.suite.name,
        "n": len(images),
        "seed": 0,
        "simulated": False,
        "recipe": {},
        "values": {k: v.to_dict() for k, v in values.items()},
        "cost": None,
        "strip": "",
        "reference": runner.suite.reference_identity(),
        "environment": provenance(),
    }
    runner.results.save(record)
    return record
