"""The manifest of a study while it runs: which records belong to it, in which order, as what.

Several commands may write one manifest at a time. Each keeps its own rows and puts them into what is there, under the
study's lock; the order of rows is a function of the rows alone, so that it is the same whoever was first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from accel.core.recipe import Recipe
from accel.errors import IntegrityError
from accel.studies.request import Request

ROLES = ("floor", "reference", "baseline", "conventional", "plain")  # before all cells and their controls


@dataclass
class Job:
    """One row to be computed: what, as what, and for a control of which row."""

    recipe: Recipe
    role: str
    of: str | None = None
    equal: tuple[str, ...] = ()  # of a control: what it costs as much of as that row
    deferred: bool = False


class Manifest:
    """The manifest of a study while it runs. `labels`: of all its rows but controls, in the order of the command."""

    def __init__(self, study: Request, labels: Iterable[str] = ()) -> None:
        self.study, self.failures = study, 0
        self.place = {label: i for i, label in enumerate(labels)}
        self.own: list[dict[str, Any]] = []
        self.rows = self._there()

    def add(self, job: Job, quality: dict[str, Any], timings: Sequence[dict[str, Any]]) -> None:
        """`timings`: one a batch, the study's own first."""
        ids = [timing["id"] for timing in timings]
        first = ids[0] if ids else None
        self._put(job.recipe.label, job.role, quality["id"], first, job.of, others=ids[1:], equal=job.equal)

    def add_floor(self, record: dict[str, Any] | None) -> None:
        if record:
            self._put(record["label"], "floor", record["id"])

    def add_refusal(self, recipe: Recipe, reason: str) -> None:
        self._put(recipe.label, "cell", refused=reason)

    def add_failure(self, job: Job, error: Exception) -> None:
        self.failures += 1
        self._put(job.recipe.label, job.role, of=job.of, refused=f"failed: {error}", equal=job.equal)

    def _put(self, label, role, quality=None, timing=None, of=None, refused=None, others=(), equal=()) -> None:
        row = {"label": label, "role": role, "quality": quality, "timing": timing, "of": of, "refused": refused}
        row |= {"timings": list(others)} if others else {}
        row |= {"equal": list(equal)} if equal else {}
        self.own = [*_others(self.own, row), row]

    def save(self, whole: bool = False) -> None:
        """Put the rows into the manifest. `whole`: they are all that the command has, so that what else is there of a
        study with cells of its own is from another one and goes."""
        s = self.study
        with s.results.alone(s.name):
            there = self._there()
            if s.merge:
                rows = there
                for row in self.own:
                    rows = [*_others(rows, row), row]
            elif not whole and all(row in there for row in self.own):
                return  # another process is ahead
            else:
                rows = self.own
            self.rows = sorted(rows, key=self._order)
            about = {"name": s.name, "title": s.title, "suite": s.suite.name, "n": s.evaluation.samples}
            about |= {"margins": s.margins.to_dict(), "rows": self.rows}
            against = {role: recipe.label for role, recipe in s.against.items()}
            s.results.save_study(about | ({"against": against} if against else {}))

    def _there(self) -> list[dict[str, Any]]:
        try:
            manifest = self.study.results.load_study(self.study.name)
        except IntegrityError:
            if self.study.merge:
                raise
            return []  # it is about to be replaced anyway
        return list(manifest["rows"]) if manifest else []

    def _order(self, row: dict[str, Any]) -> tuple:
        """Floor, reference, baseline, then every cell (as the command has them, or by name) before its control."""
        role, label, of = row["role"], row["label"], row.get("of")
        fixed = ROLES.index(role) if role in ROLES else len(ROLES)
        cell = of if role == "control" and of else label
        place = -1 if self.study.merge else self.place.get(cell, len(self.place))
        return fixed, place, natural(cell), role == "control", natural(label), str(row["quality"] or "")


def natural(text: str) -> list[tuple[int, float, str]]:
    """Order by numbers where there are numbers: `euler-5` before `euler-10`."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return [(0, float(part), "") if part[0].isdecimal() else (1, 0.0, part) for part in parts]


def _others(rows: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `new` does not replace: it replaces the same result, and a failure of the same cell."""

    def same(row: dict[str, Any]) -> bool:
        named = (row["label"], row["role"], row.get("of")) == (new["label"], new["role"], new["of"])
        return named and row["quality"] in (new["quality"], None)

    return [row for row in rows if not same(row)]
