"""Records of the epoch before: what they become is what computing them anew gives, without a sample."""

import pytest

from accel.core.recipe import Recipe
from accel.evaluation.score import EPOCH
from accel.metrics import precision_recall
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

SMALL = {"n": 60, "distance_n": 60, "batch": 60, "shard": 60, "device": "cpu", "timing": False}
RECIPE = Recipe(method("sampler", "ddim", steps=2))


def as_before(runner: Runner, monkeypatch) -> dict:
    """The record of RECIPE as epoch 2 made it: recall's halves as they are, under that epoch's id."""
    plain = precision_recall.half_samples.halves_estimate
    with monkeypatch.context() as patch:
        patch.setattr(precision_recall.half_samples, "halves_estimate", lambda *given: plain(*given[:4]))
        record = runner._compute_quality(RECIPE, runner.quality_id(RECIPE, EPOCH - 1))
    runner.results.save(record | {"epoch": EPOCH - 1})
    return record


def test_it_is_what_computing_anew_gives_and_makes_no_sample(tmp_path, digits, monkeypatch):
    runner = Runner(digits, Evaluation(**SMALL), Results(tmp_path / "one"))
    before = as_before(runner, monkeypatch)
    anew = Runner(digits, Evaluation(**SMALL), Results(tmp_path / "other")).quality(RECIPE)
    monkeypatch.setattr(Runner, "shards", None)
    assert runner.scored(RECIPE, keep=False)["id"] == anew["id"]
    assert runner.results.load("quality", anew["id"]) is None, "a plan writes nothing"
    found = runner.quality(RECIPE)
    assert (found["id"], found["epoch"]) == (anew["id"], EPOCH)
    assert found["values"].keys() == anew["values"].keys()
    for name, value in anew["values"].items():
        assert found["values"][name]["replicates"] == pytest.approx(value["replicates"], rel=1e-12), name
        assert found["values"][name]["hi"] == pytest.approx(value["hi"], rel=1e-12), name
    width = [record["values"]["recall"]["hi"] - record["values"]["recall"]["lo"] for record in (found, before)]
    assert width[0] / width[1] == pytest.approx((2 * (1285 + 180) / (2 * 1285 + 180)) ** 0.5)
    assert found["values"]["recall"]["value"] == before["values"]["recall"]["value"]
    assert runner.results.load("quality", anew["id"])["values"] == found["values"], "it is saved"
    pictures = [runner.results.path("quality", one["id"]).with_suffix(".png").read_bytes() for one in (found, before)]
    assert pictures[0] == pictures[1]


def test_what_was_never_computed_is_not_there(tmp_path, digits):
    assert Runner(digits, Evaluation(**SMALL), Results(tmp_path)).scored(RECIPE) is None
