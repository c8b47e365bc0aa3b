"""What every command that takes a recipe file says of one that cannot be run: one line with the reason, and nothing is
written. As it is typed, through the program's own door."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from saved import FAST, saved

from accel import __main__ as program
from accel.core.recipe import Recipe
from accel.deploy import text
from accel.testing.quick import recipe

COMMANDS = {
    "generate": ["generate", "{r}", "3"],
    "verify": ["verify", "{r}"],
    "gate, as baseline": ["gate", "{r}", "{good}", "--n", "60"],
    "gate, as candidate": ["gate", "{good}", "{r}", "--n", "60"],
    "export": ["export", "{r}", "--to", "code"],
    "export of a folder": ["export", "{r}", "--to", "folder"],
    "threshold": ["threshold", "{r}"],
}
FAULTS = {
    "no file": ("recipe.yaml: No such file or directory. Give the folder of a recipe", []),
    "no YAML": ("recipe.yaml is no recipe file: while parsing", []),
    "a newer schema": ("upgrade accel", []),
    "an older schema": ("write it again", []),
    "an unknown method": ("unknown method of axis sampler 'dpmpp_9m'. Did you mean dpmpp_3m or dpmpp_2m", []),
    "edited by hand": ("recipe.yaml was changed after it was saved", []),
    "another architecture": ("another model than that of this suite 'digits_dit'", ["suite=digits_dit"]),
    "weights that are not there": ("nowhere", ["+suite.weights=nowhere"]),
    "other weights": ("diffusion_pytorch_model.safetensors is damaged: sha256", ["+suite.weights={others}"]),
    "a device that is not there": ("--device=cuda:99, but torch sees no GPU of that kind", ["--device", "cuda:99"]),
    "a setting that is none": ("unknown setting 'suite.wieghts'", ["suite.wieghts=1"]),
}


def spoilt(folder: Path, fault: str) -> None:
    path = folder / "recipe.yaml"
    if fault == "no file":
        path.unlink()
    elif fault == "no YAML":
        path.write_text("a: [")
    elif fault == "edited by hand":
        path.write_text(path.read_text().replace("steps: 4", "steps: 3", 1))
    elif fault.endswith("schema") or fault == "an unknown method":
        before, after = {"a newer schema": ("schema: 1", "schema: 2"), "an older schema": ("schema: 1", "schema: 0"),
                         "an unknown method": ("method: dpmpp_2m", "method: dpmpp_9m")}[fault]  # fmt: skip
        content = path.read_text()
        assert before in content
        path.write_text(content.replace(before, after, 1))
        changed = text.read(path)
        path.write_text(text.text_of(changed | {"sha256": text.digest(changed)}))


@pytest.fixture(scope="module")
def good(light_words, tmp_path_factory):
    """The folder of a recipe that every command takes: its cache has a threshold."""
    easy = Recipe(FAST.sampler, cache=recipe(cache="easycache").cache)
    return saved(tmp_path_factory.mktemp("recipes") / "good", light_words, easy).parent


@pytest.fixture(scope="module")
def others(light_digits, tmp_path_factory):
    """Weights of the same networks that were trained on: one bias is another."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("others") / "digits"
    shutil.copytree(light_digits, folder)
    for path in folder.rglob("diffusion_pytorch_model.safetensors"):
        weights = load_file(path)
        weights["conv_in.bias"] += 1e-3
        save_file(weights, path)
    return folder


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """typed(words): exit code and what was printed, in an empty folder that is empty still."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def typed(words):
        monkeypatch.setattr("sys.argv", ["accel", *words])
        with pytest.raises(SystemExit) as stop:
            program.main()
        assert list(empty.iterdir()) == [], "something was written"
        return stop.value.code, capsys.readouterr()

    return typed


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_one_line_with_the_reason(command, fault, good, others, typed, tmp_path):
    shutil.copytree(good, tmp_path / "r")
    spoilt(tmp_path / "r", fault)
    said, more = FAULTS[fault]
    names = {"r": str(tmp_path / "r"), "good": str(good), "others": str(others)}
    code, printed = typed([word.format(**names) for word in (*COMMANDS[command], *more)])
    told = printed.err if command != "verify" or code == 2 else printed.out
    assert said in told
    assert "Traceback" not in printed.out + printed.err
    if command == "verify" and code == 1:  # it is what this command is for: a check that fails
        assert "failed" in printed.out
    else:
        assert code == 2
        assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_for_a_gpu(command, good, light_words, typed, tmp_path):
    tf32 = Recipe(FAST.sampler, cache=recipe(cache="easycache").cache, precision=recipe(precision="tf32").precision)
    made = saved(tmp_path / "r", light_words, tf32, samples=None)
    code, printed = typed([word.format(r=made.parent, good=good) for word in COMMANDS[command]])
    assert code == 2
    [line] = printed.err.strip().splitlines()
    assert "tf32" in line
    assert "CUDA" in line
