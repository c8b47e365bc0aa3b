"""The benchmark of a device: each part in miniature on the CPU and on a pretended GPU, its resuming and its tables."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
import torch
from device_tiny import tiny

from accel.benches import device, device_contract, device_overhead, device_speed, device_stack, schedulers
from accel.benches.device_job import KIND, OUT_OF_MEMORY, Job
from accel.benches.device_networks import NETWORKS
from accel.benches.device_stack import Variant
from accel.benches.device_table import page, write_device
from accel.benches.schedulers import BASE
from accel.cli.rebuild import TABLES
from accel.core.random_weights import random_weights
from accel.errors import ConfigError
from accel.records import Results
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import TinySuite
from accel.testing.waits import counted_waits

PARAMETERS = {  # of the published weights
    "Stable Diffusion 1.5": 859_520_964,
    "Stable Diffusion XL": 2_567_463_684,
    "DiT-XL/2 512": 749_826_464,
    "Flux.1-dev": 11_901_408_320,
    "PixArt-alpha XL/2 512": 610_856_096,
    "Stable Diffusion 3 medium": 2_028_328_000,
}


@pytest.fixture
def gpu():
    with Elsewhere() as there:
        yield there


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(device_speed, "SECONDS", 0.01)
    monkeypatch.setattr(device_speed, "LEAST", 1)
    monkeypatch.setattr(device_speed, "MOST", 1)
    monkeypatch.setattr(device_speed, "WARMUP", 1)
    monkeypatch.setattr(device_speed, "STEPS", 4)
    monkeypatch.setattr(schedulers, "SCHEDULERS", {BASE: schedulers.SCHEDULERS[BASE]})


def rows(results: Results, part: str) -> dict[str, dict]:
    return {r.get("method") or r.get("choice") or r["case"]: r for r in results.all(KIND) if r["part"] == part}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_the_published_weights(name):
    import diffusers

    architecture = NETWORKS[name].architecture
    with random_weights("meta", torch.bfloat16):
        net = getattr(diffusers, architecture.cls)(**architecture.config)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert {(p.dtype, p.device.type) for p in net.parameters()} == {(torch.bfloat16, "meta")}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_called_as_its_pipeline_does(name, gpu):
    """Made on the device without a copy from the CPU, and run there without anything that lies elsewhere."""
    pipe = tiny(name).pipeline(DEVICE, torch.bfloat16)
    assert {(str(t.device), t.dtype) for t in pipe.denoiser.parameters()} == {(DEVICE, torch.bfloat16)}
    bed = device_speed.Bed(pipe, DEVICE, 2)
    found = bed.trial(device_speed.recipes(pipe.network, 2)["plain"])
    assert found["finite"]
    assert found["nfe"] == (4 if pipe.network.scale > 1 else 2)


def test_contract_finds_difference_refusals_and_waits(results, gpu):
    chosen = [("sampler", "ddim"), ("guidance", "ag"), ("precision", "openvino"), ("precision", "tf32")]
    assert device_contract.run(Job(DEVICE, results), chosen)
    found = rows(results, "contract")
    assert found["ddim"]["difference"] == found["ag"]["difference"] == found["ag"]["plain_difference"] == 0
    assert found["ddim"]["waits"] == {}, "those of diffusers' own scheduler are in every pipeline"
    assert found["ddim"]["plain_waits"] > 0
    assert all(line.startswith("read accel.guidance.adaptive:") for line in found["ag"]["waits"])
    assert sum(found["ag"]["waits"].values()) == 1
    assert "runs on the CPU only" in found["openvino"]["refused"]
    assert found["tf32"]["against"] == "plain", "no CPU runs it"


def test_contract_resumes(results, monkeypatch):
    asked = []
    monkeypatch.setattr(device_contract, "measured", lambda made, *rest: asked.append(made) or {"difference": 0.0})
    chosen = [("sampler", "ddim"), ("sampler", "euler")]
    assert not device_contract.run(Job("cpu", results, until=0.0), chosen), "the time is over"
    assert device_contract.run(Job("cpu", results), chosen[:1])
    assert device_contract.run(Job("cpu", results), chosen)
    assert [made.sampler.name for made in asked] == ["ddim", "euler"]


def test_waits_are_counted_by_line(gpu):
    x = torch.ones(3).to(DEVICE)
    with warnings.catch_warnings(record=True) as others, counted_waits() as found:
        warnings.simplefilter("always")
        warnings.warn("something else", stacklevel=1)
        x + 1
        assert not found
        float(x.sum())
        x.tolist()
    assert list(found.values()) == [1, 1]
    assert all(kind == "read" and line.startswith(__name__) for kind, line in found)
    assert [str(w.message) for w in others] == ["something else"]
    assert gpu.debug == 0


def test_waits_of_a_real_device_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with counted_waits() as found:
        for _ in range(3):  # torch's own words, thrice from one line
            said = (
                "called a synchronizing CUDA operation (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:1.)"
            )
            warnings.warn(said, UserWarning, stacklevel=1)
    assert modes == ["warn", 0]
    assert [(kind, line.partition(":")[0], n) for (kind, line), n in found.items()] == [("wait", __name__, 3)]


def test_overhead_on_a_device(results, gpu):
    assert device_overhead.run(Job(DEVICE, results), [(TinySuite("unet"), 1)], repetitions=1, steps=2)
    found = rows(results, "overhead")
    assert found["accelerate"]["ratio"]["value"] > 0
    assert found["schedulers"]["schedulers"][0]["step_us"]["value"] > 0
    assert "Float32" in page("x", list(found.values()))


def test_speed_measures_every_method_in_turn(results, gpu):
    job = Job(DEVICE, results)
    assert device_speed.run(job, [tiny("DiT-XL/2 512")], (1,))
    found = rows(results, "speed")
    assert set(found) == set(device_speed.recipes(NETWORKS["DiT-XL/2 512"]))
    assert not [r for r in found.values() if "failed" in r or not r["finite"]]
    half, plain, fora = found["half the steps"], found["plain"], found["fora 1:3"]
    assert half["ideal"] == 2
    assert found["adaptive guidance"]["ideal"] == pytest.approx(8 / 6)
    assert fora["strip"].split() == ["base:full", "base:partial", "base:partial", "base:full"]
    assert fora["share"]["value"] == pytest.approx(fora["speedup"]["value"] / fora["ideal"])
    assert "speedup" not in plain
    assert plain["rounds"] == 1
    assert (plain["dtype"], plain["allocated_mib"]) == ("bfloat16", 0.0)
    assert device_speed.run(Job(DEVICE, results, until=0.0), [tiny("DiT-XL/2 512")], (1,)), "all is there"


def test_costs_are_counted_once(results, monkeypatch):
    network = tiny("DiT-XL/2 512")
    few = {name: r for name, r in device_speed.recipes(network).items() if name in ("plain", "half the steps")}
    monkeypatch.setattr(device_speed, "recipes", lambda network: few)
    assert device_speed.run(Job("cpu", results), [network], (1, 4))
    found = [r for r in results.all(KIND) if r["method"] == "half the steps"]
    assert sorted(r["batch"] for r in found) == [1, 4]
    assert {(r["counted_at"], r["ideal"], r["dtype"], r["allocated_mib"]) for r in found} == {(1, 2.0, "float32", None)}


def test_out_of_memory_and_refusals_are_rows(results, monkeypatch):
    sample = device_speed.Bed.sample

    def full(bed, recipe):
        if recipe.cache and recipe.cache.label.startswith("deepcache5"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(bed, recipe)

    kept, recipes = ("plain", "deepcache 1:5", "diffusers first", "inheritance", "half"), device_speed.recipes
    monkeypatch.setattr(device_speed, "recipes", lambda n: {k: r for k, r in recipes(n).items() if k.startswith(kept)})
    monkeypatch.setattr(device_speed.Bed, "sample", full)
    both = [tiny("Stable Diffusion 1.5"), tiny("Stable Diffusion 3 medium")]
    assert device_speed.run(Job("cpu", results), both, (1,))
    found = rows(results, "speed")
    assert found["deepcache 1:5, branch 2"]["result"] == OUT_OF_MEMORY
    assert "FirstBlockCache fails" in found["diffusers first_block, threshold 10"]["refused"]
    assert found["inheritance of blocks 1:2"]["speedup"], "whose last block returns no text"
    text = page("x", list(results.all(KIND)))
    assert "* deepcache 1:5, branch 2: out of memory" in text
    assert "2.04 (50 to 25 PLMS;" in text


def test_a_network_that_does_not_fit_is_as_many_rows(results, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = tiny("Flux.1-dev")
    monkeypatch.setattr(type(network), "pipeline", full)
    assert device_speed.run(Job("cpu", results), [network], (1,))
    found = rows(results, "speed")
    assert {r["result"] for r in found.values()} == {OUT_OF_MEMORY}
    assert len(found) == len(device_speed.recipes(network))


def test_nothing_is_written_when_time_ends_before_the_rounds(results, monkeypatch):
    monkeypatch.setattr(device_speed, "rounds", lambda arms, job: None)
    monkeypatch.setattr(device_speed.Bed, "trial", lambda bed, *rest: {"macs": 1})
    assert not device_speed.run(Job("cpu", results), [tiny("Flux.1-dev")], (1,))
    assert results.all(KIND) == []


def test_stack_counts_compilations(results):
    network = tiny("DiT-XL/2 512")
    variants = {
        network.name: (Variant("compiled blocks", compiled=True), Variant("fp32", float32=True, products="ieee"))
    }
    assert device_stack.run(Job("cpu", results), [network], variants, backend="eager")
    found = rows(results, "stack")
    compiled = found["compiled blocks"]
    assert compiled["graphs"] > 0
    assert (compiled["recompilations"], compiled["limit_hit"]) == (0, False)
    assert found["fp32"]["speedup"]["lo"] <= found["fp32"]["speedup"]["value"]
    assert not device_stack.run(Job("cpu", results, until=0.0), [tiny("Stable Diffusion 1.5")])


def test_limits_tell_when_the_compiler_gives_up():
    import torch._dynamo

    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1), device_stack.limits() as hit:
        for n in (2, 3, 4):
            compiled(torch.ones(n))
    assert hit


def test_stack_on_a_device(results, gpu):
    network = tiny("DiT-XL/2 512")
    variants = {network.name: (Variant("channels_last", channels_last=True), Variant("tf32", True, "tf32"))}
    assert device_stack.run(Job(DEVICE, results), [network], variants)
    found = rows(results, "stack")
    assert (found["channels_last"]["dtype"], found["tf32"]["dtype"]) == ("bfloat16", "float32")
    assert all("speedup" in r for r in found.values())


def test_command_goes_through_parts_again_and_names_its_tables(results, monkeypatch, capsys):
    calls, answers = [], iter([False, True, True])

    def part(job):
        calls.append(job.left())
        device_contract.run(Job("cpu", results), [("sampler", "ddim")])
        return next(answers)

    monkeypatch.setattr(device, "PARTS", {"contract": (part, 0.2), "stack": (part, 1.0)})
    device.main(["--device", "cpu", "--results", str(results.root), "--minutes", "1"])
    assert len(calls) == 3, "the part that was not done comes again"
    assert calls[0] == pytest.approx(12, abs=1)
    assert max(calls[1:]) <= 60
    said = capsys.readouterr().out
    assert "again to go on" not in said
    tables = sorted(p.name for p in (results.root / "tables").iterdir())
    assert tables[0].startswith("device_")
    assert write_device in TABLES
    csv = next((results.root / "tables").glob("*_contract.csv"))
    assert list(pd.read_csv(csv)["choice"]) == ["ddim"]
    with pytest.raises(ConfigError, match="unknown part"):
        device.main(["--only", "speeed"])
    with pytest.raises(ConfigError, match="no CUDA device"):
        device.main(["--device", "cuda:7", "--results", str(results.root)])
