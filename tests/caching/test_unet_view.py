"""Truncated views on every kind of UNet: the defining relation, exact restore, and what is refused."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
)

from accel.caching.unet_view import ShallowView, skip_count
from accel.errors import AccelError, IncompatibleError

torch.manual_seed(0)
pytestmark = pytest.mark.usefixtures("plain_kernels")


def unet2d(**changes):
    settings = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 4,
        "block_out_channels": (8, 16, 16), "num_class_embeds": 5, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DModel(**settings | changes).eval(), {"class_labels": torch.tensor([1, 2])}


def unet_sd(**changes):
    """Stable Diffusion's UNet in miniature: cross-attention, three resolutions."""
    settings = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 4,
        "block_out_channels": (8, 16, 16), "cross_attention_dim": 12, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**settings | changes).eval(), {"encoder_hidden_states": torch.randn(2, 5, 12)}


def unet_sdxl():
    net, condition = unet_sd(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
        use_linear_projection=True, transformer_layers_per_block=(1, 2, 1),
    )  # fmt: skip
    added = {"text_embeds": torch.randn(2, 8), "time_ids": torch.randn(2, 6)}
    return net, condition | {"added_cond_kwargs": added}


KINDS = {
    "UNet2DModel": unet2d,
    "one layer": lambda: unet2d(layers_per_block=1),
    "three layers": lambda: unet2d(layers_per_block=3),
    "ADM style": lambda: unet2d(
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift"
    ),
    "SD": unet_sd,
    "SDXL": unet_sdxl,
    "no mid block": lambda: unet_sd(mid_block_type=None),
}


@cache
def made(kind: str):
    """The network of a kind, made once, and its condition; tests leave it as it was."""
    return KINDS[kind]()


CASES = [(kind, skips) for kind in KINDS for skips in range(1, skip_count(made(kind)[0]) + 1)]


def overwritten_forward(net, view: ShallowView, stored: torch.Tensor, x, t, condition):
    """A full forward in which the first channels of the entry resnet's input are overwritten by `stored`."""
    entry = net.up_blocks[view.entry_block].resnets[view.entry_layer]

    def overwrite(module, args, kwargs):
        hidden = (args[0] if args else kwargs["input_tensor"]).clone()
        hidden[:, : stored.shape[1]] = stored
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"input_tensor": hidden})

    handle = entry.register_forward_pre_hook(overwrite, with_kwargs=True)
    try:
        return net(x, t, **condition).sample
    finally:
        handle.remove()


def assert_shallow_is_overwritten(net, view, condition, x, later, full, stored):
    same = view.forward(stored, sample=x, timestep=500, **condition).sample
    torch.testing.assert_close(same, full, atol=1e-6, rtol=1e-5)
    shallow = view.forward(stored, sample=later, timestep=300, **condition).sample
    expected = overwritten_forward(net, view, stored, later, 300, condition)
    torch.testing.assert_close(shallow, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(shallow, net(later, 300, **condition).sample, atol=1e-4), "the cache is really stale"


@torch.no_grad()
@pytest.mark.parametrize(("kind", "skips"), CASES)
def test_shallow_equals_a_full_forward_with_the_entry_overwritten(kind, skips):
    """The definition of DeepCache: only the stored tensor is old, everything outside it is computed at (x_t, t)."""
    net, condition = made(kind)
    view = ShallowView(net, skips)
    x, later = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    full, stored = view.capture(lambda: net(x, 500, **condition).sample)
    torch.testing.assert_close(full, net(x, 500, **condition).sample, atol=0, rtol=0)
    assert_shallow_is_overwritten(net, view, condition, x, later, full, stored)


@torch.no_grad()
def test_a_full_evaluation_that_bypasses_the_network_is_an_error():
    net, _ = unet_sd()
    with pytest.raises(AccelError, match="did not pass through the UNet's up blocks"):
        ShallowView(net, 2).capture(lambda: "an answer from elsewhere")


def test_deeper_branches_cost_more_and_the_deepest_saves_least():
    from accel.core.macs import count_macs

    net, condition = unet_sd()
    _, full = count_macs(lambda: net(torch.randn(2, 1, 16, 16), 1, **condition))
    costs = []
    for skips in range(1, skip_count(net) + 1):
        view = ShallowView(net, skips)
        _, stored = view.capture(lambda: net(torch.randn(2, 1, 16, 16), 1, **condition))
        x = torch.randn(2, 1, 16, 16)
        costs.append(count_macs(lambda v=view, s=stored, x=x: v.forward(s, sample=x, timestep=1, **condition))[1])
    assert costs == sorted(costs)
    assert costs[0] < 0.2 * full
    assert costs[-1] < full


@torch.no_grad()
@pytest.mark.parametrize("kind", ["SD", "no mid block"])
def test_the_original_is_as_it_was_after_a_view_was_made_and_has_run(kind):
    net, condition = KINDS[kind]()

    def state():
        return [(n, id(m), list(vars(m)), list(m._modules)) for n, m in net.named_modules()]

    before, x = state(), torch.randn(2, 1, 16, 16)
    expected = net(x, 500, **condition).sample
    view = ShallowView(net, 3)
    assert state() == before
    _, stored = view.capture(lambda: net(x, 500, **condition))
    view.forward(stored, sample=x, timestep=500, **condition)
    with pytest.raises(TypeError):
        view.forward(stored, sample=x, timestep=500, **condition, unknown=1)
    assert state() == before
    assert torch.equal(net(x, 500, **condition).sample, expected)


def motion(**changes):
    """AnimateDiff's UNet in miniature: frames lie in the batch inside, and each layer ends with a motion module."""
    settings = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 4,
        "block_out_channels": (8, 8), "cross_attention_dim": 12, "num_attention_heads": 2,
        "motion_num_attention_heads": 2, "motion_max_seq_length": 8, "use_motion_mid_block": False,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    }  # fmt: skip
    net = UNetMotionModel(**settings | changes).eval()
    for name, p in net.named_parameters():  # motion modules are nothing at the start
        if "motion_modules" in name:
            torch.nn.init.normal_(p, std=0.2)
    return net, {"encoder_hidden_states": torch.randn(2 * 3, 5, 12)}


def video3d():
    settings = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 4,
        "block_out_channels": (8, 8), "cross_attention_dim": 12, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }  # fmt: skip
    net = UNet3DConditionModel(**settings).eval()
    for name, p in net.named_parameters():
        if "temp" in name and p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    return net, {"encoder_hidden_states": torch.randn(2, 5, 12)}


@torch.no_grad()
@pytest.mark.parametrize("make", [motion, video3d])
@pytest.mark.parametrize("skips", range(1, 7))
def test_shallow_equals_a_full_forward_with_the_entry_overwritten_on_video(make, skips):
    net, condition = make()
    view, (x, later) = ShallowView(net, skips), torch.randn(2, 2, 1, 3, 8, 8)
    full, stored = view.capture(lambda: net(x, 500, **condition).sample)
    assert_shallow_is_overwritten(net, view, condition, x, later, full, stored)


@torch.no_grad()
@pytest.mark.parametrize("formerly", [False, True])
@pytest.mark.parametrize("skips", range(1, 10))
def test_an_adapters_residuals_are_where_the_whole_network_has_them(skips, formerly):
    """T2I-Adapter: one residual a down block; formerly handed over under the name of ControlNet's."""
    net, condition = made("SD")
    view, (x, later) = ShallowView(net, skips), torch.randn(2, 2, 1, 16, 16)

    name = "down_block_additional_residuals" if formerly else "down_intrablock_additional_residuals"
    residuals = [torch.randn(2, c, n, n) for c, n in ((8, 16), (16, 8), (16, 4))]

    def given():
        return {name: [r.clone() for r in residuals]}

    _, stored = view.capture(lambda: net(x, 500, **condition, **given()).sample)
    shallow = view.forward(stored, sample=later, timestep=300, **condition, **given()).sample
    expected = overwritten_forward(net, view, stored, later, 300, condition | given())
    torch.testing.assert_close(shallow, expected, atol=1e-6, rtol=1e-5)
    without = overwritten_forward(net, view, stored, later, 300, condition)
    assert skips < 4 or not torch.allclose(expected, without, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("skips", range(1, 10))
def test_hooks_of_other_libraries_run_in_a_view_as_on_the_network(skips):
    """Offloading brings a module's weights by a hook on its instance's forward, of the root and of blocks that are cut,
    too: all modules whose own parameters a shallow step reads have been announced."""
    net, condition = unet_sd()
    announced = []
    groups = [net, *net.down_blocks, *net.up_blocks]
    for module in groups:
        original = module.forward

        def hooked(*args, _module=module, _original=original, **kwargs):
            announced.append(_module)
            return _original(*args, **kwargs)

        module.forward = hooked
    view = ShallowView(net, skips)
    _, stored = view.capture(lambda: net(torch.randn(2, 1, 16, 16), 500, **condition))
    announced.clear()
    ran = []
    handles = [m.register_forward_pre_hook(lambda m, a: ran.append(m)) for m in net.modules() if not list(m.children())]
    view.forward(stored, sample=torch.randn(2, 1, 16, 16), timestep=300, **condition)
    for handle in handles:
        handle.remove()
    owner = {id(part): group for group in groups for part in group.modules()}  # blocks after the root
    needed = {id(owner[id(m)]) for m in ran if id(m) in owner and next(m.parameters(), None) is not None}
    assert needed <= {id(m) for m in announced}


@torch.no_grad()
def test_odd_sizes_and_controlnet_residuals():
    net, condition = unet_sd()
    x = torch.randn(2, 1, 20, 12)
    view = ShallowView(net, 2)
    full, stored = view.capture(lambda: net(x, 500, **condition).sample)
    assert torch.allclose(view.forward(stored, sample=x, timestep=500, **condition).sample, full, atol=1e-6)

    shapes = [(2, 8, 16, 16)] * 3 + [(2, 8, 8, 8)] + [(2, 16, 8, 8)] * 2 + [(2, 16, 4, 4)] * 3
    residuals = {
        "down_block_additional_residuals": tuple(torch.randn(s) for s in shapes),
        "mid_block_additional_residual": torch.randn(2, 16, 4, 4),
    }
    x = torch.randn(2, 1, 16, 16)
    full, stored = view.capture(lambda: net(x, 500, **condition, **residuals).sample)
    assert torch.allclose(
        view.forward(stored, sample=x, timestep=500, **condition, **residuals).sample, full, atol=1e-6
    )


def test_networks_without_skips_are_refused():
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=8)
    with pytest.raises(IncompatibleError, match="skip connections of a UNet"):
        skip_count(dit, "base")


@pytest.mark.parametrize("skips", range(1, 10))
def test_freeu_is_applied_once_to_what_is_stored(skips):
    """At the inputs of the full step the shallow one is the full one, again and again."""
    net, condition = unet_sd()
    net.enable_freeu(s1=0.5, s2=0.5, b1=1.5, b2=1.5)
    view, x = ShallowView(net, skips), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        (expected,), stored = view.capture(lambda: net(x, torch.tensor(7), **condition, return_dict=False))
        for _ in range(2):
            (found,) = view.forward(stored, sample=x, timestep=torch.tensor(7), **condition, return_dict=False)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
