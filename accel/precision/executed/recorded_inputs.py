"""Calibration inputs as an artefact: the arguments of a network's own evaluations, for converters that replay them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Node, first_output, mapped
from accel.core.macs import tensors
from accel.core.precision import Calibrating
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError
from accel.precision.simulated.calibration import record, train_steps
from accel.precision.simulated.calibration_sets import StridedSteps


def record_inputs(calibration: StridedSteps, given: Calibrating) -> dict[str, dict[str, torch.Tensor]]:
    """For each network of the recipe, which runs in plain precision: the tensors among the arguments of each chosen
    evaluation, named `<evaluation>/<place among its tensors>`."""
    pipe, recipe, nets = given.pipe, given.recipe, given.nets()
    made: dict[str, dict[str, torch.Tensor]] = {name: {} for name in nets}
    seen = record(pipe, recipe, lambda: given.sample(recipe, 0, calibration.samples), given.models, given.artefacts)
    for name, batches in seen.items():
        generator = torch.Generator().manual_seed(0)
        calls = [c for batch in batches for c in calibration.chosen(batch, train_steps(pipe), generator)]
        with ExitStack() as undo:
            node = Node(name, nets[name], Trajectory(), undo)
            for i, call in enumerate(calls):
                for j, tensor in enumerate(tensors(ordered(node.arguments(call.inputs)))):
                    made[name][f"{i:05}/{j}"] = tensor.detach().cpu().clone().contiguous()
    return made


def replayed(artefact: Mapping[str, torch.Tensor], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """The recorded evaluations as calls like `kwargs`: the same structure, types and number of rows.

    A recorded batch with more rows becomes several calls, one with fewer is repeated to fill a single one.
    """
    recorded: dict[str, list[torch.Tensor]] = {}
    for name in sorted(artefact, key=lambda name: [int(part) for part in name.split("/")]):
        recorded.setdefault(name.partition("/")[0], []).append(artefact[name])
    wanted = tensors(kwargs)
    calls = [call for own in recorded.values() for call in _like(own, wanted)]
    if not calls:
        shapes = [tuple(t.shape) for t in wanted]
        raise ConfigError(
            f"none of {len(recorded)} recorded evaluations has arguments like those of this call, {shapes}; calibrate "
            "with the recipe and the pipeline arguments that are run."
        )
    return [_filled(kwargs, call) for call in calls]


def _like(recorded: list[torch.Tensor], wanted: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    rows, had = _rows(wanted), _rows(recorded)
    if [_single(t, had) for t in recorded] != [_single(t, rows) for t in wanted]:
        return
    for start in range(0, max(1, had - rows + 1), rows):
        index = torch.arange(start, start + rows) % had
        picked = [t[index] if t.dim() and len(t) == had else t for t in recorded]
        yield [t.to(like) for t, like in zip(picked, wanted, strict=True)]


def _rows(found: list[torch.Tensor]) -> int:
    # The sample is the tensor of most dimensions.
    return len(max(found, key=lambda t: t.dim()))


def _single(tensor: torch.Tensor, rows: int) -> tuple[Any, ...]:
    # The shape, whatever the number of rows is.
    shape = tuple(tensor.shape)
    return ("rows", *shape[1:]) if shape and shape[0] == rows else shape


def ordered(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments in the order of their names, the timestep as a tensor: a number would be compiled into the network."""
    time = kwargs["timestep"]
    if not isinstance(time, torch.Tensor):
        device = next(t.device for t in tensors(kwargs))
        kwargs = kwargs | {"timestep": torch.as_tensor(time, device=device)}
    return dict(sorted(kwargs.items()))


def _filled(kwargs: dict[str, Any], values: Sequence[torch.Tensor]) -> dict[str, Any]:
    rest = iter(values)
    return mapped(kwargs, lambda tensor: next(rest))


class Positional(nn.Module):
    """A network whose tensors are positional arguments, in the order of `tensors(kwargs)`; all others are constants."""

    def __init__(self, net: nn.Module, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.template = mapped(kwargs, lambda tensor: torch.empty(0))

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return first_output(self.net(**_filled(self.template, values)))
