"""What a model output says about x_0, eps and v at the current evaluation, whatever the scheduler and prediction type.

The denoiser's input is always x = alpha x_0 + sigma eps, also under schedulers that keep x / alpha: they scale it
before the call. Variance-preserving models: alpha^2 + sigma^2 = 1; flows: alpha = 1 - sigma. All three are linear in x
and the output, so that differences of outputs need no x. Half precision is left for float32 on the way there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from accel.core.denoiser import Inputs
from accel.core.trajectory import Trajectory
from accel.errors import IncompatibleError
from accel.samplers.noise_schedule import is_flow, noise_schedule
from accel.samplers.scheduler import convert

SPACES = ("x0", "eps", "v")


@dataclass(frozen=True)
class Level:
    """alpha, sigma and the prediction type of one evaluation; `sign`: of the network's output in the prediction."""

    alpha: float
    sigma: float
    kind: str
    flow: bool = False
    sign: float = 1.0

    def weights(self, space: str) -> tuple[float, float]:
        """(a, b): the value in `space` is a x + b output. v is alpha eps - sigma x_0, of a flow eps - x_0."""
        p, q, r, s = convert(self.kind, self.alpha, self.sigma)
        q, s = self.sign * q, self.sign * s
        alpha, sigma = (1.0, 1.0) if self.flow else (self.alpha, self.sigma)
        return {"x0": (p, q), "eps": (r, s), "v": (alpha * r - sigma * p, alpha * s - sigma * q)}[space]

    def to(self, space: str, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What `output` (B, C, ...) says in `space`; both of one shape."""
        a, b = self.weights(space)
        return a * _wide(x) + b * _wide(output)

    def back(self, space: str, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The output that says `value` in `space`."""
        a, b = self.weights(space)
        return (value - a * _wide(x)) / b

    def change(self, space: str, change: torch.Tensor) -> torch.Tensor:
        """The change of the output that makes `change` in `space`."""
        return change / self.weights(space)[1]


def level(clock: Trajectory) -> Level:
    """The level of the current evaluation."""
    config = clock.scheduler.config
    noise_schedule(config)  # refuses models of other kinds
    flow, sigma = is_flow(config), clock.sigma
    kind = "flow_prediction" if flow and "prediction_type" not in config else config.get("prediction_type", "epsilon")
    if flow:
        return Level(1 - sigma, sigma, kind, True, clock.sign)
    if math.isinf(sigma) and kind == "epsilon":
        raise IncompatibleError(
            f"at timestep {clock.timestep:g} this model's alpha is 0 (zero terminal SNR), where a prediction of eps "
            "says nothing about x_0; use guidance=cfg, or a sampler that begins below it."
        )
    alpha = 1 / math.sqrt(1 + sigma**2)
    return Level(alpha, 1.0 if math.isinf(sigma) else sigma * alpha, kind, False, clock.sign)


def latents(inputs: Inputs, prediction: torch.Tensor) -> torch.Tensor:
    """x (B, C, ...) of a call: its sample without what pipelines append to it for the network alone (the mask and the
    masked image of inpainting, the image of image-to-video), which a prediction has no channels for. IncompatibleError
    where parts of it have noise levels of their own."""
    sample = inputs.sample
    if torch.is_tensor(time := inputs.kwargs.get("timestep")) and time.dim() > 1:
        raise IncompatibleError(
            "this pipeline tells its network a time for each part of a sample, as the frame that a video begins at has "
            "no noise, and this guidance asks what a prediction says at one noise level; use guidance=cfg or interval, "
            "or guidance=none."
        )
    for dim in range(1, sample.ndim):
        if prediction.ndim == sample.ndim and prediction.shape[dim] < sample.shape[dim]:
            sample = sample.narrow(dim, 0, prediction.shape[dim])
    return sample


def own(prediction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The prediction without what networks with learned variances append to its channels."""
    return prediction[:, : x.shape[1]]


def shifted(prediction: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """The prediction with `change` added to its first channels, learned variances left alone."""
    change = change.to(prediction.dtype)
    if prediction.shape == change.shape:
        return prediction + change
    channels = change.shape[1]
    return torch.cat([prediction[:, :channels] + change, prediction[:, channels:]], dim=1)


def replaced(prediction: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` in place of the prediction's first channels."""
    return torch.cat([value.to(prediction.dtype), prediction[:, value.shape[1] :]], dim=1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def exactly(like: torch.Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64
