"""Write tables/compatibility.md: which methods compose on which suite, with the reason where they do not."""

from __future__ import annotations

import argparse
import logging

from accel.benches.compatibility import table
from accel.files import write_atomic
from accel.records import Results
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite

HEAD = """# What composes with what

Generated from the methods' own checks at their default settings, and tested: every accepted pair runs on `digits`,
every refused one raises before anything runs (tests/test_contract.py). A sampler does not meet another one, so that
samplers are rows only. Which optional packages or devices a method needs is not asked here.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    args = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    text = HEAD + "\n".join(table(suite) for suite in (DigitsSuite(), MixtureSuite()))
    path = Results(args.results).root / "tables" / "compatibility.md"
    write_atomic(path, text.encode())
    print(path)


if __name__ == "__main__":
    main()
