"""Commands at the same time in one results folder: nothing is lost, nothing is made twice, one order of rows."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forks import forked_and_logged
from rich.console import Console

from accel.config import compose, instantiate, recipe_of
from accel.core.recipe import Recipe
from accel.core.seeds import generators
from accel.errors import StorageError
from accel.files import save_tensors
from accel.locks import leases, locked
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.samplers.ode import initial_latents
from accel.search.study import Cell, SearchStudy
from accel.studies.calibration import Calibration
from accel.studies.evaluation import Evaluation
from accel.studies.study import Study
from accel.suites.mixture import MixtureSuite

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
EVALUATION = Evaluation(n=64, distance_n=64, shard=16, timing=False, controls=False, device="cpu")
EULER = "EulerDiscreteScheduler"


class Quick(MixtureSuite):
    """The mixture, with an exact solution that takes no time."""

    def converged(self, guidance):
        return recipe(20)

    def solve(self, pipe, recipe, seed, a, b):
        time.sleep(0.01)  # so that others come to wait for it
        noise = initial_latents(pipe, {"batch_size": b - a, "generator": generators(seed, a, b)})
        return noise.to(torch.float32) / 100


def recipe(steps: int, scheduler: str = EULER, name: str = "euler") -> Recipe:
    return Recipe(DiffusersSampler(scheduler, steps, name))


def study(root: Path, name: str, cells: list[Recipe], merge: bool, locks: str = "auto") -> Study:
    return Study(name, "t", Quick(), EVALUATION, Results(root, locks, 3.0), recipe(4), cells, merge=merge,
                 console=Console(file=io.StringIO()), wandb="disabled")  # fmt: skip


@pytest.fixture
def together(tmp_path, monkeypatch):
    """together(*works) -> exit codes of processes that do them at the same time; together.written: every file that was
    put into its place, as often as it was."""
    log = tmp_path / "log"
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])  # a second each

    def child(work: Callable[[], object], begin) -> None:
        forked_and_logged(log, tmp_path)
        monkeypatch.setattr(leases, "_machine", lambda: f"machine {os.getpid()}")  # each on one of its own
        begin.wait()
        work()

    def together(*works: Callable[[], object]) -> list[int]:
        context = multiprocessing.get_context("fork")  # spawned ones would load torch again
        begin = context.Event()
        processes = [context.Process(target=child, args=(work, begin)) for work in works]
        for process in processes:
            process.start()
        begin.set()
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    together.written = lambda: Counter(log.read_text().splitlines())
    return together


def once(written: Counter) -> None:
    """Whatever is dear was written once."""
    dear = {path: n for path, n in written.items() if Path(path).suffix == ".safetensors" or "/records/" in path}
    assert dear
    assert {path: n for path, n in dear.items() if n > 1} == {}


def manifest(root: Path, name: str = "s") -> list[str]:
    return [row["label"] for row in json.loads((root / f"studies/{name}.json").read_text())["rows"]]


WAYS = pytest.mark.parametrize("locks", ["flock", "lease"])


@WAYS
def test_eight_commands_of_one_study_keep_all_rows_in_one_order(together, tmp_path, locks):
    root = tmp_path / "results"
    steps = [10, 2, 9, 3, 7, 5, 6, 8]
    assert together(*(study(root, "s", [recipe(s)], merge=True, locks=locks).run for s in steps)) == [0] * 8
    assert manifest(root) == ["euler-20", "euler-4", *(f"euler-{s}" for s in sorted(steps))]
    once(together.written())
    table = (root / "tables/s.md").read_text()
    assert all(f"euler-{s}" in table for s in steps), "whoever was last has shown the rows of all"
    assert not [p for p in root.rglob(".*") if not p.name.endswith(".lock")], "no temporary file stays behind"


@WAYS
def test_workers_of_one_study_share_it_also_when_one_is_killed(together, tmp_path, locks):
    """The order is that of the command, and every table is the one of a worker alone."""
    cells = [recipe(s) for s in (6, 2, 5, 3)]

    def doomed() -> None:
        save, started = os.replace, []

        def killed(source, target):
            started.append(target)
            if len(started) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            save(source, target)

        os.replace = killed
        study(root, "s", cells, merge=False, locks=locks).run()

    root, alone = tmp_path / "many", tmp_path / "alone"
    works = [study(root, "s", cells, merge=False, locks=locks).run for _ in range(3)]
    assert together(doomed, *works) == [-signal.SIGKILL, 0, 0, 0]
    once(together.written())
    study(alone, "s", cells, merge=False).run()
    assert manifest(root) == manifest(alone) == ["euler-20", "euler-4", "euler-6", "euler-2", "euler-5", "euler-3"]
    for name in ("s.md", "s.csv"):
        whole, own = ((folder / "tables" / name).read_text() for folder in (root, alone))
        assert without_setup(whole) == without_setup(own)


@WAYS
def test_a_command_whose_disk_is_full_ends_and_the_others_go_on(together, tmp_path, locks):
    """What it began is made by them, once; what it had finished is kept."""
    root, cells = tmp_path / "results", [recipe(s) for s in (6, 2, 5)]

    def full() -> None:
        save, opened, done = os.replace, os.open, []

        def no_room(path, flags, *mode, **how):
            if flags & os.O_CREAT and len(done) > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return opened(path, flags, *mode, **how)

        def counted(source, target):
            save(source, target)
            done.append(target)

        os.replace, os.open = counted, no_room
        try:
            study(root, "s", cells, merge=False, locks=locks).run()
        except StorageError as error:
            os._exit(5 if "No space left on device" in str(error) else 6)

    works = [study(root, "s", cells, merge=False, locks=locks).run for _ in range(2)]
    assert together(full, *works) == [5, 0, 0]
    once(together.written())
    assert manifest(root) == ["euler-20", "euler-4", "euler-6", "euler-2", "euler-5"]


def test_commands_share_the_shards_of_one_cell(together, tmp_path, makers):
    """Each is on a machine of its own, and none but the one that has the cell waits without helping."""
    root, alone = tmp_path / "many", tmp_path / "alone"
    works = [study(root, "s", [], merge=False, locks="lease").run for _ in range(3)]
    assert together(*works) == [0] * 3
    made = makers()
    shares = {label: Counter(pid for one, _, pid in made if one == label) for label in ("euler-20", "euler-4")}
    assert all(sum(share.values()) == 4 for share in shares.values()), "each shard once"
    assert len({pid for share in shares.values() for pid in share}) == 3
    study(alone, "s", [], merge=False).run()
    shards = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.safetensors")}
    assert shards == {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*.safetensors")}


def without_setup(table: str) -> str:
    return "\n".join(line for line in table.splitlines() if "setup" not in line)


def test_two_studies_share_what_both_need(together, tmp_path):
    root = tmp_path / "results"
    works = [study(root, name, [recipe(s), recipe(9)], merge=False).run for name, s in (("a", 2), ("b", 3))]
    assert together(*works, *works) == [0] * 4
    once(together.written())
    assert manifest(root, "a") == ["euler-20", "euler-4", "euler-2", "euler-9"]
    assert manifest(root, "b") == ["euler-20", "euler-4", "euler-3", "euler-9"]


def searching(root: Path, optimiser: str) -> Callable[[], int]:
    cfg = compose(
        ["suite=mixture", "search=timesteps", "search.metric=distance", "search.halving.first=8",
         "search.halving.doublings=1", "search.budget=900", "search.finalists=1", "search.rescore_n=8",
         "search.compare=[trailing,karras]", "sampler=ddim_accel", "sampler.steps=3", f"optimiser={optimiser}"]
    )  # fmt: skip
    cell = Cell(recipe_of(cfg), ("suite=mixture", "sampler=ddim_accel", "sampler.steps=3"), instantiate(cfg.search),
                instantiate(cfg.optimiser))  # fmt: skip
    return SearchStudy("s", "t", Quick(), EVALUATION, Results(root), recipe(4), [cell], True,
                       Console(file=io.StringIO())).run  # fmt: skip


def test_searches_at_the_same_time_share_candidates_and_the_table(together, tmp_path):
    root = tmp_path / "results"
    names = ("random", "coordinate", "random", "evolution")
    assert together(*(searching(root, name) for name in names)) == [0] * 4
    records = Results(root).all("search")
    assert sorted(r["optimiser"]["label"] for r in records) == ["coordinate", "evolution", "random"]
    once(Counter({p: n for p, n in together.written().items() if "/search_study/" not in p}))
    (found,) = Results(root).all("search_study")
    assert [row["kind"] for row in found["rows"]] == ["grid"] * 2 + ["search"] * 3
    table = (root / "tables/s.md").read_text()
    assert all(f"| {record['optimiser']['label']} (distance) |" in table for record in records)


def test_an_artefact_has_one_maker(together, tmp_path):
    made = tmp_path / "made"

    def work() -> None:
        def make(job):
            assert not job.load("part"), "nobody else writes its parts"
            job.save("part", {"x": torch.zeros(1)})
            with made.open("a") as file:
                file.write("once\n")
            time.sleep(0.05)
            return {"x": torch.ones(2)}

        pipe, folder = SimpleNamespace(device="cpu"), tmp_path / "artefacts"
        own = Calibration(Quick(), {}, lambda: pipe, dict, folder, 8, print, lambda done, total: None)
        assert own._artefact(recipe(3), make)["x"].tolist() == [1, 1]

    assert together(*[work] * 4) == [0] * 4
    assert made.read_text() == "once\n"
    assert not list(tmp_path.rglob("*.parts"))


def test_a_lock_whose_file_was_deleted_is_taken_anew(tmp_path):
    """Shards of a finished search are deleted with their lock, which another process may be waiting for."""
    path = tmp_path / "lock"
    with locked(path) as first:
        assert first
        path.unlink()
        with locked(path, wait=False) as second:
            assert second, "the deleted file's lock excludes nobody"
    save_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1)})
