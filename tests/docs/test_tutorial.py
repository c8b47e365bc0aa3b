"""docs/tutorial.md: every file that it shows is written, every command and every block of Python run, in its order.

Lighter than the page by `LIGHT`: fewer steps, samples and pictures, and the small network of `shapes`.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from accel import __main__ as cli
from accel.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()
LIGHT = {
    "sampler.steps=20": "sampler.steps=4",
    "sampler.steps=8,12": "sampler.steps=2,3",
    "sampler.steps=12": "sampler.steps=3",
    "dpmpp_2m-12": "dpmpp_2m-3",
    "study: mine\n": "study: mine\nwandb: disabled\n",
    "{n: 120, distance_n: 120}": "{n: 60, distance_n: 60, timing: false}",
    "model: my_checkpoint\n": "model: my_checkpoint\nconverged_steps: 2\n",
    '"reference", 300': '"reference", 60',
}
# A block, with the file that the line before it names.
BLOCK = re.compile(r"(?:`([\w/.]+)`[^`\n]*\n\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = ["pip install '.[bench]'", "mkdir first && cd first"]  # what is there already where tests run


def lighter(text: str) -> str:
    for heavy, light in LIGHT.items():
        text = text.replace(heavy, light)
    return text


def test_all_that_is_made_lighter_is_on_the_page():
    assert [heavy for heavy in LIGHT if heavy not in PAGE] == []


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(the folder after the whole tutorial, what was printed by each command and script)."""
    from accel.suites.shapes import ShapesSuite

    folder, printed, plain = tmp_path_factory.mktemp("tutorial"), {}, ShapesSuite.pipeline

    def small(suite: ShapesSuite):
        pipe = plain(suite)
        pipe.unet = suite.models()["small"]
        return pipe

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(ShapesSuite, "pipeline", small)
        patch.setattr("accel.studies.study.write_figures", lambda results, name: [])
        for name, language, text in BLOCK.findall(PAGE):
            if language == "yaml":
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(lighter(text))
            elif language == "python":
                printed[name] = heard(
                    patch, lambda text=text, name=name: exec(compile(lighter(text), name, "exec"), {})
                )
            else:
                for line in text.splitlines():
                    if line not in SHELL:
                        printed[line] = heard(patch, lambda line=line: command(patch, lighter(line)))
    return folder, printed


def heard(patch: pytest.MonkeyPatch, act) -> str:
    from io import StringIO

    with pytest.MonkeyPatch.context() as own:
        own.setattr(sys, "stdout", out := StringIO())
        act()
    return out.getvalue()


def command(patch: pytest.MonkeyPatch, line: str) -> None:
    patch.setattr(sys, "argv", shlex.split(line))
    assert sys.argv[0] == "accel", line
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, line


def test_the_plan_runs_nothing_and_the_study_makes_the_table(done):
    folder, printed = done
    plan, study = (printed[f"accel --config-dir my_conf experiment=mine{more}"] for more in (" plan=true", ""))
    assert "Nothing was run or written" in plan
    assert "outputs/tables/mine.md" in study
    table = (folder / "outputs/tables/mine.md").read_text()
    for recipe in (
        "**ddim-4 + cfg3** (baseline)",
        "dpmpp_2m-2 + cfg3",
        "dpmpp_2m-3 + cfg3 + deepcache2b1",
        "## Equal-cost",
    ):
        assert recipe in table, recipe


def test_the_columns_that_the_page_explains_are_in_the_table(done):
    folder, _ = done
    heads = (folder / "outputs/tables/mine.md").read_text().split("\n| ", 1)[1].splitlines()[0]
    named = re.findall(r"^\| ([^|]+) \|", PAGE.split("## 5.")[1].split("## 6.")[0], re.MULTILINE)
    assert len(named) > 6
    for column in (c for cell in named if cell not in ("column", "speed-up [95 %]") for c in cell.split(", ")):
        assert column in heads, column


def test_the_script_runs_the_recipe_that_was_measured(done):
    folder, printed = done
    assert (folder / "fast/recipe.yaml").exists()
    assert printed["generate.py"].strip() == "6 network evaluations"  # three steps, guided
    from PIL import Image

    assert Image.open(folder / "fast.png").size == (64, 64)


def test_other_weights_are_refused(done):
    from diffusers import StableDiffusionPipeline

    import accel

    folder, _ = done
    pipe = StableDiffusionPipeline.from_pretrained(folder / "my_checkpoint", use_safetensors=True)
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.01)
    with pytest.raises(ConfigError, match="was measured on another model than that of this pipeline"):
        accel.apply(pipe, folder / "fast")
