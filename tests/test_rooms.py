"""The house: rooms lie on floors, as docs/design.md draws them, and imports run down."""

from __future__ import annotations

import ast
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "accel").rglob("*.py"))
# An import that runs up, or along a floor, as (file's room, imported room): why it must. At most four.
UPWARDS: dict[tuple[str, str], str] = {}


def room_of(file: Path) -> str:
    """The folder below accel/, or the file itself where it lies loose."""
    return file.parts[1].removesuffix(".py")


@cache
def floors() -> dict[str, int]:
    """Room -> floor, 0 the lowest, by the first diagram of rooms in docs/design.md."""
    drawing = re.search(r"```mermaid\n(%% rooms\n.*?)```", (ROOT / "docs" / "design.md").read_text(), re.S)[1]
    rows = [label.split(" · ") for label in re.findall(r'\["([^"]+)"\]', drawing)]
    return {room: height for height, row in enumerate(reversed(rows)) for room in row}


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}


@cache
def imported(file: Path) -> frozenset[Path]:
    """The files that a file imports anywhere in it: within functions and for type checkers, too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "accel":
            wanted = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted = [(alias.name,) for alias in node.names if alias.name.partition(".")[0] == "accel"]
        else:
            continue
        found |= {next((MODULES[name] for name in names if name in MODULES), None) for names in wanted}
    return frozenset(found - {None, file, Path("accel/__init__.py")})


def test_every_room_is_in_the_picture():
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms == set(floors())


@pytest.mark.parametrize("room", sorted(floors()))
def test_imports_run_down(room):
    wrong = [
        f"{file} imports {other}"
        for file in FILES
        if room_of(file) == room
        for other in imported(file)
        if room_of(other) != room
        and floors()[room_of(other)] >= floors()[room]
        and (room, room_of(other)) not in UPWARDS
    ]
    assert not wrong, "draw the rooms anew in docs/design.md, or turn these around: " + "; ".join(wrong)


def test_an_import_upwards_has_its_reason():
    assert len(UPWARDS) <= 4
    for (room, other), reason in UPWARDS.items():
        assert floors()[other] >= floors()[room]
        assert len(reason.split()) > 5


def test_no_files_import_each_other_in_a_circle():
    done: set[Path] = set()

    def visit(file: Path, path: tuple[Path, ...]) -> None:
        assert file not in path, " -> ".join(map(str, (*path[path.index(file) :], file)))
        if file not in done:
            for other in imported(file):
                visit(other, (*path, file))
            done.add(file)

    for file in FILES:
        visit(file, ())


def test_files_are_small_and_few_lie_loose():
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in FILES}
    assert {file: n for file, n in lines.items() if n > 400} == {}
    assert statistics.median(lines.values()) <= 180
    assert len([file for file in FILES if len(file.parts) == 2]) <= 9


def test_tests_mirror_the_rooms():
    rooms = {room_of(file) for file in FILES if len(file.parts) > 2}
    tested = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.rglob("test_*.py"))}
    assert rooms - tested == set()
