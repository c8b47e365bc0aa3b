"""Distribution matching: its gradient on normal data, what each network learns, resume, and a critic that fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussians import SCHEDULES, Affine, Normal, gaussian, normal, towards
from safetensors.torch import load_file
from torch import nn

from accel.errors import ConfigError, DivergedError, IncompatibleError
from accel.suites.digits.models import SCHEDULER
from accel.suites.training.distribution import (
    Distribution,
    Watch,
    made,
    matching_gradient,
    surrogate,
)
from accel.suites.training.learner import TrainConfig
from accel.suites.training.loop import run
from accel.suites.training.noising import Levels, clean, column, draw_times, renoised, velocity
from accel.suites.training.task import STUDENT, Lesson, predicting, settings
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import unet

CONFIG = TrainConfig(steps=5, batch=4, lr=1e-3, warmup=0, weight_decay=0.0, ema_decay=0.9, seed=3, checkpoint_every=2,
                     dropout=False, beta1=0.0, decay="linear")  # fmt: skip
TASK = Distribution((999,), ratio=2)


@pytest.fixture(params=SCHEDULES)
def levels(request):
    return Levels(SCHEDULES[request.param])


def draw(generator: torch.Generator):
    labels = torch.randint(0, 10, (4,), generator=generator)
    x0 = torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1
    return x0, {"class_labels": labels}, {"class_labels": torch.full_like(labels, 10)}


def lesson(cfg: TrainConfig = CONFIG, device: str = "cpu", student: int = 1) -> Lesson:
    teacher = unet(0).to(device)
    return Lesson(unet(student).requires_grad_(True), teacher, SCHEDULES["betas"], draw, cfg, device)


def trained(path, task: Distribution = TASK, own: Lesson | None = None, on_step=lambda step, loss: None):
    own = own or lesson()
    kept, turn = task.begin(own)
    run(kept, turn, own.cfg, path, on_step, settings(task))
    return kept


# --- formulas


def test_the_difference_of_predictions_is_that_of_scores(levels):
    """x0_fake - x0_real = (sigma^2 / alpha) (s_fake - s_real), and nothing where both are one distribution."""
    t = np.array([900.0, 500, 100])
    level = alpha, sigma = levels.at(t)
    x = normal(3, 1, 2, 2)
    laws = (0.3, 0.5), (-0.2, 0.8)
    found = [clean(x, gaussian(*law, levels)[0](x, torch.as_tensor(t)), *level, levels.schedule.flow) for law in laws]
    scores = [-(x - column(alpha * m, x)) / column(alpha**2 * s**2 + sigma**2, x) for m, s in laws]
    assert (found[0] - found[1] - column(sigma**2 / alpha, x) * (scores[0] - scores[1])).abs().max() < 1e-12
    assert matching_gradient(x, found[0], found[0]).abs().max() == 0


def test_on_normal_data_the_gradient_is_that_of_the_divergence(levels):
    """E (s_fake - s_real) dx_t / dmean = d KL(q_t || p_t) / d mean = alpha^2 (mean_q - mean_p) / Var p_t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    (mean_q, std_q), (mean_p, std_p) = (0.4, 0.6), (-0.1, 0.9)
    for time in (850.0, 300.0, 40.0):
        t = np.full(len(nodes), time)
        level = alpha, sigma = levels.at(t)
        spread = np.sqrt(alpha**2 * std_q**2 + sigma**2)
        x_t = torch.as_tensor(alpha * mean_q + spread * nodes).reshape(-1, 1)
        fake, real = (
            clean(x_t, gaussian(m, s, levels)[0](x_t, torch.as_tensor(t)), *level, levels.schedule.flow)
            for m, s in ((mean_q, std_q), (mean_p, std_p))
        )
        scores = (fake - real)[:, 0].numpy() * alpha / sigma**2
        found = (weights * scores * alpha).sum() / weights.sum()
        variance = alpha[0] ** 2 * std_p**2 + sigma[0] ** 2
        assert found == pytest.approx(alpha[0] ** 2 * (mean_q - mean_p) / variance, rel=1e-9)


def test_the_gradient_is_divided_by_each_images_own_distance():
    x, real = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[-4.0, 4.0]]]])
    fake = real + torch.tensor([1.0, 8.0]).reshape(2, 1, 1, 1)
    assert matching_gradient(x, fake, real).flatten(1).tolist() == [[0.5, 0.5], [2.0, 2.0]]


def test_a_surrogate_has_the_gradient_that_it_is_given():
    x, g = normal(3, 2).requires_grad_(True), normal(3, 2, seed=1)
    surrogate(x, g).backward()
    assert (x.grad * x.numel() - g).abs().max() < 1e-15


def test_velocities_are_those_that_give_x0_back_and_noise_keeps_the_marginal(levels):
    x0, noise = 0.3 * normal(20000, 1), normal(20000, 1, seed=1)
    level = alpha, sigma = levels.at(draw_times(levels, (0.02, 0.98), len(x0), torch.Generator().manual_seed(0)))
    x_t, flow = renoised(x0, noise, level), levels.schedule.flow
    assert (clean(x_t, velocity(x0, noise, level, flow), *level, flow) - x0).abs().max() < 1e-12
    assert float(x_t.var()) == pytest.approx(float((alpha**2 * 0.09 + sigma**2).mean()), rel=0.05)


def test_times_are_those_between_two_shares():
    flow, betas = (Levels(SCHEDULES[name]) for name in ("flow", "betas"))
    generator = torch.Generator().manual_seed(0)
    assert {*draw_times(betas, (0.0, 0.002), 200, generator)} == {0.0, 1.0, 2.0}
    assert {*draw_times(flow, (0.0, 0.002), 200, generator)} == {1.0, 2.0, 3.0}
    assert draw_times(betas, (0.02, 0.98), 5000, generator).max() == 979


def test_what_is_made_in_several_steps_has_new_noise_between_them(levels):
    """A network of one point makes it whatever it is given; its inputs are noised anew to each time."""
    seen, times, noises = [], (900, 500, 200), [normal(2000, 1, seed=i) for i in range(3)]

    def predict(x, t):
        seen.append((float(x.std()), t.tolist()))
        return towards(0.3, levels)(x, t)

    assert (made(predict, noises, times, levels) - 0.3).abs().max() < 1e-9
    for (spread, t), time in list(zip(seen, times, strict=True))[1:]:
        assert {*t} == {time}
        assert spread == pytest.approx(float(levels.at(np.array([time]))[1][0]), rel=0.05)


def test_what_is_made_is_what_lcms_scheduler_makes_of_the_same_noise():
    """A student is trained on what it is sampled by."""
    from diffusers import LCMScheduler

    net, times = unet(2), (999, 600, 200)
    scheduler = LCMScheduler(**SCHEDULER | {"original_inference_steps": 50})
    scheduler.set_timesteps(timesteps=list(times))
    generator = torch.Generator().manual_seed(0)
    labels = {"class_labels": torch.tensor([1, 2])}
    first = x = torch.randn(2, 1, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        v = net(x, t, **labels, return_dict=False)[0]
        x, found = scheduler.step(v, t, x, generator, return_dict=False)
    generator.manual_seed(0)
    noises = [torch.randn(2, 1, 8, 8, generator=generator) for _ in times]
    assert torch.equal(noises[0], first)
    own = made(predicting(net, "cpu", labels), noises, times, Levels(SCHEDULES["betas"]))
    assert (own - found).abs().max() < 2e-3


# --- training


def test_a_student_becomes_its_teachers_distribution(tmp_path):
    """Noise through a line of wrong mean and width, beside the exact network of N(0.3, 0.4^2): both are found, and the
    critic ends as the network of what the student makes."""
    levels = Levels(SCHEDULES["betas"])

    def numbers(generator):
        return torch.zeros(128, 1, dtype=torch.float64), {}, {}

    cfg = replace(CONFIG, steps=170, lr=0.03, batch=128, checkpoint_every=1000)
    own = Lesson(Affine(-0.5, 1.0, levels), Normal(0.3, 0.4, levels), levels.schedule, numbers, cfg)
    kept = trained(tmp_path / "a.safetensors", Distribution((999,), ratio=4, warm=10, critic_lr=0.05), own)
    student, critic = kept[STUDENT].averaged(), kept["critic"].averaged()
    assert float(student["mean"]) == pytest.approx(0.3, abs=0.06)
    assert abs(float(student["std"])) == pytest.approx(0.4, abs=0.06)
    assert float(critic["mean"]) == pytest.approx(float(student["mean"]), abs=0.06)


def test_a_student_whose_critic_is_its_teacher_learns_nothing(tmp_path):
    """q = p: no gradient. So is a step in which the critic learns alone."""
    before, two = unet(1).state_dict(), lesson(replace(CONFIG, steps=2))
    kept = trained(tmp_path / "a.safetensors", replace(TASK, critic_lr=0.0), two)
    assert all(torch.equal(p, before[name]) for name, p in kept[STUDENT].params.items())
    kept = trained(tmp_path / "b.safetensors", replace(TASK, warm=2), two)
    assert all(torch.equal(p, before[name]) for name, p in kept[STUDENT].params.items())
    teacher = unet(0).state_dict()
    assert not all(torch.equal(p, teacher[name]) for name, p in kept["critic"].params.items())


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "task", [replace(TASK, warm=3), Distribution((999, 350), ratio=1, adversarial=0.003, divergence="jensen_shannon")]
)
def test_killed_and_resumed_equals_uninterrupted(task, tmp_path):
    """Student, critic, head and the watch over the critic come back from one file, also before a first step."""

    def kill(step: int, loss: float) -> None:
        if step == 3:
            raise Killed

    kept = trained(tmp_path / "whole.safetensors", task)
    with pytest.raises(Killed):
        trained(tmp_path / "parts.safetensors", task, on_step=kill)
    trained(tmp_path / "parts.safetensors", task, lesson(student=5))
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert {*whole} == {*parts}
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert {key.partition(":")[0] for key in whole} == {*kept}
    assert ("head" in kept) == task.judged


@pytest.mark.parametrize("changes", [{"ratio": 3}, {"critic_lr": 1e-4}, {"times": (900,)}, {"guidance": 2.0}])
def test_other_settings_of_the_task_are_not_resumed(changes, tmp_path):
    path, task, own = tmp_path / "a.safetensors", replace(TASK, **changes), lesson(replace(CONFIG, steps=1))
    trained(path, own=own)
    with pytest.raises(ConfigError, match=r"made with other training settings"):
        trained(path, task, own)


def test_a_critic_that_diverges_ends_the_training_and_leaves_the_last_good_checkpoint(tmp_path):
    path, own = tmp_path / "a.safetensors", lesson()
    trained(path, own=lesson(replace(CONFIG, steps=2)))
    good = load_file(path)

    def spoil(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                for p in kept["critic"].params.values():
                    p.mul_(40)

    kept, turn = TASK.begin(own)
    with pytest.raises(
        DivergedError, match=r"step 4: the critic diverged.*last good checkpoint, of step 2, is kept in"
    ):
        run(kept, turn, own.cfg, tmp_path / "b.safetensors", spoil, settings(TASK))
    found = load_file(tmp_path / "b.safetensors")
    same = [torch.equal(value, found[key]) for key, value in good.items() if key.startswith("critic:net.")]
    assert same
    assert all(same), "the second step's, from before anything went wrong"
    with pytest.raises(DivergedError, match="none is kept yet"):
        trained(tmp_path / "c.safetensors", replace(TASK, critic_lr=1e4))


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    own = lesson()
    kept, turn = TASK.begin(own)

    def broken(step: int, generator: torch.Generator) -> float:
        if step == 3:
            next(iter(kept[STUDENT].params.values())).data.fill_(float("nan"))
            return 0.0
        return turn(step, generator)

    with pytest.raises(DivergedError, match="weights of the student are no numbers any more; the last good"):
        run(kept, broken, own.cfg, tmp_path / "a.safetensors")
    assert all(value.isfinite().all() for value in load_file(tmp_path / "a.safetensors").values())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_score_is_that_of_the_critics_moving_average(decay, tmp_path):
    """Now and after a resume; without one it is the critic's own."""
    path, task = tmp_path / "a.safetensors", replace(TASK, critic_ema=decay)
    for steps in (2, 2):
        kept, turn = task.begin(lesson(replace(CONFIG, steps=steps)))
        run(kept, turn, replace(CONFIG, steps=steps), path, task=settings(task))
        critic = kept["critic"]
        assert all(torch.equal(p, critic.ema[name]) for name, p in turn.score.named_parameters())
        assert all(torch.equal(p, critic.ema[name]) for name, p in critic.params.items()) == (decay == 0)
        assert not any(p.requires_grad for p in turn.score.parameters())


def test_the_watch_says_when_a_critic_is_worse_than_none():
    """What it has seen goes with the checkpoint, so that a resumed training stops where it would have."""
    watch = Watch()
    for _ in range(200):
        watch(0.9)
    again = Watch()
    assert again.load(watch.tensors()) is None
    assert float(again.error) == pytest.approx(0.9)
    with pytest.raises(DivergedError, match=r"1\.01 times that of predicting nothing"):
        again(2.0)
    with pytest.raises(DivergedError):
        Watch()(float("nan"))
    assert Watch().load({}) == "error"


class Counted(nn.Module):
    """Its rows so far: forward, and those of which gradients are asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows, self.backward = net, 0, 0

    def forward(self, x, t, **rest):
        self.rows += len(x)
        self.backward += len(x) * (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))
        return self.net(x, t, **rest)

    @property
    def mid_block(self):
        return self.net.mid_block

    @property
    def config(self):
        return self.net.config


@pytest.mark.parametrize("changes", [{}, {"guidance": 2.0}, {"divergence": "forward_kl"}, {"ratio": 3, "warm": 1}])
def test_the_bill_is_what_was_evaluated(changes, tmp_path):
    task, own = replace(TASK, **changes), lesson(replace(CONFIG, steps=2))
    own = replace(own, student=Counted(own.student), teacher=Counted(own.teacher))
    kept, turn = task.begin(own)
    run(kept, turn, own.cfg, tmp_path / "a.safetensors")
    critic, bill = kept["critic"].net, task.spent(2)
    assert bill["student_evaluations"] * 4 == own.student.rows + 2 * own.student.backward
    assert bill["critic_evaluations"] * 4 == critic.rows + 2 * critic.backward + turn.score.rows
    assert bill["teacher_evaluations"] * 4 == own.teacher.rows


def test_it_trains_on_a_device_as_on_the_cpu(tmp_path):
    task = replace(TASK, divergence="jeffreys", adversarial=0.01, guidance=1.5)
    here = trained(tmp_path / "a.safetensors", task, lesson(replace(CONFIG, steps=1)))
    with Elsewhere():
        there = trained(tmp_path / "b.safetensors", task, lesson(replace(CONFIG, steps=1), DEVICE))
        found = there[STUDENT].averaged()
    assert all(torch.equal(value, found[name]) for name, value in here[STUDENT].averaged().items())


def test_the_students_loss_leaves_other_networks_alone(tmp_path):
    own = lesson(replace(CONFIG, steps=1))
    task = replace(TASK, adversarial=1.0, critic_lr=0.0, head_lr=0.0)
    teacher, student = unet(0).state_dict(), unet(1).state_dict()
    kept = trained(tmp_path / "a.safetensors", task, own)
    assert all(torch.equal(value, teacher[name]) for name, value in own.teacher.state_dict().items())
    assert all(p.grad is None for name in ("critic", "head") for p in kept[name].params.values())
    assert all(p.grad is None for p in own.teacher.parameters())
    assert not all(torch.equal(p, student[name]) for name, p in kept[STUDENT].params.items()), "by the head"


def test_a_teacher_without_a_middle_block_has_no_discriminator():
    own = replace(lesson(), teacher=nn.Linear(2, 2))
    with pytest.raises(IncompatibleError, match=r"middle block of the teacher, which Linear lacks.*adversarial=0"):
        replace(TASK, adversarial=0.1).begin(own)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"times": ()}, "one or more, largest first"),
        ({"ratio": 0}, "ratio"),
        ({"warm": -1}, "warm"),
        ({"critic_lr": -1.0}, "critic_lr"),
        ({"divergence": "jensen"}, "Did you mean jensen_shannon"),
        ({"between": (0.9, 0.1)}, "the smaller first"),
    ],
)
def test_bad_tasks_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        replace(TASK, **wrong)
