"""recipe.yaml and what lies beside it: the same again, or an error that says what differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from registry import recipe

import accel
from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.deploy import recipe_file, schema, text
from accel.deploy.methods import EpochError
from accel.deploy.samples import Samples, made_in
from accel.errors import AccelError, ConfigError, IncompatibleError, IntegrityError
from accel.guidance import CFG
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.studies.calibration import artefact_id, kept_artefacts
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.testing.suites import TinySuite, unet, unet_pipeline

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
FAST = Recipe(DDIM, guidance=CFG(3.0), cache=DeepCache(interval=2, branch=1))
SAID = {"n": 60, "values": {"fid": {"value": 1.5, "lo": float("-inf"), "hi": 2.0}}}


def images(pipe, **call):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(class_labels=[0, 1], generator=generators, output_type="pt", **call).images


def changed(path: Path, *changes) -> None:
    """Put other text into a recipe.yaml, which then says itself that it was never measured."""
    content = path.read_text()
    for before, after in changes:
        assert before in content
        content = content.replace(before, after)
    lines = [line for line in content.splitlines() if not line.startswith("sha256")]
    path.write_text("\n".join(lines) + "\n")


def test_a_saved_recipe_is_the_same_and_runs_on_its_model(tmp_path):
    pipe = unet_pipeline()
    path = FAST.save(tmp_path / "fast", pipe=pipe, measured=SAID)
    assert path == tmp_path / "fast" / "recipe.yaml"
    for given in (path, path.parent, str(path.parent)):
        saved = accel.load_recipe(given)
        assert saved.recipe == FAST
        assert saved.measured == SAID
        assert saved.accel == accel.__version__
    saved.check(unet_pipeline())
    with accelerate(pipe, FAST):
        expected = images(pipe)
    for given in (FAST, saved, path.parent):
        with accel.apply(pipe, given):
            assert torch.equal(images(pipe), expected)


def test_several_recipes_lie_in_one_folder_under_names_of_their_own(tmp_path):
    Recipe(DDIM).save(tmp_path / "slow.yaml")
    FAST.save(tmp_path / "fast.yaml")
    assert accel.load_recipe(tmp_path / "slow.yaml").recipe == Recipe(DDIM)
    assert accel.load_recipe(tmp_path / "fast.yaml").recipe == FAST
    with pytest.raises(ConfigError, match=r"fast\.yaml is there already"):
        FAST.save(tmp_path / "fast.yaml")


def test_another_model_is_refused_or_said(tmp_path):
    path = FAST.save(tmp_path / "fast", pipe=unet_pipeline())
    other = unet_pipeline()
    other.unet.conv_out.weight.data.add_(1e-3)
    with pytest.raises(ConfigError, match=r"another model.*unet \([0-9a-f]{12} was measured, [0-9a-f]{12} is here\)"):
        accel.apply(other, path)
    assert "forward" not in vars(other.unet)
    with pytest.warns(UserWarning, match="another model"):
        accel.apply(other, accel.load_recipe(path), strict=False).remove()
    other = unet_pipeline()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, prediction_type="epsilon")
    with pytest.raises(ConfigError, match="noise schedule"):
        accel.apply(other, path)


def test_a_model_under_another_recipe_is_still_known_as_itself(tmp_path):
    """Quantised modules have other names and numbers; they are taken off while the digest is made."""
    from accel.suites.pipeline import PixelPipeline

    pipe = unet_pipeline()
    path = FAST.save(tmp_path / "fast", pipe=pipe)
    with accel.apply(pipe, Recipe(DDIM, precision=recipe(precision="bf16").precision)):
        images(pipe)
        second = PixelPipeline(pipe.unet, unet_pipeline().scheduler)
        second.set_progress_bar_config(disable=True)
        with accel.apply(second, path):
            images(second)
        images(pipe)


def test_models_that_the_recipe_names_are_part_of_its_model(tmp_path):
    stitched, models = Recipe(DDIM, stitch=TStitch(("small",), (0.5,))), {"small": unet(seed=1, layers=1)}
    path = stitched.save(tmp_path / "s", pipe=unet_pipeline(), models=models | {"unused": unet(seed=3)})
    saved = accel.load_recipe(path)
    assert list(saved.model["models"]) == ["small"]
    saved.check(unet_pipeline(), models)
    with pytest.raises(ConfigError, match="small"):
        saved.check(unet_pipeline(), {"small": unet(seed=2, layers=1)})
    with pytest.raises(IncompatibleError, match="no other model"):
        accel.apply(unet_pipeline(), saved)


def test_a_suite_is_known_by_its_files(tmp_path, digits):
    files = digits.fingerprint()
    saved = accel.load_recipe(Recipe(DDIM).save(tmp_path / "d", files=files))
    saved.check_suite(digits)
    name = "large/unet/diffusion_pytorch_model.safetensors"
    other = replace(saved, model={"files": files | {name: "0" * 64}})
    with pytest.raises(ConfigError, match=f"{name} .000000000000 was measured"):
        other.check_suite(digits)


def test_what_a_distilled_network_was_told_is_part_of_the_recipe(tmp_path):
    saved = accel.load_recipe(Recipe(DDIM).save(tmp_path, files={"setting distilled guidance": "2.5"}))
    assert saved.guidance_scale == 2.5


CALIBRATED = [{"sampler": "dc_solver"}, {"cache": "l2c"}, {"precision": "w8a8"}, {"guidance": "linear_ag"}]


@pytest.fixture(scope="module", params=CALIBRATED, ids=str)
def learned(request, tmp_path_factory):
    """A calibrated recipe on a tiny suite, its artefacts, and the folder in which a study keeps them."""
    suite, root = TinySuite(), tmp_path_factory.mktemp("results")
    if "cache" in request.param:
        suite = TinySuite("transformer")
    made = recipe(**request.param)
    runner = Runner(suite, Evaluation(n=60, distance_n=60, shard=60, batch=30, device="cpu"), Results(root))
    return suite, made, runner.artefacts(made)[0], root / "artefacts"


def test_artefacts_are_beside_the_recipe_and_run_as_they_were_made(learned, tmp_path):
    suite, made, artefacts, folder = learned
    assert kept_artefacts(folder, suite.name, suite.fingerprint(), made).keys() == artefacts.keys()
    pipe = suite.pipeline()
    with pytest.raises(ConfigError, match="needs what was searched, fitted or learned"):
        made.save(tmp_path / "r", pipe=pipe)
    assert not (tmp_path / "r").exists()
    path = made.save(tmp_path / "r", pipe=pipe, artefacts=artefacts)
    assert {p.suffix for p in path.parent.iterdir()} == {".yaml", ".safetensors"}
    saved = accel.load_recipe(path)
    assert saved.recipe == made
    for name, own in artefacts.items():
        assert own.keys() == saved.artefacts[name].keys()
        assert all(torch.equal(tensor, saved.artefacts[name][key]) for key, tensor in own.items())
    with accelerate(pipe, made, artefacts=artefacts) as run:
        expected = images(pipe, guidance_scale=made.guidance_scale)
    assert run.nfe
    with accel.apply(pipe, saved):
        assert torch.equal(images(pipe), expected)
    with pytest.raises(ConfigError, match="has its own"):
        accel.apply(pipe, saved, artefacts=artefacts)


def test_an_artefact_that_is_gone_from_the_results_is_asked_for(learned, tmp_path):
    suite, made, _, _ = learned
    with pytest.raises(ConfigError, match=r"is not in .*or damaged.*Run the study again"):
        kept_artefacts(tmp_path, suite.name, suite.fingerprint(), made)
    assert artefact_id(suite.name, {"other": "weights"}, made) != artefact_id(suite.name, suite.fingerprint(), made)


@pytest.fixture
def whole(tmp_path):
    """A recipe of a learned cache with a stand-in for what it learned."""
    cached = recipe(cache="l2c")
    return cached.save(tmp_path / "r", artefacts={"cache": {"scores": torch.rand(3, generator=torch.Generator())}})


def test_a_damaged_artefact_is_refused(whole):
    artefact = whole.with_name("recipe.cache.safetensors")
    data = bytearray(artefact.read_bytes())
    data[-1] ^= 1
    artefact.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"recipe\.cache\.safetensors is not what was saved: its sha256 is"):
        accel.load_recipe(whole)
    artefact.unlink()
    with pytest.raises(IntegrityError, match="is not there"):
        accel.load_recipe(whole)


def test_an_artefact_that_is_no_safetensors_is_refused(whole):
    import pickle

    from accel.files import file_hash

    artefact = whole.with_name("recipe.cache.safetensors")
    before = file_hash(artefact)
    artefact.write_bytes(pickle.dumps({"scores": 1}))
    changed(whole, (before, file_hash(artefact)))
    with pytest.raises(IntegrityError, match="no safetensors file"):
        accel.load_recipe(whole)


@pytest.mark.parametrize("name", ["../recipe.cache.safetensors", "/else/x.safetensors", "..", ".hidden.safetensors"])
def test_an_artefact_lies_beside_its_recipe(whole, name):
    changed(whole, ("recipe.cache.safetensors", name))
    with pytest.raises(AccelError, match="a file of a recipe is"):
        accel.load_recipe(whole)


def test_an_artefact_that_is_not_listed_is_missed(whole):
    content = yaml.safe_load(whole.read_text())
    del content["artefacts"], content["sha256"]
    whole.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="needs what was searched, fitted or learned for its cache"):
        accel.load_recipe(whole)


def test_a_file_that_a_setting_names_goes_along(tmp_path):
    searched = recipe(grid="searched")
    path = searched.save(tmp_path / "r")
    saved = accel.load_recipe(path)
    assert Path(saved.recipe.grid.path).parent == path.parent
    assert json.loads(Path(saved.recipe.grid.path).read_text()) == json.loads(Path(searched.grid.path).read_text())
    assert saved.recipe == replace(searched, grid=replace(searched.grid, path=saved.recipe.grid.path))
    again = accel.load_recipe(saved.recipe.save(tmp_path / "again"))
    assert Path(again.recipe.grid.path).parent == tmp_path / "again"


def test_an_edited_file_that_says_it_was_measured_is_refused(tmp_path):
    path = FAST.save(tmp_path, measured=SAID)
    path.write_text(path.read_text().replace("interval: 2", "interval: 5"))
    with pytest.raises(IntegrityError, match=r"was changed after it was saved.*delete `sha256` and `measured`"):
        accel.load_recipe(path)
    with pytest.warns(UserWarning, match="was changed after it was saved"):
        assert accel.load_recipe(path, strict=False).recipe.cache.interval == 5
    content = yaml.safe_load(path.read_text())
    del content["measured"], content["sha256"]
    path.write_text("# mine\n" + yaml.safe_dump(content))
    assert accel.load_recipe(path).recipe.cache.interval == 5


def test_layout_and_comments_are_free(tmp_path):
    path = FAST.save(tmp_path, measured=SAID)
    content = yaml.safe_load(path.read_text())
    path.write_text("# another hand\n" + yaml.safe_dump(content, default_flow_style=False))
    assert accel.load_recipe(path).recipe == FAST


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("schema: 1", "schema: 2"), "of schema 2, written by accel .* reads schema 1: upgrade accel"),
        (("schema: 1", "schema: 0"), "of schema 0.*write it again"),
        (("schema: 1", "schema: true"), "of schema True"),
        (("schema: 1\n", ""), "of schema None"),
        (("recipe:", "recipes:"), "2 things to mend.*has no recipe.*Did you mean recipe"),
        (("method: ddim", "method: ddmi"), "unknown method of axis sampler 'ddmi'. Did you mean ddim"),
        (("method: ddim", "_target_: os.system"), "sampler._target_"),
        (("DDIMScheduler", "os.system"), "a path of code to import"),
        (("DDIMScheduler", "!!python/name:os.system"), "is no recipe file"),
        (("interval: 2", "interval: 2, interval: 3"), "'interval' twice"),
        (("label: ", "label: &a "), "is written"),
        (("interval: 2", "interval: 0"), "interval is 0"),
        (("epoch: 1", "epoch: x"), "epoch is 'x'; allowed: an integer"),
        (("cache:", "cash:"), "unknown entry 'recipe.cash'"),
    ],
    ids=lambda value: " to ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_file_cannot_say(tmp_path, change, reason):
    path = FAST.save(tmp_path)
    changed(path, change)
    if reason == "is written":  # an anchor alone refers to nothing
        assert accel.load_recipe(path).recipe == FAST
        changed(path, ("accel: ", "model: {dtype: *a}\naccel: "))
        reason = r"it has a reference \(\*a\)"
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        accel.load_recipe(path)


@pytest.mark.parametrize("content", ["", "[]", "a: [", "\x00", "1"])
def test_what_is_no_recipe_file(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ConfigError, match="is no recipe file"):
        accel.load_recipe(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read .*Give the folder of a recipe"):
        accel.load_recipe(tmp_path / "nowhere")


def test_a_method_whose_numbers_have_changed_is_refused_or_said(tmp_path):
    path = FAST.save(tmp_path)
    changed(path, ("epoch: 1", "epoch: 9"))
    with pytest.raises(ConfigError, match=r"(?s)3 things to mend.*saved with epoch 9 of its numbers") as refused:
        accel.load_recipe(path)
    assert all(isinstance(reason, EpochError) for reason in refused.value.reasons)
    with pytest.warns(UserWarning, match="saved with epoch 9"):
        assert accel.load_recipe(path, strict=False).recipe == FAST


@pytest.mark.parametrize(
    "word",
    [
        "sampler=ddim",
        "suite._target_=os.system",
        "suite.prompts._target_=os.system",
        "+suite.extra={_target_: os.system}",
        "suite.model=a\n_target_",
        "suite.model=${oc.env:HOME}",
        "hydra.run.dir=/",
        "~suite",
    ],
)
def test_words_that_open_a_suite_are_settings_of_it_and_name_no_code(word, tmp_path):
    with pytest.raises(ConfigError, match=r"suite\[1\] is .*allowed: text like"):
        FAST.save(tmp_path / "bad", suite=["suite=digits", word])
    assert not (tmp_path / "bad").exists()
    path = FAST.save(tmp_path / "good", suite=["suite=hub", "suite.model=a b", "+suite.stitch_models.small=c"])
    assert accel.load_recipe(path).suite == ["suite=hub", "suite.model=a b", "+suite.stitch_models.small=c"]
    content = yaml.safe_load(path.read_text())
    del content["sha256"]
    path.write_text(yaml.safe_dump(content | {"suite": ["suite=digits", word]}))
    with pytest.raises(ConfigError, match=r"suite\[1\] is"):
        accel.load_recipe(path)


def test_the_first_images_lie_beside_the_recipe_whole(tmp_path):
    made = Samples(torch.rand(2, 1, 8, 8, generator=torch.Generator()), 3, made_in("cpu"))
    path = FAST.save(tmp_path, samples=made)
    again = accel.load_recipe(path).samples
    assert torch.equal(again.images, made.images)
    assert (again.seed, again.environment, again.digests) == (3, made.environment, made.digests)
    content = yaml.safe_load(path.read_text())
    content["samples"]["images"][1] = "0" * 64
    path.write_text(yaml.safe_dump(content | {"sha256": text.digest(content)}))
    with pytest.raises(IntegrityError, match="holds other images than"):
        accel.load_recipe(path)
    (tmp_path / "recipe.samples.safetensors").unlink()
    with pytest.raises(IntegrityError, match="is not there"):
        accel.load_recipe(path)


def test_the_schema_is_what_save_writes(tmp_path):
    content = text.read(FAST.save(tmp_path, pipe=unet_pipeline(), measured=SAID))
    assert set(content) <= set(schema.SCHEMA["properties"])
    assert set(schema.SCHEMA["properties"]["recipe"]["properties"]) == set(Recipe.__dataclass_fields__)
    json.dumps(schema.SCHEMA)


def test_nothing_is_written_before_all_is_known(tmp_path):
    bad = Recipe(DDIM, cache=recipe(cache="l2c").cache, grid=replace(recipe(grid="searched").grid, path="gone.json"))
    with pytest.raises(ConfigError, match="2 things to mend"):
        bad.save(tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("given", [3, None, {"sampler": "ddim"}])
def test_apply_says_what_it_takes(given):
    with pytest.raises(ConfigError, match="allowed: a Recipe"):
        accel.apply(unet_pipeline(), given)


def test_importing_accel_loads_no_torch():
    import subprocess
    import sys

    code = "import accel, sys; print('torch' in sys.modules, sorted({'apply', 'load_recipe'} & set(dir(accel))))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False ['apply', 'load_recipe']"
    assert recipe_file.NAME == "recipe.yaml"
