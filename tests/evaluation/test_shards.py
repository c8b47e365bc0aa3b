"""Shards: round trip, damage of any kind, growth to a larger N, and the lock between processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from accel.errors import ConfigError
from accel.evaluation.shards import ShardStore, boundaries
from accel.locks import locked


def tensors(start: int, stop: int) -> dict[str, torch.Tensor]:
    """What a shard holds, a function of the sample's index."""
    index = torch.arange(start, stop)
    return {
        "images": index.reshape(-1, 1, 1, 1) + torch.zeros(len(index), 1, 2, 3),
        "features": (index[:, None] / 7).half().expand(-1, 4),  # not contiguous
        "score.accuracy": (index % 2).float(),
        "labels": index,
    }


@pytest.fixture
def store(tmp_path) -> ShardStore:
    return ShardStore(tmp_path, "run")


def filled(store: ShardStore, n: int, size: int) -> None:
    for a, b in store.missing(n, size):
        store.save(a, b, tensors(a, b))


def assert_equal(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# --- content


def test_round_trip(store):
    assert store.load(3, 8) is None
    store.save(3, 8, tensors(3, 8))
    assert_equal(store.load(3, 8), tensors(3, 8))
    assert store.damaged == []
    assert [p.name for p in store.folder.iterdir()] == ["000003-000008.safetensors"], "no temporary file is left"


def test_values_that_compare_badly_survive(store):
    odd = {
        "x": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "scalar": torch.tensor(2.5),
        "b": torch.tensor([True]),
        "empty": torch.zeros(0, 3),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
    }
    store.save(0, 4, odd)
    found = store.load(0, 4)
    assert found is not None
    for name in odd:
        assert found[name].dtype == odd[name].dtype
        assert torch.equal(found[name].float().nan_to_num(7), odd[name].float().nan_to_num(7))
    assert torch.signbit(found["x"][2])


def test_gather_concatenates_in_order(store):
    filled(store, 23, 10)
    assert_equal(store.gather(23, 10), tensors(0, 23))
    assert_equal(store.gather(10, 10), tensors(0, 10))


# --- damage


def test_every_flipped_bit_and_every_truncation_is_detected(store):
    """Wherever it hits: lengths, names, types, shapes, hash or data. Never a wrong tensor and never an exception."""
    store.save(0, 2, {"features": torch.tensor([[1.5], [2.5]]), "label": torch.tensor([3, 4], dtype=torch.uint8)})
    path = store.path(0, 2)
    intact = path.read_bytes()
    for position in range(len(intact)):
        for bit in (0, 3, 5):
            content = bytearray(intact)
            content[position] ^= 1 << bit
            path.write_bytes(content)
            assert store.load(0, 2) is None, (position, bit, bytes(intact[position : position + 1]))
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        assert store.load(0, 2) is None, length
    path.write_bytes(intact + b"x")
    assert store.load(0, 2) is None
    assert set(store.damaged) == {str(path)}
    path.write_bytes(intact)
    assert store.load(0, 2) is not None, "the file itself was in order"


@pytest.mark.parametrize(("old", "new"), [(b'"F32"', b'"I32"'), (b"[2,1]", b"[1,2]"), (b'"features"', b'"futures_"')])
def test_same_bytes_under_another_type_shape_or_name_are_damaged(store, old, new):
    store.save(0, 2, {"features": torch.tensor([[1.5], [2.5]])})
    content = store.path(0, 2).read_bytes()
    assert content.count(old) == 1
    store.path(0, 2).write_bytes(content.replace(old, new))
    assert store.load(0, 2) is None


def test_file_of_another_program_is_damaged(store):
    from safetensors.torch import save_file

    store.folder.mkdir(parents=True)
    save_file({"images": torch.zeros(2)}, store.path(0, 2))  # no hash
    assert store.load(0, 2) is None
    save_file({"images": torch.zeros(2)}, store.path(0, 2), {"other": "x"})
    assert store.load(0, 2) is None
    assert store.damaged == [str(store.path(0, 2))] * 2


def test_damaged_shard_is_missing_and_saving_it_again_mends_it(store):
    filled(store, 30, 10)
    path = store.path(10, 20)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.missing(30, 10) == [(10, 20)]
    assert store.damaged == [str(path)]
    store.save(10, 20, tensors(10, 20))
    assert store.missing(30, 10) == []
    assert_equal(store.gather(30, 10), tensors(0, 30))


# --- growth


def test_boundaries_cover_every_sample_once():
    for n in (1, 9, 10, 11, 64, 100):
        parts = boundaries(n, 10)
        assert [i for a, b in parts for i in range(a, b)] == list(range(n))
        assert all(a % 10 == 0 and 0 < b - a <= 10 for a, b in parts)


def test_larger_n_only_adds_shards(store):
    filled(store, 40, 10)
    before = {p.name: p.stat().st_mtime_ns for p in store.folder.iterdir()}
    assert store.missing(70, 10) == [(40, 50), (50, 60), (60, 70)]
    filled(store, 70, 10)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in store.folder.iterdir()}.items()
    assert store.missing(40, 10) == [], "and a smaller one needs nothing"
    assert_equal(store.gather(70, 10), tensors(0, 70))


def test_a_last_shard_that_was_cut_is_computed_again_whole(store):
    """Known cost of an N that is no multiple of the shard size: its last shard does not serve a larger N."""
    filled(store, 25, 10)
    assert store.missing(40, 10) == [(20, 30), (30, 40)]
    filled(store, 40, 10)
    assert store.missing(25, 10) == []
    assert_equal(store.gather(25, 10), tensors(0, 25))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "shards").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"cannot write .*000000-000002.* Choose a writable folder"):
        ShardStore(tmp_path, "run").save(0, 2, tensors(0, 2))


# --- lock


def _hold(path: str, shared: bool, ready, release) -> None:
    with locked(Path(path), shared=shared) as held:
        ready.put(held)
        release.get()


@pytest.fixture
def holder(tmp_path):
    """holder(shared=False) -> (process that holds the lock, function that asks it to let go)."""
    context = multiprocessing.get_context("fork")  # the child only takes the lock; a spawned one would load torch again
    processes = []

    def hold(shared: bool = False):
        ready, release = context.SimpleQueue(), context.SimpleQueue()
        process = context.Process(target=_hold, args=(str(tmp_path / "a" / ".lock"), shared, ready, release))
        process.start()
        processes.append(process)
        assert ready.get() is True
        return process, lambda: release.put(None)

    yield hold
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def free(path: Path, **kwargs) -> bool:
    with locked(path, wait=False, **kwargs) as held:
        return held


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_lock_excludes_another_process_until_it_lets_go(tmp_path, holder):
    path = tmp_path / "a" / ".lock"
    assert free(path)
    process, let_go = holder()
    assert not free(path)
    assert not free(path, shared=True)
    let_go()
    process.join(10)
    assert free(path)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_lock_is_freed_when_its_holder_is_killed(tmp_path, holder):
    path = tmp_path / "a" / ".lock"
    process, _ = holder()
    assert not free(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert path.exists(), "the file stays, the lock does not"
    assert free(path)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_waiting_for_a_lock_ends_when_it_is_freed(tmp_path, holder):
    import threading

    path = tmp_path / "a" / ".lock"
    process, let_go = holder()
    threading.Timer(0.2, let_go).start()
    start = time.monotonic()
    with locked(path) as held:
        assert held
        assert time.monotonic() - start > 0.1
    process.join(10)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_shared_locks_exclude_exclusive_ones_only(tmp_path, holder):
    """Many may generate while nobody times."""
    path = tmp_path / "a" / ".lock"
    holder(shared=True)
    assert free(path, shared=True)
    assert not free(path)


def test_lock_is_freed_after_an_exception(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / ".lock") as held:  # noqa: PT012
        assert held
        assert not free(tmp_path / ".lock"), "held against another descriptor of the same process too"
        raise KeyError
    assert free(tmp_path / ".lock")
