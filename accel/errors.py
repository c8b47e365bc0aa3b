"""Errors that a user can act on: what was found, what is allowed, what mends it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


class AccelError(Exception):
    """A problem in what the user asked for; its text is the whole message, no traceback needed."""


class ConfigError(AccelError, ValueError):
    """A value that is out of range, unknown or contradictory."""


class DivergedError(ConfigError):
    """A recipe whose images are not finite."""


class IncompatibleError(AccelError):
    """Two methods (or a method and a pipeline) that cannot work together; carries the reason."""


class IntegrityError(AccelError):
    """A file whose content does not match its hash, or that is missing or damaged."""


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
    if absent := [package for package in packages if find_spec(package) is None]:
        raise _missing(purpose, ", ".join(absent), "not installed", extra)


def _missing(purpose: str, packages: str, reason: object, extra: str, otherwise: str = "") -> ConfigError:
    remedy = f"pip install 'accel-diffusion[{extra}]'"
    return ConfigError(f"{purpose} needs {packages} ({reason}); install it: {remedy}{otherwise}.")


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")


def check_float(name: str, value: object, low: float, high: float | None = None) -> None:
    """Raise unless `value` is a finite number in [low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not number or value < low or (high is not None and value > high):
        allowed = f"a number >= {low}" if high is None else f"a number in [{low}, {high}]"
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")
