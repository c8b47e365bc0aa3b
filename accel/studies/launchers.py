"""What starts the ranks of a study (accel.studies.rank) where one machine is not enough: Ray, and Slurm by submitit.

A launcher opens an executor, whose `submit(function, argument)` returns a job with `done()` and `result()`. It knows
nothing of cells and shards. All machines have the results folder at the same path, the suite's files, and accel.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from accel.errors import ConfigError, Refusals, check_float, check_installed, check_int, needs
from accel.studies.worker import Work

PATIENCE = 10.0  # seconds until a cluster answers


class Executor(Protocol):
    """Runs functions elsewhere."""

    def submit(self, function: Callable[[Any], Any], argument: Any) -> Any: ...


class Launcher(ABC):
    """Starts ranks. `cpus`, `gpus`: of each; threads of torch are as many as CPUs. gpus=None: one where the study
    computes on GPUs, else none."""

    cpus: int
    gpus: float | None

    @abstractmethod
    def executor(self, count: int, root: Path, device: str) -> AbstractContextManager[Executor]:
        """What runs `count` functions at a time, on a kind of device; at its end they are gone. `root`: of results."""

    def cards(self, device: str) -> float:
        """GPUs of each rank of a study on such devices."""
        return float(device != "cpu") if self.gpus is None else self.gpus

    def placed(self, work: Work, place: int) -> Work:
        """The work of the rank at a place. Launchers show each process its own GPU alone, which is the first there."""
        kind = work.evaluation.device.partition(":")[0]
        return replace(work, threads=self.cpus, evaluation=replace(work.evaluation, device=kind))

    @abstractmethod
    def check(self) -> None:
        """ConfigError where what it needs is not installed."""

    def _check(self) -> None:
        with Refusals() as refusals:
            refusals.ask(check_int, "launcher.cpus", self.cpus, 1)
            if self.gpus is not None:
                refusals.ask(check_float, "launcher.gpus", self.gpus, 0)


@dataclass(frozen=True)
class Ray(Launcher):
    """Ranks as tasks of a Ray cluster.

    `address`: of a cluster that runs (`auto`, or ray://host:port); None: one is started on this machine, for this
    command. `gpus`: 0.5 where two ranks share a card.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        self._check()

    def check(self) -> None:
        check_installed(["ray"], "ray", "launcher=ray")
        check_answers(self.address)

    @contextmanager
    def executor(self, count: int, root: Path, device: str) -> Iterator[Executor]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its makers, unless told not to
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is its own choice: on a busy machine next to nothing
        ray = needs("ray", "ray", "launcher=ray")
        own = not ray.is_initialized()
        if own:
            here = {"num_cpus": count * self.cpus} if self.address is None else {}
            try:
                ray.init(self.address, include_dashboard=False if here else None, log_to_driver=False,
                         logging_level="ERROR", **here)  # fmt: skip
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _silent(self.address, error) from error
        try:
            yield _RayTasks(ray, self.cpus, self.cards(device))
        finally:
            if own:
                ray.shutdown()


def check_answers(address: str | None) -> None:
    """ConfigError where nobody listens at a host:port; Ray itself would try for ten minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, error) from error


def _silent(address: str | None, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())[:200]
    return ConfigError(
        f"launcher.address={address}: Ray does not answer there ({said}). Start a cluster (ray start --head), or leave "
        "the address out for one on this machine."
    )


class _RayTasks:
    def __init__(self, ray: Any, cpus: int, gpus: float) -> None:
        self._ray = ray
        # A rank that dies is told to whoever watches, which starts another one.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_called)

    def submit(self, function: Callable[[Any], Any], argument: Any) -> _RayJob:
        return _RayJob(self._ray, self._task.remote(function, argument))


def _called(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def done(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        return self._ray.get(self._reference)


@dataclass(frozen=True)
class Submitit(Launcher):
    """Ranks as jobs of Slurm, by submitit.

    `cluster`: slurm, or local (processes of this machine, to try it out). `minutes`: the time limit of a job.
    `more`: further parameters of submitit, such as {slurm_partition: gpu, slurm_account: me}. Logs of the jobs go to
    <results>/submitit.
    """

    cluster: str = "slurm"
    cpus: int = 1
    gpus: float | None = None
    minutes: int = 240
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check()
        check_int("launcher.minutes", self.minutes, 1)
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"launcher.cluster is {self.cluster!r}; allowed: slurm, local.")
        if self.gpus is not None and self.gpus != int(self.gpus):
            raise ConfigError(f"launcher.gpus is {self.gpus}; allowed with submitit: whole GPUs for each rank.")

    def check(self) -> None:
        check_installed(["submitit"], "cluster", "launcher=submitit")

    @contextmanager
    def executor(self, count: int, root: Path, device: str) -> Iterator[Executor]:
        submitit = needs("submitit", "cluster", "launcher=submitit")
        own = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "name": "accel"}
        own |= {"gpus_per_node": int(gpus)} if (gpus := self.cards(device)) else {}
        try:
            executor = submitit.AutoExecutor(folder=root / "submitit", cluster=self.cluster)
            executor.update_parameters(**own, **self.more)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            remedy = "launcher.cluster=local tries it out on one machine."
            raise ConfigError(f"launcher=submitit: {error} {remedy}") from error
        jobs = _Jobs(executor)
        try:
            yield jobs
        finally:
            for job in jobs.made:
                with suppress(Exception):  # it has ended
                    if not job.done():
                        job.cancel()


class _Jobs:
    def __init__(self, executor: Executor) -> None:
        self._executor, self.made = executor, []

    def submit(self, function: Callable[[Any], Any], argument: Any) -> Any:
        self.made.append(self._executor.submit(function, argument))
        return self.made[-1]
