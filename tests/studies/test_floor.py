"""The floor: real images in the rotation of classes that samples have."""

import pytest

from accel.metrics.statistics import Estimate
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.floor import floor, rotation
from accel.studies.runner import Runner
from accel.suites.digits import DigitsSuite, data


def test_a_rotation_takes_each_sample_once_and_ends_with_the_last_whole_period():
    strata = [0, 0, 2, 1, 2, 1, 0, 2]
    for period, whole in (([0, 1, 2], 2), ([2, 0], 3), ([0, 3], 0)):
        drawn = rotation(strata, period)
        assert [strata[i] for i in drawn] == period * whole
        assert len(set(drawn)) == len(drawn)
    assert rotation([0] * 50, [0]) != list(range(50)), "neighbours are of one writer"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    results = Results(tmp_path_factory.mktemp("floor"))
    return {n: floor(Runner(DigitsSuite(), Evaluation(n=n, device="cpu"), results)) for n in (256, 2000)}


def test_it_is_of_as_many_of_each_digit_and_says_how_many_there_are(made):
    least = min(data.load("held_out")[1].bincount().tolist())
    assert {n: record["n"] for n, record in made.items()} == {256: 256, 2000: 10 * least}
    assert {v["period"] for v in made[256]["values"].values()} == {10}
    assert made[256]["id"] != made[2000]["id"]


def test_it_is_no_artefact_of_the_classes_shares(made):
    """The first 256 held-out digits have 20 to 31 of each class, and a FID of 4.8; 26 of each have about 1.1."""
    values = {n: {k: Estimate.from_dict(v) for k, v in record["values"].items()} for n, record in made.items()}
    assert values[256]["fid_digits"].value < 2
    assert values[2000]["fid_digits"].value < values[256]["fid_digits"].value
    for own in values.values():
        assert abs(own["kid_digits"].value) < 4 * own["kid_digits"].se
        assert own["accuracy"].value > 0.97
