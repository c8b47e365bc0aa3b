"""What tests of several processes share."""

import os
import time

import pytest

from accel.studies import samples


@pytest.fixture
def makers(tmp_path, monkeypatch):
    """makers(): who made which shard, as [recipe, first sample, process], in this process and those forked from it;
    each shard takes a tenth of a second more."""
    log, generate = tmp_path / "makers", samples.generate

    def slow(*args):
        with log.open("a") as file:
            file.write(f"{args[2].label} {args[4]} {os.getpid()}\n")
        time.sleep(0.1)
        return generate(*args)

    monkeypatch.setattr(samples, "generate", slow)
    return lambda: [line.split() for line in log.read_text().splitlines()]
