"""Claims of papers, tested again on the records: confirmed, refuted, mixed, undecided or untested.

A ledger is a CSV file (`conf/claims.csv`), a line a test: `row` is held against `against` in a study, and `expected`
says what the claim predicts of `value`. Lines of one `claim` are tests of one sentence. What a test says:

| expected | confirmed | refuted |
|---|---|---|
| better, worse | the paired 95 % interval excludes 0 on this side | it excludes 0 on the other, or is [0, 0] |
| non-inferior | the worse end stays inside the study's margin | it is worse, and not inside the margin with both ends |
| equivalent | both ends stay inside the margin | it excludes 0, and does not lie inside the margin |
| ratio>=x, ratio<=x | the interval of row / against lies on this side of x | it lies on the other side |

Else it is undecided. `speedup` is the time of `against` over that of `row`; better: faster, and told apart from the A/A
floors. A claim is confirmed if all its tests are, refuted if some are and none is confirmed, mixed if some are refuted
and some confirmed, untested if there is nothing to test it on, else undecided.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from accel.errors import ConfigError, Refusals, unknown
from accel.metrics.statistics import Estimate
from accel.metrics.verdicts import NON_INFERIOR, ceil_to, needed_n
from accel.results.comparison import HIGHER, UNKNOWN
from accel.results.evidence import COSTS, SPEED, Evidence, Missing, Pair, Ratio

CONFIRMED, REFUTED, MIXED, UNDECIDED, UNTESTED = VERDICTS = ("confirmed", "refuted", "mixed", "undecided", "untested")
DIRECTIONS, MARGINAL = ("better", "worse"), ("non-inferior", "equivalent")
LOWER = ("distance", "nearest", "lpips")
FRECHET = re.compile(r"(fid|kid|fd)_\w+")
BOUND = re.compile(r"ratio(<=|>=)(\d+(?:\.\d+)?)")
ARXIV = re.compile(r"\d{4}\.\d{5}")
SAID_ONCE = ("method", "paper", "statement", "setting", "published")  # of a claim: empty in its further tests


@dataclass(frozen=True)
class Check:
    """One line of a ledger. `paper` is an arXiv id; empty where there is none. `study` is empty where no study of
    accel can test the claim: `note` then says what would."""

    claim: str
    method: str
    paper: str
    statement: str
    setting: str
    published: str
    study: str
    row: str
    against: str
    value: str
    expected: str
    note: str

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            for error in self._wrong():
                refusals.add(ConfigError(f"claim {self.claim or '(without a name)'}: {error}"))

    def _wrong(self) -> list[str]:
        wrong = []
        if self.paper and not ARXIV.fullmatch(self.paper):
            wrong.append(f"paper is {self.paper!r}; allowed: an arXiv id such as 2312.00858, or nothing.")
        wrong += [f"{name} is empty." for name in ("claim", "method", "statement") if not getattr(self, name)]
        if not self.study:
            given = [name for name in ("row", "against", "value", "expected") if getattr(self, name)]
            wrong += [f"{given[0]} is {getattr(self, given[0])!r} but there is no study."] if given else []
            return wrong + ["without a study it needs a note that says what would test it."] * (not self.note)
        wrong += [f"{name} is empty." for name in ("row", "against") if not getattr(self, name)]
        if self.row == self.against:
            wrong.append(f"row and against are both {self.row!r}; needed: two rows.")
        measured = self.value in (*HIGHER, *LOWER) or FRECHET.fullmatch(self.value)
        if not measured and self.value not in (SPEED, *COSTS):
            wrong.append(str(unknown("value", self.value, ["fid_<suite>", *HIGHER, *LOWER, SPEED, *COSTS])))
        elif not BOUND.fullmatch(self.expected):
            allowed = [*DIRECTIONS, *(MARGINAL if measured and self.value not in LOWER else ())]
            if self.value in COSTS:
                allowed = []
            if self.expected not in allowed:
                wrong.append(
                    f"{self.value} is expected to be {self.expected!r}; allowed: "
                    f"{', '.join([*allowed, 'ratio>=<number>', 'ratio<=<number>'])}."
                )
        return wrong


@dataclass(frozen=True)
class Finding:
    """What the records say of a test. `difference` is row - against of a value, `ratio` row / against where the claim
    is about one; `needs` is what is missing, as text: a row, or samples (for a power of 80 %)."""

    test: Check
    word: str  # one of VERDICTS but MIXED
    difference: Estimate | None = None
    ratio: Ratio | None = None
    said: str = ""  # the difference in the words of accel.metrics.verdicts
    needs: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim with what each of its tests found."""

    findings: tuple[Finding, ...]

    @property
    def claim(self) -> Check:
        return self.findings[0].test

    @property
    def word(self) -> str:
        """One of VERDICTS."""
        words = Counter(finding.word for finding in self.findings)
        if words[REFUTED]:
            return MIXED if words[CONFIRMED] else REFUTED
        total = len(self.findings)
        return next((word for word in (CONFIRMED, UNTESTED) if words[word] == total), UNDECIDED)


def read(path: Path) -> list[Check]:
    """The tests of a ledger in its order, all that is wrong with them in one ConfigError."""
    names = [field.name for field in fields(Check)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the claims of {path}: {error}") from error
    if not lines or list(lines[0]) != names:
        found = ", ".join(map(str, lines[0])) if lines else "no line"
        raise ConfigError(f"{path} has the columns {found}; needed: {', '.join(names)}.")
    tests: list[Check] = []
    first: dict[str, Mapping[str, str]] = {}
    with Refusals() as refusals:
        for number, line in enumerate(lines, 2):
            if None in line or None in line.values():
                refusals.add(ConfigError(f"{path}, line {number}: needed: {len(names)} columns."))
                continue
            once = first.setdefault(line["claim"], line)
            if other := [key for key in SAID_ONCE if once is not line and line[key] not in ("", once[key])]:
                refusals.add(ConfigError(f"claim {line['claim']}: {other[0]} is said twice, in two ways."))
                continue
            test = refusals.ask(Check, **line | {key: once[key] for key in SAID_ONCE})
            tests += [test] if test else []
    return tests


def judge(evidence: Evidence, tests: Sequence[Check]) -> list[Judged]:
    """All claims, in the order in which they are first named."""
    found: dict[str, list[Finding]] = {}
    for test in tests:
        found.setdefault(test.claim, []).append(finding(evidence, test))
    return [Judged(tuple(own)) for own in found.values()]


def finding(evidence: Evidence, test: Check) -> Finding:
    """What the records say of one test."""
    if not test.study:
        return Finding(test, UNTESTED, needs=test.note)
    pair = evidence.pair(test.study, test.row, test.against, test.value)
    if isinstance(pair, Missing):
        return Finding(test, UNTESTED, needs=pair.needs)
    if bound := BOUND.fullmatch(test.expected):
        return _bounded(test, pair, bound[1], float(bound[2]))
    if test.value == SPEED:
        right, wrong = ("faster", "slower") if test.expected == "better" else ("slower", "faster")
        return Finding(test, _word(pair.pace() == right, pair.pace() == wrong), ratio=pair.ratio(SPEED))
    return _compared(test, pair)


def _bounded(test: Check, pair: Pair, side: str, bound: float) -> Finding:
    ratio = pair.ratio(test.value)
    if ratio is None:
        return Finding(test, UNTESTED, needs=f"a positive {test.value} of both rows, for a ratio")
    above, below = ratio["lo"] >= bound, ratio["hi"] <= bound
    word = _word(above, ratio["hi"] < bound) if side == ">=" else _word(below, ratio["lo"] > bound)
    return Finding(test, word, pair.delta(test.value), ratio)


def _compared(test: Check, pair: Pair) -> Finding:
    delta, said = pair.delta(test.value), pair.verdict(test.value)
    if delta is None or said == UNKNOWN:
        return Finding(test, UNTESTED, needs=f"{test.value} of both rows, comparable")
    better, worse = said.startswith("better"), said.startswith("worse")
    inside = said in NON_INFERIOR
    both = "equivalent" in said or said == "worse, non-inferior"
    same = not delta.value and not delta.se  # the very same samples
    holds, fails = {
        "better": (better, worse or same),
        "worse": (worse, better or same),
        "non-inferior": (inside, worse and not inside),
        "equivalent": (both, (better or worse) and not both),
    }[test.expected]
    word = _word(holds, fails)
    return Finding(test, word, delta, said=said, needs=_samples(test, pair, delta) if word == UNDECIDED else "")


def _samples(test: Check, pair: Pair, delta: Estimate) -> str:
    """The N at which an undecided test would be decided with a probability of 80 %: for a margin, if nothing is lost;
    for a direction, if the difference is as large as it is now."""
    margin = abs(delta.value) if test.expected in DIRECTIONS else pair.margin(test.value)
    needed = needed_n(delta.se, delta.n, margin or 0.0, len(delta.replicates))
    return f"N = {ceil_to(needed):,}" if 0 < needed < 1e6 else ""


def _word(holds: bool | None, fails: bool | None) -> str:
    return CONFIRMED if holds else REFUTED if fails else UNDECIDED
