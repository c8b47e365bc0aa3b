"""How images of suite `hub` are scored: features of a network of choice against a reference, and CLIP scores. Of videos
every frame is a picture, the CLIP score is the mean over frames, and the temporal difference is a score, too."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from accel.errors import ConfigError
from accel.metrics.statistics import Estimate
from accel.metrics.temporal import frame_means, temporal_difference
from accel.suites.base import Reference, Suite
from accel.suites.hub.real_images import RealImages


class Scored(Suite):
    """A suite whose feature network, reference and CLIP model are settings; nothing is scored without them."""

    reference_images: RealImages
    feature_network: str
    feature_weights: str | None
    clip: str | None
    scoring_device: str  # of both; auto: the GPU if there is one
    image_size: tuple[int, int]

    @property
    def feature_space(self) -> str | None:
        network = self._network_or_none()
        return network and network.name

    def features(self, images: torch.Tensor) -> torch.Tensor | None:
        network = self._network_or_none()
        if network is None:
            return None
        pictures = self.to_uint8(images)
        if self.frames:
            return network(pictures.flatten(0, 1)).unflatten(0, (len(pictures), -1))
        return network(pictures)

    def feature_scores(self, features: torch.Tensor, period: int = 1) -> dict[str, Estimate]:
        return self._network_or_none().scores(features, period)

    def scoring(self) -> dict[str, Any]:
        network, used = self._network_or_none(), {}
        if network is not None:
            if reason := network.unavailable():
                raise ConfigError(reason)
            used["features"] = network.identity()
        return used | ({"clip_score": self._clip.identity()} if self.clip else {})

    def per_sample(self, images: torch.Tensor, conditions: dict[str, Any]) -> dict[str, torch.Tensor]:
        pictures, found = self.to_uint8(images), {}
        if self.frames:
            found["temporal"] = temporal_difference(pictures)
        if self.clip and self.frames:
            said = [prompt for prompt in conditions["prompt"] for _ in range(pictures.shape[1])]
            found["clip_score"] = frame_means(self._clip(pictures.flatten(0, 1), said), len(pictures))
        elif self.clip:
            found["clip_score"] = self._clip(pictures, conditions["prompt"])
        return found

    def reference(self) -> Reference | None:
        network = self._network_or_none()
        if network is None:
            return None
        return self.reference_images.load(network, *self.image_size)

    def reference_identity(self) -> dict[str, Any] | None:
        network = self._network_or_none()
        return network and self.reference_images.identity(network, *self.image_size)

    def _network_or_none(self) -> Any:
        if self.reference_images.path is None:
            return None
        if self.feature_network == "none":
            raise ConfigError(
                "suite.reference_images.path is given, but suite.feature_network is none; choose one, such as "
                "suite.feature_network=inception."
            )
        return _network(self.feature_network, self.feature_weights, self._scoring_device)

    @property
    def _clip(self) -> Any:
        return _clip(self.clip, self._scoring_device)

    @property
    def _scoring_device(self) -> str | None:
        return None if self.scoring_device == "auto" else self.scoring_device


@lru_cache(maxsize=4)
def _network(name: str, path: str | None, device: str | None) -> Any:
    from accel.metrics.networks import feature_network

    return feature_network(name, path, device=device)


@lru_cache(maxsize=2)
def _clip(path: str, device: str | None) -> Any:
    from accel.metrics.networks import ClipScore

    return ClipScore.load(path, device)
