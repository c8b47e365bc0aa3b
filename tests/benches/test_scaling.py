"""What sharing costs, a small crowd, and the arithmetic of a large study."""

from __future__ import annotations

import multiprocessing
from dataclasses import asdict
from pathlib import Path

import pytest

from accel.benches.crowd import crowd
from accel.benches.scaling import lock_costs
from accel.benches.scaling_plan import Plan, disk, hours
from accel.benches.scaling_table import write_scaling
from accel.errors import ConfigError
from accel.records import Results


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_crowd_makes_every_shard_once_though_some_die(tmp_path):
    found = crowd(tmp_path, workers=12, shards=30, seconds=0.05, lease=3.0, dead=2, processes=3)
    assert (found["made"], found["twice"], found["left"]) == (30, 0, 0)
    assert found["wall"] > 3.0 > found["living"] > found["ideal"], "what the dead had comes after their lease"
    assert not multiprocessing.active_children()


def test_the_hours_of_a_plan():
    """By hand: 2 recipes of 100 images at 3 s, half of it: 300 s on one GPU; 4 s to score, 100 images read twice."""
    inputs = {"seconds": 3.0, "share": 0.5, "bandwidth": 1e5, "score": 4.0, "start": 5.0, "price": 36.0}
    plan = Plan(recipes=2, images=100, shard=10, bytes=1000, **inputs)
    assert disk(plan) == 200_000
    one, two = hours(plan, 1), hours(plan, 2)
    assert one["hours"] * 3600 == pytest.approx(5 + 300 + 15 + 2 * (4 + 2))
    assert two["hours"] * 3600 == pytest.approx(5 + 150 + 15 + 1 * (4 + 2))
    assert two["cost"] == pytest.approx(176 / 3600 * 2 * 36)
    assert two["efficiency"] == pytest.approx(150 / 176)
    with pytest.raises(ConfigError, match=r"--images is 0; allowed: an integer >= 1"):
        Plan(images=0)


def test_its_table(tmp_path):
    locks = lock_costs(tmp_path / "locks", 5)
    assert locks["flock"]["operations"] < locks["lease"]["operations"] < 30
    results = Results(tmp_path)
    assert write_scaling(results) == []
    one = {"workers": 12, "shards": 30, "seconds": 5.0, "lease": 20.0, "dead": 2, "made": 30, "twice": 0, "wall": 3.0,
           "living": 2.0, "ideal": 1.0, "claims": 40, "waits": 3, "left": 0}  # fmt: skip
    shard = {"generating_s": 2.0, "sharing_s": 0.01, "bytes": 75_000}
    results.save({"kind": "scaling", "id": "a" * 16, "locks": locks, "shard": shard, "crowds": [one],
                  "plan": asdict(Plan()), "environment": {"device_name": "a CPU", "threads": 2}})  # fmt: skip
    text = write_scaling(results)[0].read_text()
    assert "take 10.0 ms: 0.50 % of that" in text
    assert "| 12 | 2 | 30 | 30 | 0 | 0 | 20 | 1.0 | 2.0 | 3.0 |" in text
    assert "Shards need 3.78 TB" in text
    assert f"| 64 | {hours(Plan(), 64)['hours']:.1f} |" in text


def test_what_the_page_says_is_what_the_tracked_table_says():
    root = Path(__file__).parents[2]
    page, table = ((root / name).read_text() for name in ("docs/scaling.md", "results/tables/scaling.md"))
    rows = [line for line in page.splitlines() if line.startswith(("| 8 |", "| 16 |", "| 32 |", "| 64 |"))]
    assert len(rows) == 4
    assert all(row in table for row in rows)
    (lease,) = (r["locks"]["lease"] for r in Results(root / "results").all("scaling"))
    (record,) = Results(root / "results").all("scaling")
    share = 100 * record["shard"]["sharing_s"] / record["shard"]["generating_s"]
    (crowd,) = record["crowds"]
    requests = f"{lease['operations']:.0f}\nrequests to the folder, {lease['us'] / 1e3:.2f} ms"
    tried = f"{crowd['workers']:,} workers", f"{crowd['shards']:,} shards", f"{crowd['dead']} of them die"
    assert [said for said in (requests, f"{share:.2f} %", *tried) if said not in page] == []
    assert (crowd["made"], crowd["twice"], crowd["left"]) == (crowd["shards"], 0, 0)
