"""Weights that were quantised before they were saved: loaded as they are, said in words, left alone by precisions."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.records import Results
from accel.registry import method
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import quantised

QUICK = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=False, device="cpu")
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}


@pytest.fixture
def claimed(hub_folder, tmp_path):
    """claimed(config): a flux folder whose transformer says that it is quantised so."""

    def folder(config):
        made = tmp_path / "claimed"
        shutil.copytree(hub_folder("flux"), made)
        path = made / "transformer/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
        return made

    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NF4, "bitsandbytes nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
        (TORCHAO, "torchao Int8WeightOnly"),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "torchao int8wo"),
        ({"quant_method": "quanto", "weights_dtype": "int8"}, "quanto int8"),
    ],
)
def test_labels(config, said):
    assert quantised.label(config) == said


def test_a_missing_package_is_one_error_before_any_work(claimed, hub_suite, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    suite = hub_suite("flux", model=str(claimed(TORCHAO)))
    with pytest.raises(ConfigError, match=r"quantised by torchao .*needs torchao, accelerate \(not installed\)"):
        suite.check(60)
    with pytest.raises(ConfigError, match=r"quantised by torchao"):
        Runner(suite, QUICK, Results(tmp_path / "results"))


def test_a_method_that_fetches_code_is_refused(claimed, hub_suite):
    suite = hub_suite("flux", model=str(claimed({"quant_method": "nunchaku_lite"})))
    with pytest.raises(ConfigError, match=r"'nunchaku_lite'.*bitsandbytes, quanto, torchao"):
        suite.check(60)


def test_kernels_of_a_gpu_and_settings_that_write_weights_are_refused(claimed, hub_suite):
    folder = claimed(NF4)
    with pytest.raises(ConfigError, match=r"bitsandbytes nf4\), whose kernels run on a GPU alone"):
        hub_suite("flux", model=str(folder)).check_device("cpu")
    hub_suite("flux", model=str(folder)).check_device("cuda")
    with pytest.raises(ConfigError, match=r"use suite\.layerwise_casting=false"):
        quantised.check_settings(folder, None, False, True)
    with pytest.raises(ConfigError, match=r"use suite\.lora_fused=false"):
        quantised.check_settings(folder, None, True, False)


def test_the_label_is_of_an_images_identity(claimed, hub_suite):
    plain, own = hub_suite("flux"), hub_suite("flux", model=str(claimed(TORCHAO)))
    more = {k: v for k, v in own.fingerprint().items() if k not in plain.fingerprint()}
    assert more == {"setting quantised weights": "transformer torchao Int8WeightOnly"}


def test_scales_beside_a_tensor_are_no_surplus_and_tensors_of_another_layer_are():
    from accel.suites.hub.models import _beside

    tensors = {"a.weight", "a.bias"}
    assert _beside("a.weight.absmax", tensors)
    assert _beside("a.weight.quant_state.bitsandbytes__nf4", tensors)
    assert not _beside("b.weight", tensors)
    assert not _beside("a.weight", tensors)


@pytest.fixture
def int8(hub_folder, tmp_path):
    """A flux folder whose transformer torchao has quantised, and the weights that it stands for."""
    pytest.importorskip("accelerate", reason="needs the extra `hub`")
    config = pytest.importorskip("torchao.quantization", reason="needs torchao").Int8WeightOnlyConfig
    from diffusers import FluxTransformer2DModel, TorchAoConfig

    made = tmp_path / "int8"
    shutil.copytree(hub_folder("flux"), made)
    how = {"quantization_config": TorchAoConfig(config()), "torch_dtype": torch.float32}
    net = FluxTransformer2DModel.from_pretrained(made / "transformer", **how)
    shutil.rmtree(made / "transformer")
    net.save_pretrained(made / "transformer")
    weights = {n: p.dequantize() if hasattr(p, "dequantize") else p for n, p in net.named_parameters()}
    return made, {name: weight.detach().clone() for name, weight in weights.items()}


def test_quantised_weights_are_run_as_what_they_stand_for(int8, hub_suite):
    """The judge: a plain network with the dequantised weights. Caches and samplers work, precisions are refused."""
    folder, weights = int8
    suite, plain = hub_suite("flux", model=str(folder)), hub_suite("flux")
    suite.check(4)
    pipe, other = suite.pipeline(), plain.pipeline()
    assert plain_bytes(pipe.transformer) < 0.5 * plain_bytes(other.transformer)
    made = Recipe(method("sampler", "flow_euler", steps=2), cache=method("cache", "fora"))
    with accelerate(other, made, count_macs=True) as run:
        before = generate(other, suite, made, 0, 0, 2, 2).float()
    for name, parameter in other.transformer.named_parameters():
        parameter.data = weights[name].float()
    found = []
    for each in (pipe, other):
        with accelerate(each, made, count_macs=True) as own:
            found.append(generate(each, suite, made, 0, 0, 2, 2).float())
        assert own.macs == run.macs
    rounding, quantising = (found[0] - found[1]).abs().max(), (found[1] - before).abs().max()
    assert rounding < 1e-5 < 1e-3 < quantising
    assert weights_hex(pipe.transformer) != weights_hex(other.transformer)
    assert weights_hex(pipe.transformer) == weights_hex(suite.pipeline().transformer)
    with pytest.raises(IncompatibleError, match=r"were quantised before it was loaded \(torchao\).*precision=none"):
        Recipe(made.sampler, precision=method("precision", "bf16")).check(pipe, {})


# GGUF -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def q8(hub_folder, tmp_path):
    """A flux folder without its transformer's weights, a GGUF file of them, and the weights that it stands for."""
    pytest.importorskip("accelerate", reason="needs the extra `hub`")
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    from diffusers import FluxTransformer2DModel

    made, file, stands = tmp_path / "bare", tmp_path / "q8.gguf", {}
    shutil.copytree(hub_folder("flux"), made)
    net = FluxTransformer2DModel.from_pretrained(made / "transformer")
    for path in (made / "transformer").glob("*.safetensors"):
        path.unlink()
    kind, writer = gguf.GGMLQuantizationType.Q8_0, gguf.GGUFWriter(str(file), "flux")
    for name, weight in net.state_dict().items():
        array = weight.numpy()
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            array = gguf.quants.dequantize(packed, kind).astype("float16").astype("float32")  # as diffusers does
        else:
            writer.add_tensor(name, array)
        stands[name] = torch.from_numpy(array.copy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return made, file, stands


def test_a_gguf_file_is_run_as_what_it_stands_for(q8, hub_suite):
    folder, file, weights = q8
    suite, plain = hub_suite("flux", model=str(folder), gguf=str(file)), hub_suite("flux")
    suite.check(4)
    pipe, other = suite.pipeline(), plain.pipeline()
    other.transformer.load_state_dict(weights)
    made = Recipe(method("sampler", "flow_euler", steps=2), cache=method("cache", "fora"))
    found = []
    for each in (pipe, other):
        with accelerate(each, made):
            found.append(generate(each, suite, made, 0, 0, 2, 2).float())
    assert (found[0] - found[1]).abs().max() < 1e-5
    own = {k: v for k, v in suite.fingerprint().items() if k not in plain.fingerprint()}
    assert own.keys() == {"gguf", "setting quantised weights"}
    assert own["setting quantised weights"] == "transformer gguf Q8_0"
    assert not any("transformer" in name and name.endswith("safetensors") for name in suite.fingerprint())
    with pytest.raises(IncompatibleError, match=r"quantised before it was loaded \(gguf\)"):
        Recipe(made.sampler, precision=method("precision", "w8a8")).check(pipe, {})
    line = suite.origin()
    assert line.options["transformer"] is None
    other.transformer = None
    exec("\n".join(line.lines), {"pipe": other, "torch": torch})
    assert weights_hex(other.transformer) == weights_hex(pipe.transformer)
    with pytest.raises(ConfigError, match="no safetensors weights"):
        hub_suite("flux", model=str(folder)).check(4)


def test_a_gguf_file_that_is_not_there_or_a_missing_package_is_one_error(hub_suite, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"suite\.gguf is .*needed: a \.gguf file that is here"):
        hub_suite("flux", gguf=str(tmp_path / "none.gguf")).check(4)
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("accel.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"suite\.gguf needs gguf, accelerate \(not installed\)"):
        hub_suite("flux", gguf=str(tmp_path / "q.gguf")).check(4)
