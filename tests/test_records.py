"""Records survive what happens to files: damage, killed processes, folders that cannot be written."""

import errno
import json
import math
import os
from dataclasses import dataclass, replace

import pytest

from accel.errors import ConfigError, IntegrityError, StorageError
from accel.files import write_atomic
from accel.records import Results, check_writable, describe, digest, read_json, write_json
from accel.results.comparison import Comparison

CONTENT = {"kind": "quality", "id": "abc", "label": "ddim-5", "suite": "digits", "n": 2000, "seed": 0,
           "values": {"fid_digits": {"value": 1.25, "n": 1000}}, "note": "Δ"}  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    EPOCH = 1
    steps: int = 10
    order: float = 2.0


@dataclass(frozen=True)
class Whole:
    sampler: Sampler | None = None
    grid: tuple[int, ...] = (1, 2)


def test_a_record_comes_back_equal(tmp_path):
    results = Results(tmp_path)
    path = results.save(CONTENT)
    assert path == tmp_path / "records" / "quality" / "abc.json"
    loaded = results.load("quality", "abc")
    assert {k: loaded[k] for k in CONTENT} == CONTENT
    assert loaded["schema"] == 1
    assert len(loaded["sha256"]) == 64
    assert results.all("quality") == [loaded]
    assert results.all("timing") == []
    assert results.load("quality", "other") is None


def test_a_loaded_record_can_be_saved_again_unchanged(tmp_path):
    results = Results(tmp_path)
    before = results.save(CONTENT).read_bytes()
    assert results.save(results.load("quality", "abc")).read_bytes() == before


def test_studies_are_listed_by_name(tmp_path):
    results = Results(tmp_path)
    assert results.studies() == []
    assert results.load_study("b") is None
    for name in ("b", "a"):
        results.save_study({"name": name, "suite": "digits", "rows": []})
    assert results.studies() == ["a", "b"]
    assert results.load_study("b")["rows"] == []


def damages(text):
    yield text.replace("1.25", "1.26")
    yield text.replace('"n": 1000', '"n": 5000')
    yield text[: len(text) // 2]
    yield ""
    yield "[]"
    yield json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"})


@pytest.mark.parametrize("which", range(6))
def test_damage_is_found_and_says_what_mends_it(tmp_path, which):
    path = Results(tmp_path).save(CONTENT)
    text = path.read_text()
    damaged = list(damages(text))[which]
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(IntegrityError, match=r"abc\.json is damaged.*Delete it"):
        read_json(path)


WRONG = {
    "values": [..., 5, {"fid": 5}], "n": ["x", None], "suite": [..., 3], "seed": [...], "label": [None],
               "id": ["other", ...]
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_record_that_lacks_what_all_have_is_damaged_whatever_its_hash_says(tmp_path, name, value):
    results = Results(tmp_path)
    path = results.save(CONTENT)
    write_json(path, {k: value if k == name else v for k, v in CONTENT.items() if k != name or value is not ...})
    with pytest.raises(IntegrityError, match=r"abc\.json is damaged: its .*Delete it"):
        results.load("quality", "abc")


ROW = {"label": "ddim-5", "role": "cell", "quality": "abc", "timing": None, "of": None, "refused": None}
ROWS = [5, {}, ROW | {"label": 5}, ROW | {"role": None}, ROW | {"of": 5}, ROW | {"refused": []}, ROW | {"quality": []},
        ROW | {"quality": "../../../../etc/passwd"}, ROW | {"timing": "/etc/passwd"},
        ROW | {"quality": "a/b"}]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_a_manifest_with_a_row_that_is_none_is_damaged_and_nothing_is_read_for_it(tmp_path, monkeypatch, row):
    results = Results(tmp_path)
    results.save_study({"name": "s", "suite": "digits", "rows": [ROW, row]})
    monkeypatch.setattr(Results, "load", lambda *args: pytest.fail("a record was read"))
    with pytest.raises(IntegrityError, match=r"s\.json is damaged.*Delete it"):
        Comparison.load(results, "s")


@pytest.mark.parametrize("failing", ["replace", "chmod"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_dies_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def die(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, failing, die)
    ours = pytest.raises(StorageError, match=r"No space left on device. Free some space and run the same command again")
    with pytest.raises(error) if isinstance(error, type) else ours:
        write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_option(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("accel.files.os.open", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied.*results="):
        check_writable(tmp_path)


def test_a_folder_below_a_file_is_an_error_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="results="):
        Results(tmp_path / "file").save(CONTENT)


def test_a_writable_folder_passes_and_stays_empty(tmp_path):
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_describe_is_stable(monkeypatch):
    for cls in (Whole, Sampler):
        monkeypatch.setattr(cls, "__module__", "accel.anywhere")
    whole = Whole(Sampler(8, math.inf), (3, 4))
    expected = {
        "type": "Whole",
        "sampler": {"type": "Sampler", "epoch": 1, "steps": 8, "order": "inf"},
        "grid": [3, 4],
    }
    assert describe(whole) == expected
    assert describe(Whole(Sampler(8, math.inf), (3, 4))) == expected
    assert digest(describe(whole)) == "f2df845a768c3112"  # an id that changes would orphan every stored record


def test_a_class_of_another_package_never_answers_for_one_of_accel(monkeypatch):
    own = Sampler.__module__.partition(".")[0]
    theirs = describe(Sampler())
    monkeypatch.setattr(Sampler, "__module__", "accel.anywhere")
    assert theirs == describe(Sampler()) | {"package": own}


@pytest.mark.parametrize(
    "other",
    [Whole(), Whole(Sampler(11)), Whole(Sampler(order=3.0)), Whole(Sampler(), (1, 3)), Whole(Sampler(), (1,))],
)
def test_describe_changes_with_every_field(other):
    assert digest(describe(other)) != digest(describe(Whole(Sampler())))


def test_describe_changes_with_the_epoch(monkeypatch):
    before = digest(describe(Whole(Sampler())))
    monkeypatch.setattr(Sampler, "EPOCH", 2)
    assert digest(describe(Whole(Sampler()))) != before


def test_describe_tells_methods_with_the_same_fields_apart():
    @dataclass(frozen=True)
    class Other:
        EPOCH = 1
        steps: int = 10
        order: float = 2.0

    assert describe(Other()) != describe(Sampler())
    assert describe(replace(Other())) == describe(Other())


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})


@pytest.mark.parametrize("name", ["open", "close", "chmod", "replace"])
def test_an_interrupt_at_any_moment_leaves_no_temporary_file(name, tmp_path, monkeypatch):
    """Right after each call of the system, the one that makes the file among them."""
    call = getattr(os, name)

    def interrupted(*args, **kwargs):
        call(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"accel.files.os.{name}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"x")
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == ({"file"} if name == "replace" else set())
