"""DINOv2 features: the space of FD-DINOv2.

Oquab et al. 2023, arXiv:2304.07193; as a space for Frechet distances: Stein et al. 2023, arXiv:2306.04675 (dgm-eval).
Feature: the class token after the last layer norm, of the image resized to 224 x 224 (bicubic, antialiased, not
cropped), x / 255 normalised by ImageNet's mean and standard deviation, as dgm-eval and EDM2 do it. The hub's own
preprocessor (256, then a crop to 224) shows the network another image: values are not comparable with it.
Deviation: weights are read through transformers, not torch.hub, which would run code from a repository.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from accel.errors import needs
from accel.metrics.base import FeatureNetwork, frozen
from accel.metrics.images import Preprocessing
from accel.metrics.weights import checkpoint, files_sha256, load_model

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DinoFeatures(FeatureNetwork):
    """DINOv2 of a local folder or hub id of a transformers Dinov2Model; published FD-DINOv2 is that of ViT-L/14."""

    name = "dinov2"
    DEFAULT = "facebook/dinov2-large"
    preprocessing = Preprocessing((SIZE, SIZE), None, MEAN, STD)

    def _load(self) -> nn.Module:
        transformers = needs("transformers", "bench", "DINOv2 features")
        return frozen(load_model(transformers.Dinov2Model, checkpoint(self.path, "dinov2")), self.device)

    def _forward(self, images: Tensor) -> Tensor:
        return self.network(self.preprocessing(images).to(self.device)).last_hidden_state[:, 0]

    @property
    def num_features(self) -> int:
        return self.network.config.hidden_size

    def identity(self) -> dict[str, Any]:
        config = self.network.config
        return {
            "network": f"DINOv2 {config.num_hidden_layers}x{config.hidden_size}, patch {config.patch_size}",
            "weights_sha256": files_sha256(checkpoint(self.path, "dinov2")),
            "preprocessing": self.preprocessing.identity(),
        }
