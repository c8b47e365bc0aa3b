"""Where weights wait: on the pretended device, bit for bit the images of a pipeline that is there; stored in 8 bits."""

from __future__ import annotations

import pytest
import torch
from registry import METHODS

from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.deploy.plain import OFFLOADED
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import offload
from accel.testing.elsewhere import DEVICE, Elsewhere

QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")


@pytest.fixture
def packages():
    pytest.importorskip("accelerate", reason="needs the extra `hub`")


def recipes(kind: str) -> dict[str, Recipe]:
    sampler = method("sampler", "ddim" if kind == "sd" else "flow_euler", steps=2)
    caches = ("deepcache",) if kind == "sd" else ("fora", "diffusers_first_block")
    made = {name: Recipe(sampler, cache=method("cache", name)) for name in caches}
    return made | {"bf16": Recipe(sampler, precision=method("precision", "bf16"))}


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_images_are_those_of_a_pipeline_that_is_on_the_device(kind, hub_suite, packages):
    expected, places = {}, {}
    for way in offload.WAYS:
        suite = hub_suite(kind, offload=way)
        with Elsewhere() as device:
            pipe = suite.on(suite.pipeline(), DEVICE)
            net = getattr(pipe, denoiser_name(pipe))
            weight, at = next(p for n, p in net.named_parameters() if "attn" in n), set()
            block = next(m for m in net.modules() if type(m).__name__ in net._repeated_blocks)
            layer = next(m for m in block.modules() if isinstance(m, torch.nn.Linear))
            inside = layer.weight
            handle = layer.register_forward_pre_hook(
                lambda *_, inside=inside, at=at, on=device: at.add(on.place(inside))
            )
            for name, made in recipes(kind).items():
                for _ in range(2):  # what one call leaves behind must not change the next
                    with accelerate(pipe, made):
                        found = generate(pipe, suite, made, 0, 0, 2, 2)
                assert torch.equal(found, expected.setdefault(name, found)), (way, name)
            handle.remove()
            places[way] = at, device.place(weight)
    assert all(at == {DEVICE} for at, _ in places.values()), "a block computes on the device"
    assert [after for _, after in places.values()] == [DEVICE, "cpu", "cpu"], "and its weights do not wait there"


def test_on_the_cpu_alone_it_is_refused_before_any_work(hub_suite, tmp_path):
    with pytest.raises(ConfigError, match=r"suite\.offload=group keeps weights in the memory of the host while a GPU"):
        Runner(hub_suite("sd", offload="group"), QUICK, Results(tmp_path))
    with pytest.raises(ConfigError, match=r"use suite\.offload=none, or a GPU"):
        hub_suite("sd", offload="model").on(None, "cpu")
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"suite\.offload=model needs accelerate .*accel-diffusion\[hub\]"):
        offload.check("model", "cuda")


def test_another_way_is_refused(hub_suite):
    with pytest.raises(ConfigError, match=r"unknown suite\.offload 'disk'.*Allowed: group, model, none"):
        hub_suite("sd", offload="disk")


def test_offloading_is_of_a_timings_identity_and_casting_of_an_images(hub_suite):
    plain, waiting, cast = (hub_suite("sd", **s) for s in ({}, {"offload": "model"}, {"layerwise_casting": True}))
    assert waiting.fingerprint() == plain.fingerprint()
    assert (plain.execution(), waiting.execution()) == ({}, {"offload": "model"})
    assert set(cast.fingerprint()) - set(plain.fingerprint()) == {"setting layerwise casting"}


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_stored_weights_are_rounded_to_8_bits_and_computed_with_as_before(kind, hub_suite, hub_pipe):
    """The judge: a pipeline whose weights were rounded by hand where the stored ones are of 8 bits."""
    suite = hub_suite(kind, layerwise_casting=True)
    pipe, plain = suite.pipeline(), hub_suite(kind).pipeline()
    stored = dict(getattr(pipe, denoiser_name(pipe)).named_parameters())
    rounded = [name for name, weight in stored.items() if weight.dtype == offload.STORED]
    assert len(rounded) > len(stored) / 3
    for name, weight in getattr(plain, denoiser_name(plain)).named_parameters():
        if name in rounded:
            weight.data = weight.data.to(offload.STORED).to(weight.dtype)
    made = Recipe(method("sampler", "ddim" if kind == "sd" else "flow_euler", steps=2), cache=method("cache", "fora"))
    found = []
    for each in (pipe, plain):
        with accelerate(each, made):
            found.append(generate(each, suite, made, 0, 0, 2, 2))
    assert torch.equal(*found)
    with accelerate(hub_pipe(kind), made):
        assert not torch.equal(found[0], generate(hub_pipe(kind), suite, made, 0, 0, 2, 2))


@pytest.mark.parametrize("precision", [choice for axis, choice in METHODS if axis == "precision"])
def test_no_precision_reads_stored_weights(precision, hub_suite):
    pipe = hub_suite("flux", layerwise_casting=True).pipeline()
    made = Recipe(method("sampler", "flow_euler", steps=2), precision=method("precision", precision))
    with pytest.raises(IncompatibleError, match=r"float8_e4m3fn between calls .*suite\.layerwise_casting=false"):
        made.check(pipe, {})


def test_the_plain_script_does_the_same(hub_suite):
    line = hub_suite("flux", layerwise_casting=True).origin().lines[-1]
    assert line.startswith("pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn")
    pipe = hub_suite("flux").pipeline()
    exec(line, {"pipe": pipe, "torch": torch})
    stored = [p.dtype for p in hub_suite("flux", layerwise_casting=True).pipeline().transformer.parameters()]
    assert [p.dtype for p in pipe.transformer.parameters()] == stored
    assert hub_suite("flux").origin().lines == []
    assert set(OFFLOADED) == set(offload.WAYS) - {"none"}


def test_what_has_no_layers_to_cast_is_refused():
    with pytest.raises(ConfigError, match="a Linear has no layerwise casting"):
        offload.store(torch.nn.Linear(2, 2))
