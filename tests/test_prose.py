"""README and findings say in their sentences what the records say: each number is one that a table would print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.prose import load, plain, slots

ROOT = Path(__file__).parents[1]
SAID = load(ROOT / "tests/prose.yaml")
# What looks measured: a decimal fraction, a share, a half-width, a factor.
MEASURED = re.compile(r"[-+]?\d[\d,]*\.\d+|\b\d+(?= (?:%|points?|times)\b)|(?<=± )\d+")


@pytest.fixture(scope="module")
def evidence(tracked):
    return tracked[0]


@pytest.fixture(scope="module")
def claims(tracked):
    return {one.claim.claim: one for one in tracked[1]}


def sentences(document):
    for study, rows in SAID[document]["checked"].items():
        for row, said in rows.items():
            for sentence in said:
                yield study, row, sentence


@pytest.mark.parametrize("document", SAID)
def test_sentences_are_true(document, evidence, claims):
    text, wrong, known = plain((ROOT / document).read_text()), [], {}
    for study, row, sentence in sentences(document):
        key = study, row
        known[key] = known.get(key) or slots(evidence, claims, study, row)
        said = " ".join(sentence.format(**known[key]).split())
        if text.count(said) != 1:
            wrong.append(f"{document} says {text.count(said)} times, and should say once: {said}\n  ({study}, {row})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", SAID)
def test_every_measured_number_is_checked(document, evidence, claims):
    """What no sentence of prose.yaml covers is a setting, of a paper, or of a machine, and listed there as such."""
    text = plain((ROOT / document).read_text())
    quotes = [sentence.format(**slots(evidence, claims, study, row)) for study, row, sentence in sentences(document)]
    quotes += [quote for own in SAID[document]["unchecked"].values() for quote in own]
    covered = {
        place
        for quote in (" ".join(quote.split()) for quote in quotes)
        for match in re.finditer(re.escape(quote), text)
        for place in range(*match.span())
    }
    assert not [quote for own in SAID[document]["unchecked"].values() for quote in own if quote not in text]
    found = [match for match in MEASURED.finditer(text) if not covered.issuperset(range(*match.span()))]
    left = [text[max(0, match.start() - 60) : match.end() + 30] for match in found]
    assert not left, f"{document}: no table holds these numbers:\n" + "\n".join(left)
