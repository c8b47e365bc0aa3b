"""The suite of a recipe, by the words that open it: suite=hub suite.model=<folder>, as on a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from accel.config import compose, groups, instantiate
from accel.errors import ConfigError
from accel.suites.base import Suite

HEADS = ("suite=", "suite.", "+suite.")


def parted(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that are settings of the suite, and all others."""
    own, others = [], []
    for word in words:
        (own if word.startswith(HEADS) and "=" in word else others).append(word)
    return own, others


def check_words(words: Sequence[str], command: str) -> None:
    """ConfigError for a word that is no setting of the suite."""
    if strange := parted(words)[1]:
        raise ConfigError(f"{command} takes settings of the suite, and {strange[0]!r} is none; leave it out.")


def combined(recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """What opens the suite: the words that a recipe file has, each replaced by the one that is `given` for the same
    setting; those that are given alone, if they choose the suite."""
    if any(word.startswith("suite=") for word in given):
        return list(given)
    keys = {_key(word) for word in given}
    return [word for word in recorded if _key(word) not in keys] + list(given)


def suite_of(words: Sequence[str], name: str | None, remedy: str) -> Suite:
    """The suite that `words` open, or without any the registered one called `name`. ConfigError if there is none of
    this name, which ends in `remedy`."""
    if not words or not any(word.startswith("suite=") for word in words):
        if name is None:
            raise ConfigError(f"the recipe does not say which suite it was measured on; {remedy}.")
        if name not in groups()["suite"]:
            raise ConfigError(f"the recipe is of suite {name!r}, which has no file in conf/suite; {remedy}.")
        words = [f"suite={name}", *words]
    return instantiate(compose(list(words))["suite"])


def _key(word: str) -> str:
    return re.split("=", word.lstrip("+"), maxsplit=1)[0]
