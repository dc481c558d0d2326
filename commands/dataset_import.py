"""`jzi dataset import`."""

from __future__ import annotations

import click


@click.command("import")
def import_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
