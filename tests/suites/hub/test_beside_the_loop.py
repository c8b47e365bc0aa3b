"""Samplers that evaluate the network beside the pipeline's loop, where that network sees more than the sample."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import IncompatibleError
from accel.registry import method
from accel.samplers.ode import initial_latents
from accel.samplers.predictor import seen_beside
from accel.suites.hub.inputs import Inputs

pytestmark = pytest.mark.usefixtures("plain_kernels")
SEES = {
    "sd_pix2pix": "shows its network an image",
    "flux_kontext": "shows its network an image",
    "ltx_i2v": "shows its network an image",
    "flux_control": "shows its network 32 channels, of which 16 are",
    "sd_img2img": "begins at an image",
    "sd_inpaint": "begins at an image",
}


@pytest.fixture
def shown(hub_suite, pictures):
    """shown(kind) -> the suite of a tiny pipeline that is shown images."""

    def suite(kind: str):
        own = Inputs(control=str(pictures)) if kind == "flux_control" else Inputs(
            str(pictures), str(pictures) if kind == "sd_inpaint" else None
        )  # fmt: skip
        return hub_suite(kind, inputs=own)

    return suite


@pytest.mark.parametrize("kind", SEES)
def test_what_the_network_sees_beside_its_sample_is_said_before_any_evaluation(kind, shown, monkeypatch):
    suite = shown(kind)
    pipe, made = suite.pipeline(), Recipe(method("sampler", "dc_solver", steps=3))
    call = suite.conditions(0, 1) | suite.guidance_arguments(made) | {"generator": generators(0, 0, 1)}
    evaluated = []
    net = getattr(pipe, "unet", None) or pipe.transformer
    monkeypatch.setattr(net, "forward", lambda *args, **kwargs: evaluated.append(0))
    with pytest.raises(IncompatibleError, match=rf"{SEES[kind]}.*use a sampler of the scheduler seam"):
        initial_latents(pipe, call)  # which a search begins with
    assert not evaluated


def test_an_adaptive_solver_says_it_too(shown):
    suite = shown("flux_kontext")
    pipe, made = suite.pipeline(), Recipe(method("sampler", "ode"))
    with accelerate(pipe, made) as run, pytest.raises(IncompatibleError, match="FluxKontextPipeline shows its network"):
        run(**suite.conditions(0, 1), generator=generators(0, 0, 1), output_type="pt")


def test_without_an_image_and_under_a_controlnet_there_is_nothing_beside(hub_suite, shown_suite):
    for suite in (hub_suite("flux_kontext"), hub_suite("dit"), shown_suite("sd_controlnet")):
        pipe = suite.pipeline()
        assert seen_beside(pipe, suite.conditions(0, 2)) is None
    recipe = Recipe(replace(method("sampler", "ode"), rtol=0.05, atol=0.05))
    with accelerate(pipe, recipe) as run:
        images = run(**suite.conditions(0, 1), generator=generators(0, 0, 1), output_type="pt").images
    assert images.isfinite().all()
