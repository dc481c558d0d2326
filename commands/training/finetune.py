"""`finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import json_option, list_rejected, print_result, report_left_out, settings_options


@click.command()
@settings_options
@click.option("--blocks", help="Number of the encoder's last blocks to train, or all.  [default: 4]")
@click.option("--also", "others", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Also train on another area: a folder with a jzi.toml; may be repeated.")  # fmt: skip
@click.option("-o", "--output", default="finetuned", show_default=True, help="The model folder to write.")
@json_option
def finetune(
    config_file: Path,
    overrides: tuple[str, ...],
    blocks: str | None,
    others: tuple[Path, ...],
    output: str,
    as_json: bool,
) -> None:
    """Train the encoder's last blocks and a decoder together.

    An interrupted run is resumed; a finished one is not repeated. Encode the map and the photos with the fine-tuned
    encoder afterwards.
    """
    from jzi.workspace.setup.settings import FILE
    from jzi.workspace.setup.settings_file import load_settings

    if blocks is not None:
        overrides = (*overrides, f"finetune.blocks={blocks}")
    settings = load_settings(config_file, overrides, training=("queries", "finetune", "decoder"))
    areas = [settings, *(load_settings(folder / FILE) for folder in others)]
    from jzi.commands.shared.reports import training_text
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.workspace.finetune import finetune_areas

    report, rejected = finetune_areas(areas, settings.path(output))
    if not processes().is_main_process:
        return
    list_rejected(rejected, "photos left out")
    list_rejected(report.unreadable, "photos cannot be read")
    report_left_out(report)
    print_result(as_json, {**plain(report), "unreadable": len(report.unreadable)}, training_text(report))
    if not as_json:
        click.echo(
            f'to use the encoder, set name = "{output}/encoder" under [encoder] of {config_file} and path = '
            '"finetuned.zarr" under [cache]; then run jzi encode-map, encode-queries and train-decoder'
        )
