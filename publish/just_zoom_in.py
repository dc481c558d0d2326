"""The layout of the "Just Zoom In" data set, which `jzi init --dataset just-zoom-in` and the reference code read."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from jzi.curate.folder import cannot_write, quoted
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import RasterOptions
from jzi.errors import DatasetError
from jzi.publish.area import area_of, imagery_needed
from jzi.publish.card import write_card
from jzi.publish.card_text import columns_without
from jzi.publish.publication import (
    NO_IMAGERY,
    Photos,
    Publication,
    Request,
    begin,
    file_names,
    find_photos,
    fingerprint,
    finish,
    place,
    published,
)
from jzi.publish.tiles import TileGrid, has_imagery, write_tiles
from jzi.store.disk.files import write_whole
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.area_file import AREA, write_area
from jzi.store.photos.splits import SPLITS

_COLUMNS = columns_without(
    "id", "path", "split", image_id="name of the photo's file", sequence="the zoom: an action of each level"
)


def publish_just_zoom_in(request: Request) -> Publication:
    """Publish a data set as satellite/, streetview/images/, metadata/ and area.json, with its card as README.md.

    The column `sequence` of the tables is the zoom to each photo. Files that are there are kept, so that an interrupted
    publication is resumed.

    Raises:
        DatasetError: no imagery is given; the photos have no split, or one is missing; the folder holds something else
            or cannot be written.
        ImageryError: the imagery cannot be read, or does not overlap the area.
    """
    imagery_needed(request.rasters, "just-zoom-in")
    request = replace(request, area=request.area or area_of(request.folder.photos))
    area = request.area
    assert area is not None
    photos = find_photos(request)
    with Imagery(request.rasters, area, RasterOptions(remote=request.remote)) as imagery:
        values = fingerprint("just-zoom-in", request, photos, imagery)
        resumed = begin(request.output, values)
        try:
            grid = TileGrid.over(area, imagery)
            tiles = write_tiles(grid, imagery, request.output / "satellite")
            photos = _on_imagery(photos, grid, imagery)
            _write_photos(photos, request.output, area)
            write_area(request.output / AREA, area)
            write_card(
                published(request, photos), request.name, request.rasters, request.imagery_sources,
                output=request.output, name="README.md", with_imagery=True, columns=_COLUMNS, remote=request.remote,
            )  # fmt: skip
            result = Publication(
                "just-zoom-in", request.output, photos.count(), photos.left_out, tiles, "tiles", resumed
            )
            return finish(request.output, values, result)
        except OSError as error:
            raise DatasetError(cannot_write(request.output, error)) from error


def _on_imagery(photos: Photos, grid: TileGrid, imagery: Imagery) -> Photos:
    """The photos that were taken where there is imagery."""
    places = photos.frame["latitude"].to_numpy(float), photos.frame["longitude"].to_numpy(float)
    return photos.take(has_imagery(grid, imagery, *places), NO_IMAGERY)


def _write_photos(photos: Photos, output: Path, area: Pyramid) -> None:
    frame = photos.frame
    folder = output / "streetview" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    names = file_names(frame["id"].tolist())
    for name, file in tqdm(
        zip(names, photos.files, strict=True), total=len(frame), unit="photo", desc="copies", delay=2
    ):
        place(file, folder / f"{name}{file.suffix.lower()}")
    sequences = [json.dumps(path) for path in area.paths(frame["latitude"], frame["longitude"]).tolist()]
    table = pd.DataFrame(
        {"image_id": names, "latitude": frame["latitude"], "longitude": frame["longitude"], "sequence": sequences}
    )
    if names != frame["id"].tolist():
        table["source_id"] = frame["id"]
    others = [name for name in frame if name not in (*table, "id", "path", "split")]
    table = quoted(pd.concat([table, frame[others]], axis=1))
    (output / "metadata").mkdir(exist_ok=True)
    for split in SPLITS:
        rows = table[(frame["split"] == split).to_numpy()]
        if len(rows) or split != "test":  # the data set has train and val
            write_whole(output / "metadata" / f"large_area_{split}_map.csv", partial(rows.to_csv, index=False))
