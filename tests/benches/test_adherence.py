"""Adherence by what prompts ask for, on found objects that are known to be right or wrong."""

from __future__ import annotations

import pytest

from accel.benches.adherence import LEAST, adherence
from accel.benches.adherence_table import write_adherence
from accel.records import Results
from accel.suites.shapes.adherence import judged
from accel.suites.shapes.captions import wanted
from accel.suites.shapes.scene import HELD_OUT, Seen

NEVER = HELD_OUT[0]
SEEN = ("star", "red")


def there(kind: tuple[str, str], x: float = 10, y: float = 10) -> Seen:
    return Seen(*kind, "large", "plain", x, y)


def test_each_object_has_its_own_verdict():
    order = wanted("a red star left of a blue square and above a green ring")
    star, square, ring = there(SEEN), there(("square", "blue"), 40), there(("ring", "green"), 10, 40)
    assert judged(order, [ring, square, star]) == ((True, True, True), True)
    assert judged(order, [star, there(("ring", "green"), 10, 5)]) == ((True, False, False), False)
    assert judged(order, []) == ((False, False, False), False)


@pytest.fixture(scope="module")
def found():
    """Of 80 prompts of one object, half of the 40 of a pair never seen are wrong; of 40 of two, each second object."""
    one = [f"a {colour} {shape}" for shape, colour in (SEEN, NEVER)] * LEAST
    two = ["a red star left of a blue square"] * LEAST
    objects = [[there(SEEN)], [there(NEVER)], [there(SEEN)], []] * (LEAST // 2) + [[there(SEEN)]] * LEAST
    return adherence([wanted(text) for text in one + two], objects)


@pytest.mark.parametrize(
    ("name", "share", "prompts"),
    [
        ("objects right", 100 / 160, 120),
        ("of prompts of one object", 60 / 80, 80),
        ("of prompts of two objects", 0.5, 40),
        ("in a relation said", 0.0, 40),
        ("of a shape and colour never seen together", 0.5, 40),
        ("of a shape and colour seen together in training", 80 / 120, 80),
        ("pictures with the right number of objects", 60 / 120, 120),
        ("pictures exact in every detail said", 60 / 120, 120),
    ],
)
def test_shares_are_of_objects_and_intervals_over_prompts(found, name, share, prompts):
    assert found[name].value == pytest.approx(share)
    assert found[name].n == prompts
    assert found[name].lo <= share <= found[name].hi


def test_rows_of_too_few_prompts_are_left_out(found):
    assert "of prompts of three objects" not in found
    assert "with their place said" not in found


def test_the_table_shows_generated_and_real(found, tmp_path):
    results = Results(tmp_path)
    assert write_adherence(results) == []
    values = {name: e.to_dict() for name, e in found.items()}
    where = {"device_name": "a processor"}
    common = {"kind": "adherence", "label": "unipc-50", "seed": 0, "real_n": 512, "environment": where}
    results.save(common | {"id": "old", "made": 1.0, "n": 60, "rows": [], "generated": {}, "real": {}})
    real = {"objects right": values["of prompts of two objects"]}
    names = list(reversed(values))
    results.save(common | {"id": "new", "made": 2.0, "n": 120, "rows": names, "generated": values, "real": real})
    (path,) = write_adherence(results)
    text = path.read_text()
    assert "120 prompts (seed 0)" in text
    row = next(line for line in text.splitlines() if line.startswith("| objects right |"))
    assert "| 120 | 62" in row
    assert row.endswith("50.0 |")
    shown = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert shown[-len(names) :] == names, "in the order of the record"
