"""Hooks of MkDocs: adds the pages that are made of the code and of the executed notebooks."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jzi.docs.generate.commands import commands_page
from jzi.docs.generate.notebooks import notebook_files
from jzi.docs.generate.python_api import python_page
from jzi.docs.generate.settings import settings_page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages: dict[str, str | bytes] = {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/python.md": python_page(),
    }
    for notebook in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        pages.update(notebook_files(notebook, Path(config.config_file_path).parent / "build" / "notebooks"))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files
