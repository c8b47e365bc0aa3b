"""Another device than the CPU, without one: networks have owners, scoring stays where it is, and inputs are moved."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch

from accel import __main__ as cli
from accel.caching import DeepCache
from accel.config import compose, instantiate
from accel.core.amdahl import REST
from accel.core.devices import device_lock
from accel.core.recipe import Recipe
from accel.core.stages import stage_seconds
from accel.evaluation.timing import interleave, stopwatch
from accel.guidance import CFG, ClassifierGuidance
from accel.locks import locked
from accel.precision import Cast, FakeQuant
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.studies.evaluation import Evaluation
from accel.studies.floor import floor
from accel.studies.runner import Runner
from accel.suites.base import Suite
from accel.suites.digits.levels import level_classifier
from accel.testing import TinySuite
from accel.testing.elsewhere import DEVICE, Elsewhere

EMBEDDED = ("digits", "digits_flow", "digits_dit", "shapes", "mixture")
QUICK = {
    "n": 60,
    "distance_n": 60,
    "shard": 60,
    "batch": 60,
    "timing_batch": 2,
    "repetitions": 6,
    "most_repetitions": 6,
}
DDIM = DiffusersSampler("DDIMScheduler", 2)
EULER = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 2)


def made(name: str, *settings: str) -> Suite:
    return instantiate(compose([f"suite={name}", *settings])["suite"])


@pytest.fixture
def device():
    with Elsewhere() as device:
        yield device


# --- the pretended device itself


def test_the_device_refuses_what_a_gpu_refuses(device):
    x, y = torch.ones(2, 2), torch.arange(4.0).reshape(2, 2).to(DEVICE)
    assert (str(y.device), str(x.device), str(y[0].device), str((y + 1).device)) == (DEVICE, "cpu", DEVICE, DEVICE)
    for wrong in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x @ y, lambda: torch.nn.functional.linear(y, x)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            wrong()
    with pytest.raises(RuntimeError, match="to numpy"):
        y.numpy()
    assert torch.equal(y.cpu() + x, torch.arange(4.0).reshape(2, 2) + 1)
    assert torch.equal((y * torch.tensor(2.0)).cpu(), 2 * torch.arange(4.0).reshape(2, 2))
    assert y[torch.tensor([1])] in device
    assert torch.zeros(3, device=DEVICE) in device
    assert torch.zeros_like(y, device="cpu") not in device
    assert x.to(y) in device
    assert x not in device, "a move is a copy"


def test_modules_move_in_place(device):
    net = torch.nn.Linear(2, 2)
    assert net.to(DEVICE) is net
    assert str(net.weight.device) == DEVICE
    with pytest.raises(RuntimeError, match="same device"):
        net(torch.ones(1, 2))
    assert net(torch.ones(1, 2).to(DEVICE)) in device


# --- owners


@pytest.mark.parametrize("name", EMBEDDED)
def test_networks_are_the_callers_own(name):
    suite, images = made(name), None
    if (held_out := suite.held_out()) is not None:
        images, conditions = held_out[0][:4], {k: v[:4] for k, v in held_out[1].items()}
        before = suite.features(images), suite.per_sample(images, conditions)
    for net in (*suite.networks().values(), getattr(suite.pipeline(), "unet", None) or suite.pipeline().transformer):
        net.to("meta")  # whoever shared a tensor with it has lost its values now
    if images is not None:
        after = suite.features(images), suite.per_sample(images, conditions)
        assert torch.equal(before[0], after[0])
        assert all(torch.equal(before[1][key], after[1][key]) for key in before[1])
    for net in suite.networks().values():
        assert all(not tensor.is_meta for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_judges_take_images_from_any_device(name, device):
    suite = made(name)
    images, conditions = suite.held_out()
    images, conditions = images[:4], {k: v[:4] for k, v in conditions.items()}
    expected = suite.features(images), suite.per_sample(images, conditions)
    found = suite.features(images.to(DEVICE)), suite.per_sample(images.to(DEVICE), conditions)
    assert torch.equal(expected[0], found[0])
    assert found[0] not in device
    for key, values in expected[1].items():
        assert torch.equal(values, found[1][key])
        assert found[1][key] not in device


def test_the_level_classifier_is_shared_and_stays(device):
    x = 3 * torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    shared, expected = level_classifier(), level_classifier()(x)
    assert torch.equal(shared(x.to(DEVICE)), expected)
    assert all(p not in device for p in shared.net.parameters())
    assert torch.equal(shared(x), expected)


# --- whole runs

RUNS = {
    "digits, classifier guidance": Recipe(DDIM, guidance=ClassifierGuidance()),
    "digits, all axes": Recipe(DDIM, cache=DeepCache(2, 3), stitch=TStitch(), precision=Cast("float16")),
    "digits, calibration": Recipe(DDIM, precision=FakeQuant()),
    "digits_flow, guidance": Recipe(EULER, guidance=CFG(2.0)),
    "shapes, guidance": Recipe(DDIM, guidance=CFG(2.0)),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_on_another_device(case, device, tmp_path, light_digits):
    name, recipe = case.partition(",")[0], RUNS[case]
    light = [f"+suite.weights={light_digits}"] if name == "digits" else []
    suite = made(name, "suite.converged_steps=2", *light)
    baseline = Recipe(recipe.sampler, guidance=recipe.guidance if suite.name == "shapes" else None)
    runner = Runner(suite, Evaluation(**QUICK, device=DEVICE), Results(tmp_path))
    assert floor(runner)["values"]
    quality = runner.quality(recipe)
    assert {"distance", f"fid_{suite.name.partition('_')[0]}"} <= set(quality["values"])
    assert runner.quality(baseline)["environment"]["device"] == DEVICE
    if recipe.simulated:
        assert runner.timing(recipe, baseline) is None
    elif case == "digits, all axes":
        assert runner.timing(recipe, baseline)["environment"]["device"] == DEVICE
    assert all(p in device for net in runner.models.values() for p in net.parameters())
    if case == "digits, classifier guidance":
        own = Runner(suite, Evaluation(**QUICK, device="cpu"), Results(tmp_path / "cpu")).quality(recipe)
        assert own["values"] == quality["values"], "the same numbers, whatever the device"
        assert own["id"] == quality["id"]


def test_the_whole_command_on_another_device(device, tmp_path, monkeypatch, capsys, light_digits):
    asked = ["sampler=ddim", "sampler.steps=2", "evaluation=smoke", "evaluation.n=60", "suite.converged_steps=2",
             'baseline=["sampler=ddim","sampler.steps=3"]', f"evaluation.device={DEVICE}", "wandb=disabled",
             f"+suite.weights={light_digits}", f"results={tmp_path}"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["accel", *asked])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr()
    assert (tmp_path / "tables" / "adhoc_digits.md").exists()


def test_a_search_on_another_device_finds_the_same(tmp_path, monkeypatch, light_digits):
    asked = ["search=timesteps", "search.metric=distance", "search.halving.first=4", "search.halving.doublings=0",
             "search.budget=160", "search.finalists=1", "search.rescore_n=4", "search.compare=[trailing]",
             "optimiser=random", "sampler=ddim_accel", "sampler.steps=2", "suite.converged_steps=2", "study=s",
             "evaluation.n=60", "evaluation.distance_n=60", "evaluation.timing=false", "wandb=disabled",
             f"+suite.weights={light_digits}"]  # fmt: skip
    found = {}
    for place in ("cpu", DEVICE):
        results = tmp_path / place.replace(":", "_")
        monkeypatch.setattr(sys, "argv", ["accel", *asked, f"evaluation.device={place}", f"results={results}"])
        with Elsewhere() if place == DEVICE else nullcontext(), pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        (record,) = Results(results).all("search")
        found[place] = record["timesteps"], record["id"], record["finalists"]
    assert found["cpu"] == found[DEVICE]


@pytest.mark.parametrize(("asked", "found"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda:1", "cuda:1")])
def test_feature_networks_of_a_pipeline_are_where_it_runs(asked, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = ["suite.feature_network=dinov2", "suite.reference_images.path=/x", f"evaluation.device={asked}"]
    assert made("hub", *settings)._network_or_none().device == found
    assert made("hub", *settings, "suite.scoring_device=cpu")._network_or_none().device == "cpu"


# --- clocks and locks


def test_events_are_recorded_on_the_device_that_works(device):
    recorded = []

    class Event(type(torch.cuda.Event())):
        def record(self, stream=None):
            super().record(stream)
            recorded.append(self.device)

    torch.cuda.Event = lambda **settings: Event(device)
    assert stopwatch(lambda: torch.ones(2, device=DEVICE) + 1, DEVICE) > 0
    assert recorded == [1, 1], "cuda:1, although the current device is cuda:0"
    assert device.current == 0


def test_stages_are_timed_by_events_of_their_device_without_waiting_for_it(device, monkeypatch):
    recorded, waited = [], []

    class Event(type(torch.cuda.Event())):
        def record(self, stream=None):
            super().record(stream)
            recorded.append(self.device)

    torch.cuda.Event = lambda **settings: Event(device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *where: waited.append(len(recorded)))
    pipe = TinySuite("text").pipeline().to(DEVICE)
    found = stage_seconds(pipe, lambda: pipe(class_labels=[1], num_inference_steps=2, output_type="pt"))
    assert {"denoiser", "scheduler", REST} <= set(found)
    assert set(recorded) == {1}, "cuda:1, although the current device is cuda:0"
    assert len(recorded) >= 2 * (2 + 2) + 2
    assert waited == [len(recorded)], "once, when all is done"


def test_whoever_times_locks_the_device_not_the_folder(device):
    assert device_lock("cuda:1") == device_lock(torch.device("cuda", 1))
    assert device_lock("cuda") == device_lock("cuda:0")
    assert len({device_lock(d) for d in ("cpu", "cuda:0", "cuda:1")}) == 3
    held = {}

    @contextmanager
    def arm():
        for other in ("cuda:0", "cuda:1"):
            with locked(device_lock(other), wait=False, shared=True) as free:
                held[other] = not free
        yield lambda: None

    interleave({"one": arm}, 1, DEVICE)
    assert held == {"cuda:0": False, "cuda:1": True}
