"""What caches keep of the rows of a batch, and how those of another call are found among them.

Inside, a network may have several rows for each sample, one after the other: the frames of a video UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from accel.core.denoiser import Block, Inputs
from accel.core.devices import send
from accel.errors import IncompatibleError


class Kept(NamedTuple):
    """Tensors of one part of a batch, all with the rows of `members` (None: all of the part).

    rows: samples of the part; tensors may have several rows for each (None: one for each).
    """

    tensors: tuple[torch.Tensor, ...]
    members: tuple[int, ...] | None
    rows: int | None = None

    @property
    def samples(self) -> int:
        return len(self.tensors[0]) if self.rows is None else self.rows

    @property
    def held(self) -> Sequence[int]:
        """The sample of the part that each is."""
        return range(self.samples) if self.members is None else self.members


def parted(tensors: Sequence[torch.Tensor], inputs: Inputs, what: str) -> list[Kept]:
    """`tensors` that a network made of `inputs`, by part; IncompatibleError if their rows are not those of samples.

    what: made them, for the message.
    """
    for tensor in tensors:
        if tensor.dim() == 0 or len(tensor) % inputs.rows:
            raise IncompatibleError(
                f"{what} gives a tensor of shape {tuple(tensor.shape)} for a batch of {inputs.rows} rows, so that no "
                "cache can tell whose rows are whose; leave it out (cache.match), or use cache=none."
            )
    found = []
    for block in inputs.blocks:
        own = tuple(_within(tensor, block, inputs) for tensor in tensors)
        found.append(Kept(own, block.members, len(block.samples)))
    return found


def rows_of(kept: Sequence[Kept], inputs: Inputs) -> list[torch.Tensor] | None:
    """The kept tensors of all rows of `inputs`, whose parts `kept` follows; None where some rows are not there."""
    pairs = zip(kept, inputs.blocks, strict=True)
    found = [selected(one, block.members, len(block.samples)) for one, block in pairs]
    if None in found:
        return None
    tensors = zip(*(one.tensors for one in found), strict=True)
    return [torch.cat(same) if len(same) > 1 else same[0] for same in tensors]


def selected(kept: Kept, members: tuple[int, ...] | None, samples: int) -> Kept | None:
    """Of what is kept of a part the rows of its `members` (None: of all of it), which are so many `samples`; None where
    some are not there."""
    if members in (kept.members, None):
        return kept if kept.samples == samples else None
    places = {member: place for place, member in enumerate(kept.held)}
    if not places.keys() >= set(members):
        return None
    rows = [_rows_at(tensor, [places[m] for m in members], kept.samples) for tensor in kept.tensors]
    return Kept(tuple(rows), members, samples)


def _within(tensor: torch.Tensor, block: Block, inputs: Inputs) -> torch.Tensor:
    # The rows of a block, in a tensor with as many as `inputs` has, or several for each.
    each = len(tensor) // inputs.rows
    return tensor[block.start * each : block.stop * each]


def _rows_at(tensor: torch.Tensor, places: Sequence[int], samples: int) -> torch.Tensor:
    each = len(tensor) // samples
    return tensor[send([place * each + i for place in places for i in range(each)], tensor.device)]
