"""`settings`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jzi.commands.shared.common import json_option, print_result, settings_options

if TYPE_CHECKING:
    from jzi.workspace.setup.settings_info import SectionInfo


@click.command("settings", short_help="List the settings of jzi.toml.")
@click.argument("section", required=False)
@settings_options
@json_option
def settings_command(section: str | None, config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the settings of jzi.toml: values, defaults, allowed values and meaning.

    SECTION is a section or a setting, such as train or decoder.layers; settings marked * are set in jzi.toml or by
    --set. Without a jzi.toml, the defaults are listed.
    """
    from jzi.store.plain import plain
    from jzi.workspace.setup.settings_info import describe_settings, select

    sections = describe_settings(config_file, overrides)
    for each in select(sections, section) if section else sections.values():
        if as_json:
            for setting in each.settings:
                print_result(True, plain(setting), "")
        else:
            click.echo(_section_text(each))


def _section_text(section: SectionInfo) -> str:
    """The name of a section, and two lines or more for each of its settings."""
    from jzi.workspace.setup.settings_info import toml_text

    width = _width()
    lines = [click.style(f"[{section.name}]", bold=True) + f"  {section.description}"]
    for each in section.settings:
        changed = each.source != "default"
        facts = [each.source] if changed else []
        facts += [f"default {toml_text(each.default)}"] if changed and each.default is not None else []
        facts.append(each.allowed)
        lines.append(f"{'*' if changed else ' '} {each.name} = {toml_text(each.value)}   ({'; '.join(facts)})")
        lines.append(click.wrap_text(each.description, width, "      ", "      "))
    return "\n".join(lines) + "\n"


def _width() -> int:
    """Columns of the terminal, at most 120; what is piped has 120."""
    import shutil

    return min(shutil.get_terminal_size((120, 24)).columns, 120) if sys.stdout.isatty() else 120
