"""What an artefact (numbers that were searched, fitted or learned) was made for, and its transfer to other weights.

An artefact keeps digests (accel/digests.py) of what it was made for: the network's weights, and where they decide it
sampler, grid and guidance. A method refuses one that was made for something else. `transferred` allows other weights,
and no more: whether the numbers of one checkpoint serve its fine-tune, or the same network under a LoRA, is then a
question that is asked on purpose, and `Run.transferred` says which methods of a run were asked it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import denoiser_name
from accel.digests import weights_digest

Artefacts = Mapping[str, Mapping[str, torch.Tensor]]  # by axis, or by network for a precision
MODELS = ("model", "weights", "|model")  # under which name artefacts keep the digest of a network
TRANSFERRED = "|transferred to"  # and that of one with other weights on which they are allowed


def transferred(
    artefacts: Artefacts, pipe: Any, models: Mapping[str, nn.Module] | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """`artefacts` of another checkpoint of a network, allowed on the weights that `pipe` (and `models`) have now.

    All else that they were made for is still asked for, and what does not fit the network at all (layers of other
    names) is still refused. To be used before a recipe is put onto the pipeline.
    """
    own = getattr(pipe, denoiser_name(pipe))

    def network(name: str) -> nn.Module:
        further = getattr(pipe, name, None)
        return (models or {}).get(name, further if isinstance(further, nn.Module) else own)

    return {name: dict(one) | {TRANSFERRED: weights_digest(network(name))} for name, one in artefacts.items()}


def moved(artefacts: Artefacts | None) -> tuple[str, ...]:
    """Names of those that `transferred` gave."""
    return tuple(sorted(name for name, one in (artefacts or {}).items() if TRANSFERRED in one))


def unlike(artefact: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first thing of `here` that the artefact was not made for; None if it was made for all."""
    for name, wanted in here.items():
        allowed = artefact.get(TRANSFERRED) if name in MODELS else None
        if not (_same(artefact.get(name), wanted) or (name in artefact and _same(allowed, wanted))):
            return name
    return None


def _same(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    # Digests to the last bit; numbers, such as timesteps, as far as files keep them.
    return found is not None and found.shape == wanted.shape and torch.allclose(found.cpu().double(), wanted.double())
