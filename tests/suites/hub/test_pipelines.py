"""docs/pipelines.md: every pipeline class with methods of every axis. Each runs and does something, or is refused with
the reason; the page says which.

A row of the page is compared with what its class does here. To write them anew, in one process:

    ACCEL_WRITE_PIPELINES=1 python -m pytest -n 0 tests/suites/hub/test_pipelines.py
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hub_modern import MODERN
from hub_tiny import KINDS

from accel.config import choice_of
from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError
from accel.samplers.noise_schedule import is_flow
from accel.testing.quick import QUICK

PAGE = Path(__file__).parents[3] / "docs/pipelines.md"
WRITE = bool(os.environ.get("ACCEL_WRITE_PIPELINES"))
STEPS = 3
VERSION = ".".join(diffusers.__version__.split(".")[:2])  # whose messages the page quotes
OFF = ["guidance.threshold=-1", "guidance.min_steps=2"]  # adaptive guidance that ends after two steps
# axis, choice, and what it is compared with beside the sampler
COLUMNS = (
    ("sampler", "dpmpp_2m"),
    ("sampler", "heun"),
    ("sampler", "flow_heun"),
    ("sampler", "deis_tab"),
    ("sampler", "rf_solver"),
    ("grid", "t_quadratic"),
    ("guidance", "cfg"),
    ("guidance", "interval"),
    ("guidance", "ag"),
    ("guidance", "apg"),
    ("guidance", "cfgpp"),
    ("cache", "deepcache"),
    ("cache", "encoder_propagation"),
    ("cache", "inheritance"),
    ("cache", "fora"),
    ("cache", "taylorseer"),
    ("cache", "diffusers_first_block"),
    ("cache", "diffusers_taylorseer"),
    ("cache", "diffusers_pab"),
    ("skip", "skip_tuning"),
    ("precision", "bf16"),
)
SETTINGS = {"ag": OFF}
# Beside those that show prompts alone: what edits, is told conditions, or makes videos.
SHOWN = ("sd_pix2pix", "sdxl_pix2pix", "sd_controlnet", "sd3_controlnet", "flux_controlnet", "flux_control",
         "sdxl_union_controlnet", "animate_diff", "ltx", "ltx_i2v")  # fmt: skip


def made(axis: str, choice: str, *settings: str) -> Any:
    steps = [f"sampler.steps={STEPS}"] if axis == "sampler" else []
    return choice_of(axis, choice, *steps, *settings)


def usual(pipe: Any, suite: Any) -> Recipe:
    """The sampler of its kind that it is tried with; where no other can drive it, the pipeline's own."""
    plain = Recipe(made("sampler", "flow_euler" if is_flow(pipe.scheduler.config) else "ddim"))
    try:
        outcome(pipe, suite, plain)
    except AccelError:
        return Recipe()
    return plain


def outcome(pipe: Any, suite: Any, recipe: Recipe) -> tuple[torch.Tensor, list[Any], set[float]]:
    call = suite.conditions(0, 2) | suite.guidance_arguments(recipe)
    call |= {} if recipe.sampler else {"num_inference_steps": STEPS}
    latent = "pt" if type(pipe).__name__ in ("DiTPipeline", "PixelPipeline") else "latent"
    with accelerate(pipe, recipe, count_macs=True) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pipe(**call, generator=generators(0, 0, 2), output_type=latent)
    images = torch.as_tensor(made.frames if hasattr(made, "frames") else made.images)
    assert images.isfinite().all()
    evaluated = [(e.model, e.mode, e.rows, e.macs, e.timestep) for e in run.trace]
    return images, evaluated, {e.sigma for e in run.trace}


def tried(kind: str, pipe: Any, suite: Any) -> dict[str, str | None]:
    """By choice the reason why it is refused, None where it runs. Fails where it does nothing, or ends in an error."""
    plain = usual(pipe, suite)
    guided = replace(plain, guidance=made("guidance", "cfg"))
    known: dict[bool, Any] = {False: outcome(pipe, suite, plain)}
    levels = sorted(known[False][2], reverse=True)
    interval = [f"guidance.sigma_lo={(levels[1] + levels[2]) / 2}", "guidance.sigma_hi=1e9"]  # of the first two steps
    found: dict[str, str | None] = {}
    for axis, choice in COLUMNS:
        beside = guided if axis == "guidance" and choice != "cfg" else plain
        settings = interval if choice == "interval" else SETTINGS.get(choice, QUICK.get(choice, []))
        recipe = replace(beside, **{axis: made(axis, choice, *settings)})
        try:
            own = outcome(pipe, suite, recipe)
        except AccelError as error:
            found[choice] = " ".join(str(error).split())
            assert len(found[choice]) > 30, choice
            continue
        if (key := beside is guided) not in known:
            known[key] = outcome(pipe, suite, beside)
        other = known[key]
        same = torch.equal(own[0], other[0]) and own[1] == other[1]
        assert not same, f"{choice} changes neither what {kind} evaluates nor its images, and is not refused"
        found[choice] = None
    return found


def row(name: str, found: dict[str, str | None]) -> str:
    return f"| {name} | " + " | ".join("yes" if found[choice] is None else "no" for _, choice in COLUMNS) + " |"


def reasons(name: str, found: dict[str, str | None]) -> str:
    by_reason: dict[str, list[str]] = {}
    for choice, reason in found.items():
        if reason is not None:
            by_reason.setdefault(reason.replace("|", "\\|"), []).append(choice)
    lines = [f"* {', '.join(f'`{c}`' for c in choices)}: {reason}" for reason, choices in by_reason.items()]
    return "\n".join([f"### {name}", "", *lines, ""])


@pytest.mark.usefixtures("few_ranges")
@pytest.mark.parametrize("kind", [*KINDS, *MODERN, *SHOWN])
def test_every_axis_on_every_class_runs_or_is_refused_as_the_page_says(kind, shown_suite, hub_pipe):
    suite = shown_suite(kind)
    pipe = suite.pipeline() if kind in SHOWN else hub_pipe(kind)
    before = pipe.scheduler
    found = tried(kind, pipe, suite)
    assert pipe.scheduler is before
    assert "forward" not in vars(getattr(pipe, denoiser_name(pipe)))
    name = f"{type(pipe).__name__} ({kind})"
    if WRITE:
        written(name, found)
    page = PAGE.read_text()
    if f"diffusers {VERSION}" not in page:
        pytest.skip(f"all was tried; the page quotes another diffusers than {VERSION}")
    assert row(name, found) in page, f"docs/pipelines.md says something else of {name}; see this module's docstring"
    assert reasons(name, found) in page, f"docs/pipelines.md has other reasons for {name}; see this module's docstring"


HEAD = f"""# What runs on which pipeline

Every class that suite `hub` can run, with methods of every axis, tried on tiny random weights: it runs, changes what is
evaluated or the images, and leaves the pipeline as it was (yes), or it is refused, for the reason below (no). Nothing
ends in an error, and nothing does nothing without saying so. Written and checked by
`tests/suites/hub/test_pipelines.py`, with diffusers {VERSION}. Classes that are
shown images or conditions get them; Wan, which is loaded with a further package, is tested elsewhere.

A sampler of another kind of model (flows, betas) is refused on purpose; `adaptive guidance` is set to end after two
steps, the interval to the first two.
"""


def written(name: str, found: dict[str, str | None]) -> None:
    """Put the row and the reasons of one class onto the page, in the order of their names."""
    text = PAGE.read_text() if PAGE.exists() else ""
    rows = {line.split(" | ")[0]: line for line in re.findall(r"^\| \w+Pipeline .*$", text, re.M)}
    parts = {part.split("\n")[0]: part for part in re.findall(r"^### .*?\n\n(?:\*.*\n)*", text, re.M)}
    own = row(name, found)
    rows[own.split(" | ")[0]] = own
    own = reasons(name, found)
    parts[own.split("\n")[0]] = own
    line = "|:--" + "|:--" * len(COLUMNS) + "|"
    head = "| class | " + " | ".join(f"`{choice}`" for _, choice in COLUMNS) + " |"
    table = "\n".join([head, line, *(rows[key] for key in sorted(rows))])
    body = "\n".join(parts[key] for key in sorted(parts))
    PAGE.write_text(f"{HEAD}\n{table}\n\n## Reasons\n\n{body}")
