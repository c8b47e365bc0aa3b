"""Write the features of a folder of real images, as the reference of FID for suite hub:

    accel reference <folder> --network inception --weights <file> --size 512 --out coco.safetensors
    accel suite=sd15 suite.reference_images.path=coco.safetensors suite.feature_network=inception ...

A study then starts without reading the images again. The same --network, --weights and --size as in the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.errors import ConfigError
from accel.metrics.networks import feature_network
from accel.suites.hub import image_folder, real_images


def main(words: Sequence[str]) -> int:
    """`accel reference <folder> --size <pixels> --out <file>`."""
    options = Parser(__doc__, "reference")
    options.add_argument("folder")
    options.add_argument("--network", default="inception", help="inception, dinov2 or clip")
    options.add_argument("--weights", default=None, help="the network's file, folder or hub id")
    options.add_argument("--size", type=int, required=True, help="pixels: the size of the generated images")
    options.add_argument("--n", type=int, default=None, help="only the first n images")
    options.add_argument("--out", required=True, help="a .safetensors file")
    args = options.parse_args(words)
    write(args.folder, args.network, args.weights, args.size, args.n, Path(args.out))
    return 0


def write(folder: str, name: str, weights: str | None, size: int, n: int | None, out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out is {out}; allowed: a .safetensors file.")
    network = feature_network(name, weights)
    if network is None:
        raise ConfigError("--network is none; allowed: inception, dinov2, clip.")
    if reason := network.unavailable():
        raise ConfigError(reason)
    paths = image_folder.files(folder, n, real_images.LEAST)
    features = image_folder.features(paths, network, size, size)
    real_images.save(out, features, network, f"{Path(folder).name}, {size} x {size}, {image_folder.sha256(paths)}")
    print(f"{out}: {name} features of {len(features)} images")
