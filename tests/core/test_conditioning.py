"""A network with conditioning of its own shares the trajectory of one that is told prompts in another way."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel.caching import DeepCache
from accel.core.conditioning import Lookup, conditioned, conditioning_of
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.stitching import TStitch

STITCH = TStitch(("other",), (0.5,))


@pytest.fixture(scope="module")
def text_pipe():
    return stable_diffusion()


def prompts(width: int = 8) -> torch.Tensor:
    """What `run_stable_diffusion` tells the pipeline of its two prompts and its two negative ones."""
    told, negative = (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in (100, 0))
    return torch.cat([told, 3 * negative])[..., :width]


def test_a_translation_replaces_the_conditioning_of_its_network_only(text_pipe):
    """Told the pipeline's own states in another order of prompts, a copy does what the pipeline does for that order."""
    copied = copy.deepcopy(text_pipe.unet)
    same = conditioned(copied, Lookup("encoder_hidden_states", prompts(), {"encoder_hidden_states": prompts()}))
    with accelerate(text_pipe, Recipe(guidance=CFG(3.0), stitch=STITCH), models={"other": same}) as run:
        found = run_stable_diffusion(text_pipe, 3.0, steps=4)
    assert "".join(e.model[0] for e in run.trace) == "oobb"
    with accelerate(text_pipe, Recipe(guidance=CFG(3.0))):
        plain = run_stable_diffusion(text_pipe, 3.0, steps=4)
    assert torch.equal(found, plain)

    swapped = conditioned(copied, Lookup("encoder_hidden_states", prompts(), {"encoder_hidden_states": -prompts()}))
    with accelerate(text_pipe, Recipe(guidance=CFG(3.0), stitch=STITCH), models={"other": swapped}):
        assert not torch.allclose(run_stable_diffusion(text_pipe, 3.0, steps=4), plain, atol=1e-3)


@pytest.mark.parametrize("cache", [None, DeepCache(2, 1)], ids=["plain", "deepcache"])
def test_a_network_of_another_text_width_takes_part_only_with_its_own_conditioning(text_pipe, cache):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    config = {k: v for k, v in text_pipe.unet.config.items() if not k.startswith("_")}
    other = UNet2DConditionModel(**config | {"cross_attention_dim": 6}).eval().requires_grad_(False)
    recipe = Recipe(guidance=CFG(3.0), stitch=STITCH, cache=cache)
    with pytest.raises(IncompatibleError, match="cross_attention_dim is 6 in 'other' and 8 in 'base'"):
        recipe.check(text_pipe, {"other": other})
    narrow = prompts(6)
    conditioned(other, Lookup("encoder_hidden_states", prompts(), {"encoder_hidden_states": narrow}))
    seen = []
    handle = other.mid_block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    with accelerate(text_pipe, recipe, models={"other": other}):
        run_stable_diffusion(text_pipe, 3.0, steps=4)
    handle.remove()
    assert all(torch.equal(states, narrow[[2, 3, 0, 1]]) for states in seen)
    assert seen


def test_labels_are_looked_up_too():
    table = Lookup("class_labels", torch.tensor([0, 3, 10]), {"class_labels": torch.tensor([5, 6, 7])})
    assert table({"class_labels": torch.tensor([10, 0, 0, 3])})["class_labels"].tolist() == [7, 5, 5, 6]


def test_bad_tables_and_unknown_prompts_are_refused():
    with pytest.raises(ConfigError, match="has 1 rows, that of known 'class_labels' 2"):
        Lookup("class_labels", torch.tensor([0, 1]), {"context": torch.zeros(1, 4)})
    table = Lookup("class_labels", torch.tensor([0, 1]), {"context": torch.zeros(2, 4)})
    with pytest.raises(IncompatibleError, match="row 1 of class_labels is none of the 2 known"):
        table({"class_labels": torch.tensor([0, 9])})


def test_networks_have_no_translation_of_their_own(text_pipe):
    assert conditioning_of(text_pipe.unet) is None
