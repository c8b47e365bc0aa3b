"""Which plain samplers a study of plain samplers chooses: for each number of steps the one that loses least."""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import ConfigError
from accel.results.comparison import Comparison, Row


@dataclass(frozen=True)
class Chosen:
    """`rows`: one for each number of steps, fewest first; `best`: the first of them that loses nothing against the
    study's baseline by its values alone (None: none does). Other seeds have to confirm both."""

    rows: tuple[Row, ...]
    best: Row | None


def chosen(study: Comparison) -> Chosen:
    """The choice of a study whose cells are plain samplers. ConfigError where nothing can be chosen from."""
    by_steps: dict[int, list[Row]] = {}
    for row in study.competing:
        if row.role == "cell" and study.loss(row) is not None:
            by_steps.setdefault(row.quality["axes"]["steps"], []).append(row)
    if not by_steps:
        raise ConfigError(f"study {study.name} has no finished cell that compares with its baseline; run it first.")
    rows = tuple(min(by_steps[steps], key=lambda row: (study.loss(row), row.label)) for steps in sorted(by_steps))
    return Chosen(rows, next((row for row in rows if study.loss(row) <= 0), None))
