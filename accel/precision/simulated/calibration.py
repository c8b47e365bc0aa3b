"""Calibration: what quantisers learn of a network's layers from samples of the model itself (never from real data).

Two ways of looking. *In the trajectory*: everything that the layers see while the run's own recipe, less its precision,
samples; so the ranges cover all timesteps, both guidance halves and the stale features of shallow steps. *Replayed*:
the single evaluations that a calibration set chooses (calibration_sets.py), by the plain network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from accel.core.denoiser import Node
from accel.core.precision import Precision
from accel.core.recipe import accelerate
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError
from accel.guidance.spaces import level
from accel.precision.simulated.calibration_sets import CalibrationSet, Call
from accel.precision.simulated.levels import Levels, Range

if TYPE_CHECKING:
    from accel.core.recipe import Recipe

VALUES = 4096  # values of a layer's input that are kept of each evaluation, for ranges that need more than its ends


@dataclass
class Observer:
    """What one layer's input was: its ends and, with `keep`, a sample of its values, for each of `groups` of steps and
    each slice of `channels` along `dim` (none: a single slice); with `means`, the mean of each channel over all."""

    groups: int = 1
    channels: Sequence[int] = ()
    dim: int = 1
    keep: bool = False
    means: bool = False
    ends: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int], list[torch.Tensor]] = field(default_factory=dict)
    total: torch.Tensor | float = 0.0
    places: int = 0

    @property
    def mean(self) -> torch.Tensor:
        """(C,), float64: E[x] of every channel, over all that was seen."""
        return self.total / self.places

    def note(self, x: torch.Tensor, group: int, generator: torch.Generator) -> None:
        """Look at an input in a step of `group`."""
        if self.means:
            flat = x.movedim(self.dim, -1).flatten(0, -2)
            self.total, self.places = self.total + flat.double().sum(0).cpu(), self.places + len(flat)
        for i, part in enumerate(x.split(tuple(self.channels), self.dim) if self.channels else (x,)):
            key, seen = (group, i), torch.stack(torch.aminmax(part)).float().cpu()
            if key in self.ends:
                low, high = self.ends[key]
                seen = torch.stack([torch.minimum(low, seen[0]), torch.maximum(high, seen[1])])
            self.ends[key] = seen
            if self.keep:
                own = part.flatten()
                index = torch.randint(0, len(own), (min(VALUES, len(own)),), generator=generator)
                self.values.setdefault(key, []).append(own[index.to(own.device)].float().cpu())

    def limits(self, chosen: Range, levels: Levels) -> torch.Tensor:
        """(groups, slices, 2): the range that each quantiser covers. A group without input has its neighbour's."""
        slices = max(1, len(self.channels))
        seen = sorted({group for group, _ in self.ends})
        found = torch.empty(self.groups, slices, 2)
        for group in range(self.groups):
            nearest = min(seen, key=lambda other: abs(other - group))
            for i in range(slices):
                found[group, i] = self._limits((nearest, i), chosen, levels)
        return found

    def _limits(self, key: tuple[int, int], chosen: Range, levels: Levels) -> torch.Tensor:
        if not self.keep:
            return self.ends[key]
        row = torch.cat([*self.values[key], self.ends[key]])[None]
        return torch.stack(chosen.limits(row, levels)).flatten()


@contextmanager
def observe(
    layers: Mapping[str, nn.Module],
    observers: Mapping[str, Observer],
    group: Callable[[], int] = lambda: 0,
    seed: int = 0,
) -> Iterator[None]:
    """Within the context the observer of each layer's name sees all its inputs; `group()`: the group of this step."""
    generator = torch.Generator().manual_seed(seed)

    def hook(observer: Observer):
        return lambda module, args: observer.note(args[0].detach(), group(), generator)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(hook(observers[name])).remove)
        yield


class Watch(Precision):
    """Stands in precision's place while a recipe is observed: the plain network, and `look` gets each node first."""

    def __init__(self, look: Callable[[Node], None]) -> None:
        self.look = look

    def prepare(self, node: Node) -> None:
        self.look(node)


@contextmanager
def watched(pipe: Any, recipe: Recipe, look: Callable[[Node], None], models, artefacts) -> Iterator[None]:
    """`pipe` runs `recipe` without its precision; `look(node)` is called for every network of it."""
    with accelerate(pipe, replace(recipe, precision=Watch(look)), models=models, artefacts=artefacts):
        yield


def step_group(step: int, steps: int, groups: int) -> int:
    """The group of a solver step: `groups` equal runs of neighbouring steps."""
    return min(groups - 1, step * groups // max(1, steps))


Recorded = dict[str, list[list[Call]]]  # all evaluations of each network: a list for every batch of trajectories


def record(pipe: Any, recipe: Recipe, sample: Callable[[], Any], models=None, artefacts=None) -> Recorded:
    """All evaluations of each network, by name, while `sample()` calls `pipe`."""
    calls: Recorded = {}
    with watched(pipe, recipe, lambda node: _recording(node, calls), models, artefacts):
        sample()
    return calls


def _recording(node: Node, calls: Recorded) -> None:
    kept = calls.setdefault(node.name, [])
    evaluate, runs = node.evaluate, [-1]

    def recording(inputs, forward, mode=None):
        clock = node.clock
        if clock.runs != runs[0]:
            runs[0] = clock.runs
            kept.append([])
        at = level(clock)
        kept[-1].append(Call(inputs.cloned(), clock.timestep, at.alpha, at.sigma, clock.step, clock.num_steps))
        return evaluate(inputs, forward, mode)

    node.evaluate = recording


def observed(
    pipe: Any,
    recipe: Recipe,
    sample: Callable[[], Any],
    hooks: Callable[[str, Callable[[], int]], AbstractContextManager],
    chosen: CalibrationSet,
    groups: int = 1,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Any] | None = None,
    keep: bool = False,
) -> Recorded:
    """Run the evaluations of the calibration set `chosen`, with the hooks of `hooks(network, group)` on each network;
    `group()` tells them the group of the present step. `sample()` is a call of `pipe`. Returns the evaluations of its
    trajectories if they are to be kept (`keep`) or replayed."""
    calls: Recorded = {}

    def look(node: Node) -> None:
        if keep or chosen.replayed:
            _recording(node, calls)
        if not chosen.replayed:
            group = lambda: step_group(node.clock.step, node.clock.num_steps, groups)  # noqa: E731
            node.undo.enter_context(hooks(node.name, group))

    with watched(pipe, recipe, look, models, artefacts):
        sample()
    if chosen.replayed:
        nets = recipe.nets(pipe, models)
        for network, batches in calls.items():
            generator, now = torch.Generator().manual_seed(0), [0]
            with hooks(network, lambda now=now: now[0]):
                for call in (c for batch in batches for c in chosen.chosen(batch, train_steps(pipe), generator)):
                    now[0] = step_group(call.step, call.steps, groups)
                    evaluate(network, nets[network], call)
    return calls


def check_observed(observers: Mapping[str, Mapping[str, Observer]]) -> None:
    """ConfigError if a layer (by network and name) had no input."""
    missed = [f"{n}/{k}" for n, own in observers.items() for k, o in own.items() if not o.ends]
    if missed:
        total = sum(map(len, observers.values()))
        raise ConfigError(
            f"calibration saw no input for {len(missed)} of {total} layers (first: {min(missed)}); "
            "calibrate on samples that run the whole recipe (at least one, with all its steps), or name layers that "
            "never run in precision.keep, which leaves them as they are (an adapter's that is not used: unload it)."
        )


def train_steps(pipe: Any) -> int:
    """T, the number of timesteps that the model was trained with."""
    return int(pipe.scheduler.config.num_train_timesteps)


def evaluate(name: str, net: nn.Module, call: Call) -> torch.Tensor:
    """The prediction of the bare network for a recorded call, without gradients."""
    with torch.no_grad():
        return predict(name, net, call)


def predict(name: str, net: nn.Module, call: Call) -> torch.Tensor:
    """The prediction of the bare network for a recorded call."""
    with ExitStack() as undo:
        return Node(name, net, Trajectory(), undo).predict(call.inputs, net.forward)
