"""Methods from outside: config folders of packages and of the command line, and methods built without Hydra."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
from composed import GROUPS, composed

from accel import __main__ as cli
from accel import config, registry
from accel.caching import DeepCache
from accel.errors import ConfigError
from accel.registry import config_folders

CACHE = "_target_: accel.caching.DeepCache\ninterval: 4\nbranch: 2\n"


@pytest.fixture(autouse=True)
def fresh(caplog):
    """Nothing that a test has named or installed is known to the next one."""
    caplog.set_level("WARNING", config_folders.__name__)  # Hydra's application shows errors alone from then on

    def forget():
        registry.extend([])
        config_folders._points.cache_clear()
        config_folders._of_packages.cache_clear()
        config_folders._said.clear()
        config_folders.logger.disabled = False  # and disables all loggers that there are
        importlib.invalidate_caches()

    forget()
    yield
    forget()


@pytest.fixture
def folder(tmp_path):
    """A config folder with the choice cache=mine."""
    return written(tmp_path / "my conf", **{"cache/mine.yaml": CACHE})


def written(place: Path, **files: str) -> Path:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """installed(package, entry point value, files) puts a distribution with an entry point on the path."""

    def installed(name: str, value: str, **files: str) -> Path:
        site = tmp_path / f"site_{name}"
        info = f"{name}-1.0.dist-info/"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        points = f"[{registry.ENTRY_POINTS}]\n{name} = {value}\n"
        written(site, **{f"{info}METADATA": metadata, f"{info}entry_points.txt": points}, **files)
        monkeypatch.syspath_prepend(site)
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        config_folders._points.cache_clear()
        config_folders._of_packages.cache_clear()
        return site

    return installed


@pytest.fixture
def accel(monkeypatch, capsys, tmp_path, light_digits):
    """accel(*arguments) -> (exit code, everything printed) of a smoke plan."""
    own = ["evaluation=smoke", f"+suite.weights={light_digits}", f"results={tmp_path}/results"]

    def accel(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["accel", *arguments, *own])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    return accel


# methods by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_a_method_by_name_is_what_hydra_makes_of_the_file(group):
    for choice in GROUPS[group]:
        node = composed(group, choice)
        assert registry.load(group, choice) == config.resolved(node)
        if "_target_" in node:
            assert registry.method(group, choice) == config.instantiate(node)


def test_settings_of_a_method_by_name():
    given = registry.method("cache", "deepcache", interval=5)
    assert given == config.choice_of("cache", "deepcache", "cache.interval=5")
    nested = registry.method("cache", "fora", schedule={"interval": 2})
    assert nested == config.choice_of("cache", "fora", "cache.schedule.interval=2")
    more = registry.method("cache", "fora", begin=0.5)  # which the file does not name
    assert more == config.choice_of("cache", "fora", "+cache.begin=0.5")
    refers = registry.method("optimiser", "nsga2", population=6)
    assert refers.options == {"population_size": 6}
    assert registry.method("cache", "none") is None


@pytest.mark.parametrize(
    ("axis", "choice", "overrides"),
    [
        ("grid", "explicit", ["grid.timesteps=[999,700,400.5,100]"]),
        ("sampler", "ode", ["sampler.rtol=3e-2", "sampler.method=RK23"]),
        ("precision", "mixdq", ["precision.keep=['*_blocks.*', 'mid_block.*']", "precision.samples=2"]),
        ("cache", "fora", ["cache.schedule.interval=2", "+cache.begin=0.5"]),
        ("sampler", "deis_tab", ["sampler.options={variant: rhoab}"]),
        ("precision", "w8a8", ["precision.attention_bits=8"]),
        ("optimiser", "nsga2", ["optimiser.population=6"]),  # to which another setting refers
    ],
)
def test_a_choice_with_settings_is_what_hydra_makes_of_it(axis, choice, overrides):
    hydras = config.instantiate(config.compose([f"{axis}={choice}", *overrides])[axis])
    assert config.choice_of(axis, choice, *overrides) == hydras


@pytest.mark.parametrize(
    "words",
    [
        "sampler=dpmpp_2m sampler.steps=8 grid=t_quadratic",
        "sampler=ddim sampler.steps=50 guidance=cfg guidance.scale=3.0 cache=none",
        "sampler=ddim sampler=heun",  # the last one holds
        "grid=karras sampler.steps=4",  # a setting of the sampler that nobody named
        "sampler.steps=4",
        "sampler=deis_tab sampler.options.ab_order=1 stitch=tstitch stitch.fractions=[0.2]",
    ],
)
def test_a_recipe_of_axes_is_what_composing_all_makes_of_it(words):
    assert config.recipe_by(words.split()) == config.recipe_of(config.compose(words.split()))


@pytest.mark.parametrize(
    ("rest", "lone"),
    [
        ([], set(config.PLACED)),
        (["experiment=composition_shapes"], {*config.PLACED} - {"sampler", "guidance"}),  # for which it has settings
        (["experiment=recipe_search_shapes_adherence"], {*config.AXES} - {"sampler", "guidance"}),  # by another one
    ],
)
def test_methods_that_are_put_in_place_are_where_hydra_puts_them(rest, lone):
    """As for the cells of a study, of which each names other methods."""
    from omegaconf import OmegaConf

    folders = tuple(map(config._state, registry.folders()))
    assert config._lone(tuple(rest), folders) == lone
    chosen = ("sampler=unipc", "guidance=ag cache=deepcache", "sampler=ode precision=bf16", "stitch=none")
    for own in map(str.split, (*chosen, "sampler=ddim optimiser=nsga2")):
        made, hydras = config.compose([*rest, *own]), config._composed([*rest, *own])
        assert OmegaConf.to_container(made) == OmegaConf.to_container(hydras), own
        assert OmegaConf.is_struct(made.sampler)


@pytest.mark.parametrize("words", ["sampler=dimm", "sampler=ddim sampler.step=3 cache=fore", "sampler=ddim cache.x=1"])
def test_a_wrong_recipe_of_axes_is_answered_as_by_composing_all(words):
    with pytest.raises(ConfigError) as error:
        config.recipe_by(words.split())
    with pytest.raises(ConfigError) as composed:
        config.recipe_of(config.compose(words.split()))
    assert str(error.value) == str(composed.value)


@pytest.mark.parametrize("override", ["cache.intervall=2", "cache.interval=2,3", "sampler.steps", "cache.interval=0"])
def test_a_wrong_setting_of_a_choice_is_hydras_to_answer(override):
    with pytest.raises(ConfigError) as error:
        config.choice_of("cache", "deepcache", override)
    with pytest.raises(ConfigError) as hydras:
        config.instantiate(config.compose(["cache=deepcache", override])["cache"])
    assert str(error.value) == str(hydras.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: registry.method("cach", "deepcache"), "unknown config group 'cach'. Did you mean cache"),
        (lambda: registry.method("cache", "deepcach"), "unknown cache 'deepcach'. Did you mean deepcache"),
        (lambda: registry.method("cache", "deepcache", intervall=2), "Did you mean cache.interval"),
        (lambda: registry.method("cache", "deepcache", interval=0), "cache.interval is 0; allowed: an integer >= 1"),
    ],
)
def test_a_wrong_name_or_setting_is_answered(asked, said):
    with pytest.raises(ConfigError) as error:
        asked()
    assert said in str(error.value)


def test_the_registry_imports_neither_torch_nor_hydra():
    for path in Path(config_folders.__file__).parent.glob("*.py"):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        assert path.name == "search_path.py" or not imported & {"torch", "hydra", "omegaconf", "diffusers"}, path


def test_references_and_files_that_build_on_others(tmp_path):
    files = {
        "cache/base.yaml": CACHE,
        "cache/twice.yaml": "defaults: [base, _self_]\nbranch: ${cache.interval}\n",
        "cache/foreign.yaml": CACHE + "numbering: ${oc.env:HOME}\n",
        "cache/absolute.yaml": "defaults: [{/sampler: ddim}, _self_]\n" + CACHE,
        "cache/broken.yaml": "a: [",
        "cache/empty.yaml": "",
    }
    registry.extend([f"--config-dir={written(tmp_path, **files)}"])
    assert registry.method("cache", "twice") == DeepCache(4, 4)
    for choice, said in {
        "foreign": "Hydra resolves it",
        "absolute": "allowed here: _self_, a name, /group@key: choice",
        "broken": "broken.yaml is no YAML",
        "empty": "empty.yaml holds no settings",
    }.items():
        with pytest.raises(ConfigError) as error:
            registry.method("cache", choice)
        assert said in str(error.value)


# folders of a command line ---------------------------------------------------------------------------------------


def named(folder: Path) -> dict[str, list[str]]:
    return {
        "--config-dir X": ["--config-dir", str(folder)],
        "--config-dir=X": [f"--config-dir={folder}"],
        "hydra.searchpath": [f"hydra.searchpath=['file://{folder}']"],
    }


@pytest.mark.parametrize("way", named(Path()))
@pytest.mark.parametrize("multirun", [False, True], ids=["plain", "-m"])
def test_a_folder_of_the_command_line_is_honoured(way, multirun, folder, accel):
    more = ["-m", "sampler.steps=3,4"] if multirun else ["sampler.steps=4"]
    code, printed = accel(*more, *named(folder)[way], "cache=mine", "plan=true")
    assert code == 0, printed
    assert printed.count("ddim-4 + deepcache4b2") == 1, printed
    assert printed.count("ddim-3 + deepcache4b2") == multirun, printed


@pytest.mark.parametrize(("way", "multirun"), [("--config-dir X", False), ("hydra.searchpath", True)])
def test_a_folder_of_the_command_line_holds_in_cells_and_baseline(way, multirun, folder, accel):
    code, printed = accel(
        *(["-m"] if multirun else []), *named(folder)[way],
        'cells=[["cache=mine","sampler.steps=3"],["cache=deepcache","sampler.steps=3"]]',
        'baseline=["sampler=ddim","cache=mine","sampler.steps=2"]', "plan=true",
    )  # fmt: skip
    assert code == 0, printed
    assert "ddim-3 + deepcache4b2" in printed
    assert "ddim-2 + deepcache4b2" in printed


@pytest.mark.parametrize("way", named(Path()))
def test_a_typo_is_answered_with_the_choices_of_a_named_folder(way, folder, accel):
    code, printed = accel(*named(folder)[way], "cache=mina")
    assert code == 2
    assert "unknown cache 'mina'. Did you mean mine" in printed
    assert accel("cache=mine")[0] == 2  # the folder was that command's


def test_a_package_on_the_search_path(folder, accel, monkeypatch):
    monkeypatch.syspath_prepend(folder.parent)
    code, printed = accel(f"hydra.searchpath=[pkg://{folder.name}]", "cache=mine", "sampler.steps=3", "explain=true")
    assert code == 0, printed
    assert "deepcache4b2" in printed


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config-dir=/nowhere/at/all", "--config-dir names '/nowhere/at/all', which is no folder"),
        ("--config-dir", "--config-dir names '', which is no folder"),
        ("hydra.searchpath=/nowhere", "allowed: a list such as hydra.searchpath=["),
        ("hydra.searchpath=[file:///nowhere]", "hydra.searchpath names '/nowhere', which is no folder"),
        ("hydra.searchpath=[pkg://no_such_package.conf]", "there is no such package"),
        ("hydra.searchpath=[http://x]", "allowed: hydra.searchpath=[file:///"),
    ],
)
def test_a_folder_that_is_none_is_refused(argument, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accel", argument])
    with pytest.raises(SystemExit):
        cli.main()
    assert said in capsys.readouterr().err


# packages --------------------------------------------------------------------------------------------------------


def test_a_package_brings_a_folder_and_is_not_imported_for_it(installed, accel):
    files = {"brings/__init__.py": "raise RuntimeError('imported')", "brings/conf/cache/mine.yaml": CACHE}
    installed("brings", "brings", **files)
    assert "mine" in registry.groups()["cache"]
    assert registry.method("cache", "mine") == config.choice_of("cache", "mine") == DeepCache(4, 2)
    code, printed = accel("-m", "cache=mine", "sampler.steps=3,4", "explain=true")
    assert code == 0, printed
    assert printed.count("deepcache4b2") == 2, printed


@pytest.mark.parametrize("value", ["brings.deep", "brings.deep:ELSEWHERE"])
def test_a_module_names_its_folder(value, installed):
    files = {
        "brings/__init__.py": "",
        "brings/deep.py": "CONF = ELSEWHERE = 'files'\n",
        "brings/files/cache/mine.yaml": CACHE,
    }
    installed("brings", value, **files)
    assert registry.method("cache", "mine") == DeepCache(4, 2)


BROKEN = {
    "no module": ("gone", {}, "there is no module 'gone'"),
    "no folder": ("broken", {"broken/__init__.py": ""}, "neither a folder `conf` nor an attribute CONF"),
    "folder is missing": ("broken", {"broken/__init__.py": "CONF = 'nope'"}, "does not exist (is it package data?)"),
    "import error": ("broken", {"broken/__init__.py": "import no_such_thing"}, "No module named 'no_such_thing'"),
    "parent fails": ("broken.deep", {"broken/__init__.py": "1 / 0"}, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_one_warning_and_no_crash(case, installed, caplog, accel):
    value, files, reason = BROKEN[case]
    installed("broken", value, **files)
    code, _ = accel("cache=deepcache", "sampler.steps=3", "plan=true")
    assert code == 0
    said = [record.getMessage() for record in caplog.records if record.name == config_folders.__name__]
    assert len(said) == 1
    assert said[0].startswith("warning: package 'broken' (entry point 'broken' of accel.methods) is left out: ")
    assert reason in said[0]


def test_a_choice_that_exists_is_not_replaced(installed, caplog):
    installed("shadow", "shadow", **{"shadow/__init__.py": "", "shadow/conf/cache/deepcache.yaml": CACHE})
    installed("second", "second", **{"second/__init__.py": "", "second/conf/cache/other.yaml": CACHE})
    installed("third", "third", **{"third/__init__.py": "", "third/conf/cache/other.yaml": CACHE})
    assert registry.method("cache", "deepcache") == config.choice_of("cache", "deepcache") == DeepCache(3, 1)
    assert registry.method("cache", "other") == config.choice_of("cache", "other")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    [ours], [theirs] = ([text for text in said if name in text] for name in ("package 'shadow'", "package 'third'"))
    assert "package 'shadow' (entry point 'shadow' of accel.methods) brings cache=deepcache, which accel has" in ours
    assert "brings cache=other, which package 'second'" in theirs


def test_a_class_that_cannot_be_imported_names_its_package(installed, accel):
    files = {
        "brings/__init__.py": "",
        "brings/cache.py": "import no_such_thing",
        "brings/conf/cache/mine.yaml": "_target_: brings.cache.Mine\n",
    }
    installed("brings", "brings", **files)
    assert accel("cache=deepcache", "sampler.steps=3", "plan=true")[0] == 0
    code, printed = accel("cache=mine", "plan=true")
    assert code == 2
    said = "cannot import 'brings.cache.Mine', which package 'brings' (entry point 'brings' of accel.methods) brings: "
    assert said + "ModuleNotFoundError: No module named 'no_such_thing'" in printed


def test_a_file_that_was_changed_is_read_again(folder):
    registry.extend([f"--config-dir={folder}"])
    assert config.choice_of("cache", "mine").interval == 4
    written(folder, **{"cache/mine.yaml": CACHE.replace("4", "3")})
    assert config.choice_of("cache", "mine", "cache.branch=2").interval == 3
    written(folder, **{"cache/other.yaml": CACHE})
    assert config.choice_of("cache", "other").interval == 4
