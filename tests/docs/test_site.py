"""The pages of docs/, without the tool that builds the site: places, links, Python, commands, the API's names."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from accel.config import choice_of, compose, expand_cells
from accel.registry import groups

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
GENERATED = {"results/index.md", "messages.md"}  # by docs/hooks.py


def navigation(entries: list) -> list[str]:
    values = [value for entry in entries for value in entry.values()]
    return [page for value in values for page in ([value] if isinstance(value, str) else navigation(value))]


def anchors(page: str) -> set[str]:
    """What headings of a page are called in links."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_has_one_place_in_the_navigation():
    """A new page of docs/ is a line below `nav` in mkdocs.yml."""
    assert sorted(navigation(SITE["nav"])) == sorted({*PAGES, *GENERATED})


def test_the_site_asks_no_other_machine():
    assert SITE["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "repo_url"} & set(SITE)
    assert not any(page.count("<script") + page.count("<iframe") for page in PAGES.values())


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target, section in re.findall(
        r"\]\(([^)#\s]*)#?([^)\s]*)\)", re.sub(r"```.*?```", "", PAGES[name], flags=re.S)
    ):
        if target.startswith("http"):
            continue
        path = (DOCS / name).parent / target if target else DOCS / name
        generated = path.resolve().is_relative_to(DOCS) and path.resolve().relative_to(DOCS).as_posix() in GENERATED
        assert path.exists() or generated, target
        if section:
            assert section in anchors(path.read_text()), (target, section)


@pytest.mark.parametrize("name", PAGES)
def test_no_table_has_a_bar_in_code(name):
    """GitHub prints it as it is meant, the site with the backslash before it."""
    assert re.findall(r"^\|.*`[^`|]*\\\|[^`]*`.*$", PAGES[name], re.MULTILINE) == []


@pytest.mark.parametrize("name", ["accelerate.md", "running.md"])
def test_blocks_of_python_run(name):
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})


def test_commands_of_running_compose():
    commands = re.findall(r"^accel ((?:-m )?\w+=.*)$", PAGES["running.md"], re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        for cell in expand_cells([[word for word in command.split() if word != "-m"]]):
            compose(cell)


def test_the_settings_that_running_explains_are_there():
    rows = re.findall(r"^\| `([\w.]+)=[^`]*` \|", PAGES["running.md"], re.MULTILINE)
    composed = compose([])
    assert len(rows) >= 10
    for name in rows:
        node = composed
        for key in name.split("."):
            assert key in node, name
            node = node[key]


def test_methods_are_all_on_their_page():
    table = PAGES["methods.md"]
    known = groups()
    missing = {
        f"{axis}={choice}"
        for axis in ("sampler", "grid", "guidance", "cache", "stitch", "skip", "precision")
        for choice in known[axis]
        if choice != "none" and f"`{choice}`" not in table
    }
    assert missing == set()


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("api/")])
def test_what_the_api_shows_is_there_and_explained(name):
    shown = re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", PAGES[name] + "\n", re.MULTILINE)
    assert shown
    for path, options in shown:
        found = locate(path)
        members = re.search(r"members: \[(.*?)\]", options, re.DOTALL)
        objects = [getattr(found, member.strip()) for member in members[1].split(",")] if members else [found]
        for thing in objects:
            assert (thing.__doc__ or "").strip(), (path, thing)


def locate(path: str):
    """The module, class or function of a dotted path."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(import_module(owner), name)


def test_the_class_of_every_registered_method_is_in_the_api():
    known = groups()
    shown = {word for name, page in PAGES.items() if name.startswith("api/") for word in re.findall(r"\w+", page)}
    axes = ("sampler", "grid", "guidance", "cache", "stitch", "skip", "precision")
    made = {type(choice_of(axis, choice)).__name__ for axis in axes for choice in known[axis] if choice != "none"}
    assert len(made) > 25
    assert made - shown == set()
