"""Artefacts of one checkpoint on another: refused, or used on purpose and with the fact stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.core.artefacts import TRANSFERRED, moved, transferred, unlike
from accel.core.recipe import Recipe, accelerate
from accel.deploy.recipe_file import load_recipe, save_recipe
from accel.digests import weights_digest
from accel.errors import ConfigError
from accel.precision import FakeQuant, Trajectories
from accel.registry import method
from accel.testing import TinySuite
from accel.testing.bench import Bench
from accel.testing.quick import recipe as quick

# axes, the tiny suite that it fits, and what is said of other weights; artefacts lie under axis or network
METHODS = {
    "linear_ag": ({"guidance": "linear_ag"}, "unet", "were fitted for another model", "guidance"),
    "teacache": ({"cache": "teacache"}, "transformer", "was fitted for another model", "cache"),
    "harmonica": ({"cache": "harmonica"}, "transformer", "was learned for another model", "cache"),
    "diffusers_mag": ({"cache": "diffusers_mag"}, "transformer", "were measured on other weights", "cache"),
    "w8a8": ({"precision": "w8a8"}, "unet", "was made for other weights", "base"),
    "dc_solver": ({"sampler": "dc_solver"}, "unet", "were searched for weights", "sampler"),
}


def fine_tuned(on: Bench) -> Bench:
    """The same network with weights of a few steps more, and all else the same."""
    other = Bench(on.suite)
    with torch.no_grad():
        for i, weight in enumerate(other.net.parameters()):
            draw = torch.Generator().manual_seed(i)
            weight.add_(0.01 * weight.std(correction=0) * torch.randn(weight.shape, generator=draw))
    return other


def images(on: Bench, made: Recipe, artefacts):
    with accelerate(on.pipe, made, models=on.models, artefacts=artefacts) as run:
        return on.generate(made), run


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_other_weights_are_used_on_purpose_alone(name):
    axes, kind, said, place = METHODS[name]
    made = quick(**axes)
    on = Bench(TinySuite(kind))
    own = on.artefacts(made)
    assert moved(own) == ()
    other = fine_tuned(on)
    with pytest.raises(ConfigError, match=said):
        images(other, made, own)
    allowed = transferred(own, other.pipe)
    found, run = images(other, made, allowed)
    assert found.isfinite().all()
    assert run.transferred == (place,)
    assert TRANSFERRED not in own[place], "what is given is left alone"
    assert images(on, made, own)[1].transferred == ()
    with pytest.raises(ConfigError, match=said):  # of a third checkpoint it says nothing
        images(fine_tuned(other), made, transferred(own, on.pipe))
    again = images(on, made, transferred(own, on.pipe))[0]
    assert torch.equal(again, images(on, made, own)[0]), "on its own weights they are the same numbers"


def test_everything_else_that_they_were_made_for_is_still_asked_for():
    made = quick(guidance="linear_ag")
    on = Bench(TinySuite("unet"))
    own = on.artefacts(made)
    other = fine_tuned(on)
    longer = replace(made, sampler=method("sampler", "ddim", steps=5))
    with pytest.raises(ConfigError, match="were fitted for another sampler"):
        images(other, longer, transferred(own, other.pipe))


def test_layers_of_other_names_are_no_matter_of_weights():
    made = Recipe(method("sampler", "ddim", steps=4), precision=FakeQuant(calibration=Trajectories(2)))
    own = Bench(TinySuite("unet")).artefacts(made)
    text = Bench(TinySuite("text"))
    with pytest.raises(ConfigError, match="needs activation ranges for the"):
        images(text, made, transferred(own, text.pipe))


def test_a_recipe_file_keeps_what_was_transferred(tmp_path):
    made = quick(cache="teacache")
    on = Bench(TinySuite("transformer"))
    other = fine_tuned(on)
    save_recipe(made, tmp_path / "moved", pipe=other.pipe, artefacts=transferred(on.artefacts(made), other.pipe))
    loaded = load_recipe(tmp_path / "moved")
    assert moved(loaded.artefacts) == ("cache",)
    assert images(other, loaded.recipe, loaded.artefacts)[1].transferred == ("cache",)


def test_the_first_thing_that_differs_is_named():
    digest = torch.arange(16, dtype=torch.uint8)
    artefact = {"model": digest, "sampler": digest + 1, "timesteps": torch.tensor([3.0])}
    assert unlike(artefact, {"model": digest, "sampler": digest + 1}) is None
    assert unlike(artefact, {"timesteps": torch.tensor([3.0 + 1e-9], dtype=torch.float64)}) is None
    assert unlike(artefact, {"timesteps": torch.tensor([3.0, 4.0])}) == "timesteps"
    assert unlike(artefact, {"model": digest, "grid": digest}) == "grid"
    assert unlike(artefact, {"model": digest + 1}) == "model"
    allowed = artefact | {TRANSFERRED: digest + 1}
    assert unlike(allowed, {"model": digest + 1}) is None
    assert unlike(allowed, {"model": digest + 2}) == "model"
    assert unlike(allowed, {"sampler": digest}) == "sampler", "weights alone may be others"
    assert unlike({TRANSFERRED: digest}, {"model": digest}) == "model", "of whatever it is"


def test_each_network_has_digests_of_its_own():
    on = Bench(TinySuite("unet"))
    found = transferred({"base": {}, "small": {}, "cache": {}}, on.pipe, on.models)
    wanted = {"base": on.net, "small": on.models["small"], "cache": on.net}
    for name, net in wanted.items():
        assert torch.equal(found[name][TRANSFERRED], weights_digest(net)), name
