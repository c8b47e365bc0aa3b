"""Make images with a recipe file, on the model that it was measured on:

    accel generate fast "a red circle" "two blue squares" --to images
    accel generate digits_recipe 3 5 --count 4          labels, of class-conditional models; four of each
    accel generate fast --count 8                       the suite's own samples 0 to 7, as they were measured
    accel generate fast "a cat" suite.model=<folder>    where the model is, if that is not where the file says

Sample i starts from the noise of (seed, i), as in every study. See docs/deploy.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.core.silence import silence_libraries
from accel.deploy.opened import open_recipe
from accel.deploy.pictures import pictures
from accel.deploy.suite_words import parted


def main(words: Sequence[str]) -> int:
    """`accel generate <recipe> [prompts or labels]`; prints the file of each image, and what it shows."""
    options = Parser(__doc__, "generate")
    options.add_argument("recipe", help="the folder of a recipe, or its .yaml file")
    options.add_argument(
        "shown", nargs="*", help="prompts or class labels (none: the suite's own samples); suite.* words"
    )
    options.add_argument("--to", default="images", help="the folder to write (default: images)")
    options.add_argument("--seed", type=int, default=0, help="base seed (default: 0)")
    options.add_argument("--count", type=int, default=1, help="images of each prompt or label (default: 1)")
    options.add_argument("--batch", type=int, default=8, help="images in one call of the pipeline (default: 8)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    args = options.parse_intermixed_args(words)
    suite, shown = parted(args.shown)
    silence_libraries()
    opened = open_recipe(args.recipe, suite, args.device)
    for path, said in pictures(opened, shown, Path(args.to), args.seed, args.count, args.batch):
        print(f"{path}  {said}".rstrip(), flush=True)
    return 0
