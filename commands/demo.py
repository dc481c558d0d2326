"""`demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="jzi-demo")
@click.option("--photos", type=click.IntRange(20), default=4096, show_default=True, help="How many to render.")
@click.option("--epochs", type=click.IntRange(1), help="Of the decoder's training.  [default: 3, or 20 from scratch]")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes another town.")
@click.option("--size", type=float, default=1280.0, show_default=True, help="Side of the town, metres.")
@click.option("--encoder", default="trained", show_default=True, help="trained, random, or an id or a folder.")
@click.option("--only-town", is_flag=True, help="Stop when there are the town, the encoder and a jzi.toml.")
def demo(folder: Path, photos: int, epochs: int | None, seed: int, size: float, encoder: str, only_town: bool) -> None:
    """Make a small town and run every command on it.

    Its encoder is a tiny one that comes with jzi, trained; or random, as it was before; or any that you name.
    """
    from jzi.demo.tour import run_demo

    run_demo(folder, photos=photos, epochs=epochs, seed=seed, size_m=size, encoder=encoder, only_town=only_town)
