"""Options of the subcommands that are no studies."""

from __future__ import annotations

import argparse
from typing import NoReturn

from accel.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser that explains itself by a module's docstring, and refuses as all of accel does."""

    def __init__(self, doc: str | None, command: str) -> None:
        super().__init__(
            prog=f"accel {command}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise ConfigError(f"{self.prog}: {message}. Usage: {usage}")


def parser(doc: str | None, command: str) -> argparse.ArgumentParser:
    """A parser that explains itself by the module's docstring, with --results."""
    made = Parser(doc, command)
    made.add_argument("--results", default="outputs", help="the results folder (default: outputs)")
    return made
