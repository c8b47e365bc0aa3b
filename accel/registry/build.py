"""Objects from config files: a choice's YAML with the files that it builds on, and its `_target_` called with it.

The part of Hydra that methods use: `defaults` with `_self_`, names of the same group and `/group@key: choice`;
`${group.setting}` of the own group; nested `_target_`. tests/test_registry.py holds it against Hydra for every choice.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from accel.errors import AccelError, ConfigError, unknown
from accel.registry.config_folders import file_of, package_of

TARGET = "_target_"
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_HYDRA = "; Hydra resolves it: accel.config.choice_of does the same with the extra `bench`."


class _Loader(yaml.SafeLoader):
    """YAML as OmegaConf reads it: 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]\d+)?|\.(inf|Inf|INF))$"
        r"|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def method(axis: str, choice: str, /, **settings: Any) -> Any:
    """The method of one config file, such as `method("sampler", "dpmpp_2m", steps=8)`.

    `settings` take the place of the file's. A mapping changes only the settings that it names, in a nested object too:
    `method("cache", "fora", schedule={"interval": 2})`; any other value, an object too, is taken as it is. ConfigError,
    with near matches, for an unknown axis, choice or setting, and whatever the method itself refuses.
    """
    node = load(axis, choice, settings)
    if settings:
        own = unresolved(axis, choice)
        accepted = inspect.signature(locate(own[TARGET])).parameters
        if strange := [name for name in settings if name not in own and name not in accepted]:
            known = [f"{axis}.{name}" for name in {*own, *accepted} - {TARGET}]
            raise unknown("setting", f"{axis}.{strange[0]}", known)
    return build(node)


def load(group: str, choice: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of one choice, with those of the files that it builds on, as plain dicts and lists. `settings` take
    their place, also where the file refers to them."""
    return _resolved(_merged(unresolved(group, choice), settings or {}), group, choice)


def build(node: Any) -> Any:
    """`node` with each dict that has a `_target_` replaced by the object that it describes.

    ConfigError if an object cannot be made; what accel's methods refuse passes through.
    """
    if isinstance(node, list):
        return [build(value) for value in node]
    if not isinstance(node, dict):
        return node
    values = {key: build(value) for key, value in node.items() if key != TARGET}
    if TARGET not in node:
        return values
    if reserved := [key for key in values if re.fullmatch(r"_\w+_", str(key))]:
        raise ConfigError(f"cannot build {node[TARGET]}: it has {reserved[0]}; allowed: {TARGET} and settings.")
    target = locate(node[TARGET])
    try:
        return target(**values)
    except AccelError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot build {node}: {type(error).__name__}: {error}") from error


def locate(path: str) -> Any:
    """What a dotted path names, importing the modules on the way; ConfigError names the package that is at fault."""
    brought = package_of(path)
    blame = f", which {brought} brings" if brought else ""
    parts = path.split(".")
    try:
        found = importlib.import_module(parts[0])
        for i, part in enumerate(parts[1:], 2):
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(parts[:i]))
    except Exception as error:  # a foreign module may raise anything
        raise ConfigError(f"cannot import {path!r}{blame}: {type(error).__name__}: {error}") from error
    return found


def unresolved(group: str, choice: str) -> dict[str, Any]:
    """As `load`, with references (`${...}`) as they stand: what they name may change before it is read."""
    path, _ = file_of(group, choice)
    own = _read(path)
    defaults, composed = own.pop("defaults", []), {}
    if "_self_" not in defaults:
        defaults = [*defaults, "_self_"]
    for entry in defaults:
        if entry == "_self_":
            part = own
        elif isinstance(entry, str):
            part = unresolved(group, entry)
        elif isinstance(entry, dict) and (found := re.fullmatch(r"/(\w+)@(\w+)", next(iter(entry)))):
            part = {found[2]: unresolved(found[1], next(iter(entry.values())))}
        else:
            raise ConfigError(f"{path} builds on {entry!r}; allowed here: _self_, a name, /group@key: choice{_HYDRA}")
        composed = _merged(composed, part)
    return composed


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; allowed: `name: value` lines with a {TARGET}.")
    return content


def _merged(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = deepcopy(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _resolved(node: dict[str, Any], group: str, choice: str) -> dict[str, Any]:
    def value_at(path: str) -> Any:
        head, *keys = path.split(".")
        found: Any = node if head == group else None
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None or isinstance(found, dict):
            raise ConfigError(f"{group}={choice} refers to ${{{path}}}, which is no setting of its own{_HYDRA}")
        return found

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(own) for key, own in value.items()}
        if isinstance(value, list):
            return [walk(own) for own in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return value_at(whole[1])
        filled = _REFERENCE.sub(lambda found: str(value_at(found[1])), value)
        if "${" in filled:
            raise ConfigError(f"{group}={choice} has {value!r}{_HYDRA}")
        return filled

    return walk(node)
