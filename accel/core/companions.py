"""Networks that a pipeline evaluates beside its denoiser at every step: a ControlNet. What they cost counts as MACs, as
a classifier's does, and never as NFE: a cache or a guidance that spares evaluations of the denoiser spares none of
theirs, and a recipe of fewer steps does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import replaced_forward
from accel.core.trajectory import Trajectory

NAMES = ("controlnet",)


def companions(pipe: Any) -> dict[str, nn.Module]:
    """Those of a pipeline by name."""
    found = {name: getattr(pipe, name, None) for name in NAMES}
    return {name: net for name, net in found.items() if isinstance(net, nn.Module)}


@contextmanager
def counted(pipe: Any, clock: Trajectory) -> Iterator[None]:
    """Until the context ends the MACs of each evaluation of `companions` are in the trace."""
    from accel.core.macs import count_macs

    def counting(name: str, own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            result, macs = count_macs(lambda: own(*args, **kwargs))
            sample = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            clock.note(name, "full", len(sample), macs, denoiser=False)
            return result

        return forward

    with ExitStack() as stack:
        for name, net in companions(pipe).items():
            stack.enter_context(replaced_forward(net, counting(name, net.forward)))
        yield
