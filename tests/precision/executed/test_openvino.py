"""OpenVINO: the plain network's numbers, timesteps in float32 under bfloat16, int8 by NNCF, and nothing reported."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from tiny import stable_diffusion
from torch import nn

from accel.benches.precision_speed import decibel
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.precision import OpenVINO
from accel.precision.executed.openvino_model import abilities, without_reports
from accel.precision.executed.recorded_inputs import ordered
from accel.precision.executed.whole import own_copy

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra `openvino`")
TIMES = (950, 601, 300, 50)


def call(t: int, seed: int = 0):
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in ((2, 4, 8, 8), (2, 3, 8))]
    return ordered({"sample": drawn[0], "timestep": t, "encoder_hidden_states": drawn[1], "return_dict": False})


@pytest.fixture(scope="module")
def net():
    return stable_diffusion().unet


@torch.no_grad()
def converted(net, precision, calls=()):
    return precision.convert(own_copy(net, torch.float32), call(0), list(calls))


@torch.no_grad()
def errors(net, forward):
    return [decibel(net(**call(t))[0], forward(**call(t))) for t in TIMES]


def test_float32_gives_the_plain_numbers(net):
    assert min(errors(net, converted(net, OpenVINO("float32")))) > 100


def test_timesteps_stay_in_float32_under_bfloat16(net):
    if "BF16" not in abilities():
        pytest.skip("needs a processor that multiplies bfloat16")
    found = errors(net, converted(net, OpenVINO("bfloat16")))
    with torch.no_grad():
        rounded = decibel(net(**call(601))[0], net(**call(int(torch.tensor(601.0).bfloat16())))[0])
    assert min(found) > 30
    assert max(found) - min(found) < 8, "no timestep is worse than the others"
    assert found[1] > rounded, "which a rounded one would bring it down to"


def test_int8_leaves_what_is_to_be_kept(net, monkeypatch, capsys):
    if find_spec("nncf") is None:
        pytest.skip("needs the extra `openvino`")
    with without_reports():
        import nncf

    from accel.precision.layers import left_float, quantisable

    seen, quantize = [], nncf.quantize

    def spy(model, data, **options):
        seen.append((options, quantize(model, data, **options)))
        return seen[-1][1]

    monkeypatch.setattr(nncf, "quantize", spy)
    keep = [*OpenVINO().keep, "down_blocks.*", "up_blocks.*"]
    forward = converted(net, OpenVINO("float32", int8=True, keep=keep), [call(t, 9 + t) for t in TIMES])
    found = errors(net, forward)
    assert 15 < min(found) < 60
    [(options, model)] = seen
    assert len(options["ignored_scope"].names) == len(left_float(net, keep))
    constants = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant" and len(op.get_shape()) > 1]
    ints = [op for op in constants if op.get_element_type().is_integral() and op.get_element_type().size == 1]
    assert len(ints) == len(quantisable(net, keep))
    assert capsys.readouterr().out == "", "its progress bars would break those of a study"


def test_nothing_is_reported_over_the_network():
    """The tests above never imported the package that sends them."""
    assert "openvino_telemetry" not in sys.modules


def test_a_network_without_sinusoid():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, sample, timestep):
            return (self.conv(sample) + timestep,)

    net = Plain().requires_grad_(False)
    kwargs = ordered({"sample": torch.randn(1, 4, 2, 2), "timestep": torch.tensor(3.0)})
    found = OpenVINO("float32").convert(net, kwargs, [])(**kwargs)
    torch.testing.assert_close(found, net(**kwargs)[0])


def test_bytes(pipe):
    from accel.core.precision import plain_bytes
    from accel.precision.executed.static_int8 import StaticInt8

    size = plain_bytes(pipe.unet)
    assert (OpenVINO("float32").model_bytes(pipe.unet), OpenVINO("bfloat16").model_bytes(pipe.unet)) == (
        size,
        size // 2,
    )
    assert OpenVINO("float32", int8=True).model_bytes(pipe.unet) == StaticInt8().model_bytes(pipe.unet)


def test_bad_settings(pipe, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown precision\.dtype 'float16'"):
        OpenVINO("float16")
    monkeypatch.setattr("accel.precision.executed.openvino.abilities", lambda: ["FP32", "INT8"])
    with pytest.raises(IncompatibleError, match=r"multiplies bfloat16 .* finds only FP32, INT8 here"):
        Recipe(precision=OpenVINO("bfloat16")).check(pipe)
