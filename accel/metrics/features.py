"""Feature sets: the checks, and the blocks and distances, that every metric of them shares."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.evaluation.statistics import groups

BLOCK_ELEMENTS = 2**22  # of one block of a distance or kernel matrix: 32 MiB in float64

Known = TypeVar("Known")


class Reference:
    """Features (M, D) of the real images, with what each metric needs of them alone computed once.

    Pass one to `quality` in place of the features to share that work between cells. Raises ConfigError as `quality`.
    """

    def __init__(self, features: Tensor | np.ndarray):
        self.features = checked("the reference", features, 2)
        self._known: dict[Hashable, Any] = {}

    def of(self, what: Callable[..., Known], *settings: Hashable) -> Known:
        """`what(features, *settings)`, computed once."""
        key = (what, *settings)
        if key not in self._known:
            self._known[key] = what(self.features, *settings)
        return self._known[key]


def as_reference(reference: Tensor | np.ndarray | Reference) -> Reference:
    return reference if isinstance(reference, Reference) else Reference(reference)


def checked(name: str, features: Tensor | np.ndarray, needed: int, dimension: int | None = None) -> Tensor:
    """Features as a float64 CPU tensor (N, D); float16 storage is welcome. Raises ConfigError for what is unusable."""
    x = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ConfigError(f"{name}: found shape {tuple(x.shape)}; needed: (samples, dimensions).")
    if dimension is not None and x.shape[1] != dimension:
        raise ConfigError(
            f"{name}: found {x.shape[1]} dimensions, the reference has {dimension}; "
            "both must come from the same feature network."
        )
    check_count(name, len(x), needed)
    bad = (~x.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise ConfigError(
            f"{name}: {len(bad)} of {len(x)} samples have non-finite values, the first is sample {int(bad[0])}; "
            "needed: finite features. Sampling diverged there, or their storage type overflowed."
        )
    return x


def check_count(name: str, found: int, needed: int) -> None:
    if found < needed:
        raise ConfigError(f"{name}: found {found} samples; needed: at least {needed}.")


def group_sizes(n: int, count: int, needed: int) -> list[int]:
    """Sizes of the contiguous groups of `groups`; raises unless `needed` samples remain without any one group."""
    sizes = np.bincount(groups(n, count)).tolist()
    check_count("the features without one jackknife group", n - max(sizes), needed)
    return sizes


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a (rows, columns) matrix, of at most BLOCK_ELEMENTS elements each."""
    step = max(1, BLOCK_ELEMENTS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 of x (N, D) and y (M, D): a new tensor (N, M)."""
    products = torch.addmm(x.square().sum(1, keepdim=True) + y.square().sum(1), x, y.T, alpha=-2)
    return products.clamp_(min=0)
