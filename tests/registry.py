"""Every registered method: the YAML files of the config groups are the registry."""

from __future__ import annotations

from accel.config import AXES, compose, groups, recipe_of

# Small settings, so that a contract test takes a fraction of a second.
QUICK = {
    "sampler": ["sampler.steps=4"],
    "deepcache": ["cache.interval=2", "cache.branch=2"],
    "interval": ["guidance.sigma_lo=0.5", "guidance.sigma_hi=20"],
}


def choices(axis: str) -> list[str]:
    return [c for c in groups()[axis] if c != "none"]


def recipe(**axes: str):
    """Recipe of one config choice on each named axis; 4 steps of ddim (for a grid: dpmpp_2m) unless given."""
    axes = {"sampler": "dpmpp_2m" if "grid" in axes else "ddim"} | axes
    overrides = [f"{axis}={choice}" for axis, choice in axes.items()] + QUICK["sampler"]
    for choice in axes.values():
        overrides += QUICK.get(choice, [])
    return recipe_of(compose(overrides))


METHODS = [(axis, choice) for axis in AXES for choice in choices(axis)]
PAIRS = [(a, b) for i, a in enumerate(METHODS) for b in METHODS[i + 1 :] if a[0] != b[0]]
