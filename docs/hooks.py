"""Hooks of mkdocs: tracked tables and figures become part of the site, where pages link to them as files of a clone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import messages
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DIAGRAM = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
NODE = re.compile(r"(\w+)[\[(]+\"([^\"]+)\"[\])]+")
OUTSIDE = re.compile(r"\]\(\.\./(results/[^)#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add every table as a page, a list of them, and the figures that pages show."""
    pages = [Path(file.abs_src_path).read_text() for file in files.documentation_pages() if file.abs_src_path]
    shown = {name for page in pages for name in OUTSIDE.findall(page) if name.endswith(".png")}
    tables = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "results/tables").glob("*.md"))
    for name in (*tables, *sorted(shown)):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "results/index.md", content=contents(tables)))
    files.append(File.generated(config, "messages.md", content=messages.page()))
    return files


def contents(tables: list[str]) -> str:
    """The list of all tables by their titles."""
    lines = ["# Tables", "", "The tracked tables, made by `make results` and from records alone by `make tables`.", ""]
    for name in tables:
        title = (ROOT / name).read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"* [{title}]({name.removeprefix('results/')}) (`{Path(name).stem}`)")
    return "\n".join(lines) + "\n"


def drawn(found: re.Match[str]) -> str:
    """A flowchart of Mermaid in plain text, a line for each arrow: to draw it would take a script from elsewhere."""
    names, lines, depth = dict(NODE.findall(found[1])), [], 0
    for line in NODE.sub(r"\1", found[1]).splitlines()[1:]:
        text = line.strip()
        if text in ("end", "") or text.startswith(("%%", "flowchart")):
            depth -= text == "end"
            continue
        arrow = re.sub(r" -- \"(.*?)\" --> | -\. \"(.*?)\" \.-> ", lambda a: f" ──({a[1] or a[2]})──▶ ", text).replace(
            "-->", "──▶"
        )
        shown = re.sub(r"\b\w+\b(?![^(]*\))", lambda word: names.get(word[0], word[0]), arrow)
        lines.append("  " * depth + (shown.removeprefix("subgraph ") + ":" if text.startswith("subgraph") else shown))
        depth += text.startswith("subgraph")
    return "```text\n" + "\n".join(lines) + "\n```"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ as links within the site. Tables are not searched: their numbers would bury the pages."""
    if page.file.src_uri.startswith("results/tables/"):
        page.meta["search"] = {"exclude": True}
        return re.sub(r"\]\(\.\./(figures/[^)]*)\)", r"]", markdown)
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace("](../results/tables)", f"]({up}results/index.md)").replace("](example_package)", "]")
    markdown = DIAGRAM.sub(drawn, markdown)
    return OUTSIDE.sub(lambda found: f"]({up}{found[1]}", markdown)
