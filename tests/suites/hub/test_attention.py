"""Backends of attention: what they compute is the formula's, each is part of what it changes, none does nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from accel.core.attention import other_kernels, processors
from accel.core.recipe import Recipe, accelerate
from accel.deploy.plain import Plain, _execution
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import attention
from accel.testing.elsewhere import DEVICE, Elsewhere

QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
TWO = Recipe(method("sampler", "flow_euler", steps=2))


def test_families_that_quantise_change_images_and_all_others_round():
    inexact = {each.value for each in AttentionBackendName if not attention.exact(each.value)}
    assert inexact == {each.value for each in AttentionBackendName if "sage" in each.value}
    assert not attention.exact("_fp8_of_later_days")


@pytest.mark.parametrize(("backend", "dtype"), [("_native_math", "float32"), ("_native_flash", "bfloat16")])
def test_the_rule_holds_on_this_machine(backend, dtype):
    attention.check(backend, "cpu", getattr(torch, dtype))


def test_what_counts_as_exact_and_rounds_more_is_refused(monkeypatch):
    def eight_bits(q, k, v):
        q, k = ((127 * x / x.abs().max()).round() * x.abs().max() / 127 for x in (q, k))
        return attention.formula(q, k, v)

    monkeypatch.setattr(attention, "_run", lambda backend, *factors: eight_bits(*factors))
    with pytest.raises(
        IncompatibleError, match=r"counts as one that changes rounding alone, and on cpu in float32 its"
    ):
        attention.check("native", "cpu", torch.float32)
    attention.check("sage", "cpu", torch.float32)  # from which nothing else is expected


def test_the_measured_error_is_that_of_the_formula():
    def off(q, k, v):
        return 1.25 * attention.formula(q, k, v)

    assert attention.measured(off, "cpu", torch.float64, 8) == pytest.approx(0.25)
    with Elsewhere():
        assert attention.measured(off, DEVICE, torch.float64, 8) == pytest.approx(0.25)
    factors = [torch.randn(2, 5, 3, 4, dtype=torch.float64) for _ in range(3)]
    heads = (each.transpose(1, 2) for each in factors)
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)
    assert torch.allclose(attention.formula(*factors), wanted)


def test_images_are_the_default_ones_and_no_other_network_is_touched(hub_suite, hub_pipe):
    """`native` is the default kernel, so bit for bit; the written-out formula sums in another order."""
    before = _AttentionBackendRegistry.get_active_backend()
    made = {}
    for backend in (None, "native", "_native_math"):
        suite = hub_suite("flux", attention=backend)
        pipe = suite.pipeline()
        with accelerate(pipe, TWO, count_macs=True) as run:
            images = generate(pipe, suite, TWO, 0, 0, 2, 2)
        made[backend] = images.float(), run.macs
    assert torch.equal(made[None][0], made["native"][0])
    assert 0 < (made[None][0] - made["_native_math"][0]).abs().max() < 1e-5, "of 1"
    assert len({macs for _, macs in made.values()}) == 1
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert {p.attn.processor._attention_backend for p in hub_pipe("flux").transformer.transformer_blocks} == {None}


def test_operations_are_counted_whose_kernels_torch_does_not_see(hub_suite, monkeypatch):
    """A kernel of another package: here a function that counts no products; images are its own."""
    suite = hub_suite("flux")
    pipe, calls = suite.pipeline(), []
    sage = AttentionBackendName.SAGE

    def unseen(query, key, value, **kwargs):
        calls.append(1)
        return torch.zeros_like(query)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, sage, unseen)
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, sage, {"query", "key", "value"})
    monkeypatch.setattr("diffusers.models.attention_dispatch._check_attention_backend_requirements", lambda name: None)
    with accelerate(pipe, TWO, count_macs=True) as run:
        generate(pipe, suite, TWO, 0, 0, 2, 2)
    attention.use(pipe.transformer, "sage")
    with accelerate(pipe, TWO, count_macs=True) as other:
        generate(pipe, suite, TWO, 0, 0, 2, 2)
    assert other.macs == run.macs
    assert not calls
    assert other_kernels(pipe.transformer) == {"sage"}, "counted, it is back"
    with accelerate(pipe, TWO):
        generate(pipe, suite, TWO, 0, 0, 2, 2)
    assert calls
    quantised = Recipe(TWO.sampler, precision=method("precision", "w8a8", attention_bits=8))
    with pytest.raises(IncompatibleError, match=r"is computed by sage, in whose kernel nothing is quantised"):
        quantised.check(pipe, {})


def test_exact_ones_are_of_a_timings_identity_and_quantising_ones_of_an_images(hub_suite):
    plain, exact, inexact = (hub_suite("flux", attention=each) for each in (None, "_native_math", "sage"))
    assert exact.fingerprint() == plain.fingerprint()
    assert (plain.execution(), exact.execution(), inexact.execution()) == ({}, {"attention": "_native_math"}, {})
    assert set(inexact.fingerprint().items()) - set(plain.fingerprint().items()) == {("setting attention", "sage")}
    assert (plain.origin().lines, exact.origin().lines) == ([], [])
    assert inexact.origin().lines == ["pipe.transformer.set_attention_backend('sage')"]


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("sage", r"suite\.attention=sage does not run on cpu in float32: .*sageattention"),
        ("_native_flash", r"=_native_flash does not run on cpu in float32: .*bfloat16 or float16"),
        ("_native_efficient", r"does not run on cpu .* leave suite\.attention out"),
    ],
)
def test_what_package_type_or_device_lacks_is_refused_before_any_work(backend, said, hub_suite, tmp_path):
    with pytest.raises(ConfigError, match=said):
        Runner(hub_suite("flux", attention=backend), QUICK, Results(tmp_path))
    assert not any(tmp_path.iterdir())


def test_names_are_diffusers_own_and_code_of_a_hub_is_never_run(hub_suite):
    with pytest.raises(ConfigError, match=r"unknown suite\.attention 'flsh'.*flash"):
        hub_suite("flux", attention="flsh")
    with pytest.raises(ConfigError, match=r"suite\.attention=flash_hub fetches its kernel from the hub"):
        hub_suite("flux", attention="flash_hub")


def test_a_network_that_asks_for_no_backend_is_refused(hub_suite):
    with pytest.raises(ConfigError, match=r"a UNet2DConditionModel ask for no backend.*leave it out"):
        hub_suite("sd", attention="_native_math").pipeline()


def test_the_plain_script_sets_the_same(hub_suite, monkeypatch):
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    suite, pipe, script = hub_suite("flux", attention="_native_math"), hub_suite("flux").pipeline(), Plain()
    _execution(SimpleNamespace(pipe=pipe, suite=suite), script)
    assert script.execution == ["pipe.transformer.set_attention_backend('_native_math')"]
    exec(script.execution[0], {"pipe": pipe})
    own, theirs = ([each._attention_backend for each in processors(p.transformer)] for p in (suite.pipeline(), pipe))
    assert own == theirs
    assert {*own} == {"_native_math"}
