"""Two recipes of one model on common seeds, judged as tables judge: may the candidate take the baseline's place?

*pass*: in every value that a user would miss the candidate is non-inferior (or better); *fail*: in one it is worse;
*undecided*: neither, which is no evidence of equality, and more samples may decide. The verdicts are those of
`accel.metrics.verdicts` on paired differences, with margins stated beforehand. The default seed is one that neither
recipe was measured on: what was chosen on a seed looks better there than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from accel.deploy.model import differences, file_differences
from accel.deploy.opened import Opened, opened
from accel.deploy.recipe_file import SavedRecipe, load_recipe
from accel.deploy.saved_runner import SavedRunner, compared
from accel.errors import ConfigError, DivergedError
from accel.metrics.verdicts import NON_INFERIOR, Margins
from accel.records import Results
from accel.results.comparison import Comparison, Row, judged
from accel.results.text import interval, metric_name, significant
from accel.studies.enough import next_n
from accel.studies.evaluation import MIN_N, Evaluation

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
MOST = 50_000  # samples that an undecided gate may be told to take
COSTS = (("nfe", "network evaluations"), ("macs", "MACs an image"), ("model_bytes", "bytes of weights"))


@dataclass(frozen=True)
class Gate:
    """What was found: the two rows as a study, and how many samples would decide (None: these do, or none would)."""

    study: Comparison
    more: int | None = None

    @property
    def words(self) -> Mapping[str, str]:
        """The verdict on each value that is judged."""
        base, own = self.study.rows
        return {key: self.study.verdict(own, base, key) for key in self.judged}

    @property
    def judged(self) -> list[str]:
        """What a user would miss; without any of these the value that recipes are ranked by."""
        base = self.study.rows[0]
        return self.study.gates or judged(base.quality, self.study.margins)

    @property
    def outcome(self) -> str:
        """pass, fail or undecided."""
        found = set(self.words.values())
        if "worse" in found:
            return FAIL
        return PASS if found and found <= {*NON_INFERIOR} else UNDECIDED


def run_gate(
    baseline: Path,
    candidate: Path,
    results: Results,
    words: Sequence[str] = (),
    device: str = "auto",
    n: int = 500,
    seed: int | None = None,
    margins: Mapping[str, float] | None = None,
) -> Gate:
    """Sample both recipes (`n` of base seed `seed`; None: one that neither was measured on) and judge.

    `margins`: in the place of those in the baseline's file, or else of the defaults. ConfigError for recipes of
    different models, and for whatever cannot be loaded or run; DivergedError for a candidate that diverges.
    """
    saved = load_recipe(baseline), load_recipe(candidate)
    check_same_model(*saved)
    known = {one for each in saved for one in each.measured.get("seeds", ())}
    seed = next(i for i in count() if i not in known) if seed is None else seed
    base = opened(saved[0], baseline, words, device)
    suite = base.suite
    stated = margins_of(saved[0], suite.fid_margin, margins or {})
    distance = MIN_N if suite.feature_space else n
    evaluation = Evaluation(n=n, seed=seed, distance_n=distance, timing=False, device=base.device)
    base.check()
    own = base.beside(saved[1], candidate)
    own.check()
    study = compared(_baseline(base, evaluation, results), _record(own, evaluation, results), stated)
    step = suite.period if suite.period <= n else 1
    return Gate(study, next_n(study, n, MOST, step)[0])


def check_same_model(baseline: SavedRecipe, candidate: SavedRecipe) -> None:
    """ConfigError, which says what differs, unless both files are of one model; further networks that a recipe names
    are its own affair."""
    kept = [{key: own for key, own in one.model.items() if key != "models"} for one in (baseline, candidate)]
    if not all(kept):
        which = "baseline" if not kept[0] else "candidate"
        raise ConfigError(f"the {which}'s file says nothing of a model; save it with one, or by `accel recipe`.")
    said = differences(*kept) if all("networks" in own for own in kept) else []
    said += file_differences(kept[0]["files"], kept[1]["files"]) if all("files" in own for own in kept) else []
    if said:
        told = "; ".join(said).replace("was measured", "is the baseline's").replace("is here", "is the candidate's")
        raise ConfigError(
            f"the two recipes are of different models: {told}. A gate compares two recipes of one model; measure the "
            "candidate on the baseline's."
        )


def margins_of(saved: SavedRecipe, least: float | None, given: Mapping[str, float]) -> Margins:
    """The margins of a file, with `given` in their place; `least`: the suite's own for FID, where none is stated.
    ConfigError for a value that has no margin."""
    stated = Margins.from_dict(saved.measured.get("margins"))
    if stated.fid_least is None:
        stated = replace(stated, fid_least=least)
    return Margins.from_dict(stated.to_dict() | dict(given))


def markdown(gate: Gate) -> str:
    """What was found as Markdown that fits a pull request."""
    base, own = gate.study.rows
    seed, n = base.quality["seed"], base.quality["n"]
    lines = [
        f"**Gate: {gate.outcome}**: `{own.label}` in the place of `{base.label}` on suite {gate.study.suite} "
        f"(N = {n}, seed {seed}, common to both)",
        "",
        "| value | baseline | candidate | difference [95 %] | margin | verdict |",
        "|---|---|---|---|---|---|",
        *(_line(gate, key) for key in gate.judged),
        "",
        "| cost | baseline | candidate | ratio |",
        "|---|---|---|---|",
        *_costs(base, own),
        "",
        "Paired differences on common seeds. Pass: non-inferior in every value; fail: worse in one.",
    ]
    if gate.outcome == UNDECIDED:
        why = f"`--n {gate.more}` would likely decide." if gate.more else "more samples are unlikely to decide."
        lines[-1] += f" Undecided: the interval reaches beyond the margin; {why}"
    return "\n".join(lines) + "\n"


def _line(gate: Gate, key: str) -> str:
    base, own = gate.study.rows
    delta, margin = gate.study.delta(own, base, key), gate.study.margin(key, base)
    values = [significant(row.value(key).value, 4) if row.value(key) else "" for row in (base, own)]
    told = interval(delta, sign=True) if delta else "not comparable"
    cells = metric_name(key), *values, told, "none" if margin is None else significant(margin), gate.words[key]
    return f"| {' | '.join(cells)} |"


def _costs(base: Row, own: Row) -> list[str]:
    found = [(name, base.cost(key), own.cost(key)) for key, name in COSTS]
    return [f"| {name} | {a:,.4g} | {b:,.4g} | {b / a:.3g} |" for name, a, b in found if a and b is not None]


def _record(one: Opened, evaluation: Evaluation, results: Results) -> dict[str, Any]:
    return SavedRunner(one, evaluation, results).quality(one.saved.recipe)


def _baseline(one: Opened, evaluation: Evaluation, results: Results) -> dict[str, Any]:
    try:
        return _record(one, evaluation, results)
    except DivergedError as error:
        raise ConfigError(f"nothing can be held against the baseline: {error}") from error
