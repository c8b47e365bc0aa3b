"""Consistency functions: networks that tell from any x_t where its trajectory ends, made to agree with themselves.

f(x_t, t) = x0_theta(x_t, t) = alpha x - sigma v (of a flow x - t v), which is x at sigma = 0 whatever v is: the
boundary that other parametrisations need c_skip and c_out for (Song et al. 2023, arXiv:2303.01469) holds by itself.
For two times t > r on one trajectory the loss is

    w(t, r) d( f_theta(x_t, t), sg f_theta(x_r, r) ),   d(a, b) = sqrt(||a - b||^2 + c^2) - c,   f(x, 0) = x

(pseudo-Huber, Song & Dhariwal 2023, arXiv:2310.14189; c = 0.00054 sqrt(number of pixels) as there). x_r is

* without a teacher (`teacher=false`, consistency training) alpha_r x_0 + sigma_r eps, with x_t's own x_0 and eps, or
* with one (consistency distillation) the teacher's DDIM step from x_t, guided where `guidance` says so.

Which (t, r) are drawn is the method (`PAIRS`), rho = sigma / alpha:

* `ect`: rho_t lognormal, rho_r = rho_t (1 - q^-(k + 1) (1 + 8 sigmoid(-rho_t))), at least 0, with k from 0 to
  `stages` - 1 while training goes on: it begins as denoising (r = 0 for small t) and tightens. Easy consistency tuning
  (Geng et al. 2024, arXiv:2406.14548), w = 1 / (rho_t - rho_r).
* `ict`: neighbours on Karras' grid of N(k) = min(s_0 2^k, s_1) levels, k as above, drawn with the lognormal's weights
  of them. Improved consistency training (Song & Dhariwal 2023), the same w.
* `lcm`: t one of `fine` even timesteps (19, 39, ..., 999 of 1,000), r `skip` timesteps earlier, w = 1. Latent
  consistency models (Luo et al. 2023, arXiv:2310.04378).

Guidance that is built in is a number; two numbers are a range, from which a scale is drawn for each image and told to
the network as its `timestep_cond` (Meng et al. 2023, arXiv:2210.03142), as diffusers' pipelines of such networks do.

Deviations: the target is the network itself for all (LCM has a moving average of it); no dropout, which ECT and iCT
share between both sides; rho in the place of EDM's sigma, and levels down to the model's own, below which is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from accel.errors import ConfigError, check_float, check_int, unknown
from accel.students.told import guidance_embedding, width_of
from accel.suites.training.learner import Kept
from accel.suites.training.noising import END, Levels, clean, renoised
from accel.suites.training.segments import check_times, solve
from accel.suites.training.task import BACKWARD, IMAGES, Lesson, Predict, Turn, guided, predicting

HUBER = 0.00054  # times the root of the number of pixels


@dataclass(frozen=True)
class Consistency:
    """The task: `times` at which the student is sampled (others are allowed); `pairs`: which times are drawn
    (`PAIRS`); `teacher`: whether its step leads from x_t to x_r; `guidance`: the scale of the teacher's, or a range of
    scales that the network is told; `mean` and `std` of ln rho_t; `stages` of the curriculum, all of one length;
    `base`: ECT's q; `first`, `last`: iCT's s_0 and s_1; `fine`, `skip`: LCM's timesteps."""

    times: Sequence[float]
    pairs: str = "ect"
    teacher: bool = False
    guidance: float | tuple[float, float] = 1.0
    mean: float = -1.1
    std: float = 2.0
    stages: int = 8
    base: float = 2.0
    first: int = 10
    last: int = 1280
    fine: int = 50
    skip: int = 20

    kind: ClassVar[str] = "consistency"

    def __post_init__(self) -> None:
        check_times(self.times)
        if self.pairs not in PAIRS:
            raise unknown("pairs of a consistency function", self.pairs, PAIRS)
        check_float("std", self.std, 0.0)
        check_float("base", self.base, 1.0)
        for name in ("stages", "first", "fine", "skip"):
            check_int(name, getattr(self, name), 1)
        check_int("last", self.last, self.first)
        check_scales(self.guidance)
        if not self.teacher and self.guidance != 1:
            raise ConfigError(
                f"guidance is {self.guidance}, which is a teacher's, and there is none; use teacher=true or guidance=1."
            )

    @property
    def drawn(self) -> bool:
        """Whether the network is told a scale that is drawn for each image."""
        return not isinstance(self.guidance, (int, float))

    @property
    def data(self) -> str:
        return IMAGES

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        learner = lesson.learner()

        def turn(step: int, generator: torch.Generator) -> float:
            stage = step * self.stages // lesson.cfg.steps
            return learner.descend(consistency_loss(self, lesson, stage, generator), step)

        return {"": learner}, turn

    def spent(self, steps: int) -> dict[str, float]:
        teacher = self.teacher * (1 if self.guidance == 1 else 2)
        return {"samples": steps, "teacher_evaluations": steps * teacher,
                "student_evaluations": steps * (2 + BACKWARD)}  # fmt: skip


def tightened(rho: np.ndarray, stage: int, base: float) -> np.ndarray:
    """ECT's rho_r for rho_t (B,) in a stage from 0: at least 0, below rho_t, and the nearer the later the stage."""
    return np.maximum(rho * (1 - base ** -(stage + 1.0) * (1 + 8 / (1 + np.exp(rho)))), 0.0)


def levels_of_stage(task: Consistency, stage: int) -> int:
    """iCT's N: the number of noise levels above 0 in a stage from 0."""
    return min(task.first * 2**stage, task.last)


def lognormal_shares(rho: np.ndarray, mean: float, std: float) -> np.ndarray:
    """iCT's probabilities (N - 1,) of the gaps of ascending levels (N,): erf differences of a lognormal."""
    below = np.array([math.erf((math.log(each) - mean) / (math.sqrt(2) * std)) for each in rho])
    gaps = np.diff(below)
    return gaps / gaps.sum()


def _ect(task: Consistency, levels: Levels, stage: int, generator: torch.Generator, count: int):
    schedule = levels.schedule
    low, high = float(schedule.rho(schedule.t_min)), float(schedule.rho(schedule.t_max))
    normal = torch.randn(count, generator=generator, dtype=torch.float64).numpy()
    rho = np.clip(np.exp(task.mean + task.std * normal), low, high)
    return schedule.timestep(rho), _time(levels, tightened(rho, stage, task.base))


def _ict(task: Consistency, levels: Levels, stage: int, generator: torch.Generator, count: int):
    schedule, number = levels.schedule, levels_of_stage(task, stage)
    low, high = float(schedule.rho(schedule.t_min)), float(schedule.rho(schedule.t_max))
    root = np.linspace(low ** (1 / 7), high ** (1 / 7), number + 1)
    rho = root**7  # ascending; the lowest is where sigma = 0 is put
    shares = torch.from_numpy(lognormal_shares(rho, task.mean, task.std))
    place = torch.multinomial(shares, count, replacement=True, generator=generator).numpy()
    earlier = np.where(place == 0, 0.0, rho[place])
    return schedule.timestep(rho[place + 1]), _time(levels, earlier)


def _lcm(task: Consistency, levels: Levels, stage: int, generator: torch.Generator, count: int):
    schedule = levels.schedule
    gap = schedule.total / task.fine
    place = torch.randint(1, task.fine + 1, (count,), generator=generator).numpy()
    t = place * gap - (0 if schedule.flow else 1)
    r = t - task.skip
    return t, np.where(r < schedule.t_min, END, r)


def _time(levels: Levels, rho: np.ndarray) -> np.ndarray:
    """Timesteps of levels (B,); END below the least that the model knows."""
    schedule = levels.schedule
    known = rho >= float(schedule.rho(schedule.t_min))
    return np.where(known, schedule.timestep(np.where(known, rho, 1.0)), END)


def by_gap(rho_t: np.ndarray, rho_r: np.ndarray) -> np.ndarray:
    """1 / (rho_t - rho_r)."""
    return 1 / (rho_t - rho_r)


def evenly(rho_t: np.ndarray, rho_r: np.ndarray) -> np.ndarray:
    """1."""
    return np.ones_like(rho_t)


Weight = Callable[[np.ndarray, np.ndarray], np.ndarray]
PAIRS: Mapping[str, tuple[Callable[..., tuple[np.ndarray, np.ndarray]], Weight]] = {
    "ect": (_ect, by_gap),
    "ict": (_ict, by_gap),
    "lcm": (_lcm, evenly),
}


def pseudo_huber(a: torch.Tensor, b: torch.Tensor, c: float) -> torch.Tensor:
    """sqrt(||a - b||^2 + c^2) - c of each image (B,); a, b (B, ...)."""
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c


def consistent(predict: Predict, x: torch.Tensor, t: np.ndarray, levels: Levels) -> torch.Tensor:
    """f(x_t, t) (B, ...) of a network that predicts v, at times (B,); x itself at END."""
    known = np.where(t < levels.schedule.t_min, levels.schedule.t_min, t)
    return clean(x, predict(x, torch.as_tensor(known)), *levels.at(t), levels.schedule.flow)


def check_scales(guidance: float | tuple[float, float]) -> None:
    """ConfigError unless it is a guidance scale, or a range of them."""
    scales = (guidance, guidance) if isinstance(guidance, (int, float)) else tuple(guidance)
    if len(scales) != 2 or scales[0] > scales[1]:
        raise ConfigError(f"guidance is {guidance}; allowed: a scale, or two, the smaller first.")


def drawn_scales(between: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    """Guidance scales (count,), uniform in a range."""
    low, high = between
    return low + (high - low) * torch.rand(count, generator=generator)


def consistency_loss(task: Consistency, lesson: Lesson, stage: int, generator: torch.Generator) -> torch.Tensor:
    """The module's loss of one batch in a stage of the curriculum, the mean over images."""
    levels, device = Levels(lesson.schedule), lesson.device
    x0, condition, absent = lesson.draw(generator)
    draw, weigh = PAIRS[task.pairs]
    t, r = draw(task, levels, stage, generator, len(x0))
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    scale, told = task.guidance, condition
    if task.drawn:
        scale = drawn_scales(task.guidance, len(x0), generator)
        told = {**condition, "timestep_cond": guidance_embedding(scale, width_of(lesson.student))}

    x, x_r = (renoised(x0, noise, levels.at(time)).to(device) for time in (t, r))
    own = predicting(lesson.student, device, told)
    with torch.no_grad():
        if task.teacher:
            teacher = guided(lesson.teacher, device, condition, absent, scale)
            x_r = solve(teacher, x, np.stack([t, r]), levels, order=1)
        wanted = consistent(own, x_r, r, levels)
    rho_t, rho_r = (np.where(time < levels.schedule.t_min, 0.0, levels.schedule.rho(time)) for time in (t, r))
    weight = torch.as_tensor(weigh(rho_t, rho_r)).to(x)
    c = HUBER * math.sqrt(x0[0].numel())
    return (weight * pseudo_huber(consistent(own, x, t, levels), wanted, c)).mean()
