"""What a command line asks for: a subcommand, one run or study, or a multirun by Hydra's own application."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel.cli.words import COMMANDS, LIGHT, Words, call, split
from accel.config import CONF, check_sweep, compose
from accel.errors import check_installed, told
from accel.files import file_name
from accel.registry import extend

NEEDED = ("hydra", "rich", "pandas", "matplotlib", "torchmetrics")  # by every study


def answer(arguments: list[str]) -> int:
    """Do what the words of a command line ask for; the exit code."""
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
    check_launcher(words.overrides)
    check_sweep(words.overrides)  # a typo is answered before Hydra starts any job
    import hydra

    sys.argv = [sys.argv[0], *words.hydra()]
    with _returned() as codes:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_job)()
    return max(codes, default=0)


def check_launcher(overrides: list[str]) -> None:
    """Raise ConfigError if a preset of conf/hydra/launcher is chosen whose plugin is not installed."""
    for word in overrides:
        key, _, choice = word.partition("=")
        file = CONF / "hydra" / "launcher" / f"{file_name(choice)}.yaml"
        if key.lstrip("+") == "hydra/launcher" and file.is_file():
            target = re.search(r"^_target_: (\w+\.\w+)", file.read_text(), re.MULTILINE)[1]
            check_installed([target], "cluster", word)


def _job(cfg: Any) -> int:
    """One job, perhaps in a process of a launcher: its exit code. In a multirun the other jobs go on."""
    try:
        return run(cfg)
    except Exception as error:  # whatever it is: it is told as a single run would tell it
        print(f"error: {told(error)}", file=sys.stderr)
        return 2


@contextmanager
def _returned() -> Iterator[list[int]]:
    """Gathers what the jobs of a multirun return, wherever a launcher ran them: `hydra.main` itself drops it. And what
    Hydra refuses is raised as it is, in place of a text of its own."""
    from hydra._internal.hydra import Hydra

    codes: list[int] = []
    multirun, full = Hydra.multirun, os.environ.get("HYDRA_FULL_ERROR")

    def gathered(self: Any, *args: Any, **kwargs: Any) -> Any:
        batches = multirun(self, *args, **kwargs)
        # A sweeper of a plugin may return whatever it likes: jobs that say nothing count as done.
        for batch in batches if isinstance(batches, list) else ():
            codes.extend(job.return_value for job in batch if isinstance(getattr(job, "return_value", None), int))
        return batches

    Hydra.multirun, os.environ["HYDRA_FULL_ERROR"] = gathered, "1"
    try:
        yield codes
    finally:
        Hydra.multirun = multirun
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


def run(cfg: Any, overrides: list[str] | None = None) -> int:
    """Run, plan or explain the study that `cfg` describes; 1 if a cell failed."""
    from accel.cli.build import build
    from accel.core.silence import silence_libraries

    silence_libraries()
    study = build(cfg, overrides)
    if cfg.plan:
        study.plan()
        return 0
    if cfg.explain:
        study.explain()
        return 0
    return 1 if study.run() else 0
