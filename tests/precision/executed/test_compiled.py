"""torch.compile of the whole network: its plain numbers, one compilation for all timesteps, frozen weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from tiny import run_stable_diffusion, stable_diffusion
from torch import nn

from accel.benches.precision_speed import decibel
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.precision import Cast, Compiled
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


class Small(ModelMixin, ConfigMixin):
    """Convolutions, a linear layer and a sinusoid of the timestep: what inductor needs seconds for, not a minute."""

    @register_to_config
    def __init__(self, width: int = 16, broken: bool = False):
        super().__init__()
        self.time_proj = Timesteps(width, True, 0)
        self.time_embedding = nn.Linear(width, width)
        self.conv_in, self.conv_out = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.broken = broken

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        if self.broken and sample.sum() > 0:  # depends on values: no single graph
            sample = sample + 1
        time = self.time_proj(timestep.reshape(1)).to(sample.dtype)
        hidden = nn.functional.silu(self.conv_in(sample) + self.time_embedding(time)[:, :, None, None])
        return (self.conv_out(hidden),)


@pytest.fixture
def small(pipe):
    """The digits pipeline around a random small network."""
    import copy

    made = copy.copy(pipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made.register_modules(unet=Small().eval().requires_grad_(False))
    return made


def outputs(pipe, precision, times=(950, 601, 300, 3)):
    """The network's outputs for one x at several timesteps."""
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), accelerate(pipe, Recipe(DDIM, precision=precision)):
        pipe.scheduler.set_timesteps(4)
        return torch.stack([pipe.unet(x, torch.tensor(t), return_dict=False)[0] for t in times])


def test_inductor_gives_the_plain_numbers_with_packed_weights(small, monkeypatch):
    """One compilation serves all timesteps; the weights are constants in it, which is what `freezing` does."""
    # Not which of the processor's vector instructions the compiler knows: eight seconds of trial compilations.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    # Nor headers compiled beforehand, which pay for themselves from the second kernel on; an older torch has no such.
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False, raising=False)
    from torch._dynamo.utils import counters
    from torch._inductor.utils import run_and_get_code

    plain = outputs(small, None)
    counters.clear()
    found, [code] = run_and_get_code(lambda: outputs(small, Compiled("float32")))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert "_frozen_param" in code
    assert torch.equal(outputs(small, Compiled("float32")), found), "entered again, it is not compiled again"
    assert counters["stats"]["unique_graphs"] == 1
    assert torch._inductor.config.freezing is False, "as it was for everybody else"


def test_bfloat16_is_the_cast_traced(small):
    """Traced without compiling, the same operators run as in an eager cast, the timestep in float32 included."""
    exact, cast = outputs(small, None), outputs(small, Cast("bfloat16"))
    found = outputs(small, Compiled("bfloat16", "eager"))
    assert torch.equal(found, cast)
    assert min(decibel(e, f) for e, f in zip(exact, found, strict=True)) > 35
    rounded = torch.tensor(601.0).bfloat16().item()
    assert rounded != 601
    far = outputs(small, Compiled("bfloat16", "eager"), (rounded,) * 4)
    assert decibel(exact[1], far[1]) < decibel(exact[1], found[1]) - 3, "a rounded timestep would be heard"


def test_a_whole_unet_is_a_single_graph():
    pipe = stable_diffusion()
    recipe = Recipe(guidance=CFG(3.0))
    with accelerate(pipe, recipe):
        expected = run_stable_diffusion(pipe, 3.0, steps=3)
    with accelerate(pipe, Recipe(guidance=CFG(3.0), precision=Compiled("float32", "eager"))) as run:
        assert torch.equal(run_stable_diffusion(pipe, 3.0, steps=3), expected)
    assert run.nfe == 6


def test_what_is_no_single_graph_is_refused(small):
    small.unet.broken = True
    with pytest.raises(IncompatibleError, match=r"bf16\(eager\) cannot convert 'base' \(Small\): .*[Bb]ranch"):
        outputs(small, Compiled("bfloat16", "eager"))


def test_more_shapes_than_torch_keeps_for_one_function(small):
    """Beyond 8 compilations of one code object torch runs it uncompiled, and says nothing."""
    net, precision = small.unet, Compiled("float32", "eager")
    with torch.no_grad(), accelerate(small, Recipe(DDIM, precision=precision)):
        small.scheduler.set_timesteps(4)
        from torch._dynamo.utils import counters

        counters.clear()
        for rows in range(1, 11):
            net(torch.zeros(rows, 1, 4, 4), torch.tensor(5))
        assert counters["stats"]["unique_graphs"] == 10


def test_bytes_and_labels(small):
    from accel.core.precision import plain_bytes

    assert Compiled("float32").model_bytes(small.unet) == plain_bytes(small.unet)
    assert Compiled("float16").model_bytes(small.unet) == plain_bytes(small.unet) // 2
    assert [Compiled(d).label for d in ("float32", "bfloat16")] == ["fp32(compiled)", "bf16(compiled)"]


def test_unknown_settings():
    with pytest.raises(ConfigError, match=r"unknown precision\.dtype 'bf16'"):
        Compiled("bf16")
    with pytest.raises(ConfigError, match=r"unknown precision\.backend 'induktor'\. Did you mean inductor"):
        Compiled(backend="induktor")
