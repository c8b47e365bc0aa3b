"""Scores of the epoch before, brought up to this one without their samples.

Epoch 3 (of `accel.evaluation.score`) widens recall's interval for the points of the reference; all other values are
those of epoch 2. The delete-group values of a record are enough for it, so that no sample is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.evaluation.score import EPOCH
from accel.metrics.half_samples import widened
from accel.metrics.statistics import Estimate


def upgraded(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The quality record `record` of the epoch before as the record `key` of this one."""
    values = dict(record["values"])
    if "recall" in values:
        recall = Estimate.from_dict(values["recall"])
        values["recall"] = widened(recall, record["reference"]["n"]).to_dict()
    return {**record, "id": key, "epoch": EPOCH, "values": values}
