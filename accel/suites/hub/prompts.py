"""Prompts of a file, in an order that depends on nothing but the file.

    .json       COCO captions: of every image the caption with the smallest id, images in order of their ids; or a list
                of strings
    .txt        one prompt a line
    .csv .tsv   the column that `column` names

A file of N prompts has samples 0..N-1. More samples are refused, for a repeated prompt is not an independent sample:
`beyond=repeat` begins the file again, with other noise.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, unknown
from accel.metrics.statistics import MIN_N

FORMATS = (".json", ".txt", ".csv", ".tsv")
BEYOND = ("refuse", "repeat")
UNREADABLE = re.compile("[\\x00\\ud800-\\udfff]")  # half of a surrogate pair can come from JSON only


@dataclass(frozen=True)
class Prompts:
    """The prompts of `path`; `negative` is the negative prompt of every sample (None: the pipeline's own default)."""

    path: str | None = None
    column: str | None = None
    beyond: str = "refuse"
    negative: str | None = None

    def __post_init__(self) -> None:
        if self.beyond not in BEYOND:
            raise unknown("suite.prompts.beyond", str(self.beyond), BEYOND)

    def texts(self) -> tuple[str, ...]:
        """All prompts in order. Raises ConfigError for a missing, empty or unreadable file, naming line and byte."""
        if not self.path:
            raise ConfigError(
                "this model needs prompts, and suite.prompts.path is empty; give a COCO captions JSON, a text file of "
                "one prompt a line, or a CSV/TSV file with suite.prompts.column."
            )
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise ConfigError(f"there is no prompt file {path}; give one with suite.prompts.path.")
        stat = path.stat()
        return _texts(path, self.column, stat.st_size, stat.st_mtime_ns)

    def at(self, index: int) -> str:
        """The prompt of sample `index`."""
        texts = self.texts()
        return texts[index % len(texts) if self.beyond == "repeat" else index]

    def check(self, n: int) -> None:
        """Raise ConfigError if there are fewer than `n` prompts and repeating them is not allowed."""
        if self.beyond != "repeat" and (found := len(self.texts())) < n:
            fewer = f"evaluation.n={found}, " if found >= MIN_N else ""
            raise ConfigError(
                f"{self.path} has {found} prompts, and {n} samples are wanted; use {fewer}a longer file, or "
                "suite.prompts.beyond=repeat to begin the file again with other noise."
            )

    def sha256(self) -> str:
        """Hash of the prompts and their order, not of the file's format."""
        return hashlib.sha256("".join(f"{len(t)}:{t}\n" for t in self.texts()).encode()).hexdigest()


@lru_cache(maxsize=8)
def _texts(path: Path, column: str | None, size: int, modified: int) -> tuple[str, ...]:
    reader = {".json": _from_json, ".txt": _from_lines, ".csv": _from_table, ".tsv": _from_table}.get(path.suffix)
    if reader is None:
        raise ConfigError(f"the prompt file {path} ends in {path.suffix!r}; allowed: {', '.join(FORMATS)}.")
    places, texts = reader(path, _decoded(path), column)
    texts = [text.strip() for text in texts]
    for place, text in zip(places, texts, strict=True):
        if bad := UNREADABLE.search(text):
            raise ConfigError(f"{path}, {place}: there is U+{ord(bad[0]):04X} in it, which no text has; remove it.")
    if not texts:
        raise ConfigError(f"the prompt file {path} is empty; needed: at least one prompt.")
    empty = [place for place, text in zip(places, texts, strict=True) if not text]
    if empty:
        raise ConfigError(f"{path}: {len(empty)} prompts are empty, the first at {empty[0]}; remove or fill them.")
    return tuple(texts)


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}, line {line}. Convert it, for "
            f"instance: iconv -f ISO-8859-1 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error


def _from_lines(path: Path, text: str, column: str | None) -> tuple[list[str], list[str]]:
    # As wc and editors count them: not at U+2028 or U+0085, which may stand in a prompt.
    lines = text.rstrip().replace("\r\n", "\n").split("\n") if text.strip() else []
    if alone := [i for i, line in enumerate(lines, 1) if "\r" in line.strip()]:
        raise ConfigError(
            f"{path}, line {alone[0]}: there is a carriage return without a line feed, which some count as an end. "
            f"Convert it: tr '\\r' '\\n' < {path.name} > lines.txt"
        )
    return [f"line {i + 1}" for i in range(len(lines))], lines


def _from_table(path: Path, text: str, column: str | None) -> tuple[list[str], list[str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        return _column(path, rows, column)
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num + 1}: {error}. Quote its fields as RFC 4180 says.") from error


def _column(path: Path, rows: csv.DictReader, column: str | None) -> tuple[list[str], list[str]]:
    names = rows.fieldnames or []
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} has two columns of one name among {', '.join(names)}; rename one.")
    if column is None:
        raise ConfigError(f"{path} has the columns {', '.join(names)}; name the prompts' with suite.prompts.column.")
    if column not in names:
        raise unknown(f"column of {path.name}", column, names)
    places, found = [], []
    for row in rows:
        places.append(f"line {rows.line_num}")
        found.append(row[column] or "")
    return places, found


def _from_json(path: Path, text: str, column: str | None) -> tuple[list[str], list[str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return [f"item {i}" for i in range(len(content))], content
    try:
        first = _first_captions(content["annotations"])
        return [f"image {image}" for image in first], list(first.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is JSON, but not COCO captions ({type(error).__name__}: {error}); needed: an object with "
            "`annotations`, a list of objects with `image_id`, `id` and `caption`; or a list of strings."
        ) from error


def _first_captions(annotations: list[dict[str, Any]]) -> dict[Any, str]:
    """{image id: its caption with the smallest id}, in order of image ids."""
    ordered = sorted(annotations, key=lambda a: (a["image_id"], a["id"]), reverse=True)
    first = {a["image_id"]: a["caption"] + "" for a in ordered}
    return dict(sorted(first.items()))
