"""Hundreds of generations in one context: what they give is what fresh ones give, and nothing piles up."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
)

from accel.caching import BranchTable, DeepCache, EncoderPropagation, FeatureInheritance
from accel.caching.schedules import Squares, Uniform
from accel.core.recipe import Recipe, accelerate
from accel.suites.pipeline import PixelPipeline

SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler)
CACHES = {
    "deepcache": DeepCache(2, 1),
    "squares": DeepCache(branch=2, schedule=Squares()),
    "table": BranchTable([0, 1, 2, 0, 1]),
    "encoder": EncoderPropagation(Uniform(3), group=2),
    "units": FeatureInheritance("unit", order=1),
    "blocks": FeatureInheritance("block"),
}
STEPS = 5
GENERATIONS = 240


def tiny() -> PixelPipeline:
    torch.manual_seed(0)
    net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1,
                      norm_num_groups=2, num_class_embeds=4, down_block_types=("DownBlock2D",) * 2,
                      up_block_types=("UpBlock2D",) * 2).eval()  # fmt: skip
    pipe = PixelPipeline(net, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, rows: int, start: int, seed: int) -> torch.Tensor:
    """A plain sampling loop, begun `start` steps later as image-to-image does."""
    scheduler, generator = pipe.scheduler, torch.Generator().manual_seed(seed)
    x, labels = torch.randn(rows, 1, 8, 8, generator=generator), torch.arange(rows) % 4
    scheduler.set_timesteps(STEPS)
    order = scheduler.order
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start * order)
    with torch.no_grad():
        for t in scheduler.timesteps[start * order if hasattr(scheduler, "set_begin_index") else 0 :]:
            output = pipe.unet(scheduler.scale_model_input(x, t), t, class_labels=labels, return_dict=False)[0]
            x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.fixture
def only_new_objects():
    """The collector looks at nothing that was there before, which is a great deal after other tests."""
    gc.collect()
    gc.freeze()  # for good, as after the collection of tests: to undo it would undo that, too


def tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, torch.Tensor))


@pytest.mark.parametrize("name", CACHES)
def test_no_state_and_no_memory_is_left(name, only_new_objects):
    """Batch sizes and start steps change from one generation to the next; the schedulers every now and then."""
    cache, random_ = CACHES[name], random.Random(0)
    fixed = name == "table"  # it is made for a number of steps
    pipes = [tiny() for _ in SCHEDULERS]
    for pipe, scheduler in zip(pipes, SCHEDULERS, strict=True):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    if fixed:
        pipes = pipes[:2]
    fresh: dict[tuple, torch.Tensor] = {}
    counts = []
    for pipe in pipes:
        with accelerate(pipe, Recipe(cache=cache)):
            for i in range(GENERATIONS // len(CACHES) // len(pipes) + 1):
                key = random_.choice((1, 2, 3)), 0 if fixed else random_.choice((0, 2)), random_.randrange(2)
                found = generate(pipe, *key)
                known = (id(pipe), *key)
                if known not in fresh:
                    fresh[known] = found
                assert torch.equal(found, fresh[known]), (i, key)
                del found
                if i in (4, 10):
                    counts.append(tensors() - len(fresh))
    assert counts[0::2] == counts[1::2], "as many tensors after 10 generations as after 4"
    for (_, *key), image in random_.sample(sorted(fresh.items(), key=lambda item: item[0][1:]), 4):
        owner = next(p for p in pipes if id(p) == _)
        with accelerate(owner, Recipe(cache=cache)):
            assert torch.equal(generate(owner, *key), image), "the first generation of a context"
