"""Scenes and their pictures: what is drawn is what the scene says, and nothing of it hangs on order or machine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from accel.suites.shapes import data
from accel.suites.shapes.scene import (
    COLOURS,
    COUNTS,
    DISTANCES,
    GROUNDS,
    HELD_OUT,
    LATTICE,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    render,
)

AREAS = {  # of the outlines, by geometry
    "circle": math.pi * 0.95**2,
    "square": 1.6**2,
    "triangle": 3 * math.sqrt(3) / 4 * 1.12**2,
    "star": 5 * 1.1 * 0.45 * math.sin(math.pi / 5),
    "cross": 4 * 0.34 * (2 - 0.34),
    "ring": math.pi * ((0.72 + 0.26) ** 2 - (0.72 - 0.26) ** 2),
}


def thing(**changes) -> Thing:
    plain = Thing("square", "red", "large", "plain", 32.0, 32.0, 12.0, 0.0, COLOURS["red"])
    return replace(plain, **changes)


def scene(*things: Thing) -> Scene:
    return Scene(things, "black", "flat", GROUNDS["black"], 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_covered_area_is_that_of_the_outline(shape):
    side = np.linspace(-1.5, 1.5, 1500)
    u, v = np.meshgrid(side, side)
    area = (DISTANCES[shape](u, v) < 0).mean() * 9
    assert area == pytest.approx(AREAS[shape], rel=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_euclidean(shape):
    """|grad d| = 1 wherever one point of the outline is the nearest; edges are then one pixel wide at any size."""
    u, v = np.random.default_rng(0).uniform(-1.4, 1.4, (2, 20_000))
    d, h = DISTANCES[shape], 1e-6
    slope = np.hypot(d(u + h, v) - d(u - h, v), d(u, v + h) - d(u, v - h)) / (2 * h)
    assert (abs(slope - 1) < 1e-3).mean() > 0.99


@pytest.mark.parametrize("colour", COLOURS)
def test_pixels_have_the_colour_inside_and_the_ground_outside(colour):
    image = render(scene(thing(colour=colour, tint=COLOURS[colour])))
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert tuple(image[32, 32]) == COLOURS[colour]
    assert tuple(image[2, 2]) == GROUNDS["black"]


def test_half_covered_pixel_is_half_way():
    image = render(scene(thing(radius=10.0, x=32.5, tint=(200, 200, 200)))).astype(int)
    left = round(32.5 - 8)  # the edge runs through the middle of this pixel
    assert image[32, left].tolist() == pytest.approx([112, 112, 113], abs=1)


def test_marks_alternate_only_inside():
    plain, striped = (render(scene(thing(texture=t))).astype(int) for t in ("plain", "striped"))
    differs = np.abs(plain - striped).sum(2) > 0
    inside = DISTANCES["square"](*(np.mgrid[0:SIZE, 0:SIZE][::-1] + 0.5 - 32) / 12) < 0.05
    assert not differs[~inside].any()
    assert 0.3 < differs[inside].mean() < 0.8


@pytest.mark.parametrize("index", range(40))
def test_objects_do_not_touch_and_lie_inside(index):
    things = data.sample("prompts", index).scene.things
    for i, a in enumerate(things):
        assert a.radius <= a.x <= SIZE - a.radius
        assert a.radius <= a.y <= SIZE - a.radius
        assert all(math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in things[:i])


def test_scenes_have_one_to_three_objects_on_the_corners_of_latent_cells():
    scenes = [data.sample("train", i, 0).scene for i in range(600)]
    assert all(v % LATTICE == 0 for s in scenes for t in s.things for v in (t.x, t.y))
    assert len({(t.x, t.y) for s in scenes for t in s.things}) == 25
    for count, share in enumerate(COUNTS, start=1):
        assert sum(len(s.things) == count for s in scenes) / len(scenes) == pytest.approx(share, abs=0.06)


def test_held_out_pairs_are_never_trained_on_and_in_every_second_prompt():
    def pairs(stream, count):
        return [{(t.shape, t.colour) for t in data.sample(stream, i, 0).scene.things} for i in range(count)]

    assert not set().union(*pairs("train", 2000)) & set(HELD_OUT)
    assert len(set().union(*pairs("train", 2000))) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)
    held_out = [bool(found & set(HELD_OUT)) for found in pairs("prompts", 200)]
    assert held_out == [i % 2 == 1 for i in range(200)]


def test_streams_and_counts_do_not_change_a_sample():
    assert data.samples("train", 3, 2)[2] == data.sample("train", 2, 2)
    assert data.sample("train", 2, 1).scene == data.sample("train", 2, 2).scene
    assert data.sample("prompts", 2).scene != data.sample("reference", 2).scene
    assert (data.pictures("train", 3).permute(0, 2, 3, 1).numpy()[2] == render(data.sample("train", 2).scene)).all()
