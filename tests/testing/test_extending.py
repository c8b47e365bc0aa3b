"""docs/extending.md and its example package: installed as a user would, then found, planned, explained, tested."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forks import started

from accel import __main__ as cli
from accel import config, registry
from accel.errors import ConfigError
from accel.registry import config_folders
from accel.testing import CHECKS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example_package"
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = [p.relative_to(EXAMPLE).as_posix() for p in EXAMPLE.rglob("*") if p.suffix in (".py", ".yaml", ".toml")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip installed the package into, without network; built from a copy, which pip writes into."""
    place = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, place / "source")
    target = place / "site"
    if not all(importlib.util.find_spec(name) for name in ("pip", "setuptools")):
        return by_hand(target)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run([*pip, "--target", str(target), str(place / "source")], cwd=place)
    return target


def by_hand(target: Path) -> Path:
    """What pip would write, as far as Python looks at it."""
    project = (EXAMPLE / "pyproject.toml").read_text()
    name, version = (re.search(rf'^{key} = "(.*)"$', project, re.MULTILINE)[1] for key in ("name", "version"))
    point = re.search(r'^\[project.entry-points."(.*)"\]\n(\w+) = "(.*)"$', project, re.MULTILINE)
    shutil.copytree(EXAMPLE / "everyother", target / "everyother")
    info = target / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{point[1]}]\n{point[2]} = {point[3]}\n")
    return target


def run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_every_file_as_it_is(name):
    shown = re.search(rf"^`{re.escape(name)}`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown, f"docs/extending.md does not show {name}"
    assert shown[1] == (EXAMPLE / name).read_text()


def test_the_page_names_every_point_of_the_contract():
    rows = re.findall(r"^\| ([a-z, ]+?)(?: \(\w+\))? \|", PAGE, re.MULTILINE)
    named = {point.strip() for row in rows for point in row.split(",")}
    assert named - {"point"} == {name for checks in CHECKS.values() for name in checks}


@pytest.fixture
def here(installed, monkeypatch):
    """The package in this process."""

    def forget():
        config_folders._points.cache_clear()
        config_folders._of_packages.cache_clear()
        for module in [m for m in sys.modules if m.partition(".")[0] == "everyother"]:
            del sys.modules[module]

    with monkeypatch.context() as patch:
        patch.syspath_prepend(installed)
        forget()
        yield
    forget()


def test_its_methods_are_explained(here, tmp_path, monkeypatch, capsys, light_digits):
    words = [
        f"+suite.weights={light_digits}",
        "sampler=ab2",
        "sampler.steps=4",
        "cache=everyother",
        "cache.every=2,3",
        "explain=true",
    ]
    monkeypatch.setattr(sys, "argv", ["accel", f"results={tmp_path}", "-m", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed
    assert "ab2-4 + everyother2" in printed
    assert "ab2-4 + everyother3" in printed


def test_a_typo_in_its_name_is_answered(here):
    with pytest.raises(ConfigError, match=r"unknown cache 'everyothr'\. Did you mean everyother"):
        config.compose(["cache=everyothr"])


def test_it_is_built_without_hydra(here, monkeypatch):
    for name in {"hydra", "omegaconf", *(m for m in sys.modules if m.startswith(("hydra.", "omegaconf.")))}:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert registry.method("cache", "everyother", every=3).label == "everyother3"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_its_own_test_passes(here, tmp_path):
    """By pytest in a process that is forked, for torch is loaded here."""
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")

    def own():
        os.chdir(tmp_path)
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests"]))

    process = started(own, tmp_path / "printed", tmp_path / "printed")
    process.join()
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 0, printed
    assert f"{len(CHECKS['cache']) + 2} passed" in printed
