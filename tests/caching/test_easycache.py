"""EasyCache where its indicator is known exactly: a linear network, whose rate of change is its factor."""

from __future__ import annotations

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import pixels, run_pixels

from accel.caching import EasyCache
from accel.caching.easycache import predicted_change
from accel.core.recipe import Recipe, accelerate
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 9, "ddim", {"clip_sample": False})


class Linear(ModelMixin, ConfigMixin):
    """v = factor x."""

    @register_to_config
    def __init__(self, factor: float = 0.5, sample_size: int = 2, in_channels: int = 1, num_class_embeds=None):
        super().__init__()
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    def forward(self, sample, timestep, return_dict=True):
        return (self.config.factor * sample,)


@pytest.fixture
def pipe():
    return pixels(Linear(), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


def test_of_a_linear_network_it_is_the_relative_change_of_the_input(pipe):
    """k = |a|, so that e = |a| |x_t - x_(t-1)| / |a x_i| = |x_t - x_(t-1)| / |x_i|, whatever a."""
    xs = []
    watched, found = EasyCache().threshold_rule.watch(Recipe(DDIM), None)
    with accelerate(pipe, Recipe(DDIM, cache=watched)) as run:
        step = run.scheduler.step
        run.scheduler.step = lambda v, t, x, **more: (xs.append(x), step(v, t, x, **more))[1]
        run_pixels(pipe, labels=(0,))
    size = lambda x: float(x.abs().mean())  # noqa: E731
    e = [size(xs[k] - xs[k - 1]) / size(xs[k - 1]) for k in range(2, 8)]
    wanted = [sum(e[max(0, k - back) : k + 1]) for k in range(len(e)) for back in range(3) if back <= k]
    assert found == pytest.approx(wanted, rel=1e-9)


def test_the_input_that_does_not_change_predicts_no_change():
    rate, size = torch.tensor([2.0, 3.0]), torch.tensor([4.0, 1.0])
    assert predicted_change(rate, torch.tensor([0.0, 0.5]), size).tolist() == [0.0, 1.5]


def test_two_runs_are_needed_before_anything_is_reused(pipe):
    with accelerate(pipe, Recipe(DDIM, cache=EasyCache(1e9, first=1))) as run:
        run_pixels(pipe)
    assert [e.mode for e in run.trace] == ["full"] * 2 + ["reused"] * 6 + ["full"]
