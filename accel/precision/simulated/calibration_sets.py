"""Calibration sets: the evaluations (x, t) of a denoiser that activation ranges, and learned roundings, are made on.

`Trajectories` observes the run's own trajectories while they happen, caches included. `DrawnTimesteps` evaluates the
plain network on samples that each stand at one timestep t of their own, as PTQ4DM does (Shang et al. 2023,
arXiv:2211.15736, sec. 3.2); its `timesteps` and `source` are the rows of that paper's ablation, in which a normal
distribution around 0.4 T on states of the denoising process (NDTC) is the best. `StridedSteps` takes every sample at
every k-th step, as Q-Diffusion does (Li et al. 2023, arXiv:2302.04304, sec. 4.1).

PTQ4DM's released code counts its steps from the noise but compares them with t, so it keeps the state of noise level
T - 1 - t and evaluates it at t. `released: true` reproduces that; the paper's text pairs them as it should.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from accel.core.denoiser import Inputs
from accel.core.method import LATER
from accel.errors import check_float, check_int, unknown

DISTRIBUTIONS = ("normal", "uniform", "single")
SOURCES = ("trajectory", "noise", "image", "diffused")


@dataclass(frozen=True)
class Call:
    """One evaluation of a network in a trajectory: x = alpha x_0 + sigma eps at `timestep`, step `step` of `steps`."""

    inputs: Inputs
    timestep: float
    alpha: float
    sigma: float
    step: int
    steps: int

    def picked(self, rows: Sequence[int]) -> Call:
        """Only these rows of the batch."""
        return replace(self, inputs=self.inputs.with_parts(("all",)).pick(rows))

    def at(self, x: torch.Tensor, timestep: float) -> Call:
        """The same call on another x and timestep."""
        kind = torch.as_tensor(self.inputs.kwargs["timestep"]).dtype
        time = torch.full((len(x),), timestep, dtype=kind, device=x.device)  # transformers want one for each row
        return replace(self, inputs=self.inputs.given(**{self.inputs.sample_name: x, "timestep": time}))


@dataclass(frozen=True)
class Trajectories:
    """All evaluations of `samples` trajectories, observed while they happen; `cached`: with the run's own cache, so
    that its shallow steps are seen as they will be."""

    samples: int = 32
    cached: bool = field(default=True, metadata=LATER)
    replayed = False

    @property
    def label(self) -> str:
        return "" if self.cached else "uncached"

    def __post_init__(self) -> None:
        check_int("calibration.samples", self.samples, 1)


@dataclass(frozen=True)
class StridedSteps:
    """All `samples` at every `stride`-th step."""

    samples: int = 32
    stride: int = 2
    cached = replayed = True

    def __post_init__(self) -> None:
        check_int("calibration.samples", self.samples, 1)
        check_int("calibration.stride", self.stride, 1)

    @property
    def label(self) -> str:
        return f"every{self.stride}"

    def chosen(self, calls: Sequence[Call], length: int, generator: torch.Generator) -> Iterator[Call]:
        """The evaluations to make, from those of one batch of trajectories in order."""
        yield from calls[:: self.stride]


@dataclass(frozen=True)
class DrawnTimesteps:
    """Each of `samples` at a timestep of its own.

    timesteps: `normal` (mean `mean` T, standard deviation `deviation` T, clamped to [0, T - 1]), `uniform`, or `single`
    (all at `mean` T); the step of the trajectory whose timestep is nearest is taken. source: x_t of the `trajectory`,
    pure `noise`, the least noisy state (`image`), or that state `diffused` to t, all told that they are at t.
    """

    samples: int = 256
    timesteps: str = "normal"
    mean: float = 0.4
    deviation: float = 0.4
    source: str = "trajectory"
    released: bool = False
    cached = replayed = True

    def __post_init__(self) -> None:
        check_int("calibration.samples", self.samples, 1)
        check_float("calibration.mean", self.mean, 0.0, 1.0)
        check_float("calibration.deviation", self.deviation, 0.0, 10.0)
        if self.timesteps not in DISTRIBUTIONS:
            raise unknown("calibration.timesteps", str(self.timesteps), DISTRIBUTIONS)
        if self.source not in SOURCES:
            raise unknown("calibration.source", str(self.source), SOURCES)

    @property
    def label(self) -> str:
        at = {"normal": "ndtc", "uniform": "uniform-t", "single": f"t={self.mean:g}T"}[self.timesteps]
        source = "" if self.source == "trajectory" else f"/{self.source}"
        return f"{at}{source}{'/released' if self.released else ''}"

    def draw(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """`count` timesteps of 0..length-1."""
        drawn = {
            "normal": lambda: torch.randn(count, generator=generator) * self.deviation + self.mean,
            "uniform": lambda: torch.rand(count, generator=generator),
            "single": lambda: torch.full((count,), self.mean),
        }[self.timesteps]()
        return (drawn * length).floor().clamp(0, length - 1)

    def chosen(self, calls: Sequence[Call], length: int, generator: torch.Generator) -> Iterator[Call]:
        """The evaluations to make, from those of one batch of trajectories in order; `length`: T."""
        # A sampler may also evaluate fewer samples beside the trajectory (chains that are initialised one by one), and
        # guidance may leave samples out of one part.
        calls = [call for call in calls if not call.inputs.uneven]
        calls = [call for call in calls if call.inputs.rows == calls[-1].inputs.rows]
        parts = len(calls[0].inputs.parts)
        count = calls[0].inputs.rows // parts
        wanted = self.draw(count, length, generator)
        times = torch.tensor([call.timestep for call in calls])
        state = length - 1 - wanted if self.released else wanted
        taken = (state[:, None] - times).abs().argmin(1)
        told = (wanted[:, None] - times).abs().argmin(1)
        for at, stage in sorted({(int(a), int(b)) for a, b in zip(told, taken, strict=True)}):
            rows = ((told == at) & (taken == stage)).nonzero()[:, 0]
            members = torch.cat([rows + part * count for part in range(parts)]).tolist()
            source, target = calls[stage], calls[at]
            picked = replace(target, inputs=source.picked(members).inputs)
            x, last = picked.inputs.sample, calls[-1].inputs.sample[members]
            noise = torch.cat([torch.randn((len(rows), *x.shape[1:]), generator=generator)] * parts).to(x)
            diffused = target.alpha * last + target.sigma * noise
            states = {"trajectory": x, "noise": noise, "image": last, "diffused": diffused}
            yield picked.at(states[self.source], target.timestep)


CalibrationSet = Trajectories | StridedSteps | DrawnTimesteps
