"""What several commands share: options, how a result is printed, and the error that is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jzi.store.photo_table import PhotoTable, Rejected
    from jzi.train.run import TrainReport


class UsageError(click.ClickException):
    """An error as one sentence on standard error, with exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"jzi: {self.format_message()}", err=True)


def settings_options(command: Callable) -> Callable:
    """--config and --set."""
    command = click.option(
        "--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True,
        help="The settings of the area.",
    )(command)  # fmt: skip
    return click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Override a setting; may be repeated."
    )(command)


beams_option = click.option(
    "--beams", type=click.IntRange(1), help="Tiles of a level to look into.  [default: all of a small map, else 64]"
)
retriever_option = click.option(
    "--retriever", type=click.Path(path_type=Path), metavar="FOLDER", help="Locate by flat retrieval, not by the zoom."
)
approximate_option = click.option(
    "--approximate", is_flag=True, help="Search the retriever's HNSW graph rather than all cells."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON objects, one to a line.")


def print_result(as_json: bool, values: dict[str, Any], text: str) -> None:
    """One JSON object, or the same for people."""
    click.echo(json.dumps(values) if as_json else text)


def list_rejected(rejected: tuple[Rejected, ...], what: str) -> None:
    """Count them, and name the first of each reason: a list of thousands helps nobody."""
    if not rejected:
        return
    click.echo(f"{len(rejected)} {what}:", err=True)
    reasons: dict[str, list[str]] = {}
    for each in rejected:
        reasons.setdefault(each.reason, []).append(each.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        click.echo(f"  {reason}: {', '.join(names[:5])}{more}", err=True)


def list_disagreements(table: PhotoTable) -> None:
    """Name the first photos whose published zoom sequence is not that of their position, and count them."""
    for each in table.disagreements[:10]:
        click.echo(f"  {each.name}: {each.reason}", err=True)
    if table.disagreements:
        click.echo(f"{len(table.disagreements)} photos have another zoom sequence than their position", err=True)


def report_unreachable(photos: int) -> None:
    """Say how many photos were left out, if any."""
    if photos:
        click.echo(f"{photos} photos left out: the map has no imagery where they were taken", err=True)


def report_left_out(report: TrainReport) -> None:
    """Say which photos a training did without, and what that meant."""
    report_unreachable(report.unreachable)
    if report.epochs and not report.val:
        click.echo("there is no photo with split 'val': the last epoch is kept", err=True)
