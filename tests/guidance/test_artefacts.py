"""Guidance in the runner: fitted once, found again, held against the right trajectory, told apart by its classifier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accel.core.recipe import Recipe, accelerate
from accel.files import load_tensors
from accel.guidance import CFG, AdaptiveGuidance, CFGPlusPlus, ClassifierGuidance, LinearAG
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.digits.flow import DigitsFlowSuite
from accel.suites.mixture import MixtureSuite

EVALUATION = Evaluation(n=60, distance_n=60, timing=False, device="cpu")
DPMPP = DiffusersSampler("DPMSolverMultistepScheduler", 6, "dpmpp_2m", {"final_sigmas_type": "zero"})
RECIPE = Recipe(DPMPP, guidance=LinearAG(3.0, samples=20, held_out=10))


def runner(root: Path, suite=None) -> Runner:
    return Runner(suite or MixtureSuite(), EVALUATION, Results(root))


def files(own: Runner) -> list[Path]:
    return sorted((own.results.root / "artefacts").glob("*.safetensors"))


def test_fit_is_made_once_and_found_again(tmp_path, monkeypatch):
    own = runner(tmp_path)
    made, seconds = own.artefacts(RECIPE)
    assert set(made) == {"guidance"}
    assert seconds > 0
    (path,) = files(own)
    stored = load_tensors(path)
    assert stored["evaluations"].tolist() == [1]
    assert stored["missed"].shape == (1,)
    assert stored["missed"].max() < 1, "better than no guidance, on samples that were not fitted"
    monkeypatch.setattr(LinearAG, "calibrate", lambda *args: pytest.fail("fitted again"))
    for again in (own, runner(tmp_path)):
        found, setup = again.artefacts(RECIPE)
        assert all(torch.equal(v, made["guidance"][k]) for k, v in found["guidance"].items())
        assert setup == pytest.approx(seconds)


def test_what_a_fit_is_for(tmp_path):
    own = runner(tmp_path)
    others = [
        replace(RECIPE, sampler=replace(DPMPP, steps=8)),
        replace(RECIPE, grid=Grid("karras")),
        replace(RECIPE, guidance=replace(RECIPE.guidance, scale=2.0)),
        replace(RECIPE, guidance=replace(RECIPE.guidance, samples=30)),
    ]
    assert len({own.artefact_id(r) for r in (RECIPE, *others)}) == 5
    assert own.artefact_id(RECIPE) != runner(tmp_path, MixtureSuite(mixture_seed=1)).artefact_id(RECIPE)


def test_records_of_shortcuts_are_held_against_cfg(tmp_path):
    own, distances = runner(tmp_path), {}
    for guidance in (CFG(3.0), AdaptiveGuidance(3.0, 0.0), RECIPE.guidance):
        record = own.quality(Recipe(DPMPP, guidance=guidance))
        assert record["converged"] == own.generation_id(own.suite.converged(CFG(3.0)))
        assert (record["cost"]["nfe"] < 12) == (guidance != CFG(3.0))
        distances[type(guidance).__name__] = record["values"]
    assert len({str(v) for v in distances.values()}) == 3
    converged = own.suite.converged(Recipe(guidance=CFGPlusPlus()).exact_guidance)
    assert converged.guidance is None


def test_a_cost_that_varies_is_a_mean(monkeypatch):
    """Sample by sample, as it is counted: one sample would say nothing about the others."""
    import accel.evaluation.cost as cost
    from accel.evaluation.generate import generate

    monkeypatch.setattr(cost, "VARYING", 8)
    suite = MixtureSuite()
    pipe, recipe = suite.pipeline(), Recipe(DPMPP, guidance=AdaptiveGuidance(3.0, 0.9))
    each = []
    with accelerate(pipe, recipe, count_macs=True) as run:
        for i in range(8):
            generate(pipe, suite, recipe, 0, i, i + 1, 1)
            each.append((run.nfe, run.macs))
    assert len(set(each)) > 1
    found = cost.counted_cost(pipe, suite, recipe)
    assert (found["nfe"], found["macs"]) == tuple(sum(v) / 8 for v in zip(*each, strict=True))


def test_another_classifier_makes_other_samples(tmp_path, monkeypatch):
    """The classifier of digits_flow is not among its fingerprint's weights."""
    ids = []
    for seed in (None, 0):
        own = runner(tmp_path, DigitsFlowSuite())
        if seed is not None:
            torch.manual_seed(seed)
            monkeypatch.setattr(DigitsFlowSuite, "classifier", lambda self: torch.nn.Linear(2, 2))
        ids.append([own.generation_id(Recipe(guidance=g)) for g in (CFG(2.0), ClassifierGuidance())])
    assert ids[0][0] == ids[1][0]
    assert ids[0][1] != ids[1][1]
