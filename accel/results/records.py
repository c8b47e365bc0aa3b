"""Records: one JSON file a run, hashed, written to a temporary file and renamed.

Layout below a results folder:
    records/<kind>/<id>.json      what one run measured (kind: quality, timing)
    records/quality/<id>.png      its first samples side by side
    studies/<study>.json          which records belong to a study, in which order, as what
    shards/ artefacts/            what can be computed again (not tracked)
    tables/ figures/              rebuilt from records, never edited by hand
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accel.errors import IntegrityError
from accel.files import write_atomic

SCHEMA = 1


def describe(value: Any) -> Any:
    """A plain JSON value that identifies a config object: class name (with its package, if that is not accel), EPOCH
    and fields, recursively.

    A field that a method got later says so in its metadata (accel.denoiser.LATER), and counts only where it is not at
    its default: what was recorded before stays valid.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in fields(value) if not f.metadata.get("later") or getattr(value, f.name) != f.default]
        own = {f.name: describe(getattr(value, f.name)) for f in kept}
        head, package = {"type": type(value).__name__}, type(value).__module__.partition(".")[0]
        if package != "accel":  # somebody's DeepCache must not answer for accel's
            head["package"] = package
        return head | ({"epoch": value.EPOCH} if hasattr(value, "EPOCH") else {}) | own
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


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
    except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = f"it is truncated or not JSON ({error})"
    raise IntegrityError(f"{path} is damaged: {reason}. Delete it and run the same command again to compute it anew.")


def check_writable(folder: Path) -> None:
    """Fail before any work when results could not be saved."""
    probe = folder / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


class Results:
    """A results folder: find, load and store records and study manifests."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, kind: str, key: str) -> Path:
        return self.root / "records" / kind / f"{key}.json"

    def save(self, record: dict[str, Any]) -> Path:
        path = self.path(record["kind"], record["id"])
        write_json(path, {"schema": SCHEMA} | record)
        return path

    def load(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record, or None if there is none; IntegrityError if it is damaged."""
        path = self.path(kind, key)
        return read_json(path) if path.exists() else None

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [read_json(p) for p in sorted((self.root / "records" / kind).glob("*.json"))]

    def save_study(self, study: dict[str, Any]) -> None:
        write_json(self.root / "studies" / f"{study['name']}.json", {"schema": SCHEMA} | study)

    def load_study(self, name: str) -> dict[str, Any] | None:
        path = self.root / "studies" / f"{name}.json"
        return read_json(path) if path.exists() else None

    def studies(self) -> list[str]:
        return sorted(p.stem for p in (self.root / "studies").glob("*.json"))
