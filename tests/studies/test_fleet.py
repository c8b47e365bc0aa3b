"""Ranks that a launcher starts: what they make is what one process makes, whatever becomes of one of them.

They are forked here; the launchers themselves are tried in tests/studies/test_launchers.py.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fleets import AG, EVALUATION, euler, made, measured, printed, rows
from forks import forked_and_logged

from accel.errors import AccelError, DivergedError
from accel.locks import leases
from accel.studies import samples
from accel.studies.launchers import Launcher
from accel.studies.status import statuses
from accel.testing.elsewhere import Elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@dataclass
class Forks(Launcher):
    """Ranks as forks, each as if on a machine of its own; `first` is called in each."""

    log: Path
    first: object
    cpus: int = 1
    gpus: float | None = None

    @contextmanager
    def executor(self, count, root, device):
        self.jobs = jobs = []
        yield self
        for job in jobs:
            job.process.kill()
            job.process.join()

    def check(self):
        pass

    def placed(self, work, place):
        return work.at(place)

    def submit(self, function, argument):
        self.jobs.append(Forked(self, function, argument))
        return self.jobs[-1]


class Forked:
    def __init__(self, launcher, function, share):
        self.ours, theirs = multiprocessing.Pipe()

        def run():
            forked_and_logged(launcher.log, launcher.log.parent)
            leases._machine = lambda: f"machine {os.getpid()}"
            launcher.first(share)
            theirs.send(function(share))

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()
        theirs.close()

    def done(self):
        return not self.process.is_alive()

    def result(self):
        try:
            return self.ours.recv()
        except EOFError:
            raise RuntimeError(f"exit code {self.process.exitcode}.") from None


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(name, cells, workers=3, evaluation, **settings) -> a study whose ranks begin with `study.first(share)`."""
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])
    monkeypatch.setattr("accel.studies.fleet.LOOK", 0.02)
    monkeypatch.setattr("accel.studies.rank.EVERY", 0.0)

    def study(name, cells, workers=3, evaluation=EVALUATION, **settings):
        launcher = Forks(tmp_path / "log", lambda share: study.first(share)) if workers > 1 else None
        return made(tmp_path / name, cells, evaluation, workers=workers, launcher=launcher, **settings)

    study.first, study.log = lambda share: None, tmp_path / "log"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield study
    torch.set_num_threads(threads)


def once(study) -> None:
    written = Counter(study.log.read_text().splitlines())
    assert {path: n for path, n in written.items() if path.endswith(".safetensors") and n > 1} == {}


def test_ranks_give_what_one_process_gives(study):
    cells = [euler(2), AG]
    alone, many = study("alone", cells, workers=1, aa=True), study("many", cells, aa=True)
    assert alone.run() == many.run() == 0
    assert measured(alone.results.root) == measured(many.results.root)
    assert printed(alone) == printed(many)
    assert {row["role"] for row in rows(many).values()} >= {"control", "aa", "cell"}
    once(study)
    assert [status.state for status, _ in statuses(many.results.root)] == ["done"] * 3

    study.log.unlink()
    again = study("many", cells, aa=True)
    assert again.run() == 0
    assert "0 of" in printed(again)
    assert not study.log.exists(), "no rank is started where nothing is missing"


def test_a_rank_that_is_killed_is_replaced_and_its_shards_are_made_once(study, tmp_path):
    cells, mark = [euler(s) for s in (2, 3, 5)], tmp_path / "killed"

    def first(share):
        put, written = os.replace, []

        def doomed(source, target):
            put(source, target)
            written.append(target) if str(target).endswith(".safetensors") else None
            if len(written) == 2 and share.place == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = doomed

    study.first = first
    alone, many = study("alone", cells, workers=1), study("many", cells, locks="lease", lease=3.0)
    assert alone.run() == many.run() == 0
    assert mark.exists()
    said = [line for line in printed(many).splitlines() if "worker 1 died in euler-" in line]
    assert len(said) == 1
    assert "another one goes on, finished shards are kept" in said[0]
    assert {p: c for p, c in measured(many.results.root).items() if not Path(p).name.startswith(".")} == measured(
        alone.results.root
    )
    once(study)


def test_a_rank_whose_disk_is_full_is_left_out_and_if_all_are_the_command_ends(study):
    def first(share):
        put = os.replace

        def full(source, target):
            if share.place in full_ones:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            put(source, target)

        os.replace = full

    study.first, full_ones = first, {1}
    alone, many = study("alone", [euler(2), euler(3)], workers=1), study("many", [euler(2), euler(3)])
    assert alone.run() == many.run() == 0
    assert "worker 1 cannot go on, the others do its work: cannot write" in printed(many)
    assert measured(many.results.root) == measured(alone.results.root)
    full_ones |= {0, 2}
    with pytest.raises(AccelError, match=r"cannot write .* Free some space and run the same command again"):
        study("full", [euler(2)]).run()


def test_a_cell_that_fails_is_not_tried_by_all_and_one_that_kills_fails(study, monkeypatch, tmp_path):
    tried, generate = tmp_path / "tried", samples.generate

    def bad(*args):
        if args[2].label == "euler-3":
            tried.open("a").write("x")
            raise DivergedError("euler-3: it diverges.")
        if args[2].label == "euler-5":
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(*args)

    monkeypatch.setattr(samples, "generate", bad)
    one = study("s", [euler(2), euler(3), euler(5)], workers=2, locks="lease", lease=2.0)
    assert one.run() == 2
    refused = {label: row["refused"] for label, row in rows(one).items() if row["refused"]}
    assert refused["euler-3"] == "failed: euler-3: it diverges."
    assert re.match(r"failed: its worker died \d times, the last time: exit code -9\. Often that", refused["euler-5"])
    assert rows(one)["euler-2"]["quality"]
    assert len(tried.read_text()) <= 2


def test_ranks_that_do_not_start(study):
    study.first = lambda share: os._exit(3)
    with pytest.raises(AccelError, match=r"workers do not start: exit code 3\. workers=1 without a launcher"):
        study("s", [euler(2)]).run()


def test_each_rank_has_a_device_of_its_own(study):
    """On pretended cards: noise and numbers are those of one process on the CPU."""
    cells = [euler(2), euler(3), euler(5)]
    alone = study("alone", cells, workers=1)
    assert alone.run() == 0
    with Elsewhere():
        many = study("many", cells, workers=2, evaluation=replace(EVALUATION, device="cuda"))

        def first(share):
            time.sleep(0.2 * share.place)
            seen.append(share.work.evaluation.device)
            with study.log.with_name("devices").open("a") as file:
                file.write(share.work.evaluation.device + "\n")

        seen, study.first = [], first
        assert many.run() == 0
    assert sorted(study.log.with_name("devices").read_text().split()) == ["cuda:0", "cuda:1"]
    devices = {record["environment"]["device"] for record in many.results.all("quality")}
    assert devices <= {"cuda:0", "cuda:1", "cuda"}
    assert {"cuda:0", "cuda:1"} & devices
    found = {p: c for p, c in measured(many.results.root).items() if p.endswith(".safetensors")}
    assert found == {p: c for p, c in measured(alone.results.root).items() if p.endswith(".safetensors")}
