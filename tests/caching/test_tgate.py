"""T-GATE on a tiny UNet with cross-attention, held against the plain network with hooks on its attentions."""

from __future__ import annotations

import pytest
import torch
from tiny import dit_pipeline

from accel.caching import TGate
from accel.caching.rows import Kept
from accel.caching.tgate import mean_of
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance
from accel.samplers import DiffusersSampler
from accel.testing import TinySuite, contract_checks
from accel.testing.suites import text_pipeline, unet_pipeline

STEPS, SAMPLES, SCALE, GATE = 7, 3, 3.0, 3
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
GUIDED = CFG(SCALE)


@pytest.fixture(scope="module")
def pipe():
    return text_pipeline().to(torch.float64)


def images(pipe, cache, guidance=GUIDED, first=0, count=SAMPLES, count_macs=False):
    generators = [torch.Generator().manual_seed(i) for i in range(first, first + count)]
    recipe = Recipe(DDIM, guidance=guidance, cache=cache)
    with accelerate(pipe, recipe, count_macs=count_macs) as run:
        made = pipe(list(range(first, first + count)), None, STEPS, recipe.guidance_scale, generators, output_type="pt")
    return made.images, run


def by_hand(pipe, halves, guided):
    """Images: hooks note what cross-attentions give at the step before the gate, and give it from there on."""
    net, scheduler, noted, place = pipe.unet, DDIM.build(pipe.scheduler.config), {}, {"step": 0}
    scheduler.set_timesteps(STEPS)
    seeds = [torch.Generator().manual_seed(i) for i in range(SAMPLES)]

    def hook(module, args, output):
        if place["step"] < GATE:
            noted[module] = output
            return None
        if halves == "both" or not guided:
            return noted[module]
        u, c = noted[module].chunk(2)
        return (u + c) / 2

    attentions = [module for name, module in net.named_modules() if name.endswith("attn2")]
    hooks = [module.register_forward_hook(hook) for module in attentions]
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=seed, dtype=torch.float64) for seed in seeds])
    both, cond = (
        pipe._condition(torch.arange(SAMPLES), own)["encoder_hidden_states"].double() for own in (True, False)
    )
    for k, t in enumerate(scheduler.timesteps):
        place["step"] = k
        if guided and (k < GATE or halves == "both"):
            u, c = net(torch.cat([x, x]), t, both).sample.chunk(2)
            v = u + SCALE * (c - u)
        else:
            v = net(x, t, cond).sample
        x = scheduler.step(v, t, x).prev_sample
    for one in hooks:
        one.remove()
    return x


@torch.no_grad()
@pytest.mark.parametrize("halves", ["one", "both"])
@pytest.mark.parametrize("guided", [True, False])
def test_from_the_gate_on_it_is_the_network_without_cross_attention(pipe, halves, guided):
    found, run = images(pipe, TGate(GATE, halves), GUIDED if guided else None, count_macs=True)
    torch.testing.assert_close(found, by_hand(pipe, halves, guided), rtol=0, atol=1e-10)
    rows = SAMPLES * (2 if guided else 1)
    after = SAMPLES if halves == "one" else rows
    assert [e.rows for e in run.trace] == [rows] * GATE + [after] * (STEPS - GATE)
    assert [e.mode for e in run.trace] == ["full"] * GATE + ["partial"] * (STEPS - GATE)
    assert run.trace[-1].macs / after < run.trace[0].macs / rows


def test_a_gate_after_the_end_is_the_plain_pipeline(pipe):
    assert torch.equal(images(pipe, TGate(STEPS))[0], images(pipe, None)[0])


@pytest.mark.parametrize("halves", ["one", "both"])
def test_where_guidance_drops_rows_a_sample_alone_is_what_it_is_in_a_batch(pipe, halves):
    guidance, cache = AdaptiveGuidance(SCALE, 0.5, space="v"), TGate(GATE, halves)
    found, run = images(pipe, cache, guidance)
    alone = torch.cat([images(pipe, cache, guidance, first=i, count=1)[0] for i in range(SAMPLES)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)
    assert any(event.name == "guidance off" for event in run.events)


def test_with_both_halves_it_keeps_the_whole_contract():
    """Where it joins the halves, and says so, one point of the contract is not asked."""
    assert TGate(2).joins_parts
    assert not TGate(2, "both").joins_parts
    checks = contract_checks(TGate(2, "both"), suite=TinySuite("text"))
    for point in ("parts", "slots", "members"):
        checks[point]()


def test_the_mean_is_of_all_parts():
    parts = [Kept((torch.tensor([1.0, 3.0]),), (0, 4)), Kept((torch.tensor([3.0, 9.0]),), (0, 4))]
    assert [part.tensors[0].tolist() for part in mean_of(parts)] == [[2.0, 6.0]] * 2
    assert [part.members for part in mean_of(parts)] == [(0, 4)] * 2


def test_networks_without_cross_attention_are_refused():
    for pipe in (dit_pipeline(), unet_pipeline()):
        with pytest.raises(IncompatibleError, match=r"has none; use cache=easycache"):
            Recipe(DDIM, cache=TGate()).check(pipe)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"gate": 0}, r"cache\.gate is 0"), ({"halves": "two"}, "unknown cache.halves 'two'")],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        TGate(**settings)


def test_a_label_says_whether_guidance_goes_on():
    assert (TGate(8).label, TGate(8, "both").label) == ("tgate8", "tgate8(both)")
