"""Methods as plain data, and back: by registered names, with every setting.

The data of a method are `{"method": name, "epoch": n, "settings": {...}}`; an object among settings is `{"type":
class, ...its own}`, as records describe it. Settings that are files of this machine become names of files beside the
recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accel.core.recipe import Recipe
from accel.deploy.registered import HEAD, Axis, axis, check_code, makes, name_of
from accel.errors import AccelError, ConfigError, Refusals, unknown
from accel.files import file_name
from accel.records import canonical, describe, head, own_fields

FILES = (".safetensors", ".json")  # settings that end so are paths
_NOT_FINITE = {"inf", "-inf", "nan"}  # what records keep of such numbers


# writing ---------------------------------------------------------------------------------------------------------


def written(name: str, method: Any, files: dict[str, Path]) -> dict[str, Any]:
    """The data of a method on axis `name`. What its settings name as files goes into `files`, by the names that the
    data have for them. ConfigError for what is not registered, and for a setting that no file can hold."""
    known, settings = axis(name), _settings(method, axis(name), name, files)
    found = {"method": known.choice_of(name_of(type(method)), settings)}
    found |= {"epoch": method.EPOCH} if hasattr(method, "EPOCH") else {}
    return found | {"settings": settings}


def _settings(value: Any, known: Axis, where: str, files: dict[str, Path]) -> dict[str, Any]:
    return {name: _plain(own, known, f"{where}.{name}", files) for name, own in own_fields(value).items()}


def _plain(value: Any, known: Axis, where: str, files: dict[str, Path]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        said = head(value)
        known.object_class(said)
        return said | _settings(value, known, where, files)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, known, f"{where}.{k}", files) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, known, f"{where}[{i}]", files) for i, v in enumerate(value)]
    if isinstance(value, str) and (value.endswith(FILES) or "/" in value):
        return _beside(value, where, files)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{where} is {value!r}, which a recipe file cannot hold; allowed: numbers, text, lists, names.")


def _beside(value: str, where: str, files: dict[str, Path]) -> str:
    path = Path(value)
    if not value.endswith(FILES) or not path.is_file():
        raise ConfigError(
            f"{where} is {value!r}, a place on this machine that a recipe file cannot take along; allowed: a file that "
            f"is there, of kind {' or '.join(FILES)}."
        )
    name = file_name(f"{where}{path.suffix}")
    files[name] = path
    return name


# reading ---------------------------------------------------------------------------------------------------------


def read(name: str, data: Mapping[str, Any], files: Mapping[str, Path] | None) -> Any:
    """The method of axis `name` that `data` describe. `files`: where those beside the recipe are, by name; None: paths
    stay as they are, as in records of one's own. ConfigError for what is not registered or not allowed."""
    known = axis(name)
    target = known.target(data.get("method"))
    settings = data.get("settings") or {}
    made = _made(target, settings, known, name, files, known.nodes[data["method"]])
    if "epoch" in data and data["epoch"] != getattr(made, "EPOCH", None):
        raise EpochError(
            f"{name} {data['method']} was saved with epoch {data['epoch']} of its numbers, and this accel has epoch "
            f"{getattr(made, 'EPOCH', None)}: it makes other images than were measured; measure it again."
        )
    return made


class EpochError(ConfigError):
    """A method that makes other numbers now than when it was saved."""


def _made(
    target: Any,
    settings: Mapping[str, Any],
    known: Axis,
    where: str,
    files: Mapping[str, Path] | None,
    registered: Mapping[str, Any],
) -> Any:
    cls, takes = makes(target), inspect.signature(target).parameters.values()
    check_code(cls, settings, registered, where)
    named = {p.name for p in takes if p.kind is not p.VAR_KEYWORD}
    own = {f.name: f.init for f in fields(cls)} if cls else {}
    if strange := [key for key in settings if key not in named | own.keys()]:
        raise unknown("setting", f"{where}.{strange[0]}", [f"{where}.{key}" for key in named | own.keys()])
    values = {key: _value(value, known, f"{where}.{key}", files) for key, value in settings.items()}
    given = {key: value for key, value in values.items() if key in named or own[key]}
    try:
        made = target(**given)
    except AccelError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} cannot be made of {given}: {type(error).__name__}: {error}") from error
    for key in values.keys() - given.keys():  # what it finds out by itself, such as the hash of a network's file
        if (found := getattr(made, key)) != values[key]:
            raise ConfigError(f"{where}.{key} is {found!r} here, and was {values[key]!r} when the recipe was saved.")
    return made


def _value(value: Any, known: Axis, where: str, files: Mapping[str, Path] | None) -> Any:
    if isinstance(value, Mapping):
        if reserved := [key for key in value if str(key).startswith("_")]:
            raise ConfigError(f"{where} has {reserved[0]}; a recipe file names registered methods, never code.")
        if "type" in value:
            own = {key: inner for key, inner in value.items() if key not in HEAD}
            return _made(known.object_class(value), own, known, where, files, {})
        return {key: _value(inner, known, f"{where}.{key}", files) for key, inner in value.items()}
    if isinstance(value, list):
        return [_value(inner, known, f"{where}[{i}]", files) for i, inner in enumerate(value)]
    if isinstance(value, str) and files is not None and (value.endswith(FILES) or "/" in value):
        if value not in files:
            raise ConfigError(f"{where} is {value!r}; allowed: a file that the recipe lists under `files`.")
        return str(files[value])
    return value


# recipes ---------------------------------------------------------------------------------------------------------


def recipe_of(data: Mapping[str, Any], files: Mapping[str, Path] | None) -> Recipe:
    """The recipe of which `data` are the methods by axis; all that is wrong with them is said at once."""
    with Refusals() as refusals:
        methods = {name: refusals.ask(read, name, own, files) for name, own in data.items()}
    return Recipe(**methods)


def recorded(described: Mapping[str, Any]) -> Recipe:
    """The recipe that a quality record describes. ConfigError if it cannot be made again, or would not be the same."""
    data = {}
    for name, own in described.items():
        if isinstance(own, Mapping):
            settings = {key: _finite(value) for key, value in own.items() if key not in HEAD}
            choice = axis(name).choice_of((own.get("package", "accel"), own["type"]), settings)
            data[name] = {"method": choice, "settings": settings} | ({"epoch": own["epoch"]} if "epoch" in own else {})
    recipe = recipe_of(data, None)
    again = {key: value for key, value in describe(recipe).items() if value is not None}
    if canonical(again) != canonical({key: value for key, value in described.items() if value is not None}):
        raise ConfigError(f"the recorded recipe {recipe.label} cannot be made again as it was; measure it again.")
    return recipe


def _finite(value: Any) -> Any:
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
