"""The benchmark of executed precisions: its error measure, what it resumes, its ratios and its page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from accel.benches import precision_speed
from accel.benches.precision_speed import (
    COMPILED,
    CONTROL,
    SIZES,
    VARIANTS,
    decibel,
    identity,
    measure_apart,
    measure_precision,
    pending,
    text_to_image,
)
from accel.benches.precision_table import page, slug, write_precision
from accel.core.environment import with_provenance
from accel.core.recipe import Recipe, accelerate
from accel.errors import IncompatibleError
from accel.evaluation.intervals import ratio_interval
from accel.records import Results


def test_decibel_of_known_errors():
    x = torch.full((4,), 10.0)
    assert decibel(x, x + 1) == pytest.approx(20)
    assert decibel(x, x * 1.001) == pytest.approx(60, abs=1e-3)
    assert decibel(x, x) is None


def test_ratio_of_separate_series():
    rng = np.random.default_rng(0)
    a, b = rng.normal(6, 0.1, 30), rng.normal(2, 0.1, 20)
    found = ratio_interval(a, b)
    assert found["value"] == pytest.approx(np.median(a) / np.median(b))
    assert found["lo"] < 3 < found["hi"]
    assert 0.05 < found["hi"] - found["lo"] < 0.4
    assert ratio_interval(np.full(5, 3.0), np.full(7, 2.0)) == {"value": 1.5, "lo": 1.5, "hi": 1.5}


def test_variants_are_named_once_and_none_is_simulated():
    assert len(VARIANTS) == 1 + len(precision_speed.METHODS)
    assert COMPILED in VARIANTS
    assert all(method.kind == "executed" for method in precision_speed.METHODS)


def test_a_cast_is_measured(monkeypatch):
    """The shipped digits network in this process: numbers that fit together."""
    monkeypatch.setattr(precision_speed, "BLOCK", 0.0)
    plain, cast = (measure_precision(SIZES["tiny"], variant, 1) for variant in (CONTROL, "bf16"))
    assert plain["sqnr"] == [None] * 4, "the plain network against itself"
    assert all(25 < x < 60 for x in cast["sqnr"])
    assert cast["model_bytes"] == plain["model_bytes"] // 2
    for found in (plain, cast):
        assert found["rounds"] == len(found["ratios"]) == found["calls"] == 1
        assert found["timesteps"][0] > found["timesteps"][-1]
        assert found["setup_s"] > 0
        assert found["calibration_s"] == 0


def test_what_cannot_run_says_why():
    with pytest.raises(IncompatibleError, match="tf32 needs a CUDA device"):
        measure_precision(SIZES["tiny"], "tf32", 1)


def test_text_to_image_networks_run():
    pipe, sample = text_to_image((32, 32, 32, 32), 8, 4, 8)
    with accelerate(pipe, Recipe(precision_speed.SAMPLER)) as run:
        sample(Recipe(precision_speed.SAMPLER), 0, 2)
    assert run.nfe == precision_speed.SAMPLER.steps


class Ended:
    returncode, stdout = -9, "loading\nKilled\n"


def test_a_process_that_dies_is_a_reason(monkeypatch):
    seen = {}

    def run(command, env, **kwargs):
        seen.update(env)
        return Ended

    monkeypatch.setattr(precision_speed, "environment", lambda device: WHERE)
    monkeypatch.setattr(precision_speed.subprocess, "run", run)
    found = measure_apart("tiny", "fp16", 3, threads=1)
    assert found["reason"] == "its process ended with code -9: Killed"
    assert (seen["OMP_NUM_THREADS"], found["environment"]["threads"]) == ("1", 1)
    assert "TORCHINDUCTOR_CACHE_DIR" in seen, "compilers start with an empty cache"


# --- records


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """stored(variant, speed=None, ...) saves a record; without a speed, a refusal."""
    results = Results(tmp_path)
    monkeypatch.setattr(precision_speed, "environment", lambda device: WHERE)

    def stored(variant, speed=None, size="tiny", rounds=10, **other):
        record = {
            "kind": "precision", "id": identity(size, variant, WHERE | {"threads": 1}), "size": size,
            "variant": variant, "place": [list(SIZES).index(size), list(VARIANTS).index(variant)],
            "isa": ["avx512_vnni"],
            **precision_speed.made_of(variant, WHERE | {"threads": 1}),
        }  # fmt: skip
        ratios = [] if speed is None else [speed * (1 + 0.01 * i) for i in (-2, -1, 0, 1, 2)]
        around = {"value": speed, "lo": speed and speed * 0.98, "hi": speed and speed * 1.02}
        record |= {"reason": "it needs | a GPU"} if speed is None else {
            "rounds": rounds, "calls": 3, "clock": "processor time", "ms": {k: 8 / v for k, v in around.items()},
            "ratios": ratios, "speedup": around, "aa": {"value": 1.0, "lo": 0.99, "hi": 1.01}, "timesteps": [999, 20],
            "sqnr": [None, None] if variant == CONTROL else [38.04, 36.2], "model_bytes": 4_500_000, "setup_s": 61.23,
            "calibration_s": 0.0, "setup_peak_bytes": 312_000_000, "peak_bytes": 101_000_000,
        }  # fmt: skip
        results.save(record | other)
        return results

    return stored


WHERE = {"device": "cpu", "device_name": "Testchip 9 (AVX2)", "threads": 2, "packages": {"torch": "2.13.0"}}


def test_the_page(stored):
    stored(CONTROL, 1.0)
    stored("bf16", 1.2)
    stored("tf32")
    results = stored(COMPILED, 2.4)
    md, csv = write_precision(results)
    assert md.name == "precision_executed_testchip_9_avx2.md"
    text = md.read_text()
    assert "# Executed precision on Testchip 9 (AVX2)" in text
    assert "Instructions: avx512_vnni." in text
    assert "## tiny, 1 thread\n\n10 rounds, processor time; float32 takes 8.00 ms. SQNR at t = 999, 20." in text
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert list(rows) == ["precision", CONTROL, "bf16", COMPILED]
    assert "| 1.200 [1.176, 1.224] | 1.000 [0.990, 1.010] | 0.500 [0.485, 0.515] | 38.0 36.2 | 4.5 |" in rows["bf16"]
    assert rows["bf16"].endswith("| 312 / 101 | 61.2 |")
    assert " | 1 | " in rows[COMPILED]
    assert " | exact | " in rows[CONTROL]
    assert "* tf32: it needs | a GPU" in text
    table = pd.read_csv(csv)
    assert table["precision"].tolist() == [CONTROL, "tf32", "bf16", COMPILED]
    assert set(table["kind"]) == {"executed"}
    assert table["sqnr_db_min"].tolist()[2] == 36.2
    assert write_precision(results)[0].read_text() == text


def test_a_page_of_refusals_only(stored):
    results = stored("tf32", size="mid-size")
    assert "## mid-size, 1 thread" in page(results.all("precision"))
    assert "| tf32 | it needs" in page(results.all("precision"))


def test_nothing_without_records(tmp_path):
    assert write_precision(Results(tmp_path)) == []
    assert slug("NVIDIA H200") == "nvidia_h200"


def test_what_is_stored_is_not_measured_again(stored):
    every = [("tiny", variant) for variant in VARIANTS]
    stored("tf32")
    results = stored("bf16", 1.2, rounds=10)
    assert pending(results, ["tiny"], 10, 1) == [x for x in every if x[1] != "bf16"], "refusals are tried again"
    assert pending(results, ["tiny"], 11, 1) == every, "more rounds were asked for"
    assert ("tiny", "bf16") in pending(results, ["tiny"], 10, 2), "other threads"
    [kept] = (m for m in results.all("precision") if m["variant"] == "bf16")
    results.save(with_provenance(kept))
    assert ("tiny", "bf16") not in pending(results, ["tiny"], 10, 1), "what made a record is not what it depends on"
    results = stored("bf16", 1.2, libraries={"torchao": "another"})
    assert pending(results, ["tiny"], 10, 1) == every, "other versions"
    assert len(results.all("precision")) == 2, "a new measurement replaces the old one"
    assert pending(results, ["mid-size"], 10, 1)[0] == ("mid-size", CONTROL)
