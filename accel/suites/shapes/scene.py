"""Scenes of suite `shapes`: what is in a picture, drawn by chance, and its picture.

A scene is one to three objects that do not touch, over a background. Random numbers come from a NumPy generator of the
scene's own, so that scene i of a stream is the same on every machine; the picture is a function of the scene.

Objects stand upright on the corners of the autoencoder's cells (8 pixels). An autoencoder is no translation-invariant
map within a cell, so that a denoiser would have to learn every outline anew for every offset; that takes more samples
than two processor cores can show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 64  # pixels a side
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 40, 44),
    "orange": (246, 140, 28),
    "yellow": (250, 222, 50),
    "green": (44, 168, 72),
    "cyan": (50, 205, 222),
    "blue": (44, 76, 218),
    "purple": (140, 56, 196),
    "pink": (250, 140, 196),
}
SIZES = {"small": (9.0, 9.6), "large": (13.2, 14.0)}  # circumradius in pixels
TEXTURES = ("plain", "striped", "dotted")
GROUNDS = {"black": (24, 24, 26), "grey": (122, 124, 126), "white": (240, 240, 238), "beige": (214, 196, 164)}
FINISHES = ("flat", "gradient", "checked")
COLOUR_NAMES, SIZE_NAMES, GROUND_NAMES = tuple(COLOURS), tuple(SIZES), tuple(GROUNDS)
# Pairs of shape and colour that no training scene has: one in eight, each shape and each colour at most once.
HELD_OUT = tuple((shape, COLOUR_NAMES[(3 * i + 1) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
MARGIN = 1.5  # pixels between objects, and to the edge
LATTICE = 8  # pixels between the places that objects may stand on
COUNTS = (0.45, 0.35, 0.2)  # shares of scenes of one, two and three objects


@dataclass(frozen=True)
class Seen:
    """One object in a picture: what it is, and where (centre x to the right, y downwards, in pixels)."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float


@dataclass(frozen=True)
class Thing(Seen):
    """One object of a scene: also how it is drawn."""

    radius: float
    angle: float  # radians
    tint: tuple[int, int, int]  # its colour in this picture


@dataclass(frozen=True)
class Scene:
    """Objects over a background."""

    things: tuple[Thing, ...]
    ground: str
    finish: str
    tint: tuple[int, int, int]
    slope: float  # direction of a gradient, radians


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """A scene of the training distribution, or one in which at least one object is of a held-out pair."""
    count = int(rng.choice(len(COUNTS), p=COUNTS)) + 1
    kinds = [_kind(rng) for _ in range(count)]
    if held_out:
        shape, colour = HELD_OUT[rng.integers(len(HELD_OUT))]
        kinds[int(rng.integers(count))] = (shape, colour)
    while True:
        sizes = [SIZE_NAMES[rng.integers(len(SIZE_NAMES))] for _ in kinds]
        placed = _place(rng, [float(rng.uniform(*SIZES[s])) for s in sizes])
        if placed:
            break
    things = tuple(
        Thing(
            shape, colour, size, TEXTURES[rng.integers(len(TEXTURES))], x, y, radius,
            float(rng.uniform(-0.05, 0.05)), _jitter(rng, COLOURS[colour]),
        )
        for (shape, colour), size, (x, y, radius) in zip(kinds, sizes, placed, strict=True)
    )  # fmt: skip
    ground = GROUND_NAMES[rng.integers(len(GROUND_NAMES))]
    finish = FINISHES[rng.integers(len(FINISHES))]
    slope = float(rng.uniform(0, 2 * math.pi))
    return Scene(things, ground, finish, _jitter(rng, GROUNDS[ground]), slope)


def _kind(rng: np.random.Generator) -> tuple[str, str]:
    while True:
        kind = SHAPES[rng.integers(len(SHAPES))], COLOUR_NAMES[rng.integers(len(COLOURS))]
        if kind not in HELD_OUT:
            return kind


def _place(rng: np.random.Generator, radii: Sequence[float]) -> list[tuple[float, float, float]] | None:
    # (x, y, radius) of circles that do not touch, or None where chance finds no room.
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        low = math.ceil((radius + MARGIN) / LATTICE)
        for _ in range(30):
            x, y = LATTICE * rng.integers(low, SIZE // LATTICE - low + 1, 2)
            if all(math.hypot(x - a, y - b) > radius + r + MARGIN for a, b, r in placed):
                placed.append((float(x), float(y), radius))
                break
        else:
            return None
    return placed


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(np.array(colour) + rng.integers(-10, 11, 3), 0, 255))


# --- the picture

_Y, _X = (a + 0.5 for a in np.mgrid[0:SIZE, 0:SIZE].astype(np.float64))  # centres of the pixels


def render(scene: Scene) -> np.ndarray:
    """uint8 (SIZE, SIZE, 3); edges are anti-aliased over one pixel by the signed distance to the outline."""
    image = _ground(scene)
    for thing in scene.things:
        x, y = _X - thing.x, _Y - thing.y
        c, s = math.cos(thing.angle), math.sin(thing.angle)
        u, v = (c * x + s * y) / thing.radius, (c * y - s * x) / thing.radius
        cover = np.clip(0.5 - DISTANCES[thing.shape](u, v) * thing.radius, 0, 1)[..., None]
        paint = np.array(thing.tint, float)
        mark = PATTERNS[thing.texture](u * thing.radius, v * thing.radius)[..., None]
        # Marks are darker on light colours and lighter on dark ones, faint enough to leave the outline to be seen.
        other = 0.45 * paint if paint @ (0.299, 0.587, 0.114) > 140 else 0.5 * paint + 0.5 * 255
        image = (1 - cover) * image + cover * ((1 - mark) * paint + mark * other)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _ground(scene: Scene) -> np.ndarray:
    image = np.broadcast_to(np.array(scene.tint, float), (SIZE, SIZE, 3))
    if scene.finish == "gradient":
        along = (math.cos(scene.slope) * (_X - SIZE / 2) + math.sin(scene.slope) * (_Y - SIZE / 2)) / SIZE
        return image + 55 * along[..., None]
    if scene.finish == "checked":
        return image + 14 * np.where((_X // 8 + _Y // 8) % 2, 1, -1)[..., None]
    return image.copy()


def _polygon(u: np.ndarray, v: np.ndarray, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    # Signed distance to a polygon, negative inside.
    distance, inside = np.full_like(u, np.inf), np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        ex, ey = x1 - x0, y1 - y0
        t = np.clip(((u - x0) * ex + (v - y0) * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(u - x0 - t * ex, v - y0 - t * ey))
        crosses = (y0 > v) != (y1 > v)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (u < ex * (v - y0) / ey + x0)
    return np.where(inside, -distance, distance)


def _wheel(count: int, radii: Sequence[float]) -> list[tuple[float, float]]:
    # Corners on a circle, the first at the top, with radii in turn.
    turns = [2 * math.pi * i / count for i in range(count)]
    sized = [radii[i % len(radii)] for i in range(count)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(sized, turns, strict=True)]


_ARM = 0.34
_CROSS = [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
          (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]  # fmt: skip
# Signed distances to outlines of circumradius about 1.
DISTANCES = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "square": lambda u, v: _polygon(u, v, [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": lambda u, v: _polygon(u, v + 0.12, _wheel(3, [1.12])),
    "star": lambda u, v: _polygon(u, v, _wheel(10, [1.1, 0.45])),
    "cross": lambda u, v: _polygon(u, v, _CROSS),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.26,
}
# How much of the marks' colour a point shows, at distances from the object's centre in pixels.
PATTERNS = {
    "plain": lambda u, v: np.zeros_like(u),
    "striped": lambda u, v: np.clip(0.5 + 2.5 * np.sin(2 * math.pi * v / 7), 0, 1),
    "dotted": lambda u, v: np.clip(2.5 - np.hypot((u + 3.25) % 6.5 - 3.25, (v + 3.25) % 6.5 - 3.25), 0, 1),
}
