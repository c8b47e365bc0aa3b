"""Captions are true, mean one thing, and say what is judged."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.suites.shapes import data
from accel.suites.shapes.adherence import right, true_of
from accel.suites.shapes.captions import (
    OPPOSITE,
    Order,
    Reading,
    Wanted,
    background,
    holds,
    place,
    readings,
    vocabulary,
    wanted,
)
from accel.suites.shapes.scene import Seen

SAMPLES = data.samples("prompts", 400, 2)


def test_captions_are_true_and_their_rivals_false():
    for s in SAMPLES:
        assert all(true_of(wanted(c), s.scene) for c in s.captions), s.captions
        assert not any(true_of(wanted(c), s.scene) for c in s.false), s.false


def test_many_rivals_differ_in_the_place_alone():
    """Pictures are told apart by shape and colour first: without such rivals a text encoder drops the places."""
    singles = [s for s in (data.sample("train", i) for i in range(900)) if len(s.scene.things) == 1]
    moved = 0
    for s in singles:
        (true,), (false,) = (wanted(text).things for text in (s.captions[0], s.false[0]))
        moved += (true.shape, true.colour) == (false.shape, false.colour) and false.place is not None
    assert moved / len(singles) > 0.25


def test_captions_name_every_object_and_the_ground_as_it_is():
    for s in SAMPLES:
        for text in s.captions:
            kinds = sorted((t.shape, t.colour) for t in wanted(text).things)
            assert kinds == sorted((t.shape, t.colour) for t in s.scene.things), text
            assert background(text) in (None, (s.scene.ground, s.scene.finish))


def test_one_scene_is_described_in_many_ways():
    texts = {data.sample("prompts", 5, 40).captions[i] for i in range(40)}
    assert len(texts) > 25


def test_dense_captions_say_where_everything_is_and_prompts_do_not():
    for s in SAMPLES:
        prompt, dense = (wanted(text) for text in s.captions)
        spots = sorted(place(t.x, t.y) for t in s.scene.things)
        assert sorted(t.place for t in dense.things) == spots
        assert not dense.relations
        assert len(prompt.things) == 1 or not any(t.place for t in prompt.things)


def test_every_word_is_in_the_vocabulary():
    words = {word for s in SAMPLES for c in s.captions for word in c.replace(",", " ,").split()}
    assert words <= set(vocabulary())
    assert len(words) > 0.95 * len(vocabulary())


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("a red circle", Order((Wanted("circle", "red"),))),
        (
            "a picture of a tiny stripy violet disc in the top left on a gray background",
            Order((Wanted("circle", "purple", "small", "striped", ("top", "left")),)),
        ),
        ("a cyan hoop with dots in the centre", Order((Wanted("ring", "cyan", None, "dotted", ("middle", "centre")),))),
        (
            "a big blue square to the left of an orange star",
            Order((Wanted("square", "blue", "large"), Wanted("star", "orange")), ((0, "left", 1),)),
        ),
        (
            "there is a red plus above a green ring and right of a solid pink triangle",
            Order(
                (Wanted("cross", "red"), Wanted("ring", "green"), Wanted("triangle", "pink", None, "plain")),
                ((0, "above", 1), (0, "right", 2)),
            ),
        ),
        ("a red star next to a red ring", Order((Wanted("star", "red"), Wanted("ring", "red")))),
        (
            "a red star in the centre, a red ring in the top left and a blue disc with dots in the bottom centre",
            Order(
                (
                    Wanted("star", "red", place=("middle", "centre")),
                    Wanted("ring", "red", place=("top", "left")),
                    Wanted("circle", "blue", None, "dotted", ("bottom", "centre")),
                )
            ),
        ),
    ],
)
def test_meaning(text, order):
    assert wanted(text) == order


def test_readings_grow_word_by_word():
    text = "there is a big red star with dots in the top left, a blue ring in the centre on a grey background"
    words = text.replace(",", " ,").split()
    found = dict(zip(words, readings(text), strict=True))  # the last of words that come twice
    assert found["star"] == Reading("star", "red", "large")
    assert found["dots"] == Reading("star", "red", "large", "dotted")
    assert found["top"] == found["dots"]
    assert found["left"] == Reading("star", "red", "large", "dotted", ("top", "left"))
    assert found["ring"] == Reading("ring", "blue")
    assert found["centre"] == Reading("ring", "blue", place=("middle", "centre"))
    assert {w for w, r in found.items() if r is None} == {"there", "is", "a", "big", "red", ",", "blue", "on", "grey",
                                                          "background"}  # fmt: skip


def test_words_of_a_relation_speak_of_the_first_object_and_the_others_know_where_they_are():
    text = "a red star to the left of a tiny blue ring and above a green cross"
    red, blue, green = ("star", "red"), ("ring", "blue", "small"), ("cross", "green")
    left, above = Reading(*red, relation="left"), Reading(*red, relation="above")
    right, below = Reading(*blue, relation="right"), Reading(*green, relation="below")
    none = None
    assert readings(text) == [
        none, none, Reading(*red), left, left, left, left, none, none, none, right, none, above, none, none, below
    ]  # fmt: skip


def test_the_last_readings_are_what_the_caption_wants():
    for s in SAMPLES[:100]:
        for text in s.captions:
            order, last = wanted(text), {}
            kinds = [(t.shape, t.colour) for t in order.things]
            if len(set(kinds)) < len(kinds):
                continue  # which of the two a word speaks of, is not to be told from what it says
            for said in filter(None, readings(text)):
                last[said.shape, said.colour] = said
            for thing in order.things:
                assert vars(thing).items() <= vars(last[thing.shape, thing.colour]).items(), text
            ways = {(i, r) for i, r, _ in order.relations} | {(j, OPPOSITE[r]) for _, r, j in order.relations}
            said = {(kinds.index((r.shape, r.colour)), r.relation) for r in readings(text) if r and r.relation}
            assert said == ways, text


def test_text_without_an_object_is_refused_with_an_example():
    with pytest.raises(ConfigError, match=r"names no object.*such as 'a small striped red"):
        wanted("a photograph of a cat")


def found(shape: str, colour: str, x: float, y: float, size: str = "large", texture: str = "plain") -> Seen:
    return Seen(shape, colour, size, texture, x, y)


CIRCLE, SQUARE = found("circle", "red", 16, 32), found("square", "blue", 48, 32)
ORDER = wanted("a large red circle left of a blue square")


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([CIRCLE, SQUARE], (2, True)),
        ([SQUARE, CIRCLE], (2, True)),
        ([CIRCLE], (1, False)),
        ([], (0, False)),
        ([found("circle", "blue", 16, 32), found("square", "red", 48, 32)], (0, False)),  # colours changed places
        ([found("circle", "red", 48, 32), found("square", "blue", 16, 32)], (1, False)),  # the wrong way round
        ([CIRCLE, SQUARE, found("star", "pink", 32, 50)], (2, False)),  # one too many
        ([found("circle", "red", 16, 32, "small"), SQUARE], (2, False)),  # a detail is wrong
    ],
)
def test_judgement_of_a_relation(objects, expected):
    assert right(ORDER, objects) == expected


def test_best_assignment_counts():
    """Two red circles: the left one is wanted, whichever is found first."""
    order = wanted("a red circle left of a red circle")
    pair = [found("circle", "red", 40, 30), found("circle", "red", 10, 30)]
    assert right(order, pair) == right(order, pair[::-1]) == (2, True)
    assert right(order, pair[:1])[0] == 1


@pytest.mark.parametrize(("x", "y", "count"), [(10, 10, 1), (23, 10, 1), (26, 10, 0), (50, 50, 0)])
def test_stated_field(x, y, count):
    assert right(wanted("a red star in the top left"), [found("star", "red", x, y)])[0] == count


def test_relations():
    assert holds("left", (10, 0), (20, 0))
    assert holds("above", (0, 10), (0, 20))
    assert not holds("right", (10, 0), (20, 0))
    assert not holds("below", (10, 0), (20, 0))
    assert not holds("left", (10, 0), (20, 0), gap=10)
