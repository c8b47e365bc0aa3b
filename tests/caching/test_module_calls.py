"""What module caches keep: of modules that a forward calls twice, of rows that change, of several rows a sample."""

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import pixels, run_stable_diffusion, stable_diffusion
from torch import nn

from accel import Recipe, accelerate
from accel.caching import FeatureInheritance
from accel.caching.module_cache import History, Shape
from accel.caching.rows import Kept, parted, rows_of
from accel.caching.schedules import Uniform
from accel.core.denoiser import Inputs
from accel.errors import IncompatibleError
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4)


class Block(nn.Module):
    """As CogView4's: one feed-forward for the image and then for the text; the last block returns no text."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.attn, self.ff, self.last = nn.Linear(4, 4), nn.Linear(4, 4), last

    def forward(self, image, text):
        image = image + self.attn(image)
        image, text = image + self.ff(image), text + self.ff(text)
        return image, None if self.last else text


class Twice(ModelMixin, ConfigMixin):
    """Denoiser of 2 x 2 pixels: image and text are of one shape, so that they could be mistaken for each other."""

    @register_to_config
    def __init__(self, sample_size: int = 2, in_channels: int = 1, num_class_embeds: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.transformer_blocks = nn.ModuleList([Block(False), Block(True)])

    def forward(self, sample, timestep, return_dict=True):
        image, text = sample.flatten(1)[:, None], sample.flatten(1)[:, None].cos() + float(timestep) / 1000
        for block in self.transformer_blocks:
            image, text = block(image, text)
        return (image.reshape(sample.shape),)


def images(cache, change=None):
    pipe = pixels(Twice(), DDIMScheduler(clip_sample=False))
    if change:
        change(pipe.unet)
    with accelerate(pipe, Recipe(DDIM, cache=cache)) as run:
        made = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    return made, run.strip


def by_hand(kinds):
    """Every second evaluation modules whose name ends in one of `kinds` return what they returned at the last, call by
    call."""

    def change(net):
        count = [0]
        net.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
        for name, module in net.named_modules():
            if not name.endswith(kinds):
                continue
            kept: list = []

            def after(m, args, output, kept=kept, turn=[0, 0]):  # noqa: B006
                if turn[0] != count[0]:
                    turn[:] = [count[0], 0]
                turn[1] += 1
                if count[0] % 2:
                    return kept[turn[1] - 1]
                if turn[1] == 1:
                    kept.clear()
                kept.append(output)
                return output

            module.register_forward_hook(after)

    return change


@pytest.mark.parametrize(
    ("level", "match", "kinds"), [("unit", "ff", (".ff",)), ("unit", "", (".ff", ".attn")), ("block", "", (".0", ".1"))]
)
def test_each_call_of_a_module_gets_its_own_output_back(level, match, kinds):
    found, strip = images(FeatureInheritance(level, match, Uniform(2)))
    expected, _ = images(None, by_hand(kinds))
    assert torch.equal(found, expected)
    assert strip == "base:full base:partial base:full base:partial"
    assert not torch.equal(found, images(None)[0])


def test_modules_that_are_never_called_are_refused():
    """FeatureInheritance on a network that computes past its modules: nothing would be cached, without a word."""

    def bypass(net):
        for block in net.transformer_blocks:
            block.forward = lambda image, text: (image, text)

    with pytest.raises(IncompatibleError, match="called none of the 4 cached modules"):
        images(FeatureInheritance("unit"), bypass)


def test_rows_that_change_start_a_forecast_anew():
    """A callback ends the guidance at step 2: from the full step 3 on there is what steps 4 and 5 need."""

    def cut(pipe, step, t, kwargs):
        if step == 2:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return kwargs

    pipe, cache = stable_diffusion(), FeatureInheritance("unit", schedule=Uniform(3), order=2)
    more = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with accelerate(pipe, Recipe(DiffusersSampler("DDIMScheduler", 9), cache=cache)) as run:
        run_stable_diffusion(pipe, 3.0, steps=9, **more)
    assert [e.mode for e in run.trace] == ["full", "partial", "partial"] * 3
    assert [e.rows for e in run.trace] == [4] * 3 + [2] * 6


def test_a_history_of_other_rows_is_no_history():
    history = History(Shape(None))
    history.add(0, Kept((torch.ones(4),), None), 2)
    history.add(1, Kept((torch.ones(2),), None), 2)
    assert len(history.factors) == 1
    history.add(2, Kept((torch.full((2,), 3.0),), None), 2)
    assert torch.equal(history.at(3).tensors[0], torch.full((2,), 5.0))


def test_outputs_nest_as_they_like():
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    a, b = torch.ones(2), torch.zeros(2)
    for output in (a, (a, b), [a, None], (None, a), (a, 3), {"x": a, "y": (b,)}, Transformer2DModelOutput(sample=a)):
        shape, tensors = Shape.of(output)
        restored = shape.restored([t + 1 for t in tensors])
        assert Shape.of(restored)[0] == shape
        assert all(torch.equal(x, y + 1) for x, y in zip(Shape.of(restored)[1], tensors, strict=True))
    assert isinstance(Shape.of(Transformer2DModelOutput(sample=a))[0].restored([b]), Transformer2DModelOutput)


# --- several rows for each sample: frames


def inputs(rows, parts=("all",), members=None):
    return Inputs({"x": torch.zeros(rows, 1)}, "x", parts, members)


def test_frames_go_with_their_samples():
    frames = torch.arange(12.0)  # 2 parts of 2 samples with 3 frames each
    uncond, cond = parted((frames,), inputs(4, ("uncond", "cond")), "it")
    (both,) = rows_of([uncond, cond], inputs(4, ("uncond", "cond")))
    assert torch.equal(both, frames)
    (swapped,) = rows_of([cond, uncond], inputs(4, ("cond", "uncond")))
    assert swapped.tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    (second,) = rows_of([cond], inputs(1, ("cond",), (1,)))
    assert second.tolist() == [9, 10, 11]
    assert rows_of([cond], inputs(3, ("cond",))) is None
    assert rows_of([Kept((frames[:3],), (1,), 1)], inputs(2, ("cond",))) is None


@pytest.mark.parametrize("shape", [(), (3,), (1, 5)])
def test_rows_that_are_not_those_of_samples_are_refused(shape):
    with pytest.raises(IncompatibleError, match="for a batch of 2 rows"):
        parted((torch.zeros(shape),), inputs(2), "it")
