"""Magnitude pruning: exactly the smallest weights go, and they come back; size, text encoder, composition."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot
from tiny import stable_diffusion
from torch import nn

from accel.caching import DeepCache
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.precision import MagnitudePruning
from accel.precision.simulated.pruning import keep, weights_of
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


def test_the_smallest_go_by_one_threshold():
    a, b = torch.tensor([[3.0, -1.0], [0.5, 4.0]]), torch.tensor([-2.0, 0.1, 5.0])
    first, second = keep([a, b], 3 / 7)
    assert first.tolist() == [[True, False], [False, True]]
    assert second.tolist() == [True, False, True]


def test_of_equal_weights_exactly_the_asked_number_goes():
    assert [m.sum().item() for m in keep([torch.ones(10), torch.zeros(4)], 0.5)] == [7, 0]


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_counts_and_way_back(pipe, models, run, scope):
    before = snapshot(pipe, models.values())
    pruning = MagnitudePruning(0.4, scope=scope)
    with accelerate(pipe, Recipe(DDIM, stitch=TStitch(), precision=pruning), models=models):
        for net in (pipe.unet, models["small"]):
            weights = weights_of(net)
            zeros = [int((w == 0).sum()) for w in weights]
            if scope == "layer":
                assert zeros == [round(0.4 * w.numel()) for w in weights]
            else:
                assert sum(zeros) == round(0.4 * sum(w.numel() for w in weights))
                assert len({round(z / w.numel(), 2) for z, w in zip(zeros, weights, strict=True)}) > 3
        run()
    assert_same(before, snapshot(pipe, models.values()))


def test_nothing_pruned_is_nothing_changed(pipe, run):
    with accelerate(pipe, Recipe(DDIM)):
        expected = run()
    with accelerate(pipe, Recipe(DDIM, precision=MagnitudePruning(0.0))):
        assert torch.equal(run(), expected)


def test_more_pruning_changes_more_and_composes_with_caches(pipe, run):
    with accelerate(pipe, Recipe(DDIM)):
        exact = run()

    def error(sparsity, cache=None):
        with accelerate(pipe, Recipe(DDIM, cache=cache, precision=MagnitudePruning(sparsity))):
            return float((run() - exact).square().mean().sqrt())

    assert 0 < error(0.1) < error(0.35) < error(0.7)
    assert error(0.1, DeepCache(2, 3)) > error(0.1)


def test_size_is_what_is_left_and_a_mask():
    net = nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20))
    assert MagnitudePruning(0.35).model_bytes(net) == plain_bytes(net) - 70 * 4 + 25
    assert MagnitudePruning(0.35).kind == "simulated"


def test_text_encoder_is_pruned_while_the_recipe_is_attached():
    pipe = stable_diffusion()
    pipe.text_encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    before = {k: v.clone() for k, v in pipe.text_encoder.state_dict().items()}
    with accelerate(pipe, Recipe(DDIM, precision=MagnitudePruning(0.0, text_encoder=0.5))):
        assert sum(int((w == 0).sum()) for w in weights_of(pipe.text_encoder)) == 48
    assert all(torch.equal(v, before[k]) for k, v in pipe.text_encoder.state_dict().items())


def test_without_a_text_encoder_there_is_none_to_prune(pipe):
    with (
        pytest.raises(IncompatibleError, match=r"PixelPipeline has no text encoder; leave precision\.text_encoder"),
        accelerate(pipe, Recipe(DDIM, precision=MagnitudePruning(text_encoder=0.4))),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"sparsity": 1.2}, "precision.sparsity is 1.2"), ({"text_encoder": -0.1}, "precision.text_encoder is -0.1"),
     ({"sparsity": 1.0}, "must be below 1"), ({"scope": "layers"}, "layer")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        MagnitudePruning(**settings)
