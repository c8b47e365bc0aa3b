"""Values of a run: each under a name of its own."""

from types import SimpleNamespace

import pytest
import torch

from accel.errors import ConfigError
from accel.evaluation.score import distances, score

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
