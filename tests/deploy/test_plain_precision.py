"""Lines of plain_precision on a network: what accel makes of it at the seam, whatever its forward takes."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from accel.core.denoiser import Inputs, Node
from accel.core.trajectory import Trajectory
from accel.deploy.plain_precision import TF32_ALONE, lines_of
from accel.precision import Cast, Compiled, StaticInt8


def made(precision, net):
    """The forward of `net` as a script has it, beside what accel makes of the network."""
    pipe = SimpleNamespace(transformer=net)
    lines = lines_of(precision, net, "transformer")
    given = {"pipe": pipe, "torch": torch, "__name__": "script"}
    exec("\n".join([*(f"import {module}" for module in lines.modules), *lines.further, lines.setup]), given)
    return net


class Keeping(ModelMixin, ConfigMixin):
    """A network with all that a cast must know: modules that stay in float32, a timestep's embedding in the dtype of
    the timestep, and arguments that nest."""

    _keep_in_fp32_modules: ClassVar = ["norm"]

    @register_to_config
    def __init__(self, width: int = 8):
        super().__init__()
        self.embed = TimestepEmbedding(width, width)
        self.linear, self.norm = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.seen = []

    def forward(self, hidden_states, timestep, more=None, return_dict=True):
        time = self.embed(timestep[:, None].expand(-1, hidden_states.shape[1]))
        listed, (own,) = more["list"], more["tuple"]
        self.seen.append(
            (timestep.dtype, more["timestep"].dtype, own.dtype, listed[0].dtype, listed[1].dtype, self.dtype)
        )
        hidden = self.linear(hidden_states) + time.to(hidden_states.dtype) + own + listed[0]
        return (
            (self.norm(hidden.float()),)
            if not return_dict
            else Transformer2DModelOutput(sample=self.norm(hidden.float()))
        )


@pytest.mark.parametrize("precision", [Cast("bfloat16"), Cast("float16"), Compiled("bfloat16", "none")], ids=str)
def test_a_script_casts_whatever_the_forward_takes(precision):
    """As the recipe at the seam does: the same numbers, the same dtypes inside, and outside the network's own."""
    torch.manual_seed(0)
    net = Keeping().eval().requires_grad_(False)
    own = copy.deepcopy(net)
    x, t = torch.randn(2, 8), torch.tensor([601.0, 3.0])
    more = {"timestep": t, "tuple": (torch.randn(2, 8),), "list": [torch.randn(2, 8), torch.tensor([1, 2])]}
    node = Node("base", own, Trajectory(), ExitStack())
    precision.prepare(node)
    forward = precision.forward(node, own.forward)
    want = node.predict(Inputs({"hidden_states": x, "timestep": t, "more": more}, "hidden_states"), forward)
    made(precision, net)
    assert torch.equal(net(x, t, more=more).sample, want)
    assert torch.equal(net(hidden_states=x, timestep=t, more=more, return_dict=False)[0], want)
    assert net.dtype == own.dtype == torch.float32
    if isinstance(precision, Cast):
        assert net.seen[0] == own.seen[0]
        assert {name: p.dtype for name, p in net.named_parameters()} == {n: p.dtype for n, p in own.named_parameters()}
        assert net.norm.weight.dtype == torch.float32 != net.linear.weight.dtype
    node.undo.close()


def test_tf32_is_on_within_evaluations_only():
    net, seen = torch.nn.Linear(2, 2), []
    net.register_forward_hook(lambda *args: seen.append(switches()))
    forward = net.forward
    net.forward = lambda x: seen.append(switches()) or forward(x)
    exec(TF32_ALONE.format(net="unet"), {"pipe": SimpleNamespace(unet=net), "torch": torch})
    before = switches()
    net(torch.ones(2))
    assert seen[0] in (["tf32"] * 2, [True] * 2)
    assert seen[1] == switches() == before
    assert before != seen[0], "the test can fail"


def switches():
    parts = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn))
    return [getattr(part, "fp32_precision", None) or part.allow_tf32 for part in parts]


def test_what_changes_nothing_has_no_lines_and_what_needs_accel_none_at_all():
    net = Keeping()
    assert lines_of(Cast("float32"), net, "unet").setup == ""
    assert lines_of(StaticInt8(), net, "unet") is None
    assert lines_of(Cast("bfloat16"), torch.nn.Linear(2, 2), "unet") is None, "which takes no return_dict"
