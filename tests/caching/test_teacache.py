"""TeaCache on a tiny transformer in float64, held against its blocks called by hand; and the fit of its polynomial."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import dit, dit_pipeline, stable_diffusion
from torch.nn.functional import silu

from accel.caching import TeaCache
from accel.caching.modulated import EMBEDDING, MODULATED, looked_at
from accel.caching.polynomial import PUBLISHED, Polynomial, fit, polynomial
from accel.caching.step_reuse import AUTO, resolved
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance, ClassifierGuidance
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.suites.pipeline import PixelTransformerPipeline
from accel.testing.suites import unet

STEPS, SAMPLES = 12, 3
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
SAME = (0.0, 0.0, 0.0, 1.0, 0.0)  # p(r) = r
OWN = TeaCache(0.12, coefficients=SAME)


@pytest.fixture(scope="module")
def pipe():
    found = PixelTransformerPipeline(dit(layers=2), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    found.set_progress_bar_config(disable=True)
    return found.to(torch.float64)


def images(pipe, cache, guidance=None, sampler=DDIM, first=0, count=SAMPLES, artefact=None, count_macs=False):
    recipe = Recipe(sampler, guidance=guidance, cache=cache)
    generators = [torch.Generator().manual_seed(i) for i in range(first, first + count)]
    labels = [7 * (i + 1) for i in range(first, first + count)]
    given = {"cache": artefact} if artefact else None
    with accelerate(pipe, recipe, count_macs=count_macs, artefacts=given) as run:
        made = pipe(labels, None, STEPS, recipe.guidance_scale, generators, output_type="pt").images
    return made, run


def reused(run):
    return {(event.step, i) for event in run.events if event.name == "reused" for i in event.samples}


def by_hand(pipe, cache, sample):
    """An image, and the steps at which the blocks' sum was reused, from the parts of the network itself."""
    net, scheduler, hits = pipe.transformer, DDIM.build(pipe.scheduler.config), []
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(sample), dtype=torch.float64)
    label, added, seen, total = torch.tensor([7 * (sample + 1)]), None, None, 0.0
    for k, t in enumerate(scheduler.timesteps):
        time = t.expand(1)
        entry = net.pos_embed(x)
        modulated = net.transformer_blocks[0].norm1(entry, time, label, hidden_dtype=entry.dtype)[0]
        if seen is not None:
            total += float((modulated - seen).abs().mean() / seen.abs().mean())
        seen = modulated
        if k in (0, STEPS - 1) or total >= cache.threshold:
            h, total = entry, 0.0
            for block in net.transformer_blocks:
                h = block(h, timestep=time, class_labels=label)
            added = h - entry
        else:
            hits.append(k)
        emb = net.transformer_blocks[0].norm1.emb(time, label, hidden_dtype=entry.dtype)
        shift, scale = net.proj_out_1(silu(emb)).chunk(2, dim=1)
        tokens = net.proj_out_2(net.norm_out(entry + added) * (1 + scale[:, None]) + shift[:, None])
        v = tokens.reshape(1, 4, 4, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(1, 4, 8, 8)
        x = scheduler.step(v, t, x).prev_sample
    return x, hits


@torch.no_grad()
def test_what_is_decided_and_reused_is_what_the_paper_says(pipe):
    found, run = images(pipe, OWN)
    wanted = [by_hand(pipe, OWN, i) for i in range(SAMPLES)]
    torch.testing.assert_close(found, torch.cat([x for x, _ in wanted]), rtol=0, atol=1e-10)
    hits = {(k, i) for i, (_, own) in enumerate(wanted) for k in own}
    assert reused(run) == hits
    assert 0 < len(hits) < SAMPLES * (STEPS - 2)


def test_macs_count_what_looks_ahead_and_what_runs_around_the_blocks(pipe):
    _, run = images(pipe, TeaCache(1e9, coefficients=SAME), count_macs=True)
    whole, *rest, last = run.trace
    assert [e.mode for e in run.trace] == ["full"] + ["reused"] * (STEPS - 2) + ["full"]
    assert whole.macs == last.macs
    assert all(0 < e.macs < 0.25 * whole.macs for e in rest)
    never = images(pipe, TeaCache(1e-9, coefficients=SAME), count_macs=True)[1]
    assert all(whole.macs < e.macs < 1.1 * whole.macs for e in never.trace[1:-1]), "a look ahead that saved nothing"


@pytest.mark.parametrize("reuse", ["auto", "output", "residual"])
def test_a_threshold_of_0_is_the_plain_pipeline_bit_for_bit(pipe, reuse):
    found, run = images(pipe, replace(OWN, threshold=0.0, reuse=reuse))
    assert torch.equal(found, images(pipe, None)[0])
    assert not reused(run)


@pytest.mark.parametrize("guidance", [None, CFG(3.0), AdaptiveGuidance(3.0, 0.9, space="v")])
def test_per_sample_a_batch_of_one_is_the_same_as_one_of_three(pipe, guidance):
    cache = replace(OWN, threshold=0.15)
    found, run = images(pipe, cache, guidance, count=3)
    alone = [images(pipe, cache, guidance, first=i, count=1) for i in range(3)]
    torch.testing.assert_close(found, torch.cat([x for x, _ in alone]), rtol=0, atol=1e-9)
    assert reused(run) == {(k, i) for i, (_, own) in enumerate(alone) for k, _ in reused(own)}
    assert reused(run)


def test_heun_has_two_signals(pipe):
    """At equal times the second evaluation of a step and the first of the next differ little; were they compared, more
    would be reused. Each slot's own changes are those of a step."""
    sampler = DiffusersSampler("HeunDiscreteScheduler", 6)
    watched, found = OWN.threshold_rule.watch(Recipe(sampler), None)
    _, run = images(pipe, watched, sampler=sampler, count=1)
    assert [e.mode for e in run.trace] == ["full"] * 11
    single = [value for value in found if value > 0]
    assert len(single) == len(found) == sum(min(k, 3) for k in range(1, 5)) + sum(min(k, 3) for k in range(1, 5))


def test_the_fit_is_that_of_numpy_and_of_an_exact_polynomial():
    r = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    exact = torch.tensor([3.0, -2.0, 0.5, 1.5, 0.02], dtype=torch.float64)
    coefficients, r2 = fit(r, polynomial(r, exact), 4)
    torch.testing.assert_close(coefficients, exact, rtol=1e-6, atol=1e-8)
    assert float(r2) == pytest.approx(1.0)
    noisy = r + 0.1 * torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, r2 = fit(r, noisy, 4)
    assert found.tolist() == pytest.approx(np.polyfit(r.numpy(), noisy.numpy(), 4).tolist(), rel=1e-6)
    assert 0.5 < float(r2) < 1
    assert fit(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 4)[0].isnan().all()
    same, _ = fit(torch.full((3,), 0.2, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64), 4)
    assert float(polynomial(torch.tensor(0.2, dtype=torch.float64), same.tolist())) == pytest.approx(0.7)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_polynomial_has_its_values(name):
    r = torch.linspace(0, 0.3, 7, dtype=torch.float64)
    wanted = np.maximum(np.poly1d(PUBLISHED[name])(r.numpy()), 0)
    assert Polynomial(PUBLISHED[name])(r).tolist() == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-9)
    assert not TeaCache(published=name).calibrated


def test_outside_of_what_it_was_fitted_to_a_polynomial_does_not_go_on():
    p = Polynomial((0.0, 0.0, 1.0, 0.0, 0.0), 0.1, 2.0, 3.0)  # r^2
    assert p(torch.tensor([0.0, 0.1, 1.0, 1.9, 9.0])).tolist() == pytest.approx([0.01, 0.01, 1.0, 3.0, 3.0])
    assert float(Polynomial((-1.0, 0.0))(torch.tensor(2.0))) == 0


def test_the_artefact_is_of_neighbouring_steps_and_of_what_is_kept(pipe):
    """Pairs by hand: the modulated inputs of a plain trajectory, and the sums that its blocks add."""
    cache = TeaCache(0.1, samples=2)
    recipe = Recipe(DDIM, cache=cache)

    def drawing(made, start, stop):
        generators = [torch.Generator().manual_seed(i) for i in range(start, stop)]
        return pipe([7 * (i + 1) for i in range(start, stop)], None, STEPS, 1.0, generators, output_type="pt").images

    artefact = cache.calibrate(pipe, recipe, drawing)
    net, seen, entries, kept = pipe.transformer, [], [], []
    hooks = [
        net.transformer_blocks[0].norm1.register_forward_hook(lambda m, a, out: seen.append(out[0])),
        net.transformer_blocks[0].register_forward_pre_hook(lambda m, args: entries.append(args[0])),
        net.transformer_blocks[-1].register_forward_hook(lambda m, a, out: kept.append(out - entries[-1])),
    ]
    images(pipe, None, count=2)
    for hook in hooks:
        hook.remove()
    size = lambda tensor: tensor.abs().flatten(1).mean(1)  # noqa: E731
    r, change = (torch.cat([size(b - a) / size(a) for a, b in pairwise(own)]) for own in (seen, kept))
    assert len(r) == 2 * (STEPS - 1)
    torch.testing.assert_close(artefact["coefficients"], fit(r, change, 4)[0], rtol=1e-4, atol=1e-6)
    assert artefact["bounds"].tolist() == pytest.approx([float(r.min()), float(r.max()), float(change.max())])
    _, run = images(pipe, replace(cache, threshold=2 * float(change.mean())), artefact=artefact)
    assert reused(run)
    with pytest.raises(ConfigError, match="was fitted for another sampler; fit it again"):
        images(pipe, cache, sampler=DiffusersSampler("DDIMScheduler", 5), artefact=artefact)
    with pytest.raises(ConfigError, match="is still to be fitted"):
        images(pipe, cache)
    with pytest.raises(ConfigError, match="is still to be fitted"):
        cache.threshold_rule.watch(recipe, None)
    assert cache.threshold_rule.watch(recipe, artefact)[0].cache.fitted.coefficients == tuple(
        artefact["coefficients"].tolist()
    )


def test_where_it_looks():
    net = dit_pipeline().transformer
    assert looked_at(net, "base") == (net.transformer_blocks[0].norm1, MODULATED)
    assert resolved(AUTO, net) == "blocks"
    for other in (unet(), stable_diffusion().unet):
        assert looked_at(other, "base") == (other.time_embedding, EMBEDDING)
        assert resolved(AUTO, other) == "output"
    with pytest.raises(IncompatibleError, match=r"shows neither; use cache=easycache"):
        looked_at(torch.nn.Sequential(), "base")


def test_what_it_cannot_be_fitted_for_is_refused(pipe, models, digits):
    on = digits.pipeline()
    for recipe, said in (
        (Recipe(DDIM, stitch=TStitch(), cache=TeaCache()), "fitted for one network; use stitch=none"),
        (Recipe(cache=TeaCache()), "fitted for a sampler; choose one"),
        (
            Recipe(DDIM, guidance=ClassifierGuidance(1.0), cache=TeaCache()),
            "is fitted on the pipeline alone, and guidance elucd1 needs a classifier",
        ),
    ):
        with pytest.raises(IncompatibleError, match=said):
            recipe.check(on, models | {"classifier": digits.classifier()})


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"published": "flx"}, "Did you mean flux"), ({"published": "flux", "coefficients": SAME}, "give one of them"),
     ({"samples": 0}, r"cache\.samples is 0"), ({"threshold": -1}, r"cache\.threshold is -1")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        TeaCache(**settings)


def test_a_label_says_whose_polynomial_it_is():
    assert TeaCache(0.3).label == "teacache(0.3)"
    assert TeaCache(0.3, published="flux", decision="batch").label == "teacache(0.3,flux,batch)"
    assert OWN.label == "teacache(0.12,own)"
