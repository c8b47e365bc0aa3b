"""What model_index.json says of a pipeline, checked before anything of the checkpoint is imported or loaded.

Each entry `name: [library, class]` is an order to import. diffusers imports `<name>/<library>.py` of the checkpoint
where there is such a file (0.35 without asking), and a part that is a pipeline brings an index of its own. So every
entry is checked, also those of parts that are never loaded, and each part that is loaded must be what its name says: a
class of diffusers or transformers that is made of weights and a config, and nothing else.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from accel.suites.hub import kinds as hub_kinds
from accel.suites.hub.kinds import UNUSED, Kind

FILE = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
NEVER = "Code of a checkpoint is never run."
# Part, without its number: the library and the bases of its classes. All others are networks of diffusers.
_TEXT = ("transformers", ("PreTrainedTokenizerBase", "ProcessorMixin"))
BASES = {
    "scheduler": ("diffusers", ("SchedulerMixin",)),
    "tokenizer": _TEXT,
    "processor": _TEXT,
    "text_encoder": ("transformers", ("PreTrainedModel",)),
}
NETWORK = ("diffusers", ("ModelMixin",))
VIDEOS = re.compile(r"Qwen\w*VLProcessor")  # which reads videos, too: transformers makes none without torchvision


def read(folder: Path) -> dict[str, Any]:
    """The file's content; ConfigError if it is not there or no JSON object."""
    return read_object(folder / FILE, f"{folder} is not a diffusers pipeline folder (it has no {FILE}).")


def read_object(path: Path, absent: str) -> dict[str, Any]:
    """The JSON object in a file; ConfigError, with the text `absent` if there is no file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(absent) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {short(content)}; needed: a JSON object.")
    return content


def kind_of(folder: Path) -> Kind:
    """The kind of the pipeline in `folder`; ConfigError for a class that suite hub cannot run."""
    name = read(folder).get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(f"{folder} names the pipeline class {short(name)}, code of its own, which is never run.")
    try:
        return kind_named(name)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def components(folder: Path) -> dict[str, tuple[str, str]]:
    """{name: (library, class)} of what is loaded, after checking every entry. ConfigError for whatever is no class of
    diffusers or transformers, for code that lies beside one, and for a part that is missing."""
    kind, index = kind_of(folder), read(folder)
    parts, optional, settings = _parts(kind.name)
    found = {}
    for name, value in index.items():
        if name.startswith("_") or name in settings or (name not in parts and not isinstance(value, list)):
            continue
        library, cls = _pair(folder, name, value)
        if library is not None and name in parts and name not in UNUSED:
            _check_class(folder, name, library, cls)
            found[name] = (library, cls)
    needed = [name for name in parts if name not in (*UNUSED, *optional)]
    if kind.condition == "prompt":  # a text encoder may be left out, all of them may not
        encoders = [name for name in found if name.startswith("text_encoder")] or ["text_encoder"]
        both = [e for own in encoders for e in (own, own.replace("text_encoder", "tokenizer"))]
        needed += [name for name in both if name in parts]
    if missing := sorted(set(needed) - set(found)):
        raise ConfigError(f"{folder / FILE} lacks {', '.join(missing)}, without which there is no {kind.name}.")
    return found


def _pair(folder: Path, name: str, value: Any) -> tuple[str | None, str | None]:
    """Library and class of one entry, or (None, None) for a part that is not there."""
    if value == [None, None]:
        return None, None
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) and v for v in value)):
        raise ConfigError(
            f"{folder / FILE}: component {name} is {short(value)}; needed: [library, class], such as "
            '["diffusers", "AutoencoderKL"], or [null, null] for one that is not there.'
        )
    library, cls = value
    # The safety checker's library is a module of diffusers' pipelines.
    own = name in UNUSED and library.isidentifier() and find_spec(f"diffusers.pipelines.{library}") is not None
    if not cls.isidentifier() or not (library in LIBRARIES or own):
        raise ConfigError(
            f"{folder}: component {short(name)} is {short(f'{library}.{cls}')}; allowed: classes of diffusers and "
            f"transformers. {NEVER}"
        )
    return library, cls


def _check_class(folder: Path, name: str, library: str, cls: str) -> None:
    needed, bases = BASES.get(re.sub(r"_\d+$", "", name), NETWORK)
    found = getattr(import_module(library), cls, None) if library == needed else None
    packages = getattr(found, "_backends", None)  # what stands in for a class whose packages are missing has them
    if VIDEOS.fullmatch(cls) and find_spec("torchvision") is None:
        packages = ["torchvision"]
    if packages:
        raise ConfigError(f"{folder}: component {name} is a {cls}, which needs {' and '.join(packages)}; install it.")
    allowed = tuple(getattr(import_module(needed), base) for base in bases)
    if not (isinstance(found, type) and issubclass(found, allowed)):
        raise ConfigError(
            f"{folder}: component {name} is {library}.{short(cls)}; allowed: a class of the installed {needed} that "
            f"is a {' or a '.join(bases)}. {NEVER}"
        )
    if (beside := folder / name / f"{library}.py").exists():
        raise ConfigError(f"{beside} would be run in the place of {library}. {NEVER} Remove the file.")


@lru_cache(maxsize=64)
def kind_named(name: str) -> Kind:
    """`kinds.kind_of`, once for each class."""
    return hub_kinds.kind_of(name)


@lru_cache(maxsize=64)
def _parts(kind: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The components that a pipeline class is made of, which of them it does without, and its settings."""
    cls = kind_named(kind).cls()
    optional = tuple(cls._optional_components)
    arguments = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
    parts = tuple(p.name for p in arguments if p.default is p.empty or p.name in optional)
    return parts, optional, tuple(p.name for p in arguments if p.name not in parts)


def short(value: Any) -> str:
    """A value of a file in at most 80 characters."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
