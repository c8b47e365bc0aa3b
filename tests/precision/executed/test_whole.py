"""Precisions that run a converted copy: what is refused, what is kept, what stays as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from snapshots import assert_same, snapshot

from accel.caching import DeepCache
from accel.caching.skip_tuning import SkipTuning
from accel.core.macs import tensors
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.precision import StaticInt8
from accel.precision.executed.recorded_inputs import ordered, replayed
from accel.precision.executed.whole import Whole, conversions
from accel.precision.simulated.calibration_sets import StridedSteps
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


@dataclass(frozen=True)
class Scaled(Whole):
    """The network's output times `factor`; notes what it was asked to convert."""

    factor: float = 1.0
    fail: str = ""
    calibration: StridedSteps | None = None
    seen: ClassVar[list] = field(default=[])

    @property
    def label(self) -> str:
        return f"scaled{self.factor:g}"

    def convert(self, net, kwargs, calls):
        if self.fail:
            raise RuntimeError(self.fail)
        self.seen.append((net, kwargs, calls))
        return lambda **kwargs: self.factor * net(**kwargs)[0]


@pytest.fixture
def seen():
    Scaled.seen.clear()
    yield Scaled.seen
    Scaled.seen.clear()


@pytest.fixture
def own(pipe):
    """The digits pipeline with a network of its own, that a test may change."""
    copied = copy.copy(pipe)
    copied.register_modules(unet=copy.deepcopy(pipe.unet))
    copied.set_progress_bar_config(disable=True)
    return copied


def images(pipe, recipe, models=None, guidance_scale=1.0, count_macs=False, artefacts=None):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with accelerate(pipe, recipe, models=models, count_macs=count_macs, artefacts=artefacts) as run:
        made = pipe(class_labels=[1, 2], generator=generators, guidance_scale=guidance_scale, num_inference_steps=4,
                    output_type="pt").images  # fmt: skip
    return made, run


def test_factor_one_is_the_plain_network_and_the_network_is_left_alone(own, seen):
    before, plain = snapshot(own), images(own, Recipe(DDIM))[0]
    assert torch.equal(images(own, Recipe(DDIM, precision=Scaled()))[0], plain)
    assert not torch.equal(images(own, Recipe(DDIM, precision=Scaled(0.9)))[0], plain)
    assert_same(before, snapshot(own))
    assert all(net is not own.unet for net, *_ in seen)
    assert torch.equal(images(own, Recipe(DDIM))[0], plain)


def test_a_conversion_is_kept_for_its_shapes_settings_and_weights(own, seen):
    def run(factor=1.0, scale=1.0):
        guidance = CFG(scale) if scale > 1 else None
        images(own, Recipe(DDIM, guidance=guidance, precision=Scaled(factor)), guidance_scale=scale)
        return len(seen)

    assert [run(), run()] == [1, 1]
    assert run(scale=2.0) == 2, "a doubled batch is another shape"
    assert run(0.9) == 3, "other settings"
    assert [run(), run(0.9), run(scale=2.0)] == [3, 3, 3]
    with torch.no_grad():
        own.unet.conv_out.bias.add_(0.1)
    assert run() == 4, "other weights"
    assert len(conversions(own.unet)) == 1, "what was made of the old ones is gone"
    expected = images(own, Recipe(DDIM))[0]
    assert torch.equal(images(own, Recipe(DDIM, precision=Scaled()))[0], expected)


def test_timesteps_are_no_part_of_a_conversion(own, seen):
    with torch.no_grad(), accelerate(own, Recipe(DDIM, precision=Scaled())):
        own.scheduler.set_timesteps(4)
        for t in (3, 500, 999, torch.tensor(7)):
            own.unet(torch.zeros(1, 1, 16, 16), t, class_labels=torch.tensor([1]))
    assert len(seen) == 1
    assert seen[0][1]["timestep"].shape == ()


def test_stitched_and_guided_networks_are_converted_each(own, models, seen):
    recipe = Recipe(DDIM, guidance=CFG(2.0), stitch=TStitch(("small",), (0.5,)), precision=Scaled())
    plain = images(own, Recipe(DDIM, guidance=CFG(2.0), stitch=recipe.stitch), models, 2.0)
    found = images(own, recipe, models, 2.0)
    assert torch.equal(found[0], plain[0])
    assert found[1].strip == plain[1].strip
    assert len(seen) == 2


def test_macs_are_those_of_the_plain_network(own, seen):
    plain = images(own, Recipe(DDIM), count_macs=True)[1]
    assert images(own, Recipe(DDIM, precision=Scaled(0.9)), count_macs=True)[1].macs == plain.macs > 0
    assert not seen


@pytest.mark.parametrize("axis", ["cache", "skip"])
def test_what_looks_inside_is_refused(own, axis):
    inside = {"cache": DeepCache(2, 1), "skip": SkipTuning(0.9, 1.0)}[axis]
    with pytest.raises(IncompatibleError, match=f"as one piece, into which .* cannot look; use {axis}=none"):
        Recipe(DDIM, precision=Scaled(), **{axis: inside}).check(own)


def test_hooks_and_other_forwards_are_refused(own):
    recipe = Recipe(DDIM, precision=Scaled())
    handle = own.unet.conv_in.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(IncompatibleError, match=r"'conv_in' \(Conv2d\) has a hook or another forward"):
        recipe.check(own)
    handle.remove()
    own.unet.mid_block.forward = own.unet.mid_block.forward
    with pytest.raises(IncompatibleError, match="'mid_block'"):
        recipe.check(own)
    del own.unet.mid_block.forward
    recipe.check(own)


def test_a_failed_conversion_says_what_failed_and_leaves_the_pipeline_as_it_was(own):
    before = snapshot(own)
    with pytest.raises(IncompatibleError, match=r"scaled1 cannot convert 'base' \(UNet2DModel\): no such operator"):
        images(own, Recipe(DDIM, precision=Scaled(fail="\nno such operator\nat line 3")))
    assert_same(before, snapshot(own))


def test_calibration_records_what_the_network_is_called_with(own, seen):
    precision = Scaled(calibration=StridedSteps(samples=3, stride=2))
    recipe = Recipe(DDIM, guidance=CFG(2.0), precision=precision)
    asked, called = [], []
    handle = own.unet.register_forward_pre_hook(lambda module, args, kwargs: called.append(kwargs), with_kwargs=True)

    def sample(which, start, stop):
        asked.append((start, stop))
        generators = [torch.Generator().manual_seed(i) for i in range(start, stop)]
        own(class_labels=[0] * stop, generator=generators, guidance_scale=2.0, num_inference_steps=4, output_type="pt")

    artefact = precision.calibrate(own, replace_precision(recipe), sample)["base"]
    handle.remove()
    assert asked == [(0, 3)]
    assert sorted(artefact) == [f"{call:05}/{tensor}" for call in range(2) for tensor in range(3)]
    labels, latents, time = (artefact[f"00001/{i}"] for i in range(3))
    assert (labels.shape, latents.shape, time.shape) == ((6,), (6, 1, 16, 16), ())
    assert int(time) == 499, "the third of four steps"
    images(own, recipe, guidance_scale=2.0, artefacts={"base": artefact})
    (_, kwargs, calls), *rest = seen
    assert not rest
    assert kwargs["sample"].shape[0] == 4, "two samples, guided"
    assert [tuple(call["sample"].shape) for call in calls] == [(4, 1, 16, 16)] * 2
    assert torch.equal(calls[1]["sample"], latents[:4])
    assert {call["return_dict"] for call in calls} == {False}
    with pytest.raises(ConfigError, match="needs calibration inputs for 'base', found none"):
        images(own, recipe, guidance_scale=2.0)


def replace_precision(recipe: Recipe) -> Recipe:
    return Recipe(recipe.sampler, guidance=recipe.guidance)


def call_of(rows: int, tokens: int = 3):
    x = torch.arange(rows * 4.0).reshape(rows, 1, 2, 2)
    return {"sample": x, "timestep": torch.tensor(7), "text": torch.ones(rows, tokens, 5), "return_dict": False}


@pytest.mark.parametrize(("had", "rows", "expected"), [(5, 2, [[0, 1], [2, 3]]), (2, 3, [[0, 1, 0]]), (1, 1, [[0]])])
def test_recorded_batches_are_cut_or_repeated(had, rows, expected):
    recorded = ordered(call_of(had))
    artefact = {f"00000/{i}": tensor for i, tensor in enumerate(tensors(recorded))}
    found = replayed(artefact, ordered(call_of(rows)))
    assert [call["sample"][:, 0, 0, 0].div(4).tolist() for call in found] == expected
    assert all(call["text"].shape == (rows, 3, 5) and call["timestep"].shape == () for call in found)


def test_recorded_calls_of_another_kind_are_refused():
    artefact = {f"00000/{i}": tensor for i, tensor in enumerate(tensors(ordered(call_of(2))))}
    with pytest.raises(ConfigError, match="none of 1 recorded evaluations has arguments like"):
        replayed(artefact, ordered(call_of(2, tokens=4)))


def test_calibration_is_on_by_default_where_it_is_needed():
    assert StaticInt8().calibrated
    assert not Scaled().calibrated
