"""Values of a run: each under a name of its own."""

import math
from types import SimpleNamespace

import pytest
import torch

from accel.errors import ConfigError
from accel.evaluation.score import distances, score, similarities
from accel.metrics.similarity import Similarity

SUITE = SimpleNamespace(name="toy", feature_space=None)
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


class Bytes(SimpleNamespace):
    """A suite whose images are bytes already."""

    def to_uint8(self, images):
        return images


def test_reference_metrics_are_means_over_the_pairs_that_there_are():
    suite, metrics = Bytes(name="toy", feature_space=None), Similarity(("psnr", "sharpness"))
    images = torch.randint(0, 200, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    found = similarities(suite, metrics, images, images[:40] + 5, images + 51)
    assert (found["psnr"].value, found["psnr"].n) == (pytest.approx(20 * math.log10(255 / 5), rel=1e-6), 40)
    assert (found["psnr_to_plain"].value, found["psnr_to_plain"].n) == (pytest.approx(20 * math.log10(5), rel=1e-6), 60)
    assert found["sharpness"].value == pytest.approx(metrics.alone(images)["sharpness"].mean().item())
    assert set(similarities(suite, metrics, images, None, None)) == {"sharpness"}  # the converged recipe itself
    with pytest.raises(ConfigError, match="two values are called 'sharpness'"):
        score(suite, {"images": images, "score.sharpness": torch.arange(60.0)}, None, found)
