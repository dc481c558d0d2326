"""`jzi dataset imagery`."""

from __future__ import annotations

import click


@click.command("imagery")
def imagery_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
