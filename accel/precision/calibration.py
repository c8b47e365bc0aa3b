"""Calibration of activation ranges: minimum and maximum of every layer's input over whole sampled trajectories.

The calibration set is sampled from the model itself (no real data), with the run's own recipe less its precision, so
the ranges cover all timesteps, both guidance halves and the stale features of shallow steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError
from accel.precision.fake_quant import quantisable
from accel.recipe import Recipe, accelerate

Ranges = dict[str, dict[str, torch.Tensor]]


@contextmanager
def observe(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Within the context, record [minimum, maximum] of the input of every layer, by name."""
    ranges: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def note(module, args):
            low, high = torch.aminmax(args[0].detach())
            seen = torch.stack([low, high]).float().cpu()
            if name in ranges:
                seen = torch.stack([torch.minimum(ranges[name][0], seen[0]), torch.maximum(ranges[name][1], seen[1])])
            ranges[name] = seen

        return note

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def calibrate(
    pipe: Any,
    recipe: Recipe,
    sample: Callable[[], Any],
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Any] | None = None,
) -> Ranges:
    """Ranges for each network of `recipe` while `sample()` (a call of `pipe`) runs it in full precision.

    `artefacts`: what the recipe's sampler needs.
    """
    nets = recipe.nets(pipe, models)
    layers = {f"{n}/{k}": m for n, net in nets.items() for k, m in quantisable(net, recipe.precision.keep).items()}
    full = replace(recipe, precision=None)
    with accelerate(pipe, full, models=models, artefacts=artefacts), observe(layers) as ranges:
        sample()
    if missed := sorted(set(layers) - set(ranges)):
        raise ConfigError(
            f"calibration saw no input for {len(missed)} of {len(layers)} layers (first: {missed[0]}); "
            "calibrate on samples that run the whole recipe (at least one, with all its steps)."
        )
    return by_network(ranges)


def by_network(flat: Mapping[str, torch.Tensor]) -> Ranges:
    """{"network/layer": range} -> {network: {layer: range}}."""
    ranges: Ranges = {}
    for name, limits in flat.items():
        network, _, layer = name.partition("/")
        ranges.setdefault(network, {})[layer] = limits
    return ranges
