"""A recipe file of suite `digits` with light weights, and one of a tiny Stable Diffusion folder."""

from __future__ import annotations

from dataclasses import replace

import hub_tiny
import pytest
from saved import BASE, FAST, PLAIN, saved

from accel.config import compose, instantiate
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner


@pytest.fixture(scope="session")
def light_words(light_digits):
    """What opens suite `digits` with light weights."""
    return ["suite=digits", f"+suite.weights={light_digits}", "suite.converged_steps=3"]


@pytest.fixture(scope="session")
def fast(light_words, tmp_path_factory):
    """The folder of recipe FAST on it."""
    return saved(tmp_path_factory.mktemp("recipes") / "fast", light_words, FAST).parent


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A tiny Stable Diffusion folder, as a user would have it, beside its prompts."""
    folder = hub_tiny.save("sd", tmp_path_factory.mktemp("models") / "sd")
    (folder.parent / "prompts.txt").write_text("\n".join(hub_tiny.PROMPTS) + "\n")
    return folder


@pytest.fixture(scope="session")
def sd_words(sd_folder):
    """What opens suite `hub` on it."""
    return ["suite=hub", f"suite.model={sd_folder}", f"suite.prompts.path={sd_folder.parent / 'prompts.txt'}"]


@pytest.fixture(scope="session")
def sd(sd_words, tmp_path_factory):
    """The folder of recipe PLAIN on it."""
    return saved(tmp_path_factory.mktemp("recipes") / "sd", sd_words, PLAIN).parent


@pytest.fixture(scope="session")
def study(light_words, tmp_path_factory):
    """A results folder with study `s`: FAST and its baseline on light digits, N = 60."""
    results, suite = Results(tmp_path_factory.mktemp("results")), instantiate(compose(light_words)["suite"])
    runner = Runner(suite, Evaluation(n=60, distance_n=60, device="cpu"), results)
    rows = [
        {"role": role, "label": recipe.label, "quality": runner.quality(recipe)["id"]}
        for role, recipe in (("baseline", BASE), ("cell", FAST))
    ]
    margins = replace(Margins(), fid_least=suite.fid_margin).to_dict()
    results.save_study({"name": "s", "title": "s", "suite": suite.name, "rows": rows, "margins": margins})
    return results.root


@pytest.fixture(scope="session")
def measured(study, light_words, tmp_path_factory):
    """The folder of the recipe that `accel recipe` makes of it."""
    from accel.cli import recipe

    folder = tmp_path_factory.mktemp("recipes") / "measured"
    assert recipe.main(["s", FAST.label, *light_words, "--results", str(study), "--to", str(folder)]) == 0
    return folder
