"""Measure experts in towns that nothing was trained on, as a user without training photos has them.

    for seed in 1 2 101 102 103 104 105 106 107 108; do jzi demo town-$seed --seed $seed --photos 2048 --only-town; done
    cd town-101; jzi finetune -o ../finetuned ... --also ../town-102 ...; cd ..
    python -m benchmarks.unseen --encoder finetuned/encoder town-10? --test town-1 --test town-2

Encodes all towns, trains the experts cells and levels on the training photos of the first ones together, transfers them
to the towns of --test, and locates photos of all splits there. Caches and models are reused when it is run again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import click
import numpy as np
import torch

from jzi.benchmarks.device import device_option
from jzi.decode.config import DecoderConfig
from jzi.encode.device import best_device
from jzi.encode.encode_cells import index_cells
from jzi.encode.encode_map import encode_map
from jzi.encode.encode_queries import encode_queries
from jzi.errors import TrainingError
from jzi.evaluate.experts import evaluate_experts
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.expert import Expert
from jzi.retrieve.transfer import transfer
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.model_config import TransferModelConfig, read_config
from jzi.train.config.training import TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import train_decoder
from jzi.train.experts import load_others, train_experts
from jzi.workspace.inputs import load_encoder, open_cache, open_imagery, open_photo_table
from jzi.workspace.models.experts import load_transferred
from jzi.workspace.setup.settings import FILE, Settings
from jzi.workspace.setup.settings_file import load_settings

RADII = (20.0, 50.0, 100.0)

#: The zoom that a model folder needs; it is not transferred.
DECODER, ONE_EPOCH = DecoderConfig(layers=1, heads=4), TrainConfig(epochs=1)


def encode(settings: Settings) -> FeatureCache:
    """Encode what a town's cache lacks: tiles, cells and photos."""
    encoder = load_encoder(settings)
    with open_imagery(settings) as imagery:
        cache = open_cache(settings, encoder, imagery)
        encode_map(cache, encoder, imagery, batch_size=128)
        index_cells(cache, encoder, imagery, float(settings.pyramid.grid), batch_size=128)
    encode_queries(cache, encoder, open_photo_table(settings).inside(settings.pyramid), batch_size=128)
    return cache


def train(settings: Settings, others: Sequence[str], folder: Path) -> Path:
    """Train cells and levels on the towns of several caches; a finished training is not repeated."""
    cache = FeatureCache.open(settings.cache_path)
    data = TrainingData.load(cache, best_device(), cells=True)
    areas = load_others(cache, others, settings.heads, best_device(), settings.train.views)
    train_decoder(
        cache, folder, DECODER, ONE_EPOCH, encoder_folder=settings.encoder_folder, data=data, experts_follow=True
    )
    train_experts(data, folder, ("zoom", "cells", "levels"), settings.heads, others=areas)
    return folder


def photos_of(cache: FeatureCache, expert: Expert, count: int) -> LabelledPhotos:
    """Photos of all splits, evenly spaced: none of the town was trained on."""
    splits = []
    for split in ("train", "val", "test"):
        try:
            splits.append(LabelledPhotos.load(cache, expert, split))
        except TrainingError:  # there is none
            continue
    arrays = {
        name: np.concatenate([getattr(each, name) for each in splits])
        for name in ("latitude", "longitude", "row", "col")
    }
    query, ids = torch.cat([each.query for each in splits]), tuple(chain.from_iterable(each.ids for each in splits))
    return replace(splits[0], query=query, training_distance=None, ids=ids, **arrays).spread(count)


@click.command()
@click.argument("training", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--test", "towns", multiple=True, required=True, type=click.Path(path_type=Path, exists=True),
              help="A town that nothing was trained on; may be repeated.")  # fmt: skip
@click.option("--encoder", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of the encoder.")
@click.option("--name", default="unseen", show_default=True, help="Name of the caches and models in the towns.")
@click.option("--model", help="Name of the models, if several are trained from the same caches.  [default: --name]")
@click.option("--photos", default=1024, show_default=True, help="Number of photos to locate in each town.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.NAME=VALUE", help="Settings of the training.")
@device_option
def main(
    training: tuple[Path, ...],
    towns: tuple[Path, ...],
    encoder: Path,
    name: str,
    model: str | None,
    photos: int,
    overrides: tuple[str, ...],
) -> None:
    """Train in the towns TRAINING, and print recall in the towns of --test."""
    if seen := {town.resolve() for town in training} & {town.resolve() for town in towns}:
        raise click.UsageError(f"{min(seen)} is trained on: give --test a town that nothing was trained on")
    model = model or name
    options = (*overrides, f"encoder.name={encoder.resolve()}", f"cache.path={name}.zarr")
    settings = {town: load_settings(town / FILE, options) for town in (*training, *towns)}
    caches = {town: encode(each) for town, each in settings.items()}
    first, *others = training
    source = train(settings[first], [caches[town].path for town in others], first / model)
    click.echo("| town | experts | " + " | ".join(f"{radius:g} m" for radius in RADII) + " | NLL | calibration error |")
    click.echo("|---" * (4 + len(RADII)) + "|")
    for town in towns:
        folder = transfer(source, caches[town], town / model, best_device()).folder
        config = read_config(folder)
        assert isinstance(config, TransferModelConfig)
        experts = load_transferred(folder, config, best_device())
        labelled = photos_of(caches[town], experts.fused(), photos)
        figures = evaluate_experts(experts.experts, experts.fusions(), labelled, radii=RADII)
        del figures["fused_cross_view"]  # the same as fused
        chance = " | ".join(f"{100 * math.pi * radius**2 / config.pyramid.size**2:.1f}" for radius in RADII)
        click.echo(
            f"| {town.name} | chance | {chance} | {math.log(len(experts.fused().cell_mask.nonzero()[0])):.2f} | |"
        )
        for expert, each in figures.items():
            recall = " | ".join(f"{100 * each.recall[radius].value:.1f}" for radius in RADII)
            click.echo(f"| {town.name} | {expert} | {recall} | {each.nll:.2f} | {100 * each.calibration_error:.1f} % |")


if __name__ == "__main__":
    main()
