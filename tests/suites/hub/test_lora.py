"""LoRA files on a pipeline: the sum in the weights, the layers beside them, what identifies them, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from registry import METHODS, recipe
from safetensors.torch import save_file

from accel.config import compose, instantiate
from accel.core.recipe import accelerate
from accel.deploy.export import _loaded
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.suites.hub.lora import Lora, parsed

NETS = {"sd": "unet", "flux": "transformer", "z_image": "transformer"}


@pytest.fixture(autouse=True)
def fast(few_ranges):
    pass


def matrices(net, seed: int = 0, rank: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each projection of an attention of `net` the factors A (r, in), B (out, r)."""
    draw = torch.Generator().manual_seed(seed)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(("to_q", "to_v"))}
    return {
        name: tuple(
            0.3 * torch.randn(shape, generator=draw) for shape in ((rank, m.in_features), (m.out_features, rank))
        )
        for name, m in layers.items()
    }


def written(pipe, kind: str, seed: int, folder):
    """A file as diffusers' trainers write it, and its matrices."""
    found, net = matrices(getattr(pipe, NETS[kind]), seed), NETS[kind]
    pairs = {name: dict(zip("AB", two, strict=True)) for name, two in found.items()}
    path = folder / f"{kind}{seed}.safetensors"
    save_file({f"{net}.{k}.lora_{which}.weight": m for k, two in pairs.items() for which, m in two.items()}, path)
    return path, found


@pytest.fixture
def lora_file(hub_pipe, tmp_path):
    """lora_file(kind, seed) -> such a file."""
    return lambda kind, seed=0: written(hub_pipe(kind), kind, seed, tmp_path)


def made_of(pipe, axes):
    made = recipe(**{"sampler": "ddim" if hasattr(pipe, "unet") else "flow_euler"} | axes)
    return replace(made, sampler=replace(made.sampler, steps=2))


def why_not(pipe, precision: str) -> str | None:
    try:
        made_of(pipe, {"precision": precision}).check(pipe, {})
    except IncompatibleError as error:
        return str(error)
    return None


def images(pipe, suite, counted: bool = False, **axes):
    made, own = made_of(pipe, axes), None
    if made.precision and made.precision.calibrated:
        own = made.precision.calibrate(pipe, made, lambda *drawn: generate(pipe, suite, made, 99, 0, 2, 2), {}, {})
    with accelerate(pipe, made, artefacts=own, count_macs=counted) as run:
        return generate(pipe, suite, made, 0, 0, 2, 2), run.macs if counted else None


@pytest.mark.parametrize("kind", NETS)
def test_fused_weights_are_the_sum_and_layers_are_those_of_the_model(kind, lora_file, hub_suite, hub_pipe):
    pytest.importorskip("peft", reason="needs the extra `hub`")
    (first, a), (second, b) = lora_file(kind), lora_file(kind, seed=1)
    pipe = hub_suite(kind, lora=[f"{first}:0.5", {"path": str(second), "scale": -2.0}]).pipeline()
    found = getattr(pipe, NETS[kind])
    plain = getattr(hub_pipe(kind), NETS[kind]).state_dict()
    assert {n: type(m) for n, m in found.named_modules()} == {
        n: type(m) for n, m in getattr(hub_pipe(kind), NETS[kind]).named_modules()
    }
    assert len(a) > 3
    for name, weight in found.state_dict().items():
        layer, expected = name.removesuffix(".weight"), plain[name]
        if layer in a:
            expected = expected + 0.5 * a[layer][1] @ a[layer][0] - 2.0 * b[layer][1] @ b[layer][0]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


PRECISIONS = [choice for axis, choice in METHODS if axis == "precision"]


@pytest.fixture(scope="module")
def both(hub_pipe, hub_suite, tmp_path_factory):
    """The suite and the pipeline with the weights fused, the same with layers beside them, and the images of both."""
    pytest.importorskip("peft", reason="needs the extra `hub`")
    path, _ = written(hub_pipe("sd"), "sd", 0, tmp_path_factory.mktemp("lora"))
    suites = [hub_suite("sd", lora=[str(path)], lora_fused=fused) for fused in (True, False)]
    pipes = [suite.pipeline() for suite in suites]
    return suites, pipes, images(pipes[0], suites[0])[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_right_on_layers_beside_the_weights_or_refused(precision, both):
    """Right: no further from the images in floating point than the same precision of the fused weights is, about."""
    suites, (fused, beside), exact = both
    reasons = [why_not(pipe, precision) for pipe in (fused, beside)]
    if any(reasons):
        assert all("needs" in str(reason) for reason in reasons), "a package, or a device, that is not here"
        return
    inside, outside = (
        images(pipe, suite, precision=precision)[0] for pipe, suite in zip((fused, beside), suites, strict=True)
    )
    errors = [float((found - exact).square().mean().sqrt()) for found in (inside, outside)]
    assert errors[1] <= 2 * errors[0] + 1e-5
    assert (errors[1] < 1e-5) == (precision == "fp32")


def test_beside_the_weights_the_images_are_the_same_and_cost_more(both, hub_pipe):
    suites, pipes, inside = both
    (plain, macs), (_, same), (outside, more) = (
        images(pipe, suite, counted=True)
        for pipe, suite in zip((hub_pipe("sd"), *pipes), (suites[0], *suites), strict=True)
    )
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-5)
    assert (inside - plain).abs().max() > 1e-3
    assert same == macs < more


def test_identity_is_the_file_its_scale_and_whether_it_is_fused(lora_file, hub_suite):
    path, _ = lora_file("sd")
    plain, known = hub_suite("sd").fingerprint(), hub_suite("sd", lora=[str(path)]).fingerprint()
    assert plain == hub_suite("sd", lora=[], lora_fused=False).fingerprint(), "records without LoRA stay what they are"
    assert set(known) - set(plain) == {"setting lora 0"}
    assert known["setting lora 0"].endswith(" x 1")
    moved = path.rename(path.with_name("renamed.safetensors"))
    assert hub_suite("sd", lora=[str(moved)]).fingerprint() == known, "a LoRA is its content"
    for lora, fused in (([f"{moved}:0.5"], True), ([str(moved)] * 2, True), ([str(moved)], False)):
        assert hub_suite("sd", lora=lora, lora_fused=fused).fingerprint() not in (plain, known)


def test_short_and_long_forms_are_the_same():
    assert parsed(["a.safetensors:0.5"]) == parsed([{"path": "a.safetensors", "scale": 0.5}])
    assert parsed(["a.safetensors", {"path": "b"}]) == (Lora("a.safetensors"), Lora("b"))
    assert parsed(["C:/a.safetensors"]) == (Lora("C:/a.safetensors"),), "a colon of the path"


@pytest.mark.parametrize("said", ["[a.safetensors:0.5]", "[{path: a.safetensors, scale: 0.5}]"])
def test_the_command_line_takes_both(said):
    suite = instantiate(compose(["suite=sdxl_lightning", f"suite.lora={said}"]).suite)
    assert suite.lora == (Lora("a.safetensors", 0.5),)
    assert hash(suite) == hash(replace(suite))


WRONG = {
    "not a list": ("a.safetensors", "allowed: a list"),
    "unknown words": ([{"path": "a", "weight": 1}], "allowed: path:scale, or {path"),
    "no path": ([{"path": 3}], "a path in suite.lora is 3"),
    "scale": ([{"path": "a", "scale": "much"}], "the scale of a in suite.lora is 'much'"),
    "huge scale": (["a:1e9"], "the scale of a in suite.lora is 1000000000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case, hub_suite):
    said, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        hub_suite("sd", lora=said)


def test_files_are_safetensors_that_are_there(hub_suite, tmp_path, lora_file):
    def refused(path, message):
        with pytest.raises(ConfigError, match=message):
            Lora(str(path)).file  # noqa: B018

    path, _ = lora_file("sd")
    assert Lora(str(tmp_path)).file == path
    lora_file("sd", seed=1)
    refused(tmp_path, "holds 2 files of safetensors; name the LoRA's")
    refused(tmp_path / "none.safetensors", r"there is no LoRA file .*hf download")
    (tmp_path / "old.bin").write_bytes(b"")
    refused(tmp_path / "old.bin", "is a pickle, which can run code when loaded; needed: .safetensors")


def test_classes_without_lora_and_a_missing_package_are_refused(hub_suite, lora_file, monkeypatch):
    path, _ = lora_file("sd")
    with pytest.raises(ConfigError, match=r"DiTPipeline takes no LoRA weights; leave suite\.lora out"):
        hub_suite("dit", lora=[str(path)]).check(60)
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"suite\.lora needs peft .*accel-diffusion\[hub\]"):
        hub_suite("sd", lora=[str(path)]).check(60)


def test_a_file_of_another_model_is_refused(lora_file, hub_suite, hub_pipe, tmp_path):
    pytest.importorskip("peft", reason="needs the extra `hub`")
    _, found = lora_file("sd")
    state = {f"unet.{k}.lora_{which}.weight": m for k, v in found.items() for which, m in zip("AB", v, strict=True)}
    more = tmp_path / "more.safetensors"
    save_file(state | {f"unet.nowhere.to_q.lora_{w}.weight": torch.ones(2, 2) for w in "AB"}, more)
    with pytest.raises(
        ConfigError, match=f"{len(found)} of its {len(found) + 1} LoRA layers are layers of this Stable"
    ):
        hub_suite("sd", lora=[str(more)]).pipeline()
    wide = tmp_path / "wide.safetensors"
    save_file({k: torch.ones(2, 64) if "lora_A" in k else torch.ones(64, 2) for k in state}, wide)
    with pytest.raises(ConfigError, match=r"cannot load .*wide\.safetensors"):
        hub_suite("sd", lora=[str(wide)]).pipeline()


def test_the_plain_script_loads_them_too(lora_file, hub_suite):
    path, _ = lora_file("sd")
    _, load = _loaded(hub_suite("sd", lora=[f"{path}:0.5"]).origin(), [], ["pipe.vae.enable_slicing()"])
    done = [line for line in load.splitlines() if "lora" in line or "adapters" in line or "slicing" in line]
    assert [line.split("(")[0] for line in done] == [
        "pipe.load_lora_weights", "pipe.set_adapters", "pipe.fuse_lora", "pipe.unload_lora_weights",
        "pipe.vae.enable_slicing",
    ]  # fmt: skip
    assert "['lora0'], [0.5]" in done[1]


@pytest.mark.parametrize("cache", ["fora", "deepcache"])
def test_a_cache_of_layers_beside_the_weights_is_that_of_fused_ones(cache, both):
    suites, pipes, _ = both
    found = [images(pipe, suite, cache=cache)[0] for pipe, suite in zip(pipes, suites, strict=True)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
