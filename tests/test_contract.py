"""The contract of every registered method (docs/design.md): a new YAML file is picked up here by itself."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from registry import METHODS, PAIRS, recipe
from snapshots import assert_same, snapshot
from tiny import dit_pipeline

from accel.caching.schedules import Uniform
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.records import canonical, describe
from accel.samplers.ode import initial_latents

# The setting at which a method must change nothing, bit for bit, by class; None: it has no such setting.
IDENTITY = {
    "CFG": {"scale": 1.0},
    "IntervalCFG": {"scale": 1.0},
    "AdaptiveGuidance": {"scale": 1.0},
    "LinearAG": {"scale": 1.0},
    "APG": {"scale": 1.0},
    "AutoGuidance": {"weight": 1.0},
    "ClassifierGuidance": {"strength": 0.0},
    "GradientFreeClassifierGuidance": {"strength": 0.0},
    "CFGPlusPlus": None,  # weight 0 is the unconditional model: tests/guidance/test_cfgpp.py
    "DeepCache": {"interval": 1, "schedule": None},
    "BranchTable": {"table": (0, 0, 0, 0)},
    "BlockTable": {"table": ((), (), (), ())},
    "EncoderPropagation": {"schedule": Uniform(1)},
    "FeatureInheritance": {"schedule": Uniform(1)},
    "LearnedRouter": {"threshold": 0.0},
    "DiffusersCache": None,  # each hook has its own: tests/caching/test_diffusers_hooks.py
    "TStitch": {"fractions": (0.0,)},
    "FakeQuant": {"weight_bits": 32, "activation_bits": 32, "rounding": None},
    "MixDQ": None,  # whose bits are never all 32: tests/precision/test_mixdq.py
    "QuEST": None,  # nor are its
    "BinaryDM": None,  # and its weights have one
    "Cast": {"dtype": "float32"},
    "TF32": None,  # runs on GPUs only: tests/precision/test_tf32.py
    "Compiled": {"dtype": "float32", "backend": "none"},
    "TorchAO": None,  # always rounds
    "StaticInt8": None,
    "OpenVINO": None,  # sums in another order
    "MagnitudePruning": {"sparsity": 0.0},
    "SkipTuning": {"bottom": 1.0, "top": 1.0},
}
AT_DENOISER = [m for m in METHODS if m[0] not in ("sampler", "grid")]
ids = "-".join


def artefacts(pipe, digits, made: Recipe, models):
    own = {}
    if made.sampler and made.sampler.calibrated:
        alone = Recipe(made.sampler, made.grid, made.guidance)
        n = made.sampler.samples_wanted()
        call = digits.conditions(0, n) | {"guidance_scale": made.guidance_scale}
        noise = initial_latents(pipe, {"generator": generators(99, 0, n)})
        own["sampler"] = made.sampler.calibrate(pipe, alone, call, noise, lambda done, total: None)
    if made.guidance and made.guidance.calibrated:
        alone = Recipe(made.sampler, made.grid, made.guidance)
        own["guidance"] = made.guidance.calibrate(pipe, alone, lambda r, a, b: generate(pipe, digits, r, 99, a, b, 2))
    if made.cache and made.cache.calibrated:
        own["cache"] = made.cache.calibrate(pipe, made, lambda r, a, b: generate(pipe, digits, r, 99, a, b, 2))
    if made.precision and made.precision.calibrated:
        own |= made.precision.calibrate(
            pipe, made, lambda *drawn: generate(pipe, digits, made, 99, 0, 2, 2), models, own
        )
    return own or None


@pytest.fixture
def images(pipe, digits, models):
    """images(recipe, start, stop, batch) -> samples of the recipe and its Run."""

    def images(made: Recipe, start=0, stop=2, batch=2, count_macs=False, transformer=False):
        net = dit_pipeline() if transformer else pipe
        own = artefacts(net, digits, made, models)
        with accelerate(net, made, models=models, artefacts=own, count_macs=count_macs) as run:
            return generate(net, digits, made, 5, start, stop, batch), run

    return images


@pytest.mark.parametrize("method", AT_DENOISER, ids=ids)
def test_identity_setting_equals_the_plain_pipeline(method, pipe, models, images):
    axis, choice = method
    made = recipe(**{axis: choice})
    config = getattr(made, axis)
    assert type(config).__name__ in IDENTITY, f"say in IDENTITY at which setting {choice} changes nothing"
    if IDENTITY[type(config).__name__] is None:
        return
    neutral = replace(made, **{axis: replace(config, **IDENTITY[type(config).__name__])})
    transformer = transformers_only(made, pipe, models)
    with_it, without = (images(m, transformer=transformer)[0] for m in (neutral, replace(made, **{axis: None})))
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("method", AT_DENOISER, ids=ids)
def test_method_changes_the_result(method, pipe, models, images):
    """Guards the other tests: a method that silently does nothing would pass them all."""
    axis, choice = method
    made = recipe(**{axis: choice})
    transformer = transformers_only(made, pipe, models)
    with_it, without = (images(m, transformer=transformer)[0] for m in (made, replace(made, **{axis: None})))
    changed = not torch.equal(with_it, without)
    assert changed == (choice != "fp32")


def refused(made: Recipe, pipe, models) -> bool:
    """Whether the pipeline cannot run the recipe (digits is no flow model); then with a reason, before anything ran."""
    try:
        made.check(pipe, models)
    except IncompatibleError:
        with pytest.raises(IncompatibleError, match=r".{30,}"), accelerate(pipe, made, models=models):
            pass
        return True
    return False


def transformers_only(made: Recipe, pipe, models) -> bool:
    """Whether the recipe runs on a transformer only; skipped where on neither, for want of a GPU or a package."""
    if not refused(made, pipe, models):
        return False
    try:
        made.check(dit_pipeline())
    except IncompatibleError as error:
        pytest.skip(str(error))
    return True


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_detaching_restores_the_pipeline(method, pipe, models, digits, run):
    axis, choice = method
    made = recipe(**{axis: choice})
    if refused(made, pipe, models):
        return
    own = artefacts(pipe, digits, made, models)
    before, nets = run(), list(models.values())
    state = snapshot(pipe, nets)
    with accelerate(pipe, made, models=models, artefacts=own):
        run(made.guidance_scale)
    assert_same(state, snapshot(pipe, nets))

    class Interrupted(Exception):
        pass

    def interrupt(*args):
        raise Interrupted

    with contextlib.suppress(Interrupted), accelerate(pipe, made, models=models, artefacts=own):
        handle = pipe.unet.conv_out.register_forward_hook(interrupt)  # in the middle of a trajectory
        try:
            run(made.guidance_scale)
            raise Interrupted  # a quantised or compiled conv_out does not call the original's hook
        finally:
            handle.remove()
    assert_same(state, snapshot(pipe, nets))
    assert torch.equal(before, run())


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_same_seeds_same_images(method, pipe, models, images):
    made = recipe(**{method[0]: method[1]})
    if refused(made, pipe, models):
        return
    first, again = images(made, 0, 4, 4)[0], images(made, 0, 4, 4)[0]
    assert torch.equal(first, again)
    alone = images(made, 2, 3, 1)[0]
    # Kernels sum in another order for another batch; quantisation turns that into single level flips. The samples of a
    # batch share the steps of an adaptive solver.
    loose = made.precision is not None and made.precision.label not in ("fp32",)
    assert (first[2:3] - alone).abs().max() < (0.35 if loose else 0.05 if method[1] == "ode" else 2e-3)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda m: "-".join(m))
def test_pairs_compose_or_refuse_with_a_reason(one, other, pipe, models, images):
    axes = dict([one, other])
    made = recipe(**axes)
    if refused(made, pipe, models):
        return
    result, run = images(made)
    assert torch.isfinite(result).all()
    assert run.clock.runs == 1
    assert run.clock.num_steps == made.sampler.steps


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_config_round_trip(method):
    import hydra.utils

    from accel.config import compose

    axis, choice = method
    node = compose([f"{axis}={choice}"])[axis]
    config = hydra.utils.instantiate(node)
    again = hydra.utils.instantiate(OmegaConf.create(OmegaConf.to_yaml(node)))
    assert config == again
    assert canonical(describe(config)) == canonical(describe(again))
    assert getattr(config, "label", choice)


def test_identity_distinguishes_settings():
    a, b = recipe(cache="deepcache"), recipe(cache="deepcache")
    assert describe(a) == describe(b)
    assert describe(a) != describe(replace(a, cache=replace(a.cache, interval=5)))
    assert describe(a) != describe(replace(a, sampler=replace(a.sampler, steps=5)))


def test_nothing_leaks_from_one_batch_to_the_next(pipe, models, digits, images):
    """Changing batch sizes within one context give what a fresh context gives."""
    made = recipe(cache="deepcache", stitch="tstitch", guidance="interval")
    fresh = [images(made, 0, n, n)[0] for n in (1, 3, 2)]
    with accelerate(pipe, made, models=models):
        inside = [generate(pipe, digits, made, 5, 0, n, n) for n in (1, 3, 2)]
    for a, b in zip(fresh, inside, strict=True):
        assert torch.equal(a, b)


def test_guided_recipe_needs_a_guided_pipeline_call(pipe, models, run):
    made = recipe(guidance="cfg")
    with accelerate(pipe, made), pytest.raises(AccelError, match="guidance_scale=2"):
        run(guidance_scale=1.0)


def test_incompatible_pair_is_refused_with_what_would_work(pipe, models):
    made = recipe(cache="deepcache", stitch="tstitch")
    too_deep = replace(made, cache=replace(made.cache, branch=8))  # `small` has six skip connections
    with pytest.raises((IncompatibleError, ConfigError), match=r"'small' has 6 skip connections; allowed: 1\.\.6"):
        too_deep.check(pipe, models)
    replace(too_deep, stitch=None).check(pipe, models)


def test_compatibility_table_agrees_with_what_happens(digits, pipe, models):
    """Both ways: every `no` of the generated table raises, every `yes` passes; one reason a number."""
    from accel.benches.compatibility import NEEDS_FILE, refusal, table

    known = [m for m in METHODS if m not in NEEDS_FILE]
    partners = [m for m in known if m[0] != "sampler"]
    text = table(digits)
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["digits", "alone", *(choice for _, choice in partners)]
    cells = {(row[0].strip("*"), column): cell for row in rows[1:] for column, cell in zip(rows[0], row, strict=True)}
    assert len(rows) == len(known) + 1
    for one in known:
        for other in (None, *partners):
            pair = [m for m in (one, other) if m is not None]
            found = cells[one[1], other[1] if other else "alone"]
            if len(pair) == 2 and one[0] == other[0]:
                assert found == ""
            else:
                assert found.startswith("yes" if refusal(pipe, models, *pair) is None else "no ("), pair
            if other is not None and one[0] != "sampler":
                assert found == cells[other[1], one[1]], "the table is symmetric"
