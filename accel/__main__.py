"""`accel`, `python -m accel`: a subcommand (help, list ...); one run; a study (experiment=...); or a multirun (-m)."""

from __future__ import annotations

import os
import sys
from typing import Any

from accel.cli.words import COMMANDS, LIGHT, Words, call, split
from accel.config import CONF, check_sweep, compose
from accel.errors import AccelError, check_installed
from accel.registry import extend

NEEDED = ("hydra", "rich", "pandas", "matplotlib", "torchmetrics")  # by every study


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 some cells failed, 2 the request is wrong, 130 interrupted."""
    try:
        code = _main(sys.argv[1:])
    except AccelError as error:  # what a user can mend is one message, never a traceback
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished shards are kept; run the same command again to resume.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `accel list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    words = split(extend(arguments))  # without the config folders that it names, which hold from here on
    if words.command == "version":
        from accel import __version__

        print(f"accel {__version__}")
        return 0
    if words.command not in LIGHT:
        check_installed(NEEDED, "bench", "the command line")
    if words.command in COMMANDS:
        return call(words.command, words.rest)
    if words.flags:
        return _hydra(words)
    return run(compose(words.overrides), words.overrides)


def _hydra(words: Words) -> int:
    """Hydra's own application: a multirun, its help, its views of the configuration. The worst of its jobs' codes."""
    codes = [0]

    def job(cfg: Any) -> None:
        try:
            codes.append(run(cfg))
        except AccelError as error:  # in a multirun the other jobs go on
            print(f"error: {error}", file=sys.stderr)
            codes.append(2)

    check_sweep(words.overrides)  # a typo is answered before Hydra starts any job
    import hydra

    sys.argv = [sys.argv[0], *words.hydra()]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    return max(codes)


def run(cfg: Any, overrides: list[str] | None = None) -> int:
    """Run, plan or explain the study that `cfg` describes; 1 if a cell failed."""
    import logging
    import warnings

    from accel.cli.build import build

    # Known noise of the libraries: none of it is about what the user asked for.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    study = build(cfg, overrides)
    if cfg.plan:
        study.plan()
        return 0
    if cfg.explain:
        study.explain()
        return 0
    return 1 if study.run() else 0


if __name__ == "__main__":
    main()
