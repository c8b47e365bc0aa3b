"""Which threshold fits this model: what a method holds against it, how much each value saves, and what it costs.

Candidates are quantiles of the residual on the model's own samples, so that they are where something changes. Each is
really run: a residual of the plain trajectory does not tell what the next one would be once something was reused. The
*knee* is the candidate farthest from the line between both ends of the curve distance over MACs saved, both scaled to
0..1 (Satopaa et al. 2011). What stays inside the margins is decided by paired verdicts on common seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from accel.core.recipe import Recipe, accelerate
from accel.core.threshold import ThresholdRule
from accel.deploy.gate import PASS, Gate
from accel.deploy.opened import Opened
from accel.deploy.saved_runner import SavedRunner, compared
from accel.deploy.watched import Tunable, tunable
from accel.errors import ConfigError
from accel.evaluation.generate import batches, generate
from accel.evaluation.score import distances
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.studies.evaluation import MIN_N, Evaluation

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Point:
    """A threshold, as it ran: `hits`, the share of comparisons that reached it (counted where what is reused changes no
    residual; else by the MACs saved, of those that are saved where all do); share of the MACs saved against the recipe
    without the method's savings, and the mean RMS distance (-1..1) of its images to that recipe's."""

    threshold: float
    hits: float
    saved: float
    distance: float


@dataclass(frozen=True)
class Curve:
    """`quantiles` of the residual, by QUANTILES, and the points at these thresholds, the least saving first. `easiest`:
    the residual that hits first as the threshold moves to where more is saved."""

    tunable: Tunable
    quantiles: tuple[float, ...]
    points: tuple[Point, ...]
    easiest: float

    @property
    def never(self) -> bool:
        """Whether the recipe's own threshold is reached by no residual, so that the method saves nothing."""
        return not self.tunable.rule.reached(self.easiest, self.tunable.rule.value)

    @property
    def knee(self) -> Point | None:
        """The point farthest below the chord of the curve; None where it has fewer than three different ones, or
        none lies below."""
        return knee(self.points)


def curve(opened: Opened, samples: int = 16, batch: int = 8, seed: int = 0, axis: str | None = None) -> Curve:
    """What the recipe's method (the one on `axis`) holds against its threshold, and what each candidate does, on the
    first `samples` of the suite. ConfigError for a recipe without such a method, with several and no axis, and for one
    whose residual is nowhere a number."""
    found = tunable(opened.saved.recipe, opened.saved.artefacts, axis)
    opened.check()
    rule, (watched, residuals) = found.rule, found.watch()
    plain, macs = _images(opened, watched, samples, batch, seed)
    finite = np.array([value for value in residuals if np.isfinite(value)])
    if not finite.size:
        raise ConfigError(
            f"{opened.saved.recipe.label} never compared anything; it needs two steps or more, beyond those that its "
            "settings always compute."
        )
    most = 0.0 if rule.fixed else macs - _images(opened, found.at(rule.always), samples, batch, seed)[1]
    quantiles = tuple(float(value) for value in np.quantile(finite, QUANTILES))
    points = []
    for value in dict.fromkeys(_reached(rule, value) for value in quantiles):
        images, cost = _images(opened, found.at(value), samples, batch, seed)
        hits = fmean(rule.reached(one, value) for one in finite) if rule.fixed else (macs - cost) / (most or np.inf)
        points.append(Point(value, hits, 1 - cost / macs, float(distances(images, plain).mean())))
    ordered = sorted(points, key=lambda point: point.threshold, reverse=not rule.rising)
    easiest = float(finite.min() if rule.rising else finite.max())
    return Curve(found, quantiles, tuple(ordered), easiest)


def knee(points: Sequence[Point]) -> Point | None:
    """The point farthest below the chord from the first to the last of a rising curve (saved, distance)."""
    x, y = (np.array([getattr(point, name) for point in points], float) for name in ("saved", "distance"))
    if len(points) < 3 or not (x.max() > x.min() and y.max() > y.min()):
        return None
    below = (x - x.min()) / (x.max() - x.min()) - (y - y.min()) / (y.max() - y.min())
    best = int(below.argmax())
    return points[best] if below[best] > 1e-9 else None


def inside_margins(
    opened: Opened, found: Curve, results: Results, margins: Margins, n: int, seed: int
) -> Iterator[tuple[Point, Gate]]:
    """Candidates from the most saving one on, each with its verdicts against the recipe without the method's savings;
    it ends with the first that passes. Those that save nothing are left out."""
    distance = MIN_N if opened.suite.feature_space else n
    evaluation = Evaluation(n=n, seed=seed, distance_n=distance, timing=False, device=opened.device)
    runner = SavedRunner(opened, evaluation, results)
    base = runner.quality(found.tunable.off)
    for point in reversed(found.points):
        if point.saved <= 0:
            continue
        gate = Gate(compared(base, runner.quality(found.tunable.at(point.threshold)), margins))
        yield point, gate
        if gate.outcome == PASS:
            return


def _reached(rule: ThresholdRule, quantile: float) -> float:
    """The threshold of six decimals that a residual at the quantile just reaches, at most the one that all reach."""
    if rule.rising:
        return min(math.ceil(quantile * 1e6) / 1e6, rule.always)
    return max(math.floor(quantile * 1e6) / 1e6, rule.always)


def _images(opened: Opened, recipe: Recipe, samples: int, batch: int, seed: int) -> tuple[torch.Tensor, float]:
    """Stored images of the first samples, and the mean MACs an image."""
    images, macs, saved = [], [], opened.saved
    given = {"models": opened.models, "artefacts": saved.artefacts}
    with accelerate(opened.pipe, recipe, count_macs=True, **given) as run:
        for a, b in batches(0, samples, batch):
            images.append(generate(opened.pipe, opened.suite, recipe, seed, a, b, b - a, "--batch "))
            macs += [run.macs] * (b - a)
    return opened.suite.stored(torch.cat(images)), fmean(macs)
