"""Base of precision methods: they change a network's modules in place and put them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Node, Sample
from accel.core.job import Job
from accel.core.method import Method
from accel.digests import stored
from accel.errors import IncompatibleError

STORED = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Calibrating:
    """The arguments of `Precision.calibrate`, and what every calibration asks of them."""

    pipe: Any
    recipe: Any
    sample: Sample
    models: Mapping[str, nn.Module] | None
    artefacts: Mapping[str, Any] | None
    job: Job

    def nets(self) -> dict[str, nn.Module]:
        """The denoisers of the recipe by name."""
        return self.recipe.nets(self.pipe, self.models)


def check_stored(name: str, net: nn.Module) -> None:
    """IncompatibleError if `net` keeps weights in another type than it computes in (layerwise casting): what reads or
    replaces weights between the calls of its layers would find the stored ones; or if they were quantised before."""
    if (quantizer := getattr(net, "hf_quantizer", None)) is not None:
        method = getattr(quantizer.quantization_config, "quant_method", "")
        raise IncompatibleError(
            f"the weights of {name!r} were quantised before it was loaded ({getattr(method, 'value', method)}), and a "
            "precision reads or replaces them; use precision=none, or a folder of the plain weights."
        )
    if kept := {str(p.dtype).removeprefix("torch.") for p in net.parameters() if p.dtype in STORED}:
        raise IncompatibleError(
            f"{name!r} keeps its weights in {', '.join(sorted(kept))} between calls (layerwise casting), and a "
            "precision reads them there; use precision=none, or load it without (suite.layerwise_casting=false)."
        )


class Precision(Method):
    """Attached before everything else, so that caches and stitches run on the changed network."""

    kind = "executed"  # or "simulated": the arithmetic is imitated, so the method is never timed
    whole = False  # whether a converted copy runs as one piece; then its memory is not seen by torch

    def prepare(self, node: Node) -> None:
        """Change `node.net`; register the way back on `node.undo`."""

    def forward(self, node: Node, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What the prepared node runs as the network's forward; `forward` is the network's own."""
        return forward

    def prepare_pipeline(self, pipe: Any, undo: ExitStack, artefacts: Mapping[str, Any] | None = None) -> None:
        """Change networks of the pipeline beside the denoisers; register the way back on `undo`. `artefacts`: those of
        all networks, by name."""

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        models: Mapping[str, nn.Module] | None = None,
        artefacts: Mapping[str, Any] | None = None,
        job: Job | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """The artefact of each of the recipe's networks, by name, if the method is `calibrated` (else none).

        `sample(recipe, start, stop)` generates those samples by `pipe`, which runs that recipe meanwhile. `artefacts`:
        what the recipe's other methods need. `job` is told the progress and keeps what is finished of long work.
        """
        return self.learned(Calibrating(pipe, recipe, sample, models, artefacts, job or Job()))

    def learned(self, given: Calibrating) -> dict[str, dict[str, torch.Tensor]]:
        """What `calibrate` returns, of its arguments; the place where a method says what it learns."""
        return {}

    def model_bytes(self, net: nn.Module, artefact: Mapping[str, torch.Tensor] | None = None) -> int:
        """Bytes to store the network's parameters and buffers under this method."""
        return plain_bytes(net)


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's text encoders by name. IncompatibleError if it has none."""
    found = {name: net for name in ENCODERS if isinstance(net := getattr(pipe, name, None), nn.Module)}
    if not found:
        raise IncompatibleError(
            f"{type(pipe).__name__} has no text encoder; leave precision.text_encoder at its default."
        )
    return found


def plain_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are now."""
    tensors = [*net.parameters(), *net.buffers()]
    parts = [part for tensor in tensors for part in stored("", tensor).values()]
    return sum(t.numel() * t.element_size() for t in parts)
