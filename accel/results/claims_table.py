"""The table of claims: what the records say of each sentence of a paper, test by test."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accel.config import CONF
from accel.files import write_atomic
from accel.metrics.verdicts import p_value
from accel.records import Results
from accel.results.claims import UNTESTED, VERDICTS, Check, Finding, Judged, judge, read
from accel.results.comparison import survivors
from accel.results.evidence import COSTS, SPEED, Evidence
from accel.results.frame import spread
from accel.results.text import comma, interval, metric_name, plus_minus, significant

LEDGER = CONF / "claims.csv"
NAMES = {SPEED: "speed-up", "macs": "MACs", "nfe": "NFE", "model_bytes": "bytes of weights"}
PERCENT = ("adherence", "exact", "accuracy", "precision", "recall")

HEAD = """# Claims of the papers, tested on the tracked records

{claims} claims, {tests} tests: {counts}.

All on the small models that ship here, at the N of each study: a claim that is refuted here may hold on the model it
was made for, and the other way round. A difference is row - against, paired on common seeds, with its 95 % interval.
*Expected* says what the claim predicts of it: better or worse (confirmed when the interval excludes 0 on this side,
refuted when on the other), non-inferior (confirmed inside the study's margin, refuted when worse and not inside), or
a ratio row / against beyond a number. A claim is confirmed when all its tests are, refuted when some are and none is
confirmed, *mixed* when some are refuted and others confirmed, else undecided. *Needs*: what is missing, a row, or the
N at which the test would be decided with a probability of 80 % (by the standard error seen here; for a direction, if
the difference is as large as it is now). ‡ and † mark differences that survive Holm, or Benjamini-Hochberg only,
among the {family} of this page; each test without a mark that claims a direction is one at 95 %. The ledger is
conf/claims.csv; `accel claims` tests it again.
"""


def write_claims(results: Results, ledger: Path = LEDGER) -> list[Path]:
    """Judge a ledger and write its pages. ConfigError for a malformed one."""
    return write_judged(results, judge(Evidence(results), read(ledger)))


def write_judged(results: Results, judged: Sequence[Judged]) -> list[Path]:
    """Write tables/claims.{md,csv}; nothing where no claim can be tested."""
    if all(one.word == UNTESTED for one in judged):
        return []
    texts = {"md": markdown(judged), "csv": table(judged)}
    paths = [results.root / "tables" / f"claims.{end}" for end in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomic(path, text.encode())
    return paths


def counted(judged: Sequence[Judged]) -> str:
    """How many claims have which verdict: `15 confirmed, 14 refuted, ...`."""
    counts = Counter(one.word for one in judged)
    return comma(f"{counts[word]} {word}" for word in VERDICTS if counts[word])


def markdown(judged: Sequence[Judged]) -> str:
    """The page: a summary, then a section for each method with its claims and tests."""
    marks = _marks(judged)
    text = HEAD.format(
        claims=len(judged), tests=sum(len(one.findings) for one in judged), counts=counted(judged), family=len(marks),
    )  # fmt: skip
    methods = dict.fromkeys(one.claim.method for one in judged)
    text += f"\n| method | {' | '.join(VERDICTS)} |\n|:---|{'---:|' * len(VERDICTS)}\n"
    for method in methods:
        counts = Counter(one.word for one in judged if one.claim.method == method)
        text += f"| {method} | {' | '.join(str(counts[word] or '') for word in VERDICTS)} |\n"
    for method in methods:
        text += f"\n## {method}\n"
        for one in judged:
            text += _section(one, marks) if one.claim.method == method else ""
    return text


def table(judged: Sequence[Judged]) -> str:
    """A CSV with a line for each test: the ledger's columns, then what was found."""
    names = [field.name for field in fields(Check)]
    buffer = io.StringIO()
    found = ("difference", "difference_lo", "difference_hi", "n", "p", "ratio", "ratio_lo", "ratio_hi")
    writer = csv.DictWriter(
        buffer, [*names, "claim_verdict", "test_verdict", *found, "said", "needs"], lineterminator="\n"
    )
    writer.writeheader()
    for one in judged:
        for finding in one.findings:
            delta = finding.difference
            line: dict[str, Any] = {name: getattr(finding.test, name) for name in names}
            line |= {"claim_verdict": one.word, "test_verdict": finding.word, "said": finding.said}
            line |= spread("difference", delta) | spread("ratio", finding.ratio) | {"needs": finding.needs}
            line |= {"n": delta.n, "p": p_value(delta)} if delta else {}
            writer.writerow({name: _rounded(value) for name, value in line.items()})
    return buffer.getvalue()


def _rounded(value: Any) -> Any:
    # The last digits of a double differ between versions of numpy and scipy.
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _marks(judged: Sequence[Judged]) -> dict[tuple[str, ...], str]:
    found = [finding for one in judged for finding in one.findings if finding.difference]
    return survivors({_key(finding): p_value(finding.difference) for finding in found})


def _key(finding: Finding) -> tuple[str, ...]:
    """One comparison may test several claims."""
    test = finding.test
    return test.study, test.row, test.against, test.value


def _section(one: Judged, marks: dict[tuple[str, ...], str]) -> str:
    claim = one.claim
    paper = f" ([{claim.paper}](https://arxiv.org/abs/{claim.paper}))" if claim.paper else ""
    said = f"{claim.setting}: {claim.published}" if claim.setting else claim.published
    text = f"\n### {claim.statement}: {one.word}\n\nPublished{paper}: {said or 'no number'}.\n\n"
    if all(finding.word == UNTESTED for finding in one.findings):
        return text + f"Needs: {'; '.join(finding.needs for finding in one.findings)}.\n"
    text += "| study | row | against | value | row - against, or row ÷ against | expected | test | needs |\n"
    text += "|:---|:---|:---|:---|---:|:---|:---|:---|\n"
    for finding in one.findings:
        test = finding.test
        shown = _shown(finding) + marks.get(_key(finding), "") * bool(finding.difference)
        cells = [test.study, test.row, test.against, NAMES.get(test.value, metric_name(test.value)), shown,
                 test.expected.replace("ratio", "÷ "), finding.word, finding.needs]  # fmt: skip
        text += "| " + " | ".join(cells) + " |\n"
    notes = [finding.test.note for finding in one.findings if finding.test.note]
    return text + (f"\n{' '.join(notes)}\n" if notes else "")


def _shown(finding: Finding) -> str:
    """The difference with its interval and verdict, or the ratio."""
    test, delta = finding.test, finding.difference
    if finding.ratio is not None:
        return significant(finding.ratio["value"]) + "×" if test.value in COSTS else interval(finding.ratio, unit="×")
    if delta is None:
        return "–"
    percent = test.value in PERCENT
    shown = plus_minus(delta, 100, sign=True) + " points" if percent else interval(delta, sign=True)
    return f"{shown} {finding.said}"
