"""FID: the Frechet distance between Gaussians with the moments of two feature sets; by torchmetrics, in float64."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from accel.errors import ConfigError, check_int, needs
from accel.metrics.features import Reference, as_reference, checked


class Moments:
    """Mean `mu` (D,) and covariance `sigma` (D, D; divisor n - 1) of the features of `n` real images.

    All that FID needs, and nothing else: KID, precision and recall need the features. Raises ConfigError for other
    shapes, non-finite numbers, and a sigma that is not symmetric.
    """

    def __init__(self, mu: Tensor, sigma: Tensor, n: int):
        check_int("the number of images behind the moments", n, 2)
        mu, sigma = (torch.as_tensor(x).detach().to("cpu", torch.float64) for x in (mu, sigma))
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ConfigError(
                f"moments: found mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)}; needed: (D,) and (D, D)."
            )
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ConfigError("moments: mu or sigma has non-finite values; needed: finite numbers.")
        if not torch.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * float(sigma.abs().max())):
            raise ConfigError("moments: sigma is not symmetric; needed: a covariance matrix.")
        self.mu, self.sigma, self.n = mu, sigma, n

    def __len__(self) -> int:
        return self.n

    @cached_property
    def frechet(self) -> FrechetDistance:
        """FID to these moments."""
        return FrechetDistance(self)


class _Precomputed(nn.Module):
    """The feature network of torchmetrics' FID where features are computed already: the identity."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance:
    """FID of feature sets to one reference, features (M, D) whose moments are accumulated once, or `Moments`.

    FID = |mu_x - mu_r|^2 + tr(S_x + S_r - 2 (S_x S_r)^(1/2)), means mu and covariances S (divisor N - 1) of the
    features. Heusel et al. 2017. Biased upwards by about c / N: compare only at equal N.

    N < D: S_x = A' A with A (N, D), so that the eigenvalues of S_x S_r that are not 0 are those of A S_r A', which is
    N x N and symmetric: of a few hundred samples a jackknife's 21 values are a matter of seconds. Of N >= D each one is
    the general eigenvalue problem of torchmetrics, 5 s of one CPU thread for D = 2048.
    """

    def __init__(self, reference: Tensor | np.ndarray | Moments):
        moments = reference if isinstance(reference, Moments) else None
        reference = None if moments else checked("the reference", reference, 2)
        self.dimension = len(moments.mu) if moments else reference.shape[1]
        self._metric = needs("torchmetrics.image.fid", "bench", "FID").FrechetInceptionDistance(
            feature=_Precomputed(self.dimension), reset_real_features=False
        )
        if moments:  # as if their images had been seen: torchmetrics keeps sums
            mu, sigma, n = moments.mu, moments.sigma, moments.n
            self._metric.real_features_sum = n * mu
            self._metric.real_features_cov_sum = (n - 1) * sigma + n * mu.outer(mu)
            self._metric.real_features_num_samples = torch.tensor(n)
        else:
            self._metric.update(reference, real=True)

    def __call__(self, features: Tensor | np.ndarray) -> float:
        """FID of features (N, D), N >= 2."""
        features = checked("the features", features, 2, self.dimension)
        if len(features) < self.dimension:
            return self._of_few(features)
        self._metric.reset()  # forgets the generated features only
        self._metric.update(features, real=False)
        return float(self._metric.compute())

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the reference, from the sums that torchmetrics keeps."""
        metric = self._metric
        n, mu = metric.real_features_num_samples, metric.real_features_sum / metric.real_features_num_samples
        return mu, (metric.real_features_cov_sum - n * mu.outer(mu)) / (n - 1)

    def _of_few(self, features: Tensor) -> float:
        mu, sigma = self._real
        mean = features.mean(0)
        own = (features - mean) / (len(features) - 1) ** 0.5
        roots = torch.linalg.eigvalsh(own @ sigma @ own.T).clamp(min=0).sqrt().sum()
        return float((mean - mu).square().sum() + own.square().sum() + sigma.trace() - 2 * roots)


def frechet_to(reference: Tensor | np.ndarray | Reference | Moments) -> FrechetDistance:
    """FID to a reference, whose moments are accumulated once."""
    return reference.frechet if isinstance(reference, Moments) else as_reference(reference).of(FrechetDistance)


def fid(features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference | Moments) -> float:
    """Frechet distance of features (N, D) to a reference (M, D); see `FrechetDistance`."""
    return frechet_to(reference)(features)
