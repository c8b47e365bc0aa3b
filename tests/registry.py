"""What contract tests go through: every registered method, and pairs of those that differ in how they compose."""

from __future__ import annotations

from dataclasses import replace

from accel.benches.compatibility import methods
from accel.caching.schedules import Uniform
from accel.precision import FakeQuant
from accel.precision.executed.whole import Whole
from accel.records import describe
from accel.samplers.noise import draws_noise
from accel.testing.quick import recipe

METHODS = methods()
# How often an evaluation makes the host wait for a GPU, beyond the plain pipeline: what has to be read.
WAITS = {
    "ag": 1,  # whether both predictions agree
    "gfcg": 1,  # which samples are taken for their class
    "cache_dit": 1,  # whether the first blocks have changed
    "diffusers_first_block": 1,  # whether the first block has changed
    **dict.fromkeys(("easycache", "teacache", "seacache"), 1),  # whether the indicators' sum is below the threshold
}


def _scheduled_alike() -> set[tuple[str, str]]:
    """Caches that differ from an earlier one in the steps that are full alone, not in what is kept of them."""
    kinds, found = set(), set()
    for axis, choice in METHODS:
        config = getattr(recipe(**{axis: choice}), axis)
        if getattr(config, "schedule", None) is None:
            continue
        kind = type(config), str(describe(replace(config, schedule=Uniform(2))))
        found |= {(axis, choice)} if kind in kinds else set()
        kinds.add(kind)
    return found


SCHEDULED_ALIKE = _scheduled_alike()


def _distinct() -> list[tuple[str, str]]:
    # Caches and quantisers that are settings of one class compose alike, and so do all networks that run as one piece;
    # they are many, and pairs are many times that.
    kinds, kept = set(), []
    for axis, choice in sorted(METHODS, key=lambda m: m[1] != "w8a8"):  # which is the quickest of its kind
        config = getattr(recipe(**{axis: choice}), axis)
        kind = (axis, choice)
        if axis == "cache":
            kind = (type(config), getattr(config, "hook", None))
        elif axis == "student":
            kind = (type(config), len(config.times) > 1 and config.kind)
        elif isinstance(config, FakeQuant):
            kind = (type(config), config.calibration.replayed)
        elif isinstance(config, Whole):
            kind = Whole
        if kind not in kinds:
            kinds.add(kind)
            kept.append((axis, choice))
    return sorted(kept, key=METHODS.index)


def _clocks() -> set[str]:
    """Samplers of which no two look alike to what sits at the denoiser: whose scheduler it is, evaluations a step,
    whether steps add noise."""
    found = {}
    for axis, choice in METHODS:
        if axis == "sampler":
            made = recipe(sampler=choice).sampler
            cls = getattr(made, "scheduler_class", type(None))
            own, noisy = cls.__module__.startswith("accel."), draws_noise(cls)
            flow = choice.startswith(("flow", "rf"))  # which this suite's model is not for
            key = (type(made), own, made.evaluations // made.steps, made.calibrated, noisy, flow)
            found.setdefault(key, choice)
    return set(found.values())


# Of what a partner cannot tell apart, these stand for all: grids, for what sits at the denoiser; precisions that learn,
# all by the same calls, for what decides where the trajectory goes.
GRIDS = ("karras", "explicit")
LEARNED = ("mixdq", "quest", "binarydm", "prune")
BEFORE = (
    "ode",
    "dmcmc",
)  # whose evaluations, many and before the loop, are as any other to a precision; one cast tells


def _tells(a: tuple[str, str], b: tuple[str, str], clocks: set[str]) -> bool:
    """Whether the pair is tried: a's axis comes before b's."""
    if b[1] in LEARNED and a[0] in ("sampler", "grid", "guidance"):
        return False
    if a[1] in BEFORE and b[0] == "precision":
        return b[1] == "fp16"
    if a[0] == "sampler":
        return b[0] in ("grid", "guidance") or a[1] in clocks  # the first two depend on the solver itself
    return a[0] != "grid" or a[1] in GRIDS


def _pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    methods, clocks = _distinct(), _clocks()
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :] if a[0] != b[0]]
    return [(a, b) for a, b in pairs if _tells(a, b, clocks)]


PAIRS = _pairs()
# Of every kind one or two: enough for a network that differs little from another that meets them all.
FEW = [m for m in _distinct() if m[1] not in LEARNED and (m[0] != "grid" or m[1] in GRIDS)]
FEW = [m for m in FEW if m[0] != "sampler" or m[1] in _clocks()]
