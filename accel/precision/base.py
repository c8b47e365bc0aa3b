"""Base of precision methods: they change a network's modules in place and put them back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from accel.denoiser import Method, Node


class Precision(Method):
    """Attached before everything else, so that caches and stitches run on the changed network."""

    kind = "executed"  # or "simulated": the arithmetic is imitated, so the method is never timed
    calibrated = False  # True: `accelerate` needs an artefact for each network, made by accel.precision.calibration

    def prepare(self, node: Node) -> None:
        """Change `node.net`; register the way back on `node.undo`."""

    def prepare_pipeline(self, pipe: Any, undo: ExitStack) -> None:
        """Change networks of the pipeline beside the denoisers; register the way back on `undo`."""

    def model_bytes(self, net: nn.Module) -> int:
        """Bytes to store the network's parameters and buffers under this method."""
        return plain_bytes(net)


def plain_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are now."""
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
