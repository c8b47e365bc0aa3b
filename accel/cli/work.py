"""`accel work <the words of a study>`: one worker among many on a shared results folder.

    accel work experiment=demo results=/shared/run                            as often as there are machines and cards
    srun --ntasks=8 --gpus-per-task=1 accel work experiment=demo results=/shared/run
    torchrun --nproc-per-node=8 -m accel work experiment=demo results=/shared/run

Each makes samples and scores: cells that nobody has begun, then shards of those that others have, until nothing is
missing. Who works on what is agreed on in the folder; a worker may come later, or go. Rows, times and tables are made
by the study's own command, before, meanwhile or afterwards: it finds what is there. `accel workers` shows all of them.

Exit codes: 0 all scores are there; 1 some cells failed; 2 the request is wrong, or the disk is full; 130, 143 stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

# Which of how many processes this one is, in which job, and which of those on its machine: torchrun, Slurm, Open MPI.
RANKS = (
    ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


class Place(NamedTuple):
    """Which of `count` workers of a session this process is, and which of those on its machine."""

    session: str
    rank: int = 0
    count: int = 1
    local: int = 0


def main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    from accel.cli.build import build_study, searches
    from accel.config import compose
    from accel.errors import ConfigError

    cfg = compose(words)
    if wrong := _beside(cfg, searches(cfg)):
        raise ConfigError(f"accel work is one worker of a study: {wrong}.")
    return work(build_study(cfg, words), place())


def work(study, where: Place) -> int:
    """Do a worker's share of `study`; the exit code."""
    from dataclasses import replace

    import torch

    from accel.core.devices import assigned
    from accel.errors import StorageError
    from accel.studies.rank import Share, rank
    from accel.studies.status import forget_failures
    from accel.studies.worker import Work

    study.ready()
    device = assigned(where.local, study.evaluation.resolve_device(), study.devices)
    evaluation = replace(study.evaluation, device=device)
    job = Work(study.suite, evaluation, study.results, torch.get_num_threads())
    if where.rank == 0:
        forget_failures(study.results.root, where.session)
    share = Share(study, job, where.session, where.rank, where.count)
    study.say(f"worker {where.rank} of {where.count} on {device}: {study.name} in {study.results.root}")
    if broken := rank(share):
        raise StorageError(broken)
    failed = share.status.read().failed
    for key, why in sorted(failed.items()):
        study.say(f"failed: {key}: {why}")
    if not failed:
        study.say("all scores are there; the study's own command makes times and tables.")
    return 1 if failed else 0


def place(environment: dict[str, str] | None = None) -> Place:
    """What the environment says of this process among its like."""
    found = os.environ if environment is None else environment
    for rank, count, session, local in RANKS:
        if rank in found and count in found:
            numbers = [int(found.get(name, 0)) for name in (rank, count, local)]
            return Place(_name(found.get(session, "job")), *numbers)
    import platform

    return Place(_name(f"{platform.node()}-{os.getpid()}"))


def _name(text: str) -> str:
    from accel.files import file_name

    return file_name(text)


def _beside(cfg, search: bool) -> str:
    """What was asked for that a worker does not do."""
    from accel.config import NO_METHOD

    asked: Sequence[tuple[bool, str]] = (
        (search, "a search has search.workers=<number>"),
        (cfg.workers != 1, f"leave out workers={cfg.workers} and start it as often"),
        (cfg.launcher._target_ != NO_METHOD, "leave out launcher=, which starts workers by itself"),
        (bool(cfg.plan or cfg.explain), "leave out plan and explain"),
        (
            cfg.evaluation.n == "auto",
            "evaluation.n=auto is found by the study's command; give the number it says",
        ),
    )
    return "; ".join(what for is_so, what in asked if is_so)
