"""The reference of FID and its kin for pipelines from the hub: a folder of images, or a file of what is known of one.

A file is `.safetensors` (written by `accel reference`) or `.npz`. It holds `features` (N, D), or the moments `mu`
(D,) and `sigma` (D, D), of which FID is possible but not KID, precision and recall; the number of images `n`, and the
identity of the feature network, which must be that of the network in use.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel.errors import ConfigError, check_int
from accel.files import file_hash, write_atomic
from accel.metrics.fid import Moments
from accel.records import canonical
from accel.suites.base import Reference
from accel.suites.hub import image_folder

LEAST = 60  # images: as few as the samples of a run


@dataclass(frozen=True)
class RealImages:
    """What generated images are compared with: `path`, a folder or a file (None: nothing).

    `n`: only the first images of it, or the number of images behind a file that does not say. `size`: pixels (height
    and width) that a folder's images are brought to (None: those of the generated ones). `unchecked`: accept a file
    that does not name its feature network, such as the statistics of other projects.
    """

    path: str | None = None
    n: int | None = None
    size: int | None = None
    unchecked: bool = False

    def __post_init__(self) -> None:
        if self.n is not None:
            check_int("suite.reference_images.n", self.n, LEAST)
        if self.size is not None:
            check_int("suite.reference_images.size", self.size, 1)

    def load(self, network: Any, height: int, width: int) -> Reference:
        """The reference in the space of `network`. Raises ConfigError for what is missing, unreadable or of another."""
        identity = self.identity(network, height, width)
        return _load(self, network, *self._size(height, width), canonical(identity))

    def identity(self, network: Any, height: int, width: int) -> dict[str, Any]:
        """name, n and sha256 of images (or file), size and network."""
        path, size = self._path(), self._size(height, width)
        if path.is_dir():
            paths = image_folder.files(str(path), self.n, LEAST)
            own: dict[str, Any] = {"files": image_folder.sha256(paths), "size": size, "resize": image_folder.RESIZE}
            n = len(paths)
        else:
            tensors, stated = _file(path)
            own, n = {"file": file_hash(path)}, self._count(path, tensors, stated)
        text = canonical(own | {"n": n, "network": network.identity()})
        name = f"{path.name} ({network.name})"
        return {"name": name, "n": n, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def _path(self) -> Path:
        path = Path(self.path).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix in (".safetensors", ".npz")):
            return path
        found = f"{path} is no .safetensors or .npz file" if path.is_file() else f"there is no {path}"
        raise ConfigError(
            f"suite.reference_images.path: {found}; allowed: a folder of images, a .safetensors file that "
            "`accel reference` made of one, or an .npz file of features or of mu and sigma."
        )

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return (self.size, self.size) if self.size else (height, width)

    def _count(self, path: Path, tensors: dict[str, Any], stated: dict[str, Any]) -> int:
        if "features" in tensors:
            found, needed = len(tensors["features"]), max(LEAST, self.n or 0)
            if found < needed:
                raise ConfigError(f"{path} holds features of {found} images; needed: at least {needed}.")
            return self.n or found
        n = stated.get("n") or self.n
        if not n:
            raise ConfigError(
                f"{path} does not say of how many images its moments are; say it: suite.reference_images.n=<N>."
            )
        return int(n)


@lru_cache(maxsize=2)
def _load(data: RealImages, network: Any, height: int, width: int, identity: str) -> Reference:
    about, path = json.loads(identity), data._path()
    if path.is_dir():
        paths = image_folder.files(str(path), data.n, LEAST)
        features: Any = image_folder.features(paths, network, height, width).double()
    else:
        tensors, stated = _file(path)
        _check_network(path, stated.get("network"), network, data.unchecked)
        features = _features(path, tensors, about["n"])
    found = features.mu.shape[0] if isinstance(features, Moments) else features.shape[1]
    if found != network.num_features:
        raise ConfigError(f"{path} has {found} dimensions, the network {network.name} {network.num_features}.")
    return Reference(about["name"], features, about["sha256"])


def _features(path: Path, tensors: dict[str, torch.Tensor], n: int) -> torch.Tensor | Moments:
    if "features" in tensors:
        return tensors["features"][:n].double()
    if {"mu", "sigma"} <= tensors.keys():
        return Moments(tensors["mu"].double(), tensors["sigma"].double(), n)
    raise ConfigError(f"{path} has {', '.join(sorted(tensors)) or 'nothing'}; needed: features, or mu and sigma.")


def _check_network(path: Path, stated: str | None, network: Any, unchecked: bool) -> None:
    if stated is None and not unchecked:
        raise ConfigError(
            f"{path} does not say which feature network it is of. If you know that it is {network.name} with the very "
            "weights and preprocessing in use, say so: suite.reference_images.unchecked=true. Otherwise make a file "
            "with `accel reference`."
        )
    if stated is not None and stated != (own := canonical(network.identity())):
        raise ConfigError(
            f"{path} is of another feature network than the one in use, and distances between them mean nothing.\n"
            f"  file:   {stated}\n  in use: {own}"
        )


def _file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and what else the file says (n, network); ConfigError if it cannot be read."""
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, size: int, modified: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files}
            stated = {k: arrays.pop(k).item() for k in ("n", "network") if k in arrays}
            return {k: torch.from_numpy(v) for k, v in arrays.items() if v.dtype.kind == "f"}, stated
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # each format has its own errors, and none is of interest but as text
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def save(path: Path, features: torch.Tensor, network: Any, source: str) -> None:
    """Write features (N, D) of `source` as the file of a reference."""
    from safetensors.torch import save as serialise

    about = {"n": str(len(features)), "network": canonical(network.identity()), "source": source}
    write_atomic(path, serialise({"features": features.half().contiguous()}, about))
