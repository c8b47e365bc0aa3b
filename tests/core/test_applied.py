"""`apply`: a recipe on a pipeline until it is removed, with threads, shared networks, copies and no one holding it."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import run_stable_diffusion, stable_diffusion

from accel.caching import DeepCache
from accel.core.applied import apply
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.precision import Cast
from accel.samplers import DiffusersSampler
from accel.suites.pipeline import PixelPipeline
from accel.testing.snapshots import assert_same, snapshot
from accel.testing.suites import BETAS, unet, unet_pipeline

DDIM = DiffusersSampler("DDIMScheduler", 6, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
FAST = Recipe(DDIM, guidance=CFG(3.0), cache=DeepCache(interval=2, branch=1))
OTHER = Recipe(DiffusersSampler("EulerDiscreteScheduler", 4), precision=Cast("bfloat16"))


def images(pipe, seed: int = 0, **call):
    """Images (2, 1, 8, 8) for two classes and seeds; what the recipe decides is left to it."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    return pipe(class_labels=[seed % 10, 3], generator=generators, output_type="pt", **call).images


def measured(recipe, seed: int = 0, pipe=None):
    """The images that a study measures."""
    pipe = pipe or unet_pipeline()
    with accelerate(pipe, recipe) as run:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
        call = {"class_labels": [seed % 10, 3], "generator": generators, "output_type": "pt"}
        return run(guidance_scale=recipe.guidance_scale, **call).images


def sharing(pipe):
    """A second pipeline with the network of the first and a scheduler of its own."""
    made = PixelPipeline(pipe.unet, DDIMScheduler(**BETAS))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("recipe", [FAST, OTHER, Recipe()], ids=lambda recipe: recipe.label)
def test_a_call_that_says_nothing_runs_what_was_measured(recipe):
    pipe = unet_pipeline()
    state, plain = snapshot(pipe, [pipe.unet]), images(pipe, num_inference_steps=2)
    applied = apply(pipe, recipe)
    for seed in (0, 5) if recipe.sampler else ():
        assert torch.equal(images(pipe, seed), measured(recipe, seed))
    assert applied.run.recipe is recipe
    applied.remove()
    applied.remove()
    assert_same(state, snapshot(pipe, [pipe.unet]))
    assert torch.equal(images(pipe, num_inference_steps=2), plain)


def test_as_a_context_it_is_removed_at_the_end_also_after_an_exception():
    pipe = unet_pipeline()
    state = snapshot(pipe, [pipe.unet])
    with pytest.raises(ZeroDivisionError), apply(pipe, FAST):
        1 / len(images(pipe)[:0])
    assert_same(state, snapshot(pipe, [pipe.unet]))


def test_an_exception_in_mid_trajectory_leaves_nothing_behind_for_the_next_call():
    pipe = unet_pipeline()
    apply(pipe, FAST)
    hook = pipe.unet.conv_out.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        images(pipe, 7)
    hook.remove()
    assert torch.equal(images(pipe), measured(FAST))


def test_eight_requests_on_two_threads_are_what_one_thread_makes():
    pipe = unet_pipeline()
    apply(pipe, FAST)
    expected = [measured(FAST, seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: images(pipe, seed), range(8)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_threads_inside_accelerate_take_turns_too():
    pipe = unet_pipeline()
    expected = [measured(FAST, seed) for seed in range(4)]
    with accelerate(pipe, FAST), ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: images(pipe, seed), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pipelines_that_share_a_network_each_run_their_own_recipe():
    first = unet_pipeline()
    second = sharing(first)
    state = snapshot(first, [first.unet])
    one, two = apply(first, FAST), apply(second, OTHER)
    jobs = [(first, FAST, 0), (second, OTHER, 1), (first, FAST, 2), (second, OTHER, 3)] * 2
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda job: images(job[0], job[2]), jobs))
    for made, (_, recipe, seed) in zip(found, jobs, strict=True):
        assert torch.equal(made, measured(recipe, seed))
    one.remove()
    assert torch.equal(images(second, 3), measured(OTHER, 3))
    two.remove()
    assert_same(state, snapshot(first, [first.unet]))


def test_a_pipeline_without_the_recipe_runs_plainly_beside_it():
    first = unet_pipeline()
    second = sharing(first)
    plain = images(second, 4, num_inference_steps=5)
    apply(first, FAST)
    expected = [measured(FAST, seed) for seed in range(2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(2) as threads:
            fast = threads.submit(lambda: [images(first, seed) for seed in range(2)])
            slow = threads.submit(lambda: [images(second, 4, num_inference_steps=5) for _ in range(2)])
        assert all(torch.equal(made, plain) for made in slow.result())
    assert all(torch.equal(a, b) for a, b in zip(fast.result(), expected, strict=True))
    assert sum("also used without the recipe" in str(one.message) for one in said) == 1


def test_a_pipeline_without_the_recipe_is_refused_where_the_network_has_other_numbers():
    """A pipeline reads the network's dtype before it calls it, and draws its noise in that."""
    first = unet_pipeline()
    second = sharing(first)
    applied = apply(first, OTHER)
    with pytest.raises(IncompatibleError, match=r"used without the recipe.*\.remove\(\)"):
        images(second, num_inference_steps=2)
    assert torch.equal(images(first), measured(OTHER))
    applied.remove()
    assert torch.equal(images(second, num_inference_steps=2), images(unet_pipeline(), num_inference_steps=2))


def test_diffusers_server_pattern():
    """from_pipe(shared) with a scheduler for each request, whose recipe is applied to it; two requests at a time."""
    shared = stable_diffusion()
    recipe = Recipe(DDIM, guidance=CFG(3.0))
    with accelerate(stable_diffusion(), recipe) as run:
        expected = run_stable_diffusion(run.pipe, 3.0, steps=6)
    apply(shared, recipe)

    def request(_):
        scheduler = DDIMScheduler.from_config(shared.scheduler.config)
        pipe = type(shared).from_pipe(shared, scheduler=scheduler)
        assert type(pipe) is diffusers.StableDiffusionPipeline
        pipe.set_progress_bar_config(disable=True)
        with apply(pipe, recipe):
            return run_stable_diffusion(pipe, 3.0, steps=6)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(request, range(4)))
    assert all(torch.equal(made, expected) for made in found)
    assert torch.equal(run_stable_diffusion(shared, 3.0, steps=6), expected)


def test_from_pipe_does_not_take_the_recipes_scheduler_along():
    """It would drive the recipe's guidance and caches without its networks."""
    shared = stable_diffusion()
    recipe = Recipe(DDIM, guidance=CFG(3.0))
    applied = apply(shared, recipe)
    expected = run_stable_diffusion(shared, 3.0, steps=6)
    other = type(shared).from_pipe(shared)
    assert other.scheduler is shared.scheduler
    for _ in range(2):  # after its recipe is removed, too
        with pytest.raises(ConfigError, match=r"from_pipe\(\.\.\., scheduler=\.\.\.\) one of its own"):
            run_stable_diffusion(other, 3.0, steps=6)
        with pytest.raises(ConfigError, match=r"from_pipe\(\.\.\., scheduler=\.\.\.\) one of its own"):
            apply(other, recipe)
        if applied is not None:
            assert torch.equal(run_stable_diffusion(shared, 3.0, steps=6), expected)
            applied.remove()
            applied = None


def test_a_recipe_that_nobody_holds_stays():
    pipe, other = unet_pipeline(), unet_pipeline()
    expected = measured(FAST)
    apply(pipe, FAST)
    accelerate(other, FAST).__enter__()
    gc.collect()
    assert torch.equal(images(pipe), expected)
    assert torch.equal(images(other), expected)


def test_a_pipeline_that_is_gone_frees_its_network():
    pipe = unet_pipeline()
    second = sharing(pipe)
    apply(pipe, FAST)
    images(pipe)
    del pipe
    gc.collect()
    with pytest.warns(UserWarning, match="also used without the recipe"):
        found = images(second, num_inference_steps=4)
    assert torch.equal(found, images(unet_pipeline(), num_inference_steps=4))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps], ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", ["pipeline", "network"])
@pytest.mark.parametrize("called", [False, True])
def test_copies_are_refused_with_the_reason(copied, part, called):
    if part == "network" and copied is copy.copy:
        pytest.skip("a shallow copy of a module shares all that it holds, with a recipe or without")
    pipe = unet_pipeline()
    applied = apply(pipe, FAST)
    if called:
        images(pipe)
    with pytest.raises(ConfigError, match=r"cannot be (copied|pickled|copied or pickled) while .*\.remove\(\)"):
        copied(pipe if part == "pipeline" else pipe.unet)
    applied.remove()
    copied(unet_pipeline().unet) if copied is not copy.copy else None
    assert "__getstate__" not in vars(pipe.unet)


def test_a_pipeline_under_a_recipe_is_not_saved_as_if_it_were_plain(tmp_path):
    pipe = unet_pipeline()
    applied = apply(pipe, FAST)
    with pytest.raises(ConfigError, match=r"cannot be saved.*recipe\.save"):
        pipe.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    applied.remove()
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").exists()


def test_a_second_recipe_on_one_pipeline_is_refused():
    pipe = unet_pipeline()
    applied = apply(pipe, FAST)
    with pytest.raises(ConfigError, match="is applied to this pipeline already"):
        apply(pipe, OTHER)
    with pytest.raises(IncompatibleError, match="a recipe is applied to this UNet2DModel"), accelerate(pipe, OTHER):
        pass
    with pytest.raises(IncompatibleError, match="shares it"), accelerate(sharing(pipe), OTHER):
        pass
    assert torch.equal(images(pipe), measured(FAST))
    applied.remove()
    assert torch.equal(measured(OTHER, pipe=pipe), measured(OTHER))


def test_a_network_inside_accelerate_is_refused():
    pipe = unet_pipeline()
    with accelerate(pipe, FAST):
        with pytest.raises(ConfigError, match="inside accelerate"):
            apply(pipe, OTHER)
        with pytest.raises(IncompatibleError, match=r"inside accelerate.*shares it"):
            apply(sharing(pipe), OTHER)
        assert torch.equal(images(pipe), measured(FAST))


def test_a_recipe_that_cannot_run_is_refused_and_nothing_has_changed():
    pipe = unet_pipeline()
    state = snapshot(pipe, [pipe.unet])
    with pytest.raises(IncompatibleError):
        apply(pipe, Recipe(DiffusersSampler("FlowMatchEulerDiscreteScheduler", 4)))
    assert_same(state, snapshot(pipe, [pipe.unet]))


def test_a_scheduler_that_is_put_in_place_of_the_recipes_is_refused():
    pipe = unet_pipeline()
    apply(pipe, FAST)
    pipe.scheduler = DDIMScheduler(**BETAS)
    with pytest.raises(ConfigError, match="scheduler of this pipeline was replaced by DDIMScheduler"):
        images(pipe)


def test_remove_waits_for_the_call_under_way():
    pipe = unet_pipeline()
    applied, inside, removed = apply(pipe, FAST), threading.Event(), threading.Event()
    hook = pipe.unet.conv_out.register_forward_hook(lambda *args: (inside.set(), removed.wait(0.05))[0])
    with ThreadPoolExecutor(2) as threads:
        made = threads.submit(images, pipe)
        inside.wait(10)
        threads.submit(lambda: (applied.remove(), removed.set())).result()
        assert torch.equal(made.result(), measured(FAST))
    hook.remove()
    assert "forward" not in vars(pipe.unet)


def test_a_network_that_another_library_has_wrapped_keeps_its_wrap():
    pipe = unet_pipeline()
    own, calls = pipe.unet.forward, []
    pipe.unet.forward = wrap = lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))[1]
    applied = apply(pipe, FAST)
    assert torch.equal(images(pipe), measured(FAST))
    assert calls
    applied.remove()
    assert pipe.unet.forward is wrap


def test_a_stitched_network_of_another_pipeline_takes_turns():
    from accel.stitching import TStitch

    pipe, small = unet_pipeline(), PixelPipeline(unet(seed=1, layers=1), DDIMScheduler(**BETAS))
    small.set_progress_bar_config(disable=True)
    plain = images(small, num_inference_steps=4)
    recipe = Recipe(DDIM, stitch=TStitch(("small",), (0.5,)))
    with accelerate(unet_pipeline(), recipe, models={"small": unet(seed=1, layers=1)}) as run:
        expected = images(run.pipe, guidance_scale=1.0)
    with apply(pipe, recipe, models={"small": small.unet}):
        assert torch.equal(images(pipe), expected)
        with pytest.warns(UserWarning, match="without the recipe"):
            assert torch.equal(images(small, num_inference_steps=4), plain)
        assert torch.equal(images(pipe), expected)


def test_another_call_on_the_network_within_a_call_is_refused_and_the_outer_one_goes_on():
    first = unet_pipeline()
    second = sharing(first)
    one, _ = apply(first, FAST), apply(second, FAST)
    said = []

    def within(*args):
        for attempt in (lambda: images(second), one.remove):
            try:
                attempt()
            except (ConfigError, IncompatibleError) as error:
                said.append(str(error))

    hook = first.unet.conv_in.register_forward_pre_hook(within)
    made = images(first)
    hook.remove()
    assert torch.equal(made, measured(FAST))
    assert len(said) >= 2
    assert all("within a call" in one for one in said)
    assert torch.equal(images(second), measured(FAST))
