"""Measure what a zoom and a state-wide retriever that was trained in other towns add to each other.

    jzi demo town
    for seed in 201 202 301; do jzi demo town-$seed --seed $seed --photos 2048 --only-town; done
    python -m benchmarks.statewide_layouts town-201 town-202 --test town-301 --steps 800 -o layouts
    python -m benchmarks.statewide_with_zoom town --retriever layouts/bands-42-800-seed0

The second and third line train a tiny retriever; any other one will do. The region is the outline of the rasters of
TOWN, the folder of a square in which a zoom was trained. As `jzi index`, `encode-queries`, `train-fusion` and `evaluate
--zoom` do, its cells are indexed and its photos encoded by the retriever, the weights of the fusion are fitted on the
photos of split val, and those of split test are located by the zoom, by the retriever and by both, on the region's
cells. Prints the weights, and with 95 % bootstrap intervals recall within 50 m and the median error of the default
answer, and the negative log-likelihood of the true cells. Index and weights are kept in the folder of -o.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from jzi.benchmarks.device import device_option
from jzi.encode.encode_queries import encode_queries
from jzi.errors import ConfigError, JziError
from jzi.evaluate.experts import evaluate_posteriors
from jzi.locate.answer.location import LocateOptions
from jzi.retrieve.statewide import StatewideRetriever
from jzi.workspace.inputs import open_photo_table
from jzi.workspace.regions.region import region_settings, write_footprint
from jzi.workspace.regions.statewide import open_index
from jzi.workspace.regions.zoom_fusion import ZoomedRegion
from jzi.workspace.setup.settings import FILE, RegionSettings
from jzi.workspace.setup.settings_file import load_region, load_settings, write_settings

#: Radius of recall and of the default answer, metres.
RADIUS = 50.0

#: What the posteriors of a fusion are called in the table.
TITLES = {"zoom": "zoom", "cells": "retriever", "fused": "both, fused"}


def open_outline(town: Path, output: Path, cell_m: float) -> RegionSettings:
    """The settings of the region that is the outline of a square's rasters, with the square's photos.

    Raises:
        JziError: the square has no settings, or its rasters or photos cannot be used.
    """
    if not (output / FILE).exists():
        square = load_settings(town / FILE)
        if not isinstance(square.queries.table, str):
            raise ConfigError(f"{town} has a table of photos for each split: give a town that `jzi demo` has made")
        table = str(square.path(square.queries.table).resolve())
        rasters = [str(Path(raster).resolve()) for raster in square.rasters]
        settings, cells, _ = region_settings(output, None, cell_m, None, rasters, queries=table, split_by="photo")
        write_footprint(settings, cells)
        write_settings(settings)
    return load_region(output / FILE)


def fill(settings: RegionSettings, retriever: StatewideRetriever) -> None:
    """Index the cells of a region and encode its photos, those that are missing."""
    with open_index(settings, retriever) as index:
        index.encode(settings.encoding.batch_size)
        table = open_photo_table(settings).inside(index.cells.grid, index.cells)
        encode_queries(index.cache, index.towers, table, batch_size=settings.encoding.batch_size)


@click.command()
@click.argument("town", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--retriever", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--experts", default="zoom", show_default=True,
              help="Experts of the town's model, separated by commas.")  # fmt: skip
@click.option("-o", "--output", default="with-zoom", show_default=True, type=click.Path(path_type=Path))
@device_option
def main(town: Path, retriever: Path, experts: str, output: Path) -> None:
    """Locate the photos of TOWN with its zoom, with a retriever, and with both."""
    try:
        model = StatewideRetriever.load(retriever)
        settings = open_outline(town, output, model.cell_m)
        fill(settings, model)
        both = ZoomedRegion.open(settings, retriever, town, experts.split(","))
        fitted = both.fit()
        photos, options = both.photos("test"), LocateOptions(radius=RADIUS)
        expert = both.expert((fitted.weights["cells"], fitted.weights["zoom"]))
        figures = evaluate_posteriors(
            lambda query: expert.posteriors(query, options), expert.cell_mask, photos, radius=RADIUS, radii=[RADIUS]
        )
    except JziError as error:
        click.echo(f"statewide_with_zoom: {error}", err=True)
        sys.exit(2)
    weights = ", ".join(
        f"{TITLES[name]} {weight:.2f} (adds {fitted.gains[name][0]:.3f} ± {fitted.gains[name][1]:.3f} nats)"
        for name, weight in fitted.weights.items()
    )
    click.echo(f"{int(expert.cell_mask.sum())} cells, {len(photos)} photos; fitted on {fitted.photos}: {weights}\n")
    click.echo(f"| | recall within {RADIUS:g} m | median error, m | NLL, nats |\n|---|---|---|---|")
    for name, title in TITLES.items():
        found = figures[name]
        recall, median = found.recall[RADIUS], found.median_error
        click.echo(
            f"| {title} | {100 * recall.value:.1f} ({100 * recall.low:.1f} .. {100 * recall.high:.1f}) "
            f"| {median.value:.1f} ({median.low:.1f} .. {median.high:.1f}) | {found.nll:.2f} |"
        )


if __name__ == "__main__":
    main()
