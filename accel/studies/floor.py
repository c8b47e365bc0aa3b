"""The floor of a study: real held-out images against the reference, below which no sampler can be expected to score.

Where samples rotate over classes, so do these images: as many of each class, in the samples' order. A share of each
class that chance decides would be an error that no sampler makes. FID is biased in N, so the record says its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from accel.core.environment import provenance
from accel.core.seeds import sample_seed
from accel.evaluation.score import EPOCH, score, score_images
from accel.locks import locked
from accel.records import digest
from accel.studies.runner import Runner


def floor(runner: Runner) -> dict[str, Any] | None:
    """The record of the floor, made now if it is not there; None for a suite without held-out images."""
    suite, held_out = runner.suite, runner.suite.held_out()
    if held_out is None:
        return None
    images, conditions = held_out
    drawn, strata = list(range(len(images))), suite.strata(conditions)
    if strata is not None:
        drawn = rotation(strata, suite.strata(suite.conditions(0, suite.period)))
    drawn = drawn[: runner.evaluation.n]
    identity = {"real": suite.name, "n": len(drawn), "reference": suite.reference_identity(), "epoch": EPOCH}
    key = digest(identity)
    with locked(runner.results.root / "shards" / ".floor.lock"):
        own = {k: [v[i] for i in drawn] for k, v in conditions.items()}
        return runner.find("quality", key) or _made(runner, key, images[drawn], own)


def rotation(strata: Sequence[int], period: Sequence[int]) -> list[int]:
    """Indices of as many whole periods as there are, each sample once, in the order of classes of `period`; of each
    class in an order that is random and always the same: neighbours may be of one hand."""
    shuffled = sorted(range(len(strata)), key=lambda i: sample_seed(0, i))
    members = {c: iter([i for i in shuffled if strata[i] == c]) for c in period}
    drawn: list[int] = []
    while None not in (whole := [next(members[c], None) for c in period]):
        drawn += whole
    return drawn


def _made(runner: Runner, key: str, images: torch.Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
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
        "epoch": EPOCH,
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
