"""Fabricated records: plausible numbers on common seeds, without running a model."""

import io
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from accel.files import write_atomic
from accel.metrics.statistics import Estimate
from accel.records import Results, digest
from accel.results import tracking

AXES = dict.fromkeys(("sampler", "grid", "guidance", "cache", "stitch", "precision"), "none")
CPU = {"device": "cpu", "device_name": "Testchip 9 (AVX2)", "threads": 1, "packages": {"torch": "2.13.0"}}


def estimate(value, label="", n=1000, spread=0.02, own=0.004, groups=20):
    """Replicates share the noise of the seeds; `own` is what a label adds, so pairs are tighter than single values."""
    shared = np.random.default_rng(7).standard_normal(groups)
    private = np.random.default_rng(int(sha256(label.encode()).hexdigest()[:8], 16)).standard_normal(groups)
    replicates = value * (1 + spread / groups**0.5 * shared) + value * own / groups**0.5 * private
    return Estimate.from_replicates(value, replicates - replicates.mean() + value, n).to_dict()


def strip(label, count=16, size=8):
    """PNG strip of `count` soft blobs, the same places for every label and a little noise of its own."""
    rng, y = np.random.default_rng(3), np.arange(size)[:, None]
    own = np.random.default_rng(len(label))
    blobs = []
    for _ in range(count):
        cx, cy = rng.uniform(2, size - 2, 2)
        blob = np.exp(-((y - cy) ** 2 + (y.T - cx) ** 2) / 4) + 0.05 * own.standard_normal((size, size))
        blobs.append(blob)
    pixels = (np.clip(np.hstack(blobs), 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class Fabric:
    """Writes records below `root` and collects the lines of a study."""

    def __init__(self, root):
        self.results = Results(root)
        self.lines = []

    def quality(
        self, label, fid=None, distance=None, macs=None, *, steps=10, n=1000, seed=0, sha="ab" * 32, suite="digits",
        simulated=False, picture=True, more=None, **axes,
    ):  # fmt: skip
        values = {}
        if fid is not None:
            values[f"fid_{suite}"] = estimate(fid, label, n)
            values["accuracy"] = estimate(max(0.1, 0.99 - 0.004 * fid), label, n, spread=0.004)
        if distance is not None:
            values["distance"] = estimate(distance, label, n)
        values |= {key: estimate(value, label, n) for key, value in (more or {}).items()}
        cost = {"steps": steps, "nfe": float(steps), "macs": macs, "setup_s": 0.0}
        cost |= {"model_bytes": 2_310_000, "peak_bytes": 5_400_000}
        sampler = label.split("-")[0]
        record = {
            "kind": "quality",
            "id": digest([label, n, seed, sha, suite]),
            "label": label,
            "axes": AXES | {"sampler": sampler, "steps": steps} | axes,
            "suite": suite,
            "n": n,
            "seed": seed,
            "simulated": simulated,
            "recipe": {"sampler": {"type": sampler.upper(), "steps": steps}},
            "values": values,
            "cost": cost if macs else None,
            "strip": "base:full " * 3,
            "reference": {"name": f"{suite}_train", "n": 1297, "sha256": sha},
            "environment": CPU,
        }
        self.results.save(record)
        if picture:
            write_atomic(self.results.path("quality", record["id"]).with_suffix(".png"), strip(label))
        return record

    def timing(
        self, quality, baseline, speedup, *, device="Testchip 9 (AVX2)", threads=1, batch=8, base=24.0, **more
    ):  # fmt: skip
        """`more`: what records got later."""

        def around(value, half):
            return {"value": value, "lo": value * (1 - half), "hi": value * (1 + half)}

        record = {
            "kind": "timing",
            "id": digest([quality["id"], device, threads, batch]),
            "quality": quality["id"],
            "baseline": baseline["id"],
            "label": quality["label"],
            "suite": quality["suite"],
            "batch": batch,
            "device_name": device,
            "threads": threads,
            "ms_per_image": around(base / speedup, 0.02),
            "baseline_ms": around(base, 0.02),
            "speedup": around(speedup, 0.02),
            "aa": around(1.003, 0.015),
            "repetitions": 9,
            "environment": CPU | {"device_name": device, "threads": threads},
        } | more
        self.results.save(record)
        return record

    def line(self, role, quality=None, timing=None, *, label=None, of=None, refused=None, others=()):
        ids = {"quality": quality and quality["id"], "timing": timing and timing["id"]}
        ids |= {"timings": [other["id"] for other in others]} if others else {}
        self.lines.append({"role": role, "label": label or quality["label"], **ids, "of": of, "refused": refused})

    def save(
        self, name="demo", suite="digits", n=1000, title="Digits: samplers, caches and precision at small budgets"
    ):
        self.results.save_study({"name": name, "title": title, "suite": suite, "n": n, "rows": self.lines})
        return name


def plausible(root):
    """A study of 17 rows in which every role, axis and outcome occurs; its name is `demo`."""
    fabric = Fabric(root)
    full = 48.2e6  # MACs of one evaluation
    floor = fabric.quality("held-out digits", fid=0.61, n=500, sampler="none")
    reference = fabric.quality("heun-100", fid=1.42, distance=1e-4, macs=199 * full, steps=100)
    base = fabric.quality("ddim-50", fid=1.71, distance=0.031, macs=50 * full, steps=50)
    fabric.line("floor", floor)
    fabric.line("reference", reference)
    fabric.line("baseline", base)

    def add(label, fid, distance, evaluations, steps, speed, *, role="cell", of=None, **more):
        cell = fabric.quality(label, fid, distance, evaluations * full, steps=steps, **more)
        timing = fabric.timing(cell, base, speed) if speed else None
        fabric.line(role, cell, timing, of=of)

    add("ddim-20", 3.4, 0.082, 20, 20, 2.45)
    add("ddim-10", 9.8, 0.17, 10, 10, 4.7)
    add("deis3-20", 1.55, 0.012, 20, 20, 2.44)
    add("deis3-10", 2.05, 0.035, 10, 10, 4.72)
    add("deis3-6", 5.9, 0.098, 6, 6, 7.6)
    add("dpmpp2m-10", 2.06, 0.036, 10, 10, 4.69)
    add("deis3-20+deepcache3", 1.86, 0.041, 9.4, 20, 4.1, cache="deepcache")
    add("deis3-9", 2.44, 0.047, 9, 9, 5.2, role="control", of="deis3-20+deepcache3")
    add("deis3-20+tstitch0.4", 2.6, 0.083, 13.1, 20, 3.4, stitch="tstitch")
    add("deis3-13", 1.74, 0.021, 13, 13, 3.65, role="control", of="deis3-20+tstitch0.4")
    add("deis3-10+w8a8", 2.31, 0.052, 10, 10, None, precision="w8a8", simulated=True)
    add("deis3-10", 2.05, 0.035, 10, 10, 4.72, role="control", of="deis3-10+w8a8")
    add("deis3-20+deepcache3+w4", 6.8, 0.12, 9.4, 20, None, cache="deepcache", precision="w4", simulated=True)
    fabric.line(
        "cell", label="dit+deepcache3", refused="DeepCache needs a UNet; a DiT has no skip connections | use fora"
    )
    fabric.save()
    return fabric


@pytest.fixture
def fabric(tmp_path):
    """An empty `Fabric`."""
    return Fabric(tmp_path / "results")


@pytest.fixture
def demo(tmp_path):
    """The `plausible` study."""
    return plausible(tmp_path / "results")


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """Neither an account nor wandb's environment of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    tracking._online.cache_clear()
    yield
    tracking._online.cache_clear()
