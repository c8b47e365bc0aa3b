"""`accel work`, one worker among many, and `accel workers`, the view of all of them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
from fleets import EVALUATION, euler, made, measured

from accel import __main__ as cli
from accel.cli.work import Place, place, work
from accel.cli.workers import text
from accel.errors import DivergedError, StorageError
from accel.studies import samples
from accel.studies.status import Status, statuses
from accel.testing.elsewhere import Elsewhere


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "a/b"}, Place("a_b", 3, 8, 1)),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "77", "SLURM_LOCALID": "1"}, ("77", 9, 16, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ("job", 1, 2, 0)),
    ],
)
def test_who_it_is_among_its_like_is_what_the_launcher_says(environment, found):
    assert place(environment) == found


def test_alone_it_is_the_first_of_one():
    assert place({})[1:] == (0, 1, 0)
    assert str(os.getpid()) in place({}).session


def test_it_makes_scores_and_no_tables_and_the_command_finds_them(tmp_path, monkeypatch):
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])
    study = made(tmp_path / "many", [euler(2), euler(3)])
    assert work(study, Place("job", 1, 2, 0)) == 0
    assert "all scores are there" in study.console.file.getvalue()
    assert not (tmp_path / "many" / "tables").exists()
    assert len(list((tmp_path / "many" / "records" / "quality").glob("*.json"))) == 4
    again, alone = made(tmp_path / "many", [euler(2), euler(3)]), made(tmp_path / "alone", [euler(2), euler(3)])
    assert again.run() == alone.run() == 0
    assert "0 of 4 rows computed now" in again.console.file.getvalue()
    assert measured(tmp_path / "many") == measured(tmp_path / "alone")
    shown = text(tmp_path / "many")
    assert "0 at work, 1 ended or silent; 4 cells there." in shown
    assert "done" in shown


def test_its_exit_code_tells(tmp_path, monkeypatch):
    generate = samples.generate

    def bad(*args):
        if args[2].label == "euler-3":
            raise DivergedError("euler-3: it diverges.")
        return generate(*args)

    monkeypatch.setattr(samples, "generate", bad)
    study = made(tmp_path, [euler(2), euler(3)])
    assert work(study, Place("job")) == 1
    assert "it diverges." in study.console.file.getvalue()
    assert [status.state for status, _ in statuses(tmp_path)] == ["failed"]
    monkeypatch.setattr(samples, "generate", generate)
    assert work(made(tmp_path, [euler(2), euler(3)]), Place("job")) == 0, "a later job of that name tries it again"

    def full(*args, **kwargs):
        raise StorageError("cannot write x: No space left on device.")

    monkeypatch.setattr("accel.evaluation.shards.save_tensors", full)
    with pytest.raises(StorageError, match="No space left"):
        work(made(tmp_path / "full", [euler(2)]), Place("job"))
    assert "broken: cannot write x" in " ".join(text(tmp_path / "full").split())


def test_one_that_is_stopped_gives_up_what_it_held(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        work(made(tmp_path, [euler(2)], locks="lease"), Place("job"))
    assert [status.state for status, _ in statuses(tmp_path)] == ["stopped"]
    assert [p.name for p in tmp_path.rglob(".*") if p.is_file()] == [".kind.lock"]


def test_each_of_a_machine_has_a_device_of_its_own(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("accel.studies.rank.rank", lambda share: seen.append(share.work.evaluation.device) or "")
    with Elsewhere():
        for local in range(3):
            assert (
                work(made(tmp_path, [euler(2)], replace(EVALUATION, device="cuda")), Place("j", local, 3, local)) == 0
            )
    assert seen == ["cuda:0", "cuda:1", "cuda:0"]


def test_what_a_worker_does_not_do_is_refused(monkeypatch, capsys, tmp_path):
    words = ["suite=mixture", "workers=2", "plan=true", f"results={tmp_path}/r", "launcher=ray", "evaluation.n=auto"]
    monkeypatch.setattr(sys, "argv", ["accel", "work", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    for part in ("leave out workers=2", "leave out launcher=", "leave out plan", "evaluation.n=auto is found by"):
        assert part in said
    assert not (tmp_path / "r").exists()


def test_the_view_says_who_is_silent_and_forgets_who_has_ended(tmp_path):
    assert text(tmp_path) == f"no worker has said anything in {tmp_path}.\n"
    for number, state in enumerate(("working", "working", "done")):
        status = Status(str(tmp_path), "s", number, "study", cell="euler-2", samples=8, total=64, state=state)
        status.write(now=True)
        if number == 1:
            os.utime(status.path, (1.0, 1.0))
    shown = text(tmp_path)
    assert "8/64" in shown
    assert "silent" in shown
    assert "1 at work, 2 ended or silent" in shown
    text(tmp_path, forget=True)
    assert "1 at work, 0 ended or silent" in text(tmp_path)
    (tmp_path / "shards" / ".workers" / "s-0009.json").write_text("{")
    assert "1 at work, 0 ended" in text(tmp_path), "a damaged file is left out"
