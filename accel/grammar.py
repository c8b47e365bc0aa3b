"""Overrides that Hydra's grammar cannot read, or reads as something else: one sentence that says what to type.

Hydra takes `= ( [ { & ' " #`, umlauts and more in a value only inside quotes, and a shell takes away quotes that are
not inside others, so the right word has two pairs of them: "results='outputs/a (1)'", 'cells=[["sampler=ddim"]]'.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accel.errors import ConfigError

Groups = Mapping[str, Sequence[str]]

PLAIN = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*=[\w./+-]*", re.ASCII)  # read by Hydra as it stands
NAME = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*(\[\d+\][\w.]*)*", re.ASCII)
UNQUOTED = re.compile(r"[\w\s/\\+.$%*@?|:,-]", re.ASCII)  # what a value may hold outside quotes
SEEDS = re.compile(r"evaluation\.seed=(\d+(?:,\d+)+)", re.ASCII)
LISTS = ("cells", "baseline", "transfer")  # settings whose items are overrides themselves
CELLS = """'cells=[["sampler=ddim","sampler.steps=5,10"],["sampler=heun"]]'"""


def check_override(word: Any, known: Groups, inside: bool = False) -> None:
    """Raise ConfigError, with what to type, unless `word` can be read; `known` are the choices of every group.

    inside: it stands inside a list (`cells`), where no shell takes its quotes away.
    """
    if not isinstance(word, str):
        raise ConfigError(f"{word!r} is not an override; allowed: text such as sampler.steps=5, in quotes.")
    sign, key, value = _parts(word)
    if key in known and "~" in sign:
        raise ConfigError(f"{word} would delete {key}, which a recipe needs; {_switched_off(key, known)}")
    if "=" not in word and "~" not in sign:
        raise ConfigError(f"{word!r} is not an override; {bare(word, known) or 'write <setting>=<value>.'}")
    if key in known and value in ("null", ""):
        raise ConfigError(f"{word} names no choice; {_switched_off(key, known)}")
    if not PLAIN.fullmatch(word):
        _parse(word, inside)


def bare(word: str, known: Groups) -> str | None:
    """What a word without `=` was probably meant to be, if it is the name of a group or a choice."""
    if word in known:
        return f"{word} is a group: write {word}=<choice>; `accel list {word}` shows the choices."
    groups = [group for group, choices in known.items() if word in choices and word not in ("none", "default")]
    return f"write {' or '.join(f'{group}={word}' for group in groups)}." if groups else None


def pooled(word: str) -> str:
    """`evaluation.seed=0,1,2` as the list that it means where one run is asked for: seeds whose samples are pooled."""
    match = SEEDS.fullmatch(word) if isinstance(word, str) else None
    return f"evaluation.seed=[{match[1]}]" if match else word


def check_overrides(name: str, value: Any) -> list[str]:
    """`value` as a list of overrides; ConfigError for any other shape."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
        raise ConfigError(
            f"{name} is {_shown(value)}; allowed: a list of overrides, each in quotes: "
            f"""'{name}=["sampler=ddim","sampler.steps=50"]'"""
        )
    return list(value)


def check_cells(name: str, value: Any) -> list[list[str]]:
    """`value` as a list of cells, each a list of overrides (or one text with spaces between them)."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ConfigError(
            f"{name} is {_shown(value)}; allowed: a list of cells, each a list of overrides in quotes: "
            f"{CELLS.replace('cells', name, 1)}"
        )
    cells = [cell.split() if isinstance(cell, str) else cell for cell in value]
    for cell in cells:
        if not isinstance(cell, Sequence) or not all(isinstance(override, str) for override in cell):
            example = CELLS.replace("cells", name, 1)
            raise ConfigError(f"{name} has the cell {_shown(cell)}; allowed: overrides in quotes, as in {example}")
    return [list(cell) for cell in cells]


def several(word: str, known: Groups) -> ConfigError:
    """For a value with commas where only one can be run."""
    sign, key, value = _parts(word)
    ways = ["add -m for one job each"]
    if key not in known:
        ways.append(f"write {in_shell(f'{sign}{key}=[{value}]')} for a list")
        ways.append(f"quote a comma that belongs to the text: {in_shell(f'{sign}{key}={quoted(value)}')}")
    return ConfigError(f"{word} has several values, and this is one run; {', or '.join(ways)}")


def in_shell(word: str) -> str:
    """`word` as it is typed in a shell."""
    if "'" in word and not set(word) & set('"$`!\\'):
        return f'"{word}"'
    return shlex.quote(word)


def _parse(word: str, inside: bool) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise _unreadable(word, inside) from error


def _reads(word: str, value: Any) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).value() == value
    except HydraException:
        return False


def _unreadable(word: str, inside: bool) -> ConfigError:
    sign, key, value = _parts(word)
    shown = (lambda text: text) if inside else in_shell
    if not NAME.fullmatch(sign + key):
        return ConfigError(
            f"cannot read {word!r}: {key!r} is not the name of a setting, which has letters, digits, _ and dots only. "
            "An override is <setting>=<value>; quote the whole of it where its value has spaces."
        )
    if value.startswith("=") and PLAIN.fullmatch(once := f"{sign}{key}={value.lstrip('=')}"):
        return ConfigError(f"cannot read {word!r}: it has {value.count('=') + 1} = in place of one; type {shown(once)}")
    brackets = "[]{}" if value[:1] in ("[", "{") else ""
    bad = {c for c in re.sub(r"""(['"]).*?\1""", "", value) if not UNQUOTED.fullmatch(c) and c not in brackets}
    why = f"{' '.join(sorted(bad))} can stand in a value only inside quotes" if bad else "its brackets do not fit"
    why += ", and the shell takes away quotes that are not inside others" if bad and not inside else ""
    if value.startswith("["):
        items = _items(value, key in LISTS)
        typed, meant = (None, None) if items is None else (f"{sign}{key}={_rendered(items)}", items)
    else:
        meant = value[1:].rstrip(value[0]) if value[:1] in ("'", '"') else value
        typed = f"{sign}{key}={quoted(meant)}"
    if typed is None or (isinstance(meant, str) and not _reads(typed, meant)) or not _readable(typed):
        example = CELLS if key in LISTS else in_shell(f"{key}='a (1)'")
        return ConfigError(f"cannot read {word!r}: {why}. Close its quotes and brackets, and quote as in {example}")
    return ConfigError(f"cannot read {word!r}: {why}. Type, with all these quotes: {shown(typed)}")


def _readable(word: str) -> bool:
    try:
        _parse(word, inside=True)
    except ConfigError:
        return False
    return True


def quoted(value: str) -> str:
    """`value` as text of an override, whatever is in it."""
    quote = '"' if "'" in value and '"' not in value else "'"
    escaped = re.sub(rf"(\\*)({quote}|$)", lambda m: m[1] * 2 + (f"\\{m[2]}" if m[2] else ""), value)
    return f"{quote}{escaped}{quote}"


def _items(text: str, overrides: bool) -> list[Any] | None:
    """The nested lists that `text` means, whose quotes may be lost; None if its brackets do not fit."""
    items, end = _list(text, 0, overrides)
    return items if not text[end:].strip() else None


def _list(text: str, at: int, overrides: bool) -> tuple[list[Any], int]:
    items: list[Any] = []
    at += 1
    while at < len(text) and text[at] != "]":
        if text[at] in ", ":
            at += 1
        elif text[at] == "[":
            nested, at = _list(text, at, overrides)
            items.append(nested)
        else:
            start, depth = at, 0
            while at < len(text) and (depth or text[at] not in ",]"):
                depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(text[at], 0)
                at += 1
            item = text[start:at].strip().strip("'\"")
            joins = overrides and items and isinstance(items[-1], str) and "=" in items[-1] and not _override(item)
            if joins:  # the comma was one between alternatives
                items[-1] += f",{item}"
            else:
                items.append(item)
    return items, at + 1


def _override(item: str) -> bool:
    return "=" in item or item.startswith("~")


def _rendered(item: Any) -> str:
    if isinstance(item, list):
        return f"[{','.join(map(_rendered, item))}]"
    if re.fullmatch(r"[\w.+-]+", item, re.ASCII):
        return item
    return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parts(word: str) -> tuple[str, str, str]:
    """Sign (`+`, `++`, `~`), name without package, and value."""
    head, _, value = word.partition("=")
    key = head.lstrip("+~")
    return head[: len(head) - len(key)], key.partition("@")[0].strip("/") if "@" in key else key, value.strip()


def _switched_off(group: str, known: Groups) -> str:
    if "none" in known[group]:
        return f"to switch it off choose `none`: {group}=none"
    return f"leave it out for the default, or choose one ({group}=<choice>): {', '.join(known[group])}."


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def command(overrides: Iterable[str]) -> str:
    """The command line that runs `overrides`; what is switched off is left out."""
    return "python -m accel " + " ".join(shlex.quote(o) for o in overrides if not o.endswith("=none"))
