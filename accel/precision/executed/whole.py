"""Base of precisions that run a converted copy of the network as one piece: compiled, or handed to another library.

The module itself is left alone: only the callable that the seam runs in place of its forward is another, so that taking
it off again restores nothing because nothing was changed. A conversion fits one set of shapes, takes seconds to
minutes, and is kept until the network goes or its weights change. MACs are counted on the network's own forward.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from accel.core.denoiser import Node, mapped
from accel.core.environment import out_of_memory
from accel.core.precision import Calibrating, Precision
from accel.core.sharing import wrapped
from accel.digests import tensors_digest, weights_digest
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.precision.executed.cast import cast_tensors, fit_inputs
from accel.precision.executed.recorded_inputs import ordered, record_inputs, replayed
from accel.precision.simulated.calibration_sets import StridedSteps

Forward = Callable[..., Any]

_KEPT: WeakKeyDictionary[nn.Module, tuple[bytes, dict[str, Forward]]] = WeakKeyDictionary()


class Whole(Precision, ABC):
    """The network runs as one piece that nothing can look into: caches, skip tuning and hooks are refused.

    `calibration`: which evaluations of the network's own trajectories the conversion sees, if it needs any.
    """

    calibration: StridedSteps | None = None
    whole = True

    @property
    def compute(self) -> torch.dtype:
        """What the floating-point inputs are cast to; never the timestep."""
        return torch.float32

    @abstractmethod
    def convert(self, net: nn.Module, kwargs: dict[str, Any], calls: Sequence[dict[str, Any]]) -> Forward:
        """What takes the keyword arguments of the forward of `net`, a copy in `compute` that is the method's own.

        `kwargs`: a call of the shapes that it is for. `calls`: calibration inputs of the same shapes.
        """

    @property
    def calibrated(self) -> bool:
        return self.calibration is not None

    def check(self, nets, recipe) -> None:
        for axis in ("cache", "skip"):
            if (other := getattr(recipe, axis)) is not None:
                raise IncompatibleError(
                    f"{self.label} runs the network as one piece, into which {other.label} cannot look; use "
                    f"{axis}=none, or a precision that leaves the network's modules in place: bf16, fp16 or fp32."
                )
        for name, net in nets.items():
            for part, module in net.named_modules():
                if module._forward_hooks or module._forward_pre_hooks or wrapped(module):
                    raise IncompatibleError(
                        f"{self.label} runs {name!r} as one piece, but {part or 'the network itself'!r} "
                        f"({type(module).__name__}) has a hook or another forward, which would be passed over; remove "
                        "it (offloading and adapters' hooks too), or use precision=bf16, fp16 or fp32."
                    )

    def learned(self, given: Calibrating) -> dict[str, dict[str, torch.Tensor]]:
        """For each network of the recipe the inputs of the evaluations that the calibration set chooses."""
        return record_inputs(self.calibration, given)

    def prepare(self, node: Node) -> None:
        if self.calibrated and not node.artefact:
            raise ConfigError(
                f"{self.label} needs calibration inputs for {node.name!r}, found none; make them with "
                "recipe.precision.calibrate(pipe, recipe, ...) and pass them as `artefacts`, or run it with "
                "`python -m accel`, which calibrates by itself."
            )

    def forward(self, node: Node, forward: Forward) -> Forward:
        if node.count_macs:
            return forward
        node.dtype = self.compute
        kept = conversions(node.net)
        made_from = repr(self), bytes(tensors_digest(node.artefact or {}).tolist()), torch.get_num_threads()

        def run(**kwargs: Any) -> Any:
            kwargs = ordered(kwargs)
            key = repr((made_from, mapped(kwargs, _shape)))
            with torch.no_grad():
                if key not in kept:
                    kept[key] = self._converted(node, kwargs)
                return kept[key](**kwargs)

        return run

    def _converted(self, node: Node, kwargs: dict[str, Any]) -> Forward:
        calls = replayed(node.artefact, kwargs) if self.calibrated else []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # converters' remarks on how they trace
                made = self.convert(own_copy(node.net, self.compute), kwargs, calls)
                made(**kwargs)  # compilers work at the first call
        except AccelError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise IncompatibleError(
                f"{self.label} cannot convert {node.name!r} ({type(node.net).__name__}): {said} Use precision=bf16, "
                "fp16 or fp32, which run any network."
            ) from error
        return made


def conversions(net: nn.Module) -> dict[str, Forward]:
    """What was made of `net` as it is now; conversions of other weights are dropped."""
    now = bytes(weights_digest(net).tolist()) + str([t._version for t in net.state_dict().values()]).encode()
    if net not in _KEPT or _KEPT[net][0] != now:
        _KEPT[net] = (now, {})
    return _KEPT[net][1]


def own_copy(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the network in `dtype`, for inference, with the forward of its class."""
    twin = copy.deepcopy(net)
    vars(twin).pop("forward", None)  # of the seam
    for tensor in cast_tensors(twin, dtype):
        tensor.data = tensor.data.to(dtype)
    if dtype != torch.float32:
        fit_inputs(twin)
    return twin.eval().requires_grad_(False)


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device)
