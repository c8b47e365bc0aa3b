"""Feature sets: the checks, and the blocks and distances, that every metric of them shares."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.metrics.statistics import group_sizes

BLOCK_ELEMENTS = 2**22  # of one block of a distance or kernel matrix: 32 MiB in float64

Known = TypeVar("Known")


class Reference:
    """Features (M, D) of the real images, with what each metric needs of them alone computed once.

    Pass one to `quality` in place of the features to share that work between cells. `strata`: the class of each image,
    0..K-1, shape (M,), where the population is the mixture of K classes of equal weight (see `mmd`); `features` are
    then ordered by class, and `sizes` says how many of each there are. Raises ConfigError as `quality`.
    """

    def __init__(self, features: Tensor | np.ndarray, strata: Tensor | np.ndarray | Sequence[int] | None = None):
        self.features = checked("the reference", features, 2)
        self.sizes: tuple[int, ...] | None = None
        if strata is not None:
            found = checked_strata("the reference", strata, len(self.features))
            self.features, self.sizes = self.features[found.argsort(stable=True)], tuple(found.bincount().tolist())
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


def checked_strata(name: str, strata: Tensor | np.ndarray | Sequence[int], n: int) -> Tensor:
    """Strata of n samples as an int64 tensor (n,). Raises ConfigError unless they are 0..K-1, at least two of each: a
    pair of different samples of one stratum is the least that its own term can be of."""
    found = torch.as_tensor(strata)
    if found.shape != (n,) or found.is_floating_point() or found.is_complex():
        raise ConfigError(f"the strata of {name} are {found.dtype} {tuple(found.shape)}; needed: whole numbers ({n},).")
    found = found.detach().cpu().long()
    if int(found.min()) < 0 or int(torch.bincount(found).min()) < 2:
        raise ConfigError(f"the strata of {name} are {sorted(set(found.tolist()))[:12]}; needed: 0, 1, ... K - 1, at "
                          "least two samples of each.")  # fmt: skip
    return found


def check_count(name: str, found: int, needed: int) -> None:
    if found < needed:
        raise ConfigError(f"{name}: found {found} samples; needed: at least {needed}.")


def sizes_that_leave(needed: int, n: int, count: int, period: int) -> list[int]:
    """`group_sizes(n, count, period)`; raises unless `needed` samples remain without any one group."""
    sizes = group_sizes(n, count, period).tolist()
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
