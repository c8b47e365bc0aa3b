"""Which parts of a network a cache names, whatever its class calls them, and what share of it that is."""

import diffusers
import pytest
import torch
from tiny import dit_pipeline, run_dit, stable_diffusion

from accel import Recipe, accelerate
from accel.caching import FeatureInheritance
from accel.caching.parts import blocks, branches, layers, role, share
from accel.caching.schedules import Uniform
from accel.config import choice_of
from accel.core.macs import count_macs

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 8}
SINGLE = {"attn", "proj_mlp", "proj_out"}
DOUBLE = {"attn", "ff", "ff_context"}
# Class, settings, and the branches of the blocks in each of its lists.
NETS = {
    "Flux": ("FluxTransformer2DModel", HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
             "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)},
             {"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE}),
    "Chroma": ("ChromaTransformer2DModel", HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
               "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8, "approximator_hidden_dim": 8,
               "approximator_layers": 1},
               {"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE}),
    "Qwen-Image": ("QwenImageTransformer2DModel", HEADS | {"in_channels": 16, "out_channels": 4, "num_layers": 2,
                   "axes_dims_rope": (8, 4, 4)}, {"transformer_blocks": {"attn", "img_mlp", "txt_mlp"}}),
    "AuraFlow": ("AuraFlowTransformer2DModel", {"sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 2,
                 "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16,
                 "joint_attention_dim": 8, "pos_embed_max_size": 16},
                 {"joint_transformer_blocks": DOUBLE, "single_transformer_blocks": {"attn", "ff"}}),
    "Wan": ("WanTransformer3DModel", {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
            "out_channels": 4, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16, "num_layers": 2, "rope_max_seq_len": 32},
            {"blocks": {"attn1", "attn2", "ffn"}}),
    "SD3": ("SD3Transformer2DModel", HEADS | {"sample_size": 4, "in_channels": 4, "num_layers": 2,
            "caption_projection_dim": 32, "pooled_projection_dim": 8, "out_channels": 4},
            {"transformer_blocks": DOUBLE}),
    "DiT": ("DiTTransformer2DModel", {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
            "sample_size": 8, "num_embeds_ada_norm": 5, "norm_num_groups": 4},
            {"transformer_blocks": {"attn1", "ff"}}),
}  # fmt: skip


@pytest.fixture(params=NETS)
def case(request):
    name, settings, expected = NETS[request.param]
    return getattr(diffusers, name)(**settings).eval(), expected


def test_blocks_are_the_entries_of_every_list_that_attends(case):
    net, expected = case
    assert {name.split(".")[0] for name in blocks(net)} == set(expected)
    assert (
        blocks(net)
        == layers(net)
        == [f"{k}.{i}" for k, m in net.named_children() if k in expected for i in range(len(m))]
    )


def test_branches_are_all_that_a_block_adds(case):
    net, expected = case
    found = {}
    for name in branches(net):
        own, _, branch = name.split(".")
        found.setdefault(own, set()).add(branch)
    assert found == expected


@pytest.mark.parametrize("choice", ["fora", "taylorseer"])
def test_attention_and_feed_forward_by_any_name(case, choice):
    net, _ = case
    names = choice_of("cache", choice).modules(net, "base")
    assert names == branches(net)
    assert share(net, names) == 1.0


def test_a_part_of_the_branches_is_a_part_of_the_share(case):
    net, _ = case
    attention = FeatureInheritance("unit", r"attn\d?$").modules(net, "base")
    assert 0 < share(net, attention) < 1
    assert share(net, []) == 0
    rest = [name for name in branches(net) if name not in attention]
    assert share(net, attention) + share(net, rest) == pytest.approx(1)


def test_roles():
    assert role("blocks.0.attn2") == "blocks.0.attn2"
    assert role("transformer_blocks.3.img_mlp") == "transformer_blocks.3.ff"
    assert role("layers.1.self_attention") == "layers.1.attn"


def test_a_run_says_what_share_is_cached():
    pipe = dit_pipeline()
    with accelerate(pipe, Recipe(cache=choice_of("cache", "fora"))) as run:
        run_dit(pipe)
    assert run.cached_share == {"base": 1.0}
    unet = stable_diffusion()
    with accelerate(unet, Recipe(cache=choice_of("cache", "fora"))) as run:
        pass
    assert 0 < run.cached_share["base"] < 0.5, "residual blocks are not attention"
    with accelerate(unet, Recipe()) as run:
        pass
    assert run.cached_share == {}


@pytest.mark.parametrize("level", ["block", "unit"])
def test_flux_reuses_both_kinds_of_blocks(level):
    """A step that reuses at the very input of the full one gives the same prediction; its products are nearly none."""
    name, settings, _ = NETS["Flux"]
    pipe = stable_diffusion()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(diffusers, name)(**settings).eval().requires_grad_(False)
    pipe.unet, pipe.transformer = None, net
    call = {
        "hidden_states": torch.randn(2, 4, 16), "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": torch.randn(2, 3, 8), "pooled_projections": torch.randn(2, 8),
        "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip
    with torch.no_grad(), accelerate(pipe, Recipe(cache=FeatureInheritance(level, schedule=Uniform(2)))) as run:
        run.scheduler.set_timesteps(4)
        whole, full = count_macs(lambda: net(**call).sample)
        x = torch.zeros(2, 4, 16)
        run.scheduler.step(x, run.scheduler.timesteps[0], x)
        again, partial = count_macs(lambda: net(**call).sample)
        assert [e.mode for e in run.trace] == ["full", "partial"]
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-6)
    assert partial < 0.2 * full


def test_kandinsky_3_has_the_parts_of_a_unet_under_names_of_its_own():
    """A step that reuses at the very input of the full one gives the same prediction."""
    pipe = stable_diffusion()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.Kandinsky3UNet(
            time_embedding_dim=8, groups=2, attention_head_dim=4, layers_per_block=2, block_out_channels=(8, 8),
            cross_attention_dim=8, encoder_hid_dim=8,
        ).eval().requires_grad_(False)  # fmt: skip
    found = branches(net)
    attention = [name for name in found if role(name).endswith((".attn", ".ff"))]
    assert {name.rsplit(".", 1)[-1] for name in found} == {"attention", "feed_forward", "projection"}
    assert attention == choice_of("cache", "fora").modules(net, "base"), "residual blocks are not attention"
    assert not any(isinstance(net.get_submodule(name), torch.nn.Identity) for name in layers(net))
    assert 0 < share(net, attention) < share(net, found) < 1
    pipe.unet = net
    call = {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(2, 3, 8), "encoder_attention_mask": torch.ones(2, 3),
    }  # fmt: skip
    with torch.no_grad(), accelerate(pipe, Recipe(cache=FeatureInheritance("unit", schedule=Uniform(2)))) as run:
        run.scheduler.set_timesteps(4)
        whole, full = count_macs(lambda: net(**call).sample)
        x = torch.zeros(2, 4, 8, 8)
        run.scheduler.step(x, run.scheduler.timesteps[0], x)
        again, partial = count_macs(lambda: net(**call).sample)
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-6)
    assert partial < 0.5 * full
