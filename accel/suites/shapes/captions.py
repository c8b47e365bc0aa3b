"""Captions of suite `shapes`: compositional English for a scene, and back: what a caption asks for.

    caption = [opening] objects [ground]          "a photo of a small striped red circle left of a blue square on grey"
    object  = a [size] [texture] colour shape     or "... shape with stripes"
    objects = A [place] | A relation B | A relation B and relation C | A, B and C
    dense   = A place [and B place] | A place, B place and C place

Every word has synonyms. `wanted` reads any caption of this grammar; what a caption leaves out is not wanted. Prompts
are captions; dense ones, which say where every object is, are for training: what pictures show and captions leave out
is learned late or never (Betker et al. 2023, "Improving Image Generation with Better Captions").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accel.errors import ConfigError
from accel.suites.shapes.scene import (
    COLOUR_NAMES,
    FINISHES,
    GROUND_NAMES,
    SHAPES,
    SIZE,
    SIZE_NAMES,
    TEXTURES,
    Scene,
    Thing,
)

# Words for each attribute, the usual one first.
WORDS = {
    "circle": ("circle", "disc"), "square": ("square",), "triangle": ("triangle",), "star": ("star",),
    "cross": ("cross", "plus"), "ring": ("ring", "hoop"),
    "small": ("small", "little", "tiny"), "large": ("large", "big"),
    "plain": ("plain", "solid"), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted"),
    "purple": ("purple", "violet"), "grey": ("grey", "gray"),
}  # fmt: skip
AFTER = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NEUTRAL = ("and", "next to", "beside")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
OPENINGS = ("", "", "a picture of ", "an image of ", "there is ")
FINISH_WORDS = {"flat": "", "gradient": "shaded ", "checked": "checked "}
PLACED = 0.5  # share of captions of one object that say where it is
GAP = 8.0  # pixels by which a stated relation holds in a scene
THIRD = SIZE / 3


@dataclass(frozen=True)
class Wanted:
    """One object that a caption asks for; None: not said. `place`: (row, column) of nine fields."""

    shape: str
    colour: str
    size: str | None = None
    texture: str | None = None
    place: tuple[str, str] | None = None


@dataclass(frozen=True)
class Order:
    """What a caption asks for: objects, and (i, relation, j): object i stands in relation to object j."""

    things: tuple[Wanted, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


def caption(scene: Scene, rng: np.random.Generator, dense: bool = False) -> str:
    """A true sentence about the scene; which facts it states, and in which words, is drawn by chance."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    body = _dense(things, rng) if dense else _related(things, rng)
    # Three objects with their places leave no room for more in the text encoder.
    short = dense and len(things) > 2
    ground = f" on a {FINISH_WORDS[scene.finish]}{_word(scene.ground, rng)} background" if rng.random() < 0.5 else ""
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    return body if short else f"{opening}{body}{ground}"


def _dense(things: Sequence[Thing], rng: np.random.Generator) -> str:
    *first, last = (f"{_phrase(t, rng)} {_where(t)}" for t in things)
    return f"{', '.join(first)} and {last}" if first else last


def _related(things: Sequence[Thing], rng: np.random.Generator) -> str:
    phrases = [_phrase(thing, rng) for thing in things]
    if len(things) == 1:
        return f"{phrases[0]} {_where(things[0])}" if rng.random() < PLACED else phrases[0]
    if len(things) == 2:
        return f"{phrases[0]} {_relation(*things, rng)} {phrases[1]}"
    if rng.random() < 0.35:
        return f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    first, second = (_relation(things[0], other, rng) for other in things[1:])
    second = "" if second == "and" else second + " "
    return f"{phrases[0]} {first} {phrases[1]} and {second}{phrases[2]}"


def _where(thing: Thing) -> str:
    row, column = place(thing.x, thing.y)
    return "in the " + ("centre" if (row, column) == ("middle", "centre") else f"{row} {column}")


def place(x: float, y: float) -> tuple[str, str]:
    """(row, column) of the nine fields that a point is in."""
    return ROWS[min(2, int(y / THIRD))], COLUMNS[min(2, int(x / THIRD))]


def holds(relation: str, a: tuple[float, float], b: tuple[float, float], gap: float = 0.0) -> bool:
    """Whether centre a stands in `relation` to centre b, by more than `gap` pixels."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    return {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation] > gap


def _phrase(thing: Thing, rng: np.random.Generator) -> str:
    size = _word(thing.size, rng) + " " if rng.random() < 0.6 else ""
    before = after = ""
    if rng.random() < (0.25 if thing.texture == "plain" else 0.85):
        if thing.texture in AFTER and rng.random() < 0.25:
            after = " " + AFTER[thing.texture][rng.integers(len(AFTER[thing.texture]))]
        else:
            before = _word(thing.texture, rng) + " "
    text = f"{size}{before}{_word(thing.colour, rng)} {_word(thing.shape, rng)}{after}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _relation(a: Thing, b: Thing, rng: np.random.Generator) -> str:
    true = [r for r in RELATIONS if holds(r, (a.x, a.y), (b.x, b.y), GAP)]
    if not true or rng.random() < 0.2:
        return NEUTRAL[rng.integers(len(NEUTRAL))]
    words = RELATIONS[true[rng.integers(len(true))]]
    return words[rng.integers(len(words))]


def _word(name: str, rng: np.random.Generator) -> str:
    words = WORDS.get(name, (name,))
    return words[0] if rng.random() < 0.7 else words[rng.integers(len(words))]


# --- and back

_MEANING = {word: name for name, words in WORDS.items() for word in words}
_MEANING |= {name: name for name in (*SHAPES, *COLOUR_NAMES, *TEXTURES, *SIZE_NAMES, *GROUND_NAMES)}
_AFTER = {phrase: texture for texture, phrases in AFTER.items() for phrase in phrases}


def _any(names: Sequence[str]) -> str:
    return "|".join(sorted((w for w, m in _MEANING.items() if m in names), key=len, reverse=True))


_THING = re.compile(
    rf"\ban? (?:(?P<size>{_any(SIZE_NAMES)}) )?(?:(?P<texture>{_any(TEXTURES)}) )?(?P<colour>{_any(COLOUR_NAMES)}) "
    rf"(?P<shape>{_any(SHAPES)})(?: (?P<after>{'|'.join(_AFTER)}))?\b"
)
_PLACE = re.compile(rf"^ in the (?:(?P<row>{'|'.join(ROWS)}) (?P<column>{'|'.join(COLUMNS)})|centre)")
_RELATED = re.compile(
    "(?:"
    + "|".join(f"(?P<{name}>{'|'.join(sorted(words, key=len, reverse=True))})" for name, words in RELATIONS.items())
    + ")"
)


def wanted(text: str) -> Order:
    """What a caption asks for; ConfigError if it names no object."""
    found = list(_THING.finditer(text))
    if not found:
        raise ConfigError(
            f"the caption {text!r} names no object; suite shapes understands phrases such as 'a small striped red "
            "circle left of a blue square'."
        )
    things, relations = [], []
    for i, match in enumerate(found):
        said = {k: _MEANING[v] for k, v in match.groupdict().items() if v and k != "after"}
        if match["after"]:
            said["texture"] = _AFTER[match["after"]]
        where = _PLACE.match(text[match.end() :])
        spot = (where["row"] or "middle", where["column"] or "centre") if where else None
        things.append(Wanted(said["shape"], said["colour"], said.get("size"), said.get("texture"), spot))
        between = text[found[i - 1].end() : match.start()] if i else ""
        if related := _RELATED.search(between):
            # The subject is the first object: "A left of B and above C".
            relations.append((0, related.lastgroup, i))
    return Order(tuple(things), tuple(relations))


@dataclass(frozen=True)
class Reading(Wanted):
    """What the words so far have said of one object; `relation`: how it stands to the other one, if just said."""

    relation: str | None = None


def readings(text: str) -> list[Reading | None]:
    """What each word (commas are words) knows of the object it speaks of; None: it speaks of none.

    Phrases are read from the shape on: "a red star in the top left" says the place at "left". In "a red star left of a
    blue ring", "left" and "of" speak of the star (it is to the left), "ring" of the ring (to the right).
    """
    words = list(re.finditer(r"\w+|,", text))
    said: list[Reading | None] = [None] * len(words)
    found, order = list(_THING.finditer(text)), wanted(text)

    for index, match in enumerate(found):
        relation = next((r for _, r, other in order.relations if other == index), None)
        if relation:
            near = _RELATED.search(text, found[index - 1].end(), match.start())
            for i in _within(words, *near.span()):
                said[i] = Reading(**vars(order.things[0]), relation=relation)
        where = _PLACE.match(text[match.end() :])
        for i in _within(words, match.start("shape"), match.end() + (where.end() if where else 0)):
            thing = wanted(text[match.start() : words[i].end()]).things[0]
            said[i] = Reading(**vars(thing), relation=OPPOSITE.get(relation))
    return said


def _within(words: Sequence[re.Match], start: int, stop: int) -> list[int]:
    return [i for i, word in enumerate(words) if start <= word.start() and word.end() <= stop]


def background(text: str) -> tuple[str, str] | None:
    """(ground, finish) that a caption asks for, or None."""
    match = re.search(rf"on a (?:(shaded|checked) )?({_any(GROUND_NAMES)}) background", text)
    if not match:
        return None
    finish = next(f for f in FINISHES if FINISH_WORDS[f].strip() == (match[1] or ""))
    return _MEANING[match[2]], finish


def vocabulary() -> list[str]:
    """Every word that captions are made of."""
    phrases = [
        *(w for words in WORDS.values() for w in words),
        *(p for ps in (*AFTER.values(), *RELATIONS.values()) for p in ps),
    ]
    phrases += [*SHAPES, *COLOUR_NAMES, *TEXTURES, *SIZE_NAMES, *GROUND_NAMES, *NEUTRAL, *ROWS, *COLUMNS, *OPENINGS]
    phrases += [*FINISH_WORDS.values(), "in the centre on a background and an ,"]
    return sorted({word for phrase in phrases for word in phrase.split()})
