"""Compare cells in bands with cells in Web Mercator, at several latitudes (Fervers et al. 2024, table 3).

    for seed in 201 202 301; do jzi demo town-$seed --seed $seed --photos 2048 --only-town; done
    python -m benchmarks.statewide_layouts town-201 town-202 --test town-301 --steps 800

Made towns are moved: orthophoto and photos stay as they are and get positions around another latitude, so that a town
looks the same wherever it is. For each layout a retriever is trained at the first latitude, from the same tiny encoders
with random weights, and searches the cells of the towns of --test at all latitudes for their photos. Cells and pixels
in Web Mercator are as large as those in bands at the first latitude, and shrink towards the poles. Prints recall at k
within 50 m, and how likely random cells are. A finished training in the folder of -o is reused.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from jzi.benchmarks.device import device_option
from jzi.benchmarks.statewide import chance, tiny_encoder
from jzi.encode.encoders.towers import Towers
from jzi.encode.encoders.towers_config import TowersConfig
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, JziError
from jzi.evaluate.retrieval import TOP, RetrievalEvaluation, evaluate_retrieval, matches
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.mercator import MercatorGrid
from jzi.store.photos.photo_table import PhotoTable, read_photo_table
from jzi.train.config.statewide import StatewideConfig
from jzi.train.statewide.statewide import train_statewide
from jzi.train.statewide.statewide_data import AreaPhotos, Gallery, SampleReader, StatewideArea
from jzi.train.statewide.statewide_validation import EncodedGallery, encode_gallery
from jzi.train.statewide.stream import SampleStream

#: Metres: side of a cell in bands, size of a pixel, radius of recall. An image shows 48 m, a cell and some of the next.
CELL, PIXEL, RADIUS = 20.0, 0.75, 50.0

#: Pixels: side of an image of a cell, width and height of a photo: small enough to train on a core.
IMAGE_SIZE, PHOTO_SIZE = 64, (96, 72)

#: Where towns are moved to, degrees.
LONGITUDE = 15.0

LAYOUTS = ("bands", "Web Mercator")


def move_town(town: Path, latitude: float, folder: Path) -> tuple[Path, PhotoTable]:
    """Write a town's orthophoto with its centre at a latitude, and read its photos with positions there.

    Args:
        town: folder of the town.
        latitude: degrees.
        folder: receives the orthophoto.

    Raises:
        ConfigError: the town lacks its orthophoto or its photos.
    """
    for path in (town / "ortho.tif", town / "photos"):
        if not path.exists():
            raise ConfigError(f"{town} has no {path.name}: make it with `jzi demo {town} --seed N --only-town`")
    with rasterio.open(town / "ortho.tif") as raster:
        transform, crs, (width, height) = raster.transform, raster.crs.to_wkt(), raster.res
        west, north = transform @ (0, 0)
        x, y = transform @ (raster.width / 2, raster.height / 2)
    there = f"+proj=tmerc +lat_0={latitude} +lon_0={LONGITUDE} +datum=WGS84 +units=m +no_defs +type=crs"
    path = folder / f"{town.resolve().name}-{latitude:g}.tif"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(town / "ortho.tif", path)
    with rasterio.open(path, "r+") as raster:
        raster.crs, raster.transform = there, from_origin(west - x, north - y, width, height)
    table = read_photo_table(town / "photos", split_by="photo")
    frame = table.frame
    east, up = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(frame["longitude"], frame["latitude"])
    moved = Transformer.from_crs(there, "EPSG:4326", always_xy=True).transform(np.subtract(east, x), np.subtract(up, y))
    return path, replace(table, frame=frame.assign(longitude=moved[0], latitude=moved[1]))


def lay_out(layout: str, raster: Path, table: PhotoTable, first_latitude: float) -> StatewideArea:
    """A moved town with cells in one of `LAYOUTS`, those in Web Mercator of `CELL` metres at the first latitude."""
    with rasterio.open(raster) as image:
        west, south, east, north = transform_bounds(image.crs, "EPSG:4326", *image.bounds)
    grid: BandGrid | MercatorGrid
    if layout == "bands":
        grid, scale = BandGrid.covering(west, south, east, north, CELL), 1.0
    else:
        scale = 1 / math.cos(math.radians(first_latitude))
        grid = MercatorGrid.covering(west, south, east, north, CELL * scale)
    crops = CellCrops(Imagery([raster], grid), grid, [PIXEL * scale], IMAGE_SIZE)
    return StatewideArea(crops, table)


def train(areas: Sequence[StatewideArea], folder: Path, encoder: Path, steps: int, seed: int) -> Towers:
    """Train a retriever on moved towns, or load it if that is done."""
    config = StatewideConfig(
        method="statewide", photo_size=PHOTO_SIZE, image_size=IMAGE_SIZE, lods_m=(PIXEL,), width=256, heads=16,
        batch_size=48, learning_rate=5e-4, warmup_steps=min(100, steps), validate_every=min(500, steps), val_photos=64,
        val_cells=400, mining=False, augment=False, steps=steps, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)  # of the poolings
    train_statewide(areas, Towers.create(encoder, encoder, towers_config()), folder, config)
    return StatewideRetriever.load(folder).load_encoder()


def towers_config() -> TowersConfig:
    return TowersConfig(photo_size=PHOTO_SIZE, image_size=IMAGE_SIZE, lods_m=(PIXEL,), width=256, heads=16)


@dataclass(frozen=True)
class MemoryStore:
    """Embeddings of cells in memory.

    Attributes:
        row: (cell,) rows.
        col: (cell,) columns.
        vectors: (cell, feature) of unit length.
        index: (row, col) number of each cell; -1 for those without an embedding.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    vectors: NDArray[np.float32]
    index: NDArray[np.int64]

    @classmethod
    def of(cls, encoded: EncodedGallery, shape: tuple[int, int]) -> MemoryStore:
        index = np.full(shape, -1)
        index[encoded.row, encoded.col] = np.arange(len(encoded.row))
        return cls(encoded.row, encoded.col, encoded.reference.cpu().numpy(), index)

    def blocks(
        self, mask: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Rows, columns and embeddings of the cells, all at once."""
        chosen = slice(None) if mask is None else mask[self.row, self.col]
        yield self.row[chosen], self.col[chosen], self.vectors[chosen]

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float32]:
        """(cell, feature) embeddings of some cells."""
        return self.vectors[self.index[row, col]]


def search(towers: Towers, area: StatewideArea) -> tuple[RetrievalEvaluation, list[float]]:
    """Recall of all photos of a town among all of its cells, and that of random cells for each k."""
    frame = area.table.frame
    latitude, longitude = (frame[name].to_numpy(float) for name in ("latitude", "longitude"))
    photos = AreaPhotos(frame["photo"].to_numpy(object), latitude, longitude, np.zeros(len(frame), np.int64), 0)
    side_m = np.full(len(photos), CELL)
    stream = SampleStream(latitude, longitude, cell_m=side_m, bucket_m=5.0, margin_m=5.0, seed=0)  # of no sample
    gallery = Gallery.of(area, photos, math.prod(area.grid.shape))
    encoded = encode_gallery(towers, gallery, SampleReader([area], photos, stream, towers))
    if encoded is None:
        raise ConfigError("no photo of a town of --test lies on a cell with imagery: give another town")
    store = MemoryStore.of(encoded, area.grid.shape)
    mask, query = store.index >= 0, encoded.query.cpu().numpy()
    found = evaluate_retrieval(area.grid, mask, store, query, encoded.latitude, encoded.longitude, radii=[RADIUS])
    near = matches(area.grid, mask, encoded.latitude, encoded.longitude, RADIUS)
    right = np.bincount(near.photo, minlength=len(query))
    return found, [float(chance(right, found.cells, k).mean()) for k in TOP]


@click.command()
@click.argument("training", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--test", "tests", multiple=True, required=True, type=click.Path(path_type=Path, exists=True),
              help="A town that nothing was trained on; may be repeated.")  # fmt: skip
@click.option("--latitudes", default="42,60", show_default=True, help="Degrees; the first is that of training.")
@click.option("--steps", default=1200, show_default=True, type=click.IntRange(1), help="Steps of each training.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("-o", "--output", default="layout-runs", show_default=True, type=click.Path(path_type=Path))
@device_option
def main(
    training: tuple[Path, ...], tests: tuple[Path, ...], latitudes: str, steps: int, seed: int, output: Path
) -> None:
    """Train on the towns TRAINING with each layout, and print recall in the towns of --test at each latitude."""
    degrees = [float(each) for each in latitudes.split(",")]
    encoder = tiny_encoder(output / "encoders", "convnext", seed)
    try:
        moved = {(town, degrees[0]): move_town(town, degrees[0], output / "towns") for town in training}
        moved |= {(town, each): move_town(town, each, output / "towns") for town in tests for each in degrees}
        print("| layout | town | latitude | cells | photos | " + " | ".join(f"recall@{k}" for k in TOP) + " |")
        print("|---" * (5 + len(TOP)) + "|", flush=True)
        for layout in LAYOUTS:
            areas = {place: lay_out(layout, *each, degrees[0]) for place, each in moved.items()}
            folder = output / f"{layout.replace(' ', '-').lower()}-{degrees[0]:g}-{steps}-seed{seed}"
            towers = train([areas[town, degrees[0]] for town in training], folder, encoder, steps, seed)
            for town in tests:
                for latitude in degrees:
                    found, random = search(towers, areas[town, latitude])
                    recall = [found.recall[RADIUS][k].value for k in TOP]
                    shares = [f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(recall, random, strict=True)]
                    row = [layout, town.resolve().name, f"{latitude:g}", str(found.cells), str(found.photos), *shares]
                    print(f"| {' | '.join(row)} |", flush=True)
    except JziError as error:
        click.echo(f"statewide_layouts: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
