"""workers=N on the command line: processes of their own, one table, exit codes, and what is refused."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from forks import started

from accel import __main__ as cli
from accel.studies.pool import Pool

QUICK = [
    "suite=mixture", "evaluation.n=60", "evaluation.distance_n=60", "evaluation.shard=4", "evaluation.batch=4",
    "evaluation.timing=false", "wandb=disabled", "study=s", 'baseline=["sampler=ddim","sampler.steps=2"]',
]  # fmt: skip
CELLS = 'cells=[["sampler=euler","sampler.steps=3,4"],["sampler=unipc","sampler.steps=5"]]'


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


def shards(root: Path) -> list[Path]:
    return list(root.glob("shards/*/*.safetensors"))


def running(group: int) -> list[Path]:
    """The processes of a group, without those that have ended and wait to be noticed."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat.parent] if int(own) == group and state not in "ZX" else []
    return found


def hears_interrupts(process: Path) -> bool:
    blocked = next(line for line in (process / "status").read_text().splitlines() if line.startswith("SigBlk"))
    return not int(blocked.split()[1], 16) >> signal.SIGINT - 1 & 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_interrupt_keeps_finished_shards_and_leaves_no_process(tmp_path):
    """The whole group hears it, as at a terminal; afterwards no process is left. Libraries of a worker are loaded with
    its share of the threads. The command is forked, for torch is loaded here; its workers start as ever."""
    root, out, wrong = (tmp_path / name for name in ("results", "out", "wrong"))
    # Many shards, of which a few are made, and no exact solution, which takes longer than all of them.
    words = [*QUICK, CELLS, f"results={root}", "evaluation.n=400", "evaluation.converged=false"]

    def command():
        sys.modules["__main__"] = cli  # as `python -m accel` has it, and as workers import it
        sys.argv = ["accel", *words, "workers=2", "threads=2"]
        cli.main()

    process = started(command, out, wrong)
    while len(shards(root)) < 10 and process.is_alive():
        time.sleep(0.05)
    workers = [p for p in running(process.pid) if b"spawn_main" in (p / "cmdline").read_bytes()]
    assert [hears_interrupts(p) for p in (Path(f"/proc/{process.pid}"), *workers)] == [True, False, False]
    assert all(b"OMP_NUM_THREADS=1" in (p / "environ").read_bytes().split(b"\0") for p in workers)
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, out.read_text() + wrong.read_text()
    assert wrong.read_text() == "\ninterrupted: finished shards are kept; run the same command again to resume.\n"
    while running(process.pid):  # the tracker of multiprocessing follows the command
        time.sleep(0.02)
    assert 10 <= len(shards(root)) < 400, "it must come in the middle"
    assert not [p for p in root.rglob(".*") if not p.name.endswith(".lock")], "no temporary file stays behind"


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
