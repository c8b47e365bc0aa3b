"""Records: one JSON file a run, hashed, written to a temporary file and renamed.

Layout below a results folder:
    records/<kind>/<id>.json      what one run measured (kind: quality, timing)
    records/quality/<id>.png      its first samples side by side
    studies/<study>.json          which records belong to a study, in which order, as what
    shards/ artefacts/            what can be computed again (not tracked)
    tables/ figures/              rebuilt from records, never edited by hand

Studies and records give their files' names, and names come from command lines and from files. So each is checked where
it becomes a path, and a file that says another name of itself than its own counts as damaged: nothing is read or
written outside of the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, IntegrityError, check_name, unknown
from accel.files import write_atomic
from accel.locks import locked
from accel.locks.kinds import AUTO, SECONDS, Kind, agree, check

SCHEMA = 1
AGAIN = "Delete it and run the same command again to compute it anew."
# What every file of a kind has, and of which type; whoever reads one need not look again.
Shape = Mapping[str, tuple[type, ...]]
TEXT, MAYBE_TEXT = (str,), (str, type(None))
SHAPES: dict[str, Shape] = {
    "quality": {"label": TEXT, "suite": TEXT, "n": (int,), "seed": (int,), "values": (dict,)},
    "timing": {"label": TEXT, "quality": TEXT, "ms_per_image": (dict,), "speedup": (dict,), "threads": (int,)},
    "study": {"name": TEXT, "suite": TEXT, "rows": (list,)},
}
ROW: dict[str, tuple[type, ...]] = {"label": TEXT, "role": TEXT, "quality": (object,)}
ROW_MAYBE = {"of": MAYBE_TEXT, "refused": MAYBE_TEXT, "timings": (list,)}  # timings: at further batches


def describe(value: Any) -> Any:
    """A plain JSON value that identifies a config object: class name (with its package, if that is not accel), EPOCH
    and fields, recursively.

    A field that a method got later says so in its metadata (accel.core.method.LATER), and counts only where it is
    not at its default: what was recorded before stays valid.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return head(value) | {name: describe(own) for name, own in own_fields(value).items()}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def head(value: Any) -> dict[str, Any]:
    """What `describe` says of a config object before its fields: class, package, EPOCH."""
    said, package = {"type": type(value).__name__}, type(value).__module__.partition(".")[0]
    if package != "accel":  # somebody's DeepCache must not answer for accel's
        said["package"] = package
    return said | ({"epoch": value.EPOCH} if hasattr(value, "EPOCH") else {})


def own_fields(value: Any) -> dict[str, Any]:
    """The fields of a config object that count, as they are."""
    kept = [f for f in fields(value) if not f.metadata.get("later") or getattr(value, f.name) != f.default]
    return {f.name: getattr(value, f.name) for f in kept}


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """First `length` hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with its own sha256 inside."""
    body = {k: v for k, v in content.items() if k != "sha256"}
    body["sha256"] = hashlib.sha256(canonical(body).encode()).hexdigest()
    write_atomic(path, (json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote; IntegrityError if it is damaged."""
    try:
        content = json.loads(path.read_text())
        body = {k: v for k, v in content.items() if k != "sha256"}
        if content["sha256"] == hashlib.sha256(canonical(body).encode()).hexdigest():
            return content
        reason = "its hash does not match its content"
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it is truncated or not JSON ({error})"
    raise IntegrityError(f"{path} is damaged: {reason}. {AGAIN}")


def check_writable(folder: Path) -> None:
    """Fail before any work when results could not be saved."""
    probe = folder / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


class Results:
    """A results folder: find, load and store records and study manifests. ConfigError for a root that is no path.

    `locks`, `lease`: how processes that share the folder are to keep out of each other's way (accel.locks.kinds).
    """

    def __init__(self, root: Path | str, locks: str = AUTO, lease: float = SECONDS) -> None:
        if not isinstance(root, (str, Path)) or not str(root) or re.search(r"[\x00-\x1f\x7f]", str(root)):
            raise ConfigError(f"results is {root!r}; allowed: the path of a folder, such as results=outputs.")
        check(locks, lease)
        self.root, self._locks = Path(root), (locks, lease)

    def ready(self) -> Kind:
        """Fail before any work when results could not be saved; how the folder is locked, from now on."""
        check_writable(self.root)
        return agree(self.root, *self._locks)

    def path(self, kind: str, key: str) -> Path:
        """Where the record `key` is. ConfigError for a key that is no name of a file in there."""
        folder = self.root / "records" / check_name("the kind of a record", kind)
        return folder / f"{check_name(f'the id of a {kind} record', key)}.json"

    def save(self, record: dict[str, Any]) -> Path:
        path = self.path(record["kind"], record["id"])
        write_json(path, {"schema": SCHEMA} | record)
        return path

    def load(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record, or None if there is none; IntegrityError if it is damaged."""
        path = self.path(kind, key)
        return _read_named(path, "id", kind) if path.exists() else None

    def all(self, kind: str) -> list[dict[str, Any]]:
        folder = self.root / "records" / check_name("the kind of a record", kind)
        return [_read_named(p, "id", kind) for p in sorted(folder.glob("*.json"))]

    def intact(self, kind: str) -> Iterator[dict[str, Any]]:
        """All records of a kind but damaged ones."""
        folder = self.root / "records" / check_name("the kind of a record", kind)
        for path in sorted(folder.glob("*.json")):
            with suppress(IntegrityError):
                yield _read_named(path, "id", kind)

    def save_study(self, study: dict[str, Any]) -> None:
        write_json(self._study(study["name"]), {"schema": SCHEMA} | study)

    def load_study(self, name: str) -> dict[str, Any] | None:
        """The manifest, or None if there is none; IntegrityError if it is damaged, or names what is no record."""
        path = self._study(name)
        if not path.exists():
            return None
        manifest = _read_named(path, "name", "study")
        for i, row in enumerate(manifest["rows"]):
            own = row if isinstance(row, dict) else {}
            _check_shape(path, own, ROW | {k: v for k, v in ROW_MAYBE.items() if k in own}, f"row {i}: ")
            named = [(kind, own[kind]) for kind in ("quality", "timing") if own.get(kind) is not None]
            for kind, key in [*named, *(("timing", key) for key in own.get("timings", ()))]:
                try:
                    self.path(kind, key)
                except ConfigError as error:
                    raise IntegrityError(f"{path} is damaged: {error} {AGAIN}") from error
        return manifest

    def _study(self, name: str) -> Path:
        return self.root / "studies" / f"{check_name('study', name)}.json"

    def alone(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lock of a study: whoever changes its manifest, or makes tables of it, does so alone."""
        return locked(self.root / "shards" / f".study-{check_name('study', name)}.lock")

    def studies(self) -> list[str]:
        return sorted(p.stem for p in (self.root / "studies").glob("*.json"))

    def unknown_study(self, name: str) -> ConfigError:
        """The error for a study that is not here."""
        if known := self.studies():
            return unknown("study", name, known)
        return ConfigError(
            f"unknown study {name!r}: {self.root} holds none; run one, or say where its results are "
            "(--results <folder>)."
        )


def _check_shape(path: Path, content: Mapping[str, Any], shape: Shape, where: str = "") -> None:
    for name, types in shape.items():
        if not isinstance(content.get(name, ...), types):
            found = repr(content[name])[:60] if name in content else "not there"
            raise IntegrityError(f"{path} is damaged: {where}its {name} is {found}. {AGAIN}")


def _read_named(path: Path, field: str, kind: str) -> dict[str, Any]:
    """`read_json` of a file of a kind that says its own name in `field`; IntegrityError if that is another, or if the
    file lacks what its kind has."""
    content = read_json(path)
    if content.get(field) != path.stem:
        raise IntegrityError(f"{path} is damaged: its {field} is {content.get(field)!r}, not {path.stem!r}. {AGAIN}")
    _check_shape(path, content, SHAPES.get(kind, {}))
    for name, value in content["values"].items() if kind == "quality" else ():
        if not isinstance(value, dict):
            raise IntegrityError(f"{path} is damaged: its value {name} is {value!r}. {AGAIN}")
    return content
