"""mkdocs hooks: add the README, CHANGELOG, CONTRIBUTING and the notebooks (with stored outputs) as pages."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import griffe
import nbformat
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
COLUMNS: Final = re.compile(r"(?P<name>[\w+.*~/-]+(?:, [\w+.*~/-]+)*) {2,}(?P<text>\S.*)")  # of a docstring
LINK: Final = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project["urls"]["Repository"]
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, ROOT, config.repo_url)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point links that leave docs/ to the repository."""
    if page.file.generated_by is not None:
        return markdown
    return relinked(markdown, (DOCS / page.file.src_uri).parent, config.repo_url)


def relinked(text: str, folder: Path, repository: str) -> str:
    """The Markdown of a file in `folder` with its links rewritten: to pages of the site, else to the repository."""

    def target(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[1]))
        if path.is_relative_to(DOCS):
            return match[1] if folder.is_relative_to(DOCS) else path.relative_to(DOCS).as_posix()
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            return os.path.relpath(DOCS / PAGES[name], folder if folder.is_relative_to(DOCS) else DOCS)
        return f"{repository}/blob/main/{name}"

    return LINK.sub(target, text)


class Columns(griffe.Extension):
    """Render a docstring's parameters, written in two aligned columns, as a list."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """Markdown of a docstring, in which rows of aligned columns are items of a list."""
    lines: list[str] = []
    column = 0  # of the current item's text
    for line in text.split("\n"):
        if found := COLUMNS.fullmatch(line):
            lines += [] if column else [""]
            lines.append(f"- `{found['name']}`: {found['text']}")
            column = found.start("text")
        elif column and line[:column].isspace() and len(line) > column:
            lines.append(f"  {line.strip()}")
        else:
            lines += [""] * (column > 0 and line != "")
            lines.append(line)
            column = 0
    return "\n".join(lines)
