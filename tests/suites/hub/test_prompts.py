"""Prompt files: formats, order, and what is said about files that cannot be used."""

from __future__ import annotations

import json

import pytest

from accel.errors import ConfigError
from accel.suites.hub.prompts import Prompts

COCO = {
    "annotations": [
        {"image_id": 9, "id": 30, "caption": "second image"},
        {"image_id": 4, "id": 12, "caption": "a later caption of the first image"},
        {"image_id": 4, "id": 11, "caption": " first image\n"},
    ],
    "images": [],
}


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


FILES = {
    "a.txt": ("first image\nsecond image\n\n", None),
    "b.txt": ("\ufefffirst image\r\nsecond image", None),
    "a.json": (json.dumps(COCO), None),
    "b.json": ('["first image", "second image"]', None),
    "a.csv": ('id,caption\n1,first image\n2,"second image"\n', "caption"),
    "a.tsv": ("caption\tid\nfirst image\t1\nsecond image\t2\n", "caption"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_prompts_and_the_same_hash(name, write):
    content, column = FILES[name]
    prompts = Prompts(write(name, content), column)
    assert prompts.texts() == ("first image", "second image")
    assert prompts.sha256() == Prompts(write("other.txt", FILES["a.txt"][0])).sha256()


ODD = (
    "a cat\u2028on a mat",
    "the sea\u0085at night",
    "one\u2029two",
    "one\x0btwo",
    "one\x0ctwo",
    "one\x1ctwo",
    "a dog",
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_where_wc_and_editors_end_it(write, end):
    assert Prompts(write("a.txt", end.join(ODD) + end)).texts() == ODD
    assert Prompts(write("b.txt", end.join(ODD))).texts() == ODD


def test_every_format_reads_odd_characters_as_they_are(write):
    assert Prompts(write("a.json", json.dumps(ODD))).texts() == ODD
    assert Prompts(write("a.csv", "id,caption\n" + "".join(f"1,{text}\n" for text in ODD)), "caption").texts() == ODD
    assert Prompts(write("a.tsv", "id\tcaption\n" + "".join(f"1\t{text}\n" for text in ODD)), "caption").texts() == ODD


def test_a_quoted_prompt_may_hold_commas_and_lines(write):
    path = write("a.csv", 'caption\n"red, green\nand blue"\n')
    assert Prompts(path, "caption").texts() == ("red, green\nand blue",)


WRONG = {
    "empty": ("a.txt", "\n \n", {}, "is empty; needed: at least one prompt"),
    "header only": ("a.csv", "caption\n", {"column": "caption"}, "is empty"),
    "empty list": ("a.json", "[]", {}, "is empty"),
    "a blank line": ("a.txt", "one\n\n\nfour\n", {}, "2 prompts are empty, the first at line 2"),
    "a blank cell": ("a.csv", "id,caption\n1,x\n2,\n", {"column": "caption"}, "the first at line 3"),
    "a short row": ("a.csv", "id,caption\n1\n", {"column": "caption"}, "the first at line 2"),
    "not UTF-8": ("a.txt", "one\ntwo\nna\xefve\n".encode("latin-1"), {}, "byte 0xef at offset 10, line 3"),
    "no column named": ("a.csv", "id,caption\n1,x\n", {}, "has the columns id, caption; name the prompts'"),
    "another column": ("a.csv", "id,caption\n1,x\n", {"column": "captoin"}, "Did you mean caption"),
    "no JSON": ("a.json", "{", {}, "is not JSON"),
    "another JSON": ("a.json", '{"annotation": []}', {}, "not COCO captions.*annotations"),
    "no caption": ("a.json", '{"annotations": [{"image_id": 1, "id": 2}]}', {}, "KeyError: 'caption'"),
    "number": ("a.json", '{"annotations": [{"image_id": 1, "id": 2, "caption": 3}]}', {}, "TypeError"),
    "old Macintosh": ("a.txt", "one\rtwo\rthree", {}, "line 1: there is a carriage return without a line feed.*tr "),
    "a zero byte": ("a.txt", "one\ntw\0o", {}, r"line 2: there is U\+0000 in it"),
    "UTF-16": ("a.txt", "one\ntwo".encode("utf-16"), {}, "is not UTF-8"),
    "UTF-16 without a mark": ("a.txt", "one\ntwo".encode("utf-16-le"), {}, r"U\+0000 in it"),
    "half a pair": ("a.json", '["one", "\\ud83d"]', {}, r"item 1: there is U\+D83D"),
    "deep": ("a.json", "[" * 100_000, {}, "is not JSON"),
    "a huge field": ("a.csv", "caption\n" + "x" * 200_000, {"column": "caption"}, "line 2: field larger than"),
    "two columns": ("a.csv", "caption,caption\nx,y\n", {"column": "caption"}, "two columns of one name"),
    "another suffix": ("a.yaml", "x", {}, r"ends in '.yaml'; allowed: .json, .txt, .csv, .tsv"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_unusable_files_are_refused_with_the_place(case, write):
    name, content, options, said = WRONG[case]
    with pytest.raises(ConfigError, match=said):
        Prompts(write(name, content), **options).texts()


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no prompt file"):
        Prompts(str(tmp_path / "none.txt")).texts()
    with pytest.raises(ConfigError, match=r"suite\.prompts\.path is empty; give a COCO captions JSON"):
        Prompts().texts()


def test_more_samples_than_prompts_are_refused_or_repeat(write):
    path = write("a.txt", "one\ntwo\n")
    with pytest.raises(ConfigError, match=r"has 2 prompts, and 3 samples are wanted; use a longer file"):
        Prompts(path).check(3)
    Prompts(path).check(2)
    repeating = Prompts(path, beyond="repeat")
    repeating.check(3)
    assert [repeating.at(i) for i in range(3)] == ["one", "two", "one"]
    with pytest.raises(ConfigError, match="Did you mean repeat"):
        Prompts(path, beyond="repeats")


def test_a_changed_file_is_read_again_and_order_matters(write):
    path = write("a.txt", "one\ntwo\n")
    before = Prompts(path).sha256()
    write("a.txt", "two\none\nx\n")
    assert Prompts(path).texts() == ("two", "one", "x")
    assert Prompts(path).sha256() != before
