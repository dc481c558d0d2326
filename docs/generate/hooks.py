"""Hooks of MkDocs: adds the pages that are made of the code, of executed notebooks and of documents of the root."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from jzi.docs.generate.commands import commands_page
from jzi.docs.generate.notebooks import notebook_files
from jzi.docs.generate.python_api import python_page
from jzi.docs.generate.settings import settings_page

#: Documents outside of docs/ that are pages too, by their path in the repository.
DOCUMENTS = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "project/results.md",
    "demo/README.md": "project/demo.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}

#: Pictures that they show.
PICTURES = {"benchmarks/scaling.png": "project/scaling.png"}

_LOADED = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^>]*>")
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    root = Path(config.config_file_path).parent
    pages: dict[str, str | bytes] = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/python.md": python_page(),
    }
    pages |= {page: (root / path).read_text() for path, page in DOCUMENTS.items()}
    pages |= {picture: (root / path).read_bytes() for path, picture in PICTURES.items()}
    for notebook in sorted((root / "docs" / "notebooks").glob("*.ipynb")):
        pages.update(notebook_files(notebook, root / "build" / "notebooks"))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of documents are those of the repository, so that they also work there: translate them."""
    uri = page.file.src_uri
    sources = {target: path for path, target in DOCUMENTS.items()}
    return relink(markdown, sources.get(uri, f"docs/{uri}"), uri)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Check that pages load nothing from other hosts: they work offline, and nobody learns who reads them.

    Raises:
        PluginError: a page does.
    """
    for page in Path(config.site_dir).rglob("*.html"):
        if loaded := _LOADED.search(page.read_text()):
            raise PluginError(f"{page.relative_to(config.site_dir)} loads from another host: {loaded[0]:.200}")


def relink(markdown: str, source: str, uri: str) -> str:
    """Translate the relative links of a document to those of the site.

    Args:
        markdown: its text.
        source: its path in the repository.
        uri: its path in the site.

    Example:
        >>> relink("[how](../benchmarks/RESULTS.md#experts)", "docs/tutorial.md", "tutorial.md")
        '[how](project/results.md#experts)'
    """

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        inside = path.removeprefix("docs/").replace(".ipynb", ".md") if path.startswith("docs/") else None
        page = {**DOCUMENTS, **PICTURES}.get(path, inside)
        if page is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(page, posixpath.dirname(uri) or '.')}{match[3] or ''})"

    return _LINK.sub(target, markdown)
