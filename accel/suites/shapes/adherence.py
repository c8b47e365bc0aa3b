"""Prompt adherence of suite `shapes`: which of the wanted objects are in a picture, in the spirit of GenEval.

Ghosh et al. 2023, "GenEval" (arXiv:2310.11513): find the objects by a detector, then check what the prompt says of
each. An object is right if one of its own is found with its shape and colour, in the stated field of the picture, and
in the stated relation to the first object. The scene is exact if all are right in size and texture, too, and nothing
else is there. Of all ways to assign found objects to wanted ones the best counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from accel.suites.base import beside
from accel.suites.shapes.captions import Order, Wanted, holds, place
from accel.suites.shapes.models import ShapeDetector
from accel.suites.shapes.scene import COLOUR_NAMES, SHAPES, SIZE, SIZE_NAMES, TEXTURES, Scene, Seen

NAMES = {"shape": SHAPES, "colour": COLOUR_NAMES, "size": SIZE_NAMES, "texture": TEXTURES}
THRESHOLD = 0.3  # of the heat at an object's centre
MOST = 6  # objects that are looked at in a picture
SLACK = 2.0  # pixels by which a centre may lie outside the stated field


@torch.inference_mode()
def detect(detector: ShapeDetector, images: torch.Tensor) -> list[list[Seen]]:
    """Objects in each of uint8 images (B, 3, H, W): local maxima of the heat, the hottest first."""
    maps = detector(beside(detector, images))
    heat = maps["heat"].float().sigmoid()
    peaks = (heat == torch.nn.functional.max_pool2d(heat, 3, 1, 1)) & (heat > THRESHOLD)
    result, cell = [], SIZE / heat.shape[-1]
    for b in range(len(images)):
        at = peaks[b, 0].nonzero()
        order = heat[b, 0][at[:, 0], at[:, 1]].argsort(descending=True)[:MOST]
        result.append([_found(maps, b, *map(int, at[i]), cell) for i in order])
    return result


def _found(maps: dict[str, torch.Tensor], b: int, row: int, column: int, cell: float) -> Seen:
    said = {name: names[int(maps[name][b, :, row, column].argmax())] for name, names in NAMES.items()}
    dx, dy = maps["offset"][b, :, row, column].tolist()
    return Seen(x=(column + dx) * cell, y=(row + dy) * cell, **said)


def right(order: Order, found: Sequence[Seen]) -> tuple[int, bool]:
    """(how many of the wanted objects are right, whether the whole scene is exact)."""
    good, exact = judged(order, found)
    return sum(good), exact


def judged(order: Order, found: Sequence[Seen]) -> tuple[tuple[bool, ...], bool]:
    """(whether each wanted object is right, whether the whole scene is exact)."""
    best = ((False,) * len(order.things), False)
    for chosen in _assignments(len(order.things), len(found)):
        things = [None if i is None else found[i] for i in chosen]
        good = [_is(want, thing) for want, thing in zip(order.things, things, strict=True)]
        for a, relation, b in order.relations:
            first, second = things[a], things[b]
            there = first is not None and second is not None
            good[b] &= there and holds(relation, (first.x, first.y), (second.x, second.y))
        exact = all(good) and len(found) == len(things) and all(map(_in_detail, order.things, things))
        best = max(best, (tuple(good), exact), key=lambda g: (sum(g[0]), g[1]))
    return best


def true_of(order: Order, scene: Scene) -> bool:
    """Whether everything that a caption says of objects holds in the scene."""
    return right(order, scene.things)[1]


def _is(want: Wanted, thing: Seen | None) -> bool:
    if thing is None or (thing.shape, thing.colour) != (want.shape, want.colour):
        return False
    moves = (-SLACK, 0.0, SLACK)
    return want.place is None or want.place in {
        place(min(max(thing.x + dx, 0), SIZE), min(max(thing.y + dy, 0), SIZE)) for dx in moves for dy in moves
    }


def _in_detail(want: Wanted, thing: Seen) -> bool:
    return want.size in (None, thing.size) and want.texture in (None, thing.texture)


def _assignments(wanted: int, found: int) -> Iterator[tuple[int | None, ...]]:
    # Every way to give each wanted object one of its own, or none.
    return itertools.permutations([*range(found), *[None] * wanted], wanted)
