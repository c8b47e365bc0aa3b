"""What a recipe file may name on an axis: the registered methods, and the classes that their settings are made of.

A file says names, never paths of modules. A method's name is that of a YAML file of its axis (accel.registry), whose
`_target_` is the only thing imported. An object among its settings has a `type`: a class that a YAML file of the axis
names inside another object, or an accel dataclass from the module of one of them (a schedule among schedules).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

from accel import registry
from accel.config import NO_METHOD
from accel.errors import ConfigError, unknown
from accel.records import describe
from accel.registry.build import TARGET

HEAD = ("type", "package", "epoch")  # of what describes an object, before its settings
Name = tuple[str, str]  # package, class


@dataclass(frozen=True)
class Axis:
    """`nodes`: the YAML of each choice; `targets`: what it builds with; `classes`: of objects among settings."""

    name: str
    nodes: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Any]
    classes: Mapping[Name, type]

    def target(self, choice: Any) -> Any:
        """What builds the method `choice`; ConfigError, with the near matches, if there is none of this name."""
        if not isinstance(choice, str) or choice not in self.targets:
            raise unknown(f"method of axis {self.name}", str(choice), self.targets)
        return self.targets[choice]

    def object_class(self, head: Mapping[str, Any]) -> type:
        """The class of an object among settings, by its `type` and `package`."""
        name = head.get("package", "accel"), head.get("type")
        if name not in self.classes:
            known = [kind if package == "accel" else f"{kind} (package {package})" for package, kind in self.classes]
            raise unknown(f"type of an object of axis {self.name}", str(name[1]), known)
        return self.classes[name]

    def choice_of(self, kind: Name, settings: Mapping[str, Any]) -> str:
        """The registered method of class `kind` that differs in the fewest settings, in those that name
        code before all others; ConfigError if none is of it."""
        fit = [choice for choice in self.targets if self._kind(choice) == kind]
        if not fit:
            raise ConfigError(
                f"{self.name} {kind[1]} (package {kind[0]}) is no registered method, and a recipe file names no other; "
                "give it a YAML file in a package with an entry point accel.methods (docs/extending.md)."
            )

        def unlike(choice: str) -> tuple[bool, bool, int, str]:
            own, wanted = _leaves(self._described(choice)), _leaves(describe(settings))
            differing = {key for key in own.keys() | wanted.keys() if own.get(key, ...) != wanted.get(key, ...)}
            made = makes(self.targets[choice])
            code = {(field.name,) for field in fields(made) if field.metadata.get("code")} if made else set()
            return choice != settings.get("name"), bool(differing & code), len(differing), choice

        return min(fit, key=unlike)

    def _described(self, choice: str) -> Mapping[str, Any]:
        with suppress(ConfigError):  # some need more than their file says
            return {
                key: value for key, value in describe(registry.build(self.nodes[choice])).items() if key not in HEAD
            }
        return {}

    def _kind(self, choice: str) -> Name | None:
        made = makes(self.targets[choice])
        return made and name_of(made)


def makes(target: Any) -> type | None:
    """The dataclass that calling `target` makes: itself, or what a function says it returns."""
    if not isinstance(target, type):
        told = inspect.signature(target).return_annotation
        target = vars(sys.modules[target.__module__]).get(told) if isinstance(told, str) else told
    return target if isinstance(target, type) and is_dataclass(target) else None


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """The settings within settings, each by its way there."""
    if not isinstance(value, Mapping):
        return {at: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _leaves(inner, (*at, name)).items()}


def name_of(cls: type) -> Name:
    """How a class is called in records and recipe files."""
    return cls.__module__.partition(".")[0], cls.__name__


def axis(name: str) -> Axis:
    """What is registered on an axis now."""
    return _axis(registry.folders(), name)


@lru_cache(maxsize=32)
def _axis(folders: tuple[registry.Folder, ...], name: str) -> Axis:
    nodes, targets, named = {}, {}, []
    for choice in registry.groups().get(name, ()):
        with suppress(ConfigError):  # a package that cannot be imported here: its methods are unknown
            node = registry.load(name, choice)
            if node.get(TARGET, NO_METHOD) != NO_METHOD:
                targets[choice] = registry.locate(node[TARGET])
                nodes[choice] = node
                named += [registry.locate(path) for path in _nested(node)]
    methods = [cls for cls in map(makes, targets.values()) if cls]
    objects = [cls for cls in named if is_dataclass(cls)]
    objects += [one for cls in (*objects, *methods) for one in _siblings(cls)]
    objects += methods if name == "sampler" else []  # one may prepare the noise of another
    classes = {name_of(cls): cls for cls in objects}
    return Axis(name, nodes, targets, classes)


def _nested(node: Any) -> Iterator[str]:
    """The `_target_` of each object within `node`."""
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        if isinstance(value, Mapping) and TARGET in value:
            yield value[TARGET]
        yield from _nested(value)


def _siblings(cls: type) -> Iterator[type]:
    if not cls.__module__.startswith("accel."):
        return
    for value in vars(sys.modules[cls.__module__]).values():
        own = isinstance(value, type) and value.__module__ == cls.__module__ and not value.__name__.startswith("_")
        if own and is_dataclass(value) and value.__dataclass_params__.frozen:
            yield value


def check_code(cls: type | None, settings: Mapping[str, Any], registered: Mapping[str, Any], where: str) -> None:
    """ConfigError for a setting that names code to import, if the method's own YAML file does not say the same."""
    for field in fields(cls) if cls else ():
        value = settings.get(field.name)
        if field.metadata.get("code") and "." in str(value) and value != registered.get(field.name):
            raise ConfigError(
                f"{where}.{field.name} is {value!r}, a path of code to import; allowed in a recipe file: a name of "
                "accel or diffusers, or what a registered method's own YAML file says (docs/extending.md)."
            )
