"""Every command of README and docs/ is one that the command line takes: options are parsed, settings are composed, and
nothing is run. What the tutorial's and the extension's own files are needed for has tests beside those files."""

from __future__ import annotations

import argparse
import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest

from accel.cli.application import check_launcher
from accel.cli.words import COMMANDS, call, split
from accel.config import CONF, check_sweep, compose, expand_cells
from accel.errors import AccelError
from accel.recommend import request

ROOT = Path(__file__).parents[2]
PAGES = {
    p.relative_to(ROOT).as_posix(): p.read_text() for p in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
}
OTHER = ("python", "yaml", "json", "toml", "mermaid", "dockerfile")
# Whose files another test makes: test_tutorial.py, tests/testing/test_example_package.py.
ELSEWHERE = ("--config-dir my_conf", "cache=everyother")
ACCEL = r"(?:^|[\s;&|`])(?:\w+=\S+ )*(?:python -m )?accel (?!is\b|has\b)"
COMPOSED = ("work", "recommend")  # whose words are settings


class Parsed(Exception):
    """The words of a subcommand are in order."""


def blocks(page: str) -> list[str]:
    """Lines of its blocks of code that may be typed: fenced, or indented by four spaces."""
    fenced = [
        own for kind, own in re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page, re.M | re.S) if kind not in OTHER
    ]
    without = re.sub(r"^ *```.*?^ *```", "", page, flags=re.M | re.S)
    indented = re.findall(r"^\n((?:    .*\n)+)", without, re.M)
    return [line for block in [*fenced, *indented] for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


def spans(page: str) -> list[str]:
    """Commands that stand in its sentences, but for those that are cut short, and mere names of commands."""
    without = re.sub(r"^ *```.*?^ *```", "", page, flags=re.M | re.S)
    found = re.findall(r"`((?:python -m )?accel [^`]+)`", without)
    found = [re.sub(r"\[[\w ]+\]", "", " ".join(one.split())) for one in found]  # what may be left out
    return [one for one in found if not re.search(r"…|\.\.\.", one) and re.search(r"accel \S+ \S|accel \S+[=-]", one)]


def commands(page: str) -> list[list[str]]:
    """The words after `accel` of each command; what stands in angle brackets is a word of the reader's."""
    found = []
    for line in [*blocks(page), *spans(page)]:
        if any(word in line for word in ELSEWHERE) or line.lstrip().startswith(("pip ", "error:")):
            continue
        line = re.sub(r"<[^<>]*>", "yours", line.replace("<axis>", "cache"))
        for part in re.split(r"\s*(?:;|&&|(?<!\S)\|(?!\S))\s*", line):
            if start := re.match(rf"\s*(?:-?\s*run: )?(?:srun .*?|torchrun .*?-m )?{ACCEL}", f" {part}"):
                words = shlex.split(f" {part}"[start.end() :], comments=True)
                found.append([re.sub(r"(?<![=\w'\"\[])(\w+)(?:\|\w+)+$", r"\1", word) for word in words])
    return found


ALL = [(name, words) for name, page in PAGES.items() for words in commands(page)]


def parsed(parse):
    """What parses as `parse` does, and ends there."""

    def own(self, *given, **more):
        parse(self, *given, **more)
        raise Parsed

    return own


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """asked(words): take these words as the command line does, up to where it would begin."""
    monkeypatch.chdir(tmp_path)
    for name in ("yours", "fast", "images", "recommended"):
        Path(name).mkdir()
    for name in ("prompts.txt", "captions_val2017.json", "captions.txt"):
        Path(name).write_text("a cat\n")
    monkeypatch.setattr("accel.cli.application.check_installed", lambda *given: None)
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parsed(getattr(argparse.ArgumentParser, name)))

    def asked(words):
        found = split(words)
        if found.command == "recommend":
            if not set(found.rest) & {"--help", "-h"}:
                request.read(found.rest)
        elif found.command in COMMANDS and found.command not in COMPOSED:
            with suppress(Parsed):
                call(found.command, found.rest)
        else:
            settings = found.rest if found.command else found.overrides
            for word in settings:
                if word.startswith("hydra/"):
                    assert (CONF / f"{word.replace('=', '/')}.yaml").is_file(), word
            check_launcher(settings)
            own = [word for word in settings if not word.startswith("hydra")]
            check_sweep(own)
            for cell in expand_cells([own]) if own else []:
                compose(cell)

    return asked


def test_the_pages_have_commands():
    """What finds them loses none: each kind of place, and each subcommand that people type."""
    assert len(ALL) > 80
    assert ["generate", "recommended", "a red cat"] in [words for name, words in ALL if name == "README.md"]
    assert {words[0] for _, words in ALL if words} >= set(COMMANDS) - {"help", "train", "reference"}


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{name}: {shlex.join(words)}" for name, words in ALL])
def test_it_is_taken(page, words, asked, capsys):
    asked(words)


@pytest.mark.parametrize(
    "line",
    [
        "accel recipe demo",
        "accel experiment=dmeo",
        "accel sampler=ddim sampler.stps=5",
        "accel repotr demo",
        "accel list samplr",
    ],
)
def test_a_command_that_is_wrong_is_found(line, asked):
    [words] = commands(f"```\n{line}\n```\n")
    with pytest.raises(AccelError):
        asked(words)
