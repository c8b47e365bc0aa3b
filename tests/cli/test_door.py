"""What `accel` answers without running anything: help, version, list, typos; and that none of it loads torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import accel
from accel import __main__ as cli
from accel import registry
from accel.cli import listing, words
from accel.config import AXES, groups
from accel.errors import ConfigError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "scipy", "pandas", "matplotlib", "wandb", "rich")


def answered(*arguments: str) -> tuple[int, str, set[str]]:
    """Exit code, all that is printed, and which of HEAVY and Hydra were loaded for it, in a process of its own."""
    script = (
        "import sys\n"
        "from accel.__main__ import main\n"
        f"sys.argv = ['accel', *{list(arguments)!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    print('\\nLOADED', *[m for m in {(*HEAVY, 'hydra')!r} if m in sys.modules])\n"
        "    raise\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    printed, _, loaded = done.stdout.rpartition("\nLOADED")
    return done.returncode, printed + done.stderr, set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "accel experiment=demo plan=true"),
        (["-h"], 0, "Exit codes: 0 done"),
        (["help"], 0, "accel -m sampler=ddim,unipc"),
        (["sampler=ddim", "--help"], 0, "accel search=timesteps"),
        (["--version"], 0, f"accel {accel.__version__}"),
        (["list"], 0, "guidance"),
        (["list", "cache"], 0, "DeepCache"),
        (["help", "stitch"], 0, "T-Stitch: a small denoiser takes the first"),
        (["list", "cahce"], 2, "unknown group 'cahce'. Did you mean cache"),
        (["completion", "bash"], 0, "complete -o nospace -F _accel accel"),
        (["completion", "bahs"], 2, "unknown shell 'bahs'. Did you mean bash"),
        (["lst"], 2, "unknown command 'lst'. Did you mean list"),
        (["sampler"], 2, "write sampler=<choice>; `accel list sampler`"),
        (["heun"], 2, "write sampler=heun"),
        (["--foo", "sampler=ddim"], 2, "unknown flag '--foo'"),
        (["--multirum", "sampler=ddim,heun"], 2, "Did you mean --multirun"),
        (["--cfg"], 2, "--cfg needs a value: --cfg job|hydra|all"),
        (["--cfg", "jbo"], 2, "unknown value of --cfg 'jbo'. Did you mean job"),
        (["sampler=ddmi"], 2, "unknown sampler 'ddmi'. Did you mean ddim"),
        (["sampler=null"], 2, "choose one (sampler=<choice>)"),
        (["guidance=null"], 2, "choose `none`: guidance=none"),
        (["~guidance"], 2, "choose `none`: guidance=none"),
    ],
)  # fmt: skip
def test_answers_that_need_neither_torch_nor_hydra(arguments, code, said):
    got, printed, loaded = answered(*arguments)
    assert (got, loaded) == (code, set()), printed
    assert said in printed
    assert printed.count("error:") == (code == 2)
    assert "Traceback" not in printed


def test_the_package_is_a_program():
    done = subprocess.run([sys.executable, "-m", "accel", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"accel {accel.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smapler=ddim"], "unknown setting 'smapler'. Did you mean sampler?"),
        (["sampler.stepz=3"], "unknown setting 'sampler.stepz'. Did you mean sampler.steps"),
        (["sampler.steps.foo=3"], "sampler.steps has no settings of its own"),
        (["-m", "sampler=ddim,heun", "sampler.stepz=3,4"], "Did you mean sampler.steps"),
        (["results=outputs/a (1)"], """Type, with all these quotes: "results='outputs/a (1)'\""""),
        (["+sampler.steps=3"], "sampler.steps is there already; leave out the +"),
        (["~smapler.steps"], "there is no smapler"),
    ],
)
def test_typos_and_unreadable_words_are_answered_without_torch(arguments, said):
    code, printed, loaded = answered(*arguments)
    assert code == 2, printed
    assert said in printed
    assert printed.count("error:") == 1
    assert "Traceback" not in printed
    assert "hydra.cc" not in printed
    assert loaded == {"hydra"}


def test_hydras_own_help_and_views_stay_within_reach():
    code, printed, _ = answered("--hydra-help")
    assert code == 0
    assert "hydra/launcher" in printed.replace("'", "")
    code, printed, loaded = answered("sampler=heun", "sampler.steps=7", "--cfg", "job")
    assert code == 0
    assert "scheduler: HeunDiscreteScheduler" in printed
    assert "steps: 7" in printed
    assert "torch" not in loaded


def test_several_typos_are_one_list(monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["accel", "sampler=ddmi", "cache=deepcach", "cache.interval=2", "results=a=b", "smapler=3", "x.y=1"],
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: 5 things to mend before anything runs:\n  1. unknown sampler 'ddmi'")
    for found in ("unknown cache 'deepcach'", "cannot read 'results=a=b'", "'smapler'. Did you mean sampler", "'x'"):
        assert found in said
    assert "cache.interval" not in said, "a setting of a cache that is misspelt is not known to be wrong"


def test_importing_accel_loads_neither_torch_nor_diffusers_and_methods_need_no_hydra():
    """And a recipe loads neither transformers, which takes seconds, nor torchvision, which may not be there; diffusers
    may import what is installed. One process shows all of it, for a start takes seconds, too."""
    script = (
        "import sys, accel, accel.__main__, accel.errors, accel.config, accel.cli.build\n"
        "assert not {'torch', 'diffusers', 'hydra'} & set(sys.modules), sorted(sys.modules)\n"
        "assert {'Recipe', 'Run', 'accelerate', '__version__'} <= set(dir(accel))\n"
        "import accel.core.recipe, accel.samplers\n"
        "assert not {'transformers', 'torchvision'} & set(sys.modules), 'loaded for a recipe'\n"
        "from accel import *\n"
        "from accel.core.recipe import Recipe as same\n"
        "assert Recipe is same is accel.Recipe\n"
        "assert accelerate.__module__ == Recipe.__module__\n"
        "assert accel.samplers.DiffusersSampler.__name__ == 'DiffusersSampler'\n"
        "try:\n    accel.smaplers\nexcept AttributeError as error:\n    assert 'smaplers' in str(error)\n"
        "else:\n    raise SystemExit('an attribute that does not exist')\n"
        "assert 'hydra' not in sys.modules, 'loaded for a recipe'\n"
        "sys.modules.update(hydra=None, omegaconf=None)\n"  # an import of them would raise
        "import accel.registry, accel.suites.hub\n"
        "print(accel.registry.method('cache', 'deepcache', interval=3).label)\n"
        "print(accel.registry.method('sampler', 'dmcmc', sampler={'steps': 4}).label)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["deepcache3b1", registry.method("sampler", "dmcmc", sampler={"steps": 4}).label]


def test_the_help_names_every_group_and_runs_what_it_shows(capsys):
    assert words.call("help", []) == 0
    said = capsys.readouterr().out
    for group in groups():
        assert f"\n  {group} " in said
    shown = [line.split("  ")[1].removeprefix("accel ").split() for line in said.splitlines() if line[:8] == "  accel "]
    assert len(shown) == 6
    from accel.config import check_sweep

    for command in shown:
        request = words.split(command)
        check_sweep(request.overrides)
        assert request.command in (None, "list")


def test_every_choice_has_a_line_of_its_own(capsys):
    for axis in AXES:
        assert words.call("list", [axis]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines()[1:] if line[2] != " "]
        said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
        assert list(said) == groups()[axis]
        assert len(set(said.values())) == len(said), "no two choices are described by the same words"


def test_lines_come_from_the_docstrings():
    from accel.stitching import TStitch

    module = sys.modules[TStitch.__module__]
    assert listing.docstring_of(f"{TStitch.__module__}.TStitch") == module.__doc__.partition("\n")[0].rstrip(".")
    # Followed through a re-export; of a file with several methods the class's own.
    assert listing.docstring_of("accel.guidance.APG").startswith("Adaptive projected guidance")
    assert listing.docstring_of("accel.samplers.grids.ExplicitGrid").startswith("The given timesteps")
    assert listing.docstring_of("accel.samplers.NoSuchClass") is None
    assert listing.docstring_of("no_such_package.Thing") is None


def test_a_choice_from_another_folder_is_listed_with_its_docstring(tmp_path, monkeypatch, capsys):
    package = tmp_path / "halving_package"
    (package / "conf/cache").mkdir(parents=True)
    (package / "__init__.py").write_text("from .halves import Halving\n")
    (package / "halves.py").write_text('"""Halving: every second step is reused. More."""\nclass Halving: ...\n')
    (package / "conf/cache/halving.yaml").write_text("_target_: halving_package.Halving\n")
    (package / "conf/cache/quiet.yaml").write_text("# Said by the file. And more.\n_target_: nowhere.Quiet\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["accel", "--config-dir", str(package / "conf"), "list", "cache"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().out
    from accel.registry import extend

    extend([])
    assert stop.value.code == 0
    assert "Halving: every second step is reused [--config-dir]" in said
    assert "Said by the file [--config-dir]" in said
    assert "halving_package" not in sys.modules


def test_words_are_split_into_flags_and_overrides():
    got = words.split(["-m", "sampler=ddim,heun", "--info", "defaults", "sampler.steps=5", "~transfer"])
    assert got.flags == {"--multirun": None, "--info": "defaults"}
    assert got.overrides == ["sampler=ddim,heun", "sampler.steps=5", "~transfer"]
    assert got.hydra() == ["--multirun", "--info", "defaults", *got.overrides]
    assert words.split(["--info", "sampler=ddim"]).flags == {"--info": None}
    with pytest.raises(ConfigError, match=r"(?s)2 things to mend.*'--foo'.*'lst'"):
        words.split(["--foo", "sampler=ddim", "lst"])
