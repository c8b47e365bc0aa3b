"""What a search is offered fits the model: by its pipeline, and by what the methods accept."""

from __future__ import annotations

import hub_tiny
import pytest

from accel.recommend.axes import propose
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.digits import DigitsSuite
from accel.suites.hub import HubSuite
from accel.suites.hub.prompts import Prompts

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
    assert set(names(found, "cache")) == {"none", "deepcache", "encoder_propagation"}
    assert found.axes["stitch"] == ["stitch=none"], "there is no smaller model"
    assert found.axes["steps"][0] == "sampler.steps=20"


def test_a_transformer_has_caches_of_transformers_and_its_own_scheduler(offered):
    found = offered("pixart_alpha")
    assert found.baseline[0] == "sampler=dpmpp_2m", "the pipeline's own"
    assert set(names(found, "cache")) <= {"none", "fora", "taylorseer", "diffusers_first_block"}
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


def test_a_suite_with_a_small_model_is_offered_stitching(light_digits, tmp_path):
    suite = DigitsSuite(weights=light_digits)
    found = propose(Runner(suite, FEW, Results(tmp_path)))
    assert names(found, "stitch") == ["none", "tstitch", "tstitch", "tstitch"]
