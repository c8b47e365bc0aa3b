"""`python -m accel`: one run, a study (experiment=...) or a Hydra multirun (-m), from the configuration in conf/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from accel.errors import AccelError, ConfigError, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"
AXES = ("sampler", "grid", "guidance", "cache", "stitch", "precision")

_exit_codes = [0]


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 some cells failed, 2 the request is wrong, 130 interrupted."""
    arguments = sys.argv[1:]
    try:
        check_choices(arguments)
        if any(a.startswith("-") for a in arguments):  # --multirun, --cfg, --help, ...: Hydra's own application
            import hydra

            overrides = [a for a in arguments if not a.startswith("-")]
            compose(expand_cells([overrides])[0])  # a typo is answered before Hydra starts any job
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_job)()
        else:
            _job(compose(arguments), arguments)
    except AccelError as error:
        _report(error)
    except KeyboardInterrupt:
        print("\ninterrupted: finished shards are kept; run the same command again to resume.", file=sys.stderr)
        _exit_codes.append(130)
    sys.exit(max(_exit_codes))


def _report(error: AccelError) -> None:
    print(f"error: {error}", file=sys.stderr)
    _exit_codes.append(2)


def _job(cfg: Any, overrides: list[str] | None = None) -> None:
    import logging
    import warnings

    # Known noise of the libraries: none of it is about what the user asked for.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*`lr_scheduler.step|.*TypedStorage|.*__array_wrap__")
    try:
        study = build_study(cfg, overrides)
        if cfg.plan:
            study.plan()
            return
        _exit_codes.append(1 if study.run() else 0)
    except AccelError as error:  # in a multirun the other jobs go on
        _report(error)


def build_study(cfg: Any, overrides: list[str] | None = None) -> Any:
    """The study that a composed configuration describes; everything is instantiated, so bad values raise here.

    `overrides` are those of the command line (default: Hydra's own record of them); they hold for every cell too.
    """
    import torch
    from hydra.core.hydra_config import HydraConfig

    from accel.errors import check_int
    from accel.results.records import Results
    from accel.study import Study

    if cfg.threads is not None:
        check_int("threads", cfg.threads, 1)
        torch.set_num_threads(cfg.threads)
    if cfg.wandb not in ("offline", "online", "disabled"):
        raise unknown("wandb mode", str(cfg.wandb), ["offline", "online", "disabled"])
    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    task = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("cells", "baseline")]
    cells = [compose([*task, *cell]) for cell in expand_cells(cfg.cells)] if cfg.cells else [cfg]
    return Study(
        name=cfg.study,
        title=cfg.title,
        suite=instantiate(cfg.suite),
        evaluation=instantiate(cfg.evaluation),
        results=Results(cfg.results),
        baseline=recipe_of(compose(list(cfg.baseline))),
        cells=[recipe_of(cell) for cell in cells],
        merge=not cfg.cells,
        wandb=cfg.wandb,
    )


def recipe_of(cfg: Any) -> Any:
    """The Recipe of a composed configuration."""
    from accel.recipe import Recipe

    return Recipe(**{axis: instantiate(cfg[axis]) for axis in AXES})


def instantiate(node: Any) -> Any:
    """hydra.utils.instantiate, with our own errors unwrapped."""
    import hydra.utils
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf

    try:
        return hydra.utils.instantiate(OmegaConf.to_container(node, resolve=True))
    except InstantiationException as error:
        if isinstance(error.__cause__, AccelError):
            raise error.__cause__ from None
        raise ConfigError(f"cannot build {OmegaConf.to_container(node)}: {error.__cause__ or error}") from error


def compose(overrides: list[str]) -> Any:
    """The configuration with `overrides`; a name that does not exist is answered with the near matches."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    check_choices(overrides)
    try:
        if GlobalHydra.instance().is_initialized():
            return hydra_compose("config", overrides)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("config", overrides)
    except HydraException as error:
        raise _explain(error, overrides) from error


def _explain(error: Exception, overrides: list[str]) -> ConfigError:
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Key '(\w+)' is not in struct\s+full_key: ([\w.]+)", text):
        parent = match[2].rpartition(".")[0]
        keys = compose([o for o in overrides if not o.lstrip("+~").startswith(match[2])])
        for part in parent.split(".") if parent else []:
            keys = keys[part]
        return unknown(f"setting {parent + '.' if parent else ''}", match[1], [str(k) for k in keys])
    return ConfigError(" ".join(str(error).split()))


def expand_cells(cells: Any) -> list[list[str]]:
    """The override lists of a study's cells; commas in an override are alternatives, as on Hydra's command line."""
    from itertools import product

    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, expanded = OverridesParser.create(), []
    for cell in cells:
        overrides = cell.split() if isinstance(cell, str) else list(cell)
        choices: list[list[str]] = []
        for override in parser.parse_overrides(overrides):
            sweep = override.is_sweep_override()
            key = override.get_key_element()
            choices.append([f"{key}={v}" for v in override.sweep_string_iterator()] if sweep else [override.input_line])
        expanded += [list(combination) for combination in product(*choices)]
    return expanded


def groups() -> dict[str, list[str]]:
    """The choices of every config group."""
    return {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in sorted(CONF.iterdir()) if p.is_dir()}


def check_choices(overrides: list[str]) -> None:
    """Raise ConfigError, with the near matches, for a group's choice that does not exist."""
    known = groups()
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~").partition("@")[0].removeprefix("override ").strip("/")
        if key not in known or not value or value.startswith(("[", "$", "glob(")):
            continue
        for choice in value.split(","):
            if choice.strip() not in (*known[key], "null"):
                raise unknown(key, choice.strip(), known[key])


if __name__ == "__main__":
    main()
