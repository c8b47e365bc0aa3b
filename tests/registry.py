"""Recipes for contract tests: every registered method at settings that take a fraction of a second."""

from __future__ import annotations

from accel.compatibility import methods
from accel.config import compose, recipe_of

QUICK = {
    "deepcache": ["cache.interval=2", "cache.branch=2"],
    "interval": ["guidance.sigma_lo=0.5", "guidance.sigma_hi=20"],
}


def recipe(**axes: str):
    """Recipe of one config choice on each named axis; 4 steps of ddim (for a grid: dpmpp_2m) unless given."""
    axes = {"sampler": "dpmpp_2m" if "grid" in axes else "ddim"} | axes
    overrides = [f"{axis}={choice}" for axis, choice in axes.items()] + ["sampler.steps=4"]
    for choice in axes.values():
        overrides += QUICK.get(choice, [])
    return recipe_of(compose(overrides))


METHODS = methods()
PAIRS = [(a, b) for i, a in enumerate(METHODS) for b in METHODS[i + 1 :] if a[0] != b[0]]
