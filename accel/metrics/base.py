"""What a feature network is: images in, one feature vector each out, in exact arithmetic whatever is set outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, check_int
from accel.metrics.statistics import Estimate

BATCH = 32  # images or captions in one forward pass; changes no value beyond rounding


class FeatureNetwork(ABC):
    """Images uint8 (B, 3, H, W), 0..255, to features (B, D), float32 on the CPU.

    Weights are found and loaded at first need, in float32 on `device` (None: the GPU if there is one). Whatever needs
    them raises ConfigError where they cannot be had, with the text that `unavailable` gives beforehand.
    """

    name: ClassVar[str]  # suffix of fid_* and kid_*
    DEFAULT: ClassVar[str | None] = None  # what is loaded without a path

    def __init__(self, path: str | Path | None = None, device: str | None = None, batch: int = BATCH) -> None:
        check_int("batch", batch, 1)
        self.path = self.DEFAULT if path is None else str(path)
        self.device = resolve_device(device)
        self.batch = batch

    @abstractmethod
    def _load(self) -> Any:
        """What computes the features; ConfigError if it cannot be loaded."""

    @abstractmethod
    def _forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of at most `batch` images."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the features: architecture, sha256 of the weights, preprocessing. No paths."""

    @cached_property
    def network(self) -> Any:
        """The loaded network, kept."""
        return self._load()

    def scores(self, features: Tensor, period: int = 1) -> dict[str, Estimate]:
        """Metrics of features (N, D) that need no reference, such as the Inception Score; none by default. `period`:
        that of `accel.metrics.statistics.groups`."""
        return {}

    def unavailable(self) -> str | None:
        """Why the features cannot be computed here and what mends it; None if they can.

        Ask before long work. It loads the network (and downloads it, if `path` is a hub id that is not in the local
        cache and the hub is reachable), so that None is a promise and a damaged file is found now.
        """
        try:
            _ = self.network
        except ConfigError as error:
            return str(error)
        return None

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D) of images uint8 (B, 3, H, W). Raises ConfigError for other images, or without weights."""
        check_images(images)
        return in_batches(self._forward, images, self.batch)


def resolve_device(device: str | None) -> str:
    """The device asked for; None: the GPU if torch sees one. ConfigError for a GPU that is not there."""
    available = "cuda" if torch.cuda.is_available() else "cpu"
    if device is not None and torch.device(device).type == "cuda" and available == "cpu":
        raise ConfigError(f"device={device} for a feature network, but torch sees no GPU; use cpu.")
    return available if device is None else str(device)


def check_images(images: Tensor) -> None:
    """Raise ConfigError unless images are uint8 (B, 3, H, W) with B >= 1."""
    if not isinstance(images, Tensor):
        raise ConfigError(f"images are {type(images).__name__}; needed: a uint8 tensor (B, 3, H, W).")
    if images.dtype != torch.uint8:
        raise ConfigError(
            f"images are {images.dtype}; needed: uint8, 0..255, rounded (accel.suites.base.to_uint8 does it)."
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ConfigError(f"images have shape {tuple(images.shape)}; needed: (B, 3, H, W), none of them 0.")


@torch.inference_mode()
def in_batches(function: Callable[[Any], Tensor], items: Any, batch: int) -> Tensor:
    """`function` of `items` (a tensor or a list), `batch` at a time, in exact arithmetic; concatenated on the CPU."""
    with exact_arithmetic():
        return torch.cat([function(items[a : a + batch]).cpu() for a in range(0, len(items), batch)])


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """float32 that is float32: without autocast and TF32, which may be on outside (cuDNN's TF32 is by default)."""
    restore = _without_tf32()
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        restore()


def _without_tf32() -> Callable[[], None]:
    """Switch reduced float32 precision off; returns what brings back the settings."""
    backends = torch.backends
    try:
        precision, tf32 = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # set through fp32_precision of torch >= 2.9, which does not mix with the older settings
        modules = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        before = [module.fp32_precision for module in modules]
        _each_precision(modules, ["ieee"] * len(modules))
        return lambda: _each_precision(modules, before)
    _legacy_precision("highest", False)
    return lambda: _legacy_precision(precision, tf32)


def _each_precision(modules: Sequence[Any], values: Sequence[str]) -> None:
    for module, value in zip(modules, values, strict=True):
        module.fp32_precision = value


def _legacy_precision(matmul: str, cudnn_tf32: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn_tf32


def frozen(network: nn.Module, device: str) -> nn.Module:
    """`network` in float32 on `device`, for inference only."""
    return network.float().to(device).eval().requires_grad_(False)
