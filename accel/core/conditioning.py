"""Conditioning of its own for a network that shares a trajectory with the pipeline's.

Networks of one latent space may be told class or prompt in different ways: the two latent diffusion models that
T-Stitch joins embed classes in 512 and in 256 numbers (Pan et al. 2025, arXiv:2402.14167). The pipeline knows its own
network's conditioning only; `conditioned` gives another network a translation of it:

    small = conditioned(unet, Lookup("encoder_hidden_states", known, {"encoder_hidden_states": own}))
    accelerate(pipe, recipe, models={"small": small})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError, IncompatibleError

Translate = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_NAME = "accel_conditioning"


def conditioned(net: nn.Module, translate: Translate) -> nn.Module:
    """`net`, which from now on gets `translate(arguments)` in place of the pipeline's arguments of the same names.

    `arguments`: those of one call to the pipeline's network, by name; batched ones have the rows of that call.
    """
    setattr(net, _NAME, translate)
    return net


def conditioning_of(net: nn.Module) -> Translate | None:
    """The translation that `conditioned` gave this network, if any."""
    return vars(net).get(_NAME)  # a module looks long for an attribute that it lacks


@dataclass(frozen=True)
class Lookup:
    """Finds each row of argument `name` among `known` (K, ...), and gives the same row of each of `own` (K, ...).

    For K prompts or classes and the null condition, encoded once for both networks. Rows must be equal to the last bit,
    as they are when the same encoder made them. Raises ConfigError for tables of different length, IncompatibleError
    for a row that is not known.
    """

    name: str
    known: torch.Tensor
    own: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        for argument, table in self.own.items():
            if len(table) != len(self.known):
                raise ConfigError(
                    f"the table of {argument!r} has {len(table)} rows, that of known {self.name!r} {len(self.known)}; "
                    "give one row for each known one."
                )

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        rows = arguments[self.name]
        known = self.known.to(rows.device, rows.dtype)
        found = [self._index(row, known, i) for i, row in enumerate(rows)]
        return {argument: table.to(rows.device)[found] for argument, table in self.own.items()}

    def _index(self, row: torch.Tensor, known: torch.Tensor, i: int) -> int:
        same = (known == row).flatten(1).all(1) if known.dim() > 1 else known == row
        if not same.any():
            raise IncompatibleError(
                f"row {i} of {self.name} is none of the {len(known)} known ones; encode every prompt (and the negative "
                "or empty one) for both networks, with the pipeline's own encoder and dtype."
            )
        return int(same.nonzero()[0])
