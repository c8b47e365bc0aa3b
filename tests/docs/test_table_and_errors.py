"""docs/reading_the_table.md has every column, verdict, mark, role; docs/troubleshooting.md quotes what accel says."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from accel.metrics.verdicts import WORDS
from accel.results.columns import ROLE_NAMES
from accel.results.comparison import (
    APART,
    COMPETES,
    HOCHBERG,
    HOLM,
    PROMPTED,
    SIMILAR,
    TO_PLAIN,
    UNJUDGED,
    UNKNOWN,
)
from accel.results.composition import HELP, QUARREL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reading_the_table.md").read_text()
READING = " ".join(PAGE.split())
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text()
SEVERAL = ("columns", "composition_table")  # modules of accel/results that make columns of studies


def module(path: Path):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@cache
def messages() -> list[str]:
    """What errors of accel say; reading all of its source takes a second."""
    return [message for _, message in module(ROOT / "docs/messages.py").messages()]


def headings() -> set[str]:
    """The columns that modules make under a fixed name, and those of the tracked tables of studies."""
    found = {name for name, _ in PROMPTED.values()} | set(SIMILAR.values()) | set(TO_PLAIN.values())
    for name in SEVERAL:
        for node in ast.walk(ast.parse((ROOT / f"accel/results/{name}.py").read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Column"
            if called and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
    for path in (ROOT / "results/studies").glob("*.json"):
        lines = (ROOT / f"results/tables/{path.stem}.md").read_text().splitlines()
        for before, line in pairwise(lines):
            if re.match(r"\| :?--", line):
                found |= {cell.strip() for cell in before.strip("|").split("|")}
    return found


def test_every_column_is_explained():
    found = headings()
    assert len(found) > 40
    # FID of any features, and in the section of controls a value, its verdict and its difference.
    general = {re.sub(r"\((?:digits|shapes|clip)\)", "(...)", name) for name in found}
    plain = {re.sub(r"^Δ|, control$| verdict$| \[95 %\]$| vs baseline$", "", name) for name in general}
    plain = {re.sub(r", batch \d+$", "", name) for name in plain}
    plain = {name.removesuffix(" (...)").replace(" (M)", " (G)") for name in plain}
    missing = {name for name in plain if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", READING, re.IGNORECASE)}
    assert missing == set()


def test_every_verdict_mark_and_role_is_explained():
    words = {*WORDS, UNKNOWN, APART, HOLM, HOCHBERG, HELP, QUARREL, "reference", "floor"}
    words |= {word for own in UNJUDGED.values() for word in own.values()}
    words |= {ROLE_NAMES.get(role, role) for role in COMPETES}
    assert {word for word in words if word not in READING} == set()


def test_the_head_is_one_of_a_tracked_table():
    quoted = " ".join(line.removeprefix("> ") for line in PAGE.splitlines() if line.startswith("> "))
    first, last = quoted.split("; 95 % intervals")[0], quoted.split("; margins")[1]
    head = (ROOT / "results/tables/demo.md").read_text()
    assert first in head
    assert last in head


def quotes() -> list[str]:
    """The message at the beginning of each bullet of the page; a second one, where there is `and the reverse`."""
    bullets = re.findall(r"^\* (`+)(.*?)\1:\s", TROUBLE, re.DOTALL | re.MULTILINE)
    others = re.findall(r"and the reverse,\s+(`)(.*?)`:", TROUBLE, re.DOTALL)
    return [" ".join(quote.split()) for _, quote in (*bullets, *others)]


def occurs(quote: str) -> bool:
    """Whether a message says it: … of the page for anything, … of the message (an expression) for one of these."""
    wanted = ".*".join(map(re.escape, re.split("…", quote)))
    return any(re.search(wanted, message) for message in messages()) or generic(quote)


def generic(quote: str) -> bool:
    # What accel.errors.unknown makes of what its callers name.
    return bool(re.fullmatch(r"unknown …(?: …)*\. Allowed: …|unknown [\w ]+… …", quote))


def test_there_are_quotes_of_each_topic():
    assert len(quotes()) == len(re.findall(r"^\* `", TROUBLE, re.MULTILINE)) + 1 > 60
    for section in TROUBLE.split("\n## ")[1:]:
        assert re.search(r"^\* `", section, re.MULTILINE), section.partition("\n")[0]


@pytest.mark.parametrize("quote", quotes())
def test_quoted_messages_exist(quote):
    assert occurs(quote)
    assert len(quote.replace("…", "").strip(" .;:,")) > 8 or quote == "… is …; allowed: …"


def test_a_message_that_nobody_says_does_not_occur():
    assert not occurs("the pipeline is called with …, which nobody decides")
    assert not occurs("… is damaged by …")
