"""`import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jzi.commands.shared.common import UsageError, number, was_given
from jzi.locate.ranges import PIXELS


@click.command("import-checkpoint", short_help="Import a checkpoint of published code.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@click.option(
    "--encoder",
    default="facebook/dinov2-base",
    show_default=True,
    help="Hub id or folder with its config.json.",
)
@click.option("--heads", type=click.IntRange(1, 1024),
              help="Attention heads.  [default: as recorded in the checkpoint, else 8]")  # fmt: skip
@click.option("--image-size", type=number(PIXELS), default=384, show_default=True,
              help="Side of its input tiles, pixels.")  # fmt: skip
@click.option("--layout", type=click.Choice(["halves", "whole"]), default="halves", show_default=True,
              help="How photos are cut into squares.")  # fmt: skip
@click.option("--statewide", is_flag=True,
              help="The checkpoint is of state-wide retrieval (Fervers et al. 2024): last.safetensors of its authors' "
              "code. The encoder is in the checkpoint; of the other options only --image-size applies.")  # fmt: skip
@click.option("--preset", default="just-zoom-in-dc", show_default=True, help="The area that it was trained on.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Use the area of this jzi.toml instead.")
def import_checkpoint_command(
    checkpoint: Path,
    output: Path,
    statewide: bool,
    preset: str,
    config_file: Path | None,
    **options: Any,
) -> None:
    """Convert a checkpoint of the reference implementation to a model folder."""
    if statewide:
        _import_statewide(checkpoint, output, options["image_size"])
        return
    from jzi.store.geometry.pyramid import preset as published
    from jzi.workspace.setup.settings_file import load_settings

    pyramid = load_settings(config_file).pyramid if config_file else published(preset)
    from jzi.decode.import_checkpoint import import_checkpoint
    from jzi.store.model_folder import lock_model

    with lock_model(output):
        import_checkpoint(checkpoint, output, pyramid, **options)
    encoder = {"name": output / "encoder", "image_size": options["image_size"], "resampling": "reference"}
    settings = " ".join(f"--set encoder.{name}={value}" for name, value in encoder.items())
    click.echo(f"wrote {output}; next: jzi encode-map {settings}, then jzi locate --model {output} --cache CACHE")


def _import_statewide(checkpoint: Path, output: Path, image_size: int) -> None:
    for name in ("encoder", "heads", "layout", "preset", "config_file"):
        if was_given(name):
            option = "config" if name == "config_file" else name
            raise UsageError(f"--{option} does not apply to a checkpoint of state-wide retrieval: leave it out")
    from jzi.retrieve.import_statewide import import_statewide
    from jzi.store.model_folder import lock_model

    with lock_model(output):
        import_statewide(checkpoint, output, image_size=image_size)
    click.echo(f"wrote {output}; next, in the folder of a region (jzi init --region): jzi index --retriever {output}")
