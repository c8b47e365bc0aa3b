"""workers=N on the command line: processes of their own, one table, exit codes, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from accel import __main__ as cli
from accel.studies.pool import Pool

QUICK = [
    "suite=digits", "suite.converged_steps=3", "evaluation.n=60", "evaluation.distance_n=60", "evaluation.shard=4",
    "evaluation.batch=4", "evaluation.controls=false", "wandb=disabled", "study=s",
    'baseline=["sampler=ddim","sampler.steps=2"]',
]  # fmt: skip


def command(root: Path, *more: str) -> subprocess.Popen:
    cells = 'cells=[["sampler=euler","sampler.steps=3,4"],["sampler=unipc","sampler.steps=5"]]'
    words = [*QUICK, cells, f"results={root}", "workers=2", *more]
    return subprocess.Popen([sys.executable, "-m", "accel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)  # fmt: skip


def shards(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(root.rglob("shards/*/*.safetensors"))}


def running(group: int) -> list[str]:
    """The processes of a group, without those that have ended and wait to be noticed."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
            found += [f"{stat.parent.name} {state}"] if int(own) == group and state not in "ZX" else []
    return found


def test_an_interrupt_keeps_finished_shards_and_the_same_command_goes_on(tmp_path):
    """The whole group hears it, as at a terminal; afterwards no process is left. Times are those of the command, on
    all threads; scores say on how many they were made."""
    process = command(tmp_path, "threads=2", "evaluation.timing=false")
    end = time.monotonic() + 120
    while len(shards(tmp_path)) < 10 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    printed, wrong = process.communicate(timeout=60)
    assert process.returncode == 130, printed + wrong
    assert wrong == "\ninterrupted: finished shards are kept; run the same command again to resume.\n"
    end = time.monotonic() + 5
    while left := running(process.pid):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    finished = shards(tmp_path)
    assert 10 <= len(finished) < 75, "it must come in the middle"
    assert not [p for p in tmp_path.rglob(".*") if not p.name.endswith(".lock")], "no temporary file stays behind"

    rounds = ("evaluation.repetitions=6", "evaluation.most_repetitions=6", "evaluation.timing_batch=1")
    process = command(tmp_path, "threads=2", *rounds)
    printed, wrong = process.communicate(timeout=120)
    assert process.returncode == 0, printed + wrong
    assert {k: v for k, v in shards(tmp_path).items() if k in finished} == finished
    records = [json.loads(p.read_text()) for p in tmp_path.glob("records/*/*.json")]
    assert {r["environment"]["threads"] for r in records if r["kind"] == "quality"} == {1}
    assert {r["threads"] for r in records if r["kind"] == "timing"} == {2}
    assert printed.count("written:") == 1


@pytest.fixture
def accel(monkeypatch, capsys, tmp_path):
    """accel(*words) -> (exit code, everything printed); no worker may be started."""

    def start(self, place):
        raise AssertionError("a worker is started")

    def accel(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["accel", *QUICK, f"results={tmp_path}/results", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    monkeypatch.setattr(Pool, "_start", start)
    return accel


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["workers=0"], "workers is 0; allowed: an integer in [1, "),
        (["workers=two"], "workers is 'two'; allowed: an integer in [1, "),
        (["workers=100000"], "workers is 100000; allowed: an integer in [1, "),
        (["workers=2", "sampler.steps=1001"], "1..1000"),
        (["workers=2", "search=timesteps"], "workers=2 is for a study of recipes, and a search is asked for; use "
         "search.workers=2"),
        (["workers=2", "search=timesteps", "plan=true"], "search.workers=2"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_once_before_anything_runs(words, said, accel, tmp_path):
    code, printed = accel(*words)
    assert code == 2, printed
    assert printed.count("error:") == 1
    assert printed.count(said) == 1
    assert not (tmp_path / "results").exists()


def test_a_plan_and_an_explanation_start_none(accel):
    code, printed = accel("workers=2", "plan=true")
    assert code == 0
    assert "workers=2 share the sampling, not the timing" in " ".join(printed.split())
    code, printed = accel("workers=2", "explain=true", "sampler.steps=2")
    assert code == 0
    assert "workers=2 have nothing to share here" in " ".join(printed.split())
