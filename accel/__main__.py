"""`python -m accel`: one run, a study (experiment=...) or a Hydra multirun (-m), from the configuration in conf/."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from accel.config import CONF, NO_METHOD, check_choices, compose, expand_cells, instantiate, recipe_of
from accel.errors import AccelError, ConfigError, check_installed, check_int, unknown

NEEDED = ("hydra", "rich", "pandas", "matplotlib", "torchmetrics")  # by every study


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 some cells failed, 2 the request is wrong, 130 interrupted."""
    arguments, codes = sys.argv[1:], [0]

    def job(cfg: Any) -> None:
        try:
            codes.append(run(cfg))
        except AccelError as error:  # in a multirun the other jobs go on
            print(f"error: {error}", file=sys.stderr)
            codes.append(2)

    try:
        check_installed(NEEDED, "bench", "the command line")
        check_choices(arguments)
        if any(a.startswith("-") for a in arguments):  # --multirun, --cfg, --help, ...: Hydra's own application
            import hydra

            overrides = [a for a in arguments if not a.startswith("-")]
            compose(expand_cells([overrides])[0])  # a typo is answered before Hydra starts any job
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
        else:
            codes.append(run(compose(arguments), arguments))
    except AccelError as error:
        print(f"error: {error}", file=sys.stderr)
        codes.append(2)
    except KeyboardInterrupt:
        print("\ninterrupted: finished shards are kept; run the same command again to resume.", file=sys.stderr)
        codes.append(130)
    sys.exit(max(codes))


def run(cfg: Any, overrides: list[str] | None = None) -> int:
    """Run, plan or explain the study that `cfg` describes; 1 if a cell failed."""
    # Known noise of the libraries: none of it is about what the user asked for.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    study = build_search(cfg, overrides) if searches(cfg) else build_study(cfg, overrides)
    if cfg.plan:
        study.plan()
        return 0
    if cfg.explain:
        study.explain()
        return 0
    return 1 if study.run() else 0


def build_study(cfg: Any, overrides: list[str] | None = None, recipes: bool = True) -> Any:
    """The study that a composed configuration describes; everything is instantiated, so bad values raise here.

    `overrides` are those of the command line (default: Hydra's own record of them); they hold for every cell too.
    Without `recipes` it has no cells.
    """
    import torch

    from accel.results.records import Results
    from accel.study import Study

    if cfg.threads is not None:
        check_int("threads", cfg.threads, 1)
        torch.set_num_threads(cfg.threads)
    if cfg.wandb not in ("offline", "online", "disabled"):
        raise unknown("wandb mode", str(cfg.wandb), ["offline", "online", "disabled"])
    cells = [compose([*_task(overrides), *cell]) for cell in expand_cells(cfg.cells)] if cfg.cells else [cfg]
    return Study(
        name=cfg.study,
        title=cfg.title,
        suite=instantiate(cfg.suite),
        evaluation=instantiate(cfg.evaluation),
        results=Results(cfg.results),
        baseline=recipe_of(compose(list(cfg.baseline))),
        cells=[recipe_of(cell) for cell in cells] if recipes else [],
        merge=not cfg.cells,
        wandb=cfg.wandb,
    )


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


def searches(cfg: Any) -> bool:
    """Whether a composed configuration asks for a search, in any of its cells."""
    cells = expand_cells(cfg.cells) if cfg.cells else []
    chosen = {o.partition("=")[2] for cell in cells for o in cell if o.startswith("search=")}
    return cfg.search._target_ != NO_METHOD or bool(chosen - {"none"})


def build_search(cfg: Any, overrides: list[str] | None = None) -> Any:
    """The searches that a composed configuration describes; everything is instantiated, so bad values raise here."""
    from accel.search.study import Cell, SearchStudy

    plain = build_study(cfg, overrides, recipes=False)
    task = _task(overrides)
    asked = [[*task, *cell] for cell in expand_cells(cfg.cells)] if cfg.cells else [task]
    cells = []
    for own in asked:
        composed = compose(own) if cfg.cells else cfg
        search, optimiser = instantiate(composed.search), instantiate(composed.optimiser)
        if search is None:
            raise ConfigError(f"cell {' '.join(own)!r} has search=none among cells that search; leave it out.")
        others = [recipe_of(compose(_elsewhere(own, more))) for more in composed.transfer or ()]
        cells.append(Cell(recipe_of(composed), tuple(own), search, optimiser, tuple(others)))
    shown = (plain.name, plain.title, plain.suite, plain.evaluation, plain.results, plain.baseline)
    return SearchStudy(*shown, cells, merge=not cfg.cells)


if __name__ == "__main__":
    main()
