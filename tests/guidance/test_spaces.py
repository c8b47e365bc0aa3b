"""Outputs, x_0, eps and v of every prediction type at one noise level."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from accel.core.trajectory import Trajectory
from accel.guidance.spaces import Level, level, own, replaced, shifted

X0, EPS = torch.tensor([[0.3, -1.2]], dtype=torch.float64), torch.tensor([[0.7, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_an_output_is_one_statement_in_all_spaces(kind):
    flow = kind == "flow_prediction"
    alpha, sigma = (0.4, 0.6) if flow else (0.6, 0.8)
    x = alpha * X0 + sigma * EPS
    v = EPS - X0 if flow else alpha * EPS - sigma * X0
    output = {"epsilon": EPS, "sample": X0}.get(kind, v)
    at = Level(alpha, sigma, kind, flow)
    for space, wanted in (("x0", X0), ("eps", EPS), ("v", v)):
        torch.testing.assert_close(at.to(space, output, x), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(at.back(space, wanted, x), output, rtol=0, atol=1e-12)
        moved = at.to(space, output + at.change(space, torch.full_like(x, 0.1)), x)
        torch.testing.assert_close(moved, wanted + 0.1, rtol=0, atol=1e-12)


def test_a_flow_begins_at_alpha_0():
    at, x = Level(0.0, 1.0, "flow_prediction", True), EPS
    torch.testing.assert_close(at.to("x0", EPS - X0, x), X0)
    torch.testing.assert_close(at.to("eps", EPS - X0, x), EPS)


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_the_level_is_that_of_the_denoisers_input(cls):
    scheduler, clock = cls(), Trajectory()
    scheduler.set_timesteps(4)
    clock.begin(scheduler)
    clock.enter(1)
    found = level(clock)
    if cls is FlowMatchEulerDiscreteScheduler:
        assert (found.alpha, found.sigma, found.kind) == (0.0, 1.0, "flow_prediction")
        return
    alpha_bar = float(DDIMScheduler().alphas_cumprod[round(float(scheduler.timesteps[0]))])
    assert found.alpha == pytest.approx(alpha_bar**0.5, rel=1e-5)
    assert found.sigma == pytest.approx((1 - alpha_bar) ** 0.5, rel=1e-5)
    assert found.kind == "epsilon"


def test_learned_variances_stay():
    prediction, x = torch.arange(12.0).reshape(1, 4, 3), torch.zeros(1, 2, 3)
    change = torch.ones(1, 2, 3)
    assert own(prediction, x).shape == (1, 2, 3)
    assert torch.equal(shifted(prediction, change)[:, :2], prediction[:, :2] + 1)
    assert torch.equal(replaced(prediction, change)[:, :2], change)
    for result in (shifted(prediction, change), replaced(prediction, change)):
        assert torch.equal(result[:, 2:], prediction[:, 2:])
