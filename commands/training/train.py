"""`train-decoder`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import (
    UsageError,
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
    from jzi.decode.model import ZoomModel
    from jzi.encode.device import best_device, processes
    from jzi.encode.encoders.fingerprint import is_stored_encoder
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.disk.memory import memory_bytes
    from jzi.store.plain import plain
    from jzi.train.data import TrainingData
    from jzi.train.decoder import train_decoder
    from jzi.train.experts import (
        NEED_CELLS,
        check_experts,
        default_experts,
        fitting_experts,
        load_others,
        train_experts,
    )
    from jzi.train.run import lock_folder
    from jzi.train.zoom import check_overrides
    from jzi.workspace.inputs import load_encoder
    from jzi.workspace.setup.data_checks import photo_warnings

    cache = FeatureCache.open(settings.cache_path)
    if settings.encoder_folder is None and not cache.encoder.from_hub:
        raise UsageError(
            f"there is no encoder in {settings.encoder.name}, and the model folder needs a copy: set encoder.name to "
            f"the folder of {cache.encoder.label}"
        )
    options = settings.encoder
    name = settings.encoder_folder or options.name
    same = is_stored_encoder(cache.encoder, name, options.image_size, options.layout, options.resampling)
    cache.check(area=settings.pyramid, encoder=None if same else load_encoder(settings).info)
    init = settings.train.init
    start = ZoomModel.load(settings.path(init)) if init else None
    check_overrides(settings.decoder, settings.overridden, start, "train.init")
    names = check_experts(experts or default_experts(cache.has_cells), cache.has_cells, cache.path)
    unused = not any(name in NEED_CELLS for name in names)
    if unused and (ineffective := sorted(name for name in settings.overridden if name.startswith("heads."))):
        raise UsageError(f"--set {ineffective[0]} has no effect without the experts cells and levels: leave it out")
    if unused and others:
        raise UsageError("--also trains the experts cells and levels, which this model does not have: leave it out")
    warnings = photo_warnings(cache.queries.encoded_count())
    if processes().is_main_process:
        print_warnings(warnings)
    data = TrainingData.load(
        cache,
        best_device(),
        settings.train.views,
        cells=not unused,
        map_memory=memory_bytes(settings.map.memory),
        photo_memory=memory_bytes(settings.train.memory),
    )
    names, left_out = fitting_experts(data, names, bool(experts))
    if left_out and processes().is_main_process:
        click.echo(left_out, err=True)
    more = load_others(cache, others, settings.heads, best_device(), settings.train.views)
    heads_init = settings.heads.init
    folder = settings.path(settings.model.path)
    with lock_folder(folder):
        report = train_decoder(
            cache,
            folder,
            settings.decoder,
            settings.train,
            encoder_folder=settings.encoder_folder,
            start=start,
            settings=settings.to_toml(),
            data=data,
            experts_follow=True,
        )
        fused = train_experts(
            data,
            report.folder,
            names,
            settings.heads,
            views=settings.train.views,
            others=more,
            start=settings.path(heads_init) if heads_init else None,
            settings=settings.to_toml(),
        )
    if not processes().is_main_process:
        return
    report_left_out(report)
    if not experts and not cache.has_cells:
        click.echo(
            f"the experts cells and levels were left out: {cache.path} has no cells (`jzi encode-map --cells`)",
            err=True,
        )
    values = {**plain(report), **experts_values(fused), "warnings": list(warnings)}
    print_result(as_json, values, f"{training_text(report)}\n{experts_text(fused)}")
