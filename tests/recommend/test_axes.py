"""What a search is offered fits the model: by its pipeline, and by what the methods accept."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import hub_tiny
import pytest
import torch

from accel.config import recipe_from
from accel.evaluation.load import Round
from accel.precision import Cast
from accel.recommend import precisions as of_precision
from accel.recommend.axes import Proposal, propose
from accel.recommend.plan import divide
from accel.recommend.precisions import Rates
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.digits import DigitsSuite
from accel.suites.hub import HubSuite
from accel.suites.hub.prompts import Prompts
from accel.testing.elsewhere import Elsewhere

FEW = Evaluation(n=60, distance_n=60, device="cpu")


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """What the tiny pipeline of a kind is offered."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "prompts.txt").write_text("\n".join("abcdefghijklmnopqrstuvwxyz" * 3))

    def of(kind, **asked):
        prompts = Prompts() if kind in ("dit", "ddpm") else Prompts(str(folder / "prompts.txt"))
        suite = HubSuite(model=str(hub_tiny.save(kind, folder / kind)), prompts=prompts)
        return propose(Runner(suite, FEW, Results(folder / "out")), **asked)

    return of


def names(found, axis):
    return [choice.split()[0].partition("=")[2] for choice in found.axes[axis]]


def test_stable_diffusion(offered):
    found = offered("sd")
    assert found.baseline == ("sampler=ddim", "sampler.steps=50", "guidance=cfg", "guidance.scale=7.5")
    assert names(found, "guidance") == ["cfg", "ag", "interval"]
    assert set(names(found, "cache")) == {"none", "deepcache", "easycache", "encoder_propagation"}
    assert found.axes["stitch"] == ["stitch=none"], "there is no smaller model"
    assert found.axes["steps"][0] == "sampler.steps=20"


def test_a_transformer_has_caches_of_transformers_and_its_own_scheduler(offered):
    found = offered("pixart_alpha")
    assert found.baseline[0] == "sampler=dpmpp_2m", "the pipeline's own"
    assert set(names(found, "cache")) <= {"none", "fora", "easycache", "taylorseer", "diffusers_first_block"}
    assert "fora" in names(found, "cache")
    assert all(int(choice.partition("=")[2]) < 20 for choice in found.axes["steps"]), "fewer than its 20 of today"


def test_a_distilled_flow_has_no_guidance_to_save_and_samplers_of_flows(offered):
    found = offered("flux")
    assert found.axes["guidance"] == ["guidance=none"]
    assert found.baseline[0] == "sampler=flow_euler"
    assert names(found, "sampler")[0] == "flow_euler"
    assert not {"dpmpp_2m", "unipc"} & set(names(found, "sampler"))
    assert found.axes["grid"] == ["grid=none"]


def test_what_is_run_today_can_be_said(offered):
    found = offered("dit", steps=12, scale=2.0)
    assert found.baseline[1:] == ("sampler.steps=12", "guidance=cfg", "guidance.scale=2")
    assert found.axes["guidance"][0] == "guidance=cfg guidance.scale=2"
    assert offered("ddpm").axes["guidance"] == ["guidance=none"], "it knows no condition"


def test_what_the_methods_refuse_is_not_offered_and_said(monkeypatch, offered):
    from accel.recommend import axes

    monkeypatch.setitem(axes.CACHES, "unet", ("cache=deepcache cache.branch=99",))
    found = offered("sd")
    assert found.axes["cache"] == ["cache=none"]
    assert "branch" in found.refused["cache=deepcache cache.branch=99"]


CPU, GPU = ("avx2", "avx512_bf16"), "cuda:1"


def precisions(found):
    return [choice.partition("=")[2] for choice in found.axes["precision"]]


def test_a_cpu_is_offered_what_it_multiplies(monkeypatch, offered):
    monkeypatch.setattr(of_precision, "instruction_set", lambda device: list(CPU))
    found = offered("sd")
    assert precisions(found) == ["none", "bf16"]
    assert "this CPU has no products of float16" in found.refused["precision=fp16"]
    assert "CUDA device" in found.refused["precision=tf32"]
    assert "evaluates another one for every few samples" in found.refused["precision=compiled"], "there is ag"
    assert "calibrated and compiled for each recipe anew" in found.refused["precision=static_int8"]
    assert not [choice for choice in found.refused if "w8a8" in choice], "imitations are not asked about"
    monkeypatch.setattr(of_precision, "instruction_set", lambda device: ["avx2"])
    assert precisions(offered("sd")) == ["none"]


def test_without_guidance_that_changes_the_rows_the_network_may_be_compiled(monkeypatch, offered):
    monkeypatch.setattr(of_precision, "instruction_set", lambda device: list(CPU))
    found = offered("flux")
    assert precisions(found)[:4] == ["none", "bf16", "compiled", "compiled precision.dtype=float32"]
    there = importlib.util.find_spec("torchao") is not None
    assert ("torchao_int8" in precisions(found)) == there
    assert there or "needs the package torchao" in found.refused["precision=torchao_int8"]


def test_a_gpu_is_offered_what_it_has(light_digits, tmp_path):
    suite = DigitsSuite(weights=light_digits)
    with Elsewhere():
        found = propose(Runner(suite, replace(FEW, device=GPU), Results(tmp_path)))
        assert {"bf16", "fp16", "tf32"} <= set(precisions(found))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
            found = propose(Runner(suite, replace(FEW, device=GPU), Results(tmp_path)))
        assert "fp16" in precisions(found)
        assert "begin with compute capability 8.0" in found.refused["precision=bf16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_in_a_short_type_is_offered_no_cast(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(of_precision, "instruction_set", lambda device: [*CPU, "avx512_fp16"])
    suite = HubSuite(model=str(hub_tiny.save("ddpm", tmp_path / "m")), dtype=dtype)
    runner = Runner(suite, FEW, Results(tmp_path))
    runner.pipe.unet.to(getattr(torch, dtype))
    for choice in ("precision=bf16", "precision=fp16", "precision=tf32"):
        assert f"no fewer bits than the pipeline's own {dtype}" in of_precision.unfit(choice, runner, [])
    assert of_precision.unfit("precision=compiled", runner, [None]) is None


class Clocked:
    """Rounds as `accel.evaluation.timing.rounds` gives them, by seconds that are said."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, arms, device, warmup):
        self.arms = list(arms)
        while True:
            yield Round({name: self.seconds[name.rpartition("=")[2]] for name in arms})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return Runner(HubSuite(model=str(hub_tiny.save("ddpm", root / "m"))), replace(FEW, batch=2), Results(root / "out"))


def test_rates_are_ratios_and_what_saves_nothing_is_left_out(tiny, monkeypatch):
    clocked = Clocked({"plain": 2.0, "bf16": 1.0, "fp16": 1.96, "float32": 1.5})
    monkeypatch.setattr(of_precision, "rounds", clocked)
    monkeypatch.setattr(of_precision, "SLOW", 1e9)
    found = of_precision.measured(tiny, ["precision=bf16", "precision=fp16", "precision=compiled"], 1e-3, 3600)
    assert clocked.arms == ["plain", "precision=bf16", "precision=fp16"]
    assert found.rates == {"precision=bf16": 0.5}
    assert "takes 0.98 of the time" in found.refused["precision=fp16"]
    assert "budget=90m, or more, has room" in found.refused["precision=compiled"]
    assert found.compiling == 0
    proposal = Proposal((), {"precision": ["precision=none", "precision=bf16", "precision=fp16"]}, {"a": "b"})
    narrow = proposal.narrowed(found)
    assert (narrow.axes["precision"], narrow.rates) == (["precision=none", "precision=bf16"], found.rates)
    assert set(narrow.refused) == {"a", "precision=fp16", "precision=compiled"}


def test_what_fails_or_is_slow_is_found_out_before_the_rounds(tiny, monkeypatch):
    monkeypatch.setattr(of_precision, "rounds", lambda *given, **more: pytest.fail("nothing is left to be timed"))
    monkeypatch.setattr(of_precision, "SLOW", 0.0)
    slow = of_precision.measured(tiny, ["precision=bf16"], 1e-3, 3600)
    assert "of the time of precision=none here" in slow.refused["precision=bf16"]

    def fails(*given, **more):
        raise RuntimeError("\"conv\" not implemented for 'Half'")

    monkeypatch.setattr(Cast, "prepare", fails)
    assert (
        "not implemented for 'Half'"
        in of_precision.measured(tiny, ["precision=fp16"], 1e-3, 3600).refused["precision=fp16"]
    )
    dear = of_precision.measured(tiny, ["precision=bf16"], 10.0, 3600)
    assert "more than 2% of the budget" in dear.refused["precision=bf16"]
    assert of_precision.measured(tiny, [], 1e-3, 3600) == Rates()


def test_compilations_are_taken_from_the_budget(tiny, monkeypatch):
    monkeypatch.setattr(of_precision, "rounds", Clocked({"plain": 2.0, "none": 1.0}))
    choice = "precision=compiled precision.dtype=float32 precision.backend=none"
    found = of_precision.measured(tiny, [choice], 1e-3, 90 * 60)
    assert found.rates == {choice: 0.5}
    assert 0 < found.compiling < 0.2 * 90 * 60
    assert recipe_from(tuple(choice.split())).precision == of_precision.method_of(choice)
    rates = Rates(found.rates, {}, 600.0)
    with_it, without = divide(5400, 0.05, 100, 100, precisions=rates), divide(5400, 0.05, 100, 100)
    assert (with_it.n < without.n, with_it.nfe < without.nfe) == (True, True)
    assert with_it.seconds <= 5400


def test_a_suite_with_a_small_model_is_offered_stitching(light_digits, tmp_path):
    suite = DigitsSuite(weights=light_digits)
    found = propose(Runner(suite, FEW, Results(tmp_path)))
    assert names(found, "stitch") == ["none", "tstitch", "tstitch", "tstitch"]
