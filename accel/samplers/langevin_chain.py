"""Langevin-Gibbs chains (accel/samplers/langevin_gibbs.py): their equations, and the chains of one pipeline call.

All is in the variance-exploding view x = x_t / alpha = x_0 + sigma eps, each row at a level of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from accel.core.denoiser import denoiser_name
from accel.core.devices import send
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.predictor import Predictor
from accel.samplers.scheduler import convert

# Arguments of a pipeline call that say how to sample, not what.
NOT_CONDITIONS = ("generator", "latents", "output_type", "return_dict", "num_inference_steps", "timesteps", "sigmas")


@runtime_checkable
class LevelEstimator(Protocol):
    """Tells the noise level of x_0 + sigma eps, such as a classifier of levels.

    `name`: what records call it; `shape`: (C, H, W) of the images that it knows; `bounds`: its smallest and largest
    sigma; `sha256`: what identifies its numbers in records.
    """

    name: str
    shape: tuple[int, int, int]
    bounds: tuple[float, float]
    sha256: str

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """sigma (B,), float64 on the CPU, of x (B, C, H, W)."""


# the equations ---------------------------------------------------------------------------------------------------


def langevin_step(x: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor, eta: float) -> torch.Tensor:
    """x + eta/2 score + sqrt(eta) z with score = -eps / sigma: unadjusted Langevin at a fixed noise level.

    x, eps = eps(x, sigma), fresh noise z: (B, ...); sigma (B,); eta: in squared units of x. Kim & Ye 2023.
    """
    return x - column(eta / 2 / sigma, x) * eps + math.sqrt(eta) * z


def gibbs_step(x: torch.Tensor, estimator: LevelEstimator, bounds: tuple[float, float]) -> torch.Tensor:
    """argmax_k p(sigma_k | x), (B,), of x (B, ...), within the `bounds` that the model knows. Kim & Ye 2023."""
    return estimator(x).clamp(*bounds)


def lower_state(
    sigma: torch.Tensor, state: Sequence[torch.Tensor], taken: torch.Tensor, best: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(level, state) of the less noisy of two, row by row: `state` at `sigma` (B,), and `best` at `taken` (B,)."""
    lower = column(sigma < taken, state[0]).bool()
    best = tuple(torch.where(lower, new, old) for new, old in zip(state, best, strict=True))
    return torch.minimum(sigma, taken), best


def to_level(x: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor, start: float) -> torch.Tensor:
    """x (B, ...) brought from its own level sigma (B,) to the common level `start`.

    sigma < start   x + sqrt(start^2 - sigma^2) z       exact in distribution
    sigma > start   x + (start - sigma) eps(x, sigma)   Euler's step of the probability-flow ODE
    """
    up = (start**2 - sigma.square()).clamp(min=0).sqrt()
    down = (start - sigma).clamp(max=0)
    return x + column(down, x) * eps + column(up, x) * z


def dpmpp_2m_step(x: torch.Tensor, x0: torch.Tensor, before: torch.Tensor | None, ratio: float) -> torch.Tensor:
    """ratio x + (1 - ratio) (3/2 x_0 - 1/2 x_0 of the step before), ratio = sigma' / sigma: DPM-Solver++(2M).

    Lu et al. 2022 (arXiv:2211.01095), alg. 2 with steps that are equal in log sigma; x_0 alone without a step before.
    """
    return ratio * x + (1 - ratio) * (x0 if before is None else 1.5 * x0 - 0.5 * before)


def column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """values (B,) so that they multiply the rows of `like` (B, ...)."""
    return send(values.to(like.dtype), like.device).reshape(-1, *[1] * (like.ndim - 1))


# the chains ------------------------------------------------------------------------------------------------------


class Chains:
    """The chains of one pipeline call, from noise to the samples at `sigma_start`.

    `own`: the DenoisingLangevinGibbs with the settings; `call`: the pipeline's arguments.
    """

    def __init__(self, own: Any, pipe: Any, clock: Trajectory, call: Mapping[str, Any]) -> None:
        self.own, self.pipe, self.clock, self.estimator = own, pipe, clock, own.estimator
        config = pipe.scheduler.config
        self.schedule = noise_schedule(config)
        self.kind = config.get("prediction_type", "flow_prediction" if self.schedule.flow else "epsilon")
        ends = np.array([self.schedule.t_min, self.schedule.t_max])
        self.bounds = tuple(self.schedule.rho(ends).tolist())  # what the model knows
        self.start = float(self.schedule.rho(own.start_timestep(self.schedule)))
        net = getattr(pipe, denoiser_name(pipe))
        self.device, self.given = net.device, net.dtype
        self.dtype = torch.promote_types(net.dtype, torch.float32)
        self.rows, self.each, self.common = _conditions(call)
        self.chains = _chains([_key(self.each, i) for i in range(self.rows)], own.chain)
        source = call.get("generator")
        sources = [source[c[0]] if isinstance(source, Sequence) else source for c in self.chains]
        self.generators = [_child(g) for g in sources]

    def latents(self) -> torch.Tensor:
        """x (rows, C, H, W) at `sigma_start`, in the order of the call's rows."""
        own = self.own
        self._only(len(self.chains))
        x = self._from_noise()
        sigma = self._level(x)
        for _ in range(own.burn_in):
            x, sigma = self._langevin(x, sigma, self._eps(x, sigma))
        result = torch.empty(self.rows, *x.shape[1:], dtype=self.dtype, device=self.device)
        for k in range(len(self.chains[0])):
            alive = sum(len(c) > k for c in self.chains)  # the longest come first
            if alive < len(x):
                x, sigma = x[:alive], sigma[:alive]
                self._only(alive)
            taken, best = torch.full_like(sigma, torch.inf), (x, x)
            for _ in range(own.skip):
                eps = self._eps(x, sigma)
                taken, best = lower_state(sigma, (x, eps), taken, best)
                x, sigma = self._langevin(x, sigma, eps)
            result[send([c[k] for c in self.chains[:alive]], result.device)] = self._brought(*best, taken)
        return result.to(self.given)

    def _brought(self, x: torch.Tensor, eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return to_level(x, eps, sigma, self._noise(), self.start)

    def _only(self, count: int) -> None:
        # Go on with the first `count` chains.
        heads = [c[0] for c in self.chains[:count]]
        conditions = {
            k: v[heads] if isinstance(v, torch.Tensor) else [v[i] for i in heads] for k, v in self.each.items()
        }
        if "batch_size" in self.common:
            conditions["batch_size"] = count
        self.count = count
        self.predictor = Predictor(self.pipe, self.clock, **self.common | conditions)

    def _noise(self) -> torch.Tensor:
        shape = (1, *self.estimator.shape)
        drawn = [torch.randn(shape, generator=g, dtype=self.dtype) for g in self.generators[: self.count]]
        return send(torch.cat(drawn), self.device)

    def _output(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        # The model's output for x_t, noted as preparation.
        output = self.predictor(x.to(self.given), t).to(self.dtype)
        self.clock.keep_as_prelude()
        return output

    def _eps(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        t = self.schedule.timestep(sigma.numpy())
        alpha, s = (column(torch.from_numpy(v), x) for v in self.schedule.alpha_sigma(t))
        times = send(t, self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        _, _, r, q = convert(self.kind, alpha, s)
        return r * (alpha * x) + q * self._output(alpha * x, times)

    def _langevin(self, x: torch.Tensor, sigma: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = langevin_step(x, eps, sigma, self._noise(), self.own.step_size)
        return x, self._level(x)

    def _level(self, x: torch.Tensor) -> torch.Tensor:
        return gibbs_step(x, self.estimator, self.bounds)

    def _from_noise(self) -> torch.Tensor:
        levels = torch.from_numpy(np.geomspace(self.bounds[1], self.start, self.own.start_steps + 1))
        ratio = float(levels[1] / levels[0])
        x, before = levels[0] * self._noise(), None
        for level in levels[:-1]:
            x0 = x - level * self._eps(x, level.expand(len(x)))
            x, before = dpmpp_2m_step(x, x0, before, ratio), x0
        return x


def _conditions(call: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(rows, what each row has of its own, what all have in common) of a pipeline's arguments."""
    if call.get("latents") is not None:
        raise ConfigError("latents are given, but a Langevin-Gibbs chain makes them; leave them out.")
    if call.get("num_images_per_prompt", 1) != 1:
        raise ConfigError("num_images_per_prompt is not 1; repeat the prompt instead, one for each image.")
    wanted = {k: v for k, v in call.items() if k not in NOT_CONDITIONS and v is not None}
    listed = {k: len(v) for k, v in wanted.items() if _is_list(v)}
    source = call.get("generator")
    rows = len(source) if isinstance(source, Sequence) else max([wanted.get("batch_size", 1), *listed.values()])
    each = {k: wanted[k] for k, length in listed.items() if length == rows}
    return rows, each, {k: v for k, v in wanted.items() if k not in each}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.ndim > 0)


def _key(each: Mapping[str, Any], row: int) -> tuple[Any, ...]:
    values = [v[row] for v in each.values()]
    return tuple(v.cpu().numpy().tobytes() if isinstance(v, torch.Tensor) else repr(v) for v in values)


def _chains(keys: Sequence[Any], length: int) -> list[list[int]]:
    """Rows of equal keys, in order, cut into chains of `length`; the longest chains first."""
    members: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    chains = [rows[i : i + length] for rows in members.values() for i in range(0, len(rows), length)]
    return sorted(chains, key=len, reverse=True)


def _child(generator: torch.Generator | None) -> torch.Generator:
    # A generator of the chain's own: how far it runs must not show in what the sampler itself draws.
    device = generator.device if generator is not None else "cpu"
    seed = torch.randint(2**62, (), generator=generator, device=device)
    return torch.Generator().manual_seed(int(seed))
