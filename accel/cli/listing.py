"""`accel list [group]`: a line for each choice, from its method's docstring, read without importing anything."""

from __future__ import annotations

import ast
import re
import shutil
import sys
import textwrap
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from accel.config import AXES, NO_METHOD, groups
from accel.errors import ConfigError, unknown
from accel.registry import Folder, file_of, folders

NUMBERS = r"(\d*|(\d+)?\[\w+\]|\((beta=)?[\d.]+(,>?[\d.-]+)*\))"  # what a label may have after a choice's name
DEFINED = (ast.ClassDef, ast.FunctionDef)
ABOUT = {
    "sampler": "the scheduler that takes the steps",
    "grid": "the timesteps that the sampler visits",
    "guidance": "how conditional and unconditional predictions are combined",
    "cache": "features reused from earlier steps",
    "stitch": "another model for part of the steps",
    "precision": "numbers of weights and activations, executed or simulated",
    "skip": "scaled skip connections",
    "student": "a distilled few-step network in the denoiser's place",
    "decoder": "a tiny network in the place of the autoencoder's decoder",
    "suite": "the model, its data and its reference",
    "evaluation": "samples, seeds and timing",
    "experiment": "whole studies",
    "search": "what is searched",
    "launcher": "what starts the workers of a study, where not this command does",
    "optimiser": "how a search looks for it",
}


def main(words: list[str]) -> int:
    known = groups()
    if len(words) > 1:
        raise ConfigError(f"accel list takes one group, not {len(words)}: accel list {words[0]}")
    if words and words[0] not in known:
        raise unknown("group", words[0], known)
    sys.stdout.write(choices(words[0], known[words[0]]) if words else overview(known))
    return 0


def overview(known: dict[str, list[str]]) -> str:
    """The groups and how many choices each has."""

    def lines(names: list[str]) -> str:
        count = {name: len([c for c in known[name] if c != "none"]) for name in names}
        return "".join(f"  {n:<11}{count[n]:>4}   {ABOUT.get(n, '')}".rstrip() + "\n" for n in names)

    axes = [axis for axis in AXES if axis in known]
    return (
        f"Axes of a recipe (<axis>=<choice>, none switches one off)\n{lines(axes)}\n"
        f"Other groups\n{lines([group for group in known if group not in AXES])}\n"
        "accel list <group> says what each choice is.\n"
    )


def choices(group: str, names: list[str]) -> str:
    """A line for each choice of a group."""
    files = {name: file_of(group, name) for name in names}
    targets = {name: _target(group, name) for name in names}
    shared = {target for target, count in Counter(targets.values()).items() if count > 1}
    width, columns = max(map(len, names)), min(shutil.get_terminal_size((120, 24)).columns, 140)
    text = f"{group}: {ABOUT.get(group, 'choices')}. Choose with {group}=<choice>\n"
    for name in names:
        file, folder = files[name]
        said = _described(file, targets[name], targets[name] in shared)
        said += "" if folder == folders()[0] else f" [{folder.source}]"
        text += textwrap.fill(
            f"  {name:<{width}}  {said}", max(columns, width + 40), subsequent_indent=" " * (width + 4)
        ).rstrip()
        text += "\n"
    return text


def _described(file: Path, target: str | None, shared: bool) -> str:
    if target == NO_METHOD:
        return "off"
    own = _comment(file)
    # A class of its own speaks for itself; where several choices are one class, their files say what tells them apart.
    docstring = docstring_of(target) if target else None
    return (own or docstring if shared else docstring or own) or ""


def meaning(axis: str, label: str, kind: str, package: str | None = None) -> str | None:
    """What a method is, in a sentence: of the choice that its label names, or else of its class, `kind`, of accel or of
    `package`. None where nothing of the sort is registered, or nobody says."""
    targets, top = _targets(axis, folders()), package or "accel"
    own = {c: t for c, t in targets.items() if t and t.partition(".")[0] == top}
    fits = {c: t for c, t in own.items() if t.rpartition(".")[2] == kind}
    # Several choices may be one class, and what tells them apart be a setting: their words hold only where the label is
    # a choice's name and numbers. What a function makes has no class of its own.
    named = next((choice for choice in fits or own if re.fullmatch(rf"{re.escape(choice)}{NUMBERS}", label)), None)
    if named is not None:
        file = file_of(axis, named)[0]
        shared = sum(target == own[named] for target in targets.values()) > 1
        return (_described(file, own[named], shared) if fits else _comment(file)) or None
    return docstring_of(next(iter(fits.values()))) if fits else None


@lru_cache(maxsize=16)
def _targets(axis: str, there: tuple[Folder, ...]) -> dict[str, str | None]:
    """The class of each choice of an axis in the config folders `there`, which are those of this process."""
    return {choice: _target(axis, choice) for choice in groups().get(axis, [])}


def _target(group: str, name: str) -> str | None:
    """The class of a choice; that of the choice it is based on, if it names none."""
    text = file_of(group, name)[0].read_text(encoding="utf-8")
    if match := re.search(r"^_target_: *(\S+)", text, re.MULTILINE):
        return match[1]
    bases = re.search(r"^defaults: *\[ *([\w.]+)", text, re.MULTILINE)
    return _target(group, bases[1]) if bases and bases[1] not in ("_self_", name) else None


def _comment(file: Path) -> str | None:
    """The first sentence of the comment that a file begins with; of an experiment its title."""
    text = file.read_text(encoding="utf-8")
    if match := re.search(r"""^title: *["']?(.*?)["']? *$""", text, re.MULTILINE):
        return match[1]
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# ").strip())
    return sentence(" ".join(lines)) or None


def docstring_of(target: str) -> str | None:
    """What the class `target` (dotted) is: the first sentence of its module's docstring, or of its own where the module
    holds several methods. Followed through re-exports, in any installed package; nothing is imported."""
    module, _, name = target.rpartition(".")
    for _ in range(4):  # a class may be re-exported from where it is re-exported
        file = _source(module)
        if file is None:
            return None
        if (tree := _tree(file)) is None:
            return None
        if own := next((n for n in tree.body if isinstance(n, DEFINED) and n.name == name), None):
            texts = ast.get_docstring(tree), ast.get_docstring(own)
            found = next((t for t in (texts[::-1] if _siblings(tree, own) else texts) if t), None)
            return found and re.sub(r"^Suite `\w+`: ", "", sentence(found.partition("\n\n")[0]))
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        if (found := _imported(tree, package, name)) is None:
            return None
        module, name = found
    return None


def _siblings(tree: ast.Module, own: ast.AST) -> bool:
    """Whether other methods are in the same file: classes with a base in common, or based on each other."""

    def family(node: ast.ClassDef) -> set[str]:
        return {node.name, *(ast.unparse(base) for base in node.bases)}

    others = [n for n in tree.body if isinstance(n, ast.ClassDef) and n is not own and not n.name.startswith("_")]
    return isinstance(own, ast.ClassDef) and any(family(own) & family(n) - {"ABC"} for n in others)


def _source(module: str) -> Path | None:
    """The file of a module. Only the top package is looked up: looking for a submodule would import its parents."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.origin:
        return Path(spec.origin)
    for place in spec.submodule_search_locations or ():
        path = Path(place, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@lru_cache(maxsize=128)
def _tree(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # of a foreign package: what it is stays unsaid
        return None


def _imported(tree: ast.Module, package: str, name: str) -> tuple[str, str] | None:
    """The module that a name is imported from, and what it is called there."""
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name:
                parents = package.split(".")[: len(package.split(".")) - max(0, node.level - 1)] if node.level else []
                return ".".join([*parents, *filter(None, [node.module])]), alias.name
    return None


def sentence(text: str) -> str:
    """The first sentence, on one line."""
    return re.split(r"(?<!e\.g)(?<!i\.e)\.\s+(?!\d)", " ".join(text.split()), maxsplit=1)[0].rstrip(".")
