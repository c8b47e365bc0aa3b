"""What offline runs of wandb hold, read from their own logs."""

from __future__ import annotations

import json
import struct
import time


def read_run(folder, patience=10):
    """What an offline run holds once its exit is written, which wandb's service does a moment after `finish`."""
    end = time.monotonic() + patience
    while (found := parse_run(folder))["exit"] is None and time.monotonic() < end:
        time.sleep(0.02)
    return found


def parse_run(folder):
    """Run, scalars (and by step), config, summary, artifacts by name and exit code in a run's binary log (LevelDB log
    format of protocol buffers)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("run-*.wandb")
    data, at, pieces = path.read_bytes(), 7, []
    found = {"history": {}, "rows": [], "summary": {}, "artifacts": {}, "exit": None}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pieces = [*(pieces if kind in (3, 4) else []), data[at + 7 : at + 7 + length]]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(b"".join(pieces))
            if record.HasField("run"):
                found["run"] = record.run
                found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                found["rows"].append(items)
                found["history"] |= items
            for item in record.summary.update:
                found["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            if record.HasField("artifact"):
                found["artifacts"][record.artifact.name] = record.artifact
            if record.HasField("exit"):
                found["exit"] = record.exit.exit_code
    return found


def runs_of(results):
    """What each offline run of a folder holds, by its name."""
    return {(found := read_run(f))["run"].display_name: found for f in (results.root / "wandb").glob("offline-run-*")}
