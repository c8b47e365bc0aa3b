"""The words of a command line: a subcommand with its own words, or flags and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from accel.config import groups
from accel.errors import ConfigError, Refusals, unknown
from accel.grammar import bare

# Subcommand: the module whose `main(words)` runs it and returns the exit code. Loaded only when it is asked for.
COMMANDS = {
    "help": "accel.cli.help",
    "list": "accel.cli.listing",
    "completion": "accel.cli.completion",
    "rebuild": "accel.cli.rebuild",
    "report": "accel.cli.report",
    "table": "accel.cli.table",
    "workspace": "accel.cli.workspace",
    "claims": "accel.cli.claims",
    "recommend": "accel.cli.recommend",
    "recipe": "accel.cli.recipe",
    "generate": "accel.cli.generate",
    "verify": "accel.cli.verify",
    "gate": "accel.cli.gate",
    "export": "accel.cli.export",
    "threshold": "accel.cli.threshold",
    "bench": "accel.cli.bench",
    "work": "accel.cli.work",
    "workers": "accel.cli.workers",
    "train": "accel.cli.train",
    "reference": "accel.cli.reference",
    "convert": "accel.cli.convert",
}
LIGHT = ("help", "list", "completion")  # which need no package of the extra `bench`
OURS = {"--help": "help", "-h": "help", "--version": "version", "-V": "version"}
# Hydra's flags: the name that is used here, and whether a value belongs to them (always, perhaps, never).
FLAGS = {
    "--multirun": ("--multirun", "never"), "-m": ("--multirun", "never"),
    "--cfg": ("--cfg", "always"), "-c": ("--cfg", "always"),
    "--resolve": ("--resolve", "never"),
    "--package": ("--package", "always"), "-p": ("--package", "always"),
    "--info": ("--info", "perhaps"), "-i": ("--info", "perhaps"),
    "--config-dir": ("--config-dir", "always"), "-cd": ("--config-dir", "always"),
    "--hydra-help": ("--hydra-help", "never"),
}  # fmt: skip
VALUES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


@dataclass
class Words:
    """A request: `command` with `rest`, or `overrides` under `flags` (by their long names; None where no value)."""

    command: str | None = None
    rest: list[str] = field(default_factory=list)
    flags: dict[str, str | None] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    def hydra(self) -> list[str]:
        """Flags and overrides as Hydra's own application takes them."""
        flags = [word for flag, value in self.flags.items() for word in (flag, value) if word is not None]
        return [*flags, *self.overrides]


def split(arguments: Sequence[str]) -> Words:
    """The request that `arguments` make; ConfigError for flags and bare words that mean nothing."""
    if arguments and arguments[0] in COMMANDS:
        return Words(arguments[0], list(arguments[1:]))
    if ours := [OURS[word] for word in arguments if word in OURS]:
        return Words(ours[0])
    words, left = Words(), list(arguments)
    with Refusals() as refusals:
        while left:
            word = left.pop(0)
            if word.startswith("-"):
                refusals.ask(_flag, word, left, words.flags)
            elif "=" in word or word.startswith("~"):
                words.overrides.append(word)
            else:
                refusals.add(_bare(word))
    if "--resolve" in words.flags and "--cfg" not in words.flags:
        raise ConfigError("--resolve goes with --cfg alone: --cfg job --resolve")
    return words


def call(command: str, rest: Sequence[str]) -> int:
    """Run a subcommand; its exit code."""
    return import_module(COMMANDS[command]).main(list(rest))


def _flag(word: str, left: list[str], flags: dict[str, str | None]) -> None:
    name, equals, value = word.partition("=")
    if name not in FLAGS:
        long = [flag for flag in (*FLAGS, *OURS) if flag.startswith("--")]
        raise unknown("flag", name, long)
    flag, takes = FLAGS[name]
    if equals and takes == "never":
        raise ConfigError(f"{name} takes no value; leave out ={value}.")
    if not equals and takes != "never":
        following = left[0] if left and "=" not in left[0] and not left[0].startswith(("-", "~")) else None
        value = following if takes == "always" or following in VALUES[flag] else None
        if value is not None:
            left.pop(0)
        elif takes == "always":
            raise ConfigError(f"{name} needs a value: {name} {'|'.join(VALUES.get(flag, ('<name>',)))}")
    if value and flag in VALUES and value not in VALUES[flag]:
        raise unknown(f"value of {name}", value, VALUES[flag])
    flags[flag] = value or None


def _bare(word: str) -> ConfigError:
    if meant := bare(word, groups()):
        return ConfigError(f"{word!r} alone says nothing; {meant}")
    error = unknown("command", word, COMMANDS)
    return ConfigError(f"{error} Settings are written <setting>=<value>; `accel --help` has examples.")
