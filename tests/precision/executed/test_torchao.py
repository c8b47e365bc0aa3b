"""torchao: linear layers in int8, the others untouched; its dynamic product against integer arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot
from tiny import run_stable_diffusion, stable_diffusion
from torch import nn

from accel.benches.precision_speed import decibel
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.precision import TorchAO

pytest.importorskip("torchao", reason="needs the extra `torchao`")


def converted(net, precision):
    return precision.convert(net.to(precision.compute), {}, [])


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Conv1d(3, 3, 1)).requires_grad_(False)


def test_dynamic_product_is_integer_arithmetic():
    """y = s_x s_w (X W^T) + b with X, W int8, s_x for each row of x and s_w for each row of w."""
    net, x = linear(), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    weight, bias = net[0].weight.clone(), net[0].bias.clone()
    found = converted(net, TorchAO("dynamic", "float32", compile=False))[0](x)

    def rounded(t):
        scale = t.abs().amax(1, keepdim=True) / 127.5
        return (t * (1 / scale)).round().clamp(-128, 127).int(), scale

    (ints, s_x), (weights, s_w) = rounded(x), rounded(weight)
    assert ints.abs().max() > 100
    expected = (ints @ weights.T).float() * s_x * s_w.T + bias
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert decibel(x @ weight.T + bias, found) > 35


def test_weights_alone_are_rounded_to_the_nearest_step():
    net = linear()
    weight = net[0].weight.clone()
    step = weight.abs().amax(1, keepdim=True) / 127.5
    error = (
        converted(net, TorchAO("weights", "float32", compile=False))[0](torch.eye(64)).T - net[0].bias[:, None] - weight
    )
    assert (error.abs() <= 0.51 * step + 1e-6).all()
    assert error.abs().max() > 0.2 * step.min()


@pytest.mark.parametrize("scheme", ["weights", "dynamic"])
def test_bytes_are_those_of_the_quantised_network(scheme):
    precision, net = TorchAO(scheme, "float32", compile=False, keep=["2*"]), linear()
    size = precision.model_bytes(net)
    made = converted(net, precision)
    weight = made[0].weight
    stored = weight.qdata.numel() * weight.qdata.element_size() + weight.scale.numel() * weight.scale.element_size()
    assert stored == 64 * 32 + 4 * 32
    assert size == stored + plain_bytes(nn.ModuleList([made[2]])) + 4 * 32
    assert TorchAO(scheme, "bfloat16").model_bytes(linear()) == 64 * 32 + 2 * 32 + 2 * 32 + 2 * (9 + 3)


def test_only_linear_layers_outside_keep_are_quantised():
    pipe = stable_diffusion()
    before = snapshot(pipe)
    from accel.precision.executed.whole import own_copy

    precision = TorchAO("weights", "float32", compile=False)
    net = converted(own_copy(pipe.unet, torch.float32), precision)
    short = {name for name, m in net.named_modules() if type(getattr(m, "weight", None)).__name__ == "Int8Tensor"}
    every = {name for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    assert every - short == {n for n in every if n.startswith("time_embedding.") or n.endswith("time_emb_proj")}
    assert len(short) > 20
    with accelerate(pipe, Recipe()):
        exact = run_stable_diffusion(pipe, 1.0)
    with accelerate(pipe, Recipe(precision=precision)):
        found = run_stable_diffusion(pipe, 1.0)
    assert 30 < decibel(exact, found) < 80
    assert_same(before, snapshot(pipe))


def test_inductor_settings_stay_as_they_were():
    from torch._inductor import config

    before = config.save_config()
    converted(linear(), TorchAO("dynamic", "float32", compile=False))
    assert config.save_config() == before


def test_bad_settings_and_networks_without_linear_layers(pipe):
    with pytest.raises(ConfigError, match=r"unknown precision\.scheme 'dynamik'\. Did you mean dynamic"):
        TorchAO("dynamik")
    with pytest.raises(IncompatibleError, match="has no linear layer to quantise, and torchao quantises no other"):
        Recipe(precision=TorchAO(keep=["*"])).check(pipe)
