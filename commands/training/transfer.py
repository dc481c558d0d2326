"""`transfer`."""

from __future__ import annotations

from pathlib import Path

import click

from jzi.commands.shared.common import json_option, print_result, settings_options


@click.command()
@settings_options
@click.option("--model", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="A model with the experts cells and levels, trained in other areas.")  # fmt: skip
@json_option
def transfer(config_file: Path, overrides: tuple[str, ...], model: Path, as_json: bool) -> None:
    """Make a model for an area without training photos.

    Uses the experts of a model that was trained in other areas, on the map that `jzi encode-map --cells` encoded with
    that model's encoder.
    """
    from jzi.workspace.setup.settings_file import load_settings

    settings = load_settings(config_file, overrides, training=())
    from jzi.commands.shared.reports import transfer_text
    from jzi.encode.device import best_device
    from jzi.retrieve.transfer import transfer as transfer_experts
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.model_folder import lock_model
    from jzi.workspace.models.hub import local_folder

    cache = FeatureCache.open(settings.cache_path)
    cache.check(area=settings.pyramid)
    folder = settings.path(settings.model.path)
    with lock_model(folder):
        report = transfer_experts(local_folder(model), cache, folder, best_device())
    print_result(as_json, report, transfer_text(report))
