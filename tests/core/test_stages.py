"""Stages of a pipeline's call on a clock that the stages turn; bounds in closed form; the pipeline stays as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from accel.caching import DeepCache
from accel.core import stages
from accel.core.amdahl import REST, STAGES, bound
from accel.core.recipe import Recipe, accelerate
from accel.core.stages import stage_seconds
from accel.samplers import DiffusersSampler
from accel.testing import TinySuite


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages.time, "perf_counter", clock)
    return clock


class Work(nn.Module):
    """A network whose call takes so many seconds, with others inside."""

    def __init__(self, clock: Clock, seconds: float, *inside: nn.Module) -> None:
        super().__init__()
        self.clock, self.seconds, self.inside = clock, seconds, nn.ModuleList(inside)

    def forward(self) -> None:
        self.clock.now += self.seconds
        for net in self.inside:
            net()

    decode = encode = forward


def pipeline(clock: Clock) -> SimpleNamespace:
    def step() -> None:
        clock.now += 0.25

    parts = {"unet": Work(clock, 3), "text_encoder": Work(clock, 1), "text_encoder_2": Work(clock, 0.5)}
    parts |= {"vae": Work(clock, 4, Work(clock, 2)), "scheduler": SimpleNamespace(step=step)}
    return SimpleNamespace(device="cpu", components=parts, **parts)


def call(pipe: SimpleNamespace, clock: Clock, steps: int) -> None:
    pipe.text_encoder()
    pipe.text_encoder_2()
    for _ in range(steps):
        pipe.unet()
        pipe.scheduler.step()
    clock.now += 0.125
    pipe.vae.decode()


@pytest.mark.parametrize("steps", [1, 5])
def test_every_stage_has_its_time_and_the_rest_is_left(clock, steps):
    pipe = pipeline(clock)
    before = {name: dict(vars(part)) for name, part in pipe.components.items()}
    found = stage_seconds(pipe, lambda: call(pipe, clock, steps))
    assert found == {
        "text encoder": 1.5, "denoiser": 3.0 * steps, "scheduler": 0.25 * steps, "decoder": 6.0, REST: 0.125
    }  # fmt: skip
    assert list(found) == [stage for stage in STAGES if stage in found]
    assert bound(found) == pytest.approx((7.625 + 3.25 * steps) / (7.625 + 0.25 * steps))
    assert {name: dict(vars(part)) for name, part in pipe.components.items()} == before, "the pipeline is as it was"


def test_a_second_denoiser_counts_and_what_is_inside_a_stage_does_not_count_again(clock):
    pipe = pipeline(clock)
    pipe.unet = pipe.components["unet"] = Work(clock, 3, pipe.text_encoder)
    pipe.unet_2 = Work(clock, 7)
    found = stage_seconds(pipe, lambda: (pipe.unet(), pipe.unet_2()))
    assert found == {"denoiser": 11.0, REST: 0.0}


def test_an_error_leaves_the_pipeline_as_it_was(clock):
    pipe = pipeline(clock)
    before = {name: dict(vars(part)) for name, part in pipe.components.items()}

    def broken() -> None:
        pipe.unet(1)

    with pytest.raises(TypeError):
        stage_seconds(pipe, broken)
    assert {name: dict(vars(part)) for name, part in pipe.components.items()} == before


def test_stages_of_an_accelerated_pipeline_make_the_same_images():
    suite = TinySuite("text")
    pipe = suite.pipeline()
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 4, "ddim"), cache=DeepCache(2, 1))

    def images() -> torch.Tensor:
        return pipe(class_labels=[1, 2], generator=torch.Generator().manual_seed(0), output_type="pt").images

    with accelerate(pipe, recipe) as run:
        plain = images()
        watched = []
        found = stage_seconds(pipe, lambda: watched.append(images()))
        assert torch.equal(watched[0], plain), "watching changes nothing"
        assert run.nfe == 4
        after = images()
    assert torch.equal(after, plain)
    assert set(found) >= {"denoiser", "scheduler", REST}
    assert all(seconds >= 0 for seconds in found.values())


def test_other_accelerators_are_not_waited_for():
    assert stage_seconds(SimpleNamespace(device="mps"), pytest.fail) == {}
