"""The reference of the settings of jzi.toml, which describe themselves: `jzi.workspace.setup.settings_info`."""

from __future__ import annotations

from typing import Any

from jzi.docs.generate.commands import escape
from jzi.workspace.setup.settings_info import SettingInfo, describe_settings, toml_text

HEAD = """# Settings

`jzi init` writes `jzi.toml` with what is worth a change; `jzi settings` prints all settings, `jzi settings decoder`
those of a section, with the values in force. Each can be overridden in a command: `--set decoder.layers=4`; strings,
lists and tables as in TOML, bare words are strings. Unknown settings, values out of range and overrides without effect
are refused. Relative paths are relative to the folder of `jzi.toml`.

A square area has the sections from [`pyramid`](#pyramid) on; a [region](../how-to/statewide.md) has
[`region`](#region), [`statewide`](#statewide) and [`encoding`](#encoding) instead of the pyramid, the encoder and the
zoom; a [data set of pairs](../reproduce/unifygeo.md) has [`pairs`](#pairs).
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for section in describe_settings().values():
        rows = "\n".join(_row(each) for each in section.settings)
        table = f"| setting | default | allowed | meaning |\n|---|---|---|---|\n{rows}\n"
        parts.append(f"## {section.name}\n\n{escape(section.description)}\n\n{table}")
    return "\n".join(parts)


def _row(setting: SettingInfo) -> str:
    cells = (f"`{setting.name}`", _value(setting.default), escape(setting.allowed), escape(setting.description))
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _value(value: Any) -> str:
    return "" if value is None else f"`{toml_text(value)}`"
