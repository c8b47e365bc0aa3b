"""`accel generate`: images of a recipe file are the harness's own, and bad requests are answered before any work."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from saved import FAST, PLAIN, pixels, saved

from accel.cli import generate as cli
from accel.config import compose, instantiate
from accel.core.recipe import accelerate
from accel.deploy.suite_words import combined
from accel.errors import AccelError, ConfigError
from accel.evaluation.generate import generate


def harness(suite, recipe, seed, start, stop):
    pipe = suite.pipeline()
    with accelerate(pipe, recipe):
        return suite.to_uint8(generate(pipe, suite, recipe, seed, start, stop, stop - start))


def test_without_words_they_are_the_measured_samples(fast, light_suite, tmp_path, capsys):
    assert cli.main([str(fast), "--count", "3", "--seed", "5", "--to", str(tmp_path)]) == 0
    expected = harness(light_suite, FAST, 5, 0, 3)
    paths = [tmp_path / f"5-{i:06d}.png" for i in range(3)]
    assert capsys.readouterr().out.splitlines() == [f"{path}  {i}" for i, path in enumerate(paths)]
    for path, image in zip(paths, expected, strict=True):
        assert torch.equal(pixels(path), image)
    assert Image.open(paths[2]).text == {"recipe": FAST.label, "seed": "5", "sample": "2", "shows": "2"}


def test_labels_are_shown_from_the_noise_of_their_places(fast, light_suite, tmp_path):
    assert cli.main([str(fast), "0", "1", "--count", "2", "--to", str(tmp_path)]) == 0
    assert torch.equal(pixels(tmp_path / "0-000001.png"), harness(light_suite, FAST, 0, 0, 4)[1])
    assert Image.open(tmp_path / "0-000003.png").text["shows"] == "1"
    first, again = pixels(tmp_path / "0-000000.png"), pixels(tmp_path / "0-000002.png")
    assert not torch.equal(first, again), "the same label from other noise"


def test_prompts_need_no_prompt_file(sd, sd_words, tmp_path):
    suite = instantiate(compose(sd_words)["suite"])
    prompts = [suite.prompts.at(i) for i in range(2)]
    gone = "suite.prompts.path=nowhere.txt"
    assert cli.main([str(sd), *prompts, "--to", str(tmp_path), gone]) == 0
    expected = harness(suite, PLAIN, 0, 0, 2)
    assert all(torch.equal(pixels(tmp_path / f"0-{i:06d}.png"), expected[i]) for i in range(2))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{fast}", "11"], r"class label is '11'; allowed: 0\.\.9"),
        (["{fast}", "a red cat"], "class label is 'a red cat'"),
        (["{tmp}/nowhere"], "cannot read .*nowhere.*Give the folder of a recipe"),
        (["{fast}", "3", "--count", "0"], "--count is 0; allowed: an integer >= 1"),
        (["{fast}", "3", "--seed", "-1"], "--seed is -1"),
        (["{fast}", "3", "--device", "gpu"], "--device is 'gpu'; allowed: auto, cpu, cuda"),
        (["{fast}", "3", "suite=digits_dit"], "another model than that of this suite 'digits_dit'"),
        (["{fast}", "3", "+suite.weights=nowhere"], "no weights at nowhere"),
        (["{fast}", "3", "suite=digts"], "unknown suite 'digts'. Did you mean digits"),
        (["{fast}", "3", "--sede", "1"], "unrecognized arguments: --sede"),
        (["{sd}", "--count", "9"], "has 4 prompts, and 9 samples are wanted"),
        (["{sd}", "a", "suite.model=nowhere"], "nowhere"),
    ],
)
def test_bad_requests_are_one_error(words, reason, fast, sd, tmp_path):
    words = [word.format(fast=fast, sd=sd, tmp=tmp_path) for word in words]
    with pytest.raises(AccelError, match=reason):
        cli.main([*words, "--to", str(tmp_path / "made")])
    assert not (tmp_path / "made").exists()


def test_a_file_is_no_folder_for_pictures(fast, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file; allowed: a folder for the images"):
        cli.main([str(fast), "3", "--to", str(tmp_path / "file")])


def test_a_picture_that_is_there_is_kept(fast, tmp_path):
    (tmp_path / "0-000000.png").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; choose another folder with --to"):
        cli.main([str(fast), "3", "--to", str(tmp_path)])
    assert (tmp_path / "0-000000.png").read_text() == "mine"


def test_what_makes_no_pictures_or_shows_nothing_is_said(tmp_path):
    from accel.core.recipe import Recipe

    path = saved(tmp_path / "m", ["suite=mixture"], Recipe(FAST.sampler))
    with pytest.raises(ConfigError, match="makes points, no pictures"):
        cli.main([str(path.parent), "--to", str(tmp_path)])


def test_a_recipe_without_a_suite_asks_for_one(tmp_path, light_words):
    path = FAST.save(tmp_path / "bare")
    with pytest.raises(ConfigError, match="does not say which suite it was measured on; name it"):
        cli.main([str(path), "3", "--to", str(tmp_path / "a")])
    assert cli.main([str(path), "3", *light_words, "--to", str(tmp_path / "a")]) == 0


def test_words_of_the_command_line_replace_those_of_the_file():
    recorded = ["suite=hub", "suite.model=a", "suite.dtype=float16"]
    assert combined(recorded, ["suite.model=b"]) == ["suite=hub", "suite.dtype=float16", "suite.model=b"]
    assert combined(recorded, ["suite=digits"]) == ["suite=digits"]
    assert combined(recorded, []) == recorded


def test_memory_that_runs_out_names_the_option_of_this_command(fast, tmp_path, monkeypatch):
    from accel.evaluation import generate as module

    def full(*given):
        raise MemoryError

    monkeypatch.setattr(module, "run_pipeline", full)
    with pytest.raises(AccelError, match=r"out of memory with --batch 4; try --batch 2\.$"):
        cli.main([str(fast), "3", "--count", "4", "--to", str(tmp_path)])
