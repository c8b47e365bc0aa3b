"""Calibration: what is observed, over which evaluations, and that the observers leave no trace."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot
from torch import nn

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.precision import FakeQuant, Trajectories
from accel.precision.layers import quantisable
from accel.precision.simulated.calibration import Observer, observe
from accel.precision.simulated.fake_quant import MODEL
from accel.precision.simulated.levels import Levels, Range
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


@pytest.fixture
def ranges(pipe, digits, models):
    """ranges(recipe) -> its ranges on two samples."""

    def ranges(recipe: Recipe):
        return recipe.precision.calibrate(
            pipe, recipe, lambda *drawn: generate(pipe, digits, recipe, 99, 0, 2, 2), models
        )

    return ranges


def test_observed_minimum_and_maximum_over_all_calls():
    layers = {"a": nn.Linear(2, 3), "b": nn.Linear(3, 1), "never": nn.Linear(1, 1)}
    observers = {name: Observer() for name in layers}
    with observe(layers, observers):
        hidden = layers["a"](torch.tensor([[1.0, -2.0]]))
        layers["a"](torch.tensor([[0.5, 7.0], [0.0, 0.0]], dtype=torch.float32))
        layers["b"](hidden)
    layers["a"](torch.tensor([[100.0, 0.0]]))  # after the context
    limits = {n: o.limits(Range(), Levels(8, symmetric=False)).tolist() for n, o in observers.items() if o.ends}
    ends = [hidden.min().item(), hidden.max().item()]
    assert limits == {"a": [[[-2.0, 7.0]]], "b": [[ends]]}


def test_groups_of_steps_and_slices_of_channels_have_ranges_of_their_own():
    layer, step = nn.Conv2d(3, 1, 1), [0]
    observer = Observer(groups=3, channels=(1, 2), dim=1)
    with observe({"a": layer}, {"a": observer}, lambda: step[0]):
        for group, size in ((0, 1.0), (2, 5.0)):  # no step of group 1 is seen
            step[0] = group
            layer(torch.tensor([-1.0, 2.0, 3.0]).reshape(1, 3, 1, 1) * size)
    limits = observer.limits(Range(), Levels(8, symmetric=False))
    assert limits[0].tolist() == [[-1, -1], [2, 3]]
    assert limits[2].tolist() == [[-5, -5], [10, 15]]
    assert limits[1].tolist() in (limits[0].tolist(), limits[2].tolist()), "its neighbour's"


def test_ranges_of_samples_are_those_of_the_values_within_their_error():
    layer, x = nn.Linear(50, 1), torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    observer = Observer(keep=True, dim=-1)
    with observe({"a": layer}, {"a": observer}):
        for part in x.split(4):
            layer(part)
    levels = Levels(4, symmetric=False)
    assert observer.limits(Range(), levels).flatten().tolist() == [x.min().item(), x.max().item()]
    found = observer.limits(Range("percentile", quantile=0.99), levels).flatten()
    torch.testing.assert_close(found, torch.quantile(x, torch.tensor([0.01, 0.99])), atol=0.05, rtol=0)


def test_ranges_are_those_of_everything_the_layers_saw(pipe, ranges, digits):
    """Brute force: keep every input of every layer over the run, then take minimum and maximum once."""
    recipe = Recipe(DDIM, guidance=CFG(2.0), precision=FakeQuant())
    found = ranges(recipe)["base"]
    layers = quantisable(pipe.unet, FakeQuant().keep)
    seen = {name: [] for name in layers}
    handles = [
        layer.register_forward_hook(lambda module, args, output, kept=seen[name]: kept.append(args[0].flatten()))
        for name, layer in layers.items()
    ]
    try:
        with accelerate(pipe, Recipe(DDIM, guidance=CFG(2.0))):
            generate(pipe, digits, recipe, 99, 0, 2, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert set(found) == {*layers, MODEL}
    for name, inputs in seen.items():
        assert len(inputs) == 4, "every step"
        everything = torch.cat(inputs)
        assert found[name].tolist() == [everything.min().item(), everything.max().item()], name
    # conv_in sees the latents, unit noise at first: neither a single step nor a single half would do.
    assert len(seen["conv_in"][0]) == 2 * 2 * 256


def test_shallow_steps_are_covered(ranges, pipe):
    plain = ranges(Recipe(DDIM, precision=FakeQuant()))["base"]
    cached = ranges(Recipe(DDIM, cache=DeepCache(4, 1), precision=FakeQuant()))["base"]
    resnets = pipe.unet.up_blocks[-1].resnets
    shallow = f"up_blocks.{len(pipe.unet.up_blocks) - 1}.resnets.{len(resnets) - 1}."
    assert not torch.equal(plain["conv_out"], cached["conv_out"])
    assert any(not torch.equal(plain[k], cached[k]) for k in plain if k.startswith(shallow))
    # Only the first step runs the deep layers: their ranges are those of a single evaluation, so within the plain ones.
    deep = "mid_block.resnets.0.conv1"
    assert plain[deep][0] <= cached[deep][0] < cached[deep][1] <= plain[deep][1]
    assert not torch.equal(plain[deep], cached[deep])


def test_calibration_without_the_cache_is_that_of_the_plain_recipe(pipe, digits):
    """For studies of what a calibration that does not know the shallow steps costs."""
    found = {}
    for name, cached, cache in (("own", True, 3), ("without", False, 3), ("plain", True, None)):
        cache = cache and DeepCache(interval=cache, branch=1)
        recipe = Recipe(DDIM, precision=FakeQuant(calibration=Trajectories(samples=2, cached=cached)), cache=cache)
        made = recipe.precision.calibrate(pipe, recipe, lambda own, a, b: generate(pipe, digits, own, 99, a, b, 2))
        found[name] = made["base"]
    assert all(torch.equal(v, found["plain"][k]) for k, v in found["without"].items())
    assert any(not torch.equal(v, found["plain"][k]) for k, v in found["own"].items())
    assert Trajectories(cached=False).label == "uncached"


def test_each_stitched_network_has_ranges_of_its_own(ranges, pipe, digits, models):
    recipe = Recipe(DDIM, stitch=TStitch(("small",), (0.5,)), precision=FakeQuant())
    found = ranges(recipe)
    keep = FakeQuant().keep
    assert {n: set(layers) for n, layers in found.items()} == {
        "base": {*quantisable(pipe.unet, keep), MODEL}, "small": {*quantisable(models["small"], keep), MODEL},
    }  # fmt: skip
    latents, nets = {"base": [], "small": []}, {"base": pipe.unet, "small": models["small"]}
    handles = [
        nets[n].conv_in.register_forward_pre_hook(lambda module, args, kept=latents[n]: kept.append(args[0]))
        for n in nets
    ]
    try:
        with accelerate(pipe, Recipe(DDIM, stitch=TStitch(("small",), (0.5,))), models=models):
            generate(pipe, digits, recipe, 99, 0, 2, 2)
    finally:
        for handle in handles:
            handle.remove()
    for name, inputs in latents.items():
        assert len(inputs) == 2, "two steps each"
        everything = torch.cat(inputs)
        assert found[name]["conv_in"].tolist() == [everything.min().item(), everything.max().item()]


def test_observers_and_methods_come_off_after_an_exception(pipe, models, digits):
    recipe = Recipe(DDIM, cache=DeepCache(2, 1), stitch=TStitch(("small",), (0.5,)), precision=FakeQuant())
    before = snapshot(pipe, models.values())

    def fail(*drawn):
        generate(pipe, digits, recipe, 99, 0, 1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.precision.calibrate(pipe, recipe, fail, models)
    assert_same(before, snapshot(pipe, models.values()))
    assert not any(m._forward_pre_hooks for net in (pipe.unet, models["small"]) for m in net.modules())


def test_layers_without_input_are_an_error(pipe, models, ranges):
    count = len(quantisable(pipe.unet, FakeQuant().keep))
    with pytest.raises(ConfigError, match=f"no input for {count} of {count} layers"):
        FakeQuant().calibrate(pipe, Recipe(DDIM, precision=FakeQuant()), lambda *drawn: None)
    small = len(quantisable(models["small"], FakeQuant().keep))
    with pytest.raises(ConfigError, match=f"no input for {small} of {count + small} layers .first: small/"):
        ranges(Recipe(DDIM, stitch=TStitch(("small",), (0.0,)), precision=FakeQuant()))
