"""Take a recipe file out of accel: a script, or a pipeline folder.

    accel export fast --to code --output generate.py       python generate.py "a prompt"
    accel export fast --to folder --output pipeline        pipe = ...Pipeline.from_pretrained("pipeline")

The script is plain diffusers where the recipe allows it (diffusers' schedulers on any timesteps that they take, CFG,
casts, TF32, torch.compile, diffusers' own caches), else it needs accel, and says for what. The folder is the plain
pipeline with the recipe and the further networks that it names inside: accel.apply(pipe, "pipeline"). Both make the
images that `accel generate` makes. See docs/deploy.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.core.silence import silence_libraries
from accel.deploy.export import check_new, write_code, write_folder
from accel.deploy.opened import open_recipe
from accel.deploy.suite_words import check_words

OUTPUT = {"code": "generate.py", "folder": "pipeline"}


def main(words: Sequence[str]) -> int:
    """`accel export <recipe> --to code|folder`; prints what was written."""
    options = Parser(__doc__, "export")
    options.add_argument("recipe", help="the folder of a recipe, or its .yaml file")
    options.add_argument("suite", nargs="*", help="suite=... suite.<setting>=..., in the place of what the file says")
    options.add_argument("--to", required=True, choices=list(OUTPUT))
    options.add_argument("--output", help="the file or folder to write (default: generate.py, pipeline)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    args = options.parse_intermixed_args(words)
    check_words(args.suite, "accel export")
    silence_libraries()
    path = Path(args.output or OUTPUT[args.to])
    check_new(path)
    opened = open_recipe(args.recipe, args.suite, args.device)
    if args.to == "folder":
        write_folder(opened, path)
        print(path)
        return 0
    reasons = write_code(opened, path)
    print(f"{path}: {'needs accel for ' + '; '.join(reasons) if reasons else 'plain diffusers, no accel'}")
    return 0
