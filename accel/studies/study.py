"""A study: its cells, their equal-cost controls, the plan, the manifest, and the tables and figures at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from rich.table import Table

from accel.core.devices import check_devices
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError, Refusals, StorageError, check_int
from accel.evaluation.generate import generate
from accel.results.comparison import Comparison
from accel.results.figures import write_figures
from accel.results.power import needs_text
from accel.results.strips import LEGEND, strip
from accel.results.tables import write_tables
from accel.results.terminal import print_study
from accel.results.tracking import log_record, log_study, upload_command
from accel.studies import floor
from accel.studies.ahead import Ahead
from accel.studies.bars import WIDTH, Bars
from accel.studies.enough import next_n
from accel.studies.estimate import rows_per_image, seconds_per_row
from accel.studies.evaluation import Evaluation
from accel.studies.fleet import Fleet
from accel.studies.launchers import Launcher
from accel.studies.manifest import Job, Manifest
from accel.studies.plain import own_front
from accel.studies.pool import Pool
from accel.studies.request import Request
from accel.studies.runner import FAILURES, Runner
from accel.studies.unscored import check_unscored
from accel.studies.worker import Work

UNTIMED = ("reference", "aa")  # roles of rows that are there to be compared with, not to be chosen
SHOWN = 12  # workers of a launcher that have a bar of their own
TOGETHER = 6  # cells that share the rounds of a timing: their baseline costs less, and a stopped command loses no more


class Measured(NamedTuple):
    """A cell and what is known of it: scores, whether they were there before, times, or why there are none."""

    job: Job
    quality: dict[str, Any] | None = None
    before: bool = False
    timings: Sequence[dict[str, Any]] = ()
    error: Exception | None = None


@dataclass
class Study(Request):
    """Recipes to be measured and compared."""

    cells: list[Recipe]
    wandb: str = "offline"
    aa: bool = False  # whether every recipe is evaluated a second time, on other seeds
    parts: bool = False  # whether the parts of every combined cell are cells, too
    workers: int = 1  # processes that share the cells; 1: this one alone
    devices: Sequence[str] = ()  # of these processes, one after the other; none: all of the kind of the evaluation's
    launcher: Launcher | None = None  # what starts them, on other machines, too; None: this command

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("workers", self.workers, 1)
        self.devices = check_devices(self.devices)
        if self.suite.unscored:
            check_unscored(self.suite, self.evaluation, self.aa)
        if self.parts and not any(recipe.combined for recipe in self.cells):
            self._nothing_combined()
        named: dict[str, Recipe] = {}
        for recipe in (self.baseline, *self.cells, *self._added()):
            if named.setdefault(recipe.label, recipe) != recipe:
                raise ConfigError(
                    f"two cells of study {self.name!r} are both called {recipe.label!r}, but their settings differ; a "
                    "table could not tell them apart. Put them into studies of their own, or vary what labels show."
                )

    def _nothing_combined(self) -> None:
        # One command of several into a study, such as a job of a multirun, may well have nothing that is combined.
        why = f"parts=true, but no cell of study {self.name!r} has two accelerating axes, so there are no parts to add"
        if not self.merge:
            raise ConfigError(f"{why}; leave it out, or combine guidance=ag, cache, stitch, precision or skip.")
        self.say(f"{why}.")

    def _added(self, refused: Sequence[Recipe] = ()) -> list[Recipe]:
        """With `parts`: the plain recipe and each accelerating axis alone of every combined cell that is not refused,
        where they are no cells already."""
        found: list[Recipe] = []
        for recipe in self.cells if self.parts else ():
            for part in recipe.parts().values() if recipe.combined and recipe not in refused else ():
                if part not in (self.baseline, *self.cells, *found):
                    found.append(part)
        return found

    def run(self) -> int:
        """Compute what is missing, then rebuild the study's tables and figures; the number of failed cells. With
        `evaluation.n=auto` once more for as many samples as its verdicts need."""
        failed = self._run()
        auto = self.evaluation.auto
        while auto and (more := self._more()):
            self.evaluation = replace(self.evaluation, n=more)
            failed = self._run()
        return failed

    def _more(self) -> int | None:
        """The samples of each seed that the verdicts need; None where there are enough, or no more are allowed."""
        e, seeds = self.evaluation, len(self.evaluation.seeds)
        step = math.lcm(e.shard, self.suite.period) * seeds
        found, said = next_n(Comparison.load(self.results, self.name), e.samples, e.most * seeds, step)
        self.say(f"evaluation.n=auto: {said}")
        return found and found // seeds

    def _run(self) -> int:
        started = time.perf_counter()
        computed = 0
        with Bars(self.console, self._places) as progress, self._pool(progress) as pool:
            runner = self._runner(progress, self.evaluation)
            twin = self._runner(progress, self.evaluation.elsewhere) if self.aa else runner
            refused = self._refusals(runner)
            jobs = self._jobs(runner, refused)
            rows = Manifest(self, [*(job.recipe.label for job in jobs), *(recipe.label for recipe, _ in refused)])
            self.ready()
            bar = progress.open("real images (held out)", len(jobs) + 1)
            rows.add_floor(floor.floor(runner))
            progress.advance(bar)
            waiting: list[Measured] = []  # for a time
            untracked: list[tuple[dict[str, Any], dict[str, Any] | None]] = []  # until the manifest has the baseline
            while jobs or waiting:
                if len(waiting) == TOGETHER or not jobs:
                    with progress.timing(len(waiting)):
                        ended, waiting = self._timed(runner, waiting), []
                else:
                    self._ahead(pool, runner, twin, jobs)
                    job = jobs.pop(0)
                    progress.begin(0 if self.suite.unscored else self.evaluation.samples)
                    progress.update(bar, description=job.recipe.label[:WIDTH])
                    measured = self._measured(twin if job.role == "aa" else runner, job, pool)
                    if measured is None:  # another process computes this cell: come back to it
                        job.deferred = True
                        jobs.append(job)
                        continue
                    if self._to_be_timed(job) and not measured.error:
                        waiting.append(measured)
                        continue
                    ended = [measured]
                for job, quality, before, timings, error in ended:
                    if error:
                        rows.add_failure(job, error)
                        self.console.print(f"failed: {job.recipe.label}: {error}", style="red", markup=False)
                    else:
                        rows.add(job, quality, timings)
                        first = timings[0] if timings else None
                        if before:
                            progress.update(bar, there=progress.tasks[bar].fields["there"] + 1)
                        else:
                            computed += 1
                            untracked.append((quality, first))
                        if new := self.controls(runner, job, quality, first):
                            jobs[:0] = new
                            progress.update(bar, total=progress.tasks[bar].total + len(new))
                    progress.advance(bar)
                rows.save()
                if not (jobs or waiting) or any(row["role"] == "baseline" for row in rows.own):
                    while untracked:
                        self._track(*untracked.pop(0))
            for recipe, reason in refused:
                rows.add_refusal(recipe, reason)
            rows.save(whole=True)
        self.publish(computed > 0)
        self.console.print(
            f"{computed} of {len(rows.rows)} rows computed now, the others were there already; "
            f"{time.perf_counter() - started:.1f} s."
        )
        return rows.failures

    @property
    def _places(self) -> int:
        return min(self.workers, SHOWN) if self.launcher else self.workers

    def _pool(self, bars: Bars) -> Pool | Fleet:
        evaluation = replace(self.evaluation, device=self.evaluation.resolve_device())
        threads = max(1, torch.get_num_threads() // self.workers)
        work = Work(self.suite, evaluation, self.results, threads, self.devices)
        return Fleet(self.launcher, self.workers, self, work, bars) if self.launcher else Pool(self.workers, work, bars)

    def _ahead(self, pool: Pool | Fleet, runner: Runner, twin: Runner, jobs: Sequence[Job]) -> None:
        """If the first of these cells is not there, have workers make it and the others, and the controls of equal MACs
        that follow; those of equal time follow from times, for which all that can be known before is made first."""
        ahead = Ahead(runner, twin, self.controls, pool.failed)
        if (self.workers > 1 or self.launcher) and ahead.missing(jobs[:1]):
            pool.measure(ahead.missing(jobs), ahead.follow)

    def _measured(self, runner: Runner, job: Job, pool: Pool) -> Measured | None:
        """The quality of a cell, computed if it is not there; None while another process does that."""
        try:
            key = runner.quality_id(job.recipe)
            if key in pool.failed:
                return Measured(job, error=pool.failed[key])
            before = runner.scored(job.recipe)
            quality = before or runner.quality(job.recipe, wait=job.deferred)
        except StorageError:  # no cell's fault, and no other cell would fare better
            raise
        except FAILURES as error:
            return Measured(job, error=error)
        return quality and Measured(job, quality, before is not None and key not in pool.made)

    def _timed(self, runner: Runner, cells: Sequence[Measured]) -> list[Measured]:
        """These cells with their times, from common rounds; where these fail each by itself: whose failure is it?"""
        try:
            found = runner.timings([one.job.recipe for one in cells], self.baseline)
        except StorageError:
            raise
        except FAILURES as error:
            if len(cells) == 1:
                return [cells[0]._replace(error=error)]
            return [timed for one in cells for timed in self._timed(runner, [one])]
        return [one._replace(timings=timings) for one, timings in zip(cells, found, strict=True)]

    def _to_be_timed(self, job: Job) -> bool:
        return self.evaluation.timing and job.role not in UNTIMED and not job.recipe.simulated

    def publish(self, track: bool = False) -> None:
        """Rebuild tables and figures from the records and show the table."""
        with self.results.alone(self.name):  # whoever is last shows the rows of all
            paths = [*write_tables(self.results, self.name), *write_figures(self.results, self.name)]
        hint = self._track_study() if track and self.wandb != "disabled" else None
        print_study(self.results, self.name, self.console)
        self.console.print("written: " + ", ".join(str(p) for p in paths), highlight=False, soft_wrap=True)
        if hint:
            self.console.print(hint, markup=False, highlight=False, soft_wrap=True)

    def plan(self) -> None:
        """Show each cell, what of it is done and how long the rest will take; run nothing."""
        runner = Runner(self.suite, self.evaluation, self.results, self.console.print)
        refused, rate = self._refusals(runner), seconds_per_row(runner)
        table = Table(title=f"plan of {self.name}: {self.suite.name}, N={self.evaluation.samples}, on {runner.device}")
        for column in ("cell", "role", "done", "samples to do", "estimate"):
            table.add_column(column, justify="left" if column in ("cell", "role") else "right")
        total, jobs = 0.0, self._jobs(runner, refused)
        timed = sum(map(self._to_be_timed, jobs))
        together = timed / max(1, math.ceil(timed / TOGETHER)) or 1  # cells a round, on average
        for job in jobs:
            todo = 0 if runner.scored(job.recipe, keep=False) else runner.missing_samples(job.recipe)
            seconds = todo * rows_per_image(job.recipe) * rate + self._timing_seconds(runner, job, rate, together)
            total += seconds
            done = "–" if self.suite.unscored else f"{self.evaluation.samples - todo}/{self.evaluation.samples}"
            table.add_row(job.recipe.label, job.role, done, str(todo), f"{seconds:.0f} s")
        for recipe, reason in refused:
            table.add_row(recipe.label, "refused", "", "", reason)
        self.console.print(table)
        controlled = self.evaluation.controls and not self.suite.unscored
        more = ", plus up to two equal-cost controls for each accelerated cell" if controlled else ""
        self.console.print(
            f"At most about {total:.0f} s of sampling and timing (caching, stitching and interval guidance not "
            f"deducted){more}. Nothing was run or written."
        )
        if self.workers > 1:
            self.say(f"workers={self.workers} share the sampling, not the timing; the estimate is that of one process.")
        if not self.suite.unscored:
            self.console.print(needs_text(self.results, self.suite.name, self.margins, self.name), highlight=False)

    def explain(self) -> None:
        """Show for each cell which network does what at which step, by one run of one image; score nothing."""
        runner = Runner(self.suite, self.evaluation, self.results, self.console.print)
        refused = self._refusals(runner)
        if self.workers > 1:
            self.say(f"workers={self.workers} have nothing to share here: one image of each cell is made.")
        for job in self._jobs(runner, refused):
            artefacts, _ = runner.artefacts(job.recipe)
            count = job.recipe.sampler.group(self.suite.period) if job.recipe.sampler else 1
            with accelerate(runner.pipe, job.recipe, models=runner.models, artefacts=artefacts) as traced:
                generate(runner.pipe, self.suite, job.recipe, self.evaluation.seeds[0], 0, count, count)
            self.console.print(job.recipe.label, style="bold", markup=False, highlight=False)
            text = strip(traced.trace, count, traced.clock.stages, traced.events)
            self.console.print(text + "\n", markup=False, highlight=False, soft_wrap=True)
        for recipe, reason in refused:
            self.console.print(f"not run: {recipe.label}: {reason}", style="yellow", markup=False)
        self.console.print(LEGEND, style="dim", markup=False, highlight=False)

    def _timing_seconds(self, runner: Runner, job: Job, rate: float, together: float) -> float:
        e, timed = self.evaluation, self._to_be_timed(job)
        ids = {batch: runner.timing_id(job.recipe, self.baseline, batch) for batch in e.timing_batches if timed}
        images = sum(batch for batch, key in ids.items() if not runner.find("timing", key))
        rows = 2 * (rows_per_image(self.baseline) / together + rows_per_image(job.recipe))  # a round times all twice
        return (e.repetitions + 1) * images * rows * rate

    def _jobs(self, runner: Runner, refused: list[tuple[Recipe, str]]) -> list[Job]:
        seen = {(again, runner.generation_id(recipe)) for recipe, _ in refused for again in (False, True)}
        jobs = [Job(self.baseline, "baseline")]
        if self.evaluation.converged and not self.suite.unscored:
            converged = self.suite.converged(self.baseline.exact_guidance)
            if runner.generation_id(converged) != runner.generation_id(self.baseline):  # the table needs its baseline
                jobs.insert(0, Job(converged, "reference"))
        jobs += [Job(recipe, role) for role, recipe in self.against.items()]
        jobs += [Job(recipe, "cell") for recipe in (*self.cells, *self._added([recipe for recipe, _ in refused]))]
        if self.aa:
            jobs += [Job(job.recipe, "aa", of=job.recipe.label) for job in jobs if job.role != "reference"]
        unique = []
        for job in jobs:
            key = job.role == "aa", runner.generation_id(job.recipe)
            if key not in seen:
                seen.add(key)
                unique.append(job)
        return unique

    def _refusals(self, runner: Runner) -> list[tuple[Recipe, str]]:
        """Cells that cannot work, with the reason; a study of one cell raises instead."""
        refused = []
        with Refusals() as refusals:
            refusals.ask(runner.check, self.baseline)
            for recipe in self.cells:
                try:
                    runner.check(recipe)
                except IncompatibleError as error:
                    if len(self.cells) == 1:
                        refusals.add(error)
                    refused.append((recipe, str(error)))
                except AccelError as error:
                    refusals.add(error)
            for recipe in self._added([recipe for recipe, _ in refused]):
                try:
                    runner.check(recipe)
                except IncompatibleError as error:  # a part that cannot work without the others
                    refused.append((recipe, str(error)))
        self.suite.reference()  # a reference that differs fails here, not after hours of sampling
        return refused

    def jobs(self, runner: Runner) -> list[Job]:
        """All cells that are known before anything is made, and can be."""
        return self._jobs(runner, self._refusals(runner))

    def controls(self, runner: Runner, job: Job, quality: dict[str, Any], timing: dict[str, Any] | None) -> list[Job]:
        if job.role != "cell" or job.recipe.plain or not self.evaluation.controls or self.suite.unscored:
            return []  # a control compares scores
        front = self.front or own_front(job.recipe)
        found = runner.controls(job.recipe, quality["cost"], timing, self.baseline, front)
        jobs = []
        for recipe, equal in found:
            if reason := runner.refusal(recipe):
                runner.say(
                    f"{job.recipe.label} has no control of equal {' and '.join(equal)}: {recipe.label}: {reason}"
                )
            else:
                jobs.append(Job(recipe, "control", of=job.recipe.label, equal=equal))
        return jobs

    def _track(self, quality: dict[str, Any], timing: dict[str, Any] | None) -> None:
        if self.wandb != "disabled":
            log_record(self.results, self.name, quality, timing, mode=self.wandb)

    def _track_study(self) -> str | None:
        """Log the study to wandb; how to upload the runs that are offline."""
        logged = log_study(self.results, self.name, mode=self.wandb)
        offline = logged and self.wandb == "offline"
        return f"offline wandb runs; to upload them: {upload_command(self.results.root)}" if offline else None

    def _runner(self, bars: Bars, evaluation: Evaluation) -> Runner:
        return Runner(self.suite, evaluation, self.results, **bars.listeners())
