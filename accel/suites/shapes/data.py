"""Data of suite `shapes`: streams of scenes with captions and pictures, the same on every machine and every run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from accel.suites.shapes.adherence import true_of
from accel.suites.shapes.captions import caption, wanted
from accel.suites.shapes.scene import COLOUR_NAMES, SHAPES, TEXTURES, Scene, draw_scene, render

# Name of a stream: its seed. Only `train` has no held-out pairs; of the others every second scene has one. `judge` is
# what the detector learns from: one that has never seen a pair of shape and colour is often wrong about the colour.
STREAMS = {"train": 1, "prompts": 2, "reference": 3, "held_out": 4, "judge": 5}
TRAIN, REFERENCE, HELD_OUT = 50_000, 2048, 512
CAPTIONS = 2  # of one training scene
TRIES = 8


@dataclass(frozen=True)
class Sample:
    """One scene with captions of it, every second one dense, and, for each, one of its kind that is false."""

    scene: Scene
    captions: tuple[str, ...]
    false: tuple[str, ...]


def sample(stream: str, index: int, captions: int = 1) -> Sample:
    """Sample `index` of a stream."""
    scene, texts, rng = _described(stream, index, captions)
    return Sample(scene, texts, tuple(_false(scene, rng, dense=i % 2 == 1) for i in range(captions)))


def said(stream: str, index: int, captions: int = 1) -> tuple[str, ...]:
    """The captions of sample `index` of a stream."""
    return _described(stream, index, captions)[1]


def _described(stream: str, index: int, captions: int) -> tuple[Scene, tuple[str, ...], np.random.Generator]:
    rng = np.random.default_rng([STREAMS[stream], index])
    scene = draw_scene(rng, held_out=stream != "train" and index % 2 == 1)
    return scene, tuple(caption(scene, rng, dense=i % 2 == 1) for i in range(captions)), rng


def pictures(stream: str, count: int, workers: int = 0, on_chunk: Callable[[int], None] = lambda done: None):
    """uint8 (count, 3, H, W) of the first scenes of a stream, by `workers` further processes."""
    chunks = [(stream, a, min(a + 512, count)) for a in range(0, count, 512)]
    images = []
    for chunk in _mapped(_render, chunks, workers):
        images.append(chunk)
        on_chunk(sum(map(len, images)))
    return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()


def samples(stream: str, count: int, captions: int = 1, workers: int = 0) -> list[Sample]:
    """The first samples of a stream."""
    chunks = [(stream, a, min(a + 512, count), captions) for a in range(0, count, 512)]
    return [s for chunk in _mapped(_samples, chunks, workers) for s in chunk]


def _mapped(function, arguments, workers):
    if workers < 2:
        yield from (function(*a) for a in arguments)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, *zip(*arguments, strict=True))


def _render(stream: str, start: int, stop: int) -> np.ndarray:
    return np.stack([render(sample(stream, i, 0).scene) for i in range(start, stop)])


def _samples(stream: str, start: int, stop: int, captions: int) -> list[Sample]:
    return [sample(stream, i, captions) for i in range(start, stop)]


def _false(scene: Scene, rng: np.random.Generator, dense: bool) -> str:
    # A caption of a scene in which little is different, that is not true of this one.
    for _ in range(TRIES):
        changed = _changed(scene, rng)
        text = caption(changed, rng, dense)
        if not true_of(wanted(text), scene):
            return text
    return caption(draw_scene(rng, held_out=False), rng, dense)


def _changed(scene: Scene, rng: np.random.Generator) -> Scene:
    # What captions say least of, where an object is, is changed most: else a CLIP model never learns it.
    things = list(scene.things)
    if rng.random() < 0.5:
        i, *others = (int(k) for k in rng.permutation(len(things)))
        if others:
            a, b = things[i], things[others[0]]  # the objects change places
            things[i], things[others[0]] = replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)
        else:
            moved = draw_scene(rng, held_out=False).things[0]
            things[i] = replace(things[i], x=moved.x, y=moved.y)
        return replace(scene, things=tuple(things))
    i, j = (int(k) for k in rng.integers(len(things), size=2))
    what = rng.integers(4)
    if i != j and what == 0:
        a, b = things[i], things[j]
        things[i], things[j] = replace(a, colour=b.colour), replace(b, colour=a.colour)
    elif what <= 1:
        things[i] = replace(things[i], shape=SHAPES[rng.integers(len(SHAPES))])
    elif what == 2:
        things[i] = replace(things[i], colour=COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))])
    else:
        things[i] = replace(
            things[i],
            texture=TEXTURES[rng.integers(len(TEXTURES))],
            size="small" if things[i].size == "large" else "large",
        )
    return replace(scene, things=tuple(things))
