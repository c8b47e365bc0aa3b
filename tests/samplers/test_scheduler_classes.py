"""Schedulers by name, by dotted path and as classes: what is found, what a sampler keeps of it, and what is refused."""

from __future__ import annotations

import pickle
import sys
from dataclasses import asdict, replace

import diffusers
import pytest
import torch

import accel.samplers
from accel.config import groups, instantiate
from accel.errors import ConfigError, IncompatibleError
from accel.records import describe
from accel.samplers import DiffusersSampler
from accel.samplers.deis import DEISScheduler
from accel.samplers.grids import Grid
from accel.samplers.noise import adds_noise, draws_noise
from accel.samplers.scheduler import BaseScheduler
from accel.samplers.scheduler_classes import own_schedulers, scheduler_class, scheduler_name, scheduler_names

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}

MODULE = '''
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config

from accel.samplers.scheduler import BaseScheduler, with_schedule_options


class MyScheduler(DDIMScheduler):
    """DDIM under another name."""

    class Inner(DDIMScheduler):
        pass


class MyFlowScheduler(FlowMatchEulerDiscreteScheduler):
    pass


class MyNoisyScheduler(DDPMScheduler):
    pass


class Halving(BaseScheduler):
    stochastic = False
    order = 2

    @register_to_config
    @with_schedule_options
    def __init__(self, factor: float = 0.5, **options):
        super().__init__(**options)

    def _advance(self, index, output, sample, generator):
        return self.config.factor * sample


class Unclear(DDIMScheduler):
    @property
    def order(self):
        return 1


class NoScheduler:
    pass
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`mypkg_x.samplers` with the classes of MODULE, and modules whose import fails."""
    folder = tmp_path / "mypkg_x"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mypkg_x.samplers import MyScheduler\n")
    (folder / "samplers.py").write_text(MODULE)
    (folder / "broken.py").write_text("raise RuntimeError('no licence')\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "needs.py").write_text("import a_package_that_nobody_has\n")
    (folder / "lazy.py").write_text("def __getattr__(name):\n    raise RuntimeError(f'{name} failed')\n")
    (folder / "made.py").write_text("from mypkg_x.samplers import MyScheduler\n"
                                    "Made = type('Other', (MyScheduler,), {})\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    yield "mypkg_x"
    for name in [n for n in sys.modules if n.split(".")[0] == "mypkg_x"]:
        del sys.modules[name]


# --- names


def test_accels_own_are_those_that_its_modules_define():
    found = own_schedulers()
    assert {"DCSolverScheduler", "DEISScheduler", "CorrectedDPMSolver3MScheduler", "PredictorCorrectorScheduler",
            "RFSolverScheduler"} <= set(found)  # fmt: skip
    assert "BaseScheduler" not in found
    assert not any(name.startswith("_") or name in dir(diffusers) for name in found)
    assert all(cls.__module__.startswith("accel.samplers.") for cls in found.values())


def test_a_new_file_in_the_room_is_all_that_a_new_scheduler_takes(tmp_path, monkeypatch):
    """Not exported from the package, not listed anywhere."""
    (tmp_path / "my_new_solver.py").write_text(MODULE)
    monkeypatch.setattr(accel.samplers, "__path__", [*accel.samplers.__path__, str(tmp_path)])
    own_schedulers.cache_clear()
    try:
        sampler = DiffusersSampler("Halving", 4)
        assert not hasattr(accel.samplers, "Halving")
        assert (sampler.scheduler, sampler.evaluations) == ("Halving", 8)
        assert sampler.build(LINEAR).config["factor"] == 0.5
        assert "NoScheduler" not in own_schedulers()
    finally:
        own_schedulers.cache_clear()
        sys.modules.pop("accel.samplers.my_new_solver", None)


@pytest.mark.parametrize("name", ["DEISScheduler", "DDIMScheduler", "CorrectedDPMSolver3MScheduler"])
def test_classes_of_accel_and_diffusers_keep_their_bare_name_however_they_are_given(name):
    """The record's id is of the name."""
    named = DiffusersSampler(name, 5)
    cls = named.scheduler_class
    again = [DiffusersSampler(given, 5) for given in (cls, f"{cls.__module__}.{name}")]
    assert again == [named, named]
    assert describe(again[0]) == describe(named) == {
        "type": "DiffusersSampler", "epoch": 1, "scheduler": name, "steps": 5, "options": {},
        "name": name.removesuffix("Scheduler"),
    }  # fmt: skip


def test_every_name_that_is_offered_is_found():
    assert {"DEISScheduler", "DDIMScheduler"} <= set(scheduler_names())
    missing = []
    for name in scheduler_names():
        try:
            assert scheduler_name(scheduler_class(name), name) == name
        except IncompatibleError:  # a package that it needs is not installed
            missing.append(name)
    assert len(missing) < 5


def test_a_class_of_diffusers_that_needs_another_package_says_so(monkeypatch):
    class Dummy:
        _backends = ("torchsde",)

    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", Dummy)
    with pytest.raises(IncompatibleError, match="DPMSolverSDEScheduler needs torchsde, which is not installed"):
        DiffusersSampler("DPMSolverSDEScheduler", 5)


# --- schedulers of anybody


def test_a_path_or_the_class_itself_makes_one_sampler(package):
    path = "mypkg_x.samplers.MyScheduler"
    named = DiffusersSampler(path, 5)
    assert (named.scheduler, named.name, named.label) == (path, "My", "My-5")
    given = DiffusersSampler(named.scheduler_class, 5)
    short = DiffusersSampler("mypkg_x.MyScheduler", 5)  # where the package shows it
    assert given == short == named
    assert describe(given) == describe(named)
    assert describe(named)["scheduler"] == path
    assert type(named.build(LINEAR)).__name__ == "MyScheduler"


def test_a_class_that_is_named_otherwise_than_where_it_stands_keeps_the_path_that_was_given(package):
    sampler = DiffusersSampler("mypkg_x.made.Made", 5)
    assert (sampler.scheduler, sampler.name) == ("mypkg_x.made.Made", "Other")
    assert replace(sampler, steps=6).scheduler == sampler.scheduler
    with pytest.raises(ConfigError, match="cannot be found again by this path"):
        DiffusersSampler(sampler.scheduler_class, 5)


def test_a_nested_class_has_a_path_too(package):
    sampler = DiffusersSampler("mypkg_x.samplers.MyScheduler.Inner", 5)
    assert sampler.scheduler == "mypkg_x.samplers.MyScheduler.Inner"
    assert sampler.name == "Inner"


def test_it_is_kept_in_copies_pickles_and_configs(package):
    made = DiffusersSampler("mypkg_x.samplers.Halving", 5, options={"factor": 0.25})
    config = {"_target_": "accel.samplers.DiffusersSampler"} | asdict(made)
    assert instantiate_plain(config) == made
    assert pickle.loads(pickle.dumps(made)) == made
    more = replace(made, steps=7)
    assert (more.scheduler, more.steps, more.options) == (made.scheduler, 7, {"factor": 0.25})
    assert replace(made, scheduler=DEISScheduler, options={}).scheduler == "DEISScheduler"


def instantiate_plain(config):
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.create(config))


def test_one_on_accels_base_takes_any_grid_and_says_its_evaluations(package):
    made = DiffusersSampler("mypkg_x.samplers.Halving", 4)
    assert made.evaluations == 8
    scheduler = made.build(LINEAR, Grid("karras"))
    assert scheduler.grid == Grid("karras")
    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(scheduler.step(x, scheduler.timesteps[0], x).prev_sample, 0.5 * x)
    with pytest.raises(ConfigError, match=r"option of mypkg_x.samplers.Halving 'factr'.*Did you mean factor"):
        DiffusersSampler("mypkg_x.samplers.Halving", 4, options={"factr": 1.0})


def test_what_is_derived_from_a_class_of_diffusers_is_treated_alike(package):
    flow = DiffusersSampler("mypkg_x.samplers.MyFlowScheduler", 5)
    built = flow.build({"num_train_timesteps": 1000, "shift": 1.0, "use_flow_sigmas": True})
    built.set_timesteps(5)
    assert built.sigmas.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]), "the trailing grid"
    with pytest.raises(IncompatibleError, match="needs a flow model"):
        flow.build(LINEAR)
    noisy = DiffusersSampler("mypkg_x.samplers.MyNoisyScheduler", 5)
    assert adds_noise(noisy.build(LINEAR))
    assert not adds_noise(DiffusersSampler("mypkg_x.samplers.MyScheduler", 5).build(LINEAR))


def test_who_draws_noise():
    own = {name for name, cls in own_schedulers().items() if draws_noise(cls)}
    assert own == {"PredictorCorrectorScheduler"}
    assert draws_noise(diffusers.DDPMScheduler)
    assert not draws_noise(diffusers.DDIMScheduler)


# --- refusals


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_pkg_x.samplers.MyScheduler", "no module 'no_such_pkg_x'. Install its package"),
        ("mypkg_x.samplers.MySheduler", "mypkg_x.samplers has no MySheduler. Did you mean MyScheduler"),
        ("mypkg_x.other.MyScheduler", "mypkg_x has no other"),
        ("mypkg_x.samplers.NoScheduler", "NoScheduler'>; allowed: the path of a class that subclasses diffusers'"),
        ("mypkg_x.samplers", "allowed: the path of a class"),
        ("accel.samplers.scheduler.BaseScheduler", "allowed: the path of a class"),
        ("mypkg_x.broken.MyScheduler", "importing mypkg_x.broken raised RuntimeError: no licence"),
        ("mypkg_x.leaves.MyScheduler", "importing mypkg_x.leaves raised SystemExit: 3"),
        (
            "mypkg_x.needs.MyScheduler",
            "importing mypkg_x.needs raised ModuleNotFoundError: No module named 'a_package_",
        ),
        ("mypkg_x.lazy.MyScheduler", "importing MyScheduler from mypkg_x.lazy raised RuntimeError: MyScheduler failed"),
        ("mypkg_x..MyScheduler", "is no dotted path; allowed: one such as mypkg.samplers.MyScheduler"),
        ("mypkg_x/samplers.py", "is no dotted path"),
        (".", "is no dotted path"),
        ("mypkg_x.samplers.Unclear", "does not say how many evaluations a step has.*static method `stages"),
        (5, "scheduler is 5; allowed: a name, a dotted path"),
        (None, "scheduler is None"),
        (dict, "scheduler is the class builtins.dict; allowed: a class that subclasses"),
        (BaseScheduler, "scheduler is the class accel.samplers.scheduler.BaseScheduler; allowed"),
    ],
)
def test_a_path_that_leads_to_no_scheduler_is_one_clear_error(package, path, said):
    with pytest.raises(ConfigError, match=said):
        DiffusersSampler(path, 5)


def test_a_class_that_no_path_leads_to_is_refused():
    class Local(diffusers.DDIMScheduler):
        pass

    with pytest.raises(ConfigError, match=r"<locals>\.Local cannot be found again by this path.*top level of a module"):
        DiffusersSampler(Local, 5)


def test_an_unknown_name_is_answered_shortly_with_the_nearest_first():
    for found, nearest in (("DEISSheduler", "DEISScheduler"), ("ddimscheduler", "DDIMScheduler"),
                           ("RFSolver", "RFSolverScheduler")):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            DiffusersSampler(found, 5)
        text = str(error.value)
        assert text.startswith(f"unknown scheduler {found!r}. Did you mean {nearest}")
        assert len(text) < 400
        assert f"{len(scheduler_names())} names" in text
        assert "`accel list sampler`" in text


def test_the_samplers_of_the_config_are_found():
    assert "unipc" in groups()["sampler"]
    assert scheduler_class("UniPCMultistepScheduler") is diffusers.UniPCMultistepScheduler
