"""Static int8 by export quantisation: which layers, what error, and that it is calibrated on what it is given."""

from __future__ import annotations

import pytest
import torch
from tiny import stable_diffusion

from accel.benches.precision_speed import decibel
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe
from accel.errors import IncompatibleError
from accel.precision import StaticInt8
from accel.precision.executed.recorded_inputs import ordered
from accel.precision.executed.whole import own_copy
from accel.precision.layers import quantisable

pytest.importorskip("torchao", reason="needs the extra `torchao`")


def call(t: int, seed: int = 0, scale: float = 1.0):
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in ((2, 4, 8, 8), (2, 3, 8))]
    return ordered({"sample": scale * drawn[0], "timestep": t, "encoder_hidden_states": drawn[1], "return_dict": False})


@pytest.fixture(scope="module")
def made():
    """The tiny UNet, and two conversions: calibrated on inputs like those of the tests, and on far smaller ones."""
    net, precision = stable_diffusion().unet, StaticInt8(backend="none")
    with torch.no_grad():
        return net, *(
            precision.convert(
                own_copy(net, torch.float32), call(0), [call(t, 9 + t, scale) for t in (900, 600, 300, 50)]
            )
            for scale in (1.0, 0.01)
        )


@torch.no_grad()
def test_error_depends_on_the_calibration(made):
    net, good, bad = made
    for t in (950, 500, 20):
        exact = net(**call(t))[0]
        assert decibel(exact, good(**call(t))) > 18
        assert decibel(exact, bad(**call(t))) < decibel(exact, good(**call(t))) - 6


def test_layers_outside_keep_are_quantised_and_no_others(made):
    net, good, _ = made
    graph = next(cell.cell_contents for cell in good.__closure__ if hasattr(cell.cell_contents, "graph"))
    targets = [str(node.target) for node in graph.graph.nodes]
    layers = quantisable(net, StaticInt8().keep)
    assert (
        targets.count("quantized_decomposed.dequantize_per_channel.default") == len(layers) < len(quantisable(net, ()))
    )
    ints = {name for name, buffer in graph.named_buffers() if buffer.dtype == torch.int8}
    assert len(ints) == len(layers)
    assert sum(b.numel() for n, b in graph.named_buffers() if n in ints) == sum(
        m.weight.numel() for m in layers.values()
    )


def test_bytes_by_hand(pipe):
    layers = quantisable(pipe.unet, StaticInt8().keep).values()
    weights, outputs = sum(m.weight.numel() for m in layers), sum(len(m.weight) for m in layers)
    assert StaticInt8().model_bytes(pipe.unet) == plain_bytes(pipe.unet) - 3 * weights + 4 * outputs


def test_nothing_to_quantise(pipe):
    with pytest.raises(IncompatibleError, match="no convolution or linear layer to quantise"):
        Recipe(precision=StaticInt8(keep=["*"])).check(pipe)


def test_inductor_runs_integer_kernels():
    """A convolution and a linear layer become oneDNN's fused int8 ones, not floating point between roundings."""
    from torch import nn
    from torch._inductor.utils import run_and_get_code

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(4, 16, 3), nn.Linear(6, 8)

        def forward(self, sample, timestep):
            return (self.linear(nn.functional.silu(self.conv(sample) + timestep)),)

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = Small().requires_grad_(False)
        kwargs = ordered({"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(0.5)})
        run = StaticInt8().convert(own_copy(net, torch.float32), kwargs, [kwargs])
        found, [code] = run_and_get_code(lambda: run(**kwargs))
        assert 30 < decibel(net(**kwargs)[0], found) < 60
    assert "onednn.qconv" in code
    assert "onednn.qlinear" in code
