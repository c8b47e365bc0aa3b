"""Guidance by two calls of the denoiser: what a doubled batch gives, at the same cost."""

from __future__ import annotations

import hub_tiny
import pytest
import torch
from diffusers import UNet2DModel
from guidance.test_methods import CFG_LIKE, DDIM, fitted, name

from accel.core import pipelines
from accel.core.applied import apply
from accel.core.branches import Branches, as_long_as
from accel.core.branches import fitted as fitted_to
from accel.core.denoiser import Inputs
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.guidance import APG, CFG, AdaptiveGuidance, IntervalCFG
from accel.guidance.adaptive import OFF
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.suites.pipeline import PixelPipeline

SIX = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 6, "flow_euler")
EULER = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 4, "flow_euler")


class TwoCalls(PixelPipeline):
    """PixelPipeline with a call of the denoiser for each condition, `order` of them for each evaluation."""

    order = ("cond", "uncond")

    def _predict(self, inputs, t, condition):
        half, labels = len(inputs) // 2, condition["class_labels"]
        if self.null_label not in labels.tolist():
            return super()._predict(inputs, t, condition)
        rows = {"uncond": slice(0, half), "cond": slice(half, None)}
        made = {
            part: super(TwoCalls, self)._predict(inputs[rows[part]], t, {"class_labels": labels[rows[part]]})
            for part in self.order
        }
        return torch.cat([made["uncond"], made.get("cond", made["uncond"])])


class NullFirst(TwoCalls):
    order = ("uncond", "cond")


class NullAlone(TwoCalls):
    order = ("uncond",)


class ThreeCalls(TwoCalls):
    order = ("cond", "uncond", "cond")


@pytest.fixture(scope="module")
def pipes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
            norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
            num_class_embeds=5,
        ).eval().requires_grad_(False)  # fmt: skip
    from diffusers import DDIMScheduler

    def pipe(cls):
        made = cls(net, DDIMScheduler(clip_sample=False))
        made.set_progress_bar_config(disable=True)
        return made

    return pipe


def images(pipe, guidance, count=2, first=0, **call):
    """Images of `count` classes, and the run."""
    recipe = Recipe(DDIM, guidance=guidance)

    def sample(made, start, stop):
        generators = [torch.Generator().manual_seed(i) for i in range(start, stop)]
        labels = [i % 4 for i in range(start, stop)]
        return pipe(labels, guidance_scale=made.guidance_scale, generator=generators, output_type="pt", **call).images

    artefacts = guidance and fitted(pipe, recipe, lambda scale, n, a: sample(recipe, a, a + n))
    with accelerate(pipe, recipe, artefacts=artefacts, count_macs=True) as run:
        return sample(recipe, first, first + count), run


@pytest.mark.parametrize("guidance", CFG_LIKE, ids=name)
def test_two_calls_give_what_a_doubled_batch_gives_at_the_same_cost(guidance, pipes):
    expected, batched = images(pipes(PixelPipeline), guidance)
    found, called = images(pipes(TwoCalls), guidance)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (called.nfe, called.macs) == (batched.nfe, batched.macs)
    assert [e.samples for e in called.events] == [e.samples for e in batched.events]


def test_a_null_call_that_guidance_does_not_ask_for_is_not_evaluated(pipes):
    plain, alone = images(pipes(TwoCalls), CFG(3.0)), images(pipes(TwoCalls), None)
    off, run = images(pipes(TwoCalls), IntervalCFG(3.0, 1e6, 2e6))
    torch.testing.assert_close(off, alone[0])
    assert (plain[1].nfe, run.nfe, alone[1].nfe) == (12, 6, 6)
    _, run = images(pipes(TwoCalls), AdaptiveGuidance(3.0, -1.0, min_steps=2))
    assert run.nfe == 6 + 3
    assert [e.step for e in run.events if e.name == OFF] == [2]


def test_samples_whose_guidance_ended_leave_the_null_call(pipes, monkeypatch):
    """Such a pipeline has a call for each condition whatever is guided; the null one has the rows that still are."""
    from accel.guidance import adaptive

    found = {}
    for cls in (PixelPipeline, TwoCalls):
        told = iter([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0]])  # from the second step on
        monkeypatch.setattr(adaptive, "similarity", lambda u, c, told=told: torch.tensor(next(told)))
        found[cls] = images(pipes(cls), AdaptiveGuidance(3.0, 0.9), 4)
    (expected, batched), (images_of_two, called) = found.values()
    torch.testing.assert_close(images_of_two, expected, rtol=1e-4, atol=1e-5)
    assert (called.nfe, called.macs) == (batched.nfe, batched.macs)
    assert [e.rows for e in batched.trace] == [8, 8, 6, 6, 5, 4]
    assert [e.rows for e in called.trace] == [4, 4, 4, 4, 4, 2, 4, 2, 4, 1, 4]


def test_batches_of_one_and_odd_ones_are_two_calls(pipes):
    for count in (1, 3):
        found, run = images(pipes(TwoCalls), APG(3.0), count)
        torch.testing.assert_close(found, images(pipes(PixelPipeline), APG(3.0), count)[0], rtol=1e-4, atol=1e-5)
        assert run.nfe == 12


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (NullFirst, "first call of the denoiser is the null one"),
        (NullAlone, "but there was 1 in this step"),
        (ThreeCalls, "more than 2 times in one step"),
    ],
)
def test_other_calls_are_refused_at_the_first_step(cls, reason, pipes):
    pipe = pipes(cls)
    with pytest.raises(AccelError, match=reason):
        images(pipe, CFG(3.0))
    images(pipe, None)  # nothing is left behind


def test_a_pipeline_that_was_not_asked_to_guide_is_refused(pipes):
    pipe = pipes(TwoCalls)
    with accelerate(pipe, Recipe(DDIM, guidance=AdaptiveGuidance(3.0))), pytest.raises(ConfigError, match="made for 3"):
        pipe([1], guidance_scale=2.0)
    with accelerate(pipe, Recipe(DDIM, guidance=AdaptiveGuidance(3.0))), pytest.raises(AccelError, match="there was 1"):
        pipe([1], guidance_scale=1.0)


# diffusers' own -------------------------------------------------------------------------------------------------


def flux(**config):
    pipe = hub_tiny._flux(**config)
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, recipe=None, **call):
    """Latents of two prompts, and the run; without a recipe the pipeline guides as `call` says."""
    own = {"prompt": ["a", "b"], "height": 16, "width": 16, "output_type": "latent", "max_sequence_length": 8}
    own["generator"] = [torch.Generator().manual_seed(i) for i in range(2)]
    with accelerate(pipe, recipe or Recipe(EULER)) as run:
        return pipe(**own | call).images, run


def test_flux_guides_by_its_true_scale_and_its_network_is_told_the_other():
    pipe = flux()
    assert pipelines.layout(pipe) == "separate"
    both = {"guidance_scale": 2.5, "negative_prompt": ["", ""]}
    plain, _ = latents(pipe, true_cfg_scale=3.0, **both)
    found, run = latents(pipe, Recipe(EULER, guidance=CFG(3.0)), guidance_scale=2.5)  # without a word of the rest
    assert torch.equal(found, plain)
    assert run.nfe == 8
    assert not torch.equal(latents(pipe, Recipe(EULER, guidance=CFG(3.0)), guidance_scale=4.0)[0], plain)
    alone, run = latents(pipe, Recipe(EULER), **both)
    assert torch.equal(alone, latents(pipe, true_cfg_scale=1.0, **both)[0])
    assert run.nfe == 4
    torch.testing.assert_close(latents(pipe, Recipe(EULER, guidance=APG(3.0, 1.0, 0.0, 0.0)), **both)[0], plain)
    with pytest.raises(ConfigError, match=r"true_cfg_scale=2, .*made for 3"):
        latents(pipe, Recipe(EULER, guidance=CFG(3.0)), true_cfg_scale=2.0, **both)
    embeds = {"prompt_embeds": torch.zeros(2, 8, 32), "pooled_prompt_embeds": torch.zeros(2, 32), "prompt": None}
    with pytest.raises(ConfigError, match="negative_prompt_embeds"):
        latents(pipe, Recipe(EULER, guidance=CFG(3.0)), **embeds)


def test_schnell_can_be_guided_too():
    pipe = flux(guidance_embeds=False)
    plain, _ = latents(pipe, true_cfg_scale=2.0, negative_prompt=["", ""])
    assert torch.equal(latents(pipe, Recipe(EULER, guidance=CFG(2.0)))[0], plain)


def test_what_a_call_is_told_so_that_it_guides():
    import diffusers

    told = pipelines.scale_arguments
    assert told(diffusers.StableDiffusionPipeline, 4.0) == {"guidance_scale": 4.0}
    assert told(diffusers.FluxPipeline, 4.0, 3.5) == {"true_cfg_scale": 4.0, "guidance_scale": 3.5}
    assert told(diffusers.QwenImagePipeline, 4.0) == {"true_cfg_scale": 4.0}
    assert told(diffusers.ZImagePipeline, 4.0) == {"guidance_scale": 3.0}  # c + 3 (c - u)
    assert told(diffusers.LatentConsistencyModelPipeline, 1.0, 8.0) == {"guidance_scale": 8.0}


def test_the_scale_of_a_call_that_says_nothing():
    import diffusers

    usual = pipelines.usual_scale
    assert [usual(c) for c in (diffusers.StableDiffusionPipeline, diffusers.QwenImagePipeline)] == [7.5, 4.0]
    assert usual(diffusers.FluxPipeline) == 1.0  # its guidance_scale is what the network is told
    assert usual(diffusers.ZImagePipeline) == 6.0
    assert usual(diffusers.DDPMPipeline) is None


# two denoisers --------------------------------------------------------------------------------------------------


def wan():
    """Wan 2.2: a second network for the lower noise levels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    def net(seed):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=8, ffn_dim=16, num_layers=2, rope_max_seq_len=32,
        ).eval().requires_grad_(False)  # fmt: skip

    with torch.random.fork_rng():
        nets = net(1), net(2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(None, None, None, scheduler, *nets, boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked(**call):
    embeds = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    own = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1], "num_frames": 5, "output_type": "latent"}
    return own | {"height": 16, "width": 16, "generator": torch.Generator().manual_seed(0), **call}


def video(pipe, recipe=None, **call):
    with accelerate(pipe, recipe or Recipe(SIX), count_macs=True) as run:
        return pipe(**asked(**call)).frames, run


def test_a_second_denoiser_of_the_pipeline_runs_under_the_recipe_and_counts():
    pipe, calls = wan(), []
    for part in ("transformer", "transformer_2"):
        getattr(pipe, part).proj_out.register_forward_hook(lambda *_, part=part: calls.append(part))
    plain, own = video(pipe, guidance_scale=3.0)
    made = list(calls)
    assert 0 < made.count("transformer_2") < len(made) == 12 == own.nfe
    calls.clear()
    found, run = video(pipe, Recipe(SIX, guidance=CFG(3.0)))
    assert torch.equal(found, plain)
    assert calls == made
    assert [e.model for e in run.trace] == ["base" if part == "transformer" else part for part in made]
    off, run = video(pipe, Recipe(SIX, guidance=AdaptiveGuidance(3.0, -1.0)))  # what is off stays off in the second
    assert [e.step for e in run.events] == [1]
    assert run.nfe == 8
    assert not torch.equal(off, plain)
    torch.testing.assert_close(video(pipe, Recipe(SIX, guidance=APG(3.0, 1.0, 0.0, 0.0)))[0], plain)
    with pytest.raises(ConfigError, match=r"guidance_scale_2=5, .*made for 3"):
        video(pipe, Recipe(SIX, guidance=CFG(3.0)), guidance_scale_2=5.0)
    assert all("forward" not in vars(net) for net in (pipe.transformer, pipe.transformer_2))


def test_both_denoisers_are_served_by_an_applied_recipe():
    pipe, recipe = wan(), Recipe(SIX, guidance=AdaptiveGuidance(3.0, -1.0))
    expected, _ = video(pipe, recipe)
    applied = apply(pipe, recipe)
    assert torch.equal(pipe(**asked()).frames, expected)
    with pytest.raises(ConfigError, match=r"guidance_scale_2=5\.0"):
        pipe(**asked(), guidance_scale_2=5.0)
    applied.remove()
    assert all("forward" not in vars(net) for net in (pipe.transformer, pipe.transformer_2))


def test_no_other_choice_of_the_network_goes_with_it():
    pipe = wan()
    recipe = Recipe(SIX, stitch=TStitch(("small",), (0.5,)))
    with pytest.raises(IncompatibleError, match=r"changes to transformer_2 in mid-trajectory by itself.*stitch=none"):
        recipe.check(pipe, {"small": pipe.transformer})


# parts ----------------------------------------------------------------------------------------------------------


def test_branches_are_the_rows_of_both_calls():
    calls = {
        n: Inputs({"x": torch.full((2, 3), i), "text": torch.zeros(2, i)}, "x", (n,))
        for i, n in [(1, "cond"), (4, "uncond")]
    }
    both = Branches.of(calls)
    assert (both.rows, both.parts) == (4, ("cond", "uncond"))
    assert both.take("uncond") is calls["uncond"]
    assert both.sample[:, 0].tolist() == [1, 1, 4, 4]


def test_lengths_and_shapes_are_those_that_the_pipeline_steps_with():
    g, c = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 10.0], [1.0, 0.0]]])
    assert torch.equal(as_long_as(g, c), torch.tensor([[[6.0, 8.0], [0.0, 1.0]]]))
    assert torch.equal(
        fitted_to(torch.arange(6.0).reshape(1, 3, 2), torch.zeros(1, 2, 2)), torch.tensor([[[0.0, 1], [2, 3]]])
    )
    with pytest.raises(AccelError, match=r"predicts \(1, 3, 2\) and the pipeline steps with \(1, 4, 2\)"):
        fitted_to(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2))


def test_lists_of_rows_are_sliced_like_tensors():
    rows = [torch.full((i + 1, 2), i) for i in range(4)]
    inputs = Inputs({"x": torch.arange(4.0), "text": rows}, "x", ("cond", "uncond"), listed=True)
    assert [len(row) for row in inputs.take("uncond").kwargs["text"]] == [3, 4]
    assert [len(row) for row in inputs.take("uncond").pick([1]).kwargs["text"]] == [4]
    assert len(inputs.tiled(2).kwargs["text"]) == 8


def test_rows_of_an_argument_may_be_along_its_second_dimension():
    """HiDream's Llama features (layers, B, ...): as many layers as rows, or not."""
    for rows in (2, 4):
        features = torch.arange(rows).expand(2, rows)[..., None]
        inputs = Inputs({"x": torch.zeros(rows), "encoder_hidden_states_llama3": features}, "x", ("uncond", "cond"))
        taken = inputs.take("cond").kwargs["encoder_hidden_states_llama3"]
        assert taken[..., 0].tolist() == [list(range(rows // 2, rows))] * 2


def test_positions_of_tokens_are_not_rows_although_they_are_as_many():
    """HunyuanDiT's rotary embedding (tokens, D), Flux's ids (tokens, 3) and those of Flux 2 (B, tokens, 4)."""
    kwargs = {"x": torch.zeros(4), "image_rotary_emb": (torch.zeros(4, 8),) * 2, "img_ids": torch.zeros(4, 3)}
    kwargs["txt_ids"] = torch.zeros(4, 4, 4)
    taken = Inputs(kwargs, "x", ("uncond", "cond")).take("cond").kwargs
    assert [len(t) for t in taken["image_rotary_emb"]] == [4, 4]
    assert (len(taken["img_ids"]), len(taken["txt_ids"]), len(taken["x"])) == (4, 2, 2)
