"""What `python -m accel search=...` does: search in every cell, evaluate what was found on other seeds, make the table.

What a cell's search has found is a record of kind `search`; a search whose record is there is not run again. Rows that
share sampler, steps, guidance and model (a *group*) are compared with each other and with hand-made schedules: all are
evaluated as any recipe is, on the seed of `evaluation`, which no search has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from accel.config import spelled_out
from accel.core.environment import provenance
from accel.core.recipe import Recipe
from accel.errors import AccelError, ConfigError, IntegrityError, StorageError
from accel.evaluation.shards import ShardStore
from accel.grammar import command
from accel.locks import locked
from accel.records import describe, digest
from accel.results.progress import Progress
from accel.results.search import write_searches
from accel.results.tracking import track_search, upload_command
from accel.search.base import Room, Search
from accel.search.objective import Objective
from accel.search.optimisers.base import Optimiser
from accel.search.recipes import conclude
from accel.search.trials import Trials
from accel.studies.estimate import seconds_per_row
from accel.studies.manifest import natural
from accel.studies.request import Request
from accel.studies.runner import Runner
from accel.studies.study import Study

KINDS = ("grid", "search", "transfer")  # of rows, in the order in which a table has them


@dataclass(frozen=True)
class Cell:
    """One search: of what, how, and where else to evaluate what it finds (`transfers`)."""

    recipe: Recipe
    overrides: tuple[str, ...]
    search: Search
    optimiser: Optimiser
    transfers: tuple[Recipe, ...] = ()

    @property
    def name(self) -> str:
        """The optimiser, with what is unusual about the search."""
        metric = "" if self.search.metric == "fid" else f" ({self.search.metric})"
        method = f"{self.search.label}: " if self.search.label else ""
        return f"{method}{self.optimiser.label}{metric}"


@dataclass
class SearchStudy(Request):
    """The searches of a command. `brief`: whoever asked says what was found; its pages are written, not shown."""

    cells: Sequence[Cell]
    brief: bool = False
    wandb: str = "disabled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suite.unscored:
            raise ConfigError(f"a search compares scores, and {self.suite.unscored}; leave search= out.")
        for cell in self.cells:
            cell.search.check_seed(self.evaluation)
        if len(self.cells) > 1 and any(cell.search.several for cell in self.cells):
            raise ConfigError(
                f"study {self.name!r} has {len(self.cells)} cells, one of them a search of whole recipes; allowed: "
                "that search alone, for its front is a study of its own."
            )

    def run(self) -> int:
        """Search where that is still to be done, evaluate, and write the tables; the number of failed cells."""
        started = time.perf_counter()
        self.ready()
        self.suite.reference()
        with self._progress() as progress:
            records = self._records(progress)
        failed = records.count(None)
        if self.cells[0].search.several:
            return self._validated(self.cells[0], records[0])
        self._evaluated(records)
        self._show(lambda path: path.stem == self.name)
        for cell, record in zip(self.cells, records, strict=True):
            if len(self.cells) <= 3 and record is not None:
                text = f"to run what {cell.name} found:\n  {record['command']}"
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if self.wandb == "offline" and (self.results.root / "wandb").is_dir():
            hint = f"offline wandb runs; to upload them: {upload_command(self.results.root)}"
            self.console.print(hint, markup=False, highlight=False, soft_wrap=True)
        self.console.print(f"{time.perf_counter() - started:.1f} s.")
        return failed

    def plan(self) -> None:
        """Show each search, its budget, whether it is done and how long it may take; run nothing."""
        runner = Runner(self.suite, self.evaluation, self.results, self.console.print)
        rate, table, total = seconds_per_row(runner), Table(title=f"plan of {self.name}: {self.suite.name}"), 0.0
        for column in ("cell", "search", "budget (NFE)", "estimate"):
            table.add_column(column)
        for cell in self.cells:
            done = self.results.load("search", self._room(cell).key) is not None
            seconds = 0.0 if done else cell.search.budget * rate
            total += seconds
            shown = "done" if done else f"{seconds:.0f} s"
            table.add_row(cell.recipe.label, cell.name, f"{cell.search.budget:,}", shown)
        self.console.print(table)
        self.console.print(f"At most about {total:.0f} s of searching, then the evaluation of what is found.")

    explain = plan

    def _room(self, cell: Cell) -> Room:
        return Room(cell.search, cell.optimiser, cell.recipe, self.suite, self.evaluation, self.results.root, self.say)

    def _records(self, progress: Progress) -> list[dict[str, Any] | None]:
        """The record of each cell's search, None where that cannot be run; those that another process is busy with
        come last."""
        records: dict[int, dict[str, Any] | None] = {}
        for wait in (False, True):
            for i in sorted(set(range(len(self.cells))) - set(records)):
                cell, room = self.cells[i], self._room(self.cells[i])
                with locked(self.results.root / "artefacts" / "search" / f".{room.key}.lock", wait) as held:
                    if held:
                        records[i] = self._tried(cell, room, progress)
        return [records[i] for i in sorted(records)]

    def _tried(self, cell: Cell, room: Room, progress: Progress) -> dict[str, Any] | None:
        """`_searched`; where others are to follow, a search that cannot be run is reported and passed over."""
        try:
            return self._searched(cell, room, progress)
        except StorageError:
            raise
        except AccelError as error:
            if len(self.cells) == 1:
                raise
            self.console.print(f"failed: {cell.recipe.label} {cell.name}: {error}", style="red", markup=False)
            return None

    def _searched(self, cell: Cell, room: Room, progress: Progress) -> dict[str, Any]:
        """The record of the cell's search, made now if it is not there."""
        if record := self.results.load("search", room.key):
            return record
        label = f"{cell.recipe.label} {cell.name}"
        bar = progress.add_task(label[:44], total=cell.search.budget, unit="NFE", best="")
        settings = {"suite": self.suite.name, "base": cell.recipe.label, "optimiser": cell.optimiser.label,
                    "method": cell.search.name, "budget": cell.search.budget, "settings": cell.search.identity(),
                    **provenance()}  # fmt: skip
        with track_search(self.results, self.name, room.key, label, settings, self.wandb) as live:
            trials = Trials(room.ledger)

            def on_trial(objective: Objective) -> None:
                best = objective.best
                name = objective.space.label(best.vector) if best.vector else best.recipe.label
                shown = f"best {objective.relative(best, best.n):+.4g}: {name}"
                progress.update(bar, completed=room.ledger.nfe, best=shown)
                for row in trials.new(objective):
                    live.log(row)

            room.on_trial = on_trial
            record = cell.search.run(room)
            record["command"] = deployed(cell, record)
            record["environment"] = provenance()
            self.results.save(record)
            live.found({"found": record.get("label"), "run_found": record["command"], "cost": record["cost"]})
        self._forget(room)
        progress.remove_task(bar)
        cost = record["cost"]
        self.say(f"searched {cell.recipe.label} by {cell.name}: {cost['nfe']:,} NFE, {cost['seconds']:.0f} s")
        return record

    def _forget(self, room: Room) -> None:
        # Scores are kept; of a finished search nobody needs the candidates' samples.
        for key in {what[0] for what in room.ledger.paid}:
            if re.fullmatch(r"[0-9a-f]+", key):
                ShardStore(self.results.root, key).forget()

    def _evaluated(self, records: Sequence[dict[str, Any] | None]) -> None:
        runner = Runner(self.suite, self.evaluation, self.results, self.say)
        rows: list[dict[str, Any]] = []

        def add(group: Recipe, name: str, recipe: Recipe, record: dict[str, Any] | None, kind: str) -> None:
            row = {"group": digest(describe(replace(group, grid=None))), "of": replace(group, grid=None).label,
                   "name": name, "kind": kind, "quality": runner.quality_id(recipe),
                   "search": record["id"] if record else None}  # fmt: skip
            if row not in rows:
                self.say(f"evaluating {recipe.label}") if runner.scored(recipe) is None else None
                runner.quality(recipe)
                rows.append(row)
                self._save(rows)

        for cell, record in zip(self.cells, records, strict=True):
            if record is None:
                continue
            for name, recipe in cell.search.compared(cell.recipe).items():
                add(cell.recipe, name, recipe, None, "grid")
            found = cell.search.found(cell.recipe, record)
            add(cell.recipe, cell.name, found, record, "search")
            for other in cell.transfers:
                for grid, recipe in cell.search.compared(other).items():
                    add(other, grid, recipe, None, "grid")
                add(other, f"{cell.name} of {cell.recipe.label}", cell.search.found(other, record), record, "transfer")
        self._save(rows, whole=True)

    def _save(self, rows: list[dict[str, Any]], whole: bool = False) -> None:
        """Put `rows`, in the order of the command, into the study; `whole`: they are all that the command has."""
        about = {"suite": self.suite.name, "n": self.evaluation.samples, "seed": self.evaluation.seed_text}
        with self.results.alone(self.name):
            there = self._there(about)
            if self.merge:
                kept = [*there, *(row for row in rows if row not in there)]
                rows = sorted(kept, key=lambda row: (natural(row["of"]), row["group"], KINDS.index(row["kind"]),
                                                     natural(row["name"]), row["search"] or ""))  # fmt: skip
            elif not whole and all(row in there for row in rows):
                return  # another process is ahead
            own = {"kind": "search_study", "id": self.name, "title": self.title, "margins": self.margins.to_dict()}
            self.results.save(own | {"rows": rows} | about)

    def _there(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows that are there of the same samples."""
        try:
            before = self.results.load("search_study", self.name)
        except IntegrityError:
            if self.merge:
                raise
            return []  # it is about to be replaced anyway
        return list(before["rows"]) if before and about.items() <= before.items() else []

    def _validated(self, cell: Cell, record: dict[str, Any]) -> int:
        """The front of a recipe search as a study of its own, on fresh seeds, beside every single method."""
        recipes = cell.search.recipes_of(record)
        study = Study(self.name, self.title, self.suite, self.evaluation, self.results, self.baseline, recipes,
                      console=self.console, front=self.front, conventional=self.conventional,
                      wandb=self.wandb)  # fmt: skip
        failed = study.run()
        suite = [o for o in spelled_out(list(cell.overrides)) if o.lstrip("+").startswith("suite")]
        conclude(self.results, self.name, record, self.evaluation, suite)
        self._show(lambda path: path.stem.startswith(self.name) and not self.brief)
        return failed

    def _show(self, wanted: Callable[[Path], bool]) -> None:
        """Write the tables of all searches, and show those that are wanted."""
        with self.results.alone("searches"):  # whoever is last shows the rows of all
            tables = [path for path in write_searches(self.results) if path.suffix == ".md" and wanted(path)]
            texts = [path.read_text() for path in tables]
        for text in texts:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _progress(self) -> Progress:
        spent = TextColumn("{task.completed:,}/{task.total:,} NFE")
        columns = (TextColumn("{task.description:<44}"), BarColumn(16), spent, TimeElapsedColumn(),
                   TimeRemainingColumn(), TextColumn("{task.fields[best]}"))  # fmt: skip
        return Progress(*columns, console=self.console)


def deployed(cell: Cell, record: dict[str, Any]) -> str:
    """The command line that runs what a cell's search has found."""
    found = cell.search.overrides(record)
    replaced = {o.partition("=")[0] for o in found}
    kept = [o for o in spelled_out(list(cell.overrides)) if o.partition("=")[0] not in replaced]
    return command([*kept, *found])
