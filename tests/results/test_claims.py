"""The ledger of claims: what each rule confirms and refutes, what is missing, and what is malformed."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from accel.config import CONF
from accel.errors import ConfigError
from accel.metrics.statistics import Estimate
from accel.records import Results
from accel.results.claims import Check, Finding, Judged, finding, read
from accel.results.claims_table import LEDGER, markdown, table, write_claims
from accel.results.evidence import MACS, RATIOS, Evidence
from tests.results.conftest import estimate

ROOT = Path(__file__).parents[2]


def check(row="one-10", against="base-20", value="fid_digits", expected="better", study="demo", **more) -> Check:
    once = {"claim": "c", "method": "M", "paper": "2401.00001", "statement": "One is better", "setting": "S"}
    return Check(
        **once, published="P", study=study, row=row, against=against, value=value, expected=expected,
        note=more.get("note", ""),
    )  # fmt: skip


def exactly(value, half, n=1000):
    """A value with replicates of alternating sign: paired with another such one, an interval of known width."""
    signs = np.where(np.arange(20) % 2, 1.0, -1.0)
    unit = Estimate.from_replicates(0.0, signs, n)
    return Estimate.from_replicates(value, value + signs * half / (unit.hi - unit.value), n).to_dict()


@pytest.fixture
def evidence(fabric):
    """FID 2 of the baseline without any spread (margin 0.2), and rows whose difference to it has a known interval."""
    rows = {"better-10": (1.5, 0.4), "slightly-10": (1.9, 0.05), "same-10": (2.0, 0.0), "wide-10": (2.0, 0.5),
            "level-10": (2.0, 0.1), "little-10": (2.1, 0.05), "worse-10": (2.5, 0.4)}  # fmt: skip
    base = fabric.quality("base-20", macs=20e6)
    base["values"] = {"fid_digits": exactly(2.0, 0.0), "adherence": exactly(0.9, 0.0)}
    fabric.results.save(base)
    fabric.line("baseline", base, fabric.timing(base, base, 1.0))
    for label, (value, half) in rows.items():
        record = fabric.quality(label, macs=10e6)
        record["values"] = {"fid_digits": exactly(value, half), "adherence": exactly(0.95, 0.02)}
        fabric.results.save(record)
        fabric.line("cell", record, fabric.timing(record, base, {"wide-10": 1.01}.get(label, 2.0)))
    fabric.line("cell", label="gone-10", refused="it needs a UNet")
    fabric.save()
    return Evidence(fabric.results)


RULES = {
    "better": ("confirmed confirmed refuted undecided undecided refuted refuted"),
    "worse": ("refuted refuted refuted undecided undecided confirmed confirmed"),
    "non-inferior": ("confirmed confirmed confirmed undecided confirmed confirmed refuted"),
    "equivalent": ("refuted confirmed confirmed undecided confirmed confirmed refuted"),
    "ratio<=1": ("confirmed confirmed confirmed undecided undecided refuted refuted"),
    "ratio>=1": ("refuted refuted confirmed undecided undecided confirmed confirmed"),
}  # of the rows of `evidence` in their order; the interval of same-10 is [0, 0]


@pytest.mark.parametrize("expected", RULES)
def test_rules(evidence, expected):
    labels = [row.label for row in evidence.study("demo").done if row.role == "cell"]
    found = [finding(evidence, check(row, expected=expected)).word for row in labels]
    assert found == RULES[expected].split(), dict(zip(labels, found, strict=True))


def test_higher_is_better_where_it_is(evidence):
    assert finding(evidence, check("better-10", value="adherence")).word == "confirmed"
    assert finding(evidence, check("better-10", value="adherence", expected="worse")).word == "refuted"
    low = finding(evidence, check("base-20", "better-10", value="adherence", expected="non-inferior"))
    assert (low.word, low.said) == ("refuted", "worse")


def test_a_ratio_is_that_of_the_values_with_the_jackknife_of_its_logarithm(evidence):
    pair = evidence.pair("demo", "better-10", "base-20", "fid_digits")
    ratio = pair.ratio("fid_digits")
    own = pair.row.value("fid_digits")
    logs = Estimate.from_replicates(math.log(1.5 / 2), [math.log(x / 2) for x in own.replicates], own.n)
    assert ratio["value"] == pytest.approx(0.75)
    assert [ratio["lo"], ratio["hi"]] == pytest.approx([math.exp(logs.lo), math.exp(logs.hi)])
    assert evidence.pair("demo", "better-10", "base-20", "macs").ratio("macs") == {"value": 0.5, "lo": 0.5, "hi": 0.5}


def test_speed(evidence):
    """Against the baseline the speed-up that was timed; against another row the ratio of both."""
    fast = finding(evidence, check("better-10", value="speedup"))
    assert fast.word == "confirmed"
    assert fast.ratio["value"] == 2.0
    assert finding(evidence, check("wide-10", value="speedup")).word == "undecided"  # within the A/A floor
    assert finding(evidence, check("better-10", value="speedup", expected="ratio>=1.9")).word == "confirmed"
    assert finding(evidence, check("better-10", value="speedup", expected="ratio>=2.1")).word == "refuted"
    other = finding(evidence, check("wide-10", "better-10", value="speedup"))
    assert other.word == "refuted"
    assert other.ratio["value"] == pytest.approx(1.01 / 2)


@pytest.mark.parametrize(
    ("more", "needs"),
    [
        ({"row": "absent-10"}, "row absent-10 in study demo"),
        ({"row": "better-10", "against": "absent-10"}, "row absent-10 in study demo"),
        ({"study": "absent"}, "row one-10 in study absent"),
        ({"row": "gone-10"}, "row gone-10 in study demo (refused: it needs a UNet)"),
        ({"row": "better-10", "value": "clip_score"}, "clip_score of better-10 and base-20, comparable, in study demo"),
    ],
)
def test_what_is_missing_is_said(evidence, more, needs):
    found = finding(evidence, check(**more))
    assert (found.word, found.needs) == ("untested", needs)


def test_undecided_says_how_many_samples_would_decide_it(evidence):
    """se falls as 1 / sqrt(N): at the N that is named, the half-width leaves 80 % power inside the margin of 0.2."""
    found = finding(evidence, check("wide-10", expected="non-inferior"))
    n = int(found.needs.removeprefix("N = ").replace(",", ""))
    se = found.difference.se * math.sqrt(1000 / n)
    assert (2.093 + 0.861) * se == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("confirmed confirmed", "confirmed"),
        ("confirmed undecided", "undecided"),
        ("confirmed untested", "undecided"),
        ("confirmed refuted undecided", "mixed"),
        ("refuted undecided untested", "refuted"),
        ("untested untested", "untested"),
        ("untested undecided", "undecided"),
    ],
)
def test_a_claim_is_what_its_tests_make_of_it(words, whole):
    assert Judged(tuple(Finding(check(), word) for word in words.split())).word == whole


# --- other kinds of records


def test_searches_ratios_and_macs_are_studies_too(fabric):
    trailing, found = (fabric.quality(f"ddim-4{name}", fid=fid) for name, fid in (("", 9.0), ("@searched", 4.0)))
    rows = [
        {"group": "g", "of": "ddim-4", "name": name, "kind": "grid", "quality": record["id"], "search": None}
        for name, record in (("trailing", trailing), ("nsga2", found))
    ]
    study = {"kind": "search_study", "id": "steps", "title": "Steps", "suite": "digits", "n": 1000, "seed": 0}
    fabric.results.save(study | {"rows": rows})
    distance = {"none": estimate(0.07, "none"), "searched": estimate(0.05, "s"), "predicted": estimate(0.06, "p")}
    line = {"steps": 5, "scale": 2, "distance": distance}
    fabric.results.save({"kind": "cascade", "id": "c", "suite": "digits", "rows": [line]})
    fabric.results.save({"kind": "macs", "id": "m", "network": "Net", "method": "Cache", "live": 1, "place": 0,
                         "full": {"total": 8}, "measured": {"total": 2}})  # fmt: skip
    evidence = Evidence(fabric.results)
    assert finding(evidence, check("ddim-4: nsga2", "ddim-4: trailing", study="steps")).word == "confirmed"
    predicted = check("5 steps, scale 2: predicted", "5 steps, scale 2: none", "distance", study=RATIOS)
    assert finding(evidence, predicted).word == "confirmed"
    cached = finding(evidence, check("Net: Cache, 1", "Net", "macs", "ratio<=0.25", study=MACS))
    assert (cached.word, cached.ratio["value"]) == ("confirmed", 0.25)


# --- the file


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"value": "fidd"}, "unknown value 'fidd'"),
        ({"expected": "best"}, "allowed: better, worse, non-inferior, equivalent, ratio>=<number>"),
        ({"value": "distance", "expected": "non-inferior"}, "allowed: better, worse, ratio>=<number>"),
        ({"value": "macs", "expected": "better"}, "allowed: ratio>=<number>, ratio<=<number>"),
        ({"against": ""}, "against is empty"),
        ({"against": "one-10"}, "needed: two rows"),
        ({"study": ""}, "row is 'one-10' but there is no study"),
        ({"study": "", "row": "", "against": "", "value": "", "expected": ""}, "it needs a note"),
    ],
)
def test_malformed_checks_are_refused(more, said):
    with pytest.raises(ConfigError, match=r"claim c: ") as raised:
        check(**more)
    assert said in str(raised.value)


def ledger(path, *lines):
    names = "claim,method,paper,statement,setting,published,study,row,against,value,expected,note"
    path.write_text("\n".join([names, *lines, ""]))
    return path


def test_further_tests_of_a_claim_need_not_repeat_it(tmp_path):
    first, second = read(ledger(tmp_path / "c.csv", "c,M,2401.00001,A,S,P,demo,x,y,distance,better,",
                                "c,,,,,,demo,x,y,macs,ratio<=0.5,exact"))  # fmt: skip
    assert (second.statement, second.paper, second.note) == (first.statement, "2401.00001", "exact")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["c,M,2401.00001,A,S,P,demo,x,y,distance,better"], "line 2: needed: 12 columns"),
        (["c,M,,A,S,P,demo,x,y,distance,better,", "c,M,,B,,,demo,x,z,distance,better,"], "statement is said twice"),
        (["c,M,arXiv,A,S,P,demo,x,y,distance,best,"], "paper is 'arXiv'"),
        ([], "has the columns no line"),
    ],
)
def test_malformed_ledgers_are_refused(tmp_path, lines, said):
    with pytest.raises(ConfigError) as raised:
        read(ledger(tmp_path / "c.csv", *lines))
    assert said in str(raised.value)


def test_all_that_is_wrong_with_a_ledger_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError, match="2 things to mend"):
        read(ledger(tmp_path / "c.csv", "c,M,arXiv,A,S,P,demo,x,y,distance,best,"))


# --- the page


def test_the_page_shows_each_claim_with_its_tests(evidence, tmp_path):
    first = "c,M,2401.00001,One beats the base,S,FID 3,demo,better-10,base-20,fid_digits,better,"
    second = "c,,,,,,demo,worse-10,base-20,fid_digits,better,"
    file = ledger(tmp_path / "c.csv", first, second, "d,N,,Two is fast,,,,,,,,a GPU")
    page, lines = write_claims(evidence.results, file)
    text = page.read_text()
    assert "2 claims, 3 tests: 1 mixed, 1 untested." in text
    assert (
        "### One beats the base: mixed\n\nPublished ([2401.00001](https://arxiv.org/abs/2401.00001)): S: FID 3." in text
    )
    assert (
        "| demo | better-10 | base-20 | FID (digits) | -0.50 [-0.90, -0.10] better‡ | better | confirmed |  |" in text
    )
    assert "### Two is fast: untested\n\nPublished: no number.\n\nNeeds: a GPU.\n" in text
    lines = list(csv.DictReader(lines.open()))
    assert [line["test_verdict"] for line in lines] == ["confirmed", "refuted", "untested"]
    assert float(lines[0]["difference_hi"]) == pytest.approx(-0.1)


def test_nothing_is_written_where_nothing_can_be_tested(tmp_path):
    assert write_claims(Results(tmp_path)) == []


# --- accel's own


def test_the_ledger_names_studies_that_accel_can_make():
    """So that a typo is no silent `untested`; and every row of a study that is tracked exists."""
    checks = read(LEDGER)
    assert len({one.claim for one in checks}) > 60
    known = {path.stem for path in (CONF / "experiment").glob("*.yaml")} | {RATIOS, MACS}
    assert {one.study for one in checks if one.study} <= known


def test_the_tracked_page_is_that_of_the_records(tracked):
    """And every row that the ledger names is there: what is untested needs no row, but another study."""
    _, found = tracked
    assert not [one.needs for own in found for one in own.findings if one.test.study and one.word == "untested"]
    assert (ROOT / "results/tables/claims.md").read_text() == markdown(found)
    assert (ROOT / "results/tables/claims.csv").read_text() == table(found)
