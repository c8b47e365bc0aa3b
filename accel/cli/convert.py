"""Convert the pickled weights of a pipeline folder to safetensors: accel convert <folder>

torch.load(weights_only=True) reads tensors and refuses everything else, so no code of the file runs. The pickles stay
where they are; only files without a safetensors twin are converted.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from accel.benches.options import Parser
from accel.errors import ConfigError
from accel.files import whole

TWINS = {"pytorch_model": "model", "diffusion_pytorch_model": "diffusion_pytorch_model"}  # of the safetensors


def main(words: Sequence[str]) -> int:
    """`accel convert <folder>`; prints the files written."""
    options = Parser(__doc__, "convert")
    options.add_argument("folder", type=Path)
    for path in convert(options.parse_args(words).folder):
        print(path)
    return 0


def convert(folder: Path) -> list[Path]:
    """The files written. Raises ConfigError if there are no pickles, or one that holds more than tensors."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give that of a pipeline, as save_pretrained writes it.")
    found = [p for p in sorted(folder.rglob("*.bin")) if p.name.partition(".")[0] in TWINS]
    if not found:
        raise ConfigError(f"{folder} has no pytorch_model.bin or diffusion_pytorch_model.bin; nothing to convert.")
    return [made for path in found if (made := _convert(path))]


def _convert(path: Path) -> Path | None:
    stem, _, rest = path.name.removesuffix(".bin").partition(".")
    target = path.with_name(".".join(filter(None, (TWINS[stem], rest, "safetensors"))))
    if target.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read, or holds more than tensors: {str(error).splitlines()[0]}") from error
    with whole(target) as temporary:
        save_file({k: v.clone().contiguous() for k, v in state.items()}, temporary, {"format": "pt"})
    return target
