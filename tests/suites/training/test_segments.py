"""Distillation of segments: closed forms of a target, the draws, and what a perfect network is told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussians import SCHEDULES, gaussian, normal, towards
from torch import nn

from accel.errors import ConfigError
from accel.suites.training.learner import TrainConfig
from accel.suites.training.noising import END, Levels, clean, column, ddim
from accel.suites.training.segments import DRAWS, Segments, endpoint, segment_loss, solve, target, told_of
from accel.suites.training.task import Lesson

TIMES = (999, 550, 350, 170)


@pytest.fixture(params=SCHEDULES)
def levels(request):
    return Levels(SCHEDULES[request.param])


def test_the_endpoint_of_a_ddim_step_is_what_the_step_was_made_with(levels):
    """The target of a teacher's single DDIM step is the teacher's own x_0; at sigma = 0 it is x_s."""
    x, x0 = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1)
    now, then = levels.at(np.array([900.0, 600, 400, 170])), levels.at(np.array([600.0, 200, 20, END]))
    x_s = ddim(x, x0, now, then)
    assert (endpoint(x, x_s, now, then) - x0).abs().max() < 1e-12
    assert torch.equal(x_s[3], x0[3]), "a step to sigma = 0 ends at x_0"
    flow = levels.schedule.flow
    v = ((x if flow else column(now[0], x) * x) - x0) / column(now[1], x)
    assert (clean(x, v, *now, flow) - x0).abs().max() < 1e-12


@pytest.mark.parametrize("draw", DRAWS)
def test_on_straight_trajectories_a_perfect_network_is_told_its_own_velocity(draw, levels):
    """Two parts of a segment are the whole of it: for data of one point every (t, u, s) gives v itself, whatever the
    solver."""
    task = Segments(TIMES, draw, calls=3, order=2)
    t, u, s = DRAWS[draw](task, levels, torch.Generator().manual_seed(0), 64)
    predict, x = towards(0.3, levels), normal(64, 1, 2, 2)
    told = target(x, t, u, s, predict, predict, levels, task)
    assert (told - predict(x, torch.as_tensor(t))).abs().max() < 1e-9


@pytest.mark.parametrize(("order", "gain"), [(1, 1.7), (2, 3.2)])
def test_the_solver_has_its_order(order, gain, levels):
    predict, move = gaussian(0.3, 0.5, levels)
    t, u = np.array([800.0, 550, 350]), np.array([550.0, 350, 100])
    x = normal(3, 1, 4, 4)
    exact = move(x, t, u)
    wrong = [(solve(predict, x, levels.between(t, u, n), levels, order) - exact).abs().max() for n in (16, 32)]
    assert wrong[0] / wrong[1] > gain
    one = solve(predict, x, levels.between(t, u, 1), levels, 2)
    assert torch.equal(one, solve(predict, x, levels.between(t, u, 1), levels, 1)), "one evaluation is DDIM"


def test_draws_stay_in_their_segment(levels):
    edges = np.array([*TIMES, END])
    for name, draw in DRAWS.items():
        t, u, s = draw(Segments(TIMES, name, fine=4), levels, torch.Generator().manual_seed(1), 512)
        place = np.searchsorted(-edges, -t, side="right") - 1
        top, bottom = edges[place], edges[place + 1]
        assert (top + 1e-9 >= t).all(), name
        assert (t > u).all(), name
        assert (u >= s).all(), name
        assert (s >= bottom).all(), name
        assert (s == bottom).all() == (name != "ends")
        assert (t == top).all() == (name == "edges")
        assert {*place} == {0, 1, 2, 3}


class Net(nn.Module):
    """v = a x + b, and the times and labels that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.1))
        self.asked: list[tuple] = []

    def forward(self, x, t, class_labels, return_dict):
        self.asked.append((t.tolist(), class_labels.tolist()))
        return (self.a * x + self.b,)


def lesson_of(net, teacher, x0, steps: int = 1) -> Lesson:
    """Its batches are x0, labelled 0, 1, ...; label -1 is that of nothing."""
    labels = torch.arange(len(x0))
    draw = lambda generator: (x0, {"class_labels": labels}, {"class_labels": -torch.ones(len(x0))})  # noqa: E731
    cfg = TrainConfig(steps=steps, batch=len(x0), lr=0.1, warmup=0, weight_decay=0.0, dropout=False, decay="constant")
    return Lesson(net, teacher, SCHEDULES["betas"], draw, cfg)


def loss_of(task, net, teacher, x0, seed: int = 0):
    return segment_loss(task, lesson_of(net, teacher, x0), torch.Generator().manual_seed(seed))


def test_a_student_that_is_its_teacher_on_the_same_grid_learns_nothing():
    """One DDIM step of the teacher a segment: loss and gradient are 0."""
    net = Net()
    loss = loss_of(Segments(TIMES, calls=1), net, net, torch.rand(8, 1, 2, 2) * 2 - 1)
    loss.backward()
    assert loss < 1e-6
    assert max(p.grad.abs() for p in net.parameters()) < 1e-3


def test_a_teacher_that_is_a_student_is_asked_at_its_own_times_alone():
    teacher, net = Net(), Net()
    task = Segments((999, 350), order=1, through=TIMES)
    loss_of(task, net, teacher, torch.zeros(16, 1, 2, 2))
    first, second = (np.array(times) for times, _ in teacher.asked)
    assert {*first} == {999.0, 350.0}
    assert {*second} == {550.0, 170.0}
    assert ((first == 999) == (second == 550)).all(), "each row takes the two steps of its own segment"
    assert all(labels == list(range(16)) for _, labels in teacher.asked)
    assert net.asked[0][0] == first.tolist()


class Labelled(nn.Module):
    """v = label gain x."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.rows = nn.Parameter(torch.tensor(gain)), []

    def forward(self, x, t, class_labels, return_dict):
        self.rows.append(len(x))
        return (class_labels.reshape(-1, 1, 1, 1) * self.gain * x,)


def test_guidance_of_the_teacher_is_what_the_student_learns():
    """One DDIM step of the guided teacher a segment: the target is u + s (c - u) at x_t, u of the label -1."""
    x0 = torch.rand(5, 1, 2, 2) * 2 - 1
    lesson, task = lesson_of(Labelled(), Labelled(), x0), Segments(TIMES, calls=1, guidance=3.0)
    told = told_of(task, lesson, torch.Generator().manual_seed(0))
    want = (-1 + 3 * (torch.arange(5.0) + 1)).reshape(-1, 1, 1, 1) * told.x
    assert (told.wanted - want).abs().max() < 1e-4
    assert lesson.teacher.rows == [5, 5]
    assert task.spent(10)["teacher_evaluations"] == 20


def test_own_steps_lead_where_the_sampler_does_and_no_image_is_seen():
    """x_t is what DDIM makes of the same noise with the student, down to the time of each row."""
    student, x0 = Labelled(0.01), torch.full((32, 1, 2, 2), float("nan"))
    lesson, task = lesson_of(student, Labelled(0.5), x0), Segments(TIMES, calls=1, start="own")
    told = told_of(task, lesson, torch.Generator().manual_seed(3))
    generator, levels = torch.Generator().manual_seed(3), Levels(SCHEDULES["betas"])
    t, _, _ = DRAWS["edges"](task, levels, generator, 32)
    x, labels = torch.randn(x0.shape, generator=generator), torch.arange(32.0).reshape(-1, 1, 1, 1)
    assert {*t} == {*TIMES}
    assert told.t.tolist() == t.tolist()
    for row in range(32):
        own = x[row : row + 1]
        for now, then in pairwise([time for time in TIMES if time >= t[row]]):
            here, there = levels.at(np.array([now])), levels.at(np.array([then]))
            own = ddim(own, clean(own, labels[row] * 0.01 * own, *here, False), here, there)
        assert (told.x[row] - own[0]).abs().max() < 1e-5 * own.abs().max()
    assert sum(student.rows) == sum(int((t < time).sum()) for time in TIMES[:-1]), "rows that are there are not asked"
    assert (task.data, Segments(TIMES).data) == ("labels", "training images")
    assert task.spent(2)["student_evaluations"] == 2 * (3 + 1.5)


def test_one_answer_of_the_teacher_serves_several_updates():
    """Every row is in one part a pass; the teacher is asked once a step, the student once an update."""
    x0 = torch.rand(6, 1, 2, 2) * 2 - 1
    student, teacher = Labelled(3.0), Labelled(0.1)
    lesson = lesson_of(student, teacher, x0, steps=2)
    task = Segments((999,), calls=1, parts=3, passes=2)
    kept, turn = task.begin(lesson)
    before = student.gain.item()
    losses = [turn(step, torch.Generator().manual_seed(step)) for step in range(2)]
    assert teacher.rows == [6] * 2
    assert student.rows == [2] * 12
    assert losses[1] < losses[0]
    assert student.gain.item() < before
    assert kept[""].optimizer.adamw.state[student.gain]["step"] == 12
    told = told_of(task, lesson, torch.Generator().manual_seed(0))
    shares = task.shared(told, torch.Generator().manual_seed(1))
    seen = [torch.cat([share.condition["class_labels"] for share in shares[i : i + 3]]) for i in (0, 3)]
    assert all(sorted(rows.tolist()) == [0, 1, 2, 3, 4, 5] for rows in seen)
    assert seen[0].tolist() != seen[1].tolist()
    assert all((share.x == told.x[share.condition["class_labels"]]).all() for share in shares)
    assert task.spent(5)["student_evaluations"] == 5 * 6


def test_noise_has_the_level_of_its_time():
    """x_t of a data set of zeros is sigma_t times normal noise."""
    seen = []
    net = Net()
    net.forward = lambda x, t, class_labels, return_dict: seen.append((x, t)) or (x * 0,)
    loss_of(Segments((550,), calls=1), net, Net(), torch.zeros(64, 1, 16, 16))
    x, t = seen[-1]
    _, sigma = SCHEDULES["betas"].alpha_sigma(550)
    assert float(x.std()) == pytest.approx(float(sigma), rel=0.02)
    assert t.tolist() == [550.0] * 64


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"times": ()}, "one or more, largest first"),
        ({"times": (100, 200)}, "largest first"),
        ({"draw": "edge"}, "edges"),
        ({"calls": 0}, "calls"),
        ({"order": 3}, "allowed: 1 or 2"),
        ({"through": (999, 550)}, "equally many"),
        ({"start": "noise"}, "Allowed: images, own"),
        ({"start": "own", "draw": "ends"}, "draw='edges' with start='own'"),
        ({"guidance": -1.0}, "guidance"),
        ({"parts": 0}, "parts"),
        ({"passes": 0}, "passes"),
        ({"times": (999, 350), "through": TIMES, "draw": "phases"}, "draw='edges'"),
    ],
)
def test_bad_tasks_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Segments(**{"times": TIMES} | wrong)


def test_other_networks_need_not_be_asked_with_gradients():
    net = Net()
    called = []
    teacher = lambda x, t, class_labels, return_dict: called.append(torch.is_grad_enabled()) or (x,)  # noqa: E731
    loss_of(Segments((999,), calls=2), net, teacher, torch.zeros(2, 1, 2, 2))
    assert called == [False, False]
