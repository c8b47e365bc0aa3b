"""Errors that a user can act on: what was found, what is allowed, what mends it."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, TracebackType
from typing import Any, TypeVar

T, Value = TypeVar("T"), TypeVar("Value")

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")  # no name of a folder above, nor a path


class AccelError(Exception):
    """A problem in what the user asked for; its text is the whole message, no traceback needed."""

    reasons: tuple[AccelError, ...] = ()  # of several problems: each by itself


class ConfigError(AccelError, ValueError):
    """A value that is out of range, unknown or contradictory."""


class DivergedError(ConfigError):
    """A recipe whose images are not finite."""


class IncompatibleError(AccelError):
    """Two methods (or a method and a pipeline) that cannot work together; carries the reason."""


class IntegrityError(AccelError):
    """A file whose content does not match its hash, or that is missing or damaged."""


class StorageError(ConfigError):
    """A file that cannot be written: it is the disk that is to be mended, not this cell, so nothing goes on."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)


def unwritable(path: object, error: OSError) -> StorageError:
    """What is told of a file that the system does not let us write."""
    remedy = "Choose a writable folder with results=<folder> (--results, --to or --output of subcommands)."
    if error.errno in FULL:
        remedy = "Free some space and run the same command again: what is finished is kept."
    return StorageError(f"cannot write {path}: {error.strerror or error}. {remedy}")


def told(error: BaseException) -> str:
    """What a user is told of any error: of ours its text, of the disk's the remedy, of any other what it is."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        error = unwritable(error.filename or "a file", error)
    if isinstance(error, AccelError):
        return str(error)
    text = " ".join(str(error).split())
    text = text if len(text) <= 400 else f"{text[:397]}..."
    return f"unexpected {type(error).__name__}{text and f': {text}'}. ACCEL_TRACEBACK=1 in the environment shows where."


def unknown(kind: str, found: str, allowed: Iterable[str]) -> ConfigError:
    """Error for an unknown name: the near matches first, then all that is allowed."""
    allowed = sorted(allowed)
    near = get_close_matches(found, allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"unknown {kind} {found!r}.{hint} Allowed: {', '.join(allowed)}.")


def needs(package: str, extra: str, purpose: str, otherwise: str = "") -> ModuleType:
    """The module `package`, imported, which pip installs with our `extra`.

    Raises ConfigError where that fails: `purpose` is what cannot be done without it, `otherwise` what can.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise _missing(purpose, package, error, extra, otherwise) from error
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{purpose} needs {package}, which is there but cannot be imported ({error}). What was built for another "
            f"torch, often torchvision, does that: install the release that fits torch, or remove it."
        ) from error


def check_installed(packages: Iterable[str], extra: str, purpose: str) -> None:
    """Raise ConfigError unless all `packages` are there; imports none of them, which would take seconds."""
    if absent := [package for package in packages if not _there(package)]:
        raise _missing(purpose, ", ".join(absent), "not installed", extra)


def _there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


def _missing(purpose: str, packages: str, reason: object, extra: str, otherwise: str = "") -> ConfigError:
    remedy = f"pip install 'accel-diffusion[{extra}]'"
    return ConfigError(f"{purpose} needs {packages} ({reason}); install it: {remedy}{otherwise}.")


def check_int(name: str, value: object, low: int, high: int | None = None, why: str = "") -> None:
    """Raise unless `value` is an integer in [low, high]; `why` says what the bound is for."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}{why and f' ({why})'}.")


def check_bool(name: str, value: object) -> None:
    """Raise unless `value` is true or false; anything else would count as one of them without a word."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; allowed: true or false.")


def check_float(name: str, value: object, low: float, high: float | None = None) -> None:
    """Raise unless `value` is a finite number in [low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not number or value < low or (high is not None and value > high):
        allowed = f"a number >= {low}" if high is None else f"a number in [{low}, {high}]"
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")


def check_name(name: str, value: object) -> str:
    """`value`, which names a file, as text. ConfigError for one that could lead out of the folder."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not NAME.fullmatch(text):
        allowed = "1 to 100 of the letters A-Z and a-z, digits, _ . and -, the first of them no dot"
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")
    return text


class Refusals:
    """Errors gathered, so that whoever asked hears of all of them at once. As a context it raises them at its end:

        with Refusals() as refusals:
            refusals.ask(check_int, "threads", threads, 1)
            suite = refusals.ask(make_suite)  # None if that was refused

    One error is raised as it is; several become one, a numbered list (IncompatibleError if all of them are).
    """

    def __init__(self) -> None:
        self.reasons: list[AccelError] = []

    def ask(self, check: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """What `check` returns; None, and the error is kept, if it raises an AccelError."""
        try:
            return check(*args, **kwargs)
        except AccelError as error:
            self.add(error)
            return None

    def add(self, error: AccelError) -> None:
        """Keep an error, or each of those that it holds; what was said already is not said again."""
        said = {str(reason) for reason in self.reasons}
        self.reasons += [reason for reason in error.reasons or (error,) if str(reason) not in said]

    def throw(self) -> None:
        """Raise what was gathered, if anything was."""
        if len(self.reasons) == 1:
            raise self.reasons[0]
        if self.reasons:
            kind = IncompatibleError if all(isinstance(r, IncompatibleError) for r in self.reasons) else ConfigError
            lines = "".join(f"\n  {i}. {reason}" for i, reason in enumerate(self.reasons, 1))
            error = kind(f"{len(self.reasons)} things to mend before anything runs:{lines}")
            error.reasons = tuple(self.reasons)
            raise error

    def __enter__(self) -> Refusals:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, AccelError):
            self.add(error)
        if error is None or isinstance(error, AccelError):
            self.throw()


def joined(what: str, *parts: Mapping[str, Value]) -> dict[str, Value]:
    """The parts as one mapping. ConfigError for a name that two of them have: one would overwrite the other."""
    whole: dict[str, Value] = {}
    for part in parts:
        if twice := sorted(whole.keys() & part.keys()):
            raise ConfigError(
                f"{what}: two values are called {' and two '.join(map(repr, twice))}; allowed: a name for each. Rename "
                "the score that a suite or metric gives this name."
            )
        whole |= part
    return whole
