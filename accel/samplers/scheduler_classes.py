"""Scheduler classes by name: accel's own, diffusers' and anybody's.

accel's and diffusers' go by the bare class name, which is what records keep of them. A class of anybody else goes by
its dotted path, `mypkg.samplers.MyScheduler`. accel's own are those that the modules of this package define, so that a
new one is a new file and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import diffusers
from diffusers import ConfigMixin, SchedulerMixin

from accel.errors import ConfigError, IncompatibleError
from accel.samplers.scheduler import BaseScheduler

KIND = "a class that subclasses diffusers' SchedulerMixin and ConfigMixin"


@lru_cache(maxsize=1)
def own_schedulers() -> dict[str, type]:
    """accel's scheduler classes by name: what the modules of this package define, helpers (`_Name`) left out."""
    package = sys.modules[__package__]
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = (cls for module in modules for cls in vars(module).values() if _defines(module.__name__, cls))
    return {cls.__name__: cls for cls in found}


def scheduler_names() -> list[str]:
    """Every name that needs no path: accel's schedulers and diffusers'."""
    theirs = (n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax"))
    return sorted({*own_schedulers(), *theirs})


def scheduler_class(scheduler: str | type) -> type:
    """The class of a bare name or of a dotted path, or the class itself; ConfigError says what would do."""
    if isinstance(scheduler, type):
        if not _is_scheduler(scheduler):
            raise ConfigError(f"scheduler is the class {_path(scheduler)}; allowed: {KIND}.")
        return scheduler
    if not isinstance(scheduler, str):
        raise ConfigError(f"scheduler is {scheduler!r}; allowed: a name, a dotted path, or {KIND}.")
    if "." in scheduler:
        return _imported(scheduler)
    cls = own_schedulers().get(scheduler) or getattr(diffusers, scheduler, None)
    if missing := getattr(cls, "_backends", None):  # what diffusers has in the place of a class that needs more
        raise IncompatibleError(f"scheduler {scheduler} needs {', '.join(missing)}, which is not installed.")
    if not _is_scheduler(cls):
        raise _unknown(scheduler)
    return cls


def scheduler_name(cls: type, given: str | type) -> str:
    """What `scheduler_class` turns into `cls` again: the bare name of accel's and diffusers' classes, else the path.

    given: what `cls` was found by; its own path is the one of its definition. ConfigError if no path leads to it.
    """
    name = cls.__name__
    if own_schedulers().get(name, getattr(diffusers, name, None)) is cls:
        return name
    if _leads_to(cls, path := _path(cls)):
        return path
    if isinstance(given, str):
        return given
    raise ConfigError(
        f"the scheduler class {path} cannot be found again by this path, which is how records and other processes "
        "name it; define it at the top level of a module that can be imported."
    )


def evaluations_a_step(cls: type, options: Mapping[str, Any]) -> int:
    """Model evaluations of one step: `cls.stages(options)` where they depend on the options, else `cls.order`, or 1."""
    found = cls.stages(options) if hasattr(cls, "stages") else getattr(cls, "order", 1)
    if not isinstance(found, int):
        raise ConfigError(
            f"{_path(cls)} does not say how many evaluations a step has: its `order` is {found!r}; allowed: an integer "
            "as class attribute, or a static method `stages(options)`."
        )
    return found


def _defines(module: str, value: object) -> bool:
    # Whether a value of this package's module is a scheduler to offer.
    return _is_scheduler(value) and value.__module__ == module and not value.__name__.startswith("_")


def _is_scheduler(value: object) -> bool:
    if not isinstance(value, type) or value is BaseScheduler:
        return False
    return issubclass(value, SchedulerMixin) and issubclass(value, ConfigMixin)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _leads_to(cls: type, path: str) -> bool:
    try:
        return _imported(path) is cls
    except ConfigError:
        return False


def _imported(path: str) -> type:
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"scheduler {path!r} is no dotted path; allowed: one such as mypkg.samplers.MyScheduler.")
    module, names = _module(path, parts)
    value, at = module, module.__name__
    for name in names:
        try:
            value, at = getattr(value, name), f"{at}.{name}"
        except AttributeError as error:
            near = get_close_matches(name, dir(value), n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"scheduler {path!r} cannot be imported: {at} has no {name}.{hint}") from error
        except (Exception, SystemExit) as error:  # of a module that imports its parts when they are asked for
            raise _broken(path, f"{name} from {at}", error) from error
    if not _is_scheduler(value):
        raise ConfigError(f"scheduler {path!r} is {value!r}; allowed: the path of {KIND}.")
    return value


def _module(path: str, parts: list[str]):
    # The longest beginning of the path that is a module, and the names that are left to look up in it.
    for module, names in _cuts(parts):
        try:
            return importlib.import_module(module), names
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise _broken(path, module, error) from error  # it is there, and what it imports is not
        except (Exception, SystemExit) as error:
            raise _broken(path, module, error) from error
    raise ConfigError(
        f"scheduler {path!r} cannot be imported: there is no module {parts[0]!r}. Install its package into this "
        "Python, or add the folder that holds it to PYTHONPATH."
    )


def _cuts(parts: list[str]) -> Iterator[tuple[str, list[str]]]:
    for count in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:count]), parts[count:]


def _broken(path: str, module: str, error: BaseException) -> ConfigError:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ConfigError(f"scheduler {path!r} cannot be imported: importing {module} raised {said}")


def _unknown(name: str) -> ConfigError:
    # Short: the names are many, and most of them have nothing to do with what was meant.
    names = scheduler_names()
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in get_close_matches(name.lower(), lower, n=4, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(
        f"unknown scheduler {name!r}.{hint} Allowed: one of {len(names)} names of accel and diffusers (`accel list "
        "sampler` shows the samplers made of them), or the dotted path of your own class, such as "
        "mypkg.samplers.MyScheduler."
    )
