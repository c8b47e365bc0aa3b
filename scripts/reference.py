"""Write the features of a folder of real images, as the reference of FID for suite hub:

    python scripts/reference.py <folder> --network inception --weights <file> --size 512 --out coco.safetensors
    python -m accel suite=sd15 suite.reference_images.path=coco.safetensors suite.feature_network=inception ...

A study then starts without reading the images again. The same --network, --weights and --size as in the study.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accel.errors import AccelError, ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--network", default="inception", help="inception, dinov2 or clip")
    parser.add_argument("--weights", default=None, help="the network's file, folder or hub id")
    parser.add_argument("--size", type=int, required=True, help="pixels: the size of the generated images")
    parser.add_argument("--n", type=int, default=None, help="only the first n images")
    parser.add_argument("--out", required=True, help="a .safetensors file")
    args = parser.parse_args()
    try:
        write(args.folder, args.network, args.weights, args.size, args.n, Path(args.out))
    except AccelError as error:
        sys.exit(f"error: {error}")


def write(folder: str, name: str, weights: str | None, size: int, n: int | None, out: Path) -> None:
    from accel.metrics import feature_network
    from accel.suites.hub import image_folder, real_images

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


if __name__ == "__main__":
    main()
