"""Hydra configuration: composing it, building objects from it, and answering typos with the near matches."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.errors import AccelError, ConfigError, needs, unknown

HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in an installed package; in a clone
NO_METHOD = "accel.recipe.nothing"  # target of every none.yaml
AXES = ("sampler", "grid", "guidance", "cache", "stitch", "precision", "skip")


def recipe_of(cfg: Any) -> Any:
    """The Recipe of a composed configuration."""
    from accel.recipe import Recipe

    return Recipe(**{axis: instantiate(cfg[axis]) for axis in AXES})


@lru_cache(maxsize=512)
def choice_of(axis: str, choice: str, *overrides: str) -> Any:
    """The method of one config file, with `overrides`; remembered, for a method is an immutable configuration."""
    return instantiate(compose([f"{axis}={choice}", *overrides])[axis])


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
    needs("hydra", "bench", "a method by its name in conf/")
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("basename", lambda path: Path(path).name, replace=True)
    check_choices(overrides)
    try:
        return _composed(overrides)
    except HydraException as error:
        raise _explain(error, overrides) from error


def _composed(overrides: list[str], **options: Any) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    initialised = GlobalHydra.instance().is_initialized()
    with nullcontext() if initialised else initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides, **options)


def spelled_out(overrides: list[str]) -> list[str]:
    """Overrides of suite and axes that make the same recipe without any experiment file: each group's choice, and its
    settings that are not those of the choice's own file."""
    from omegaconf import OmegaConf

    cfg = _composed(overrides, return_hydra_config=True)
    chosen, said = cfg.hydra.runtime.choices, []
    for group in ("suite", *AXES):
        if chosen[group] == "none":
            continue
        own = compose([f"{group}={chosen[group]}"])[group]
        pairs = (OmegaConf.to_container(node, resolve=True) for node in (cfg[group], own))
        said += [f"{group}={chosen[group]}", *_differences(group, *pairs)]
    return said


def _differences(path: str, wanted: Any, own: Any) -> list[str]:
    if not isinstance(wanted, dict) or not isinstance(own, dict):
        return [] if wanted == own else [f"{path}={wanted if isinstance(wanted, str) else json.dumps(wanted)}"]
    found = []
    for key, value in wanted.items():
        if key in own:
            found += _differences(f"{path}.{key}", value, own[key])
        else:
            found.append(f"+{path}.{key}={value if isinstance(value, str) else json.dumps(value)}")
    return found


def _explain(error: Exception, overrides: list[str]) -> ConfigError:
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Key '(\w+)' is not in struct\s+full_key: ([\w.]+)", text):
        parent = match[2].rpartition(".")[0]
        keys = compose([o for o in overrides if not o.lstrip("+~").startswith(match[2])])
        for part in parent.split(".") if parent else []:
            keys = keys[part]
        allowed = [f"{parent}.{k}" if parent else k for k in map(str, keys) if k != "_target_"]
        return unknown("setting", match[2], allowed)
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
