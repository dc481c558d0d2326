"""`train-decoder`."""

from __future__ import annotations

from pathlib import Path

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
    """Train the decoder from the cache.

    An interrupted run is resumed; a finished one is not repeated.
    """
    from jzi.workspace.settings import load_settings

    settings = load_settings(config_file, overrides, training=("train", "decoder"))
    from jzi.commands.reports import training_text
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
            f"there is no encoder in {settings.encoder.name}, and the model folder needs a copy: set encoder.name to "
            f"the folder of {cache.encoder.label}"
        )
    options = settings.encoder
    name = settings.encoder_folder or options.name
    same = is_stored_encoder(cache.encoder, name, options.image_size, options.layout, options.resampling)
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
    print_result(as_json, report, training_text(report))
