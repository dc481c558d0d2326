"""`jzi dataset split`, `card` and `publish`."""

from __future__ import annotations

import click


@click.command("split")
def split_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")


@click.command("card")
def card_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")


@click.command("publish")
def publish_command() -> None:
    """Not built yet."""
    raise click.UsageError("not built yet")
