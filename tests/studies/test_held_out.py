"""FID to held-out images: against numpy, what it does to ids, and where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.evaluation.score import held_out_fid
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite

SMALL = {"n": 60, "distance_n": 60, "batch": 60, "shard": 60, "device": "cpu", "timing": False}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)), the root by eigenvalues."""
    c, d = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(c @ d).real.clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * root)


def test_it_is_the_frechet_distance_to_the_images_given():
    rng = np.random.default_rng(0)
    samples, real = rng.normal(size=(200, 5)), rng.normal(0.3, 1.2, size=(300, 5))
    found = held_out_fid(torch.from_numpy(samples), torch.from_numpy(real), 10)
    assert found.value == pytest.approx(frechet(samples, real), rel=1e-6)
    assert found.lo < found.value < found.hi


def test_a_record_has_it_where_it_is_asked_for(tmp_path, digits):
    recipe = Recipe(method("sampler", "ddim", steps=2))
    asked = Runner(digits, Evaluation(**SMALL, held_out=True), Results(tmp_path))
    plain = Runner(digits, Evaluation(**SMALL), Results(tmp_path))
    assert asked.quality_id(recipe) != plain.quality_id(recipe)
    own = asked.quality(recipe)
    assert plain.missing_samples(recipe) == 0, "the same shards are scored"
    values = own["values"]
    assert values.pop("held_out_fid")["value"] > 0
    assert own["held_out"]["n"] == 512
    bare = plain.quality(recipe)
    assert bare["values"] == values
    assert "held_out" not in bare


def test_without_held_out_images_it_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="suite 'mixture' has none"):
        Runner(MixtureSuite(), Evaluation(**SMALL, held_out=True), Results(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluation\.held_out is 3"):
        Evaluation(**SMALL, held_out=3)
