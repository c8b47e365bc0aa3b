"""Shared fixtures: the shipped digits networks, tiny random ones of other kinds, and plain ways to run them."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

if gc.isenabled():  # what is imported stays, and the collector would look at its million objects again and again
    gc.disable()

if "PYTEST_XDIST_WORKER" in os.environ:  # also for the processes that tests start: spinning threads starve each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what shells start in the background; tests send interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests that time do not wait for those of another worker, nor for anybody else on this machine.
os.environ["ACCEL_LOCKS"] = tempfile.mkdtemp(prefix="accel-locks-")
os.environ.setdefault("WANDB__SAVE_REQUIREMENTS", "false")  # each run would read the metadata of all that is installed

import pytest
import quicker
import torch

from accel.samplers import DiffusersSampler

quicker.install()
logging.getLogger("diffusers").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)
# Processes of pytest-xdist share the cores; alone, two threads as the tables have.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def pytest_unconfigure():
    """Each worker has its own folder of locks."""
    shutil.rmtree(os.environ["ACCEL_LOCKS"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """From here on the collector looks at what tests make, and not at all that was imported for them."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def digits():
    from accel.suites.digits import DigitsSuite

    return DigitsSuite()


@pytest.fixture(scope="session")
def light_digits(tmp_path_factory):
    """A folder of weights of suite `digits` whose `large` is nearly the small network: a ninth of the cost, for tests
    that ask what methods and commands do and not what networks draw."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    from accel.suites.base import ASSETS, write_manifest

    folder = tmp_path_factory.mktemp("weights") / "digits"
    shutil.copytree(ASSETS / "digits", folder, ignore=shutil.ignore_patterns("large"))
    shutil.copytree(folder / "small", folder / "large")
    path = folder / "large/unet/diffusion_pytorch_model.safetensors"
    save_file({name: 1.01 * weight for name, weight in load_file(path).items()}, path)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    write_manifest(folder, {name: sha for name, sha in manifest.items() if name.startswith("data:")})
    return folder


@pytest.fixture(scope="session")
def light_suite(light_digits):
    """Suite `digits` with these weights."""
    from accel.suites.digits import DigitsSuite

    return DigitsSuite(weights=str(light_digits))


@pytest.fixture(scope="session")
def tracked():
    """The tracked records as `Evidence`, and what they say of each claim of the ledger: read and judged once."""
    from accel.records import Results
    from accel.results.claims import judge, read
    from accel.results.claims_table import LEDGER
    from accel.results.evidence import Evidence

    evidence = Evidence(Results(Path(__file__).parents[1] / "results"))
    return evidence, judge(evidence, read(LEDGER))


@pytest.fixture(scope="session")
def pipe(digits):
    """The digits pipeline; tests must leave it as they found it."""
    return digits.pipeline()


@pytest.fixture(scope="session")
def models(digits):
    return digits.networks()


@pytest.fixture
def plain_kernels(monkeypatch):
    """Convolutions of a few rows without oneDNN, which prepares each for longer than it takes: a network's evaluation
    in two thirds of the time, for tests that ask what methods do and not how torch multiplies."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.fixture
def few_ranges(monkeypatch):
    """Eight candidates of a range in place of eighty, for tests that ask what is done with a range, not which it is."""
    monkeypatch.setattr("accel.precision.simulated.levels.SHRINKS", 8)


@pytest.fixture
def run(pipe):
    """run(guidance_scale=1.0, count=2, first=0) -> images (count, 1, 16, 16) of the digits pipeline as it is now."""

    def run(guidance_scale: float = 1.0, count: int = 2, first: int = 0, steps: int = 4, **kwargs):
        generators = [torch.Generator().manual_seed(first + i) for i in range(count)]
        labels = [(first + i) % 10 for i in range(count)]
        return pipe(class_labels=labels, generator=generators, guidance_scale=guidance_scale,
                    num_inference_steps=steps, output_type="pt", **kwargs).images  # fmt: skip

    return run


@pytest.fixture
def ddim():
    """ddim(steps) -> the DDIM sampler."""
    return lambda steps=4: DiffusersSampler("DDIMScheduler", steps, "ddim", {"set_alpha_to_one": True})


@pytest.fixture(autouse=True)
def loggers():
    """Hydra's application, which some tests run, disables the loggers that there are and shows errors alone."""
    level = logging.root.level
    yield
    if logging.root.level != level:
        logging.root.setLevel(level)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("accel") and isinstance(logger, logging.Logger):
            logger.disabled = False
