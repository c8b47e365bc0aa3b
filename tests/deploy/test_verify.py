"""`accel verify`: passes on what was measured, fails with the reason on else, and says what it cannot compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import hub_tiny
import pytest
import torch
from saved import FAST, PLAIN, saved

from accel.cli import verify as cli
from accel.core.environment import device_name
from accel.core.recipe import Recipe
from accel.deploy import text, verify
from accel.deploy.recipe_file import load_recipe
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.timing import time_recipes
from accel.testing.quick import recipe


@pytest.fixture
def report(capsys):
    """report(*words) -> (exit code, {check: (outcome, what is said)}, last line)."""

    def report(*words: object) -> tuple[int, dict[str, tuple[str, str]], str]:
        code = cli.main([str(word) for word in words])
        *lines, last = capsys.readouterr().out.splitlines()
        found = [line.split(maxsplit=2) for line in lines]
        return code, {name: (outcome, said) for outcome, name, said in found}, last

    return report


def changed(folder: Path, to: Path, change) -> Path:
    """A copy of a recipe whose YAML says what `change` makes of it, as if it had been saved so."""
    shutil.copytree(folder, to)
    content = text.read(to / "recipe.yaml")
    change(content)
    content["sha256"] = text.digest(content)
    (to / "recipe.yaml").write_text(text.text_of(content))
    return to


def test_what_was_measured_is_verified_at_the_recorded_n(measured, report):
    code, found, last = report(measured)
    assert (code, last) == (0, f"verified: {measured}")
    assert [(name, outcome) for name, (outcome, _) in found.items()] == [
        ("file", "ok"), ("model", "ok"), ("images", "ok"), ("quality", "ok"), ("speed", "skipped"),
    ]  # fmt: skip
    assert "4 images are the recorded ones, byte for byte" in found["images"][1]
    values = load_recipe(measured).measured["values"]
    assert f"fid_digits {values['fid_digits']['value']:.4g}"[:14] in found["quality"][1]


def test_a_value_that_is_lost_beyond_its_margin_fails(measured, tmp_path, report):
    def better(content):
        content["measured"]["values"]["accuracy"]["value"] = 1.2

    code, found, last = report(changed(measured, tmp_path / "r", better), "--no-speed")
    assert code == 1
    assert found["quality"][0] == "failed"
    assert found["quality"][1].endswith("lost accuracy")
    assert last.startswith("failed:")
    assert last.endswith("(quality)")


def test_another_n_is_held_against_the_baseline(measured, tmp_path, report):
    code, found, _ = report(measured, "--n", "70", "--no-speed")
    assert code == 0
    assert "N = 70, against ddim-5: fid_digits" in found["quality"][1]

    def forget(content):
        del content["measured"]["against"]["recipe"]

    with pytest.raises(ConfigError, match="--n 70: the file does not say what the recipe was held against"):
        report(changed(measured, tmp_path / "r", forget), "--n", "70", "--no-speed")


def test_worse_than_before_against_the_baseline_fails(measured, tmp_path, report):
    def swap(content):
        """As if a far better baseline had once been matched."""
        steps = content["measured"]["against"]["recipe"]["sampler"]["settings"]
        steps["steps"] = 10
        content["recipe"]["sampler"]["settings"]["steps"] = 2
        content["recipe"].pop("cache")
        content.pop("samples")

    code, found, _ = report(changed(measured, tmp_path / "r", swap), "--n", "70", "--no-speed")
    assert code == 1
    assert "fid_digits worse (was" in found["quality"][1]
    assert found["images"] == ("skipped", "the file has none; `accel recipe` writes them")


def test_a_changed_weight_file_fails_with_the_reason(sd_folder, tmp_path, report):
    from safetensors.torch import load_file, save_file

    shutil.copytree(sd_folder.parent, tmp_path / "m")
    folder = tmp_path / "m" / "sd"
    words = ["suite=hub", f"suite.model={folder}", f"suite.prompts.path={tmp_path / 'm' / 'prompts.txt'}"]
    made = saved(tmp_path / "r", words, PLAIN)
    assert report(made, "--no-quality", "--no-speed")[0] == 0
    path = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(path)
    save_file({name: 1.001 * tensor for name, tensor in weights.items()}, path)
    code, found, last = report(made)
    assert code == 1
    assert list(found) == ["file", "model"]
    assert found["model"][0] == "failed"
    assert f"unet/{path.name} (" in found["model"][1]
    assert last.endswith("(model)")


def test_damaged_weights_of_an_embedded_suite_fail(fast, light_digits, tmp_path, report):
    shutil.copytree(light_digits, tmp_path / "digits")
    path = tmp_path / "digits/large/unet/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    code, found, _ = report(fast, f"+suite.weights={tmp_path / 'digits'}")
    assert code == 1
    assert "is damaged: sha256" in found["model"][1]


def test_a_damaged_file_beside_the_recipe_fails(fast, tmp_path, report):
    shutil.copytree(fast, tmp_path / "r")
    beside = tmp_path / "r/recipe.samples.safetensors"
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    code, found, _ = report(tmp_path / "r")
    assert (code, list(found)) == (1, ["file"])
    assert "is not what was saved" in found["file"][1]


def test_images_of_another_environment_are_compared_within_a_tolerance(fast, tmp_path, report, monkeypatch):
    def elsewhere(content):
        content["samples"]["environment"]["threads"] = 77

    moved = changed(fast, tmp_path / "r", elsewhere)
    kept = load_recipe(moved).samples
    off = type(kept)(kept.images + 0.01, kept.seed, kept.environment)
    monkeypatch.setattr(verify, "first_samples", lambda *given: off)
    code, found, _ = report(moved, "--no-quality", "--no-speed")
    assert code == 0
    assert "at most 0.01 off (RMS on -1..1; allowed: 0.05), not byte for byte: threads 77 then" in found["images"][1]
    assert report(moved, "--no-quality", "--no-speed", "--tolerance", "0.001")[0] == 1
    code, found, _ = report(fast, "--no-quality", "--no-speed")
    assert code == 1, "on the same device and versions bytes are the same"
    assert "nothing of the environment differs" in found["images"][1]


def test_speed_is_held_against_its_interval_on_the_same_machine_only(measured, tmp_path, report, monkeypatch):
    own = {"value": 2.0, "lo": 1.9, "hi": 2.1}

    def timed(threads):
        one = {"device": device_name("cpu"), "threads": threads, "batch": 8, "speedup": own, "told_apart": True}
        return lambda content: content["measured"].update(speed=[one])

    found = {"value": 1.95, "lo": 1.8, "hi": 2.05}
    monkeypatch.setattr(verify, "time_recipes", lambda *given, **more: [{"speedup": found}])
    here = changed(measured, tmp_path / "here", timed(torch.get_num_threads()))
    code, told, _ = report(here, "--no-quality")
    assert (code, told["speed"][0]) == (0, "ok")
    assert "times as fast as ddim-5 (was 2.0" in told["speed"][1]
    found |= {"value": 1.5, "lo": 1.4, "hi": 1.6}
    assert report(here, "--no-quality")[0] == 1
    code, told, _ = report(changed(measured, tmp_path / "there", timed(99)), "--no-quality")
    assert (code, told["speed"][0]) == (0, "skipped")
    assert "99 threads, batch 8; here are" in told["speed"][1]


def test_speed_is_really_timed(measured, tmp_path, report, monkeypatch):
    few = {"repetitions": 6, "most_repetitions": 6}
    monkeypatch.setattr(verify, "time_recipes", lambda *given, **more: time_recipes(*given, **more, **few))

    def timed(content):
        wide = {"value": 1.0, "lo": 0.0, "hi": 9.0}
        one = {"device": device_name("cpu"), "threads": torch.get_num_threads(), "batch": 1, "speedup": wide}
        content["measured"]["speed"] = [one]

    code, found, _ = report(changed(measured, tmp_path / "r", timed), "--no-quality")
    assert (code, found["speed"][0]) == (0, "ok")


def test_an_old_file_without_images_or_a_suite_is_loaded(tmp_path, light_words, report):
    made = saved(tmp_path / "r", light_words, FAST, samples=None)
    code, found, _ = report(made, "--no-speed", "--no-quality")
    assert (code, found["images"][0]) == (0, "skipped")
    bare = FAST.save(tmp_path / "bare")
    code, found, _ = report(bare, *light_words)
    assert code == 0
    assert [outcome for outcome, _ in found.values()] == ["ok", *["skipped"] * 4]


BAD = {
    "missing": (lambda path: path.unlink(), "cannot read .*Give the folder of a recipe"),
    "newer": (lambda path: _text(path, "schema: 1", "schema: 2"), "upgrade accel"),
    "older": (lambda path: _text(path, "schema: 1", "schema: 0"), "write it again"),
    "method": (lambda path: _text(path, "method: dpmpp_2m", "method: dpmpp_9m"), "unknown method of axis sampler"),
}  # fmt: skip


def _text(path: Path, before: str, after: str) -> None:
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after, 1))
    changed = text.read(path)
    path.write_text(text.text_of(changed | {"sha256": text.digest(changed)}))


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_is_wrong_is_one_error(case, fast, tmp_path):
    shutil.copytree(fast, tmp_path / "r")
    change, reason = BAD[case]
    change(tmp_path / "r/recipe.yaml")
    with pytest.raises(AccelError, match=reason):
        cli.main([str(tmp_path / "r")])


def test_a_recipe_for_another_architecture_fails_on_its_model(fast, report):
    code, found, _ = report(fast, "suite=digits_dit")
    assert code == 1
    assert "another model than that of this suite 'digits_dit'" in found["model"][1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_for_a_gpu_without_one_is_an_error(tmp_path, light_words):
    tf32 = Recipe(FAST.sampler, precision=recipe(precision="tf32").precision)
    made = saved(tmp_path / "r", light_words, tf32, samples=None)
    with pytest.raises(IncompatibleError, match=r"tf32 .*CUDA"):
        cli.main([str(made)])
    with pytest.raises(ConfigError, match="--device=cuda, but torch sees no GPU"):
        cli.main([str(made), "--device", "cuda"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--n", "10"], "--n is 10; allowed: an integer >= 60"),
        (["--tolerance", "-1"], "--tolerance is -1"),
        (["sampler=ddim"], "accel verify takes settings of the suite, and 'sampler=ddim' is none"),
        (["suite=digts"], "unknown suite 'digts'. Did you mean digits"),
        (["suite=hub", "suite.model=nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_words(words, reason, fast):
    with pytest.raises(AccelError, match=reason):
        cli.main([str(fast), *words])


def test_other_prompts_than_were_measured_are_said(sd, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(reversed(hub_tiny.PROMPTS)))
    with pytest.raises(ConfigError, match=r"has other prompts than the recipe was measured with"):
        cli.main([str(sd), f"suite.prompts.path={tmp_path / 'other.txt'}"])
