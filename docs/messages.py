"""Every message of an error in accel's source, as text in which … stands for what differs from case to case."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ANY = "…"


def text_of(node: ast.AST) -> str:
    """A string as it is written, ANY in the place of every expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return ANY


def messages() -> Iterator[tuple[str, str]]:
    """(room, message) of each error that is made in accel/, in the order of the files."""
    for path in sorted((ROOT / "accel").rglob("*.py")):
        room = path.relative_to(ROOT / "accel").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error")
            if called and node.args and (said := text_of(node.args[0])).strip(f"{ANY}. "):
                yield room, " ".join(said.split())


def page() -> str:
    """All messages, room by room, as a page of the site."""
    rooms: dict[str, list[str]] = {}
    for room, message in messages():
        rooms.setdefault(room, []).append(message)
    lines = ["# All messages", "", "Every message of an error, by the room that it comes from (design, section 5); `…`"]
    lines[-1] += " stands for what differs from case to case. What people meet: [troubleshooting](troubleshooting.md)."
    for room, own in sorted(rooms.items()):
        lines += ["", f"## {room}", "", *(f"* ``{message}``" for message in sorted(set(own)))]
    return "\n".join(lines) + "\n"
