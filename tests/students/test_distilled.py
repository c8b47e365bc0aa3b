"""Students in a recipe: where they sit, what their contract refuses, what they leave behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.core.student import Contract, contract_of, contracted
from accel.digests import weights_hex
from accel.errors import AccelError, ConfigError, IncompatibleError, IntegrityError
from accel.guidance import CFG
from accel.records import describe
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.students import KINDS, Distilled
from accel.suites.base import Networks
from accel.testing.suites import TinySuite, unet

TIMES = (999, 550, 350, 170)


@pytest.fixture
def tiny():
    suite = TinySuite("unet")
    return suite.pipeline(), suite.networks()


def recipe(name: str = "pd4", sampler: str = "ddim_accel", **axes) -> Recipe:
    student = method("student", name)
    return Recipe(method("sampler", sampler, steps=len(student.times)), student=student, **axes)


def driven(name: str, sampler: str, times: tuple[float, ...] = (), steps: int = 0, **axes) -> Recipe:
    """A student by a sampler, at its own times or at others."""
    student, grid = method("student", name), method("grid", "explicit", timesteps=times) if times else None
    steps = steps or len(times or student.times)
    return Recipe(method("sampler", sampler, steps=steps), grid, student=student, **axes)


def images(pipe, made: Recipe | None, models) -> torch.Tensor:
    call = {
        "class_labels": [3, 5],
        "generator": [torch.Generator().manual_seed(i) for i in (0, 1)],
        "output_type": "pt",
    }
    if made is None:
        return pipe(**call, num_inference_steps=4).images
    with accelerate(pipe, made, models=models):
        return pipe(**call).images


def test_its_images_are_those_of_a_pipeline_with_its_network(tiny):
    pipe, models = tiny
    found = images(pipe, recipe(), models)
    pipe.unet = models["pd4"]
    sampler = method("sampler", "ddim_accel", steps=4)
    assert torch.equal(found, images(pipe, Recipe(sampler, recipe().grid), None))


def test_the_pipeline_is_its_own_again_and_counts_are_the_students(tiny):
    pipe, models = tiny
    before, own = images(pipe, None, None), pipe.unet
    with accelerate(pipe, recipe("pd2"), models=models, count_macs=True) as run:
        pipe(class_labels=[1], output_type="pt")
        assert (run.nfe, run.strip) == (2, "base:full base:full")
    assert pipe.unet is own
    assert "forward" not in vars(own) | vars(models["pd2"])
    assert torch.equal(before, images(pipe, None, None))


def test_without_a_grid_it_runs_at_its_own_times():
    made = recipe()
    assert made.grid.timesteps == TIMES
    assert made.label == "ddim_accel-4@pd4 + pd4"
    assert made.axes()["student"] == "pd4"
    assert made.unaccelerated.grid == made.grid, "the teacher in as many steps, at the same times, is its plain recipe"
    assert made.unaccelerated.student is None
    assert not made.plain


def test_a_stitch_may_let_the_teacher_begin(tiny):
    pipe, models = tiny
    stitch = TStitch(models=("teacher",), fractions=(0.5,))
    with accelerate(pipe, recipe(stitch=stitch), models=models) as run:
        pipe(class_labels=[1], output_type="pt")
        assert run.strip == "teacher:full teacher:full base:full base:full"
    whole = images(pipe, recipe(stitch=TStitch(models=("teacher",), fractions=(1.0,))), models)
    alone = images(pipe, replace(recipe(), student=None), None)
    assert torch.equal(whole, alone), "the teacher alone is the plain recipe"


def test_students_are_loaded_when_they_are_asked_for():
    asked = []
    suite = TinySuite("unet")
    found = Networks(suite.models(), {name: lambda name=name: asked.append(name) or unet(1) for name in ("a", "b")})
    assert {"small", "a", "b"} == {*found}
    assert len(found) == 3
    moved = found.to("cpu")
    more = found | {"a": unet(3)}
    assert {*more} == {*found}
    assert next(more["a"].parameters()).equal(next(unet(3).parameters())), "the other one stands for it"
    assert asked == []
    assert moved["b"] is moved["b"]
    assert asked == ["b"]


REFUSED = {
    "guidance on top": (lambda: recipe(guidance=CFG(2.0)), "no guidance was built into it.*student.on_top=true"),
    "a cache at one step": (lambda: recipe("pd1", cache=DeepCache(2, 1)), "has one step; use cache=none"),
    "too many steps": (
        lambda: Recipe(method("sampler", "ddim_accel", steps=5), student=method("student", "pd4")),
        "trained for 4 steps, at the timesteps 999, 550, 350, 170, and this recipe has 5 steps; use sampler.steps=4",
    ),
    "no sampler": (lambda: Recipe(student=method("student", "pd4")), "the pipeline's own scheduler"),
    "another grid": (lambda: recipe(grid=method("grid", "karras")), "has grid 'karras'; use grid=none"),
    "times of another": (
        lambda: replace(recipe(), student=Distilled("pd4", (999, 600, 350, 170))),
        r"use student.times=\[999, 550, 350, 170\]",
    ),
    "a solver of two evaluations": (lambda: recipe(sampler="heun"), "cannot be driven by HeunDiscreteScheduler"),
    "Runge-Kutta": (lambda: recipe(sampler="deis_rhork"), "DEISScheduler by Runge-Kutta"),
    "a searched sampler": (lambda: recipe(sampler="dc_solver"), "DCSolverScheduler"),
    "noise": (
        lambda: replace(
            recipe(),
            sampler=DiffusersSampler("DPMSolverMultistepScheduler", 4, options={"algorithm_type": "sde-dpmsolver++"}),
        ),
        "DPMSolverMultistepScheduler with noise",
    ),
    "re-noising": (lambda: replace(recipe(), sampler=DiffusersSampler("LCMScheduler", 4)), "LCMScheduler: it predicts"),
    "DDIM of a consistency student": (
        lambda: driven("ect2", "ddim_accel"),
        "DEISScheduler: it predicts where a trajectory ends.*new noise.*use sampler=lcm or flow_lcm",
    ),
    "another kind": (
        lambda: replace(driven("dmd1", "lcm"), student=Distilled("dmd1", (999,))),
        "is a distribution student, and student.kind is 'endpoint'; use student.kind=distribution",
    ),
    "other times of a distribution": (lambda: driven("dmd1", "lcm", (999, 500)), "trained for 1 steps"),
    "a cache at one of its steps": (
        lambda: driven("ect2", "lcm", (999,), cache=DeepCache(2, 1)),
        "has one step; use cache=none",
    ),
    "guidance of a distribution": (lambda: driven("dmd1", "lcm", guidance=CFG(2.0)), "student.on_top=true"),
    "guidance on top of guidance": (
        lambda: driven("guided2", "ddim", guidance=CFG(3.0), steps=4),
        "guidance of scale 2 is built into it",
    ),
    "another scale": (
        lambda: replace(driven("guided2", "ddim", steps=4), student=Distilled("guided2", kind="guided", guidance=3.0)),
        "was distilled at guidance of scale 2, and student.guidance is 3; use student.guidance=2",
    ),
    "a stitch with what is not guided": (
        lambda: driven("guided2", "ddim", steps=4, stitch=TStitch(models=("teacher",), fractions=(0.5,))),
        "is guided by itself, and the networks that stitch",
    ),
    "as a stitch": (
        lambda: Recipe(method("sampler", "ddim", steps=4), stitch=TStitch(models=("pd4",), fractions=(0.5,))),
        r"'pd4' is a student.*stitch.models=\[teacher\]",
    ),
    "unknown": (lambda: replace(recipe(), student=Distilled("pd3", TIMES)), "Did you mean.*trained first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_the_contract_is_refused_with_what_mends_it(case, tiny):
    made, said = REFUSED[case]
    pipe, models = tiny
    with pytest.raises(AccelError, match=said):
        made().check(pipe, models)


def test_a_student_of_another_teacher_is_refused(tiny):
    pipe, models = tiny
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(1.01)
    with pytest.raises(IncompatibleError, match=r"another teacher\. Distil it anew"):
        recipe().check(pipe, models)


def test_a_suite_without_students_says_so(tiny):
    pipe, _ = tiny
    with pytest.raises(IncompatibleError, match="this suite has no student"):
        recipe().check(pipe, {"small": unet(1)})


def test_guidance_on_top_is_allowed_where_it_is_said(tiny):
    pipe, models = tiny
    made = recipe(guidance=CFG(2.0))
    made = replace(made, student=replace(made.student, on_top=True))
    made.check(pipe, models)
    assert "pd4(guided)" in made.label
    shortcut = replace(made, guidance=method("guidance", "ag", scale=2.0))
    with pytest.raises(IncompatibleError, match="allows guidance=cfg"):
        shortcut.check(pipe, models)


def test_multistep_solvers_and_other_axes_go_with_it(tiny):
    pipe, models = tiny
    for made in (
        recipe(sampler="dpmpp_2m"),
        recipe(sampler="deis_tab"),
        recipe(cache=DeepCache(2, 1)),
        recipe(stitch=TStitch(fractions=(0.25,))),
        recipe(precision=method("precision", "bf16")),
    ):
        made.check(pipe, models)


def test_a_consistency_student_takes_new_noise_and_other_times(tiny):
    """Its images are those of a plain pipeline with its network under LCM's scheduler."""
    pipe, models = tiny
    for times in ((999, 350), (999,), (999, 600, 300, 100)):
        driven("ect2", "lcm", times).check(pipe, models)
    found = images(pipe, driven("ect2", "lcm", (999, 600, 300)), models)
    pipe.unet = models["ect2"]
    alone = Recipe(method("sampler", "lcm", steps=3), method("grid", "explicit", timesteps=(999, 600, 300)))
    assert torch.equal(found, images(pipe, alone, None))


def test_one_step_of_a_distribution_student_is_its_prediction_whoever_takes_it(tiny):
    pipe, models = tiny
    found = [images(pipe, driven("dmd1", sampler), models) for sampler in ("lcm", "ddim_accel", "dpmpp_2m")]
    assert (found[0] - found[1]).abs().max() < 1e-5
    assert (found[0] - found[2]).abs().max() < 1e-5
    kind = KINDS["distribution"]
    assert not kind.drives("DEISScheduler", noisy=False, steps=2)
    assert kind.drives("LCMScheduler", noisy=True, steps=2)
    assert not KINDS["endpoint"].drives("LCMScheduler", noisy=True, steps=1)


def test_a_guided_student_does_what_its_teacher_does_without_guidance(tiny):
    """Any sampler, grid and cache; it is held against guidance of its scale, in distances and as plain sampling."""
    pipe, models = tiny
    made = driven("guided2", "ddim", steps=6)
    assert made.grid is None
    assert made.guidance_scale == 1.0, "the pipeline does not double the batch"
    assert made.exact_guidance == CFG(2.0)
    assert made.unaccelerated == Recipe(made.sampler, guidance=CFG(2.0))
    with accelerate(pipe, made, models=models) as run:
        pipe(class_labels=[1], output_type="pt")
        assert run.strip == " ".join(["base:full"] * 6)
    for more in (
        {"grid": method("grid", "karras")},
        {"cache": DeepCache(2, 1)},
        {"sampler": method("sampler", "heun")},
    ):
        replace(made, **{"sampler": method("sampler", "dpmpp_2m", steps=6)} | more).check(pipe, models)
    Recipe(student=made.student).check(pipe, models)
    assert recipe("pd1").exact_guidance is None


def test_a_kind_that_records_did_not_know_is_not_in_their_identity():
    assert "kind" not in describe(method("student", "pd1"))
    assert describe(method("student", "dmd1"))["kind"] == "distribution"


def test_a_contract_comes_back_from_its_folder(tmp_path):
    contract = Contract("endpoint", TIMES, "ab", 1.0, {"seconds": 3.0})
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    assert contract.steps == 4
    for text in ("{", '{"kind": "endpoint"}', "[]"):
        (tmp_path / "student.json").write_text(text)
        with pytest.raises(IntegrityError, match="no contract of a student"):
            Contract.load(tmp_path)


def test_an_unknown_kind_is_refused(tiny):
    pipe, _ = tiny
    own = Contract("dream", TIMES, weights_hex(pipe.unet))
    with pytest.raises(ConfigError, match="endpoint"):
        recipe().check(pipe, {"pd4": contracted(unet(2), own)})
    assert "endpoint" in KINDS


def test_a_contract_is_of_one_network():
    net = contracted(unet(2), Contract("endpoint", TIMES, "ab"))
    assert contract_of(net).times == TIMES
    assert contract_of(unet(2)) is None


WITHOUT = ({}, {"model": "pd4"}, {"model": "pd4", "times": ("x",)}, {"times": (999,)},
           {"model": "pd4", "times": TIMES, "kind": "end"})  # fmt: skip


@pytest.mark.parametrize("given", WITHOUT)
def test_a_student_without_name_or_times_or_of_no_known_kind_is_refused(given):
    with pytest.raises(ConfigError, match=r"student.model|timesteps|student.kind 'end'. Did you mean endpoint"):
        Distilled(**given)
