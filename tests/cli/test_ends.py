"""How a command ends: by a signal at any moment, also while it is still importing; and with the codes of its jobs."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accel import __main__ as cli
from accel.cli import application

ROOT = Path(__file__).parents[2]


def stopped(where: str, number: int) -> subprocess.CompletedProcess:
    """A command that gets a signal at the first import of a module."""
    script = (
        "import builtins, os, sys\n"
        "plain = builtins.__import__\n"
        "def imports(name, *args, **kwargs):\n"
        f"    if name == {where!r}:\n"
        "        builtins.__import__ = plain\n"
        f"        os.kill(os.getpid(), {number})\n"
        "    return plain(name, *args, **kwargs)\n"
        "from accel.__main__ import main\n"
        "builtins.__import__ = imports\n"
        "sys.argv = ['accel', 'list', 'cache']\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("where", ["accel.cli.application", "yaml"])
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_importing_ends_like_any_other(where, number, code, said):
    done = stopped(where, number)
    assert done.returncode == code, done.stderr
    assert done.stderr == f"\n{said}: finished shards are kept; run the same command again to resume.\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle(number, code, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(application, "split", lambda words: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "argv", ["accel", "list"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert "run the same command again to resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_waiting_threads_spin_for_a_moment_unless_told_otherwise():
    """What the environment says when libraries are loaded, and what records then say of it."""
    cases = {
        "GOMP_SPINCOUNT=10000 KMP_BLOCKTIME=1": {},
        "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
        "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    }
    script = (
        "import os, sys\n"
        "from accel.__main__ import main\n"
        "sys.argv, before, set_by = ['accel', '--version'], dict(os.environ), []\n"
        f"for given in {list(cases.values())!r}:\n"
        "    os.environ.clear()\n"
        "    os.environ.update(before | given)\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "    set_by.append(dict(os.environ))\n"
        "assert 'torch' not in sys.modules\n"
        "from accel.core.environment import threads_wait\n"
        "for found in set_by:\n"
        "    os.environ.clear()\n"
        "    os.environ.update(found)\n"
        "    print('SAID', threads_wait())\n"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    own = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=own)
    said = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert said == list(cases), done.stderr


@pytest.fixture
def elsewhere(monkeypatch):
    """Jobs of a multirun in processes of their own, which give back what they return, as launchers of clusters do."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.utils import JobReturn, JobStatus

    from accel.config import compose

    def launch(self, job_overrides, initial_job_idx):
        found = []
        for overrides in job_overrides:
            reading, writing = os.pipe()
            if os.fork() == 0:
                code = application._job(compose(list(overrides)))
                os.write(writing, pickle.dumps(JobReturn(_return_value=code, status=JobStatus.COMPLETED)))
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading, "rb") as file:
                found.append(pickle.loads(file.read()))
            os.wait()
        return found

    monkeypatch.setattr(BasicLauncher, "launch", launch)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("words", "code"),
    [(["sampler.steps=2,0"], 2), (["sampler.steps=2,3"], 0), (["sampler.steps=2,7,3"], 1)],
    ids=["one refused", "all done", "a cell failed"],
)
def test_the_codes_of_jobs_in_other_processes_come_back(words, code, elsewhere, monkeypatch, tmp_path):
    from accel.studies.study import Study

    monkeypatch.setattr(Study, "run", lambda self: int(self.cells[0].sampler.steps == 7))
    monkeypatch.setattr(sys, "argv", ["accel", "-m", "suite=mixture", f"results={tmp_path}", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
