"""Where config files are: accel's folder, those of installed packages, those that a command line names.

The first folder that has a choice wins, so that nobody's file takes the place of one of accel's unnoticed: a second
file of the same name is said once, and ignored. A package that cannot be used is said once, too, and left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from accel.errors import ConfigError, unknown

ENTRY_POINTS = "accel.methods"
ATTRIBUTE = "CONF"  # by which a module names its folder, where that is not `conf` in the package
SEARCH_PATH = "hydra.searchpath"
_ALLOWED = f"{SEARCH_PATH}=[file:///a/folder,pkg://a_package.conf]"

logger = logging.getLogger(__name__)
_said: set[str] = set()
_named: list[Folder] = []


def _own() -> Path:
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"  # of a wheel; a clone has it beside the package
    return inside if inside.is_dir() else package.parent / "conf"


CONF = _own()


@dataclass(frozen=True)
class Folder:
    """A config folder, and in a few words whose it is."""

    path: Path
    source: str


def folders(more: Iterable[Folder] = ()) -> tuple[Folder, ...]:
    """All config folders, those with precedence first: accel's, the command line's, `more`, those of packages."""
    kept: dict[Path, Folder] = {}
    for folder in (Folder(CONF, "accel"), *_named, *more, *_of_packages()):
        kept.setdefault(folder.path, folder)
    return tuple(kept.values())


def groups(more: Iterable[Folder] = ()) -> dict[str, list[str]]:
    """The choices of every config group, in all folders."""
    return {group: sorted(files) for group, files in sorted(_files(folders(more)).items())}


def file_of(group: str, choice: str) -> tuple[Path, Folder]:
    """The YAML file of one choice, and the folder that it is of; ConfigError, with near matches, if there is none."""
    known = _files(folders())
    if group not in known:
        raise unknown("config group", group, known)
    if choice not in known[group]:
        raise unknown(group, choice, known[group])
    return known[group][choice]


def extend(arguments: Sequence[str]) -> list[str]:
    """Take up the config folders that a command line names, in place of those of an earlier one; they hold until the
    process ends, for cells, searches and baselines, too. Returns the arguments without `--config-dir`."""
    _named[:] = named_in(arguments)
    left, values = [], iter(arguments)
    for argument in values:
        if argument.partition("=")[0] not in ("--config-dir", "-cd"):
            left.append(argument)
        elif "=" not in argument:
            next(values, None)
    return left


def named_in(arguments: Sequence[str]) -> list[Folder]:
    """The config folders that arguments name by `--config-dir X` or `hydra.searchpath=[...]`; ConfigError if there is
    no such folder."""
    found, values = [], iter(arguments)
    for argument in values:
        key, equals, value = argument.partition("=")
        if key in ("--config-dir", "-cd"):
            found.append(Folder(_directory(value if equals else next(values, ""), key), key))
        elif key.lstrip("+") == SEARCH_PATH:
            found += [Folder(_located(entry), SEARCH_PATH) for entry in _entries(value)]
    return found


def _entries(value: str) -> list[str]:
    text = value.strip()
    if text in ("null", "[]"):
        return []
    if not (text.startswith("[") and text.endswith("]")):
        raise ConfigError(f"{SEARCH_PATH} is {value!r}; allowed: a list such as {_ALLOWED}.")
    return [entry.strip().strip("'\"") for entry in text[1:-1].split(",")]


def _located(entry: str) -> Path:
    scheme, separator, name = entry.rpartition("://")
    if scheme == "pkg":
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:
            spec = None
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise ConfigError(f"{SEARCH_PATH} names {entry}, but there is no such package; allowed: {_ALLOWED}.")
        return Path(places[0])
    if separator and scheme != "file":
        raise ConfigError(f"{SEARCH_PATH} names {entry!r}; allowed: {_ALLOWED}.")
    return _directory(name, SEARCH_PATH)


def _directory(text: str, source: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not text or not path.is_dir():
        raise ConfigError(f"{source} names {text!r}, which is no folder; give one with a subfolder for each group.")
    return path


def _files(known: Iterable[Folder]) -> dict[str, dict[str, tuple[Path, Folder]]]:
    """By group and choice the file that counts, and whose it is."""
    return _counting(tuple((folder, tuple(_listed(folder.path))) for folder in known))


@lru_cache(maxsize=16)
def _counting(
    listed: tuple[tuple[Folder, tuple[tuple[str, str], ...]], ...],
) -> dict[str, dict[str, tuple[Path, Folder]]]:
    found: dict[str, dict[str, tuple[Path, Folder]]] = {}
    for folder, files in listed:
        for group, file in sorted(files):
            choices, choice = found.setdefault(group, {}), file.removesuffix(".yaml")
            path = folder.path / group / file
            first = choices.setdefault(choice, (path, folder))[1]
            if first != folder:
                _say(
                    f"{folder.source} brings {group}={choice}, which {first.source} has already; that of "
                    f"{first.source} is used. Rename {path}."
                )
    return found


def _listed(folder: Path) -> Iterator[tuple[str, str]]:
    """As `folder.glob("*/*.yaml")`, group and file name: seven times faster, and every command asks for it often."""
    for group in os.listdir(folder) if folder.is_dir() else ():
        with suppress(OSError):  # no folder, or not ours to read
            yield from ((group, file) for file in os.listdir(folder / group) if file.endswith(".yaml"))


# packages --------------------------------------------------------------------------------------------------------


def package_of(module: str) -> str | None:
    """In words, which package brings the top-level module of a dotted name; None if none says that it does."""
    top = module.partition(".")[0]
    return next((_words(point) for point in _points() if point.module.partition(".")[0] == top), None)


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value)))


@cache
def _of_packages() -> tuple[Folder, ...]:
    found = []
    for point in _points():
        try:
            found.append(Folder(_conf_of(point), _words(point)))
        except Exception as error:  # whatever a foreign package raises: the others go on
            reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            _say(f"{_words(point)} is left out: {reason.rstrip('.')}. Mend it, or uninstall it.")
    return tuple(found)


def _conf_of(point: EntryPoint) -> Path:
    # A package with a folder `conf` is not even imported (of a dotted name Python imports the parents).
    spec = importlib.util.find_spec(point.module)
    if spec is None:
        raise ConfigError(f"there is no module {point.module!r}")
    if not point.attr:
        for place in spec.submodule_search_locations or ():
            if (folder := Path(place) / "conf").is_dir():
                return folder
    module = importlib.import_module(point.module)
    named = point.load() if point.attr else getattr(module, ATTRIBUTE, None)
    if named is None:
        raise ConfigError(f"{point.module} has neither a folder `conf` nor an attribute {ATTRIBUTE} that names one")
    folder = Path(module.__file__ or "").parent / named
    if not folder.is_dir():
        raise ConfigError(f"its config folder {folder} does not exist (is it package data?)")
    return folder


def _words(point: EntryPoint) -> str:
    package = f"package {point.dist.name!r}" if point.dist else "a package"
    return f"{package} (entry point {point.name!r} of {ENTRY_POINTS})"


def _say(problem: str) -> None:
    if problem not in _said:
        _said.add(problem)
        logger.warning("warning: %s", problem)
