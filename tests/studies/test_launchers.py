"""Launchers: Ray and submitit start workers, of which one is killed; presets of Hydra's; what is refused."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from fleets import EVALUATION, euler, made, measured, printed

from accel import __main__ as cli
from accel.cli.application import check_launcher
from accel.config import CONF, compose, instantiate
from accel.errors import ConfigError
from accel.registry import load
from accel.studies.launchers import Ray, Submitit, check_answers
from accel.studies.status import statuses
from accel.studies.worker import Work
from accel.testing.elsewhere import Elsewhere

ROOT = Path(__file__).parents[2]
PRESETS = sorted(file.stem for file in (CONF / "hydra" / "launcher").glob("*.yaml"))
needs = {
    name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed (extra `{extra}`)")
    for name, extra in (("ray", "ray"), ("submitit", "cluster"))
}


def kill_one(root: Path, killed: list[int], over: threading.Event) -> None:
    """Kill the first worker that has made something, in the middle of a cell."""
    while not over.wait(0.02):
        for status, _ in statuses(root):
            if status.samples and status.pid != os.getpid():
                os.kill(status.pid, signal.SIGKILL)
                killed.append(status.place)
                return


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [pytest.param(Ray(), marks=needs["ray"]), pytest.param(Submitit(cluster="local"), marks=needs["submitit"])],
    ids=["ray", "submitit"],
)
def test_a_worker_that_is_killed_is_redone_by_others_and_the_table_is_that_of_one_process(
    launcher, tmp_path, monkeypatch
):
    """Three of them, on cells of many shards: all files are those of a process alone, bit for bit."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]))
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])
    evaluation = replace(EVALUATION, n=512, batch=16)
    cells = [euler(20 + s) for s in (1, 2, 3)]
    alone = made(tmp_path / "alone", cells, evaluation)
    many = made(tmp_path / "many", cells, evaluation, locks="lease", workers=3, launcher=launcher)
    killed, over = [], threading.Event()
    thread = threading.Thread(target=kill_one, args=(tmp_path / "many", killed, over))
    thread.start()
    assert many.run() == 0
    over.set()
    thread.join()
    assert alone.run() == 0
    assert len(killed) == 1
    assert f"worker {killed[0]} died" in printed(many)
    found, expected = measured(many.results.root), measured(alone.results.root)
    assert {p: c for p, c in found.items() if not p.startswith("submitit/") and "/." not in p} == expected
    assert len(expected) > 150


@pytest.mark.parametrize("choice", ["ray", "submitit"])
def test_what_a_launcher_needs_is_said_before_anything_runs(choice, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None if name == choice else find_spec(name))
    words = ["suite=mixture", f"launcher={choice}", "workers=300", f"results={tmp_path}/r"]
    monkeypatch.setattr(sys, "argv", ["accel", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    extra = {"ray": "ray", "submitit": "cluster"}[choice]
    assert f"launcher={choice} needs {choice} (not installed); install it: pip install 'accel-diffusion[{extra}]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launcher=rya"], r"unknown launcher 'rya'\. Did you mean ray\?"),
        (["launcher=ray", "launcher.cpus=0"], r"launcher\.cpus is 0; allowed: an integer >= 1"),
        (["launcher=ray", "launcher.gpus=-1"], r"launcher\.gpus is -1; allowed: a number >= 0"),
        (["launcher=submitit", "launcher.cluster=pbs"], r"launcher\.cluster is 'pbs'; allowed: slurm, local"),
        (["launcher=submitit", "launcher.gpus=0.5"], r"launcher\.gpus is 0\.5; allowed with submitit: whole GPUs"),
    ],
)
def test_what_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        instantiate(compose(words).launcher)


def test_a_cluster_that_does_not_answer_is_said_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(ConfigError, match=rf"{address}: Ray does not answer there \(.*refused"):
                check_answers(address)
        taken.listen()
        check_answers(f"127.0.0.1:{port}")
    check_answers("auto")
    check_answers(None)


def test_each_worker_sees_its_own_gpu_alone():
    """So it is the first there, whatever the command calls it; its threads are its CPUs."""
    work = Work(None, replace(EVALUATION, device="cpu"), None, threads=7)
    assert Ray(cpus=3).placed(work, 5).threads == 3
    assert Ray().placed(work, 5).evaluation.device == "cpu"
    assert [Ray(gpus=gpus).cards(kind) for gpus, kind in ((None, "cpu"), (None, "cuda"), (0.5, "cuda"))] == [0, 1, 0.5]
    with Elsewhere():
        work = Work(None, replace(EVALUATION, device="cuda:1"), None, threads=7)
        assert Submitit().placed(work, 5).evaluation.device == "cuda"


# --- Hydra's


def test_presets_are_refused_where_their_plugin_is_not_there(monkeypatch):
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    for preset in PRESETS:
        with pytest.raises(ConfigError, match=rf"hydra/launcher={preset} needs hydra_plugins\.\w+ .*\[cluster\]"):
            check_launcher([f"hydra/launcher={preset}", "sampler=ddim"])
    check_launcher(["hydra/launcher=basic", "sampler=ddim"])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_what_their_plugins_take(preset):
    """Every setting of the preset is one of the plugin's, and all that the plugin cannot do without are there."""
    plugin = preset.split("_")[1]
    module = f"hydra_plugins.hydra_{plugin}_launcher"
    if find_spec("hydra_plugins") is None or find_spec(module) is None:
        pytest.skip("the plugin is not installed (extra `cluster`)")
    from hydra.core.config_store import ConfigStore

    __import__(f"{module}.config")
    own = load_preset(preset)
    known = ConfigStore.instance().repo["hydra"]["launcher"][f"{own['defaults'][0]}.yaml"].node
    assert set(own) - {"_target_", "defaults"} <= set(known)
    assert own["_target_"] == known["_target_"]


def load_preset(preset: str) -> dict:
    import yaml

    return yaml.safe_load((CONF / "hydra" / "launcher" / f"{preset}.yaml").read_text())


def test_the_choices_are_those_of_the_documentation():
    assert PRESETS == ["accel_joblib", "accel_submitit_local", "accel_submitit_slurm"]
    assert load("launcher", "ray").keys() >= {"address", "cpus", "gpus"}
    assert Counter(type(instantiate(compose([f"launcher={c}"]).launcher)).__name__ for c in ("none", "ray")) == {
        "NoneType": 1,
        "Ray": 1,
    }
