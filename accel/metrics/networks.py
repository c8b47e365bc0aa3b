"""Feature networks for FID and its kin, and text-image scores. Nothing is loaded or imported before it is used."""

from __future__ import annotations

from pathlib import Path

from accel.errors import unknown
from accel.metrics.base import FeatureNetwork
from accel.metrics.clip import ClipFeatures, ClipScore
from accel.metrics.dino import DinoFeatures
from accel.metrics.inception import InceptionFeatures

__all__ = ["ClipScore", "FeatureNetwork", "feature_network"]

NETWORKS = {"inception": InceptionFeatures, "dinov2": DinoFeatures, "clip": ClipFeatures}


def feature_network(name: str, path: str | Path | None = None, **options) -> FeatureNetwork | None:
    """The feature network `name` (inception | dinov2 | clip; none: None) with the weights at `path`, not loaded yet.

    `path` is a weights file (inception), or a local folder or hub id (dinov2, clip); None: the class's DEFAULT.
    Options are those of every network: `device` (None: the GPU if there is one) and `batch`. Ask `unavailable()`
    before long work. Raises ConfigError for an unknown name.
    """
    if name == "none":
        return None
    if name not in NETWORKS:
        raise unknown("feature network", name, [*NETWORKS, "none"])
    return NETWORKS[name](path, **options)
