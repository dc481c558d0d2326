"""`jzi dataset filter`."""

from __future__ import annotations

import click


@click.command("filter")
def filter_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
