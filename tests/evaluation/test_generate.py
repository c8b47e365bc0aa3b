"""Generation: seeds of samples, independence of the batch, and errors that say what to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from accel.core.environment import out_of_memory
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators, sample_seed
from accel.errors import AccelError, ConfigError
from accel.evaluation.generate import batches, generate
from accel.guidance import CFG
from accel.studies.calibration import CALIBRATION_SEED

RECIPE = Recipe()


class Suite:
    """Sample i is of class i."""

    def conditions(self, start, stop):
        return {"class_labels": list(range(start, stop))}

    def guidance_arguments(self, recipe):
        return {"guidance_scale": recipe.guidance_scale}


class Pipe:
    """Images are the samples' first noise; notes its calls."""

    def __init__(self, fail=None):
        self.calls, self.fail = [], fail

    def __call__(self, class_labels, generator, **kwargs):
        self.calls.append((class_labels, kwargs))
        if self.fail and len(self.calls) > 1:
            raise self.fail
        assert len(class_labels) == len(generator)
        return SimpleNamespace(images=torch.cat([torch.randn(1, 1, 2, 2, generator=g) for g in generator]))


# --- seeds


def test_seeds_of_samples_are_distinct_and_do_not_follow_a_pattern():
    seeds = {sample_seed(base, i) for base in (0, 1, 2, CALIBRATION_SEED) for i in range(2000)}
    assert len(seeds) == 8000
    assert all(0 <= s < 2**63 for s in seeds)
    assert sample_seed(0, 11) != sample_seed(1, 1) != sample_seed(11, 1)
    # Every bit is set in half of the seeds: an additive rule would leave the high ones alone.
    bits = torch.tensor([[s >> b & 1 for b in range(63)] for s in sorted(seeds)], dtype=torch.float64)
    assert (bits.mean(0) - 0.5).abs().max() < 5 * 0.5 / 8000**0.5


def test_seeds_are_fixed_forever():
    """Shards of earlier versions are continued: these numbers may never change."""
    assert sample_seed(0, 0) == 6213027144842677344
    assert sample_seed(7, 123) == 5526993124730111001
    first = generators(0, 3, 5)
    assert [g.initial_seed() for g in first] == [sample_seed(0, 3), sample_seed(0, 4)]


def test_noise_of_different_samples_is_uncorrelated():
    noise = torch.stack([torch.randn(512, generator=g) for g in generators(0, 0, 40)])
    correlation = torch.corrcoef(noise) - torch.eye(40)
    assert correlation.abs().max() < 5 / 512**0.5


# --- batches


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch(batch):
    whole = generate(Pipe(), Suite(), RECIPE, 5, 0, 7, 7)
    assert whole.shape == (7, 1, 2, 2)
    pipe = Pipe()
    assert torch.equal(generate(pipe, Suite(), RECIPE, 5, 0, 7, batch), whole)
    assert [label for labels, _ in pipe.calls for label in labels] == list(range(7))
    assert {len(labels) for labels, _ in pipe.calls} <= {min(batch, 7), 7 % batch or batch}
    assert torch.equal(generate(Pipe(), Suite(), RECIPE, 5, 4, 6, batch), whole[4:6]), "or on where a shard begins"
    assert not torch.equal(generate(Pipe(), Suite(), RECIPE, 6, 0, 7, batch), whole)


def test_batches_cover_the_range():
    assert list(batches(4, 11, 3)) == [(4, 7), (7, 10), (10, 11)]
    assert list(batches(0, 0, 3)) == []


def test_pipeline_is_called_as_the_recipe_says():
    pipe = Pipe()
    generate(pipe, Suite(), Recipe(guidance=CFG(3.5)), 0, 0, 1, 1)
    assert pipe.calls == [([0], {"guidance_scale": 3.5, "output_type": "pt"})]


def test_real_samples_start_from_their_own_noise(pipe, digits, ddim):
    """Through a whole pipeline: the same noise bit for bit, the same images within rounding."""
    recipe, noise, images = Recipe(ddim(2)), {}, {}
    for batch in (1, 4):
        seen = []
        handle = pipe.unet.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        try:
            with accelerate(pipe, recipe):
                images[batch] = generate(pipe, digits, recipe, 0, 0, 4, batch)
        finally:
            handle.remove()
        noise[batch] = torch.cat(seen[::2])  # the first of two steps
    assert torch.equal(noise[1], noise[4])
    torch.testing.assert_close(images[1], images[4], atol=2e-3, rtol=0)


# --- errors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_an_error(value):
    class Diverging(Pipe):
        def __call__(self, class_labels, generator, **kwargs):
            result = super().__call__(class_labels, generator, **kwargs)
            result.images[[i for i, y in enumerate(class_labels) if y in (1, 4)], 0, 0, 0] = value
            return result

    with pytest.raises(ConfigError, match=r"plain: 2 of 6 images are not finite; the recipe diverges"):
        generate(Diverging(), Suite(), RECIPE, 0, 0, 6, 4)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: f"{type(e).__name__}: {e}"[:40])
@pytest.mark.parametrize(("batch", "half"), [(64, 32), (7, 3), (2, 1)])
def test_out_of_memory_names_the_batch_and_half_of_it(error, batch, half):
    assert out_of_memory(error)
    with pytest.raises(AccelError, match=f"evaluation.batch={batch}; try evaluation.batch={half}\\. .*kept") as caught:
        generate(Pipe(error), Suite(), RECIPE, 0, 0, 3 * batch, batch)
    assert caught.value.__cause__ is error


def test_out_of_memory_with_a_single_image_does_not_offer_the_same_batch():
    with pytest.raises(AccelError, match="out of memory") as caught:
        generate(Pipe(OUT_OF_MEMORY[0]), Suite(), RECIPE, 0, 0, 2, 1)
    assert "try evaluation.batch=1" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), KeyError()]
)
def test_other_errors_pass_unchanged(error):
    assert not out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        generate(Pipe(error), Suite(), RECIPE, 0, 0, 2, 1)
    assert caught.value is error
