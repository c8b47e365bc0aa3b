"""Methods as plain data and back: every registered one, and what a file may not say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import yaml
from registry import METHODS, recipe

from accel import registry
from accel.caching import DeepCache
from accel.caching.schedules import NonUniform, Squares
from accel.core.method import Method
from accel.core.recipe import Recipe
from accel.deploy import registered
from accel.deploy.methods import EpochError, read, recipe_of, recorded, written
from accel.errors import AccelError, ConfigError
from accel.guidance import APG
from accel.precision import FakeQuant, FlexRound, Range
from accel.records import canonical, describe
from accel.samplers import DiffusersSampler

DDIM = {"method": "ddim", "settings": {"scheduler": "DDIMScheduler", "steps": 4}}


def through_yaml(data):
    return yaml.safe_load(yaml.safe_dump(data, sort_keys=False))


@pytest.mark.parametrize(("axis", "choice"), METHODS, ids=["-".join(method) for method in METHODS])
def test_every_registered_method_is_the_same_again(axis, choice):
    method, files = getattr(recipe(**{axis: choice}), axis), {}
    data = through_yaml(written(axis, method, files))
    assert data["method"] == choice
    again = read(axis, data, files)
    assert again == method
    assert canonical(describe(again)) == canonical(describe(method))


def test_a_sampler_is_named_by_the_scheduler_that_it_is():
    assert written("sampler", DiffusersSampler("DDIMScheduler", 2), {})["method"] == "ddim"
    assert written("sampler", DiffusersSampler("UniPCMultistepScheduler", 2), {})["method"] == "unipc"


@pytest.mark.parametrize(("axis", "choice"), METHODS, ids=["-".join(method) for method in METHODS])
def test_every_registered_method_is_made_again_from_its_record(axis, choice):
    made = recipe(**{axis: choice})
    again = recorded(json.loads(canonical(describe(made))))
    assert again == made
    assert canonical(describe(again)) == canonical(describe(made))


@pytest.mark.parametrize(
    ("axis", "method"),
    [
        ("cache", DeepCache(branch=2, schedule=Squares())),
        ("cache", DeepCache(branch=1, schedule=NonUniform(2, 2, 1.3, "released"))),
        ("guidance", APG(3.5, norm=float("inf"))),
        ("precision", FakeQuant(4, 8, rounding=FlexRound(), weight_range=Range("lp", p=2.0))),
        ("sampler", DiffusersSampler("EulerDiscreteScheduler", 7, options={"use_karras_sigmas": True})),
    ],
    ids=lambda value: value if isinstance(value, str) else value.label,
)
def test_settings_that_no_yaml_file_has_are_kept(axis, method):
    assert read(axis, through_yaml(written(axis, method, {})), {}) == method


@dataclass(frozen=True)
class Mine(Method):
    factor: float = 2.0


def test_a_method_that_is_not_registered_is_refused():
    with pytest.raises(ConfigError, match=r"cache Mine .* is no registered method.*accel.methods"):
        written("cache", Mine(), {})


@dataclass(frozen=True)
class Wider(NonUniform):
    """A schedule of somebody's own."""


def test_an_object_of_a_class_that_is_not_registered_is_refused():
    with pytest.raises(ConfigError, match="unknown type of an object of axis cache 'Wider'"):
        written("cache", DeepCache(branch=1, schedule=Wider(2, 2)), {})


@pytest.mark.parametrize(
    ("axis", "change", "reason"),
    [
        ("sampler", {"method": "ddmi"}, "unknown method of axis sampler 'ddmi'. Did you mean ddim"),
        ("sampler", {"method": "os.system"}, "unknown method of axis sampler"),
        ("sampler", {"method": ["ddim"]}, "unknown method of axis sampler"),
        ("sampler", {"method": None}, "unknown method of axis sampler"),
        ("sampler", {"settings": {"scheduler": "os.system", "steps": 4}}, "a path of code to import"),
        ("sampler", {"settings": {"scheduler": "diffusers.DDIMScheduler", "steps": 4}}, "a path of code to import"),
        (
            "sampler",
            {"settings": {"scheduler": "DDIMScheduler", "steps": 4, "_target_": "os.system"}},
            "unknown setting",
        ),
        (
            "sampler",
            {"settings": {"scheduler": "DDIMScheduler", "steps": 4, "options": {"_target_": "os.system"}}},
            "never code",
        ),
        (
            "sampler",
            {"settings": {"scheduler": "DDIMScheduler", "steps": 4, "options": {"type": "Popen"}}},
            "unknown type of an object",
        ),
        ("sampler", {"settings": {"scheduler": "DDIMScheduler", "stepz": 4}}, "unknown setting 'sampler.stepz'"),
        ("sampler", {"settings": {"scheduler": "DDIMScheduler", "steps": 0}}, "sampler.steps is 0"),
        ("sampler", {"settings": {"scheduler": "DDIMScheduler"}}, "cannot be made of"),
    ],
)
def test_what_a_file_may_not_say(axis, change, reason):
    with pytest.raises(ConfigError, match=reason):
        read(axis, DDIM | change, {})


@pytest.mark.parametrize("schedule", [{"type": "Node"}, {"type": "Popen", "package": "subprocess"}, {"type": "Recipe"}])
def test_an_object_is_of_the_classes_of_its_axis(schedule):
    with pytest.raises(ConfigError, match="unknown type of an object of axis cache"):
        read("cache", {"method": "deepcache", "settings": {"schedule": schedule}}, {})


@pytest.mark.parametrize("path", ["/etc/hosts.json", "../other.safetensors", "away/x", "there.json"])
def test_a_path_is_a_file_beside_the_recipe(path):
    with pytest.raises(ConfigError, match="lists under `files`"):
        read("grid", {"method": "searched", "settings": {"path": path}}, {})


def test_a_setting_that_is_a_place_of_this_machine_is_refused(tmp_path):
    grid = replace(recipe(grid="searched").grid, path=str(tmp_path / "gone.json"))
    with pytest.raises(ConfigError, match="a place on this machine"):
        written("grid", grid, {})


def test_numbers_that_have_changed_are_refused():
    with pytest.raises(EpochError, match=r"cache deepcache was saved with epoch 99 .*measure it again"):
        read("cache", {"method": "deepcache", "epoch": 99, "settings": {"interval": 2, "branch": 1}}, {})


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError, match="2 things to mend") as refused:
        recipe_of({"sampler": {"method": "ddmi"}, "cache": {"method": "deepcash"}}, {})
    assert len(refused.value.reasons) == 2


def test_a_record_of_other_numbers_is_refused():
    described = describe(Recipe(DiffusersSampler("DDIMScheduler", 4, "ddim")))
    described["sampler"]["epoch"] = 99
    with pytest.raises(AccelError, match="epoch 99"):
        recorded(described)


def test_no_class_among_settings_has_a_field_of_the_files_own_names():
    for name in ("sampler", "grid", "guidance", "cache", "stitch", "precision", "skip"):
        for cls in registered.axis(name).classes.values():
            assert not {"type", "package", "epoch"} & set(cls.__dataclass_fields__), cls


def test_a_path_of_code_that_a_registered_method_names_is_allowed():
    known = {"scheduler": "mypkg.samplers.MyScheduler"}
    registered.check_code(DiffusersSampler, known, known, "sampler")
    with pytest.raises(ConfigError, match="path of code"):
        registered.check_code(DiffusersSampler, known, {"scheduler": "mypkg.samplers.Other"}, "sampler")


def test_a_method_of_an_installed_package_is_registered_too(tmp_path, monkeypatch):
    (tmp_path / "lent_package.py").write_text(
        "from dataclasses import dataclass\n"
        "from accel.core.method import Method\n"
        "@dataclass(frozen=True)\n"
        "class Lent(Method):\n"
        "    factor: float = 2.0\n"
    )
    (tmp_path / "conf" / "cache").mkdir(parents=True)
    (tmp_path / "conf" / "cache" / "lent.yaml").write_text("_target_: lent_package.Lent\nfactor: 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.extend([f"--config-dir={tmp_path / 'conf'}"])
    try:
        mine = registry.method("cache", "lent", factor=3.0)
        data = through_yaml(written("cache", mine, {}))
        assert data == {"method": "lent", "epoch": 1, "settings": {"factor": 3.0}}
        assert read("cache", data, {}) == mine
        described = json.loads(canonical(describe(Recipe(cache=mine))))
        assert described["cache"]["package"] == "lent_package"
        assert recorded(described).cache == mine
    finally:
        registry.extend([])
    with pytest.raises(ConfigError, match="unknown method of axis cache 'lent'"):
        read("cache", data, {})
