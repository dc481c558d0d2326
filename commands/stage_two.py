"""Stage two: `train-decoder`, `evaluate`, `locate`, `import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jzi.commands.common import (
    UsageError,
    json_option,
    print_result,
    report_left_out,
    settings_options,
)


@click.command("train-decoder")
@settings_options
@json_option
def train_decoder_command(config_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train the decoder off the cache.

    A run that was stopped goes on where it was; one that is done is left alone.
    """
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides)
    from jzi.decode.model import ZoomModel
    from jzi.encode.device import processes
    from jzi.encode.fingerprint import is_stored_encoder
    from jzi.store.cache import FeatureCache
    from jzi.train.decoder import train_decoder
    from jzi.train.zoom import check_overrides
    from jzi.workspace.open import load_encoder

    cache = FeatureCache.open(settings.cache_path)
    if settings.encoder_folder is None and not cache.encoder.from_hub:
        raise UsageError(
            f"there is no encoder in {settings.encoder.name} any more, and the model must carry it: set encoder.name "
            f"to the folder of {cache.encoder.label}"
        )
    options = settings.encoder
    name = settings.encoder_folder or options.name
    same = is_stored_encoder(cache.encoder, name, options.image_size, options.layout)
    cache.check(pyramid=settings.pyramid, encoder=None if same else load_encoder(settings).info)
    init = settings.train.init
    start = ZoomModel.load(settings.path(init)) if init else None
    check_overrides(settings.decoder, settings.overridden, start, "train.init")
    report = train_decoder(
        cache,
        settings.path(settings.model.path),
        settings.decoder,
        settings.train,
        encoder_folder=settings.encoder_folder,
        start=start,
        settings=settings.to_toml(),
    )
    if not processes().is_main_process:
        return
    report_left_out(report)
    print_result(as_json, report.to_dict(), f"{report.to_text()}: {report.folder}")


@click.command("import-checkpoint")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The model folder to make.")
@click.option("--encoder", default="facebook/dinov2-base", show_default=True, help="Id or folder of its config.json.")
@click.option("--heads", type=int, help="Of the decoder.  [default: what the checkpoint says, or 8]")
@click.option("--image-size", type=int, default=384, show_default=True, help="Side of a tile as it saw it, pixels.")
@click.option("--layout", default="halves", show_default=True, help="How a photo becomes squares.")
@click.option("--preset", default="just-zoom-in-dc", show_default=True, help="The area that it was trained on.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Take the area from a jzi.toml instead.")
def import_checkpoint_command(
    checkpoint: Path, output: Path, preset: str, config_file: Path | None, **options: Any
) -> None:
    """Make a model of a checkpoint of the reference implementation."""
    from jzi.store.pyramid import preset as published
    from jzi.workspace.settings import load_settings

    pyramid = load_settings(config_file).pyramid if config_file else published(preset)
    from jzi.decode.import_checkpoint import import_checkpoint

    import_checkpoint(checkpoint, output, pyramid, **options)
    sets = f"--set encoder.name={output / 'encoder'} --set encoder.image_size={options['image_size']}"
    click.echo(f"wrote {output}; for its map: jzi encode-map {sets}, then jzi locate --model {output} --cache CACHE")
