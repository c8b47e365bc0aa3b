"""Students that are told the guidance scale: the network, and what a recipe tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.core.recipe import Recipe, accelerate
from accel.core.student import Contract, contracted
from accel.digests import weights_hex
from accel.errors import IncompatibleError
from accel.guidance import CFG
from accel.registry import method
from accel.students import Distilled
from accel.students.told import guidance_embedding, with_scale_input
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import TinySuite, text_unet, unet


@pytest.fixture
def tiny():
    """A pipeline of texts, and a student of its network that has learned to use the scale."""
    pipe = TinySuite("text").pipeline()
    net = with_scale_input(pipe.unet, 16).eval()
    torch.nn.init.normal_(net.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(0))
    contract = Contract("told", (), weights_hex(pipe.unet), (1.0, 5.0))
    return pipe, {"told": contracted(net.requires_grad_(False), contract)}


def recipe(scale: float = 3.0, **axes) -> Recipe:
    student = Distilled("told", kind="told", guidance=scale)
    return Recipe(**{"sampler": method("sampler", "dpmpp_2m", steps=3), "student": student} | axes)


def images(pipe, made: Recipe, models) -> torch.Tensor:
    with accelerate(pipe, made, models=models) as run:
        noise = [torch.Generator().manual_seed(i) for i in (0, 1)]
        found = pipe(class_labels=[3, 5], generator=noise, output_type="pt").images
    assert [each.rows for each in run.trace] == [2] * 3, "a row an image and step"
    return found


def test_it_begins_as_its_teacher_at_every_scale():
    teacher = text_unet(0)
    net = with_scale_input(teacher, 32)
    x, t, text = torch.randn(2, 1, 8, 8), torch.tensor([900.0, 10.0]), torch.randn(2, 3, 8)
    told = guidance_embedding(torch.tensor([1.5, 7.0]), 32)
    for more in ({}, {"timestep_cond": told}):
        assert torch.equal(net(x, t, text, **more, return_dict=False)[0], teacher(x, t, text, return_dict=False)[0])
    assert net.config.time_cond_proj_dim == 32


def test_a_recipe_tells_its_scale_to_the_network(tiny):
    """As a pipeline does whose own network has such an input."""
    pipe, models = tiny
    net, made = models["told"], recipe()
    found = images(pipe, made, models)
    forward = net.forward
    told = guidance_embedding(torch.tensor([3.0, 3.0]), 16)
    pipe.unet, net.forward = net, lambda *args, **kwargs: forward(*args, **{**kwargs, "timestep_cond": told})
    assert torch.equal(found, images(pipe, Recipe(made.sampler), None))
    del net.forward
    pipe.unet = text_unet(0)
    assert not torch.equal(found, images(pipe, recipe(2.0), models))
    assert made.label == "dpmpp_2m-3 + told(s3)"
    assert made.exact_guidance == CFG(3.0)


def test_on_a_device_it_is_told_without_waiting(tiny):
    pipe, models = tiny
    here = images(pipe, recipe(), models)
    with Elsewhere() as device:
        pipe.to(DEVICE)
        there = {"told": models["told"].to(DEVICE)}
        images(pipe, Recipe(recipe().sampler), None)
        plain = sum(device.waits.values())
        device.waits.clear()
        found = images(pipe, recipe(), there)
        assert sum(device.waits.values()) <= plain
        assert torch.equal(found.cpu(), here)


def test_scales_outside_its_range_and_networks_that_cannot_be_told_are_refused(tiny):
    pipe, models = tiny
    with pytest.raises(IncompatibleError, match=r"distilled at guidance from 1 to 5, and student.guidance is 6; use"):
        recipe(6.0).check(pipe, models)
    with pytest.raises(IncompatibleError, match="guidance of scale 3 is built into it"):
        recipe(guidance=CFG(2.0)).check(pipe, models)
    with pytest.raises(IncompatibleError, match="UNet2DModel cannot be told a guidance scale"):
        with_scale_input(unet(0))
    deaf = contracted(text_unet(1), Contract("told", (), weights_hex(pipe.unet), (1.0, 5.0)))
    with pytest.raises(IncompatibleError, match="has no time_cond_proj_dim"):
        recipe().check(pipe, {"told": deaf})


def test_a_range_comes_back_from_its_folder(tmp_path):
    contract = Contract("told", (), "ab", [1, 5])
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    assert (contract.scales, contract.guidance) == ((1.0, 5.0), (1.0, 5.0))
    assert replace(contract, guidance=2.0).scales == (2.0, 2.0)
