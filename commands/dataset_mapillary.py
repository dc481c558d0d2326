"""`jzi dataset mapillary`."""

from __future__ import annotations

import click


@click.command("mapillary")
def mapillary_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
