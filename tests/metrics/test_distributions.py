"""FID, KID, precision and recall against independent computations, and the coverage of FID's intervals."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from accel.errors import ConfigError
from accel.metrics import features as module
from accel.metrics.distributions import quality
from accel.metrics.features import Reference
from accel.metrics.fid import FrechetDistance, Moments, fid
from accel.metrics.kid import kid, kid_estimate
from accel.metrics.precision_recall import precision_recall, precision_recall_estimate
from accel.metrics.statistics import groups, jackknife, paired

DIM = 12


def gaussian(n: int, d: int = DIM, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """Correlated features (n, d); the mixing is the same for all seeds, the spectrum decays."""
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return scale * z @ mixing + shift


def frechet_closed_form(mean_a, cov_a, mean_b, cov_b) -> float:
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def moments(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return x.numpy().mean(0), np.cov(x.numpy().T)


# --- FID ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 500])
def test_fid_is_the_closed_form_of_the_sample_moments(n):
    x, y = gaussian(n, seed=1, shift=0.3, scale=1.2), gaussian(400, seed=2)
    assert fid(x, y) == pytest.approx(frechet_closed_form(*moments(x), *moments(y)), abs=1e-6)


def test_fid_of_fewer_samples_than_dimensions():
    x, y = gaussian(8, seed=1, shift=0.3), gaussian(400, seed=2)
    assert fid(x, y) == pytest.approx(frechet_closed_form(*moments(x), *moments(y)), abs=1e-5)


@pytest.mark.parametrize("known", ["features", "moments"])
def test_fid_of_few_samples_is_that_of_torchmetrics(known):
    """The small symmetric eigenvalue problem, beside the general one of the whole covariances."""
    x, y = torch.randn(40, 64, dtype=torch.float64), 1.2 * torch.randn(300, 64, dtype=torch.float64) + 0.3
    distance = FrechetDistance(y if known == "features" else Moments(y.mean(0), y.T.cov(), len(y)))
    metric = distance._metric
    metric.update(x, real=False)
    assert distance(x) == pytest.approx(float(metric.compute()), rel=1e-5)
    assert distance(x) == distance(x)


def test_fid_of_a_pure_shift_is_its_squared_length():
    x = gaussian(100)
    assert fid(x + 0.5, x) == pytest.approx(DIM * 0.25, abs=1e-6)
    assert fid(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_ignores_order_and_rotation_but_not_scale():
    x, y = gaussian(200, seed=1, shift=0.2), gaussian(300, seed=2)
    base = fid(x, y)
    assert fid(x.flip(0), y) == pytest.approx(base, rel=1e-9)
    rotation = torch.linalg.qr(gaussian(DIM, seed=5)).Q
    assert fid(x @ rotation, y @ rotation) == pytest.approx(base, rel=1e-8)
    assert fid(2 * x, 2 * y) == pytest.approx(4 * base, rel=1e-8)


def test_the_reference_moments_survive_repeated_use():
    frechet = FrechetDistance(gaussian(300, seed=2))
    x, other = gaussian(100, seed=1), gaussian(80, seed=3, shift=2.0)
    first = frechet(x)
    assert frechet(other) > first
    assert frechet(x) == first


@pytest.mark.parametrize("n", [100, 400])
def test_float16_storage_changes_fid_negligibly(n):
    x, y = gaussian(n, seed=1, shift=0.2), gaussian(600, seed=2)
    exact, stored = fid(x, y), fid(x.half(), y.half())
    assert stored != exact
    assert stored == pytest.approx(exact, rel=1e-4)


def test_float32_features_are_summed_in_float64():
    """Squares of a mean of 1e4 need 8 more digits than the spread of 1: float32 sums would lose the covariance."""
    x, y = gaussian(500, seed=1), gaussian(500, seed=2)
    far_x, far_y = (x + 1e4).float(), (y + 1e4).float()
    assert fid(far_x, far_y) == pytest.approx(fid(far_x.double() - 1e4, far_y.double() - 1e4), rel=1e-5)


# --- KID ------------------------------------------------------------------------------------------------------------


def test_kid_matches_torchmetrics_where_sizes_are_equal():
    x, y = gaussian(64, seed=1, shift=0.3), gaussian(64, seed=2)
    assert kid(x, y) == pytest.approx(float(poly_mmd(y, x)), rel=1e-10)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # it announces that it keeps all features
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=64)
        metric.update(y, real=True)
        metric.update(x, real=False)
        assert kid(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-10)


def brute_kid(x: torch.Tensor, y: torch.Tensor) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal(a):
        values = kernel(a, a)
        return values[~torch.eye(len(a), dtype=torch.bool)].mean()

    return float(off_diagonal(x) + off_diagonal(y) - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("block", [None, 37])
def test_kid_of_unequal_sizes_and_its_replicates_match_brute_force(block, monkeypatch):
    if block:
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", block * 90)
    x, y = gaussian(130, seed=1, shift=0.3), gaussian(90, seed=2)
    group = torch.from_numpy(groups(130, 20))
    estimate = kid_estimate(x, y)
    assert kid(x, y) == pytest.approx(brute_kid(x, y), rel=1e-10)
    assert estimate.value == pytest.approx(brute_kid(x, y), rel=1e-10)
    assert estimate.replicates == pytest.approx([brute_kid(x[group != g], y) for g in range(20)], rel=1e-10)


def test_kid_is_unbiased_at_any_sizes():
    """In one dimension E = sum_p C(3, p) (E x^p - E y^p)^2; 3000 repeats, 4 standard errors of their mean."""
    generator, n, m, mean, sd = torch.Generator().manual_seed(0), 7, 11, 0.5, 0.6
    values, with_diagonals = [], []
    for _ in range(3000):
        x = mean + sd * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        y = sd * torch.randn(m, 1, generator=generator, dtype=torch.float64)
        values.append(kid(x, y))
        with_diagonals.append(
            float(sum(c * (x**p).mean().sub((y**p).mean()) ** 2 for p, c in ((1, 3), (2, 3), (3, 1))))
        )
    truth = 3 * mean**2 + 3 * mean**4 + (mean**3 + 3 * mean * sd**2) ** 2
    error = np.std(values) / len(values) ** 0.5
    assert np.mean(values) == pytest.approx(truth, abs=4 * error)
    # What is told apart: the V-statistic, which keeps the diagonals, is biased by far more than that.
    assert np.mean(with_diagonals) > truth + 12 * error


def test_kid_of_the_same_distribution_is_zero_within_its_interval():
    """At 99.7 %, three standard errors; a biased estimate misses it by far."""
    estimate = kid_estimate(gaussian(500, seed=1), gaussian(500, seed=2))
    assert abs(estimate.value) < 3 * estimate.se
    assert kid_estimate(gaussian(500, seed=1, shift=0.3), gaussian(500, seed=2)).lo > 0


# --- precision and recall -------------------------------------------------------------------------------------------


def brute_precision_recall(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[float, float]:
    def distances(a, b):
        return (a[:, None] - b[None]).square().sum(-1).sqrt()

    def share_inside(points, support):
        radii = distances(support, support).sort(1).values[:, k]  # index 0 is the point itself
        return float((distances(points, support) <= radii).any(1).double().mean())

    return share_inside(x, y), share_inside(y, x)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [None, 37])
def test_precision_recall_and_their_replicates_match_brute_force(k, block, monkeypatch):
    if block:
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", block * 90)
    x, y = gaussian(66, d=4, seed=1, shift=0.5, scale=0.9), gaussian(90, d=4, seed=2)
    group = torch.from_numpy(groups(66, 20))  # groups of 3 and 4: smaller and larger than k + 1
    precision, recall = precision_recall_estimate(x, y, k)
    assert precision_recall(x, y, k) == brute_precision_recall(x, y, k)
    assert (precision.value, recall.value) == brute_precision_recall(x, y, k)
    brute = [brute_precision_recall(x[group != g], y, k) for g in range(20)]
    assert 0 < precision.value < 1
    assert 0 < recall.value < 1
    assert precision.replicates == pytest.approx([p for p, _ in brute], abs=1e-12)
    assert len(recall.replicates) == 20  # whose halves are in test_half_samples.py


def test_the_boundary_belongs_to_the_manifold():
    reference = torch.arange(5.0)[:, None]  # k = 1: every ball has radius 1, the manifold is [-1, 5]
    features = torch.tensor([[-1.0], [-1.5], [5.0], [5.5]])  # the mean, 2, is exact: no rounding at the boundary
    assert precision_recall(features, reference, k=1)[0] == 0.5
    assert precision_recall(reference, features, k=1)[1] == 0.5


def test_identical_sets_have_precision_and_recall_one():
    x = gaussian(80)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_disjoint_sets_have_precision_and_recall_zero():
    assert precision_recall(gaussian(80, seed=1, shift=1000.0), gaussian(80, seed=2)) == (0.0, 0.0)


def test_a_dropped_mode_costs_recall_and_not_precision():
    modes = torch.tensor([0.0, 100.0, 200.0, 300.0], dtype=torch.float64)
    reference = gaussian(400, d=2, seed=1) + modes.repeat_interleave(100)[:, None]
    all_modes = gaussian(400, d=2, seed=2) + modes.repeat_interleave(100)[:, None]
    one_dropped = gaussian(400, d=2, seed=2) + modes[:3].repeat(134)[:400, None]
    precision, recall = precision_recall(all_modes, reference)
    precision_dropped, recall_dropped = precision_recall(one_dropped, reference)
    assert precision > 0.9
    assert recall > 0.9
    assert precision_dropped > 0.9
    assert recall_dropped == pytest.approx(0.75 * recall, abs=0.05)


def test_samples_outside_the_modes_cost_precision_and_not_recall():
    x, y = gaussian(400, d=2, seed=1), gaussian(400, d=2, seed=2)
    mixed = torch.cat([x, 1e3 + 1e3 * torch.arange(100, dtype=torch.float64)[:, None].expand(100, 2)])
    precision, recall = precision_recall(x, y)
    assert precision_recall(mixed, y)[0] == pytest.approx(0.8 * precision, abs=1e-12)
    assert precision_recall(mixed, y)[1] >= recall


def test_a_distant_mean_does_not_cost_digits():
    x, y = gaussian(120, d=4, seed=1), gaussian(120, d=4, seed=2)
    assert precision_recall(x + 1e8, y + 1e8) == precision_recall(x, y)


# --- intervals ------------------------------------------------------------------------------------------------------


def test_fid_intervals_cover_95_percent():
    """What each interval covers, at N / D = 8, for runs A and B on common seeds whose samples correlate 0.9.

    300 repeats: the binomial sd at 95 % is 1.3 %, 3 sd are 3.8 %. E[FID_N] is taken as the mean over the repeats.
    """
    n, d, repeats = 160, 20, 300
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5

    def noise() -> torch.Tensor:
        return torch.randn(n, d, generator=generator, dtype=torch.float64)

    reference = spectrum * torch.randn(1000, d, generator=generator, dtype=torch.float64)
    frechet = FrechetDistance(reference)
    shift, scale = (0.1, 0.2), (1.05 * spectrum, 1.15 * spectrum)
    limit = [
        frechet_closed_form(np.full(d, shift[i]), np.diag(scale[i].numpy() ** 2), *moments(reference)) for i in (0, 1)
    ]
    a, b = [], []
    for _ in range(repeats):
        shared, own = noise(), noise()
        for runs, z, i in ((a, shared, 0), (b, 0.9 * shared + 0.19**0.5 * own, 1)):
            x = scale[i] * z + shift[i]
            runs.append(jackknife(lambda kept, x=x: frechet(x[torch.from_numpy(kept)]), n))
    difference = [paired(right, left) for left, right in zip(a, b, strict=True)]

    def covered(intervals, target) -> float:
        return np.mean([low <= target <= high for low, high in intervals])

    for name, runs, truth in (("A", a, limit[0]), ("B", b, limit[1]), ("B - A", difference, limit[1] - limit[0])):
        plain, corrected = [(e.lo, e.hi) for e in runs], [e.corrected_interval for e in runs]
        expected = np.mean([e.value for e in runs])
        print(f"{name}: E[FID_N] {covered(plain, expected):.3f}, FID_inf corrected {covered(corrected, truth):.3f}")
        assert covered(plain, expected) == pytest.approx(0.95, abs=0.038)
        assert covered(corrected, truth) == pytest.approx(0.95, abs=0.038)
    # The centre matters: FID_N is too biased here for its own interval to hold FID_inf, and in a difference it is not.
    assert covered([(e.lo, e.hi) for e in a], limit[0]) < 0.5
    assert covered([(e.lo, e.hi) for e in difference], limit[1] - limit[0]) == pytest.approx(0.95, abs=0.038)
    # Common seeds are what makes the difference sharp: independent runs would need the root of the summed variances.
    assert np.mean([e.se for e in difference]) < 0.7 * np.mean(
        [np.hypot(x.se, y.se) for x, y in zip(a, b, strict=True)]
    )


# --- all together ---------------------------------------------------------------------------------------------------


def test_quality_collects_each_metric_under_its_name():
    x, y = gaussian(100, seed=1, shift=0.2), gaussian(150, seed=2)
    scores = quality(x, y, "digits", count=10)
    assert list(scores) == ["fid_digits", "kid_digits", "precision", "recall"]
    assert scores["fid_digits"].value == pytest.approx(fid(x, y), rel=1e-12)
    assert scores["kid_digits"].value == pytest.approx(kid(x, y), rel=1e-10)
    assert (scores["precision"].value, scores["recall"].value) == precision_recall(x, y)
    assert {k: e.design for k, e in scores.items()} == dict.fromkeys(scores, (100, 10, 1)) | {"recall": (100, 8, 1)}
    group = torch.from_numpy(groups(100, 10))
    assert scores["fid_digits"].replicates[4] == pytest.approx(fid(x[group != 4], y), rel=1e-10)


def test_one_reference_serves_many_runs_unchanged():
    y = gaussian(150, seed=2)
    reference = Reference(y)
    for seed in (1, 3):
        x = gaussian(60, seed=seed)
        assert quality(x, reference, "a") == quality(x, y, "a")


def test_numpy_and_float16_are_accepted():
    x, y = gaussian(60, seed=1).half(), gaussian(90, seed=2).half()
    assert quality(x.numpy(), y.numpy(), "a") == quality(x.double(), y.double(), "a")


def with_nan(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[[7, 20], 3] = torch.nan
    return x


GOOD = gaussian(60, seed=1)


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (with_nan(GOOD), GOOD, "the features: 2 of 60 samples have non-finite values, the first is sample 7"),
        (GOOD, with_nan(GOOD), "the reference: 2 of 60 samples have non-finite values"),
        ((GOOD * 1e6).half(), GOOD, "storage type overflowed"),
        (GOOD[:39], GOOD, "the features: found 39 samples; needed: at least 40"),
        (GOOD, GOOD[:3], "the reference: found 3 samples; needed: at least 4"),
        (GOOD[:, :5], GOOD, "found 5 dimensions, the reference has 12"),
        (GOOD[0], GOOD, r"found shape \(12,\)"),
        (GOOD, GOOD[None], r"the reference: found shape \(1, 60, 12\)"),
    ],
)
def test_unusable_features_are_refused_with_found_and_needed(features, reference, message):
    with pytest.raises(ConfigError, match=message):
        quality(features, reference, "a")


@pytest.mark.parametrize("count", [1, 0, 2.0])
def test_a_jackknife_needs_two_groups(count):
    with pytest.raises(ConfigError, match="count"):
        quality(GOOD, GOOD, "a", count=count)


def test_each_metric_states_its_own_minimum():
    with pytest.raises(ConfigError, match="found 1 samples; needed: at least 2"):
        fid(GOOD[:1], GOOD)
    with pytest.raises(ConfigError, match="found 1 samples; needed: at least 2"):
        kid(GOOD[:1], GOOD)
    with pytest.raises(ConfigError, match="found 5 samples; needed: at least 6"):
        precision_recall(GOOD[:5], GOOD, k=5)
    with pytest.raises(ConfigError, match="without one jackknife group: found 3 samples; needed: at least 4"):
        precision_recall_estimate(GOOD[:6], GOOD, k=3, count=2)
    with pytest.raises(ConfigError, match="k is 0"):
        precision_recall(GOOD, GOOD, k=0)
