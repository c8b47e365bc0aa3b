"""Files that are whole or absent: any bytes, and tensors with a sha256 of what they hold."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from accel.errors import ConfigError

if TYPE_CHECKING:  # tables are written without torch
    import torch

Tensors = dict[str, "torch.Tensor"]


def file_name(text: str) -> str:
    """`text` as part of a file's name: whatever a name may not hold (accel.errors.check_name) becomes _."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:80]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, whatever kills the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. Choose a writable folder with results=<folder>."
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
