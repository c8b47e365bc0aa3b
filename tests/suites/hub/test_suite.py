"""Suite `hub`: where models come from, what is refused, what identifies a run, and whole experiments of every class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hub_tiny import KINDS, LIMIT, PROMPTS, save
from safetensors.torch import load_file, save_file

from accel.cli import build as cli
from accel.cli.convert import convert
from accel.config import CONF, compose, groups, instantiate
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.hub import files as hub_files
from accel.suites.hub import models as hub_models
from accel.suites.hub.classes import spread
from accel.suites.hub.prompts import Prompts
from accel.suites.hub.real_images import RealImages

QUICK = Evaluation(n=60, distance_n=60, shard=30, batch=30, timing=False, controls=False, device="cpu")
FLOWS = ("sd3", "flux")


@pytest.fixture(autouse=True)
def fresh():
    hub_files.folder_of.cache_clear()


@pytest.fixture
def copy(hub_folder, tmp_path):
    """copy(kind) -> a folder of that pipeline that the test may change."""
    return lambda kind, name="model": Path(shutil.copytree(hub_folder(kind), tmp_path / name))


# --- whole experiments


@pytest.fixture
def experiment(hub_folder, prompt_file, tmp_path, monkeypatch):
    """experiment(kind, *overrides) -> (failed cells, rows, records by label, what was printed) of a study."""
    from io import StringIO

    from rich.console import Console

    monkeypatch.setattr("accel.studies.study.write_figures", lambda *args: [])
    monkeypatch.setattr("accel.studies.study.print_study", lambda *args: None)

    def run(kind: str, *overrides: str):
        flow, seq = kind in FLOWS, kind in (*FLOWS, "pixart_alpha", "pixart_sigma")
        sampler = "flow_euler" if flow else "ddim"
        asked = [
            f"suite.model={hub_folder(kind)}", f"suite.prompts.path={prompt_file}", "suite=hub",
            f"sampler={'unipc' if flow else 'dpmpp_2m'}", "sampler.steps=2", "suite.converged_steps=2",
            f'baseline=["sampler={sampler}","sampler.steps=2"]', f"results={tmp_path}", "wandb=disabled",
            "evaluation.n=60", "evaluation.distance_n=60", "evaluation.shard=30", "evaluation.timing=false",
            "evaluation.device=cpu", *(["suite.max_sequence_length=24"] if seq else []),
            *(["suite.height=16", "suite.width=16"] if kind == "flux" else []), *overrides,
        ]  # fmt: skip
        study = cli.build_study(compose(asked), asked)
        printed = StringIO()
        study.console = Console(file=printed, width=200)
        failures = study.run()
        results = Results(tmp_path)
        rows = results.load_study(study.name)["rows"]
        records = {row["label"]: results.load("quality", row["quality"]) for row in rows if row["quality"]}
        return failures, rows, records, printed.getvalue()

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_experiment_of_every_class(kind, experiment, tmp_path):
    failures, rows, records, printed = experiment(kind)
    assert failures == 0, printed
    assert [row["role"] for row in rows] == ["reference", "baseline", "cell"]
    cell = records[rows[2]["label"]]
    assert cell["values"]["distance"]["value"] > 0
    assert set(cell["values"]) == {"distance"}, "without networks for them there are no other metrics"
    assert cell["cost"]["nfe"] == 2
    assert cell["cost"]["macs"] > 0
    assert (tmp_path / "tables" / f"adhoc_hub_{kind}.md").exists()
    if kind not in ("dit", "ddpm"):
        prompts = cell["notes"]["prompts"]
        assert prompts["count"] == 60
        assert prompts["truncated"]["tokenizer"] == 30, "two of four prompts are longer than the limit"
        limit = 24 if "pixart" in kind else LIMIT
        assert prompts["limits"]["tokenizer"] == limit
        assert printed.count(f"tokenizer cuts 30 of 60 prompts at {limit} tokens.") == 1
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("shards/*/*.safetensors")}
    assert len(before) == 6
    if kind != "sd":
        return
    failures, _, _, printed = experiment(kind)
    assert "0 of 3 rows computed now" in printed
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_interrupted_experiment_resumes(experiment, tmp_path):
    _, rows, records, _ = experiment("dit")
    value = records[rows[2]["label"]]["values"]["distance"]
    shards = sorted((tmp_path / "shards" / records[rows[2]["label"]]["samples"]).glob("*.safetensors"))
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    (tmp_path / "records" / "quality" / f"{rows[2]['quality']}.json").unlink()
    _, _, records, printed = experiment("dit")
    assert "1 of 3 rows computed now" in printed
    assert records[rows[2]["label"]]["values"]["distance"] == value
    assert shards[0].stat().st_mtime_ns == kept
    assert shards[1].exists()


WRONG = {
    "no prompts": ("sd", {"prompts": Prompts()}, r"suite\.prompts\.path is empty"),
    "no prompt file": ("sd", {"prompts": Prompts("/none.txt")}, "there is no prompt file"),
    "no sequence length": ("sd", {"max_sequence_length": 20}, "has no max_sequence_length"),
    "no sizes": ("dit", {"height": 16, "width": 16}, "DiTPipeline has one image size"),
    "no such class": ("dit", {"classes": [3, 1000]}, r"suite\.classes has 1000; allowed: 0\.\.999"),
    "no network": ("sd", {"reference_images": RealImages("/none")}, r"suite\.feature_network is none; choose one"),
    "no text": ("dit", {"clip": "somewhere"}, "has no prompts, so there is no CLIP score"),
    "no small model": ("sd", {"stitch_models": {"small": "/none"}}, "there is no folder /none"),
    "no model": ("sd", {"model": ""}, r"suite\.model is empty"),
    "dtype": ("sd", {"dtype": "float8"}, "Allowed: bfloat16, float16, float32"),
    "one side": ("sd", {"height": 16}, "both, or none of them"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_fail_before_any_work(case, hub_suite, tmp_path):
    kind, settings, said = WRONG[case]
    with pytest.raises(AccelError, match=said):
        Runner(hub_suite(kind, **settings), QUICK, Results(tmp_path))
    assert not any(tmp_path.iterdir())


def test_too_few_prompts_fail_before_any_work(experiment, tmp_path):
    with pytest.raises(ConfigError, match=r"has 60 prompts, and 61 samples are wanted; use evaluation\.n=60"):
        experiment("sd", "evaluation.n=61")
    assert not any(tmp_path.iterdir())


# --- where models come from


def test_all_that_a_first_request_lacks_is_one_list(hub_folder, prompt_file, tmp_path):
    asked = [
        "suite=hub", f"suite.model={hub_folder('sd')}", f"suite.prompts.path={prompt_file}", "sampler=ddim",
        f"suite.reference_images.path={tmp_path}", "evaluation.n=100", "evaluation.distance_n=16", "wandb=on",
        "evaluation.device=gpu", "cache=deepcache", "cache.branch=99",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        cli.build_study(compose(asked), asked)
    found = [str(reason) for reason in refused.value.reasons]
    assert len(found) == 6, found
    for said, wanted in zip(
        found,
        (
            "unknown wandb mode 'on'",
            "evaluation.distance_n is 16",
            "evaluation.device is 'gpu'",
            "has 60 prompts, and 100 samples are wanted",
            "suite.feature_network is none; choose one",
            "cache.branch is 99",
        ),
        strict=True,
    ):
        assert wanted in said


def test_settings_of_the_suite_are_refused_together(hub_suite):
    with pytest.raises(ConfigError, match=r"(?s)^4 things.*suite.dtype.*suite.feature_network 'incepton'. Did you mean "
                       r"inception.*suite.height is 3.*suite.converged_steps is 0"):  # fmt: skip
        hub_suite("sd", dtype="int4", feature_network="incepton", height=3, width=16, converged_steps=0)
    with pytest.raises(ConfigError, match=r"(?s)^2 things.*has no max_sequence_length.*suite.classes has 1000"):
        hub_suite("dit", max_sequence_length=16, classes=[1000]).check(60)


def test_pickles_are_refused_and_can_be_converted(copy, hub_suite):
    folder, path = copy("dit"), "transformer/diffusion_pytorch_model"
    state = load_file(folder / f"{path}.safetensors")
    torch.save(state, folder / f"{path}.bin")
    (folder / f"{path}.safetensors").unlink()
    suite = hub_suite("dit", model=str(folder))
    with pytest.raises(ConfigError, match=r"transformer has only pickled weights \(diffusion_pytorch_model.bin\)"):
        suite.fingerprint()
    assert convert(folder) == [folder / f"{path}.safetensors"]
    assert suite.pipeline().transformer is not None
    torch.save({"x": object}, folder / f"{path}.bin")
    (folder / f"{path}.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds more than tensors"):
        convert(folder)


def test_variants_are_chosen_and_hinted_at(copy, hub_suite):
    folder = copy("dit")
    plain = folder / "transformer/diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(plain).items()}, plain.with_suffix(".fp16.safetensors"))
    half = hub_suite("dit", model=str(folder), variant="fp16", dtype="float16")
    full = hub_suite("dit", model=str(folder))
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in half.fingerprint()
    assert "vae/diffusion_pytorch_model.safetensors" in half.fingerprint(), "the VAE has no such variant"
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" not in full.fingerprint()
    assert half.pipeline().transformer.dtype == torch.float16
    plain.unlink()
    with pytest.raises(ConfigError, match=r"There is the variant fp16: use suite\.variant=fp16"):
        hub_files.check(folder, None)


def edit(folder: Path, **entries) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))


FOREIGN = {
    "a component of its own": ({"vae": ["my_code", "MyVAE"]}, "Code of a checkpoint is never run"),
    "a pipeline of its own": ({"_class_name": ["pipeline", "MyPipeline"]}, "code of its own, which is never run"),
    "another pipeline": ({"_class_name": "DiTPipelin"}, "Did you mean DiTPipeline"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_code_and_other_classes_are_refused(case, copy, hub_suite):
    entries, said = FOREIGN[case]
    folder = copy("dit")
    edit(folder, **entries)
    with pytest.raises(ConfigError, match=said):
        hub_suite("dit", model=str(folder)).fingerprint()


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path, hub_suite):
    with pytest.raises(ConfigError, match=r"has no model_index\.json"):
        hub_suite("dit", model=str(tmp_path)).check(60)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The local cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_hub_ids_are_found_in_the_local_cache(cache, hub_folder, hub_suite):
    place = cache / "models--owner--tiny-dit"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(hub_folder("dit"), place / "snapshots" / ("0" * 40))
    suite = hub_suite("dit", model="owner/tiny-dit")
    assert suite.fingerprint() == hub_suite("dit").fingerprint(), "a model is its files, wherever they are"
    assert suite.pipeline().transformer is not None


def test_a_model_out_of_reach_is_one_error_with_the_command(cache, hub_suite):
    with pytest.raises(ConfigError, match=r"hf download owner/tiny .*--local-dir models/tiny, then suite\.model="):
        hub_suite("dit", model="owner/tiny").fingerprint()
    with pytest.raises(ConfigError, match=r"there is no folder \./tiny; give a folder that exists, or a hub id"):
        hub_suite("dit", model="./tiny").fingerprint()


# --- what identifies a run


def test_fingerprint_is_of_all_that_decides_the_images(hub_suite, copy, tmp_path, prompt_file):
    suite = hub_suite("sd")
    known = suite.fingerprint()
    assert {"unet/config.json", "scheduler/scheduler_config.json", "prompts", "setting dtype"} <= set(known)
    assert any(key.startswith("tokenizer/") for key in known)
    other = tmp_path / "other.txt"
    other.write_text(prompt_file.read_text() + "one more\n")
    changed = [
        hub_suite("sd", prompts=Prompts(str(other))),
        hub_suite("sd", prompts=Prompts(str(prompt_file), negative="blurry")),
        hub_suite("sd", dtype="bfloat16"),
        hub_suite("sd", height=8, width=16),
        hub_suite("sd", stitch_models={"small": suite.model}),
    ]
    for each in changed:
        assert each.fingerprint() != known
    same = hub_suite("sd", vae_slicing=True, channels_last=True, compile=True, converged_steps=3, clip="somewhere")
    assert same.fingerprint() == known
    assert same.execution() == {"vae_slicing": True, "channels_last": True, "compile": True}
    weights = copy("sd") / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.bias"] += 1
    save_file(state, weights)
    again = hub_suite("sd", model=str(weights.parents[1])).fingerprint()
    assert {k for k in known if known[k] != again[k]} == {"unet/diffusion_pytorch_model.safetensors"}
    assert hub_suite("dit", classes=[1, 2]).fingerprint() != hub_suite("dit").fingerprint()


def test_speed_settings_are_part_of_a_timings_id_only(hub_suite, tmp_path):
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 2))
    plain, sliced = (Runner(hub_suite("dit", vae_slicing=v), QUICK, Results(tmp_path)) for v in (False, True))
    assert plain.generation_id(recipe) == sliced.generation_id(recipe)
    assert plain.timing_id(recipe, recipe) != sliced.timing_id(recipe, recipe)


# --- what sample i shows


def test_prompts_negative_prompt_and_sizes_reach_the_pipeline(hub_suite, prompt_file):
    prompts = Prompts(str(prompt_file), negative="blurry")
    call = hub_suite("sd", prompts=prompts, height=16, width=24).conditions(1, 3)
    assert call == {"height": 16, "width": 24, "prompt": [f"{PROMPTS[1]} 1", f"{PROMPTS[2]} 2"],
                    "negative_prompt": ["blurry"] * 2}  # fmt: skip
    assert hub_suite("sd").period == 60
    assert hub_suite("flux", prompts=prompts).conditions(0, 1)["negative_prompt"] == ["blurry"], "of a second call"
    assert hub_suite("pixart_alpha").conditions(0, 1)["clean_caption"] is False
    assert hub_suite("ddpm").conditions(4, 7) == {"batch_size": 3}


def test_classes_are_uniform_and_spread(hub_suite):
    suite = hub_suite("dit")
    labels = suite.conditions(0, 1000)["class_labels"]
    assert sorted(labels) == list(range(1000))
    assert labels[:3] == [0, 619, 238]
    assert suite.conditions(1000, 1002)["class_labels"] == labels[:2]
    assert suite.period == 1000
    assert hub_suite("dit", classes=[207, 360]).conditions(1, 4)["class_labels"] == [360, 207, 360]
    for count in (1, 2, 10, 997):
        assert sorted(spread(count)) == list(range(count))


def test_distilled_networks_are_told_their_scale(hub_suite):
    recipe = Recipe(guidance=CFG(4.0))
    assert hub_suite("flux", distilled_guidance=2.5).guidance_arguments(recipe)["guidance_scale"] == 2.5
    assert hub_suite("sd").guidance_arguments(recipe) == {"guidance_scale": 4.0}
    assert hub_suite("flux").fingerprint()["setting distilled guidance"] == "3.5"


def test_images_are_bytes_whatever_the_pipeline_returns(hub_suite):
    unit, signed = hub_suite("sd"), hub_suite("ddpm")
    values = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert unit.to_uint8(values).flatten().tolist() == [0, 128, 255]
    assert signed.to_uint8(values * 2 - 1).flatten().tolist() == [0, 128, 255]
    assert unit.stored(values.half()).dtype == torch.uint8
    assert unit.to_uint8(unit.stored(values)).flatten().tolist() == [0, 128, 255]


def test_distances_of_bytes_are_on_the_scale_of_floats():
    from accel.evaluation.score import distances

    a = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    b = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(distances(a, b), distances(a / 127.5 - 1, b / 127.5 - 1), rtol=1e-5, atol=0)


# --- references and speed


def test_converged_recipe_is_of_the_models_kind_and_can_be_chosen(hub_suite):
    assert hub_suite("sd").converged(None).label == "unipc-50@karras"
    assert hub_suite("sd3", converged_steps=9).converged(None).label == "rf_solver-9"
    chosen = hub_suite("sd", converged_sampler="heun", converged_grid="karras").converged(CFG(3.0))
    assert chosen.label == "heun-50@karras + cfg3"


def test_another_denoiser_can_be_stitched(hub_suite, tmp_path):
    small = save("sd", tmp_path / "small", block_out_channels=(4, 4), norm_num_groups=2, attention_head_dim=2)
    suite = hub_suite("sd", stitch_models={"small": str(small)})
    made = Recipe(DiffusersSampler("DDIMScheduler", 4), stitch=TStitch(fractions=(0.5,)))
    pipe, models = suite.pipeline(), suite.models()
    with accelerate(pipe, made, models=models) as run:
        generate(pipe, suite, made, 0, 0, 1, 1)
    assert [call.model for call in run.trace] == ["small", "small", "base", "base"]


def test_compiled_blocks_give_the_same_images_and_counts(hub_suite, hub_pipe):
    suite, plain = hub_suite("dit"), hub_pipe("dit")
    compiled = suite.pipeline()
    assert hub_models.compile_blocks(getattr(compiled, hub_files.denoiser_of(suite.folder)), backend="eager") >= 2
    made = Recipe(DiffusersSampler("DDIMScheduler", 2))
    images, macs = [], []
    for pipe in (plain, compiled):
        with accelerate(pipe, made) as run:
            images.append(generate(pipe, suite, made, 0, 0, 1, 1))
        with accelerate(pipe, made, count_macs=True) as run:
            generate(pipe, suite, made, 0, 0, 1, 1)
            macs.append(run.macs)
    torch.testing.assert_close(*images)
    assert macs[0] == macs[1]


def test_settings_of_speed_change_rounding_only(hub_suite, hub_pipe):
    suite = hub_suite("sd", vae_slicing=True, channels_last=True)
    pipe, made = suite.pipeline(), Recipe(DiffusersSampler("DDIMScheduler", 2))
    assert pipe.vae.use_slicing
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    both = []
    for each in (hub_pipe("sd"), pipe):
        with accelerate(each, made):
            both.append(generate(each, suite, made, 0, 0, 2, 2))
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="has no VAE"):
        hub_suite("ddpm", vae_slicing=True).pipeline()
    with pytest.raises(ConfigError, match="no repeated blocks to compile"):
        hub_models.compile_blocks(hub_pipe("ddpm").unet)


def test_nothing_unsafe_is_blackened_and_no_watermark_is_drawn(hub_pipe, copy, hub_suite):
    folder = copy("sd")  # as on the hub, but without what is not used
    edit(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
         feature_extractor=["transformers", "CLIPImageProcessor"])  # fmt: skip
    suite = hub_suite("sd", model=str(folder))
    suite.check(60)
    assert suite.pipeline().safety_checker is None
    assert hub_pipe("sdxl").watermark is None


# --- presets


def test_presets_are_documented_with_their_command():
    page = (CONF.parent / "docs" / "hub.md").read_text()
    files = {name: (CONF / "suite" / f"{name}.yaml").read_text() for name in groups()["suite"]}
    presets = {name: text for name, text in files.items() if "defaults: [hub, _self_]" in text}
    assert len(presets) == 23
    for name, text in presets.items():
        settings = yaml.safe_load(text)
        assert f"| `{name}` |" in page
        assert settings["name"] == name
        source = {"dit_xl_2": "facebook/DiT-XL-2-256", "sdxl_lightning": "ByteDance/SDXL-Lightning"}.get(
            name, settings["model"]
        )
        assert f"`hf download {source} " in page
        assert f"#   hf download {source} " in text
        if name != "sdxl_lightning":  # its row says as `sdxl`
            command = " ".join(text.partition("#   ")[2].partition("\n# Usual")[0].replace("\\\n#", "").split())
            assert command.partition(" # ")[0] in page, "one command, in the preset and on the page"


def test_presets_are_valid_settings():
    names = [name for name in groups()["suite"] if "[hub, _self_]" in (CONF / "suite" / f"{name}.yaml").read_text()]
    for name in names:
        suite = instantiate(compose([f"suite={name}"]).suite)
        assert suite.name == name
        assert [lora.scale for lora in suite.lora] == [1.0] * (name == "sdxl_lightning")


def test_a_preset_is_the_suite():
    cfg = compose(["suite=sd15", "suite.prompts.path=captions.json"])
    suite = instantiate(cfg.suite)
    assert (suite.name, suite.variant, suite.prompts.path) == ("sd15", "fp16", "captions.json")
    assert compose(["suite=hub", "suite.model=some/where/my-model"]).study == "adhoc_hub_my-model"
