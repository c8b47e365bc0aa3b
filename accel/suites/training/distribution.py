"""Distribution matching: a student whose images are distributed as the teacher's, wherever its trajectories lead.

DMD2 (Yin et al. 2024, arXiv:2405.14867). The student makes x = x0_theta(x_T, T) of pure noise. Both that and the
teacher's images, noised to a random time t, have a density, q_t and p_t, and the gradient of KL(q_t || p_t) in x is

    s_fake(x_t, t) - s_real(x_t, t) = (alpha / sigma^2) (x0_fake(x_t, t) - x0_real(x_t, t)),   x_t = alpha x + sigma eps

with the teacher for the real score and for the fake one the *critic*: the teacher's copy, trained all the while to
denoise the student's images. As in the paper the difference is divided by mean | x - x0_real |, of each image, in the
place of a weight of t; options weigh it by an f-divergence, and add a discriminator's loss (see `discriminator`). The
critic is updated several times for each step of the student (the paper's two time scales), so that its score is that
of the student's images as they are now.

A student of several steps adds new noise between them, x_s = alpha_s x + sigma_s eps, and is trained at a random one of
its times on what it itself has made up to there (the paper's backward simulation).

All networks predict v (or a flow's velocity), and the losses are written in x_0: differences of v carry the same
information, but at a weight that is alpha of the time. Deviations from the paper: v-MSE for the critic, which is its
weight SNR + 1; the critic begins by some steps alone, and its moving average may stand for it (of small batches the
critic itself is so noisy that its score drifts in brightness from step to step); Adam with beta_1 = 0; head on the
teacher's features, not on the critic's; the student may begin as a student that one step was distilled into.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from accel.errors import ConfigError, DivergedError, check_float, check_int, unknown
from accel.suites.training.discriminator import (
    DIVERGENCES,
    divergence_weights,
    head_for,
    passing_loss,
    seeing,
    telling_loss,
)
from accel.suites.training.learner import Kept, Learner, still
from accel.suites.training.noising import Levels, clean, draw_times, renoised, velocity
from accel.suites.training.segments import check_times
from accel.suites.training.task import (
    BACKWARD,
    CONDITIONS,
    IMAGES,
    STUDENT,
    Condition,
    Lesson,
    Predict,
    Turn,
    guided,
    predicting,
)


@dataclass(frozen=True)
class Distribution:
    """The task: `times`, the student's grid, largest first; `ratio`: updates of the critic for one of the student;
    `warm`: steps at the beginning in which the critic learns alone; `critic_lr`, `head_lr`: learning rates, which stay;
    `critic_ema`: decay of the critic's moving average, whose score is used (0: the critic's own, as in the paper);
    `between`: the least and the greatest t at which scores are compared, as shares of the schedule; `guidance`: scale
    of the teacher's; `divergence`: which (`DIVERGENCES`); `adversarial`: weight of the discriminator's loss (the
    paper's: 0.003). Any divergence but reverse_kl needs the discriminator, too."""

    times: Sequence[float]
    ratio: int = 5
    warm: int = 0
    critic_lr: float = 2e-4
    critic_ema: float = 0.0
    between: tuple[float, float] = (0.02, 0.98)
    guidance: float = 1.0
    divergence: str = "reverse_kl"
    adversarial: float = 0.0
    head_lr: float = 1e-3

    kind: ClassVar[str] = "distribution"

    def __post_init__(self) -> None:
        check_times(self.times)
        check_int("ratio", self.ratio, 1)
        check_int("warm", self.warm, 0)
        check_float("critic_lr", self.critic_lr, 0.0)
        check_float("critic_ema", self.critic_ema, 0.0, 1.0)
        check_float("adversarial", self.adversarial, 0.0)
        if self.divergence not in DIVERGENCES:
            raise unknown("divergence", self.divergence, DIVERGENCES)
        low, high = self.between
        if not 0 <= low < high <= 1:
            raise ConfigError(f"between is {self.between}; allowed: two shares of the schedule, the smaller first.")

    @property
    def judged(self) -> bool:
        """Whether there is a discriminator."""
        return self.adversarial > 0 or self.divergence != "reverse_kl"

    @property
    def data(self) -> str:
        return IMAGES if self.judged else CONDITIONS

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        matching = Matching(self, lesson)
        return matching.kept, matching

    def spent(self, steps: int) -> dict[str, float]:
        own, critic = max(0, steps - self.warm), steps * self.ratio  # updates of the student and of the critic
        earlier = (len(self.times) - 1) / 2  # steps that are taken before the one that is trained, on the average
        teacher = own * (1 if self.guidance == 1 else 2)
        if self.judged:  # features of real and made images; a backward pass to the image, not to weights
            teacher += 2 * critic + own * (self.adversarial > 0)
        return {"samples": own + critic, "teacher_evaluations": teacher,
                "student_evaluations": critic * (1 + earlier) + own * (1 + BACKWARD + earlier),
                "critic_evaluations": critic * (1 + BACKWARD) + own}  # fmt: skip


def matching_gradient(x: torch.Tensor, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(x0_fake - x0_real) / mean | x - x0_real |, the mean over each image (as in DMD, Yin et al. 2023,
    arXiv:2311.18828): what moves images x (B, ...) towards the teacher's distribution when it is subtracted."""
    scale = (x - real).abs().flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 1))
    return (fake - real) / scale.clamp(min=1e-6)


def surrogate(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient in x is `gradient` divided by the number of its elements: mean ½ (x - sg(x - g))^2."""
    return 0.5 * nn.functional.mse_loss(x, (x - gradient).detach())


def made(predict: Predict, noises: Sequence[torch.Tensor], times: Sequence[float], levels: Levels) -> torch.Tensor:
    """x_0 that a student makes at the last of `times` from as many `noises` (B, ...): the first is pure noise, the
    others are added between its steps."""
    x, flow = noises[0], levels.schedule.flow
    x0 = x
    for place, time in enumerate(times):
        t = np.full(len(x), float(time))
        if place:
            x = renoised(x0, noises[place], levels.at(t))
        x0 = clean(x, predict(x, torch.as_tensor(t)), *levels.at(t), flow)
    return x0


class Watch:
    """The critic's error relative to that of a network that predicts nothing, ||v - v_psi||^2 / ||v||^2, as a moving
    average. Above 1 its score is worse than none, and the student would follow it anywhere: DivergedError."""

    def __init__(self, limit: float = 1.0, decay: float = 0.9) -> None:
        self.limit, self.decay, self.error = limit, decay, torch.zeros((), dtype=torch.float64)

    def __call__(self, error: float) -> None:
        self.error = self.decay * self.error + (1 - self.decay) * error
        if not self.error <= self.limit:
            raise DivergedError(
                f"the critic diverged: its error is {float(self.error):.3g} times that of predicting nothing; "
                f"allowed: at most {self.limit:g}"
            )

    def finite(self) -> bool:
        return bool(self.error.isfinite())

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"error": self.error}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        self.error = tensors.get("error", self.error)
        return None if "error" in tensors else "error"


class Matching:
    """One step of the training: some updates of the critic (and the discriminator's head), then one of the student."""

    def __init__(self, task: Distribution, lesson: Lesson) -> None:
        self.task, self.lesson, self.levels, self.watch = task, lesson, Levels(lesson.schedule), Watch()
        own = replace(lesson.cfg, steps=max(1, lesson.cfg.steps - task.warm))
        others = replace(own, decay="constant", warmup=0, ema_decay=task.critic_ema)
        critic = copy.deepcopy(lesson.teacher).requires_grad_(True)
        self.student = Learner(lesson.student, own, lesson.device)
        self.critic = Learner(critic, replace(others, lr=task.critic_lr), lesson.device)
        self.score = self.critic.averaging()
        self.head: Learner | None = None
        self.kept: dict[str, Kept] = {STUDENT: self.student, "critic": self.critic, "watch": self.watch}
        if task.judged:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(lesson.cfg.seed)
                head = head_for(lesson.teacher)
            self.head = Learner(head, replace(others, lr=task.head_lr), lesson.device)
            self.kept["head"] = self.head

    def __call__(self, step: int, generator: torch.Generator) -> float:
        """The critic's mean squared error: the student's loss says nothing, its gradient alone counts."""
        errors = [self._judge(step * self.task.ratio + i, generator) for i in range(self.task.ratio)]
        if step >= self.task.warm:
            self._improve(step - self.task.warm, generator)
        return float(np.mean(errors))

    def _make(self, shape: torch.Size, condition: Condition, generator: torch.Generator, train: bool) -> torch.Tensor:
        """Images of the student (B, ...), made up to a random one of its times; gradients through the last step."""
        device, times = self.lesson.device, self.task.times
        place = int(torch.randint(0, len(times), (), generator=generator))
        noises = [torch.randn(shape, generator=generator).to(device) for _ in range(place + 1)]
        predict = predicting(self.student.net, device, condition)

        def by_step(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(train and float(t[0]) == times[place]):
                return predict(x, t)

        with torch.set_grad_enabled(train):
            return made(by_step, noises, times[: place + 1], self.levels)

    def _noised(self, x: torch.Tensor, between: tuple[float, float], generator: torch.Generator):
        t = draw_times(self.levels, between, len(x), generator)
        noise, level = torch.randn(x.shape, generator=generator).to(x), self.levels.at(t)
        return torch.as_tensor(t), noise, level

    def _judge(self, update: int, generator: torch.Generator) -> float:
        x0, condition, _ = self.lesson.draw(generator)
        x = self._make(x0.shape, condition, generator, train=False)
        t, noise, level = self._noised(x, (0.0, 1.0), generator)
        x_t, v = renoised(x, noise, level), velocity(x, noise, level, self.levels.schedule.flow)
        found = predicting(self.critic.net, self.lesson.device, condition)(x_t, t)
        loss = nn.functional.mse_loss(found, v)
        self.watch(float(loss.detach()) / float(v.square().mean()))
        if self.head is not None:
            self._tell(x0.to(x), x, condition, update, generator)
        return self.critic.descend(loss, update)

    def _tell(self, real, x, condition: Condition, update: int, generator: torch.Generator) -> None:
        t, noise, level = self._noised(x, self.task.between, generator)
        other = torch.randn(x.shape, generator=generator).to(x)
        with torch.no_grad():
            pairs = [renoised(real, other, level), renoised(x, noise, level)]
            features = [seeing(self.lesson.teacher, x_t, t, condition)[1] for x_t in pairs]
        self.head.descend(telling_loss(*(self.head.net(each) for each in features)), update)

    def _improve(self, update: int, generator: torch.Generator) -> float:
        task, teacher, device = self.task, self.lesson.teacher, self.lesson.device
        x0, condition, absent = self.lesson.draw(generator)
        x = self._make(x0.shape, condition, generator, train=True)
        t, noise, level = self._noised(x.detach(), task.between, generator)
        x_t, flow = renoised(x, noise, level), self.levels.schedule.flow
        loss, weights = torch.zeros((), device=device), None
        if self.head is None:
            with torch.no_grad():
                v = guided(teacher, device, condition, absent, task.guidance)(x_t, t)
        else:
            with torch.set_grad_enabled(task.adversarial > 0), still(self.head.net) as head:
                cond, features = seeing(teacher, x_t, t, condition)
                logits = head(features)
            v, weights = cond.detach(), divergence_weights(logits, task.divergence)
            loss = task.adversarial * passing_loss(logits)
            if task.guidance != 1:
                with torch.no_grad():
                    u = predicting(teacher, device, absent)(x_t, t)
                v = u + task.guidance * (v - u)
        with torch.no_grad():
            real = clean(x_t, v, *level, flow)
            fake = clean(x_t, predicting(self.score, device, condition)(x_t, t), *level, flow)
            gradient = matching_gradient(x, fake, real)
            if weights is not None:
                gradient = gradient * weights.reshape(-1, *[1] * (x.dim() - 1))
        return self.student.descend(loss + surrogate(x, gradient), update)
