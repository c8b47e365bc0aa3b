"""Values of a run: each under a name of its own."""

import math
from types import SimpleNamespace

import pytest
import torch

from accel.errors import ConfigError
from accel.evaluation.score import distances, score, similarities
from accel.metrics import features
from accel.metrics.distributions import quality
from accel.metrics.fid import Moments
from accel.metrics.similarity import Similarity
from accel.metrics.statistics import Estimate
from accel.suites.base import Reference

SUITE = SimpleNamespace(name="toy", feature_space=None, period=1)
IMAGES = torch.linspace(-1, 1, 60 * 12).view(60, 3, 2, 2)


def test_scores_and_the_distance_are_means_over_samples():
    found = score(SUITE, {"images": IMAGES, "score.sharp": torch.arange(60.0)}, IMAGES[:40] + 0.5)
    assert list(found) == ["sharp", "distance"]
    assert found["sharp"].value == pytest.approx(29.5)
    assert (found["distance"].value, found["distance"].n) == (pytest.approx(0.5), 40)
    assert distances(IMAGES, IMAGES).max() == 0


def test_a_score_with_the_name_of_another_value_is_refused():
    with pytest.raises(ConfigError, match="suite toy: two values are called 'distance'"):
        score(SUITE, {"images": IMAGES, "score.distance": torch.arange(60.0)}, IMAGES)


class Rotating:
    """Sample i is of class i mod 3; features (N, 2)."""

    name, feature_space, period = "rotating", "toy", 3

    def __init__(self, reference: Reference, classes: bool = True) -> None:
        self.reference, self.classes = lambda: reference, classes

    def conditions(self, start, stop):
        return {"class_labels": [i % 3 for i in range(start, stop)]}

    def strata(self, conditions):
        return conditions["class_labels"] if self.classes else None

    def feature_scores(self, x, period=1):
        return {"seen": Estimate.from_replicates(0.0, [0.0] * 20, len(x), period)}


def features_of(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.arange(n) % 3
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + 3 * own[:, None]
    return x.half().double(), own


def test_every_value_has_groups_of_whole_periods_and_kid_knows_the_classes_of_both_sides():
    (x, own), (y, other) = features_of(64, 1), features_of(50, 2)
    known, shards = Reference("toy", y, "0", other), {"features": x.half(), "images": IMAGES, "score.sharp": x[:60, 0]}
    found = score(Rotating(known), shards, IMAGES)
    assert {e.period for e in found.values()} == {3}
    assert found["kid_toy"] == quality(x, features.Reference(y, other), "toy", 20, 3, own)["kid_toy"]
    plain = quality(x, y, "toy", period=3)["kid_toy"]
    for suite in (Rotating(known, classes=False), Rotating(Reference("toy", y, "0"))):
        assert score(suite, shards, None)["kid_toy"] == plain
    assert plain.value < found["kid_toy"].value


def test_moments_and_too_few_periods_are_scored_too():
    x, _ = features_of(60, 1)
    moments = Moments(x.mean(0), x.T.cov(), 60)
    suite = Rotating(Reference("toy", moments, "0"))
    suite.period = 30  # only two of them
    assert {e.period for e in score(suite, {"features": x.half()}, None).values()} == {1}


class Bytes(SimpleNamespace):
    """A suite whose images are bytes already."""

    def to_uint8(self, images):
        return images


def test_reference_metrics_are_means_over_the_pairs_that_there_are():
    suite, metrics = Bytes(name="toy", feature_space=None, period=1), Similarity(("psnr", "sharpness"))
    images = torch.randint(0, 200, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    found = similarities(suite, metrics, images, images[:40] + 5, images + 51)
    assert (found["psnr"].value, found["psnr"].n) == (pytest.approx(20 * math.log10(255 / 5), rel=1e-6), 40)
    assert (found["psnr_to_plain"].value, found["psnr_to_plain"].n) == (pytest.approx(20 * math.log10(5), rel=1e-6), 60)
    assert found["sharpness"].value == pytest.approx(metrics.alone(images)["sharpness"].mean().item())
    assert set(similarities(suite, metrics, images, None, None)) == {"sharpness"}  # the converged recipe itself
    with pytest.raises(ConfigError, match="two values are called 'sharpness'"):
        score(suite, {"images": images, "score.sharpness": torch.arange(60.0)}, None, found)
