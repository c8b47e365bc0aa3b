"""What caches keep of the rows of a batch, and how those of another call are found among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from accel.core.denoiser import Inputs
from accel.core.devices import send


class Kept(NamedTuple):
    """Tensors of one part of a batch, all with the rows of `members` (None: all of the part)."""

    tensors: tuple[torch.Tensor, ...]
    members: tuple[int, ...] | None


def rows_of(kept: Sequence[Kept], inputs: Inputs) -> list[torch.Tensor] | None:
    """The kept tensors of all rows of `inputs`, whose parts `kept` follows; None where some rows are not there."""
    found = [[_selected(t, one.members, inputs.members) for t in one.tensors] for one in kept]
    whole = [torch.cat(same) if len(same) > 1 else same[0] for same in zip(*found, strict=True)]
    return whole if all(len(tensor) == inputs.rows for tensor in whole) else None


def _selected(tensor: torch.Tensor, held: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> torch.Tensor:
    if wanted in (held, None):
        return tensor
    places = {member: place for place, member in enumerate(range(len(tensor)) if held is None else held)}
    return tensor[send([places[m] for m in wanted if m in places], tensor.device)]
