"""Options of the subcommands that are no studies."""

from __future__ import annotations

import argparse


def parser(doc: str | None, command: str) -> argparse.ArgumentParser:
    """A parser that explains itself by the module's docstring, with --results."""
    made = argparse.ArgumentParser(
        prog=f"accel {command}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--results", default="outputs", help="the results folder (default: outputs)")
    return made
