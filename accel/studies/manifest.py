"""The manifest of a study while it runs: which records belong to it, in which order, as what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accel.core.recipe import Recipe
from accel.studies.request import Request


@dataclass
class Job:
    """One row to be computed: what, as what, and for a control of which row."""

    recipe: Recipe
    role: str
    of: str | None = None
    deferred: bool = False


class Manifest:
    """The manifest of a study while it runs."""

    def __init__(self, study: Request) -> None:
        self.study, self.failures = study, 0
        old = study.results.load_study(study.name) if study.merge else None
        self.rows: list[dict[str, Any]] = list(old["rows"]) if old else []

    def add(self, job: Job, quality: dict[str, Any], timing: dict[str, Any] | None) -> None:
        self._put(job.recipe.label, job.role, quality["id"], timing and timing["id"], job.of)

    def add_floor(self, record: dict[str, Any] | None) -> None:
        if record:
            self._put(record["label"], "floor", record["id"])

    def add_refusal(self, recipe: Recipe, reason: str) -> None:
        self._put(recipe.label, "cell", refused=reason)

    def add_failure(self, job: Job, error: Exception) -> None:
        self.failures += 1
        self._put(job.recipe.label, job.role, of=job.of, refused=f"failed: {error}")

    def _put(self, label, role, quality=None, timing=None, of=None, refused=None) -> None:
        row = {"label": label, "role": role, "quality": quality, "timing": timing, "of": of, "refused": refused}
        same = [i for i, r in enumerate(self.rows) if (r["quality"], r["label"], r["of"]) == (quality, label, of)]
        if same:
            self.rows[same[0]] = row
        else:
            self.rows.append(row)

    def save(self) -> None:
        s = self.study
        s.results.save_study({"name": s.name, "title": s.title, "suite": s.suite.name, "n": s.evaluation.n,
                              "rows": self.rows})  # fmt: skip
