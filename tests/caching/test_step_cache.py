"""Dynamic step caches: what they decide and reuse is worked out by hand, a sample at a time, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.test_branches import TwoCalls
from diffusers import DDIMScheduler
from tiny import Proportional, pixels, run_pixels

from accel.caching import EasyCache
from accel.caching.step_cache import DECISIONS, _Deciding, always_runs, magnitude
from accel.caching.step_reuse import shifted_by
from accel.caching.step_rows import Past, gathered, picked
from accel.caching.step_watch import sums
from accel.core.denoiser import Inputs
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance
from accel.samplers import DiffusersSampler
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.waits import counted_waits

STEPS, SAMPLES = 12, 3
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
HEUN = DiffusersSampler("HeunDiscreteScheduler", 8)
THRESHOLD = 0.25  # at which samples differ in what they reuse


@pytest.fixture
def pipe():
    return pixels(Proportional(), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


def images(pipe, cache, guidance=None, sampler=DDIM, first=0, count=SAMPLES):
    recipe = Recipe(sampler, guidance=guidance, cache=cache)
    with accelerate(pipe, recipe) as run, torch.inference_mode():
        return run_pixels(pipe, recipe.guidance_scale, (0,) * count, first), run


def reused(run) -> set[tuple[int, int]]:
    """(step, sample) of all that was reused."""
    return {(event.step, i) for event in run.events if event.name == "reused" for i in event.samples}


def by_hand(pipe, cache, members, scale=1.0):
    """Images of the samples `members`, decided together, and the steps at which they reuse."""
    scheduler, net, hits = DDIM.build(pipe.scheduler.config), pipe.unet, []
    scheduler.set_timesteps(STEPS)
    noise = [torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in members]
    x, output, entry, seen, rate, total = torch.cat(noise), None, None, None, None, 0.0
    labels = torch.tensor([1] * len(members) * (scale > 1) + [0] * len(members))
    size = lambda tensor: float(tensor.abs().mean())  # noqa: E731
    for k, t in enumerate(scheduler.timesteps):
        inputs = torch.cat([x, x]) if scale > 1 else x
        if rate is not None:
            total += rate * size(inputs - seen) / size(output)
        if k < cache.first or k >= STEPS - cache.last or rate is None or total >= cache.threshold:
            prediction, total = net(inputs, t, labels)[0], 0.0
            if output is not None:
                rate = size(prediction - output) / size(inputs - entry)
            output, entry = prediction, inputs
        else:
            prediction = output if cache.reuse == "output" else inputs + (output - entry)
            hits.append(k)
        seen = inputs
        if scale > 1:
            u, c = prediction.chunk(2)
            prediction = u + scale * (c - u)
        x = scheduler.step(prediction, t, x).prev_sample
    return x, hits


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("reuse", ["residual", "output"])
@pytest.mark.parametrize("decision", ["per_sample", "batch"])
def test_what_is_decided_and_reused_is_what_the_paper_says(pipe, decision, reuse, scale):
    cache = EasyCache(THRESHOLD, decision=decision, reuse=reuse)
    found, run = images(pipe, cache, CFG(scale) if scale > 1 else None)
    groups = [range(SAMPLES)] if decision == "batch" else [[i] for i in range(SAMPLES)]
    wanted = [by_hand(pipe, cache, list(group), scale) for group in groups]
    torch.testing.assert_close(found, torch.cat([x for x, _ in wanted]), rtol=0, atol=1e-12)
    hits = {(k, i) for group, (_, own) in zip(groups, wanted, strict=True) for k in own for i in group}
    assert reused(run) == hits
    assert hits
    own = [{k for k, i in hits if i == sample} for sample in range(SAMPLES)]
    assert (len(set(map(frozenset, own))) > 1) == (decision == "per_sample"), "samples differ, or the test is too easy"
    rows = [sum(e.rows for e in run.trace if e.step == k) for k in range(STEPS)]
    assert rows == [(1 + (scale > 1)) * sum((k, i) not in hits for i in range(SAMPLES)) for k in range(STEPS)]
    words = {0: "reused", SAMPLES: "full"}
    assert [e.mode for e in run.trace] == [words.get(row // (1 + (scale > 1)), "partial") for row in rows]


def test_per_sample_a_batch_of_one_is_the_same_as_one_of_eight(pipe):
    each = EasyCache(THRESHOLD)
    found, run = images(pipe, each, count=8)
    alone = torch.cat([images(pipe, each, first=i, count=1)[0] for i in range(8)])
    assert torch.equal(found, alone)
    assert len({tuple(k for k, s in sorted(reused(run)) if s == i) for i in range(8)}) > 1
    together = replace(each, decision="batch")
    off = images(pipe, together, count=8)[0] - torch.cat(
        [images(pipe, together, first=i, count=1)[0] for i in range(8)]
    )
    assert off.abs().max() > 1e-3, "by batch an image depends on its batch, as is said"


@pytest.mark.parametrize("reuse", ["residual", "output"])
def test_a_threshold_of_0_is_the_plain_pipeline_bit_for_bit(pipe, reuse):
    plain, _ = images(pipe, None)
    found, run = images(pipe, EasyCache(0.0, reuse=reuse))
    assert torch.equal(found, plain)
    assert [e.mode for e in run.trace] == ["full"] * STEPS


def test_where_guidance_drops_rows_a_sample_keeps_its_own(pipe):
    guidance, cache = AdaptiveGuidance(3.0, 0.5, space="v"), EasyCache(THRESHOLD)
    found, run = images(pipe, cache, guidance, count=4)
    off = [event for event in run.events if event.name == "guidance off"]
    assert off
    assert any(step > off[0].step for step, _ in reused(run)), "something is reused after guidance ended"
    alone = torch.cat([images(pipe, cache, guidance, first=i, count=1)[0] for i in range(4)])
    assert torch.equal(found, alone)


class Steep(Proportional):
    """Its unconditional prediction changes faster than its conditional one."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        (cond,) = super().forward(sample, timestep, torch.zeros_like(class_labels))
        null = (class_labels == self.config.num_class_embeds - 1).reshape(-1, 1, 1, 1)
        return (torch.where(null, torch.sin(9 * sample + float(timestep) / 50), cond),)


def test_of_two_calls_the_first_decides_for_both(monkeypatch):
    pipe = TwoCalls(Steep(), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def calls() -> list[list[tuple]]:
        """Of each call of a step: its mode and rows, and who reused."""
        _, run = images(pipe, EasyCache(THRESHOLD), CFG(3.0))
        each = [[(e.step, e.mode, e.rows) for e in run.trace if e.call == call] for call in (0, 1)]
        marked = [e.samples for e in run.events if e.name == "reused"]
        return [*each, marked]

    first, second, marked = calls()
    assert first == second
    assert {mode for _, mode, _ in first} == {"full", "partial", "reused"}
    assert marked[::2] == marked[1::2]
    monkeypatch.setattr(_Deciding, "_followed", lambda self, inputs, below: below)  # each by itself
    first, second, _ = calls()
    assert first != second, "they would decide otherwise, or the test is too easy"


def test_each_slot_of_heun_reuses_its_own(pipe):
    """With everything reused after the second step, both evaluations of a step repeat those of the second step."""
    cache = EasyCache(1e9, first=2, last=0, reuse="output")
    seen = []
    with accelerate(pipe, Recipe(HEUN, cache=cache)) as run:
        step = run.scheduler.step
        run.scheduler.step = lambda output, *args, **kw: (
            seen.append((run.clock.slot, output)),
            step(output, *args, **kw),
        )[1]
        run_pixels(pipe, labels=(0,) * SAMPLES)
    slots = [[output for slot, output in seen if slot == own] for own in (0, 1)]
    for own in slots:
        assert not torch.equal(own[0], own[1])
        assert all(torch.equal(later, own[1]) for later in own[2:])
    assert not torch.equal(slots[0][1], slots[1][1])
    assert [e.mode for e in run.trace] == ["full"] * 4 + ["reused"] * (len(seen) - 4)


def test_the_first_and_last_steps_run(pipe):
    _, run = images(pipe, EasyCache(1e9, first=4, last=3))
    assert [e.mode for e in run.trace] == ["full"] * 4 + ["reused"] * (STEPS - 7) + ["full"] * 3
    assert [always_runs(k, 6, 2, 1) for k in range(6)] == [True, True, False, False, False, True]


def test_on_a_gpu_it_is_the_same_and_the_host_waits_once_an_evaluation(pipe):
    cache = EasyCache(THRESHOLD)
    expected, run = images(pipe, cache)
    assert {e.mode for e in run.trace} == {"full", "partial", "reused"}
    plain = EasyCache(THRESHOLD, first=STEPS)
    with Elsewhere():
        pipe.to(DEVICE)
        with counted_waits() as waits:
            found, _ = images(pipe, cache)
        with counted_waits() as without:
            images(pipe, plain)
        assert torch.equal(found.cpu(), expected)
    assert sum(waits.values()) - sum(without.values()) <= STEPS - 3


def test_a_run_says_what_it_keeps(pipe):
    with accelerate(pipe, Recipe(DDIM, cache=EasyCache(THRESHOLD))) as run:
        step, kept = run.scheduler.step, []
        run.scheduler.step = lambda *args, **kw: (kept.append(run.cache_bytes), step(*args, **kw))[1]
        run_pixels(pipe, labels=(0,) * SAMPLES)
    latents = SAMPLES * 4 * 8
    scalars = SAMPLES * 2 * 8
    assert kept[0] == 3 * latents + scalars, (
        "the difference, the output and the input, which is also what was seen last"
    )
    assert all(3 * latents <= held <= 4 * latents + scalars for held in kept)
    assert run.cache_bytes == 0


def test_watched_it_is_the_plain_pipeline_and_every_indicator_is_told(pipe):
    plain, _ = images(pipe, None)
    rule = EasyCache(THRESHOLD).threshold_rule
    watched, found = rule.watch(Recipe(DDIM), None)
    assert torch.equal(images(pipe, watched)[0], plain)
    evaluations = STEPS - 3  # the first two and the last are not compared
    assert len(found) == SAMPLES * sum(min(k, 3) for k in range(1, evaluations + 1))
    least = min(found)
    assert least > 0
    assert not rule.reached(least, least)
    assert rule.reached(least, least * 1.01)
    assert not reused(images(pipe, rule.at(least * 0.999))[1]), "below every indicator it never hits"
    assert reused(images(pipe, rule.at(least * 1.01))[1])
    everything = images(pipe, rule.at(rule.always))[1]
    assert len(reused(everything)) == SAMPLES * evaluations
    assert sums([1.0, 2.0, 4.0]) == [1.0, 3.0, 7.0]
    early, seen = EasyCache(THRESHOLD, first=1).threshold_rule.watch(Recipe(DDIM), None)
    images(pipe, early)
    assert seen == found, "of the second step, before there is a rate, nothing is told"


def test_rows_are_decided_together_as_is_said():
    values, both = torch.tensor([1.0, 2.0, 3.0, 6.0]), Inputs({"x": torch.zeros(4, 1)}, "x", ("uncond", "cond"))
    each, together = DECISIONS["per_sample"], DECISIONS["batch"]
    assert each(both.with_parts(("all",)))(values).tolist() == [1.0, 2.0, 3.0, 6.0]
    assert each(both)(values).tolist() == [2.0, 4.0, 2.0, 4.0]
    assert together(both)(values).tolist() == [3.0] * 4
    uneven = both.only({"uncond": (1,), "cond": None})
    assert each(uneven)(torch.tensor([2.0, 5.0, 6.0])).tolist() == [4.0, 5.0, 4.0]
    assert each(uneven)(torch.tensor([torch.nan, 5.0, 6.0])).isnan().tolist() == [True, False, True]
    assert together(uneven)(torch.tensor([2.0, 5.0, 5.0])).tolist() == [4.0] * 3
    assert magnitude(torch.tensor([[1.0, -3.0], [0.0, 1.0]])).tolist() == [2.0, 0.5]
    assert magnitude(torch.full((1, 2), 6e4, dtype=torch.float16)).dtype == torch.float32


def test_what_is_kept_of_a_row_is_found_by_its_member():
    states = {
        (0, 0, "cond"): Past((4, 7), {"a": torch.tensor([40.0, 70.0])}),
        (0, 0, "uncond"): Past(None, {"a": torch.arange(8.0)}),
    }
    inputs = Inputs({"x": torch.zeros(4, 1)}, "x", ("cond", "uncond"), (7, 5))
    rows = gathered(states, list(states), inputs)["a"].tolist()
    assert rows[0] == 70.0
    assert rows[1] != rows[1], "nothing is kept of sample 5"
    assert rows[2:] == [7.0, 5.0]
    assert gathered(states, [(0, 0, "cond"), (1, 0, "cond")], inputs) is None
    some = picked(inputs, [1, 3])
    assert (some.rows, some.parts, some.members) == (2, ("cond", "uncond"), (5,))


def test_rows_that_cannot_be_told_apart_are_refused(pipe):
    several = Inputs({"x": torch.zeros(2, 1), "frames": {"all": torch.zeros(6, 3, 1)}}, "x")
    with pytest.raises(IncompatibleError, match=r"frames has 6 for the 2 of the batch; use cache.decision=batch"):
        picked(several, [0])
    positions = Inputs({"x": torch.zeros(2, 1), "img_ids": torch.zeros(6, 3)}, "x")
    assert len(picked(positions, [0]).kwargs["img_ids"]) == 6, "of tokens, whatever the batch"
    with pytest.raises(IncompatibleError, match=r"use cache.reuse=output"):
        shifted_by(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), 1)
    learned_sigma = shifted_by(torch.ones(1, 4, 1), torch.full((1, 2, 1), 5.0), -1)
    assert learned_sigma.flatten().tolist() == [-4.0, -4.0, 1.0, 1.0]
    with pytest.raises(IncompatibleError, match=r"cache\.reuse=blocks is for transformers"):
        Recipe(DDIM, cache=EasyCache(reuse="blocks")).check(pipe)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"decision": "each"}, "unknown cache.decision 'each'"), ({"reuse": "x"}, "Allowed: auto, blocks"),
     ({"threshold": -1.0}, "cache.threshold is -1"), ({"first": 0}, "cache.first is 0"), ({"last": -1}, "cache.last")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        EasyCache(**settings)


def test_a_label_says_what_is_not_usual():
    assert EasyCache().label == "easycache(0.05)"
    assert EasyCache(0.1, decision="batch", reuse="output", first=5).label == "easycache(0.1,batch,output,5+1)"
