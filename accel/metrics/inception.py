"""Inception-v3 features: the space of FID, and the Inception Score.

FID: Heusel et al. 2017. Inception Score: Salimans et al. 2016. The network is in inception_network.py, its weights are
torch-fidelity's conversion of TensorFlow's. Feature: the 2048 values after the last average pooling.
`antialias=False`, the default, resizes to 299 x 299 as TensorFlow 1 did, which published FIDs rest on; True is
torchmetrics 1.9's own default, and gives other values. The published file is a pickle: it is read by torch's
weights-only unpickler, which runs no code. Neither torch-fidelity nor torchvision is needed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.files import file_hash
from accel.metrics.base import BATCH, FeatureNetwork, frozen
from accel.metrics.inception_network import FEATURES, InceptionV3
from accel.metrics.statistics import Estimate, group_sizes

# InceptionV3 of the TensorFlow graph, converted by torch-fidelity (Apache License 2.0).
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 of torch-fidelity's weights file; without a path, of torch.hub's cache or `URL`."""

    name = "inception"

    def __init__(
        self,
        path: str | Path | None = None,
        device: str | None = None,
        batch: int = BATCH,
        antialias: bool = False,
    ) -> None:
        super().__init__(path, device, batch)
        self.antialias = antialias

    num_features = FEATURES

    def _load(self) -> nn.Module:
        path = self._file()
        net = InceptionV3(self.antialias)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a pickle may fail in any way
            raise ConfigError(f"Inception weights: cannot load {path}: {error}") from error
        return frozen(net, self.device)

    def _forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.device))

    def logits(self, features: Tensor) -> Tensor:
        """Class logits float64 (B, 1008) of features (B, 2048), stored ones too; without the bias, as customary."""
        weight = self.network.fc.weight.detach().cpu().double()
        return features.double() @ weight.T

    def scores(self, features: Tensor, period: int = 1) -> dict[str, Estimate]:
        """`inception_score`."""
        return {"inception_score": inception_score(self.logits(features), period=period)}

    def identity(self) -> dict[str, Any]:
        return {
            "network": "Inception-v3 2015-12-05 (torch-fidelity)",
            "weights_sha256": file_hash(self._file()),
            "antialias": self.antialias,
        }

    def _file(self) -> Path:
        """The weights file; without a path it is downloaded where torch.hub keeps its files, unless it is there."""
        path = Path(self.path or Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[-1]).expanduser()
        if path.is_file():
            return path
        if self.path is not None:
            raise ConfigError(f"Inception weights: there is no file {path}. Needed: the file of {URL}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), re.search(r"-([0-9a-f]{8})\.", URL)[1], progress=False)
        except Exception as error:
            raise ConfigError(
                f"Inception weights: {path} is not there and cannot be downloaded ({error}). "
                f"Fetch {URL} where there is a network, and put it there or give its path."
            ) from error
        return path


def inception_score(logits: Tensor, count: int = 20, period: int = 1) -> Estimate:
    """IS = exp(mean_i KL(p(y | x_i) || p(y))), p(y | x_i) the softmax of logits (N, K), p(y) their mean; 1..K.

    One split of all samples with its jackknife interval, not the customary mean over 10 splits with their spread.
    Biased in N: compare at equal N. With S_g and H_g the sums of p and of p log p over group g, each delete-group value
    is exp(H / n - sum_y q log q), q = S / n, of the kept sums. Raises ConfigError for anything but a finite matrix.
    """
    logits = torch.as_tensor(logits).detach().to("cpu", torch.float64)
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ConfigError(f"logits have shape {tuple(logits.shape)}; needed: (samples, classes), all finite.")
    sizes = group_sizes(len(logits), count, period).tolist()
    logs = logits.log_softmax(1)
    probabilities = torch.stack([part.exp().sum(0) for part in logs.split(sizes)])
    negentropy = torch.stack([(part.exp() * part).sum() for part in logs.split(sizes)])

    def value(marginal: Tensor, negentropy: Tensor, n: int | Tensor) -> Tensor:
        q = marginal / n
        return (negentropy / n.squeeze(-1) - torch.special.xlogy(q, q).sum(-1)).exp()

    total = torch.tensor([len(logits)])
    whole = value(probabilities.sum(0), negentropy.sum(), total)
    kept = total - torch.tensor(sizes)[:, None]
    without = value(probabilities.sum(0) - probabilities, negentropy.sum() - negentropy, kept)
    return Estimate.from_replicates(float(whole), without.tolist(), len(logits), period)
