"""model_index.json: every entry is checked before anything is imported, and code of a checkpoint is never run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from accel import __main__ as cli
from accel.errors import ConfigError
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub.kinds import COMMON, UNUSED, kind_of

ADVICE = ("trust_remote_code", "trust remote code")


@pytest.fixture(autouse=True)
def fresh():
    hub_files.folder_of.cache_clear()


@pytest.fixture
def model(hub_folder, tmp_path):
    """model(kind, **entries) -> a copy of that pipeline's folder with these entries in its index."""

    def model(kind: str, **entries) -> Path:
        folder = Path(shutil.copytree(hub_folder(kind), tmp_path / "model"))
        path = folder / hub_index.FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        return folder

    return model


@pytest.fixture
def ran(tmp_path):
    """ran(file) writes Python code that would leave a mark into `file`; ran.mark is there once it was imported."""

    def ran(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(ran.mark)!r}, 'w').close()\n\n\nclass Evil:\n    pass\n")

    ran.mark = tmp_path / "ran"
    return ran


@pytest.fixture
def accel(monkeypatch, capsys, prompt_file, tmp_path):
    """accel(folder) -> (exit code, stderr) of the command line, explaining one recipe of the model there."""

    def accel(folder: Path, *overrides: str) -> tuple[int, str]:
        asked = ["suite=hub", f"suite.model={folder}", f"suite.prompts.path={prompt_file}", "sampler.steps=1",
                 "suite.converged_steps=1", 'baseline=["sampler=ddim","sampler.steps=1"]', "evaluation.n=60",
                 "evaluation.distance_n=60", "evaluation.device=cpu", f"results={tmp_path / 'results'}", "explain=true",
                 *overrides]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["accel", *asked])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    return accel


def refused(accel, folder: Path, *overrides: str) -> str:
    """The one line of the command line's refusal."""
    code, printed = accel(folder, *overrides)
    assert code == 2, printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1, printed
    assert not any(advice in printed for advice in ADVICE)
    return printed


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("name", ["image_encoder", "safety_checker", "feature_extractor", "unet", "anything"])
def test_code_of_a_checkpoint_is_refused_and_never_run(kind, name, model, ran, accel):
    folder = model(kind, **{name: ["evil", "Evil"]})
    ran(folder / name / "evil.py")
    ran(folder / "evil.py")
    printed = refused(accel, folder)
    assert f"component {name} is evil.Evil; allowed: classes of diffusers and transformers" in printed
    assert "Code of a checkpoint is never run" in printed
    assert not ran.mark.exists()


def test_code_of_a_stitched_checkpoint_is_refused(model, hub_folder, ran, accel):
    folder = model("sd", image_encoder=["evil", "Evil"])
    ran(folder / "image_encoder" / "evil.py")
    said = refused(accel, hub_folder("sd"), f"+suite.stitch_models.small={folder}")
    assert "component image_encoder is evil.Evil" in said
    assert not ran.mark.exists()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("file", ["vae/diffusers.py", "text_encoder/transformers.py"])
def test_a_file_that_stands_in_for_a_library_is_refused(kind, file, model, ran, accel):
    folder = model(kind)
    ran(folder / file)
    printed = refused(accel, folder)
    assert f"{folder / file} would be run in the place of {Path(file).stem}" in printed
    assert not ran.mark.exists()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_other_code_beside_is_left_alone(kind, model, ran, accel):
    folder = model(kind, **{name: [None, None] for name in UNUSED})
    for name in ("pipeline.py", "unet/evil.py", "image_encoder/transformers.py", "image_encoder/evil.py"):
        ran(folder / name)
    code, printed = accel(folder)
    assert code == 0, printed
    assert not ran.mark.exists()


LIBRARIES = ["os.path", "diffusers.utils", "transformers.utils", "../evil", "/evil", "evil/evil", ".",
             "..", "stable_diffusion", "diffusers\n", "évil", "pipelines.stable_diffusion"]  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES, ids=repr)
@pytest.mark.parametrize("name", ["vae", "image_encoder"])
def test_only_two_libraries_are_asked(name, library, model):
    folder = model("sd", **{name: [library, "Evil"]})
    if (name, library) == ("image_encoder", "stable_diffusion"):  # a module of diffusers, for a part that is not loaded
        assert name not in hub_index.components(folder)
        return
    with pytest.raises(ConfigError, match="allowed: classes of diffusers and transformers"):
        hub_index.components(folder)


CLASSES = {
    "a pipeline, with an index of its own": ("vae", "diffusers", "StableDiffusionPipeline"),
    "whatever the config says": ("text_encoder", "transformers", "AutoModel"),
    "whatever the tokenizer says": ("tokenizer", "transformers", "AutoTokenizer"),
    "whatever diffusers' config says": ("unet", "diffusers", "AutoModel"),
    "another role": ("scheduler", "diffusers", "AutoencoderKL"),
    "another library": ("unet", "transformers", "CLIPTextModel"),
    "no such class": ("unet", "diffusers", "UNet2DConditionModell"),
    "a module": ("unet", "diffusers", "utils"),
    "a function": ("text_encoder", "transformers", "pipeline"),
    "private": ("unet", "diffusers", "__loader__"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_part_is_what_its_name_says(case, model):
    name, library, cls = CLASSES[case]
    with pytest.raises(ConfigError, match=rf"component {name} is {library}\.{cls}; allowed: a class of the installed"):
        hub_index.components(model("sd", **{name: [library, cls]}))


def test_a_class_whose_packages_are_missing_says_which(model, monkeypatch):
    import diffusers

    class Absent:
        _backends = ("torch", "onnx")

    monkeypatch.setattr(diffusers, "Absent", Absent, raising=False)
    with pytest.raises(ConfigError, match="component vae is a Absent, which needs torch and onnx; install it"):
        hub_index.components(model("sd", vae=["diffusers", "Absent"]))


MALFORMED = [None, "AutoencoderKL", 3, {}, {"a": 1}, [], ["diffusers"], ["diffusers", "AutoencoderKL", "more"],
             ["diffusers", None], [None, "AutoencoderKL"], [None], [None, None, None], ["", ""], [1, 2],
             [["diffusers"], "AutoencoderKL"], "x" * 500]  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED, ids=lambda v: repr(v)[:40])
@pytest.mark.parametrize("name", ["vae", "safety_checker"])
def test_malformed_entries_are_one_error(name, value, model):
    with pytest.raises(ConfigError, match=rf"component {name} is .*; needed: \[library, class\]") as error:
        hub_index.components(model("sd", **{name: value}))
    assert len(str(error.value).split("component", 1)[1]) < 300


def test_a_list_under_another_name_is_an_entry_too(model):
    with pytest.raises(ConfigError, match=r"component other is \[1, 2, 3\]; needed"):
        hub_index.components(model("sd", other=[1, 2, 3]))


@pytest.mark.parametrize("name", ["", "../../outside", "other"])
def test_parts_that_the_class_does_not_have_are_never_looked_for(name, model):
    folder = model("sd", **{name: ["diffusers", "UNet2DModel"]})
    assert name not in hub_index.components(folder)
    hub_files.check(folder, None)


PIPELINES = [["pipeline", "Evil"], ["diffusers", "StableDiffusionPipeline"], None, 3, {}, [], "DiffusionPipeline",
             "FlaxStableDiffusionPipeline", "evil.Evil", "../evil", "StableDiffusionUpscalePipeline", ""]  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES, ids=repr)
def test_pipeline_classes_of_its_own_are_refused(name, model, ran, accel):
    folder = model("sd", _class_name=name)
    for file in ("pipeline.py", "evil.py", "my_pipeline.py"):
        ran(folder / file)
    printed = refused(accel, folder)
    said = ("code of its own, which is never run", "unknown pipeline class", "suite hub cannot run a")
    assert any(each in printed for each in said)
    assert not ran.mark.exists()


INDEXES = ["[]", "null", "3", '"text"', "", "{", "[" * 100_000, '{"_class_name": "a"', b"\xff\xfe".decode("latin1")]


@pytest.mark.parametrize("text", INDEXES, ids=lambda v: repr(v)[:20])
def test_an_index_that_is_no_object_is_one_error(text, model, accel):
    folder = model("sd")
    (folder / hub_index.FILE).write_bytes(text.encode("latin1"))
    assert str(folder / hub_index.FILE) in refused(accel, folder)


@pytest.mark.parametrize("text", ["[]", "", "null"])
def test_a_config_that_is_no_object_is_one_error(text, model, accel):
    folder = model("sd")
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    assert "scheduler_config.json" in refused(accel, folder)


@pytest.mark.parametrize("name", ["vae", "unet", "scheduler", "tokenizer", "text_encoder"])
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "null"])
def test_a_missing_part_is_named(name, gone, model):
    folder = model("sd", **{name: [None, None]})
    if gone:
        content = json.loads((folder / hub_index.FILE).read_text())
        del content[name]
        (folder / hub_index.FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"lacks {name}, without which there is no StableDiffusionPipeline"):
        hub_index.components(folder)


def test_parts_that_a_class_does_without_may_be_missing(model):
    both = {"text_encoder": [None, None], "tokenizer": [None, None]}
    assert "text_encoder" not in hub_index.components(model("sdxl", **both))


def test_a_text_encoder_needs_its_tokenizer(model):
    with pytest.raises(ConfigError, match="lacks tokenizer_2"):
        hub_index.components(model("sdxl", tokenizer_2=[None, None]))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_parts_that_are_not_used_are_never_loaded(kind, model, hub_suite):
    vision = ["transformers", "CLIPVisionModelWithProjection"]  # whose files are not there
    folder = model(kind, image_encoder=vision, feature_extractor=["transformers", "CLIPFeatureExtractor"])
    pipe = hub_suite(kind, model=str(folder)).pipeline()
    assert pipe.image_encoder is None
    assert pipe.feature_extractor is None


@pytest.mark.parametrize("name", COMMON)
def test_every_part_that_is_not_used_is_handed_over_as_none(name):
    kind = kind_of(name)
    parts, _, _ = hub_index._parts(name)
    loading = kind.loading()
    assert {part for part in parts if part in UNUSED} == {k for k in loading if k in UNUSED}
    assert all(loading[k] is None for k in loading if k in UNUSED)


def test_a_cached_model_with_code_is_refused_for_that_reason(model, ran, accel, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = model("sd", image_encoder=["evil", "Evil"])
    ran(folder / "image_encoder" / "evil.py")
    place = tmp_path / "cache" / "models--owner--evil"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    printed = refused(accel, "owner/evil")
    assert "component image_encoder is evil.Evil" in printed
    assert "cannot be downloaded" not in printed
    assert not ran.mark.exists()


def test_the_advice_of_a_library_is_never_passed_on(model, accel, tmp_path, monkeypatch):
    import diffusers
    import huggingface_hub

    def download(*args, **kwargs):
        assert kwargs["image_encoder"] is None
        raise ValueError("The repository contains custom code. Pass `trust_remote_code=True` to allow it.")

    folder = model("sd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(folder / hub_index.FILE))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert "'owner/evil' brings along code of its own. Code of a checkpoint is never run." in refused(
        accel, "owner/evil"
    )


def test_an_index_with_code_is_refused_before_the_rest_is_downloaded(model, accel, tmp_path, monkeypatch):
    import diffusers
    import huggingface_hub

    folder = model("sd", image_encoder=["evil", "Evil"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(folder / hub_index.FILE))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *a, **k: pytest.fail("downloaded"))
    assert "component image_encoder is evil.Evil" in refused(accel, "owner/evil")


def test_a_network_that_cannot_be_read_is_one_error(model, accel):
    folder = model("sd")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [8, 16]}))
    assert f"cannot load {folder}" in refused(accel, folder)
