"""DC-Solver as a recipe's sampler: where its ratios come from, what they are refused for, and what it composes with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IntegrityError
from accel.files import load_tensors, save_tensors
from accel.guidance import CFG, IntervalCFG
from accel.precision import Cast, FakeQuant
from accel.records import Results
from accel.samplers.grids import Grid, PowerGrid
from accel.search import Cascade, DCSolver, RatioSearch
from accel.search.dc_solver import weights_digest
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite

SEARCH = RatioSearch(noises=3, held_out=3, iterations=4, reference=24)
EVALUATION = Evaluation(n=60, distance_n=60, timing=False, device="cpu")
SOLVER = DCSolver(5, search=SEARCH)
RECIPE = Recipe(SOLVER, guidance=CFG(3.0))
REMEDY = "ratios=search"


def runner(root: Path, suite=None, **kwargs) -> Runner:
    return Runner(suite or MixtureSuite(), EVALUATION, Results(root), **kwargs)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A runner that has searched RECIPE's ratios, and the file that it left."""
    own = runner(tmp_path_factory.mktemp("results"))
    own.artefacts(RECIPE)
    return own, own.results.root / "artefacts" / f"{own.artefact_id(RECIPE)}.safetensors"


def files(own: Runner) -> list[Path]:
    return sorted((own.results.root / "artefacts").glob("*.safetensors"))


# --- the artefact


def test_artefact_is_made_once_and_found_again(tmp_path, monkeypatch):
    told = []
    own = runner(tmp_path, on_search=lambda done, total: told.append((done, total)))
    made, seconds = own.artefacts(RECIPE)
    assert set(made) == {"sampler"}
    assert told == [(i, 5) for i in range(1, 6)]
    assert seconds > 0
    assert len(files(own)) == 1

    monkeypatch.setattr(DCSolver, "calibrate", lambda *args: pytest.fail("searched again"))
    for again in (own, runner(tmp_path)):
        found, setup = again.artefacts(RECIPE)
        assert found["sampler"].keys() == made["sampler"].keys()
        assert all(torch.equal(v, made["sampler"][k]) for k, v in found["sampler"].items())
        assert setup == pytest.approx(seconds), "what it cost is part of it"


def test_artefact_says_what_was_found(shared):
    own, path = shared
    found = load_tensors(path)
    ratios = found["ratios"].tolist()
    assert len(ratios) == 5
    assert ratios[:2] == [1.0, 1.0]
    assert any(q != 1 for q in ratios)
    assert found["held_out"][1] < found["held_out"][0]
    assert found["guidance_scale"].tolist() == [3.0]
    assert found["timesteps"].tolist() == SOLVER.build(own.pipe.scheduler.config).nodes.t.tolist()
    assert int(found["calls"]) > 24 + 5


def test_damaged_artefact_is_reported_and_made_anew(tmp_path):
    said = []
    own = runner(tmp_path, say=said.append)
    made, _ = own.artefacts(RECIPE)
    (path,) = files(own)
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)
    again, _ = own.artefacts(RECIPE)
    assert "damaged" in said[0]
    assert torch.equal(again["sampler"]["ratios"], made["sampler"]["ratios"])
    assert load_tensors(path) is not None


OTHERS = {
    "steps": replace(RECIPE, sampler=replace(SOLVER, steps=6)),
    "scale": replace(RECIPE, guidance=CFG(2.0)),
    "no guidance": replace(RECIPE, guidance=None),
    "interval": replace(RECIPE, guidance=IntervalCFG(3.0, 0.5, 5.0)),
    "grid": replace(RECIPE, grid=PowerGrid(kappa=2.0)),
    "named grid": replace(RECIPE, grid=Grid("karras")),
    "order": replace(RECIPE, sampler=replace(SOLVER, order=3)),
    "corrector": replace(RECIPE, sampler=replace(SOLVER, corrector=False)),
    "dc_order": replace(RECIPE, sampler=replace(SOLVER, dc_order=1)),
    "bound": replace(RECIPE, sampler=replace(SOLVER, search=replace(SEARCH, bound=0.4))),
    "noises": replace(RECIPE, sampler=replace(SOLVER, search=replace(SEARCH, noises=4))),
}


def test_artefacts_key_changes_with_everything_that_the_search_depends_on(tmp_path):
    own, other_model = runner(tmp_path), runner(tmp_path, MixtureSuite(mixture_seed=1))
    keys = [own.artefact_id(r) for r in (RECIPE, *OTHERS.values())] + [other_model.artefact_id(RECIPE)]
    assert len(set(keys)) == len(keys)
    assert own.artefact_id(replace(RECIPE)) == keys[0]


def test_search_is_on_the_recipes_grid_and_with_its_guidance(shared, tmp_path):
    """Found for a grid they run on it; an interval of all noise levels is CFG, one of none no guidance."""
    own = runner(tmp_path)
    for name in ("grid", "named grid"):
        recipe = OTHERS[name]
        made, _ = own.artefacts(recipe)
        with accelerate(own.pipe, recipe, artefacts=made) as run:
            assert made["sampler"]["timesteps"].tolist() == run.scheduler.nodes.t.tolist()
    everywhere, nowhere, somewhere = (
        own.artefacts(replace(RECIPE, guidance=IntervalCFG(3.0, *ends)))[0]["sampler"]["ratios"].tolist()
        for ends in ((0.0, 1e6), (1e5, 1e6), (0.3, 3.0))
    )
    assert everywhere == pytest.approx(ratios_of(shared[1]), abs=1e-9)
    assert nowhere == pytest.approx(own.artefacts(OTHERS["no guidance"])[0]["sampler"]["ratios"].tolist(), abs=1e-9)
    assert somewhere not in (everywhere, nowhere)


def test_artefact_is_that_of_the_plain_model(shared):
    """Ratios are found for the sampler and its guidance; whatever else the recipe has finds the same file."""
    own, path = shared
    for more in ({"precision": Cast("float32")}, {"precision": Cast("bfloat16")}):
        assert own.artefacts(replace(RECIPE, **more))[0]["sampler"]["ratios"].tolist() == ratios_of(path)
    assert files(own) == [path]


def ratios_of(path: Path) -> list[float]:
    return load_tensors(path)["ratios"].tolist()


# --- recipes that run


def test_run_comes_closer_to_the_exact_solution_than_without_compensation(tmp_path):
    """Through the whole runner: samples that no search has seen, scores and cost."""
    own = runner(tmp_path)
    recipe = Recipe(DCSolver(5, search=RatioSearch(reference=60)))
    ones = Recipe(DCSolver(5, ratios=(1.0,) * 5, name="unipc"))
    searched, plain = own.quality(recipe), own.quality(ones)
    assert searched["values"]["distance"]["value"] < 0.95 * plain["values"]["distance"]["value"]
    assert searched["cost"]["nfe"] == plain["cost"]["nfe"] == 5, "compensation costs no evaluation"
    assert searched["cost"]["setup_s"] > 0
    assert plain["cost"]["setup_s"] == 0
    assert (searched["label"], plain["label"]) == ("dc_solver-5", "unipc(given)-5")
    assert own.quality(recipe)["values"] == searched["values"]


@pytest.mark.parametrize(
    ("ratios", "label"),
    [("search", "dc_solver-5"), ((1.0,) * 5, "dc_solver(given)-5"), ("a/b.safetensors", "dc_solver(given)-5"),
     ("a/b.json", "dc_solver(cascade)-5")],
)  # fmt: skip
def test_label_says_where_the_ratios_are_from(ratios, label):
    assert DCSolver(5, ratios=ratios).label == label
    assert DCSolver(5, ratios=ratios).calibrated == (ratios == "search")


def test_given_ratios_reach_the_scheduler(shared):
    own, path = shared
    given = tuple(ratios_of(path))
    for ratios in (given, list(given), str(path)):
        recipe = replace(RECIPE, sampler=DCSolver(5, ratios=ratios))
        recipe.check(own.pipe)
        with accelerate(own.pipe, recipe) as run:
            assert list(run.scheduler.config.compensation_ratios) == list(given)
            assert run.scheduler.num_inference_steps == 5


def test_cascade_gives_the_ratios_of_its_prediction(shared, tmp_path):
    own, _ = shared
    searched = {(n, g): [1.0, 1.0, *[1 + g / 20] * (n - 2)] for n in (4, 6) for g in (2.0, 4.0)}
    path = tmp_path / "cascade.json"
    Cascade.fit(searched).save(path)
    recipe = replace(RECIPE, sampler=DCSolver(5, ratios=str(path)))
    with accelerate(own.pipe, recipe) as run:
        ratios = list(run.scheduler.config.compensation_ratios)
        assert ratios == Cascade.load(path).predict(5, 3.0)
        assert ratios[2:] == pytest.approx([1.15] * 3, abs=0.01)
    with pytest.warns(UserWarning, match="5 steps at scale 8 are outside"):
        replace(recipe, guidance=CFG(8.0)).check(own.pipe)
    with pytest.raises(ConfigError, match="dc_order=2, not 1"):
        replace(recipe, sampler=DCSolver(5, ratios=str(path), dc_order=1)).check(own.pipe)
    with pytest.raises(ConfigError, match="no cascade regression at"):
        replace(recipe, sampler=DCSolver(5, ratios=str(tmp_path / "none.json"))).check(own.pipe)
    path.write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        recipe.check(own.pipe)


# --- refusals


REFUSED = {
    "steps": "searched for timesteps",
    "scale": r"searched for guidance scale \[3\], this recipe has \[2\]",
    "no guidance": r"searched for guidance scale \[3\], this recipe has \[1\]",
    "grid": "searched for timesteps",
    "named grid": "searched for timesteps",
    "order": "searched for solver",
    "corrector": "searched for solver",
    "dc_order": "searched for solver",
}


@pytest.mark.parametrize("what", REFUSED)
def test_file_of_ratios_for_something_else_is_refused(shared, what):
    own, path = shared
    other = OTHERS[what]
    recipe = replace(other, sampler=replace(other.sampler, ratios=str(path)))
    for attempt in (lambda: recipe.check(own.pipe), lambda: accelerate(own.pipe, recipe).__enter__()):
        with pytest.raises(ConfigError, match=f"{REFUSED[what]}.*{REMEDY}"):
            attempt()
    assert "set_timesteps" not in vars(own.pipe.scheduler), "nothing was attached"


def test_file_of_ratios_for_another_model_is_refused(shared):
    own, path = shared
    recipe = replace(RECIPE, sampler=replace(SOLVER, ratios=str(path)))
    recipe.check(own.pipe)
    with pytest.raises(ConfigError, match=f"searched for weights .*{REMEDY}"):
        recipe.check(MixtureSuite(mixture_seed=1).pipeline())


def test_artefact_for_something_else_is_refused(shared):
    own, path = shared
    with (
        pytest.raises(ConfigError, match="guidance scale"),
        accelerate(own.pipe, OTHERS["scale"], artefacts={"sampler": load_tensors(path)}),
    ):
        pass


def test_ratios_of_one_guidance_are_not_those_of_another(shared, tmp_path):
    """Interval guidance has the same scale as plain guidance, and another trajectory."""
    own, path = shared
    interval = IntervalCFG(3.0, sigma_lo=0.3, sigma_hi=5.0)
    with pytest.raises(ConfigError, match=f"another guidance.*{REMEDY}"):
        replace(RECIPE, sampler=replace(SOLVER, ratios=str(path)), guidance=interval).check(own.pipe)
    other = runner(tmp_path)
    artefact = other.artefacts(replace(RECIPE, guidance=interval))[0]["sampler"]
    with accelerate(own.pipe, replace(RECIPE, guidance=interval), artefacts={"sampler": artefact}):
        pass
    for guidance in (CFG(3.0), IntervalCFG(3.0, sigma_lo=0.4, sigma_hi=5.0)):
        with (
            pytest.raises(ConfigError, match=REMEDY),
            accelerate(own.pipe, replace(RECIPE, guidance=guidance), artefacts={"sampler": artefact}),
        ):
            pass
    cascade = tmp_path / "cascade.json"
    Cascade.fit({(n, g): [1.0] * n for n in (4, 6) for g in (2.0, 4.0)}).save(cascade)
    with pytest.raises(ConfigError, match=r"scale of plain guidance.*ratios=search"):
        replace(RECIPE, sampler=DCSolver(5, ratios=str(cascade)), guidance=interval).check(own.pipe)


def test_missing_damaged_and_foreign_files_are_refused(shared, tmp_path):
    own, path = shared
    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
    damaged.write_bytes(path.read_bytes()[:-3] + b"abc")
    save_tensors(foreign, {"base/conv_in": torch.zeros(2)})
    for file in (damaged, foreign, tmp_path / "none.safetensors"):
        recipe = replace(RECIPE, sampler=replace(SOLVER, ratios=str(file)))
        with pytest.raises(ConfigError, match=f"{file.name} does not exist, is damaged, or holds no ratios.*{REMEDY}"):
            recipe.check(own.pipe)


@pytest.mark.parametrize("ratios", ["ratios.npy", "searched", ""])
def test_unknown_source_of_ratios_is_refused(ratios):
    with pytest.raises(ConfigError, match=r"allowed: search, a list of one number a step, .*\.safetensors .*\.json"):
        DCSolver(5, ratios=ratios)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [((1.0,) * 4, "has 4 ratios, but the trajectory has 5 steps"), ((1.0,) * 6, "has 6 ratios"), ((), "has 0 ratios"),
     ((1.0, 1.2, 1.0, 1.0, 1.0), "allowed: 1 for the first 2 steps"),
     ((1.0, 1.0, float("nan"), 1.0, 1.0), r"compensation_ratios\[2\] is nan")],
)  # fmt: skip
def test_given_list_that_does_not_fit_is_refused_before_any_work(shared, ratios, message):
    own, _ = shared
    recipe = replace(RECIPE, sampler=DCSolver(5, ratios=ratios))
    handle = own.pipe.unet.register_forward_hook(lambda *args: pytest.fail("the network ran"))
    try:
        with pytest.raises(ConfigError, match=message):
            own.check(recipe)
        with pytest.raises(ConfigError, match=message), accelerate(own.pipe, recipe):
            pass
    finally:
        handle.remove()


def test_recipe_without_its_artefact_is_refused_with_the_remedy(shared):
    own, _ = shared
    own.check(RECIPE)  # a runner will make it
    with pytest.raises(ConfigError, match=r"python -m accel.*sampler\.ratios"), accelerate(own.pipe, RECIPE):
        pass
    assert "set_timesteps" not in vars(own.pipe.scheduler)
    assert "forward" not in own.pipe.unet.__dict__


# --- other axes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast_weights_do_not_make_the_ratios_those_of_another_model(shared, dtype):
    own, path = shared
    recipe = replace(RECIPE, precision=Cast(dtype))
    for sampler, artefacts in ((SOLVER, own.artefacts(recipe)[0]), (replace(SOLVER, ratios=str(path)), None)):
        with accelerate(own.pipe, replace(recipe, sampler=sampler), artefacts=artefacts) as run:
            assert list(run.scheduler.config.compensation_ratios) == ratios_of(path)
            result = own.pipe(class_labels=[0], guidance_scale=3.0, output_type="pt").images
        assert torch.isfinite(result).all()


@pytest.fixture(scope="module")
def digits_runner(digits, tmp_path_factory):
    return runner(tmp_path_factory.mktemp("digits"), digits)


def test_cache_and_quantisation_run_with_the_plain_models_ratios(digits_runner):
    """The artefact of the sampler is made without them; quantisation's own is made with the ratios."""
    from accel.evaluation.generate import generate

    own, search = digits_runner, RatioSearch(noises=1, held_out=2, iterations=2, reference=8)
    plain = Recipe(DCSolver(4, search=search))
    ratios = own.artefacts(plain)[0]["sampler"]["ratios"].tolist()
    cached = replace(plain, cache=DeepCache(interval=2, branch=2))
    quantised = replace(plain, precision=FakeQuant(weight_bits=8, activation_bits=32))
    for recipe in (cached, quantised):
        made, _ = own.artefacts(recipe)
        with accelerate(own.pipe, recipe, models=own.models, artefacts=made) as run:
            assert list(run.scheduler.config.compensation_ratios) == ratios
            assert torch.isfinite(generate(own.pipe, own.suite, recipe, 0, 0, 1, 1)).all()
            assert run.nfe == 4
            if recipe is cached:
                assert [e.mode for e in run.trace] == ["full", "shallow", "full", "shallow"]
    assert len(files(own)) == 1


# --- the digest of the weights


def test_digest_changes_with_any_layer_and_not_with_the_place(pipe):
    import copy

    net = copy.deepcopy(pipe.unet)
    before = weights_digest(net)
    assert torch.equal(before, weights_digest(pipe.unet))
    assert before.dtype == torch.uint8
    assert len(before) == 16
    for name, weight in list(net.named_parameters())[:: len(list(net.named_parameters())) // 8]:
        kept = weight.data
        weight.data = kept * 1.001
        assert not torch.equal(before, weights_digest(net)), name
        weight.data = kept
    assert torch.equal(before, weights_digest(net))
