"""From a composed configuration to the study that it asks for; whatever is wrong with the request is said at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accel.config import AXES, NO_METHOD, compose, expand_cells, instantiate, recipe_by, recipe_of, resolved
from accel.errors import (
    AccelError,
    ConfigError,
    IncompatibleError,
    Refusals,
    check_bool,
    check_int,
    check_name,
    unknown,
)
from accel.grammar import check_cells, check_overrides
from accel.records import Results

WANDB = ("offline", "online", "disabled")
FAR = 10_000  # workers that a launcher may start
OWN = (*AXES, "search", "optimiser", "transfer")  # what a cell may choose for itself


def build(cfg: Any, overrides: list[str] | None = None) -> Any:
    """The study, or searches, that a composed configuration describes."""
    return build_search(cfg, overrides) if searches(cfg) else build_study(cfg, overrides)


def build_study(cfg: Any, overrides: list[str] | None = None) -> Any:
    """The study that a composed configuration describes; everything is instantiated, so bad values raise here.

    `overrides` are those of the command line (default: Hydra's own record of them); they hold for every cell too.
    """
    with Refusals() as refusals:
        parts = _parts(cfg, refusals)
        cells = _cells(cfg, overrides, refusals, _plain_cell)
        _look_further(cfg, parts, cells, refusals)
    return _study(cfg, parts, cells)


def build_search(cfg: Any, overrides: list[str] | None = None) -> Any:
    """The searches that a composed configuration describes; everything is instantiated, so bad values raise here."""
    from accel.search.study import SearchStudy

    with Refusals() as refusals:
        parts = _parts(cfg, refusals)
        cells = _cells(cfg, overrides, refusals, _search_cell)
        _look_further(cfg, parts, [c.recipe for c in cells], refusals)
    plain = _study(cfg, parts, [])
    shown = (plain.name, plain.title, plain.suite, plain.evaluation, plain.results, plain.baseline)
    return SearchStudy(*shown, cells, merge=not cfg.cells, wandb=cfg.wandb, **parts["plain"])


def check_request(cfg: Any, overrides: list[str]) -> None:
    """ConfigError with all that is wrong with a request for a search whose recipes are not known yet, so that none is
    tried on the pipeline."""
    with Refusals() as refusals:
        parts = _parts(cfg, refusals)
        _cells(cfg, overrides, refusals, _search_cell)
        _look_at_suite(cfg, parts, refusals)


def searches(cfg: Any) -> bool:
    """Whether a composed configuration asks for a search, in any of its cells."""
    cells = expand_cells(resolved(cfg)["cells"]) if cfg.cells else []
    chosen = {o.partition("=")[2] for cell in cells for o in cell if o.startswith("search=")}
    return cfg.search._target_ != NO_METHOD or bool(chosen - {"none"})


def _study(cfg: Any, parts: dict[str, Any], cells: list[Any]) -> Any:
    from accel.studies.study import Study

    return Study(
        name=cfg.study,
        title=cfg.title,
        suite=parts["suite"],
        evaluation=parts["evaluation"],
        results=_results(cfg),
        baseline=parts["baseline"],
        cells=cells,
        merge=not cfg.cells,
        wandb=cfg.wandb,
        aa=cfg.aa,
        parts=cfg.parts,
        workers=cfg.workers,
        devices=list(cfg.devices),
        launcher=parts["launcher"],
        **parts["plain"],
    )


def _parts(cfg: Any, refusals: Refusals) -> dict[str, Any]:
    """Suite, evaluation and baseline (None where refused), after the settings of the command itself."""
    resolved(cfg)  # a ${...} that refers to nothing
    refusals.ask(_check_settings, cfg)
    return {
        "suite": refusals.ask(instantiate, cfg.suite),
        "evaluation": refusals.ask(instantiate, cfg.evaluation),
        "baseline": refusals.ask(_recipe, "baseline", cfg.baseline),
        "launcher": refusals.ask(_launcher, cfg),
        "plain": refusals.ask(_plain, cfg) or {},
    }


def _recipe(name: str, overrides: Any) -> Any:
    """The recipe of the setting `name`, a list of overrides; what is wrong with it names it."""
    try:
        own = check_overrides(name, overrides)
        _check_cell(own, AXES)
        return recipe_by(own)
    except AccelError as error:
        told = Refusals()
        for reason in error.reasons or (error,):
            told.add(type(reason)(f"{name}: {reason}"))
        return told.throw()


def _plain(cfg: Any) -> dict[str, Any]:
    """The conventional sampler of the suite and the front of its best plain ones: a file of conf/plain for a suite."""
    from accel.studies.plain import PlainFront

    own = resolved(cfg).get("plain") or {}
    if unknown_keys := sorted(set(own) - {"conventional", "front", "best"}):
        raise unknown("setting of plain", unknown_keys[0], ("conventional", "front", "best"))
    found: dict[str, Any] = {}
    with Refusals() as refusals:
        if own.get("conventional"):
            found["conventional"] = refusals.ask(_recipe, "plain.conventional", own["conventional"])
        if own.get("front"):
            cells = refusals.ask(check_cells, "plain.front", own["front"]) or ()
            recipes = tuple(filter(None, [refusals.ask(_recipe, "plain.front", cell) for cell in cells]))
            if not refusals.reasons:
                found["front"] = refusals.ask(PlainFront, recipes, own.get("best"))
    return found


def _check_settings(cfg: Any) -> None:
    import torch

    with Refusals() as refusals:
        if cfg.threads is not None:
            refusals.ask(check_int, "threads", cfg.threads, 1, 8 * (os.cpu_count() or 1))
        refusals.ask(_check_workers, cfg)
        if cfg.wandb not in WANDB:
            refusals.add(unknown("wandb mode", str(cfg.wandb), WANDB))
        for name in ("plan", "explain", "aa", "parts"):
            refusals.ask(check_bool, name, cfg[name])
        if cfg.parts is True and searches(cfg):
            why = "parts=true is for a study of recipes, and a search is asked for; leave it out"
            refusals.add(ConfigError(f"{why}: search=recipes adds the parts of its front by itself."))
        if cfg.plan and cfg.explain:
            refusals.add(ConfigError("plan=true and explain=true are both given; choose one."))
        refusals.ask(check_name, "study", cfg.study)
        refusals.ask(_check_title, cfg.title)
        refusals.ask(_transfer, cfg)
        if cfg.cells is not None:
            refusals.ask(check_cells, "cells", cfg.cells)
        refusals.ask(_results, cfg)
        if isinstance(cfg.results, str) and not (cfg.plan or cfg.explain):
            refusals.ask(_check_folder, Path(cfg.results))
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)


def _results(cfg: Any) -> Results:
    return Results(cfg.results, cfg.locks, cfg.lease)


def _launcher(cfg: Any) -> Any:
    """What starts the workers, None for this command itself; ConfigError where its package is not there."""
    if (launcher := instantiate(cfg.launcher)) is not None:
        if searches(cfg):
            raise ConfigError("a launcher starts workers of a study, and a search is asked for; leave out launcher=.")
        launcher.check()
    return launcher


def _check_workers(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from accel.core.devices import check_devices

    launched = cfg.launcher._target_ != NO_METHOD
    check_int("workers", cfg.workers, 1, FAR if launched else 8 * (os.cpu_count() or 1))
    if cfg.devices and launched:
        raise ConfigError("devices= are of this command's own workers; a launcher gives each its own. Choose one.")
    check_devices(list(cfg.devices) if OmegaConf.is_list(cfg.devices) else cfg.devices)
    if cfg.workers > 1 and searches(cfg):
        raise ConfigError(
            f"workers={cfg.workers} is for a study of recipes, and a search is asked for; use "
            f"search.workers={cfg.workers}, which share its candidates, or leave it out."
        )


def _check_title(title: Any) -> None:
    if isinstance(title, bool) or not isinstance(title, (str, int)) or not str(title).strip():
        raise ConfigError(f"title is {title!r}; allowed: a line of text.")


def _check_folder(folder: Path) -> None:
    """Whether results could be written, as far as that is known without writing."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is a file"
        raise ConfigError(f"cannot write {folder}: {there} {what}. Choose a writable folder with results=<folder>.")


def _cells(cfg: Any, overrides: list[str] | None, refusals: Refusals, make: Callable[[Any, list[str]], Any]) -> list:
    """What `make` makes of each cell, composed, and its overrides; those that are refused are left out."""
    task = _task(overrides)
    if not cfg.cells:
        return list(filter(None, [refusals.ask(make, cfg, task)]))

    def made(own: list[str]) -> Any:
        _check_cell(own)
        return make(compose([*task, *own]), [*task, *own])

    return list(filter(None, [refusals.ask(made, own) for own in refusals.ask(expand_cells, cfg.cells) or ()]))


def _check_cell(own: list[str], allowed: Sequence[str] = OWN) -> None:
    """Refuse what a cell cannot set, since all cells share it: the suite, the evaluation, the study."""
    for override in own:
        key = override.lstrip("+").partition("=")[0].partition(".")[0]
        if key not in allowed:
            raise ConfigError(
                f"a cell has {override}; allowed in cells: {', '.join(allowed)}, and their settings. What holds for "
                f"the whole study stands beside cells: {override} as a word of its own."
            )


def _plain_cell(cfg: Any, own: list[str]) -> Any:
    with Refusals() as refusals:
        for override in own:
            if override.lstrip("+~").partition("=")[0].partition(".")[0] == "optimiser":
                why = f"{override} is for a search, and none is asked for; add search=..., or leave it out."
                refusals.add(ConfigError(why))
        recipe = refusals.ask(recipe_of, cfg)
    return recipe


def _search_cell(cfg: Any, own: list[str]) -> Any:
    from accel.search.base import Search
    from accel.search.study import Cell

    with Refusals() as refusals:
        search, optimiser = refusals.ask(instantiate, cfg.search), refusals.ask(instantiate, cfg.optimiser)
        recipe = refusals.ask(recipe_of, cfg)
        if cfg.search._target_ == NO_METHOD:
            refusals.add(ConfigError(f"cell {' '.join(own)!r} has search=none among cells that search; leave it out."))
        others = [refusals.ask(lambda more=more: recipe_of(compose(_elsewhere(own, more)))) for more in _transfer(cfg)]
        if isinstance(search, Search):
            for base in filter(None, (recipe, *others)):
                refusals.ask(search.check_base, base)
    return Cell(recipe, tuple(own), search, optimiser, tuple(others))


def _transfer(cfg: Any) -> list[list[str]]:
    if cfg.transfer is None or cfg.transfer == []:
        return []
    transfers = check_cells("transfer", cfg.transfer)
    for own in transfers:
        _check_cell(check_overrides("transfer", own), AXES)
    if cfg.search._target_ == NO_METHOD and not searches(cfg):
        raise ConfigError("transfer says where else to evaluate what a search finds; add search=..., or leave it out.")
    return transfers


def _elsewhere(overrides: list[str], more: Any) -> list[str]:
    """`overrides` with `more`; settings of an axis that is switched off there go with it."""
    off = {o.partition("=")[0] for o in more if o.endswith("=none")}
    return [*(o for o in overrides if o.partition("=")[0].split(".")[0] not in off), *more]


def _task(overrides: list[str] | None) -> list[str]:
    """What the command line says of every cell."""
    from hydra.core.hydra_config import HydraConfig

    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("cells", "baseline")]


def _look_further(cfg: Any, parts: dict[str, Any], cells: list[Any], refusals: Refusals) -> None:
    """Ask what a run would ask before its work; and where something is wrong already, what else is: whether the suite
    runs the recipes, which a run finds out by itself with the pipeline that it loads."""
    suite = parts["suite"]
    if suite is None:
        return
    _look_at_suite(cfg, parts, refusals)
    if refusals.reasons:
        with suppress(Exception):  # whatever a library says now, what is to be mended is known
            pipe, models = suite.pipeline(), suite.networks()
            for recipe in filter(None, [parts["baseline"], *cells]):
                # Among several cells an incompatible one is a row of the table.
                row = len(cells) > 1 and recipe is not parts["baseline"]
                try:
                    recipe.check(pipe, models)
                except AccelError as error:
                    if not (row and isinstance(error, IncompatibleError)):
                        refusals.add(error)


def _look_at_suite(cfg: Any, parts: dict[str, Any], refusals: Refusals) -> None:
    """Whether the suite has its files, and as many prompts as samples."""
    suite, evaluation = parts["suite"], parts["evaluation"]
    if suite is None:
        return
    n = evaluation.n if evaluation else cfg.evaluation.n
    if isinstance(n, int) and not isinstance(n, bool):
        refusals.ask(suite.check, n)
    refusals.ask(suite.fingerprint)
    refusals.ask(suite.reference_identity)
