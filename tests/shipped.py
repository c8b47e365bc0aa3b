"""What holds for the weights that every embedded suite ships."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open


def check_shipped(folder: Path, limit: float) -> None:
    """Files of at most `limit` bytes together, all in the manifest, no pickles; weights are half precision."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "MANIFEST.json"]
    assert sum(p.stat().st_size for p in files) < limit
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    listed = {name for name in json.loads((folder / "MANIFEST.json").read_text()) if not name.startswith("data:")}
    assert listed == {p.relative_to(folder).as_posix() for p in files}
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert weights
    for path in weights:
        with safe_open(path, "pt") as file:
            dtypes = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118 (not a dict)
        assert dtypes <= {torch.float16, torch.int64}, path.name  # int64: BatchNorm's counters
