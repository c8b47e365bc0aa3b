"""Cells of a suite whose images say nothing (`Suite.unscored`): a record with the cost and without scores."""

from __future__ import annotations

from typing import Any

from accel.core.recipe import Recipe
from accel.errors import ConfigError, Refusals
from accel.studies.evaluation import Evaluation
from accel.studies.samples import Samples
from accel.suites.base import Suite


def check_unscored(suite: Suite, evaluation: Evaluation, aa: bool) -> None:
    """ConfigError for what compares scores, of which there are none."""
    with Refusals() as refusals:
        if aa:
            refusals.add(ConfigError(f"aa=true compares scores, and {suite.unscored}; leave it out."))
        if evaluation.auto:
            refusals.add(ConfigError(f"evaluation.n=auto asks what scores need, and {suite.unscored}; leave it out."))


def deciding(recipe: Recipe) -> list[str]:
    """The methods of a recipe that decide while sampling by what the network returns, by axis and label."""
    axes = ((axis, getattr(recipe, axis)) for axis in ("guidance", "cache", "stitch"))
    return [f"{axis} {method.label}" for axis, method in axes if method is not None and method.varies]


def cost_record(runner: Samples, recipe: Recipe, key: str, cost: dict[str, Any], setup: float) -> dict[str, Any]:
    """The record of a cell without scores: N is 0, for no image is kept. A method that decides by thresholds is said to
    have decided by noise."""
    notes: dict[str, Any] = {"unscored": runner.suite.unscored}
    if found := deciding(recipe):
        notes["warnings"] = [
            f"{', '.join(found)} decides while sampling by what the network returns, which is noise here: how often it "
            "reuses or skips, and so its cost and speed, says nothing of the trained network."
        ]
    own = {"n": 0, "compared": 0, "values": {}, "reference": None, "notes": notes}
    return runner.about(recipe, key, cost, setup) | own
