"""What caches keep of the rows of a batch, and how those of another call are found among them.

Inside, a network may have several rows for each sample, one after the other: the frames of a video UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from accel.core.denoiser import Inputs
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
    count = len(inputs.parts)
    chunks = [tensor.chunk(count) if count > 1 else (tensor,) for tensor in tensors]
    return [Kept(own, inputs.members, inputs.rows // count) for own in zip(*chunks, strict=True)]


def rows_of(kept: Sequence[Kept], inputs: Inputs) -> list[torch.Tensor] | None:
    """The kept tensors of all rows of `inputs`, whose parts `kept` follows; None where some rows are not there."""
    held = sum(len(_places(one, inputs)) for one in kept)
    if held != inputs.rows:
        return None
    found = [[_selected(t, one, inputs) for t in one.tensors] for one in kept]
    return [torch.cat(same) if len(same) > 1 else same[0] for same in zip(*found, strict=True)]


def _places(one: Kept, inputs: Inputs) -> list[int] | range:
    # Which of its samples are wanted.
    if inputs.members in (one.members, None):
        return range(one.samples)
    held = range(one.samples) if one.members is None else one.members
    places = {member: place for place, member in enumerate(held)}
    return [places[m] for m in inputs.members if m in places]


def _selected(tensor: torch.Tensor, one: Kept, inputs: Inputs) -> torch.Tensor:
    places = _places(one, inputs)
    if isinstance(places, range):
        return tensor
    each = len(tensor) // one.samples
    return tensor[send([place * each + i for place in places for i in range(each)], tensor.device)]
