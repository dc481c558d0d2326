"""The reference of the commands, from click's own description of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from jzi.cli import main

HEAD = """# Commands

All commands of this version, with all options. `jzi COMMAND --help` prints the same. Every command that takes `--set`
can override every [setting](settings.md) that has an effect on it; [exit codes](output.md#exit-codes) are the same
everywhere.
"""


def commands_page() -> str:
    """Return the page as Markdown."""
    context = click.Context(main, info_name="jzi")
    names = main.list_commands(context)
    rows = [
        f"| [`jzi {name}`](#{_anchor(f'jzi {name}')}) | {main.commands[name].get_short_help_str(200)} |"
        for name in names
    ]
    parts = [HEAD, "| command | what it does |\n|---|---|\n" + "\n".join(rows) + "\n"]
    for name in names:
        parts += _sections(main.commands[name], context, name, 2)
    return "\n".join(parts)


def _sections(command: click.Command, parent: click.Context, name: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    path = context.command_path
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {path} {{ #{_anchor(path)} }}\n\n{_help(command.help or '')}\n\n```text\n{usage}\n```\n"
    rows = [row for parameter in command.get_params(context) if (row := _row(parameter, context))]
    if rows:
        yield "| option | value | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from _sections(command.commands[child], context, child, level + 1)


def _anchor(path: str) -> str:
    return path.replace(" ", "-")


def _help(text: str) -> str:
    """Paragraphs after a line with \\b keep their line breaks, as in a terminal."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{paragraph.removeprefix(chr(8)).strip(chr(10))}\n```"
        if paragraph.startswith("\b")
        else escape(paragraph)
        for paragraph in paragraphs
    )


def _row(parameter: click.Parameter, context: click.Context) -> str | None:
    if not isinstance(parameter, click.Option) or parameter.hidden or "--help" in parameter.opts:
        return None
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = (
        "" if parameter.is_flag or parameter.count else f"`{parameter.make_metavar(context)}`".replace("|", "&#124;")
    )
    record = parameter.get_help_record(context)
    meaning = record[1] if record else ""
    return f"| {names} | {value.replace('`', '')} | {escape(' '.join(meaning.split())).replace('|', '&#124;')} |"


def escape(text: str) -> str:
    """Escape what Markdown or HTML would take for markup in plain text, code in backticks excepted."""
    pieces = text.split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = pieces[i].replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")
    return "`".join(pieces)
