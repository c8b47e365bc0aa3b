"""Learned routers on a tiny transformer: what may be reused, what beta buys, and what a table is good for."""

from __future__ import annotations

import pytest
import torch
from tiny import dit_pipeline, run_dit

from accel.caching import LearnedRouter
from accel.caching.learned_router import Table
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

STEPS = 6
DDIM = DiffusersSampler("DDIMScheduler", STEPS)


@pytest.fixture(scope="module")
def dit():
    return dit_pipeline(layers=3)


def learned(pipe, guidance=None, **settings):
    """A router trained on a few trajectories, and its artefact."""
    router = LearnedRouter(**{"trajectories": 12, "batch": 2, "refresh": 5, "lr": 0.3} | settings)
    recipe = Recipe(DDIM, guidance=guidance, cache=router)
    scale = guidance.scale if guidance else 1.0

    def sample(training, start, stop):
        generators = [torch.Generator().manual_seed(i) for i in range(start, stop)]
        labels = [i % 1000 for i in range(start, stop)]
        return torch.as_tensor(pipe(labels, scale, generators, STEPS, output_type="pt").images)

    with torch.inference_mode():  # as the harness samples
        return recipe, router.calibrate(pipe, recipe, sample)


@pytest.fixture(scope="module", params=["harmonica", "l2c"])
def trained(request, dit):
    return request.param, *learned(dit, objective=request.param)


def test_steps_that_must_run_do(trained):
    objective, _, artefact = trained
    table = artefact["table"].bool()
    assert table.shape == (STEPS, 6)
    assert table[:: STEPS if objective == "harmonica" else 2].all()
    assert artefact["loss"].isfinite().all()
    assert len(artefact["loss"]) == 12 * (STEPS - 1 if objective == "harmonica" else STEPS // 2)


def test_the_table_is_what_runs(trained, dit):
    _, recipe, artefact = trained
    table = artefact["table"].bool()
    with accelerate(dit, recipe, artefacts={"cache": artefact}, count_macs=True) as run:
        run_dit(dit, steps=STEPS)
    assert [e.mode == "full" for e in run.trace] == table.all(1).tolist()
    macs = torch.tensor([e.macs for e in run.trace])
    assert (macs[table.all(1)] == macs.max()).all()
    assert (macs[~table.all(1)] < macs.max()).all()


@pytest.mark.parametrize("objective", ["harmonica", "l2c"])
def test_a_dearer_module_runs_less(dit, objective):
    cheap, dear = (learned(dit, objective=objective, beta=beta)[1]["scores"] for beta in (0.0, 10.0))
    free = slice(1, None) if objective == "harmonica" else slice(1, None, 2)
    assert dear[free].mean() < 0.25
    assert cheap[free].mean() > dear[free].mean() + 0.2


def test_guided_batches_learn_from_the_guided_prediction(dit):
    recipe, artefact = learned(dit, guidance=CFG(2.0), trajectories=2)
    with accelerate(dit, recipe, artefacts={"cache": artefact}) as run:
        run_dit(dit, 2.0, steps=STEPS)
    assert {e.rows for e in run.trace} == {4}


def test_nothing_is_left_behind(dit):
    flags = [p.requires_grad for p in dit.transformer.parameters()]
    dit.transformer.requires_grad_(True)
    before = {k: v.clone() for k, v in dit.transformer.state_dict().items()}
    learned(dit, trajectories=1)
    assert all(p.requires_grad and p.grad is None for p in dit.transformer.parameters())
    assert not [n for n, m in dit.transformer.named_modules() if "forward" in m.__dict__]
    assert all(torch.equal(v, before[k]) for k, v in dit.transformer.state_dict().items())
    for p, flag in zip(dit.transformer.parameters(), flags, strict=True):
        p.requires_grad_(flag)


def test_a_table_that_runs_everything_is_no_cache(dit):
    names = tuple(LearnedRouter().modules(dit.transformer, "base"))
    whole = LearnedRouter(fitted=Table(names, ((True,) * 6,) * STEPS))
    with accelerate(dit, Recipe(DDIM)):
        expected = run_dit(dit, steps=STEPS)
    with accelerate(dit, Recipe(DDIM, cache=whole)):
        assert torch.equal(torch.as_tensor(run_dit(dit, steps=STEPS)), torch.as_tensor(expected))


def test_tables_of_something_else_are_refused(trained, dit):
    _, recipe, artefact = trained
    other = Recipe(DiffusersSampler("DDIMScheduler", 8), cache=recipe.cache)
    with (
        pytest.raises(ConfigError, match="was learned for another sampler; learn it again"),
        accelerate(dit, other, artefacts={"cache": artefact}),
    ):
        pass
    with pytest.raises(ConfigError, match="is still to be learned"), accelerate(dit, recipe):
        pass
    fixed = LearnedRouter(fitted=Table(("a",), ((True,),)))
    with accelerate(dit, Recipe(DDIM, cache=fixed)), pytest.raises(ConfigError, match="is for 1 steps of 1 modules"):
        run_dit(dit, steps=STEPS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"objective": "harmonika"}, "harmonica"), ({"threshold": 1.5}, "cache.threshold is 1.5"),
     ({"trajectories": 0}, "cache.trajectories is 0"), ({"beta": -1.0}, "cache.beta is -1")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        LearnedRouter(**settings)


def test_what_it_cannot_learn_for_is_refused(dit, pipe, models):
    with pytest.raises(IncompatibleError, match="learned for a sampler; choose one"):
        Recipe(cache=LearnedRouter()).check(dit)
    with pytest.raises(IncompatibleError, match="learned for one network; use stitch=none"):
        Recipe(DDIM, cache=LearnedRouter(), stitch=TStitch()).check(pipe, models)
