"""Workers of a study: they give what one process gives, share its work, and whatever becomes of them is dealt with.

They are forked here, for a spawned one loads torch again; tests/cli/test_workers.py has the command line's.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fleets import AG, EVALUATION, euler, made, measured, printed, rows
from forks import forked, forked_and_logged

from accel.config import choice_of
from accel.core.devices import assigned, check_devices, settle
from accel.core.recipe import Recipe
from accel.errors import AccelError, ConfigError, DivergedError
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies import pool as module
from accel.studies import samples, worker
from accel.studies.evaluation import Evaluation
from accel.testing.elsewhere import Elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SEARCHED = Recipe(choice_of("sampler", "dc_solver", "sampler.steps=3"))  # whose ratios are searched


@pytest.fixture
def study(tmp_path, monkeypatch):
    """study(name, cells, workers, evaluation, **settings) -> a study in the folder `name`, and what it prints; its
    workers begin with `study.first()`, and `study.log` has a line for each file that one of them put into its place."""
    log, plain = tmp_path / "log", worker.serve

    def serve(link, work):
        forked_and_logged(log, tmp_path)
        study.first()
        plain(link, work)

    def study(name, cells, workers=2, evaluation=EVALUATION, **settings):
        return made(tmp_path / name, cells, evaluation, workers=workers, **settings)

    study.first, study.log = lambda: None, log
    monkeypatch.setattr(module, "serve", serve)
    monkeypatch.setattr(module, "METHOD", "fork")
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])  # a second each
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that have worked do not survive a fork
    yield study
    torch.set_num_threads(threads)


def test_workers_give_what_one_process_gives(study):
    """Controls, calibration and A/A included: every record, sample and table, and what is printed; each made once."""
    refused = Recipe(DiffusersSampler("DDIMScheduler", 3, "ddim"), choice_of("grid", "karras"))
    cells = [euler(2), AG, SEARCHED, refused]
    alone, many = study("alone", cells, workers=1, aa=True), study("many", cells, aa=True)
    assert alone.run() == many.run() == 0
    assert measured(alone.results.root) == measured(many.results.root)
    assert printed(alone) == printed(many)
    assert {row["role"] for row in rows(many).values()} >= {"control", "aa", "cell"}
    assert "karras" in rows(many)[refused.label]["refused"]
    written = Counter(study.log.read_text().splitlines())
    dear = {p: n for p, n in written.items() if p.endswith((".safetensors", ".json")) and ".parts/" not in p}
    assert len(dear) > 20
    assert set(dear.values()) == {1}

    again = study("many", cells, aa=True)
    study.log.unlink()
    assert again.run() == 0
    assert "0 of" in printed(again)
    assert not study.log.exists(), "no worker is started where nothing is missing"


def test_a_worker_without_a_cell_helps_with_another_s(study, makers):
    assert study("s", [], evaluation=replace(EVALUATION, n=160, converged=False)).run() == 0
    lines = makers()
    assert Counter(label for label, _, _ in lines) == {"euler-4": 10}, "each shard once"
    shares = Counter(int(pid) for _, _, pid in lines)
    assert len(shares) == 2
    assert min(shares.values()) >= 3
    assert os.getpid() not in shares


def test_a_worker_that_is_killed_is_replaced(study, tmp_path):
    cells, mark = [euler(s) for s in (2, 3, 5)], tmp_path / "killed"

    def first():
        put, written = os.replace, []

        def doomed(source, target):
            written.append(target)
            if len(written) == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            put(source, target)

        os.replace = doomed

    alone, many = study("alone", cells, workers=1), study("many", cells)
    study.first = first
    assert alone.run() == many.run() == 0
    said = [line for line in printed(many).splitlines() if "its worker was killed by SIGKILL" in line]
    assert len(said) == 1
    assert "another one goes on, finished shards are kept" in said[0]
    assert rows(alone).keys() == rows(many).keys()
    left = {path for path in measured(many.results.root) if Path(path).name.startswith(".")}  # of who was killed
    assert {p: c for p, c in measured(many.results.root).items() if p not in left} == measured(alone.results.root)
    written = Counter(study.log.read_text().splitlines())
    assert {path: n for path, n in written.items() if path.endswith(".safetensors") and n > 1} == {}


def test_a_cell_that_kills_its_workers_fails_and_the_others_go_on(study, monkeypatch):
    generate = samples.generate

    def deadly(*args):
        if args[2].label == "euler-3":
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(*args)

    monkeypatch.setattr(samples, "generate", deadly)
    made = study("s", [euler(2), euler(3), euler(5)])
    assert made.run() == 1
    refused = {label: row["refused"] for label, row in rows(made).items() if row["refused"]}
    assert list(refused) == ["euler-3"]
    assert refused["euler-3"].startswith("failed: its worker was killed by SIGKILL, 3 times. Often that is memory")
    assert "evaluation.batch" in printed(made)


def test_a_cell_that_fails_is_tried_once_and_told_as_ever(study, tmp_path, monkeypatch):
    tried, generate = tmp_path / "tried", samples.generate

    def diverging(*args):
        if args[2].label == "euler-3":
            with tried.open("a") as file:
                file.write(f"{os.getpid()}\n")
            raise DivergedError("euler-3: it diverges.")
        return generate(*args)

    monkeypatch.setattr(samples, "generate", diverging)
    cells = [euler(2), euler(3), euler(5)]
    alone, many = study("alone", cells, workers=1), study("many", cells)
    assert alone.run() == 1
    tried.unlink()
    assert many.run() == 1
    assert rows(alone) == rows(many)
    assert printed(alone) == printed(many)
    makers = [int(pid) for pid in tried.read_text().split()]
    assert len(set(makers)) == len(makers) <= 2, "by its worker, and by one that helps"
    assert os.getpid() not in makers


def test_a_disk_that_is_full_ends_the_command(study):
    def first():
        def full(source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.replace = full

    study.first = first
    with pytest.raises(AccelError, match=r"cannot write .* Free some space and run the same command again"):
        study("s", [euler(2)]).run()
    assert not multiprocessing.active_children()


def test_what_is_no_failure_of_a_cell_ends_the_command(study, monkeypatch):
    def odd(*args):
        raise KeyError("odd")

    monkeypatch.setattr(samples, "generate", odd)
    with pytest.raises(AccelError, match=r"unexpected KeyError: 'odd'\. ACCEL_TRACEBACK=1"):
        study("s", [euler(2)]).run()
    assert not multiprocessing.active_children()


def test_workers_that_do_not_start(study):
    study.first = lambda: sys.exit(3)
    with pytest.raises(AccelError, match=r"workers do not start: each ended with exit code 3, .* workers=1 needs none"):
        study("s", [euler(2)]).run()


def test_an_interrupt_ends_the_workers_and_keeps_what_is_finished(study, monkeypatch):
    generate, root = samples.generate, study("s", []).results.root

    def slow(*args):
        time.sleep(0.05)
        return generate(*args)

    def interrupted(self):
        if len(list(root.rglob("shards/*/*.safetensors"))) > 5:
            raise KeyboardInterrupt
        return ended(self)

    monkeypatch.setattr(samples, "generate", slow)
    ended = module.Pool._ended
    monkeypatch.setattr(module.Pool, "_ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study("s", [euler(s) for s in (2, 3, 5)]).run()
    assert not multiprocessing.active_children()
    shards = {path: path.stat().st_mtime_ns for path in root.rglob("shards/*/*.safetensors")}
    assert len(shards) > 5
    assert not [path for path in root.rglob(".*") if not path.name.endswith(".lock")], "no temporary file stays behind"
    monkeypatch.setattr(module.Pool, "_ended", ended)
    again = study("s", [euler(s) for s in (2, 3, 5)])
    assert again.run() == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_workers_of_a_command_that_was_killed_end_by_themselves(study, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    pids.mkdir()
    study.first = lambda: (pids / str(os.getpid())).touch()

    monkeypatch.setattr(samples, "generate", lambda *args: time.sleep(60))

    def command():
        forked()
        study("s", [euler(2)]).run()

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    until(lambda: len(list(pids.iterdir())) == 2)
    time.sleep(0.3)  # both are at work
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    until(lambda: all(gone(int(pid.name)) for pid in pids.iterdir()))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_times_are_taken_when_nothing_is_left_to_be_made(study, monkeypatch):
    """All that can be known beforehand is there, no worker has a task, and rounds are those of one process."""
    seen, there, pools = [], [], []
    measure, threads = module.Pool.measure, torch.get_num_threads()

    def made(pipe, suite, recipes, baseline, batch, **_):
        assert not any(one.task for pool in pools for one in pool._workers.values())
        assert torch.get_num_threads() == threads
        seen.append((batch, [one.label for one in recipes]))
        there.append({record["label"] for record in Results(root).intact("quality")})
        of = {"value": 1.0, "lo": 1.0, "hi": 1.0}
        keys = ("speedup", "aa", "aa_recipe", "ms_per_image", "baseline_ms")
        return [dict.fromkeys(keys, of) | {"batch": batch, "repetitions": 9} for _ in recipes]

    def noted(self, *args):
        pools.append(self)
        measure(self, *args)

    monkeypatch.setattr(module.Pool, "measure", noted)
    monkeypatch.setattr("accel.studies.runner.time_recipes", made)
    monkeypatch.setattr("accel.studies.study.TOGETHER", 2)
    timed = Evaluation(n=64, distance_n=64, shard=16, device="cpu", timing_batch=8)
    cells, found = [euler(2), AG], {}
    for name, workers in (("alone", 1), ("many", 2)):
        one = study(name, cells, workers, timed)
        root = one.results.root
        assert one.run() == 0
        found[name] = seen[:], rows(one), there[0]
        seen.clear(), there.clear()
    assert found["alone"][:2] == found["many"][:2]
    late = {label: row["equal"] for label, row in rows(one).items() if label not in found["many"][2]}
    assert late
    assert set(map(tuple, late.values())) == {("time",)}, "known from times alone"


def test_a_worker_goes_on_while_nobody_listens():
    """The command may be waiting for what the worker makes: how far it is is dropped then, the rest kept."""
    ours, theirs = multiprocessing.Pipe()
    told = worker.listeners(theirs)
    for done in range(20_000):
        told["on_search"](done, 20_000)
    theirs.close()
    seen = []
    with suppress(EOFError):
        while True:
            seen.append(ours.recv())
    assert seen[0] == ("on_search", 0, 20_000)
    assert 10 < len(seen) < 20_000


def test_who_only_helps_and_is_not_ready_is_not_waited_for(study, monkeypatch):
    """The second worker starts for half a minute, the first one has the only cell that is missing."""
    begun, order, start = time.monotonic(), [], module.Pool._start

    def noted(self, place):
        order.append(place)
        study.first = lambda: time.sleep(30 * place)
        return start(self, place)

    monkeypatch.setattr(module.Pool, "_start", noted)
    assert study("s", [], evaluation=replace(EVALUATION, converged=False)).run() == 0
    assert order == [0, 1]
    assert time.monotonic() - begun < 20
    assert not multiprocessing.active_children()


def test_the_share_of_threads_and_the_ear_for_signals():
    before = {name: os.environ.get(name) for name in module.THREADS}
    with module._inherited(3):
        assert {os.environ[name] for name in module.THREADS} == {"3"}
        assert {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert {name: os.environ.get(name) for name in module.THREADS} == before
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize(("workers", "threads", "share"), [(1, 4, 4), (2, 4, 2), (3, 4, 1), (8, 4, 1)])
def test_threads_are_shared(workers, threads, share, study, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    made = study("s", [euler(2)], workers)
    assert made._pool(None).work.threads == share
    assert made._pool(None).work.evaluation.device == "cpu"


def places(device: str, devices=(), count: int = 3) -> list[str]:
    return [assigned(place, device, check_devices(devices)) for place in range(count)]


def test_one_worker_a_device(study, monkeypatch):
    """All of a kind, those that are asked for, one after the other and round again; a number is one device for all."""
    assert places("cpu") == ["cpu"] * 3
    with Elsewhere():
        assert places("cuda") == ["cuda:0", "cuda:1", "cuda:0"]
        assert places("cuda:1") == ["cuda:1"] * 3
        assert places("cuda", ["cuda:1"]) == ["cuda:1"] * 3
        assert places("cpu", ["cuda:1", "cuda:0"]) == ["cuda:1", "cuda:0", "cuda:1"]
        settle("cuda:1")
        assert torch.cuda.current_device() == 1
        assert torch.ones(2, device="cuda").device.index == 1
        one = study("s", [euler(2)], devices=["cuda:1", "cuda:0"])._pool(None)
        assert [one.work.at(place).evaluation.device for place in (0, 1)] == ["cuda:1", "cuda:0"]
        with pytest.raises(ConfigError, match=r"devices is \['cuda:1', 'cuda:1'\]; allowed: different devices of one"):
            check_devices(["cuda:1", "cuda:1"])
        with pytest.raises(ConfigError, match="different devices of one kind"):
            check_devices(["cuda:1", "cpu"])
        with pytest.raises(ConfigError, match=r"devices=cuda:2; allowed: cuda:0 to cuda:1"):
            check_devices(["cuda:2"])
    with pytest.raises(ConfigError, match=r"devices is 'cuda:0'; allowed: a list"):
        check_devices("cuda:0")


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_a_number_of_workers(workers, study):
    with pytest.raises(ConfigError, match=r"workers is .*; allowed: an integer >= 1"):
        study("s", [euler(2)], workers)


def test_a_worker_that_is_told_to_end_inside_a_finaliser_ends_with_its_next_message(monkeypatch, capsys):
    """What is raised in a finaliser is printed and forgotten."""
    import weakref

    ended, handlers = [], {}
    monkeypatch.setattr(worker, "_told", ended)
    monkeypatch.setattr(worker.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(worker.signal, "pthread_sigmask", lambda *how: None)
    monkeypatch.setattr(worker, "Thread", lambda **how: type("Idle", (), {"start": lambda self: None})())
    worker._end_when_told()
    stop = handlers[signal.SIGTERM]

    class Thing:
        pass

    thing = Thing()
    weakref.finalize(thing, lambda: stop(signal.SIGTERM, sys._getframe()))
    del thing
    assert ended == [143]
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as end:
        worker.tell(None, "ready")
    assert end.value.code == 143
    with pytest.raises(SystemExit):
        stop(signal.SIGTERM, sys._getframe())
