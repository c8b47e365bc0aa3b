"""What a study shows while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies import study as module
from accel.studies.bars import Bars
from accel.studies.evaluation import Evaluation
from accel.suites.mixture import MixtureSuite


class Sampled(MixtureSuite):
    """The mixture, compared with a converged trajectory instead of the exact solution."""

    def converged(self, guidance):
        return Recipe(DiffusersSampler("EulerDiscreteScheduler", 5, "euler"))

    def solves(self, guidance):
        return False


def test_the_bar_of_a_cell_counts_its_own_samples(monkeypatch, tmp_path):
    """Those of the converged trajectory, made in between, are shown under their name and then gone."""
    seen = []

    class Seen(Bars):
        def note(self):
            task = self._tasks[self.samples[0]]
            seen.append((self.tasks[-1].description, task.description, task.completed, task.total))

        def update(self, *args, **kwargs):
            super().update(*args, **kwargs)
            self.note()

        def advance(self, *args, **kwargs):
            super().advance(*args, **kwargs)
            self.note()

    monkeypatch.setattr(module, "Bars", Seen)
    monkeypatch.setattr(module, "write_figures", lambda results, name: [])
    evaluation = Evaluation(n=80, distance_n=64, shard=16, timing=False, device="cpu")
    base, cell = (Recipe(DiffusersSampler("EulerDiscreteScheduler", steps, "euler")) for steps in (2, 3))
    study = module.Study("s", "t", Sampled(), evaluation, Results(tmp_path), base, [cell],
                         console=Console(file=io.StringIO()), wandb="disabled")  # fmt: skip
    # The reference, which comes first otherwise, would have made them already.
    monkeypatch.setattr(module.Study, "_jobs", lambda self, runner, refused: [module.Job(cell, "cell")])
    assert study.run() == 0

    own = [(done, total) for name, what, done, total in seen if (name, what) == (cell.label, "samples")]
    others = [(done, total) for name, what, done, total in seen if what == "of the converged trajectory"]
    assert own[-1] == (80, 80)
    assert max(done for done, _ in own) == 80
    assert {total for _, total in own} == {80}
    assert others == [(0, 64), (16, 64), (32, 64), (48, 64)], "of those that are compared"


@pytest.fixture
def shown():
    """(bars of two workers, their clock, the lines so far)"""
    file, now = io.StringIO(), [100.0]
    bars = Bars(Console(file=file, width=40), places=2)
    bars.get_time = lambda: now[0]
    with bars:
        bars._over.set()  # `look` is the test's to call
        yield bars, now, lambda: file.getvalue().splitlines()


def test_workers_have_a_bar_each_and_the_cells_one(shown):
    bars, _, lines = shown
    bars.open("held out", 8)
    bars.advance(bars.cells)
    with bars.meanwhile("2 workers"):
        bars.update(bars.cells, total=4)
        bars.begin(64, 0, "ddim-5")
        bars.begin(64, 1, "euler-9")
        bars.listeners(0)["on_samples"](32)
        bars.listeners(1)["on_samples"](16)
        bars.look()
        bars.listeners(1)["on_search"](1, 10)
        assert [task.description for task in bars.tasks] == ["ddim-5", "euler-9: search", "2 workers"]
        bars.listeners(1)["on_search"](10, 10)
        bars.listeners(1)["on_samples"](16)
        bars.end(0)
        bars.update(bars.cells, completed=1, description="again")
        bars.look()
    bars.end(1)
    bars.update(bars.cells, description="timing")
    bars.look()
    assert [line.partition(", 0:00")[0] for line in lines()] == [
        "2 workers: 0/4 cells, 16/64 euler-9, 32/64 ddim-5",
        "again: 1/4 cells, 32/64 euler-9",
        "timing: 1/8 cells",
    ]


def test_what_goes_on_at_the_same_time_adds_up(shown):
    bars, now, lines = shown
    bars.open("2 workers", 4)
    for place in (0, 1):
        bars.begin(64, place, "x")
        bars.listeners(place)["on_samples"](32)
    now[0] += 30
    bars.look()  # one of four cells is done, as two halves
    assert lines()[0].endswith("0:00:30 elapsed, about 0:01:30 left")


@pytest.mark.parametrize("places", [1, 2])
def test_while_rounds_are_timed_the_time_left_is_told(places):
    """On the terminal's bar and in the log, with workers and without."""
    file, now = io.StringIO(), [100.0]
    bars = Bars(Console(file=file, width=40), places=places)
    bars.get_time = lambda: now[0]
    with bars:
        bars._over.set()
        bars.open("held out", 9)
        bars.begin(64, 0, "ddim-5")
        bars.end(0)
        with bars.timing(6):
            told = bars.listeners()["on_round"]
            told(0, 9, 9, 25)
            now[0] += 20
            bars.look()
            told(1, 9, 9, 25)  # after the warm-up: two rounds in 20 s
            assert bars.tasks[0].description == "rounds (9 to 25)"
            now[0] += 30
            bars.look()
            told(4, 16, 9, 25)
            now[0] += 30
            bars.look()
        assert not bars.tasks[0].visible
        bars.begin(64, 0)
        bars.update(bars.cells, description="ddim-7")
        bars.look()
    assert file.getvalue().splitlines() == [
        "timing: 0/9 cells, 0/9 rounds (9 to 25), 0:00:20 elapsed",
        "timing: 0/9 cells, 1/9 rounds (9 to 25), 0:00:50 elapsed, about 0:00:50 left of these 6 cells",
        "timing: 0/9 cells, 4/16 rounds (9 to 25), 0:01:20 elapsed, about 0:01:30 left of these 6 cells",
        "ddim-7: 0/9 cells, 0/64 samples, 0:01:20 elapsed",
    ]
