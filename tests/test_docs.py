"""The documentation: its links lead somewhere, and the commands, options and settings that it names exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import jzi
from jzi.cli import main
from jzi.workspace.setup.settings_info import describe_settings

ROOT = Path(jzi.__file__).parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "demo/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
#: Sections of settings whose names documents write in full.
SETTINGS = {setting.name for section in describe_settings().values() for setting in section.settings}


def links(page: str) -> Iterator[tuple[str, str]]:
    """Files and anchors that a page links to, without those of other hosts."""
    text = re.sub(r"^(```.*?^```|    .*?$)", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for path, anchor in links(page):
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page} links to {path}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page} links to {path}#{anchor}, which has no such heading"


def invocations(text: str) -> Iterator[list[str]]:
    """Command lines of jzi in code blocks and in inline code, split as by a shell, without the name."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^(?: {4,}|\$ )(.*)$", text, flags=re.M)
    blocks += re.findall(r"(?<!`)`(jzi [^`]+)`(?!`)", re.sub(r"\s*\n\s*", " ", text))
    for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, flags=re.M | re.S):
        blocks += block.splitlines()
    for line in blocks:
        for command in re.split(r"&&|\|\||;|\|", line):
            if match := re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(?:.*-m )?jzi (?!\w+:)(.*)", command):
                try:
                    yield shlex.split(match[1], comments=True)
                except ValueError:  # part of a command in quotes, or prose
                    continue


def unknown(tokens: list[str]) -> str | None:
    """The first word of a command line that jzi does not know."""
    command: click.Command = main
    while isinstance(command, click.Group) and tokens and re.fullmatch(r"[a-z][a-z-]+", tokens[0]):
        name, tokens = tokens[0], tokens[1:]
        if name not in command.commands:
            return f"the command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for option, value in zip(tokens, [*tokens, ""][1:], strict=True):
        name = option.partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z-]+", name) and name not in {*known, "--help", "--version"}:
            return f"the option {name} of {command.name}"
        if name == "--set" and "=" in value and value.partition("=")[0] not in SETTINGS:
            return f"the setting {value}"
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(("CHANGELOG", "benchmarks/RESULTS"))])
def test_commands_options_and_settings_in_the_documentation_exist(page: str) -> None:
    found = [(tokens, unknown(tokens)) for tokens in invocations((ROOT / page).read_text())]
    assert not [f"jzi {' '.join(tokens)}: {reason}" for tokens, reason in found if reason]


def test_the_check_of_commands_sees_what_is_wrong() -> None:
    lines = "    jzi loacte photo.jpg\n    jzi locate --abstian 3\n    python -m jzi ablate --set decoder.layer=4\n"
    assert [unknown(tokens) for tokens in invocations(lines)] == [
        "the command loacte", "the option --abstian of locate", "the setting decoder.layer=4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_documentation_mentions_every_command(name: str) -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES if page.startswith(("docs/", "README")))
    assert re.search(rf"\bjzi\s+{name}\b|`{name}\b", text), f"no page says what jzi {name} is for"


def test_every_page_is_once_in_the_navigation() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert pages <= set(listed), f"not in nav of mkdocs.yml: {sorted(pages - set(listed))}"
    assert len(set(listed)) == len(listed)


def test_no_summary_of_a_command_is_cut_in_a_terminal_of_80_columns() -> None:
    def listed(group: click.Command, path: str) -> Iterator[str]:
        context = click.Context(group, info_name=path, terminal_width=80, max_content_width=80)
        yield from (line for line in group.get_help(context).splitlines() if re.match(r"  \S+ .*\.\.\.$", line))
        for name, command in getattr(group, "commands", {}).items():
            yield from listed(command, f"{path} {name}")

    assert list(listed(main, "jzi")) == []
