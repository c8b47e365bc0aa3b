"""Files that are whole or absent: any bytes, and tensors with a sha256 of what they hold.

A write that fails (the disk is full, the folder became read-only) leaves nothing behind and raises StorageError.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from accel.errors import IntegrityError, unwritable

if TYPE_CHECKING:  # tables are written without torch
    import torch

Tensors = dict[str, "torch.Tensor"]
T = TypeVar("T")


def file_name(text: str) -> str:
    """`text` as part of a file's name: whatever a name may not hold (accel.errors.check_name) becomes _."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:80]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, whatever kills the process."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextmanager
def whole(path: Path) -> Iterator[str]:
    """Gives a temporary file to be written, which becomes `path` if that goes well, and else goes."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))  # known before it is there
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            yield temporary
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # where the folder became read-only, it stays
                os.unlink(temporary)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error while `path` is written into ours, which says what mends it."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error
    except SafetensorError as error:  # the system's error, of which it keeps the number in its text alone
        number = re.search(r"os error (\d+)", str(error))
        raise unwritable(path, OSError(int(number[1]) if number else 0, str(error))) from error


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors, wherever they are, with their sha256, whole or not at all."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomic(path, save(tensors, {"sha256": _digest(tensors)}))


def load_tensors(path: Path) -> Tensors | None:
    """What `save_tensors` wrote, or None if the file is damaged or not there."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
            intact = file.metadata().get("sha256") == _digest(tensors)
    except (SafetensorError, OSError, AttributeError):
        return None
    return tensors if intact else None


def _digest(tensors: Tensors) -> str:
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        total.update(f"{name}:{t.dtype}:{tuple(t.shape)};".encode())
        total.update(t.view(torch.uint8).numpy().tobytes() if t.dim() else t.numpy().tobytes())
    return total.hexdigest()


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, modified: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:  # weights may be larger than memory
        while block := file.read(2**22):
            total.update(block)
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, remembered while its size and time stay the same."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


def save_fields(path: Path, own: Any) -> None:
    """Write the fields of a dataclass as JSON."""
    path.write_text(json.dumps(asdict(own), indent=1, sort_keys=True) + "\n")


def load_fields(cls: type[T], path: Path, wrong: str) -> T:
    """The dataclass of what `save_fields` wrote; IntegrityError, that it is `wrong`, if it is not there or damaged."""
    try:
        content = json.loads(path.read_text())
        return cls(**{f.name: content[f.name] for f in fields(cls)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is {wrong}: {error!r}. Restore the file.") from error
