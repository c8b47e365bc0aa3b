"""Who holds the device while something is calibrated, and what that costs."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from accel.core.devices import device_lock
from accel.files import load_tensors
from accel.locks import locked
from accel.records import Results
from accel.studies import calibration as module
from accel.studies.calibration import Calibration
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.testing.quick import recipe
from accel.testing.suites import TinySuite

HELD = 0.3  # seconds of a timing


@pytest.fixture
def calibration(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCEL_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(module, "TURN", 0.02)
    pipe = SimpleNamespace(device=torch.device("cpu"))
    return Calibration(None, {}, lambda: pipe, dict, tmp_path, 8, print, lambda done, total: None)


@pytest.mark.parametrize("between", ["steps", "samples"])
def test_a_timing_waits_for_a_step_of_a_calibration_not_for_its_end(between, calibration, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "generate", lambda *args: None)
    steps, asked, timed = [], threading.Event(), threading.Event()

    def timing() -> None:
        assert asked.wait(10)
        with locked(device_lock("cpu")):
            before = len(steps)
            time.sleep(HELD)
            assert len(steps) == before, "nobody computes meanwhile"
            timed.set()

    def make(job) -> dict[str, torch.Tensor]:
        asked.set()
        end = time.monotonic() + 10
        while not timed.is_set() and time.monotonic() < end:
            steps.append(time.sleep(0.005))
            job.on_step(1, 2) if between == "steps" else calibration._sample(None, 0, 8)
        return {"steps": torch.tensor(len(steps))}

    thread = threading.Thread(target=timing)
    thread.start()
    start, path = time.monotonic(), tmp_path / "a.safetensors"
    made = calibration._made(path, make)
    taken = time.monotonic() - start
    thread.join(10)
    assert timed.is_set()
    assert float(made["seconds"]) < taken - 0.9 * HELD, "what the timing took is not the calibration's"
    assert set(load_tensors(path)) == {"steps", "seconds"}


FITTED, SEARCHED, DROPS = {"guidance": "linear_ag"}, {"sampler": "dc_solver"}, {"guidance": "ag"}
LEARNING = [(cache, FITTED) for cache in ("l2c", "harmonica", "diffusers_mag", "teacache")]
LEARNING += [("l2c", SEARCHED), ("teacache", SEARCHED), ("l2c", DROPS)]


@pytest.mark.parametrize(("cache", "axes"), LEARNING, ids=str)
def test_a_cache_learns_under_what_sampler_and_guidance_have_learned(cache, axes, tmp_path):
    """Of a shortcut, which leaves rows out, it learns under what that is a shortcut of."""
    quick = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
    runner = Runner(TinySuite("transformer"), quick, Results(tmp_path))
    record = runner.quality(recipe(cache=cache, **axes))
    assert record["values"]["distance"]["value"] >= 0
    assert record["cost"]["macs"] > 0
