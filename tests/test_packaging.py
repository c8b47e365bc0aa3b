"""The package: what it carries, what it needs, and what it says where something is missing.

`.ci/wheel` builds, installs and uses the wheel for real.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import accel
from accel import config
from accel.errors import ConfigError, check_installed, needs

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
BENCH = ("hydra", "omegaconf", "wandb", "pandas", "matplotlib", "rich", "sklearn", "torchmetrics", "transformers")
EXTRAS = ("bench", "dev", "hub", "deepcache", "torchao", "openvino", "search", "workspace", "cluster", "ray")


def requirements(name: str) -> dict[str, str]:
    """{package: specifier} of `dependencies` or of an extra."""
    body = re.search(rf"^{name} = \[(.*?)\](?: *#.*)?$", PYPROJECT, re.DOTALL | re.MULTILINE)[1]
    return dict(re.findall(r'"([\w-]+(?:\[\w+\])?)([^"]*)"', re.sub(r"#.*", "", body)))


def pins(file: str) -> dict[str, str]:
    found = re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


# Uses of an optional package, and the one that each needs.
USES = {
    "from accel.suites.digits.data import digits; digits()": "sklearn",
    "from accel.metrics.fid import FrechetDistance as F; F(torch.randn(9, 2))": "torchmetrics",
    "from accel.suites.shapes import ShapesSuite; ShapesSuite().pipeline()": "transformers",
    "from accel.config import choice_of; choice_of('sampler', 'ddim', 'sampler.steps=5')": "hydra",
    "from accel.precision.simulated.mixdq import similarity; similarity(*2 * [torch.rand(1, 1, 8, 8)])": "torchmetrics",
}
COMMANDS = ((), ("sampler=ddim",), ("-m", "sampler=ddim"))
SNIPPET = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
CORE_ONLY = """
import contextlib, importlib.util as util, io, json, sys
root, absent, snippet, uses, commands = json.loads(sys.argv.pop())
real = util.find_spec

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
util.find_spec = lambda name, package=None: None if name.partition(".")[0] in absent else real(name, package)
sys.path.insert(0, root)
told = {"uses": {}, "commands": []}
with contextlib.redirect_stdout(io.StringIO()) as out:
    exec(snippet, {})
told["snippet"] = out.getvalue()
import torch
from accel.__main__ import main
from accel.errors import ConfigError
for use in uses:
    try:
        exec(use, {"torch": torch})
    except ConfigError as error:
        told["uses"][use] = str(error)
for arguments in commands:
    sys.argv = ["accel", *arguments]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            main()
    except SystemExit as ended:
        told["commands"].append([ended.code, errors.getvalue()])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def core_only(tmp_path_factory):
    """What accel says in an empty folder, in a process for which the packages of `bench` are not installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    asked = json.dumps([str(ROOT), BENCH, SNIPPET, list(USES), COMMANDS])
    ended = subprocess.run([sys.executable, "-c", CORE_ONLY, asked], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.iterdir())
    return json.loads(ended.stdout)


# --- what the package carries


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built here from the files that git knows, with the setuptools that is installed."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "accel", "conf"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "out").mkdir()
    code = "from setuptools import build_meta; build_meta.build_wheel('out')"
    built = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "absent from the `packages` configuration" not in built.stderr
    [file] = (folder / "out").glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_has_every_module_configuration_and_weight(wheel):
    def those(folder: Path, suffixes: tuple[str, ...]) -> set[Path]:
        return {path for path in folder.rglob("*") if path.suffix in suffixes}

    own = those(ROOT / "accel", (".py", ".json", ".txt", ".safetensors", ".html", ".css", ".js"))
    conf = {path for path in those(ROOT / "conf", (".yaml", ".csv")) if "local" not in path.parts}
    expected = {str(path.relative_to(ROOT)) for path in own} | {f"accel/{path.relative_to(ROOT)}" for path in conf}
    assert len(conf) > 100
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_conf_is_the_clones_here_and_the_packages_where_it_was_installed(tmp_path):
    assert ROOT / "conf" == config.CONF
    package = tmp_path / "accel"
    shutil.copytree(ROOT / "accel", package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (package / "conf").mkdir()
    (tmp_path / "conf").mkdir()  # somebody else's, beside the package
    code = "from accel.config import CONF; print(CONF)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == (package / "conf").resolve()


def test_one_version():
    assert re.search(r'^version = "(.+)"', PYPROJECT, re.MULTILINE)[1] == accel.__version__


# --- what it needs


def test_the_first_example_needs_the_core_only(core_only):
    assert "base:full base:shallow" in core_only["snippet"]


def test_core_and_extras_are_as_the_readme_says():
    assert set(requirements("dependencies")) == {"torch", "diffusers", "numpy", "scipy", "safetensors"}
    assert "accel-diffusion[bench]" in requirements("dev")
    for extra in EXTRAS:
        assert not {"torch", "torchvision", "torch-fidelity"} & set(requirements(extra)), extra


def test_the_lowest_versions_that_are_tested_are_the_ones_that_are_allowed():
    lowest, newest = pins("constraints-lowest.txt"), pins("constraints.txt")
    for name, specifier in (requirements("dependencies") | requirements("bench")).items():
        bound = re.match(r">=([\d.]+)", specifier)[1]
        assert (lowest[name] + ".0").startswith(bound + "."), name
        assert name in newest, f"constraints.txt does not pin {name}"


# --- what is said where something is missing


@pytest.mark.parametrize("place", range(len(COMMANDS)))
def test_the_command_line_without_hydra_says_what_to_install(core_only, place):
    code, told = core_only["commands"][place]
    assert code == 2
    [line] = told.splitlines()
    assert line.startswith(
        "error: the command line needs hydra, rich, pandas, matplotlib, torchmetrics (not installed)"
    )
    assert "pip install 'accel-diffusion[bench]'" in line


@pytest.mark.parametrize(("use", "package"), USES.items())
def test_each_use_of_an_optional_package_says_what_to_install(core_only, use, package):
    told = core_only["uses"][use]
    reason = r"\((No module named .*|not installed)\)"
    assert re.search(rf" needs {package}.* {reason}.*pip install 'accel-diffusion\[bench\]'\.$", told), told


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(monkeypatch):
    assert needs("json", "bench", "this").loads("1") == 1
    check_installed(("json", "re"), "bench", "this")
    with pytest.raises(
        ConfigError, match=r"^this needs n0 \(No module named 'n0'\); install it: pip install '.*\[x\]', or"
    ):
        needs("n0", "x", "this", ", or not")
    monkeypatch.setattr("accel.errors.import_module", lambda name: (_ for _ in ()).throw(RuntimeError("another torch")))
    with pytest.raises(ConfigError, match=r"this needs json, which is there .*\(another torch\).* remove it"):
        needs("json", "bench", "this")
