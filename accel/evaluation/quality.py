"""FID, KID, CMMD, precision and recall of precomputed features, with delete-group jackknife intervals.

The reference set is taken as fixed: intervals are over the generated samples, at the given reference, which all rows of
a table share. torchmetrics computes FID; its KID is replaced by the full-sample estimator (its own draws random
subsets of equal sizes), and precision/recall, which it lacks, is written here. All arithmetic is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from accel.errors import ConfigError, check_int, needs
from accel.metrics.statistics import Estimate, groups, jackknife

NEIGHBOURS = 3
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
BLOCK_ELEMENTS = 2**22  # of one block of a distance or kernel matrix: 32 MiB in float64

Kernel = Callable[[Tensor, Tensor], Tensor]  # k(x_i, y_j) of x (N, D) and y (M, D): a new tensor (N, M)


class Reference:
    """Features (M, D) of the real images, with what each metric needs of them alone computed once.

    Pass one to `quality` in place of the features to share that work between cells. Raises ConfigError as `quality`.
    """

    def __init__(self, features: Tensor | np.ndarray):
        self.features = _checked("the reference", features, 2)

    @cached_property
    def frechet(self) -> FrechetDistance:
        """FID to this reference."""
        return FrechetDistance(self.features)

    @cached_property
    def cubic_mean(self) -> float:
        """Mean of KID's k(y, y') over pairs of different references."""
        return _pair_mean(self.features, _cubic)

    @cached_property
    def directions(self) -> Tensor:
        """The reference features scaled to length 1, (M, D)."""
        return _directions("the reference", self.features)

    @cached_property
    def gaussian_mean(self) -> float:
        """Mean of CMMD's k(y, y') over pairs of different references."""
        return _pair_mean(self.directions, _gaussian)

    @cached_property
    def centre(self) -> Tensor:
        """Mean reference feature (D,); distances are taken about it, which loses fewer digits to cancellation."""
        return self.features.mean(0)

    @cached_property
    def _radii(self) -> dict[int, Tensor]:
        return {}

    def squared_radii(self, k: int) -> Tensor:
        """Squared distance (M,) of each reference to its k-th nearest other reference."""
        if k not in self._radii:
            _check_count("the reference", len(self.features), k + 1)
            self._radii[k] = _neighbour_radii(self.features - self.centre, k, [len(self.features)])[:, 0]
        return self._radii[k]


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
    features. Heusel et al. 2017. Biased upwards by about c / N: compare only at equal N. One value of 5000 x 2048
    features takes about 5 s on one CPU thread (a general eigenvalue problem), a jackknife 21 times that.
    """

    def __init__(self, reference: Tensor | np.ndarray | Moments):
        moments = reference if isinstance(reference, Moments) else None
        reference = None if moments else _checked("the reference", reference, 2)
        self.dimension = len(moments.mu) if moments else reference.shape[1]
        torchmetrics = needs("torchmetrics.image.fid", "bench", "FID")
        self._metric = torchmetrics.FrechetInceptionDistance(
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
        features = _checked("the features", features, 2, self.dimension)
        self._metric.reset()  # forgets the generated features only
        self._metric.update(features, real=False)
        return float(self._metric.compute())


def fid(features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference) -> float:
    """Frechet distance of features (N, D) to a reference (M, D); see `FrechetDistance`."""
    return _reference(reference).frechet(features)


def kid(features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference) -> float:
    """Unbiased squared MMD of all features (N, D) and references (M, D) in the cubic kernel; not scaled by 1000.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(a, b) = (a . b / D + 1)^3. Binkowski et al. 2018. N and M may differ; being unbiased it may be negative.
    """
    reference = _reference(reference)
    x = _checked("the features", features, 2, reference.features.shape[1])
    return _mmd(x, reference.features, reference.cubic_mean, _cubic)


def kid_estimate(features: Tensor | np.ndarray, reference, count: int = 20) -> Estimate:
    """`kid` with its interval; each kernel value is computed once for all delete-group values."""
    reference = _reference(reference)
    x = _checked("the features", features, 2, reference.features.shape[1])
    return _mmd_estimate(x, reference.features, reference.cubic_mean, _cubic, count)


def cmmd(features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference) -> float:
    """1000 times the unbiased squared MMD of CLIP image embeddings (N, D) and references (M, D), Gaussian kernel.

    As KID with k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), sigma = 10, of embeddings scaled to length 1 (here, so that
    fp16 storage does no harm). Jayasumana et al. 2024, arXiv:2401.09603. Being unbiased it may be negative. The
    authors' code and its ports keep the diagonals instead, which adds about 1000 (1 - mean k) (1 / N + 1 / M) to
    every value. Of embeddings of another network than CLIP it is not a CMMD. Raises ConfigError for an embedding of 0.
    """
    reference = _reference(reference)
    x = _checked("the features", features, 2, reference.features.shape[1])
    x = _directions("the features", x)
    return CMMD_SCALE * _mmd(x, reference.directions, reference.gaussian_mean, _gaussian)


def cmmd_estimate(features: Tensor | np.ndarray, reference, count: int = 20) -> Estimate:
    """`cmmd` with its interval; each kernel value is computed once for all delete-group values."""
    reference = _reference(reference)
    x = _checked("the features", features, 2, reference.features.shape[1])
    x = _directions("the features", x)
    return _mmd_estimate(x, reference.directions, reference.gaussian_mean, _gaussian, count, CMMD_SCALE)


def precision_recall(
    features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of features (N, D) inside the reference's manifold, and of references (M, D) inside the features'.

    The manifold of a set is the union of balls about its points z, each reaching z's k-th nearest neighbour in the set
    (itself excluded, boundary included). Kynkaanniemi et al. 2019. Recall depends on N: compare at equal N.
    """
    reference = _reference(reference)
    x = _checked_for_manifold(features, reference, k)
    inside, covered = _memberships(x, reference, k, [len(x)])
    return float(inside.double().mean()), float(covered[0].double().mean())


def precision_recall_estimate(
    features: Tensor | np.ndarray, reference, k: int = NEIGHBOURS, count: int = 20
) -> tuple[Estimate, Estimate]:
    """`precision_recall` with intervals; each distance is computed once for all delete-group values.

    Without group g the features' manifold has no balls about g, and the other balls reach the k-th neighbour outside g.
    The reference's manifold stays. Recall is not smooth in its samples, and a jackknife then errs on the wide side:
    its interval was measured 1.4 to 1.8 times as wide as needed (coverage 99 %), so it calls more ties than there are.
    """
    reference = _reference(reference)
    x = _checked_for_manifold(features, reference, k)
    sizes = _group_sizes(len(x), count, needed=k + 1)
    inside, covered = _memberships(x, reference, k, sizes)

    hits = torch.stack([part.sum() for part in inside.split(sizes)]).double()
    without = (hits.sum() - hits) / (len(x) - torch.tensor(sizes))
    precision = Estimate.from_replicates(float(hits.sum()) / len(x), without.tolist(), len(x))
    recall = covered.double().mean(1).tolist()
    return precision, Estimate.from_replicates(recall[0], recall[1:], len(x))


def quality(
    features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference | Moments, suffix: str, count: int = 20
) -> dict[str, Estimate]:
    """All distribution metrics of features (N, D) against a reference (M, D), each with its interval.

    Of `Moments` there is `fid_<suffix>` only.

    Keys: `fid_<suffix>`, `kid_<suffix>`, `precision`, `recall`; the suffix names the feature network, so that a metric
    of a suite's own network is never taken for Inception FID. In the space `clip` also `cmmd`. Sample i must come from
    seed i for `paired` to apply.
    Raises ConfigError for non-finite features, another dimension than the reference's, fewer than 4 references, or too
    few samples: 2 in each group, and 4 outside any group.
    """
    reference = reference if isinstance(reference, Moments) else _reference(reference)
    check_int("count", count, 2)
    x = _checked("the features", features, 2 * count, reference.frechet.dimension)
    frechet = jackknife(lambda kept: reference.frechet(x[torch.from_numpy(kept)]), len(x), count)
    if isinstance(reference, Moments):
        return {f"fid_{suffix}": frechet}
    precision, recall = precision_recall_estimate(x, reference, NEIGHBOURS, count)
    values = {
        f"fid_{suffix}": frechet,
        f"kid_{suffix}": kid_estimate(x, reference, count),
        "precision": precision,
        "recall": recall,
    }
    return values | {"cmmd": cmmd_estimate(x, reference, count)} if suffix == "clip" else values


# --- checks ---------------------------------------------------------------------------------------------------------


def _reference(reference: Tensor | np.ndarray | Reference) -> Reference:
    return reference if isinstance(reference, Reference) else Reference(reference)


def _checked(name: str, features: Tensor | np.ndarray, needed: int, dimension: int | None = None) -> Tensor:
    """Features as a float64 CPU tensor (N, D); float16 storage is welcome. Raises ConfigError for what is unusable."""
    x = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ConfigError(f"{name}: found shape {tuple(x.shape)}; needed: (samples, dimensions).")
    if dimension is not None and x.shape[1] != dimension:
        raise ConfigError(
            f"{name}: found {x.shape[1]} dimensions, the reference has {dimension}; "
            "both must come from the same feature network."
        )
    _check_count(name, len(x), needed)
    bad = (~x.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise ConfigError(
            f"{name}: {len(bad)} of {len(x)} samples have non-finite values, the first is sample {int(bad[0])}; "
            "needed: finite features. Sampling diverged there, or their storage type overflowed."
        )
    return x


def _check_count(name: str, found: int, needed: int) -> None:
    if found < needed:
        raise ConfigError(f"{name}: found {found} samples; needed: at least {needed}.")


def _checked_for_manifold(features: Tensor | np.ndarray, reference: Reference, k: int) -> Tensor:
    check_int("k", k, 1)
    return _checked("the features", features, k + 1, reference.features.shape[1])


def _group_sizes(n: int, count: int, needed: int) -> list[int]:
    """Sizes of the contiguous groups of `groups`; raises unless `needed` samples remain without any one group."""
    sizes = np.bincount(groups(n, count)).tolist()
    _check_count("the features without one jackknife group", n - max(sizes), needed)
    return sizes


# --- blocked pairwise sums and distances -----------------------------------------------------------------------------


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    """KID's (x_i . y_j / D + 1)^3."""
    kernel = (x @ y.T).div_(x.shape[1]).add_(1)
    return kernel * kernel * kernel  # far faster than pow(3)


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    """CMMD's exp(-|x_i - y_j|^2 / (2 sigma^2))."""
    return _squared_distances(x, y).mul_(-0.5 / CMMD_SIGMA**2).exp_()


def _directions(name: str, x: Tensor) -> Tensor:
    """x (N, D) scaled to rows of length 1."""
    lengths = x.norm(dim=1, keepdim=True)
    if (zeros := (lengths == 0).flatten().nonzero().flatten()).numel():
        raise ConfigError(f"{name}: {len(zeros)} of {len(x)} are 0, the first is sample {int(zeros[0])}; CMMD needs "
                          "a direction.")  # fmt: skip
    return x / lengths


def _kernel_sums(
    x: Tensor, y: Tensor, x_sizes: list[int], y_sizes: list[int], kernel: Kernel, skip_diagonal: bool = False
) -> Tensor:
    """Sums of a kernel over contiguous groups: out[g, h] = sum_{i in g, j in h} k(x_i, y_j), float64."""
    by_row = torch.empty(len(x), len(y_sizes), dtype=torch.float64)
    for rows in _row_blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        if skip_diagonal:
            values.diagonal(rows.start).zero_()
        by_row[rows] = torch.stack([part.sum(1) for part in values.split(y_sizes, 1)], 1)
    return torch.stack([part.sum(0) for part in by_row.split(x_sizes)])


def _pair_mean(y: Tensor, kernel: Kernel) -> float:
    """mean_{i != j} k(y_i, y_j)."""
    m = len(y)
    return float(_kernel_sums(y, y, [m], [m], kernel, skip_diagonal=True)) / (m * (m - 1))


def _mmd(x: Tensor, y: Tensor, yy_mean: float, kernel: Kernel) -> float:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j); the second is given."""
    xx = _kernel_sums(x, x, [len(x)], [len(x)], kernel, skip_diagonal=True).sum()
    xy = _kernel_sums(x, y, [len(x)], [len(y)], kernel).sum()
    return float(_mmd_of_sums(xx, xy, len(x), len(y), yy_mean))


def _mmd_estimate(x: Tensor, y: Tensor, yy_mean: float, kernel: Kernel, count: int, scale: float = 1.0) -> Estimate:
    """scale * `_mmd` with its interval.

    With B_gh the sum of k(x_i, x_j), i != j, over groups g and h, the kept sum without group g is
    sum B - 2 sum_h B_gh + B_gg.
    """
    sizes = _group_sizes(len(x), count, needed=2)
    xx = _kernel_sums(x, x, sizes, sizes, kernel, skip_diagonal=True)
    xy = _kernel_sums(x, y, sizes, [len(y)], kernel)[:, 0]

    value = scale * _mmd_of_sums(xx.sum(), xy.sum(), len(x), len(y), yy_mean)
    kept_xx, kept_n = xx.sum() - 2 * xx.sum(1) + xx.diagonal(), len(x) - torch.tensor(sizes)
    replicates = scale * _mmd_of_sums(kept_xx, xy.sum() - xy, kept_n, len(y), yy_mean)
    return Estimate.from_replicates(float(value), replicates.tolist(), len(x))


def _mmd_of_sums(xx: Tensor, xy: Tensor, n: int | Tensor, m: int, yy_mean: float) -> Tensor:
    return xx / (n * (n - 1)) + yy_mean - 2 * xy / (n * m)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    products = torch.addmm(x.square().sum(1, keepdim=True) + y.square().sum(1), x, y.T, alpha=-2)
    return products.clamp_(min=0)


def _neighbour_radii(x: Tensor, k: int, sizes: list[int]) -> Tensor:
    """Squared distance to the k-th nearest other sample: of all (column 0), and of those outside group g (1 + g).

    Shape (N, 1 + G). A sample has radius -1 where its own group is left out: its ball then holds nothing. The k nearest
    of each group are enough to know the k-th nearest of any union of groups.
    """
    radii = torch.empty(len(x), 1 + len(sizes), dtype=torch.float64)
    for rows in _row_blocks(len(x), len(x)):
        distances = _squared_distances(x[rows], x)
        distances.diagonal(rows.start).fill_(torch.inf)
        nearest = [part.topk(min(k, part.shape[1]), 1, largest=False).values for part in distances.split(sizes, 1)]
        radii[rows, 0] = torch.cat(nearest, 1).kthvalue(k).values
        for g in range(len(sizes)):
            if outside := nearest[:g] + nearest[g + 1 :]:  # empty only where there is a single group
                radii[rows, 1 + g] = torch.cat(outside, 1).kthvalue(k).values
    for g, members in enumerate(torch.arange(len(x)).split(sizes)):
        radii[members, 1 + g] = -1.0
    return radii


def _memberships(x: Tensor, reference: Reference, k: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Which features lie in the reference's manifold (N,), which references in that of the features (1 + G, M).

    Row 0 of the second is with all features, row 1 + g without group g.
    """
    x, y = x - reference.centre, reference.features - reference.centre
    x_radii, y_radii = _neighbour_radii(x, k, sizes), reference.squared_radii(k)
    inside = torch.empty(len(x), dtype=torch.bool)
    covered = torch.zeros(1 + len(sizes), len(y), dtype=torch.bool)
    for rows in _row_blocks(len(x), len(y)):
        distances = _squared_distances(x[rows], y)
        inside[rows] = (distances <= y_radii).any(1)
        for row, radius in zip(covered, x_radii[rows].T, strict=True):
            row |= (distances <= radius[:, None]).any(0)
    return inside, covered
