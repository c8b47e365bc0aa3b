"""What a record says of the machine and of the accel that made it: beside what identifies it, never in it."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, PathDistribution

import pytest
import torch

import accel
from accel.core import environment as module
from accel.core.environment import environment, instruction_set, provenance, with_provenance
from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.floor import floor
from accel.studies.runner import Runner

CPUINFO = {
    "flags\t\t: fpu avx2 avx512f avx512_vnni nonsense\n": ["avx2", "avx512f", "avx512_vnni"],
    "flags : avx2 amx_tile amx_bf16 amx_int8": ["avx2", "amx_tile", "amx_int8", "amx_bf16"],
    "Features : fp asimd bf16 i8mm": ["asimd", "bf16", "i8mm"],
    "": [],
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(cpuinfo, told): what Linux and torch say of the processor."""

    def machine(cpuinfo: str, told=(), amx=False):
        path = tmp_path / "cpuinfo"
        path.write_text("model name : Testchip 9\n" + cpuinfo)
        monkeypatch.setattr(module, "CPUINFO", path)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(told), raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    return machine


@pytest.mark.parametrize(("cpuinfo", "expected"), CPUINFO.items())
def test_what_linux_says(machine, cpuinfo, expected):
    machine(cpuinfo)
    assert instruction_set() == expected


def test_what_torch_says_counts_too(machine, monkeypatch):
    machine("", {"avx2": True, "avx512_bf16": True, "amx_bf16": False, "architecture": "x86"}, amx=True)
    assert instruction_set() == ["avx2", "avx512_bf16", "amx_tile"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.6 has none
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert instruction_set() == []


def test_a_limit_on_the_kernels_is_said(machine, monkeypatch):
    machine("flags : avx2 amx_tile")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert instruction_set() == ["avx2", "amx_tile", "oneDNN<=AVX512_CORE_VNNI"]


def test_it_is_in_timing_records_but_not_in_their_identity(machine, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.evaluation.timing.generate", lambda *args, **kwargs: None)
    recipes = [Recipe(DiffusersSampler("DDIMScheduler", steps)) for steps in (2, 4)]

    def timing(folder, cpuinfo):
        machine(cpuinfo)
        runner = Runner(digits, Evaluation(device="cpu", repetitions=6, most_repetitions=6), Results(tmp_path / folder))
        return runner.timing(*recipes)

    old, new = timing("old", ""), timing("new", "flags : avx512_vnni")
    assert (old["isa"], new["isa"]) == ([], ["avx512_vnni"])
    assert old["id"] == new["id"]
    assert old["environment"] == new["environment"]
    assert "avx512_vnni" not in json.dumps(new["environment"])
    assert set(environment()) == {"device", "device_name", "threads", "python", "system", "packages"}


# --- which accel made it


@pytest.fixture
def root(monkeypatch, tmp_path):
    """The folder that accel seems to be imported from."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    provenance.cache_clear()
    yield tmp_path
    provenance.cache_clear()


def git(folder, *command):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    told = subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True)
    return told.stdout.strip()


def clone(folder, name="accel-diffusion"):
    """A repository of a project called `name`; its commit."""
    (folder / "pyproject.toml").write_text(f'name = "{name}"\n')
    for room in ("accel", "conf", "results"):
        (folder / room).mkdir()
        (folder / room / "file").write_text("1")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD")


def test_a_clone_says_its_commit_and_whether_its_code_was_changed(root, monkeypatch, tmp_path_factory):
    commit = clone(root)
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("another")))  # as in a hook
    assert provenance()["accel"] == accel.__version__
    assert provenance()["commit"] == commit
    (root / "results" / "file").write_text("2")  # what a study writes
    provenance.cache_clear()
    assert provenance()["commit"] == commit
    (root / "accel" / "new").write_text("3")
    assert provenance()["commit"] == commit, "as it was when the process began"
    provenance.cache_clear()
    assert provenance()["commit"] == f"{commit}-dirty"


def test_no_commit_of_another_project_or_without_git(root, monkeypatch):
    monkeypatch.setattr(module, "distribution", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    clone(root, "somebody-elses")
    assert provenance()["commit"] is None
    (root / "pyproject.toml").write_text('name = "accel-diffusion"')
    monkeypatch.setenv("PATH", "")
    provenance.cache_clear()
    assert provenance()["commit"] is None


@pytest.mark.parametrize("source", [None, {"vcs_info": {"vcs": "git", "commit_id": "abc"}}, {"dir_info": {}}])
def test_an_installed_package_says_the_commit_that_pip_was_given(root, monkeypatch, source):
    folder = root / "accel_diffusion-0.1.0.dist-info"
    folder.mkdir()
    if source:
        (folder / "direct_url.json").write_text(json.dumps(source))
    monkeypatch.setattr(module, "distribution", lambda name: PathDistribution(folder))
    assert provenance()["commit"] is None, "the package that is imported is another one"
    monkeypatch.setattr(accel, "__file__", str(root / "accel" / "__init__.py"))
    provenance.cache_clear()
    assert provenance()["commit"] == ("abc" if source and "vcs_info" in source else None)


def test_versions_of_optional_packages_where_they_are_installed(root, monkeypatch):
    def version(name):
        if name == "wandb":
            raise PackageNotFoundError(name)
        return "5.1"

    monkeypatch.setattr(module, "version", version)
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    found = {k: v for k, v in provenance().items() if k not in ("accel", "commit")}
    assert found == {"omp_wait": "GOMP_SPINCOUNT=7", "transformers": "5.1"}


def test_records_say_what_made_them_and_ids_do_not_change(machine, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.evaluation.timing.generate", lambda *args, **kwargs: None)
    monkeypatch.setattr(Runner, "converged_images", lambda self, recipe: None)
    recipes = [Recipe(DiffusersSampler("DDIMScheduler", steps)) for steps in (2, 4)]
    how = Evaluation(n=60, distance_n=60, device="cpu", repetitions=6, most_repetitions=6)
    machine("")
    made = {}
    for commit in ("abc", "def-dirty"):
        told = {"accel": "0.1.0", "commit": commit}
        for room in ("runner", "samples", "floor"):
            monkeypatch.setattr(f"accel.studies.{room}.provenance", lambda told=told: told)
        runner = Runner(digits, how, Results(tmp_path / commit))
        made[commit] = [floor(runner), runner.quality(recipes[0]), runner.timing(*recipes)]
        assert [r["environment"]["commit"] for r in made[commit]] == [commit] * 3
        assert [runner.results.load(r["kind"], r["id"])["environment"]["commit"] for r in made[commit]] == [commit] * 3
    assert [r["id"] for r in made["abc"]] == [r["id"] for r in made["def-dirty"]]
    assert runner.timing_id(*recipes) == made["abc"][2]["id"]


def test_the_environment_of_a_finished_record_is_extended_not_replaced(root):
    record = {"id": "x", "environment": {"device": "cpu"}}
    assert with_provenance(record) == {"id": "x", "environment": {"device": "cpu"} | provenance()}
    assert record == {"id": "x", "environment": {"device": "cpu"}}
