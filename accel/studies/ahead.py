"""What of a study can be made before anything is timed, by several processes: scores that are missing, and those of the
controls that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from accel.studies.manifest import Job
from accel.studies.runner import Runner
from accel.studies.worker import Task

Controls = Callable[[Runner, Job, dict[str, Any], Any], Sequence[Job]]


@dataclass(frozen=True)
class Ahead:
    """`twin`: the runner of the same recipes on other seeds; `controls`: the cells that follow from a cell and its
    scores; `failed`: ids of scores that cannot be made."""

    runner: Runner
    twin: Runner
    controls: Controls
    failed: Container[str]

    def missing(self, jobs: Iterable[Job]) -> list[Task]:
        """These cells, where their scores are not there."""
        tasks = [Task(self._runner(job).quality_id(job.recipe), job) for job in jobs]
        return [one for one in tasks if one.key not in self.failed and self._scored(one) is None]

    def follow(self, done: Task) -> list[Task]:
        """The controls of equal MACs of a cell whose scores are there; those of equal time follow from times."""
        quality = self._scored(done)
        return self.missing(self.controls(self.runner, done.job, quality, None)) if quality else []

    def _scored(self, task: Task) -> dict | None:
        return self._runner(task.job).scored(task.job.recipe)

    def _runner(self, job: Job) -> Runner:
        return self.twin if job.role == "aa" else self.runner
