"""Hydra configuration: composing it, building objects from it, and answering typos with the near matches."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel import registry
from accel.errors import ConfigError, Refusals, check_installed, unknown
from accel.files import file_name
from accel.grammar import PLAIN, check_cells, check_override, pooled, several
from accel.records import Results
from accel.registry import CONF

SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)  # <setting>=: not added, removed or put elsewhere
NO_METHOD = "accel.core.recipe.nothing"  # target of every none.yaml
AXES = ("sampler", "grid", "guidance", "cache", "stitch", "precision", "skip", "student", "decoder")
PLACED = (*AXES, "optimiser")  # what cells choose, by files that stand for themselves
OTHERS = {"sampler": ("ddim", "ode"), "optimiser": ("coordinate", "gits")}  # no sampler is `none`, and no optimiser


def recipe_of(cfg: Any) -> Any:
    """The Recipe of a composed configuration."""
    from accel.core.recipe import Recipe

    with Refusals() as refusals:
        methods = {axis: refusals.ask(instantiate, cfg[axis]) for axis in AXES}
    return Recipe(**methods)


def recipe_from(overrides: tuple[str, ...]) -> Any:
    """The recipe of overrides of the axes, such as `sampler=deis_tab sampler.steps=5 grid=karras`; an axis that none of
    them chooses is left out."""
    return _recipe_from(registry.folders(), overrides)


@lru_cache(maxsize=4096)
def _recipe_from(folders: tuple[registry.Folder, ...], overrides: tuple[str, ...]) -> Any:
    from accel.core.recipe import Recipe

    made = {}
    for axis in AXES:
        own = [o for o in overrides if _key(o).split(".")[0] == axis]
        choice = next((o.partition("=")[2] for o in own if _key(o) == axis), "none")
        if choice != "none":
            made[axis] = choice_of(axis, choice, *(o for o in own if _key(o) != axis))
    return Recipe(**made)


def recipe_by(overrides: list[str]) -> Any:
    """The Recipe of overrides of axes, as `recipe_of(compose(overrides))`, without composing the rest."""
    keys = [o.partition("=")[0] for o in overrides]
    chosen = [key for key in keys if key in AXES]
    own = [key for key in keys if key not in AXES and key.partition(".")[0] in chosen]
    # One method on each axis, a sampler among them, and settings of these alone: nothing of the defaults takes part.
    if "sampler" in chosen and len(set(chosen)) == len(chosen) and len(chosen) + len(own) == len(keys):
        try:
            return recipe_from(tuple(overrides))
        except ConfigError:
            pass  # composing finds all that is wrong
    return recipe_of(compose(overrides))


def choice_of(axis: str, choice: str, *overrides: str) -> Any:
    """The method of one config file, with `overrides`; remembered, for a method is an immutable configuration."""
    return _choice_of(registry.folders(), axis, choice, *overrides)


@lru_cache(maxsize=512)
def _choice_of(folders: tuple[registry.Folder, ...], axis: str, choice: str, *overrides: str) -> Any:
    try:  # as Hydra would make it, a fifth of a second sooner
        return registry.build(registry.load(axis, choice, _settings(axis, choice, overrides)))
    except (ConfigError, _Unlike):
        return instantiate(compose([f"{axis}={choice}", *overrides])[axis])


def _settings(axis: str, choice: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """What overrides say of settings that a choice has, nested; _Unlike for whatever else they may ask."""
    if not all(SETTING.match(override) and "${" not in override for override in overrides):
        raise _Unlike
    found: dict[str, Any] = {}
    if not overrides:
        return found
    loaded = registry.load(axis, choice)
    for override in _parsed(list(overrides)):
        (group, *path, last), value = override.key_or_group.split("."), override.value()
        known, place = loaded, found
        for key in path:
            known = known.get(key) if isinstance(known, dict) else None
            place = place.setdefault(key, {})
        if group != axis or not isinstance(known, dict) or last not in known or isinstance(value, dict):
            raise _Unlike
        place[last] = value
    return found


def _parsed(overrides: list[str]) -> list[Any]:
    check_installed(("hydra",), "bench", "a setting of a method in conf/")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise _Unlike from error
    if any(override.is_sweep_override() for override in found):
        raise _Unlike
    return found


def instantiate(node: Any) -> Any:
    """What a composed node describes; ConfigError if it cannot be built."""
    return registry.build(resolved(node))


def resolved(node: Any) -> Any:
    """Plain values of a node; ConfigError for a reference (`${...}`) to something that is not there."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).partition("\n")[0])
        raise ConfigError(f"{where}{reason}; give the value itself, or a ${{...}} that refers to one.") from error


def compose(overrides: list[str]) -> Any:
    """The configuration with `overrides`. What cannot be read, and names that do not exist, are answered all at once,
    with what to type and the near matches."""
    check_installed(("hydra",), "bench", "a method by its name in conf/")
    with Refusals() as refusals:
        left = _readable([pooled(word) for word in overrides], refusals)
        while not refusals.reasons or not _only_choices(left):  # else nothing is left to be asked about
            try:
                return _shared(left)
            except ConfigError as error:
                left = _without(left, error, refusals)


def _readable(overrides: list[str], refusals: Refusals) -> list[str]:
    """The overrides that can be read, without the settings of choices that do not exist."""
    known = groups()
    context = [o for o in overrides if isinstance(o, str) and o.startswith("hydra.")]
    refused: set[str] = set()
    good = []
    for override in overrides:
        try:
            check_override(override, known)
            check_choices([*context, override])
            good.append(override)
        except ConfigError as error:
            refusals.add(error)
            refused.add(_key(str(override)))
    return [o for o in good if _key(o).partition(".")[0] not in refused & set(known)]


def _only_choices(overrides: list[str]) -> bool:
    return all(PLAIN.fullmatch(o) and _key(o) in groups() for o in overrides)


def _without(overrides: list[str], error: ConfigError, refusals: Refusals) -> list[str]:
    """What is left to be asked about, once a setting that does not exist is refused; nothing, for any other error."""
    refusals.add(error)
    name = _missing(error.__cause__)
    left = [o for o in overrides if name and not (_key(o) == name or _key(o).startswith((f"{name}.", f"{name}[")))]
    return left if len(left) < len(overrides) else []


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _shared(overrides: list[str]) -> Any:
    """`_composed(overrides)`, faster: Hydra composes a set of choices once (a fifth of a second), and settings are put
    into a copy of it, as Hydra puts them there after all choices. Copies are made from bytes, in a fifth of the time
    that `deepcopy` takes."""
    known = groups()
    settings = [o for o in overrides if SETTING.match(o) and _key(o) not in known and not o.startswith("hydra.")]
    choices = tuple(o for o in overrides if o not in settings)
    if all(PLAIN.fullmatch(o) and not o.startswith("hydra.") for o in choices):
        try:
            return _with(_choices(choices, tuple(map(_state, registry.folders(_of_job())))), settings)
        except (ConfigError, _Unlike):
            pass  # then Hydra says what is wrong, of all overrides
    return _composed(overrides)


class _Unlike(Exception):
    """A setting that must be left to Hydra."""


@lru_cache(maxsize=64)
def _choices(choices: tuple[str, ...], folders: tuple[tuple[str, int, int], ...]) -> bytes:
    """`_composed(choices)`, pickled. The cells of an experiment are many that differ in methods alone: Hydra composes
    the rest once, and the methods' own files are put in their places."""
    words = [o.partition("=") for o in choices]
    own = {axis: choice for axis, _, choice in words if axis in PLACED}
    rest = tuple("".join(word) for word in words if word[0] not in own)
    cell = own and len(own) + len(rest) == len(choices) and any(key == "experiment" for key, *_ in words)
    if not cell or not own.keys() <= _lone(rest, folders):
        return pickle.dumps(_composed(list(choices)))
    cfg = pickle.loads(_choices(rest, folders))
    for axis, choice in own.items():
        cfg[axis] = registry.unresolved(axis, choice)
    return pickle.dumps(cfg)


@lru_cache(maxsize=16)
def _lone(rest: tuple[str, ...], folders: tuple[tuple[str, int, int], ...]) -> set[str]:
    """Axes of which only the chosen method's own file says anything: not those that an experiment has settings for.
    They show when two methods are composed that have no setting in common, or none."""
    found = set(PLACED)
    for place in (0, 1):
        others = {axis: OTHERS.get(axis, ("none", "none"))[place] for axis in PLACED}
        cfg = _composed([*rest, *map("=".join, others.items())])
        found &= {axis for axis, other in others.items() if cfg[axis] == registry.load(axis, other)}
    return found


def _state(folder: registry.Folder) -> tuple[str, int, int]:
    """What changes when a file of a config folder does: its name, how many files it has, and the newest one's time."""
    places = ((place, name) for place, _, names in os.walk(folder.path) for name in names if name.endswith(".yaml"))
    written = [os.stat(os.path.join(*path)).st_mtime_ns for path in places]
    return str(folder), len(written), max(written, default=0)


def _with(shared: bytes, settings: list[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cfg = pickle.loads(shared)
    try:
        for override in _parsed(settings):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise _Unlike from error
    return cfg


def _composed(overrides: list[str], **options: Any) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from accel.registry.search_path import register

    register()
    OmegaConf.register_new_resolver("basename", lambda path: Path(path).name, replace=True)
    OmegaConf.register_new_resolver("file_name", lambda text: file_name(str(text)), replace=True)
    initialised = GlobalHydra.instance().is_initialized()
    with nullcontext() if initialised else initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("config", overrides, **options)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise _explain(error) from error


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


def _missing(error: Exception | None) -> str | None:
    """Name of the setting that an error of Hydra says does not exist."""
    match = re.search(r"Key '[^']*' is not in struct\s+full_key: ([\w.\[\]]+)", _text(error))
    return match and match[1]


def _unknown_setting(name: str, beside: Any) -> ConfigError:
    """Error for a setting that does not exist, with those `beside` it."""
    parent = name.rpartition(".")[0]
    allowed = [f"{parent}.{k}" if parent else k for k in map(str, beside or ()) if k not in ("_target_", "hydra")]
    if not allowed:
        return ConfigError(f"unknown setting {name!r}: as it is chosen here, {parent} has no settings of its own.")
    return unknown("setting", name, allowed)


def _explain(error: Exception) -> ConfigError:
    text = _text(error)
    if name := _missing(error):
        return _unknown_setting(name, getattr(error.__cause__ or error, "parent_node", None))
    if match := re.search(r"Ambiguous value for argument '(.*?)'\n", text, re.DOTALL):
        return several(match[1], groups())
    if match := re.search(r"Could not append to config\. An item is already at '(.*?)'", text):
        return ConfigError(f"{match[1]} is there already; leave out the + before it.")
    if match := re.search(r"Could not delete from config\. '?(.*?)'? does not exist", text):
        return ConfigError(f"~{match[1]}: there is no {match[1]} to delete; leave it out.")
    return ConfigError(_one_line(str(error)))


def _text(error: Exception | None) -> str:
    return f"{error}\n{getattr(error, '__cause__', None) or ''}"


def _one_line(error: Any) -> str:
    """The text of an error without line breaks and without a library's links."""
    return " ".join(re.sub(r"(See|Visit)?\s*https?://\S+( for \w+ \w+\.?)?", "", str(error)).split())


def expand_cells(cells: Any, name: str = "cells") -> list[list[str]]:
    """The override lists of a study's cells; commas in an override are alternatives, as on Hydra's command line.

    ConfigError, which calls them `name`, for any other shape and for overrides that cannot be read.
    """
    from itertools import product

    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, expanded, known = OverridesParser.create(), [], groups()
    for overrides in check_cells(name, cells):
        with Refusals() as refusals:
            for word in overrides:
                refusals.ask(check_override, word, known, inside=True)
        choices: list[list[str]] = []
        for override in parser.parse_overrides(overrides):
            sweep = override.is_sweep_override()
            key = override.get_key_element()
            choices.append([f"{key}={v}" for v in override.sweep_string_iterator()] if sweep else [override.input_line])
        expanded += [list(combination) for combination in product(*choices)]
    return expanded


def check_sweep(overrides: list[str]) -> None:
    """Raise ConfigError, with what mends it, if a multirun of `overrides` cannot be read or its first job composed."""
    with Refusals() as refusals:
        left = _readable(overrides, refusals)
        first = expand_cells([left])[0] if left else []
        cfg = refusals.ask(compose, first)
        if cfg is not None:
            refusals.ask(Results, cfg.results)  # before Hydra makes that folder
            refusals.ask(lambda: cfg.cells and expand_cells(cfg.cells))


def groups() -> dict[str, list[str]]:
    """The choices of every config group."""
    return registry.groups(_of_job())


def _of_job() -> list[registry.Folder]:
    """Config folders of the Hydra application that this is a job of: a launcher's process saw no command line."""
    if "hydra" not in sys.modules:
        return []
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [registry.Folder(Path(s.path), s.provider) for s in sources if s.schema == "file" and s.provider != "main"]


def check_choices(overrides: list[str]) -> None:
    """Raise ConfigError, with the near matches, for a group's choice that does not exist."""
    known = registry.groups([*_of_job(), *registry.named_in(overrides)])
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~").partition("@")[0].removeprefix("override ").strip("/")
        if key not in known or not value or value.startswith(("$", "glob(")):
            continue
        if value.startswith("[") and key != "experiment":
            raise ConfigError(f"{override} names a list; choose one: {', '.join(known[key])}.")
        if value.startswith("["):
            continue
        for choice in value.split(","):
            if choice.strip() not in (*known[key], "null"):
                raise unknown(key, choice.strip(), known[key])
