"""Which plain samplers a study of plain samplers chooses: for each number of steps the one that can lose least."""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import ConfigError
from accel.metrics.verdicts import NON_INFERIOR, losses
from accel.results.comparison import HIGHER, Comparison, Row, metric_of


@dataclass(frozen=True)
class Chosen:
    """`rows`: one for each number of steps at which several were tried, fewest first: that of the smallest
    `possible_loss`. Where one alone was tried (DDIM at 20, as a landmark) nothing was chosen, and more steps of what is
    best at fewer are a stronger rival. `best`: the first of them that is non-inferior in the metric and worse in no
    value (None: none is). Few samples choose; other seeds have to confirm."""

    rows: tuple[Row, ...]
    best: Row | None


def chosen(study: Comparison) -> Chosen:
    """The choice of a study whose cells are plain samplers. ConfigError where nothing can be chosen from."""
    by_steps: dict[int, list[tuple[float, str, Row]]] = {}
    for row in study.competing:
        if row.role == "cell" and (loss := possible_loss(study, row)) is not None:
            by_steps.setdefault(row.quality["axes"]["steps"], []).append((loss, row.label, row))
    if not by_steps:
        raise ConfigError(f"study {study.name} has no finished cell that compares with its baseline; run it first.")
    several = [steps for steps in sorted(by_steps) if len(by_steps[steps]) > 1] or sorted(by_steps)
    rows = tuple(min(by_steps[steps], key=lambda one: one[:2])[2] for steps in several)
    return Chosen(rows, next((row for row in rows if _holds(study, row)), None))


def possible_loss(study: Comparison, row: Row) -> float | None:
    """The largest loss against the baseline in any value that a user would miss, in margins: of the metric the worst
    that its interval leaves open, of the others, which are shares of few samples, the value. None: not comparable."""
    found, metric = [], metric_of(row.quality)
    for key in study.gates:
        delta, margin = study.delta(row, study.baseline, key), study.margin(key, study.baseline)
        if delta is None or not margin:
            return None
        by_value, at_worst = losses(delta, key in HIGHER)
        found.append((at_worst if key == metric else by_value) / margin)
    return max(found, default=None)


def _holds(study: Comparison, row: Row) -> bool:
    words = study.verdicts(row)
    return words[metric_of(row.quality)] in NON_INFERIOR and not any(w.startswith("worse") for w in words.values())
