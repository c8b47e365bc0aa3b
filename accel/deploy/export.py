"""A recipe as a script, of diffusers alone where it can be, else with accel; or as a pipeline folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

import accel
from accel.deploy import further
from accel.deploy.model import needed
from accel.deploy.opened import Opened
from accel.deploy.plain import Plain, plain_of, source
from accel.deploy.recipe_file import copy_files
from accel.errors import ConfigError
from accel.files import write_atomic, writing
from accel.suites.base import Origin, Suite

SCRIPT = '''\
"""{title}

    python {name} {example}    writes 0-000000.png, 0-000001.png ...
"""

{modules}

import torch
{imports}from PIL import Image

{load}


def noise(seed, samples):
    """Sample i starts from the noise of (seed, i), as it did when the recipe was measured."""
    seeds = [hashlib.sha256(f"{{seed}}:{{i}}".encode()).digest()[:8] for i in samples]
    return [torch.Generator().manual_seed(int.from_bytes(own, "big") >> 1) for own in seeds]


def images(shown, seed=0):
    """A picture of each of `shown`: uint8 (N, C, H, W)."""
{begin}    made = pipe(
{call}
        generator=noise(seed, range(len(shown))),
        output_type="pt",
    ).images
    return (({scaled}.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


if __name__ == "__main__":
    for i, picture in enumerate(images(sys.argv[1:])):
        Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(f"0-{{i:06d}}.png")
'''
SHOWN = {"prompt": "shown", "class_labels": "list(map(int, shown))", "batch_size": "len(shown)"}
LOAD = """\
pipe = {cls}.from_pretrained(
    {arguments},
)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
pipe.set_progress_bar_config(disable=True)
{setup}"""
WITH_ACCEL = """\
pipe = open_recipe({arguments}).apply().pipe
pipe.set_progress_bar_config(disable=True)"""


def code(opened: Opened, name: str) -> tuple[str, list[str]]:
    """A script called `name` that makes the recipe's images, and which parts of the recipe need accel (none: it needs
    diffusers alone). ConfigError or IncompatibleError for a recipe that this model or machine cannot run, and for a
    model that shows nothing that can be asked for."""
    opened.check()
    found, suite = plain_of(opened), opened.suite
    if not suite.pictures:
        raise ConfigError(f"suite {suite.name!r} makes points, no pictures; there is nothing to export.")
    if suite.frames:
        raise ConfigError(
            "this model makes videos, and an exported script writes pictures; use accel.open_recipe(folder).apply() "
            "and call its pipe."
        )
    asked = _asked(suite)
    if shown := [name for name, value in asked.items() if _is_picture(value)]:
        raise ConfigError(
            f"calls of this model are told pictures ({shown[0]}), and an exported script shows words alone; use "
            "accel.open_recipe(folder).apply() and call its pipe with them."
        )
    key = next(own for own in SHOWN if own in asked)
    call = {key: SHOWN[key]} | {name: _every(value) for name, value in asked.items() if name != key}
    if found.reasons:
        title, imports, load = _with_accel(opened, found)
        begin, modules = list[str](), list[str]()
    else:
        title, imports, load = _alone(opened, found)
        begin, modules = found.begin, found.modules
        call |= {k: source(v) for k, v in (found.call | suite.guidance_arguments(opened.saved.recipe)).items()}
    signed = bool(suite.to_uint8(torch.zeros(1, 3, 1, 1)).max())  # 0 is grey: -1..1
    text = SCRIPT.format(
        title=title,
        name=name,
        example='"a prompt" "another"' if key == "prompt" else "3 5",
        modules="\n".join(f"import {module}" for module in sorted({"hashlib", "sys", *modules})),
        imports=imports,
        load=load.rstrip(),
        begin="".join(f"{lines}\n" for lines in begin),
        call="\n".join(f"        {name}={value}," for name, value in call.items()),
        scaled="made.float().cpu()" if signed else "(made.float().cpu() * 2 - 1)",
    )
    compile(text, name, "exec")
    return text, found.reasons


def _asked(suite: Suite) -> dict[str, Any]:
    try:
        return suite.asked(["0"])
    except ConfigError:  # an unconditional model, for which words are so many images
        return suite.conditions(0, 1)


def write_code(opened: Opened, path: Path) -> list[str]:
    """Write `code` to a file; which parts of the recipe need accel. ConfigError for a file that is there."""
    check_new(path)
    text, reasons = code(opened, path.name)
    write_atomic(path, text.encode())
    return reasons


def write_folder(opened: Opened, folder: Path) -> None:
    """The pipeline as `save_pretrained` writes it, plain, and beside its parts the recipe and the further networks that
    it names (accel.deploy.further): whole or absent.

        pipe = StableDiffusionPipeline.from_pretrained(folder)
        accel.apply(pipe, folder)

    ConfigError for a folder that is there, and for a further network that no folder can hold.
    """
    check_new(folder)
    opened.check()
    further.check(opened.saved, opened.models)
    for name, part in opened.pipe.components.items():
        if getattr(part, "peft_config", None):
            raise ConfigError(
                f"{name} has the layers of an adapter beside its weights, which a folder of diffusers does not hold; "
                "fuse them (suite.lora_fused=true), or export a script."
            )
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            opened.pipe.save_pretrained(temporary, safe_serialization=True)
            further.write(temporary, {name: opened.models[name] for name in sorted(needed(opened.saved.recipe))})
            copy_files(opened.path, temporary)
            os.chmod(temporary, 0o755)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_new(path: Path) -> None:
    """ConfigError if something is there already."""
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another name with --output, or delete it.")


def _alone(opened: Opened, found: Plain) -> tuple[str, str, str]:
    title = (
        f"{opened.saved.recipe.label}, as accel {accel.__version__} measured it on {opened.suite.name}: torch and "
        f"diffusers {diffusers.__version__}\nalone, no accel."
    )
    imports, load = _loaded(opened.suite.origin(), found.imports, found.setup + found.execution)
    first = sorted(line for line in found.further if line.startswith("import "))
    then = sorted({*found.further} - {*first})
    return title, "".join(f"{line}\n" for line in [*first, imports.rstrip(), *then]), load


def _with_accel(opened: Opened, found: Plain) -> tuple[str, str, str]:
    """Of diffusers' pipeline and accel.apply, which needs accel's core alone; else, where networks or the pipeline
    itself are the suite's, of the suite."""
    recipe, origin, path = opened.saved.recipe, opened.suite.origin(), str(opened.path.absolute())
    title = f"{recipe.label}, with accel {accel.__version__}, which it needs for\n{'; '.join(found.reasons)}."
    if origin is not None and not needed(recipe):
        imports, load = _loaded(origin, [], [*found.execution, f"accel.apply(pipe, {path!r})"])
        return title, f"import accel\n{imports}", load
    words = f", {list(opened.words)!r}" if tuple(opened.saved.suite) != opened.words else ""
    return title, "from accel.deploy.opened import open_recipe\n", WITH_ACCEL.format(arguments=f"{path!r}{words}")


def _loaded(origin: Origin, imports: Sequence[str], lines: Sequence[str]) -> tuple[str, str]:
    """The import, and the lines, that load a pipeline by diffusers and then do `lines`."""
    given = [repr(origin.model), *(f"{name}={source(value)}" for name, value in origin.options.items())]
    names = ", ".join(sorted({origin.name, *imports}))
    load = LOAD.format(cls=origin.name, arguments=",\n    ".join(given), setup="\n".join([*origin.lines, *lines]))
    return f"from diffusers import {names}\n", load


def _is_picture(value: Any) -> bool:
    one = value[0] if isinstance(value, list) and value else value
    return isinstance(one, (torch.Tensor, Image.Image))


def _every(value: Any) -> str:
    """An argument that is the same for every sample; of a list, one for each of them."""
    return f"[{source(value[0])}] * len(shown)" if isinstance(value, list) else source(value)
