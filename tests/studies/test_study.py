"""What a study shows while it runs."""

from __future__ import annotations

import io

from rich.console import Console

from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies import study as module
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

    class Seen(module._Progress):
        def note(self):
            task = self._tasks[self.samples]
            seen.append((self.tasks[-1].description, task.description, task.completed, task.total))

        def update(self, *args, **kwargs):
            super().update(*args, **kwargs)
            self.note()

        def advance(self, *args, **kwargs):
            super().advance(*args, **kwargs)
            self.note()

    monkeypatch.setattr(module, "_Progress", Seen)
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
