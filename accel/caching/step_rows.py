"""What a step cache keeps of each row of a batch, by part and member: gathered for a call, parted again after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from accel.core.denoiser import Inputs, mapped
from accel.core.devices import send
from accel.errors import IncompatibleError

Rows = dict[str, torch.Tensor]  # tensors with a row for each of a call's
Key = tuple[int, int, str]  # stage within the step, call within the stage, part of the batch


@dataclass
class Past:
    """What is kept of one part of the batch: rows of `members` (None: of all of it)."""

    members: tuple[int, ...] | None
    rows: Rows

    def held(self) -> dict[int, int]:
        """The place of each member."""
        count = len(next(iter(self.rows.values())))
        return {m: i for i, m in enumerate(range(count) if self.members is None else self.members)}


def gathered(states: dict[Key, Past], keys: Sequence[Key], inputs: Inputs) -> Rows | None:
    """What is kept of the rows of `inputs`, whose parts `keys` follow; nan in those of which nothing is. None where a
    whole part is not there."""
    found = [states.get(key) for key in keys]
    if None in found:
        return None
    parts = []
    for past, block in zip(found, inputs.blocks, strict=True):
        held, wanted = past.held(), block.samples
        if list(held) == list(wanted):
            parts.append(past.rows)
            continue
        absent = [i for i, m in enumerate(wanted) if m not in held]
        places = [held.get(m, 0) for m in wanted]
        parts.append({name: _with_nan(t[send(places, t.device)], absent) for name, t in past.rows.items()})
    names = parts[0]
    return {n: torch.cat([own[n] for own in parts]) if len(parts) > 1 else parts[0][n] for n in names}


def _with_nan(rows: torch.Tensor, absent: list[int]) -> torch.Tensor:
    return rows.index_fill(0, send(absent, rows.device), torch.nan) if absent else rows


def parted(states: dict[Key, Past], keys: Sequence[Key], inputs: Inputs, rows: Rows) -> None:
    """Put `rows` of `inputs` into `states`, each part under its key."""
    for key, block in zip(keys, inputs.blocks, strict=True):
        states[key] = Past(block.members, {name: tensor[block.start : block.stop] for name, tensor in rows.items()})


def picked(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """The call on these rows alone; IncompatibleError if an argument has several rows for each of the batch's, for
    whose they are cannot be told."""
    for name, value in inputs.kwargs.items():
        found: list[torch.Tensor] = []
        mapped(value, lambda tensor, found=found: found.append(tensor) or tensor)
        if several := [tensor for tensor in found if _rows_each(tensor, inputs.rows) > 1]:
            raise IncompatibleError(
                f"cache.decision=per_sample evaluates some rows of a batch alone, and {name} has {len(several[0])} for "
                f"the {inputs.rows} of the batch; use cache.decision=batch."
            )
    return inputs.chosen(rows)


def _rows_each(value: torch.Tensor, rows: int) -> int:
    """How many rows of a tensor belong to each of the batch's; 1 of one that seems to belong to none, as what has no
    tokens or pixels for each row (times, positions of tokens)."""
    return len(value) // rows if value.dim() > 2 and not len(value) % rows else 1


def chosen(rows: Rows, which: Sequence[int]) -> Rows:
    """These rows of all tensors."""
    return {name: tensor[send(list(which), tensor.device)] for name, tensor in rows.items()}


def merged(old: torch.Tensor, new: torch.Tensor, which: Sequence[int]) -> torch.Tensor:
    """`old` with the rows `which` replaced by those of `new`."""
    return old.index_copy(0, send(list(which), old.device), new)
