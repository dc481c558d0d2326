"""`train-decoder`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import (
    experts_option,
    json_option,
    print_result,
    print_warnings,
    report_left_out,
    settings_options,
)


@click.command("train-decoder", short_help="Train the decoder and the other experts.")
@settings_options
@click.option("--also", "others", multiple=True, metavar="CACHE",
              help="Also train the experts cells and levels on another area: a cache with cells and photos; may be "
              "repeated.")  # fmt: skip
@experts_option("Experts of the model: zoom, cells, levels, vpr.  [default: all that the cache has the data for]")
@json_option
def train_decoder_command(
    config_file: Path,
    overrides: tuple[str, ...],
    others: tuple[str, ...],
    experts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the decoder and the other experts from the cache, and fit their fusion.

    An interrupted run is resumed; a finished one is not repeated.
    """
    from jzi.workspace.setup.settings_file import load_settings

    settings = load_settings(config_file, overrides, training=("train", "decoder", "heads"))
    from jzi.commands.shared.reports import experts_text, experts_values, training_text
    from jzi.encode.device import processes
    from jzi.store.plain import plain
    from jzi.workspace.training import ModelTraining

    training = ModelTraining.open(settings, experts, others)
    if processes().is_main_process:
        print_warnings(training.warnings)
    report, fused = training.run()
    if not processes().is_main_process:
        return
    report_left_out(report)
    for note in training.notes:
        click.echo(note, err=True)
    values = {**plain(report), **experts_values(fused), "warnings": list(training.warnings)}
    print_result(as_json, values, f"{training_text(report)}\n{experts_text(fused)}")
