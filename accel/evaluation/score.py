"""Scores of a run from its shards: quality of the features, per-sample means, distance to the converged trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from accel.errors import joined
from accel.files import Tensors
from accel.metrics.distributions import quality
from accel.metrics.features import Reference, as_reference
from accel.metrics.fid import Moments, frechet_to
from accel.metrics.similarity import Similarity
from accel.metrics.statistics import Estimate, jackknife, mean_estimate, usable_period
from accel.metrics.temporal import frame_means
from accel.suites.base import Suite

HELD_OUT = "held_out_fid"
TO_PLAIN = "_to_plain"  # of values that compare with the same recipe without what accelerates it
EPOCH = 3  # raise when a change alters the values that are computed from the same shards


def score_images(suite: Suite, images: torch.Tensor, conditions: dict[str, Any]) -> Tensors:
    """What a shard stores: the images, fp16 features and per-sample scores (`score.<metric>`)."""
    with torch.inference_mode():
        features = suite.features(images)
        scores = suite.per_sample(images, conditions)
    tensors = {"images": suite.stored(images)} | {f"score.{k}": v for k, v in scores.items()}
    return tensors if features is None else tensors | {"features": features.half()}


def distances(images: torch.Tensor, converged: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of each image, or video, to the same sample's converged one: (B, ...) x 2 -> (B,).

    On the scale -1..1, also of images that are stored as uint8. One image at a time: 5,000 of 1024 x 1024 are 15 GB.
    """
    scale = 127.5 if images.dtype == torch.uint8 else 1.0
    pairs = zip(images, converged, strict=True)
    return torch.stack([(a.double() - b.double()).square().mean().sqrt() for a, b in pairs]) / scale


def similarities(
    suite: Suite,
    similarity: Similarity,
    images: torch.Tensor,
    converged: torch.Tensor | None,
    plain: torch.Tensor | None,
) -> dict[str, Estimate]:
    """Reference metrics, as means over samples, of stored images (B, C, H, W), of videos (B, F, C, H, W) the means over
    their frames: to the images of the converged trajectory (`psnr`, ...), to those of the unaccelerated recipe
    (`psnr_to_plain`, ...), each None where it is itself, and without a reference (`sharpness`)."""
    found = _by_sample(similarity.alone(_pictures(suite, images)), len(images))
    for references, suffix in ((converged, ""), (plain, TO_PLAIN)):
        if references is not None:
            pairs = _pictures(suite, images[: len(references)]), _pictures(suite, references)
            measured = _by_sample(similarity.paired(*pairs), len(references))
            found |= {name + suffix: values for name, values in measured.items()}
    return {name: _mean(suite, values) for name, values in found.items()}


def _pictures(suite: Suite, images: torch.Tensor) -> torch.Tensor:
    # Of videos (B, F, C, H, W) all frames, video by video.
    pictures = suite.to_uint8(images)
    return pictures.flatten(0, 1) if pictures.ndim == 5 else pictures


def _by_sample(values: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    return {name: frame_means(own, count) for name, own in values.items()}


def score(
    suite: Suite,
    shards: Tensors,
    converged: torch.Tensor | None,
    more: Mapping[str, Estimate] = MappingProxyType({}),
    seeds: int = 1,
) -> dict[str, Estimate]:
    """All values with intervals. `converged` holds the exact images of the first samples (None: it is itself); of
    several `seeds`, whose samples stand one after the other, those of each. Of videos features are (N, F, D): every
    frame is a picture, and jackknife groups are of whole videos, whose frames are alike. `more`: further values, such
    as `similarities`.

    Sample i of a seed shows condition i of the suite: groups are of its whole periods (`usable_period`), and where
    both sides have classes KID is taken class by class. ConfigError if a score of the suite has the name of another
    value.
    """
    parts: list[Mapping[str, Estimate]] = []
    if suite.feature_space and "features" in shards:
        features, n = shards["features"].double(), len(shards["features"])
        reference, strata = compared_with(suite, n // seeds)
        strata = strata and strata * seeds
        frames = features.shape[1] if features.ndim == 3 else 1  # each a picture, and a video whole in one group
        features, period = features.flatten(0, -2), frames * usable_period(n, suite.period)
        parts.append(quality(features, reference, suite.feature_space, period=period, strata=strata))
        parts.append(suite.feature_scores(features, period))
    for name, tensor in shards.items():
        if name.startswith("score."):
            parts.append({name.removeprefix("score."): _mean(suite, tensor)})
    if converged is not None:
        parts.append({"distance": _mean(suite, distances(shards["images"][: len(converged)], converged))})
    return joined(f"the values of suite {suite.name}", *parts, more)


def held_out_fid(features: torch.Tensor, held_out: torch.Tensor, period: int) -> Estimate:
    """Frechet distance of samples' features (N, D) to those of held-out images (M, D), which neither the model nor the
    reference has seen: repeating training images brings it no nearer. `period`: of the suite's conditions."""
    distance, x, n = frechet_to(as_reference(held_out)), features.double(), len(features)
    return jackknife(lambda kept: distance(x[torch.from_numpy(kept)]), n, period=usable_period(n, period))


def compared_with(suite: Suite, n: int) -> tuple[Reference | Moments, list[int] | None]:
    """The reference of the suite's features, and the classes of samples 0..n-1 where both have classes."""
    own = suite.reference()
    if isinstance(own.features, Moments):
        return own.features, None
    strata = None if own.strata is None else suite.strata(suite.conditions(0, n))
    return Reference(own.features, None if strata is None else own.strata), strata


def _mean(suite: Suite, values: torch.Tensor) -> Estimate:
    return mean_estimate(values.double().numpy(), period=usable_period(len(values), suite.period))
