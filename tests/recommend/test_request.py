"""The words of `accel recommend`: what they mean, and all that is wrong with them at once."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.recommend.request import BATCH, read


def test_a_model_is_one_of_suite_hub(tmp_path):
    prompts, images = tmp_path / "my prompts.txt", tmp_path / "images"
    prompts.write_text("a cat\n")
    images.mkdir()
    words = [f"model={tmp_path}/ö (1)", f"prompts={prompts}", f"reference={images}", "clip=some/id", "budget=2h"]
    wanted = read([*words, "scale=5", "suite.dtype=float16", "search.budget=9"])
    assert wanted.suite == (
        "suite=hub",
        f"suite.model='{tmp_path}/ö (1)'",
        f"suite.prompts.path='{prompts}'",
        f"suite.reference_images.path='{images}'",
        "suite.clip='some/id'",
        "suite.feature_network=inception",
        "suite.dtype=float16",
    )
    assert wanted.others == (f"evaluation.batch={BATCH}", "search.budget=9")
    assert (wanted.budget, wanted.scale, wanted.steps, wanted.name) == (7200, 5.0, None, "recommend_1")


def test_a_time_that_is_given_is_for_a_plan():
    assert read(["suite=shapes", "ms=10.8", "plan=true"]).ms == 10.8
    assert read(["suite=shapes"]).ms is None
    for words, said in (
        (["ms=10.8"], "add plan=true"),
        (["ms=fast", "plan=true"], "ms is 'fast'"),
        (["ms=0", "plan=true"], "ms is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(["suite=shapes", *words])


def test_a_suite_that_ships_keeps_its_batch():
    wanted = read(["suite=shapes", "steps=20", "evaluation.device=cpu"])
    assert (wanted.suite, wanted.others, wanted.name) == (
        ("suite=shapes",),
        ("evaluation.device=cpu",),
        "recommend_shapes",
    )
    assert (wanted.evaluation("device", "auto"), wanted.evaluation("batch", "64")) == ("cpu", "64")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model is given"),
        (["model=x", "suite=digits"], "give one of them"),
        (["model=x", "model=y"], "given twice"),
        (["model=x", "prompts=absent.txt"], "no such file"),
        (["model=x", "reference=absent"], "no such folder"),
        (["model=x", "features=clip"], "is for reference="),
        (["suite=digits", "budget=3"], "budget is '3'"),
        (["suite=digits", "budget=30s"], "at least 60s"),
        (["suite=digits", "steps=many"], "steps is 'many'"),
        (["suite=digits", "steps=1"], "steps"),
        (["suite=digits", "plan=maybe"], "plan is 'maybe'"),
        (["suite=digits", "bugdet=60m"], "budget"),
        (["suite=digits", "fast"], "cannot read 'fast'"),
        (["suite=digits", "to="], "has no value"),
        (["suite=digits", "sampler=ddim"], "word of accel recommend"),
    ],
)
def test_what_is_wrong_is_said(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        read(words)
    assert said in str(error.value)


def test_a_recipe_that_is_there_is_not_replaced_after_an_hour_of_search(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError) as error:
        read(["suite=digits", f"to={tmp_path}", "budget=1"])
    assert len(error.value.reasons) == 2
    assert read(["suite=digits", f"to={tmp_path}", "plan=true"]).plan
