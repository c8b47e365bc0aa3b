"""Progress where no bar can move: lines at the start of a cell and now and then, with what is done and left."""

import io
import threading
import time

import pytest
from rich.console import Console

from accel.results import progress as module
from accel.results.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def made():
    """(progress, clock, the lines so far) of a log file; nothing watches, `look` is the test's to call."""
    file, clock = io.StringIO(), Clock()
    progress = Progress(console=Console(file=file, width=40), clock=clock, every=30)
    return progress, clock, lambda: file.getvalue().splitlines()


def test_lines_of_a_study(made):
    progress, clock, lines = made
    progress.look()  # nothing has begun
    samples = progress.add_task("samples", total=None)
    cells = progress.add_task("held out", total=4, unit="cells", there=0)
    progress.look()
    assert lines() == ["held out: 0/4 cells, 0:00:00 elapsed"]

    progress.advance(cells)
    progress.reset(samples, total=2000)
    progress.update(cells, description="ddim-50 + a label that is wider than the console of the log")
    clock.now += 20
    progress.look()
    progress.look()  # said already
    assert lines()[1:] == [
        "ddim-50 + a label that is wider than the console of the log: 1/4 cells, 0/2,000 samples, 0:00:20 elapsed, "
        "about 0:01:00 left"
    ]

    progress.advance(samples, 1000)
    for _ in range(29):
        clock.now += 1
        progress.look()
    assert len(lines()) == 2  # nothing new for 29 s
    clock.now += 1
    progress.look()
    assert lines()[2].endswith(": 1/4 cells, 1,000/2,000 samples, 0:00:50 elapsed, about 0:01:23 left")  # 1.5 of 4 done


def test_cells_that_were_there_before_are_no_work(made):
    progress, clock, lines = made
    cells = progress.add_task("a", total=101, unit="cells", there=0)
    clock.now += 10
    progress.update(cells, completed=98, there=98)
    progress.look()
    progress.update(cells, completed=99, description="b")  # one of three in 10 s
    progress.look()
    assert lines() == ["a: 98/101 cells, 0:00:10 elapsed", "b: 99/101 cells, 0:00:10 elapsed, about 0:00:20 left"]


def test_lines_of_a_search(made):
    progress, clock, lines = made
    bar = progress.add_task("ddim-5 tpe", total=4000, unit="NFE", best="")
    clock.now += 3600
    progress.update(bar, completed=1000, best="best -0.1: [1, 2]")
    progress.look()
    assert lines() == ["ddim-5 tpe: 1,000/4,000 NFE, 1:00:00 elapsed, about 3:00:00 left, best -0.1: [1, 2]"]
    progress.remove_task(bar)
    clock.now += 60
    progress.look()
    assert len(lines()) == 1


def test_a_log_file_gets_its_lines_while_the_main_thread_is_busy(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    file, before = io.StringIO(), threading.active_count()
    with Progress(console=Console(file=file), every=0.05) as progress:
        progress.add_task("cell", total=2, unit="cells")
        end = time.monotonic() + 10
        while file.getvalue().count("\n") < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert threading.active_count() == before
    lines = file.getvalue().rstrip("\n").splitlines()  # older rich ends with an empty line
    assert len(lines) >= 3
    assert set(lines) == {"cell: 0/2 cells, 0:00:00 elapsed"}


def test_a_terminal_has_bars_that_vanish_and_no_lines(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=80)
    with Progress(console=console, every=0.01) as progress:
        progress.add_task("cell", total=2, unit="cells")
        time.sleep(0.1)
    assert "━" in file.getvalue()
    assert "elapsed" not in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the bar is wiped


def test_the_command_line_says_how_far_it_is(monkeypatch, capsys, tmp_path):
    from accel import __main__ as cli

    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(
        "sys.argv",
        ["accel", "sampler=ddim", "sampler.steps=3", "evaluation=smoke", "evaluation.timing=false", "study=s",
         "wandb=disabled", "suite.converged_steps=3", 'baseline=["sampler=ddim","sampler.steps=2"]',
         f"results={tmp_path}"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed
    assert "ddim-3: 3/4 cells, " in printed
    assert " samples, 0:00:" in printed
