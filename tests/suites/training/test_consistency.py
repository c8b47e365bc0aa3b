"""Consistency functions: what the exact one is told, the curricula of times, guidance that is built in or told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussians import SCHEDULES, Affine, Point, gaussian, normal
from torch import nn

from accel.errors import ConfigError
from accel.students.told import guidance_embedding
from accel.suites.training.consistency import (
    PAIRS,
    Consistency,
    consistency_loss,
    consistent,
    levels_of_stage,
    lognormal_shares,
    pseudo_huber,
    tightened,
)
from accel.suites.training.learner import TrainConfig
from accel.suites.training.loop import run
from accel.suites.training.noising import END, Levels, column
from accel.suites.training.task import Lesson, guided, predicting, settings
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import unet

CONFIG = TrainConfig(steps=8, batch=16, lr=0.05, warmup=0, weight_decay=0.0, ema_decay=0.5, dropout=False)
TASK = Consistency((999, 350))


@pytest.fixture(params=SCHEDULES)
def levels(request):
    return Levels(SCHEDULES[request.param])


def point(value: float, count: int = 16):
    def draw(generator):
        return torch.full((count, 1, 2, 2), value, dtype=torch.float64), {}, {}

    return draw


def lesson(levels, student: float, teacher: float = 0.3, data: float = 0.3) -> Lesson:
    return Lesson(Point(student, levels), Point(teacher, levels), levels.schedule, point(data), CONFIG)


def loss_of(task: Consistency, own: Lesson, stage: int = 0, seed: int = 0) -> torch.Tensor:
    return consistency_loss(task, own, stage, torch.Generator().manual_seed(seed))


# --- what is learned


def test_the_boundary_is_x_itself_whatever_the_network_says(levels):
    x = normal(3, 1, 2, 2)
    wild = Affine(5.0, -7.0, levels)
    predict = predicting(wild, "cpu", {})
    assert torch.equal(consistent(predict, x, np.full(3, END), levels), x)
    near = consistent(lambda x, t: torch.ones_like(x), x, np.full(3, levels.schedule.t_min), levels)
    assert (near - x).abs().max() < 0.03, "and goes there continuously"


def test_the_exact_function_of_normal_data_is_the_same_all_along_a_trajectory(levels):
    """f(x_t, t) = move(x_t; t -> 0), written as the velocity that the network would predict."""
    move = gaussian(0.3, 0.5, levels)[1]

    def exact(x, t):
        t = t.numpy()
        alpha, sigma = levels.at(t)
        ended = move(x, t, np.full(len(x), END))
        return ((x if levels.schedule.flow else column(alpha, x) * x) - ended) / column(sigma, x)

    t, r = np.array([999.0, 700, 350, 40]), np.array([800.0, 350, 20, END])
    x = normal(4, 1, 2, 2)
    at_t, at_r = consistent(exact, x, t, levels), consistent(exact, move(x, t, r), r, levels)
    assert (at_t - at_r).abs().max() < 1e-9
    assert pseudo_huber(at_t, at_r, 0.001).max() < 1e-9


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("pairs", PAIRS)
def test_the_network_of_one_point_has_no_loss_and_its_gradient_is_none(pairs, teacher, levels):
    """Its trajectories are straight, so that a DDIM step is exact."""
    own = lesson(levels, 0.3)
    loss = loss_of(Consistency((999,), pairs, teacher), own, stage=2)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-9
    assert abs(float(own.student.x0.grad)) < 1e-4


@pytest.mark.parametrize("pairs", PAIRS)
def test_with_a_teacher_and_without_are_one_where_data_are_one_point(pairs, levels):
    """The trajectory through x_t is then that of x_t's own x_0 and noise."""
    own = replace(lesson(levels, 0.8), student=Affine(0.1, 0.7, levels))
    tasks = [Consistency((999,), pairs, teacher) for teacher in (False, True)]
    trained, distilled = (float(loss_of(task, own).detach()) for task in tasks)
    assert trained > 0.01
    assert trained == pytest.approx(distilled, rel=1e-6)


def test_it_learns_where_trajectories_end(tmp_path):
    levels = Levels(SCHEDULES["betas"])
    own = lesson(levels, -0.6)
    own = replace(own, cfg=replace(CONFIG, steps=60, lr=0.05, decay="linear"))
    kept, turn = TASK.begin(own)
    run(kept, turn, own.cfg, tmp_path / "a.safetensors", task=settings(TASK))
    assert float(kept[""].averaged()["x0"]) == pytest.approx(0.3, abs=0.05)


def test_at_the_end_of_time_the_target_is_the_data(levels):
    """Small t in ECT's first stage: r = 0, the network is asked once, and told x_0."""
    seen = []

    class Asked(Point):
        def forward(self, x, t, class_labels=None, return_dict=False):
            seen.append((t, torch.is_grad_enabled()))
            return super().forward(x, t)

    own = replace(lesson(levels, 0.8), student=Asked(0.8, levels))
    task = replace(TASK, mean=-3.0, std=0.1)
    t, r = PAIRS["ect"][0](task, levels, 0, torch.Generator().manual_seed(0), 16)
    assert (r == END).all()
    rho = levels.schedule.rho(t)
    c = 0.00054 * 2
    wanted = (1 / rho * (math.sqrt(4 * 0.5**2 + c**2) - c)).mean()
    assert float(loss_of(task, own).detach()) == pytest.approx(wanted, rel=1e-6)
    assert [grad for _, grad in seen] == [False, True]


# --- which times


def test_ect_tightens():
    rho = np.geomspace(0.01, 157, 60)
    before = np.zeros(60)
    for stage in range(8):
        found = tightened(rho, stage, 2.0)
        assert (found >= before).all(), "nearer in each stage"
        assert (found < rho).all()
        assert (np.diff(found) >= 0).all()
        before = found
    assert (tightened(rho, 0, 2.0)[rho < 0.5] == 0).all(), "denoising"
    assert tightened(rho, 30, 2.0) == pytest.approx(rho, rel=1e-7)
    assert float(tightened(np.array([50.0]), 0, 2.0)[0]) == pytest.approx(25.0)


def test_ict_draws_neighbours_of_ever_more_levels():
    assert [levels_of_stage(TASK, stage) for stage in range(9)] == [10, 20, 40, 80, 160, 320, 640, 1280, 1280]
    levels = Levels(SCHEDULES["betas"])
    task = replace(TASK, pairs="ict", first=4, std=4.0)
    t, r = PAIRS["ict"][0](task, levels, 0, torch.Generator().manual_seed(0), 400)
    starts, ends = sorted({*t.round(6)}), sorted({*r.round(6)})
    assert len(starts) == 4
    assert ends == [END, *starts[:-1]]
    assert {(a, b) for a, b in zip(t.round(6), r.round(6), strict=True)} == {*zip(starts, ends, strict=True)}


def test_a_lognormals_shares_are_those_of_its_gaps():
    rho = np.array([0.1, 0.5, 1.0, 20.0])
    law = torch.distributions.LogNormal(torch.tensor(-1.1, dtype=torch.float64), 2.0)
    wanted = law.cdf(torch.from_numpy(rho)).diff().numpy()
    assert lognormal_shares(rho, -1.1, 2.0) == pytest.approx(wanted / wanted.sum())


def test_lcm_draws_even_timesteps_and_skips_as_many():
    draw, weigh = PAIRS["lcm"]
    t, r = draw(TASK, Levels(SCHEDULES["betas"]), 0, torch.Generator().manual_seed(0), 2000)
    assert {*t} == {20.0 * i - 1 for i in range(1, 51)}
    assert (r[t > 19] == t[t > 19] - 20).all()
    assert (r[t == 19] == END).all()
    assert (weigh(t, r) == 1).all()
    flow, _ = draw(TASK, Levels(SCHEDULES["flow"]), 0, torch.Generator().manual_seed(0), 2000)
    assert {*flow} == {20.0 * i for i in range(1, 51)}


def test_ect_draws_lognormal_levels(levels):
    t, r = PAIRS["ect"][0](replace(TASK, mean=0.2, std=0.8), levels, 9, torch.Generator().manual_seed(0), 4000)
    log_rho = np.log(levels.schedule.rho(t))
    assert (log_rho.mean(), log_rho.std()) == pytest.approx((0.2, 0.8), abs=0.05)
    assert (r < t).all()
    assert (r >= t * 0.9)[t > 100].all()


# --- guidance


def test_a_scale_is_told_as_pipelines_tell_it():
    from diffusers import LatentConsistencyModelPipeline

    scales = torch.tensor([1.0, 3.5, 8.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, embedding_dim=33)
    assert torch.equal(guidance_embedding(scales, 33), theirs)


class Labelled(nn.Module):
    """v = its label, and how often it was asked."""

    calls = 0

    def forward(self, x, t, class_labels, return_dict=False):
        self.calls += 1
        return (torch.ones_like(x) * class_labels.reshape(-1, 1, 1, 1),)


def test_guidance_is_that_of_the_pipelines_and_scale_one_asks_once():
    net, x, t = Labelled(), torch.zeros(2, 1, 1, 1), torch.tensor([5.0, 5.0])
    conditions = {"class_labels": torch.tensor([2.0, 3.0])}, {"class_labels": torch.tensor([1.0, 1.0])}
    assert guided(net, "cpu", *conditions, 3.0)(x, t).flatten().tolist() == [4.0, 7.0]
    assert net.calls == 2
    assert guided(net, "cpu", *conditions, torch.tensor([1.0, 2.0]))(x, t).flatten().tolist() == [2.0, 5.0]
    net.calls = 0
    assert guided(net, "cpu", *conditions, 1.0)(x, t).flatten().tolist() == [2.0, 3.0]
    assert net.calls == 1


class Told(nn.Module):
    """v = a share of x, and of what it is told of the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.share, self.told = nn.Parameter(torch.tensor(0.2)), []

    config = {"time_cond_proj_dim": 8}  # noqa: RUF012

    def forward(self, x, t, class_labels, timestep_cond=None, return_dict=False):
        self.told.append(timestep_cond)
        return (self.share * x,)


def labelled(generator):
    labels = torch.randint(0, 4, (16,), generator=generator)
    return torch.rand(16, 1, 2, 2, generator=generator), {"class_labels": labels}, {"class_labels": labels * 0}


def test_a_range_of_scales_is_drawn_for_each_image_and_told_to_the_student_alone():
    own = Lesson(Told(), Labelled(), SCHEDULES["betas"], labelled, CONFIG)
    built_in, drawn, wide = (Consistency((999,), "lcm", True, scale) for scale in (3.0, (3.0, 3.0), (2.0, 9.0)))
    one, other = loss_of(built_in, own), loss_of(drawn, own)
    assert own.student.told[0] is None
    assert torch.equal(own.student.told[-1], guidance_embedding(torch.full((16,), 3.0), 8))
    assert torch.isfinite(other)
    assert float(one.detach()) > 0
    loss_of(wide, own)
    assert len({tuple(row) for row in own.student.told[-1].tolist()}) == 16
    assert (drawn.drawn, built_in.drawn) == (True, False)


# --- the task


def test_the_bill_counts_what_is_asked(levels):
    assert TASK.spent(10) == {"samples": 10, "teacher_evaluations": 0, "student_evaluations": 40}
    assert replace(TASK, teacher=True, guidance=2.0).spent(10)["teacher_evaluations"] == 20
    net, own = Labelled(), lesson(levels, 0.2)
    own = replace(own, teacher=net, draw=labelled)
    loss_of(replace(TASK, teacher=True), own)
    assert net.calls == replace(TASK, teacher=True).spent(1)["teacher_evaluations"]


def test_other_pairs_are_not_resumed_and_it_trains_on_a_device_as_on_the_cpu(tmp_path):
    def draw(generator):
        labels = torch.randint(0, 10, (2,), generator=generator)
        return torch.rand(2, 1, 8, 8, generator=generator), {"class_labels": labels}, {"class_labels": labels * 0 + 10}

    def trained(path, task, device="cpu"):
        student = unet(1).requires_grad_(True)
        own = Lesson(student, unet(0).to(device), SCHEDULES["betas"], draw, replace(CONFIG, steps=1), device)
        kept, turn = task.begin(own)
        run(kept, turn, own.cfg, path, task=settings(task))
        return kept[""].averaged()

    task = replace(TASK, pairs="ict", teacher=True, guidance=2.0)
    here = trained(tmp_path / "a.safetensors", task)
    with Elsewhere():
        there = trained(tmp_path / "b.safetensors", task, DEVICE)
    assert all(torch.equal(value, there[name]) for name, value in here.items())
    with pytest.raises(ConfigError, match="made with other training settings"):
        trained(tmp_path / "a.safetensors", replace(task, pairs="lcm"))


def test_huber_is_the_distance_far_off_and_its_square_near_by():
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]], [[[3e-4, 4e-4]]]])
    far, near = pseudo_huber(a, b, 0.01).tolist()
    assert far == pytest.approx(5 - 0.01, rel=1e-4)
    assert near == pytest.approx(5e-4**2 / 0.02, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"times": (100, 200)}, "largest first"),
        ({"pairs": "ecm"}, "Did you mean"),
        ({"stages": 0}, "stages"),
        ({"base": 0.5}, "base"),
        ({"guidance": 3.0}, "which is a teacher's, and there is none"),
        ({"guidance": (5.0, 2.0), "teacher": True}, "the smaller first"),
    ],
)
def test_bad_tasks_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        replace(TASK, **wrong)


def test_a_teachers_x0_is_what_a_step_to_the_end_gives(levels):
    """LCM at its least timestep: the target is the teacher's own x_0."""
    own = lesson(levels, student=0.8, teacher=-0.1)
    task = Consistency((999,), "lcm", teacher=True, fine=1000, skip=1000)
    c = 0.00054 * 2
    assert float(loss_of(task, own).detach()) == pytest.approx(math.sqrt(4 * 0.9**2 + c**2) - c, rel=1e-6)
