"""Which layers are quantised or cast: a timestep's embedding wherever it is, adapters that run, what stays float32."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, HunyuanDiT2DModel, SD3Transformer2DModel, WanTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from tiny import run_stable_diffusion, stable_diffusion
from torch import nn

from accel import Recipe, accelerate
from accel.precision import Cast
from accel.precision.layers import KEEP, left_float, quantisable


def dit():
    return DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=2,
                                 sample_size=4, norm_num_groups=4, num_embeds_ada_norm=5)  # fmt: skip


def sd3():
    return SD3Transformer2DModel(sample_size=4, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4,
                                 num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8,
                                 pooled_projection_dim=8, out_channels=4)  # fmt: skip


def wan():
    return WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                                 out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=2,
                                 rope_max_seq_len=32)  # fmt: skip


def hunyuan():
    return HunyuanDiT2DModel(sample_size=4, patch_size=2, in_channels=4, hidden_size=8, num_layers=2,
                             num_attention_heads=2, attention_head_dim=4, cross_attention_dim=8, mlp_ratio=2,
                             cross_attention_dim_t5=8, pooled_projection_dim=8, text_len=4, text_len_t5=4)  # fmt: skip


@pytest.mark.parametrize("make", [dit, sd3, wan])
def test_the_timesteps_embedding_of_a_transformer_stays_in_floating_point(make):
    net = make()
    embedders = [m for m in net.modules() if isinstance(m, TimestepEmbedding)]
    assert embedders
    inside = {id(layer) for m in embedders for layer in m.modules()}
    assert not [n for n, m in quantisable(net, KEEP).items() if id(m) in inside]
    assert {n for n, m in net.named_modules() if id(m) in inside and isinstance(m, nn.Linear)} == set(
        left_float(net, KEEP)
    )
    assert set(quantisable(net, ())) == {n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def test_a_unets_layers_are_named_by_the_patterns_alone():
    net = stable_diffusion().unet
    kept = left_float(net, KEEP)
    assert kept
    assert all(n.startswith("time_embedding.") or n.endswith("time_emb_proj") for n in kept)


class Adapted(nn.Module):
    """A linear layer with two adapters, as peft has it; one is active."""

    def __init__(self, merged: bool = False, disable_adapters: bool = False, active_adapters=("a",)) -> None:
        super().__init__()
        self.base_layer = nn.Linear(2, 2)
        self.lora_A = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
        self.lora_B = nn.ModuleDict({"a": nn.Linear(1, 2), "b": nn.Linear(1, 2)})
        self.merged, self.disable_adapters, self.active_adapters = merged, disable_adapters, list(active_adapters)


@pytest.mark.parametrize("off", [{"merged": True}, {"disable_adapters": True}, {"active_adapters": ()}])
def test_adapters_that_never_run_are_no_layers(off):
    assert set(quantisable(nn.Sequential(Adapted(**off)), KEEP)) == {"0.base_layer"}
    assert set(quantisable(nn.Sequential(Adapted()), KEEP)) == {"0.base_layer", "0.lora_A.a", "0.lora_B.a"}


# --- casts


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_modules_that_a_class_keeps_in_float32_stay_so(dtype):
    pipe = stable_diffusion()
    cls = type(pipe.unet)
    pipe.unet.__class__ = type(cls.__name__, (cls,), {"_keep_in_fp32_modules": ["time_embedding"]})
    wide = {"time_embedding.linear_1.weight", "time_embedding.linear_2.bias"}
    with accelerate(pipe, Recipe(precision=Cast(dtype))):
        types = {n: p.dtype for n, p in pipe.unet.named_parameters()}
    assert {types[n] for n in wide} == {torch.float32}
    assert types["conv_in.weight"] == getattr(torch, dtype)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


def test_a_timestep_in_float32_does_not_reach_layers_in_bfloat16():
    """HunyuanDiT computes its embeddings in the timestep's dtype; it stays float32, since bfloat16 rounds timesteps."""
    net, pipe = hunyuan().eval(), stable_diffusion()
    pipe.unet, pipe.transformer = None, net
    pipe.register_to_config(unet=(None, None))
    call = {
        "hidden_states": torch.randn(2, 4, 4, 4), "timestep": torch.tensor([999.0, 999.0]),
        "encoder_hidden_states": torch.randn(2, 4, 8), "text_embedding_mask": torch.ones(2, 4),
        "encoder_hidden_states_t5": torch.randn(2, 4, 8), "text_embedding_mask_t5": torch.ones(2, 4),
        "image_meta_size": torch.ones(2, 6), "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": (torch.ones(4, 4), torch.zeros(4, 4)),
    }  # fmt: skip
    with torch.no_grad():
        plain = net(**call).sample
        with accelerate(pipe, Recipe(precision=Cast("bfloat16"))) as run:
            run.scheduler.set_timesteps(2)
            found = net(**call).sample
    assert found.dtype == torch.float32
    assert 0 < (found - plain).abs().max() < 0.1 * plain.abs().max()


def test_casts_on_a_unet_are_what_they_were():
    pipe = stable_diffusion()
    plain = run_stable_diffusion(pipe, 3.0)
    with accelerate(pipe, Recipe(precision=Cast("bfloat16"))):
        found = run_stable_diffusion(pipe, 3.0)
    assert 0 < (found - plain).abs().max() < 0.2
    assert torch.equal(run_stable_diffusion(pipe, 3.0), plain)
