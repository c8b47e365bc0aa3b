"""Distillation of segments: closed forms of a target, the draws, and what a perfect network is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussians import SCHEDULES, gaussian, normal, towards
from torch import nn

from accel.errors import ConfigError
from accel.suites.training.noising import END, Levels, clean, column, ddim
from accel.suites.training.segments import DRAWS, Segments, endpoint, segment_loss, solve, target

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


def test_a_student_that_is_its_teacher_on_the_same_grid_learns_nothing():
    """One DDIM step of the teacher a segment: loss and gradient are 0."""
    net, x0, schedule = Net(), torch.rand(8, 1, 2, 2) * 2 - 1, SCHEDULES["betas"]
    loss = segment_loss(net, net, schedule, Segments(TIMES, calls=1), x0, torch.Generator().manual_seed(0),
                        class_labels=torch.arange(8))  # fmt: skip
    loss.backward()
    assert loss < 1e-6
    assert max(p.grad.abs() for p in net.parameters()) < 1e-3


def test_a_teacher_that_is_a_student_is_asked_at_its_own_times_alone():
    teacher, net = Net(), Net()
    task = Segments((999, 350), order=1, through=TIMES)
    segment_loss(net, teacher, SCHEDULES["betas"], task, torch.zeros(16, 1, 2, 2), torch.Generator().manual_seed(0),
                 class_labels=torch.arange(16))  # fmt: skip
    first, second = (np.array(times) for times, _ in teacher.asked)
    assert {*first} == {999.0, 350.0}
    assert {*second} == {550.0, 170.0}
    assert ((first == 999) == (second == 550)).all(), "each row takes the two steps of its own segment"
    assert all(labels == list(range(16)) for _, labels in teacher.asked)
    assert net.asked[0][0] == first.tolist()


def test_noise_has_the_level_of_its_time():
    """x_t of a data set of zeros is sigma_t times normal noise."""
    seen = []
    net = Net()
    net.forward = lambda x, t, class_labels, return_dict: seen.append((x, t)) or (x * 0,)
    segment_loss(net, Net(), SCHEDULES["betas"], Segments((550,), calls=1), torch.zeros(64, 1, 16, 16),
                 torch.Generator().manual_seed(0), class_labels=torch.zeros(64))  # fmt: skip
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
    segment_loss(net, teacher, SCHEDULES["betas"], Segments((999,), calls=2), torch.zeros(2, 1, 2, 2),
                 torch.Generator().manual_seed(0), class_labels=torch.zeros(2))  # fmt: skip
    assert called == [False, False]
