"""`demo`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from jzi.commands.shared.common import number
from jzi.errors import JziError
from jzi.locate.ranges import SEED, Range


@click.command(short_help="Try every command on a small synthetic town.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="jzi-demo")
@click.option("--photos", type=click.IntRange(20, 1_000_000), default=4096, show_default=True,
              help="Number of photos to render.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1, 100_000),
              help="Epochs of the decoder.  [default: 3, or 20 from scratch]")  # fmt: skip
@click.option("--seed", type=number(SEED), default=0, show_default=True, help="Seed of the town.")
@click.option("--size", type=number(Range(100, 20_000)), default=1280.0, show_default=True,
              help="Side of the town, metres.")  # fmt: skip
@click.option("--encoder", default="trained", show_default=True, help="trained, random, a Hugging Face id or a folder.")
@click.option("--only-town", is_flag=True, help="Stop after writing the town, the encoder and jzi.toml.")
def demo(folder: Path, photos: int, epochs: int | None, seed: int, size: float, encoder: str, only_town: bool) -> None:
    """Render a small synthetic town into FOLDER, jzi-demo by default, and run every command on it.

    By default the encoder is a tiny one that jzi includes, fine-tuned on this town; "random" is the same encoder before
    training.
    """
    from jzi.demo.tour import run_demo

    run_demo(
        folder, run_command, photos=photos, epochs=epochs, seed=seed, size_m=size, encoder=encoder, only_town=only_town
    )


def run_command(line: str) -> None:
    """Show a command of jzi and run it as a user would, within the one that is running.

    Raises:
        JziError: it fails.
    """
    context = click.get_current_context()
    root = context.find_root().command
    click.echo(f"\n$ jzi {line}")
    try:
        with root.make_context("jzi", shlex.split(line), parent=context) as inner:
            root.invoke(inner)
    except click.ClickException as error:
        raise JziError(error.format_message()) from error
