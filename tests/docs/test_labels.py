"""docs/glossary.md explains every part of every label: of registered methods, of other settings, of tracked tables."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from accel.config import AXES, choice_of
from accel.core.recipe import Recipe
from accel.registry import groups

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/glossary.md").read_text().split("\n## Terms\n")[0]
NUMBER, NUMBERS = r"-?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf)", r"[-\d.,;]*"
NAMES = {
    "SAMPLER": "|".join(map(re.escape, groups()["sampler"])),
    "GRID": "|".join(groups()["grid"]),
    "STUDENT": "|".join(groups()["student"]),
    "MODELS": r"\w+(?:,\w+)*",
    "MATCH": r"[^)]+",
    "WORDS": r"[\w+,]+",
    "LAYERS": ".+",
    "DTYPE": "fp32|fp16|bf16",
}
# Methods with settings that change their labels, beside what is registered and what is in the tracked tables.
OTHERS = {
    "precision": [
        ("w8a8", "precision.granularity=tensor"),
        ("w8a8", "+precision.exempt_tokens=1"),
        ("w8a8", "precision.keep=[conv_in]"),
        ("w8a8", "precision.text_encoder=true"),
        ("prune", "precision.scope=layer"),
        ("mixdq", "precision.budget_of=operations"),
    ],
    "cache": [
        ("inheritance", "cache.begin=0.2", "cache.end=0.8"),
        ("easycache", "cache.decision=batch", "cache.reuse=output", "cache.first=5"),
        ("teacache", "cache.published=flux"),
        ("seacache", "cache.power=3", "cache.decision=batch"),
        ("cache_dit", "cache.mask=[1,1,0]", "cache.policy=static", "cache.in_a_row=2"),
        ("tgate", "cache.halves=both"),
        ("teacache", "cache.coefficients=[0,0,0,1,0]", "cache.reuse=residual"),
    ],
    "guidance": [("elucd", "guidance.scale=3"), ("gfcg", "guidance.scale=3")],
    "skip": [("skip_tuning", "skip.begin=0.5")],
    "student": [("pd1", "student.on_top=true"), ("guided2", "student.kind=told", "student.guidance=3")],
}


@cache
def said(heading: str) -> list[str]:
    """The code at the beginning of each bullet of a section, and what follows there in code before the colon."""
    section = re.search(rf"^{heading}$\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    bullets = re.findall(r"^\* (.*?)(?=^\* |^\n|\Z)", section, re.DOTALL | re.MULTILINE)
    return [
        code for bullet in bullets for code in re.findall(r"`([^`]+)`", re.split(r":(?:\s|$)", bullet, maxsplit=1)[0])
    ]


@cache
def pattern(code: str) -> str:
    """A regular expression of what the code stands for."""
    parts = re.split(r"\{(\w+)\}", code)
    for i in range(1, len(parts), 2):
        name = parts[i]
        if name == "SCHEDULE":
            parts[i] = f"(?:{'|'.join(map(pattern, said('#### Schedules')))})"
            continue
        known = {"fractions": rf"{NUMBER}%(?:\+{NUMBER}%)*", "numbers": NUMBERS} | NAMES
        parts[i] = f"(?:{known.get(name) or (NUMBER if name.islower() else chr(92) + 'w+')})"
    parts[::2] = map(re.escape, parts[::2])
    return "".join(parts)


def fits(label: str, codes: list[str], suffixes: str = "") -> bool:
    return any(re.fullmatch(pattern(code) + suffixes, label) for code in codes)


def unexplained(axis: str, label: str) -> str | None:
    """The part of a label of an axis that the page does not explain; None if there is none."""
    window = rf"(?:{pattern('[{begin},{end}]')})?"
    if axis == "sampler":
        name, at, grid = label.partition("@")
        codes = said("### Sampler and grid")
        return None if fits(name, codes) and (not at or fits(at + grid, codes)) else label
    if axis == "cache":
        codes = [*said("### Cache"), *(f"{name}(beta={{beta}},>{{threshold}})" for name in ("harmonica", "l2c"))]
        return None if fits(label, codes, rf"{window}(?:o\d+|z{NUMBER})?") else label
    if axis == "skip":
        return None if fits(label, said("### Skip"), window) else label
    if axis == "precision":
        return unexplained_precision(label)
    return None if fits(label, said(f"### {axis.capitalize()}")) else label


def unexplained_precision(label: str) -> str | None:
    codes = said("### Precision")
    if fits(label, codes):
        return None
    head, bracket, inside = label.removesuffix(")").partition("(")
    heads = [code.removesuffix("(...)") for code in codes if code.endswith("(...)")]
    if not bracket or not fits(head.removesuffix("/layer"), heads):
        return head
    after = [code for code in codes if code.startswith("/")]
    return next((p for p in inside.split(",") if not fits(p, codes, f"(?:{'|'.join(after)})?")), None)


def of_axes(recipe: Recipe) -> dict[str, str]:
    return {axis: label for axis in AXES if axis != "grid" and (label := getattr(getattr(recipe, axis), "label", None))}


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "grid"])
def test_labels_of_registered_methods_are_explained(axis):
    made = [(choice,) for choice in groups()[axis] if choice != "none"] + OTHERS.get(axis, [])
    labels = {choice: choice_of(axis, *choice).label for choice in made}
    assert {choice: part for choice, label in labels.items() if (part := unexplained(axis, label))} == {}


def test_every_grid_is_a_name_after_the_at():
    names = {choice_of("grid", choice).name for choice in groups()["grid"] if choice != "none"}
    assert {name for name in names if unexplained("sampler", f"ddim-10@{name}")} == set()


def test_labels_of_the_tracked_tables_are_explained():
    studies = [json.loads(path.read_text()) for path in (ROOT / "results/studies").glob("*.json")]
    labels = {row["label"] for study in studies for row in study["rows"] if row["role"] != "floor"}
    parts = {part for label in labels for part in label.split(" + ")} - {"plain"}
    assert len(parts) > 200
    assert {part for part in parts if all(unexplained(axis, part) for axis in AXES if axis != "grid")} == set()


@pytest.mark.parametrize(
    ("axis", "label"),
    [
        ("cache", "deepcache2"),
        ("guidance", "ag3(x1>=0.9)"),
        ("precision", "w8a8(sim,magic)"),
        ("precision", "w8a8(sim/layer)"),
        ("sampler", "nobody-10"),
        ("sampler", "ddim-10@nowhere"),
        ("stitch", "tstitch40"),
        ("skip", "skip0.9"),
    ],
)
def test_what_is_not_on_the_page_is_not_explained(axis, label):
    assert unexplained(axis, label)


def test_the_example_is_what_the_page_says_of_it():
    example = re.search(r"```\n(.*)\n```", PAGE)[1]
    methods = {
        "sampler": ("dpmpp_2m", "sampler.steps=20"),
        "grid": ("karras",),
        "guidance": ("ag", "guidance.scale=3", "guidance.threshold=0.98"),
        "cache": ("deepcache", "cache.interval=2"),
        "precision": ("bf16",),
    }
    assert Recipe(**{axis: choice_of(axis, *choice) for axis, choice in methods.items()}).label == example
