"""Weights as rows, one for each scale: by output channel, by tensor or by group of inputs, and for each input slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from accel.errors import ConfigError
from accel.precision.simulated.levels import Levels, Range

Granularity = str | int  # "channel", "tensor", or so many inputs of an output channel


def check_granularity(value: Granularity) -> None:
    """ConfigError unless it is "channel", "tensor" or a positive integer."""
    if value in ("channel", "tensor") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return
    raise ConfigError(f"precision.granularity is {value!r}; allowed: channel, tensor, or a number of inputs (>= 1).")


def to_rows(weight: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """weight (out, in, ...) -> (G, n) of float32 (or float64): the numbers that share a scale."""
    flat = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    if granularity == "tensor":
        return flat.reshape(1, -1)
    flat = flat.reshape(len(weight), -1)
    if granularity == "channel":
        return flat
    size = granularity if flat.shape[1] % granularity == 0 else flat.shape[1]  # what does not divide has one group
    return flat.reshape(-1, size)


def sliced(weight: torch.Tensor, channels: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """The parts of a weight that read the slices of its input channels; no slices: all of it."""
    return weight.split(tuple(channels), 1) if channels else (weight,)


def scales_of(rows: torch.Tensor, bits: int, chosen: Range) -> torch.Tensor:
    """Scale (G, 1) of each row, symmetric levels."""
    levels = Levels(bits, symmetric=True)
    low, high = chosen.limits(rows, levels)
    return levels.parameters(low, high)[0][:, None]


@dataclass(frozen=True)
class Part:
    """What reads one slice of the input channels: `rows` (G, n) of the weight, their `scale` (G, 1), its `shape`."""

    rows: torch.Tensor
    scale: torch.Tensor
    shape: torch.Size


def parts_of(
    weight: torch.Tensor, bits: int, granularity: Granularity, chosen: Range, channels: Sequence[int] = ()
) -> list[Part]:
    """A weight in slices of its input channels, with the scales of symmetric levels."""
    parts = [(to_rows(part, granularity), part.shape) for part in sliced(weight.detach(), channels)]
    return [Part(rows, scales_of(rows, bits, chosen), shape) for rows, shape in parts]


def nearest_weight(
    weight: torch.Tensor, bits: int, granularity: Granularity, chosen: Range, channels: Sequence[int] = ()
) -> torch.Tensor:
    """w^, each weight at the nearest level of its row's scale; like `weight`."""
    made, levels = [], Levels(bits, symmetric=True)
    for part in parts_of(weight, bits, granularity, chosen, channels):
        rows, scale = part.rows, part.scale[:, 0].float()
        zero = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
        found = torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, levels.low, levels.high)
        made.append(found.reshape(part.shape))
    return torch.cat(made, 1).to(weight.dtype)


def scale_count(weight: torch.Tensor, granularity: Granularity, channels: Sequence[int] = ()) -> int:
    """How many scales a weight has."""
    return sum(len(to_rows(part, granularity)) for part in sliced(weight, channels))
