"""The contract of every registered method (docs/design.md): a new YAML file is picked up here by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from composed import composed
from omegaconf import OmegaConf
from registry import METHODS, PAIRS, SCHEDULED_ALIKE, WAITS, recipe

from accel.caching.schedules import Uniform
from accel.core.recipe import accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.records import canonical, describe
from accel.testing import CHECKS, TinySuite, contract_checks
from accel.testing.bench import bench

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
    "EasyCache": {"threshold": 0.0},
    "TeaCache": {"threshold": 0.0},
    "SeaCache": {"threshold": 0.0},
    "TGate": {"gate": 1000},
    "FasterCache": {"interval": 1, "guidance_interval": 1},
    "CacheDiT": {"threshold": 0.0},
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
    "InPlace": {"dtype": "float32", "linear": "none", "backend": "none"},
    "StaticInt8": None,
    "OpenVINO": None,  # sums in another order
    "MagnitudePruning": {"sparsity": 0.0},
    "SkipTuning": {"bottom": 1.0, "top": 1.0},
    "Distilled": None,  # another network
    "TinyDecoder": None,  # another network, too
}
# Checked on the trained networks of digits where they fit, too; the other points on tiny random ones alone.
TRAINED = ("neutral", "changes")
# One whose noise-level classifier knows no other samples, one whose steps are those of a smooth network.
FOR_DIGITS = ("dmcmc", "ode")
TINY = {"tgate": TinySuite("text"), "scm": TinySuite("arc")}  # which need cross-attention, angles for timesteps
# What is kept of a batch, where a step is full: nothing of the schedule. Of caches that differ in it alone, one tells.
KEPT = ("slots", "parts", "members")
POINTS = [(*m, point) for m in METHODS for point in CHECKS[m[0]] if point not in KEPT or m not in SCHEDULED_ALIKE]
# The pretended GPU cannot hold weights of torchao's own class, views of which torch checks the storage of.
NOT_PRETENDED = ("int8_in_place", "int8_compiled_blocks")
ids = "-".join
pytestmark = pytest.mark.usefixtures("few_ranges", "plain_kernels")


@pytest.mark.parametrize("point", POINTS, ids=ids)
def test_every_method_keeps_the_contract(point, light_suite):
    axis, choice, name = point
    if name == "gpu" and choice in NOT_PRETENDED:
        pytest.skip("needs a GPU: the pretended one holds no weights of torchao's class")
    made = recipe(**{axis: choice})
    config = getattr(made, axis)
    neutral = None
    if name == "neutral":
        kind = type(config).__name__
        assert kind in IDENTITY, f"say in IDENTITY at which setting {choice} changes nothing"
        neutral = IDENTITY[kind]
    trained = light_suite if name in TRAINED or choice in FOR_DIGITS else None
    checks = contract_checks(
        config,
        axis=axis,
        recipe=made,
        neutral=neutral,
        suite=TINY.get(choice, trained),
        changes=choice != "fp32",
        # The samples of a batch share the steps of an adaptive solver.
        tolerance={"fp32": 2e-3, "ode": 0.05}.get(choice),
        waits=WAITS.get(choice, 0),
    )
    try:
        checks[name]()
    except IncompatibleError as error:  # a GPU or a package is missing
        pytest.skip(str(error))


@pytest.fixture
def images(digits):
    """images(recipe, start, stop, batch) -> samples of the recipe and its Run."""
    return bench(digits).images


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda m: "-".join(m))
def test_pairs_compose_or_refuse_with_a_reason(one, other, light_suite):
    made = recipe(**dict([one, other]))
    tried = [bench(TinySuite("unet")), bench(light_suite)]  # the first one is faster
    if "decoder" in dict([one, other]):  # which needs latents
        tried = [bench(TinySuite("transformer")), tried[1]]
    on = next((on for on in tried if on.refusal(made) is None), None)
    if on is None:
        with pytest.raises(IncompatibleError, match=r".{30,}"), accelerate(tried[1].pipe, made, models=tried[1].models):
            pass
        return
    result, run = on.images(made)
    assert torch.isfinite(result).all()
    assert run.clock.runs == 1
    assert run.clock.num_steps == made.sampler.steps


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_config_round_trip(method):
    import hydra.utils

    axis, choice = method
    node = composed(axis, choice)
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
    from accel.benches.compatibility import NOT_HERE, refusal, table

    known = [m for m in METHODS if m not in NOT_HERE]
    partners = [m for m in known if m[0] != "sampler"]
    text = table(digits)
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["digits", "alone", *(choice for _, choice in partners)]
    cells = {(row[0].strip("*"), column): cell for row in rows[1:] for column, cell in zip(rows[0], row, strict=True)}
    assert len(rows) == len(known) + 1
    for i, one in enumerate(known):
        for j, other in enumerate((None, *partners)):
            if j and (i + j) % 8:  # an eighth of them, or it takes a minute
                continue
            pair = [m for m in (one, other) if m is not None]
            found = cells[one[1], other[1] if other else "alone"]
            if len(pair) == 2 and one[0] == other[0]:
                assert found == ""
            else:
                assert found.startswith("yes" if refusal(pipe, models, *pair) is None else "no ("), pair
            if other is not None and one[0] != "sampler":
                assert found == cells[other[1], one[1]], "the table is symmetric"
