"""Reference metrics of whole runs: what is compared with what, and what their setting does to ids."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from accel.caching import DeepCache
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.records import Results
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite
from accel.testing.suites import TinySuite

DDIM = DiffusersSampler("DDIMScheduler", 3, "ddim", {"set_alpha_to_one": True})
SMALL = {"n": 60, "distance_n": 60, "shard": 60, "device": "cpu", "timing": False}


@dataclass(frozen=True)
class Quick(TinySuite):
    def converged(self, guidance):
        return Recipe(DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True}), guidance=guidance)


def runner(root, *metrics, suite=None) -> Runner:
    return Runner(suite or Quick(), Evaluation(**SMALL, reference_metrics=metrics), Results(root))


def test_a_cached_run_is_compared_with_the_converged_and_with_the_uncached_one(tmp_path):
    cached, plain = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    measured = runner(tmp_path, "psnr", "ssim", "sharpness")
    own, other = measured.quality(cached), measured.quality(plain)
    values = own["values"]
    assert {"psnr", "psnr_to_plain", "ssim", "ssim_to_plain", "sharpness"} < set(values)
    assert "sharpness_to_plain" not in values
    assert values["psnr_to_plain"]["value"] > values["psnr"]["value"]  # a cache changes less than a step too few
    assert {"psnr", "sharpness"} < set(other["values"])
    assert "psnr_to_plain" not in other["values"]
    converged = measured.quality(measured.suite.converged(None))
    assert {"psnr", "distance"} & set(converged["values"]) == set()
    assert converged["values"]["sharpness"]["value"] > 0
    assert own["reference_metrics"]["metrics"] == ["psnr", "ssim", "sharpness"]
    assert own["cost"]["cache_bytes"] > 0
    assert "cache_bytes" not in other["cost"]

    # Without the setting ids are what they were, and the same shards are scored.
    before = runner(tmp_path)
    assert before.quality_id(plain) != measured.quality_id(plain)
    assert before.missing_samples(plain) == 0
    bare = before.quality(plain)
    assert "reference_metrics" not in bare
    assert bare["values"] == {k: v for k, v in other["values"].items() if k not in ("psnr", "ssim", "sharpness")}


def test_what_follows_no_trajectory_has_no_distance_to_one(tmp_path):
    """A distribution student, and a consistency function that gets new noise between its steps."""
    measured, distances = runner(tmp_path, "sharpness"), {}
    for name, sampler, steps in (("pd1", "ddim_accel", 1), ("dmd1", "ddim_accel", 1), ("ect2", "lcm", 2)):
        student = method("student", name)
        values = measured.quality(Recipe(method("sampler", sampler, steps=steps), student=student))["values"]
        assert "sharpness" in values
        distances[name] = "distance" in values
    assert distances == {"pd1": True, "dmd1": False, "ect2": False}
    assert method("student", "ect2").follows(1)


def test_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="suite 'mixture' makes none"):
        runner(tmp_path, "psnr", suite=MixtureSuite())
    with pytest.raises(ConfigError, match=r"unknown evaluation\.reference_metrics 'mse'"):
        Evaluation(**SMALL, reference_metrics=["mse"])
    with pytest.raises(ConfigError, match="there is no file"):
        Runner(
            Quick(), Evaluation(**SMALL, reference_metrics=["lpips"], lpips_weights="no/such.pth"), Results(tmp_path)
        )
