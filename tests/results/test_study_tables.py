"""Tables that are not of a study of recipes: convergence, compensation ratios, scheduler overhead."""

from __future__ import annotations

import csv

from accel.benches.cascade_table import write_cascade
from accel.benches.convergence_table import write_convergence
from accel.benches.overhead_table import write_schedulers
from accel.records import Results

WHERE = {"device_name": "CPU", "threads": 2}
HALF = {"value": 0.5, "lo": 0.4, "hi": 0.6}


def test_nothing_is_written_without_records(tmp_path):
    results = Results(tmp_path)
    assert write_convergence(results) == write_cascade(results) == write_schedulers(results) == []
    assert not list(tmp_path.iterdir())


def test_convergence_table_says_what_was_refused_and_what_diverged(tmp_path):
    results = Results(tmp_path)
    common = {"kind": "convergence", "scheduler": "S", "grid": "trailing", "end": "min", "theory": 2, "samples": 4}
    whole = [{"steps": n, "nfe": 2 * n, "error": e} for n, e in ((5, 0.5), (10, 0.125), (20, None))]
    results.save(common | {"id": "a", "place": 1, "sampler": "whole", "order": 2.0, "points": whole})
    results.save(common | {"id": "b", "place": 0, "sampler": "part", "order": None, "points": whole[:1]})
    table, values, figure = write_convergence(results)
    lines = [line for line in table.read_text().splitlines() if line.startswith(("| whole", "| part"))]
    assert lines == [
        "| part | 2 | 5.0e-01 | refused | refused | - | 2 |",
        "| whole | 2 | 5.0e-01 | 1.2e-01 | diverges | 2.00 | 2 |",
    ]
    assert len(list(csv.reader(values.open()))) == 1 + 1 + 3
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_ratio_table_marks_pairs_outside_the_range(tmp_path):
    results = Results(tmp_path)
    row = {"steps": 5, "scale": 1.0, "inside": False, "searched": [1, 1, 1.1, 1.2, 1.3], "predicted": [1.0] * 5,
           "distance": {"none": HALF, "searched": HALF, "predicted": HALF}}  # fmt: skip
    results.save({"kind": "cascade", "id": "a", "suite": "digits", "samples": 64, "dc_order": 2, "rows": [row],
                  "environment": WHERE})  # fmt: skip
    table, values = write_cascade(results)
    line = table.read_text().splitlines()[-1]
    assert line.startswith("| 5 | 1 (edge) |")
    assert line.endswith("| 1.10 1.20 1.30 | 1.00 1.00 1.00 |")
    assert len(values.read_text().splitlines()) == 4


def test_scheduler_table_keeps_the_order_of_the_benchmark(tmp_path):
    results = Results(tmp_path)
    for place, name in enumerate(("b", "a")):
        results.save({"kind": "scheduler", "id": name, "place": place, "scheduler": name, "ratio": HALF, "aa": HALF,
                      "step_us": HALF, "set_timesteps_ms": HALF, "steps": 20, "repetitions": 3,
                      "environment": WHERE})  # fmt: skip
    lines = write_schedulers(results)[0].read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| b", "| a"]
    assert "0.500 [0.400, 0.600]" in lines[-1]
