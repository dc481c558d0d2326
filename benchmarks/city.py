"""Build a synthetic city from building heights: an overhead map and street photos.

    python -m benchmarks.city FOLDER --heights HEIGHT.tif --size 2560 --center 35.70 139.75 --photos 20000
    cd FOLDER && jzi encode-map && jzi encode-queries && jzi train-decoder && jzi evaluate

HEIGHT.tif is any raster of building heights above ground in a projected CRS in metres, for instance from a LiDAR survey
or from footprints. The command writes `ortho.tif`, `photos/`, `photos.csv` (split, heading, field of view, season, ...)
and `jzi.toml` to FOLDER. Streets are the ground between buildings. Everything else (colours, windows, trees, cars,
weather) is synthetic and derived from hashes of positions, so overlapping windows show the same city. Training,
validation and test photos are taken from different cells of the ground, at least 2 m apart, all over the same area (the
paper's same-area protocol). An interrupted run resumes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pandas as pd
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.windows import Window
from tqdm import tqdm

from jzi.errors import ConfigError, JziError
from jzi.store.disk.files import write_whole
from jzi.store.geometry.pyramid import Pyramid
from jzi.workspace.setup.settings import EncoderSettings, MapSettings, QuerySettings, Settings
from jzi.workspace.setup.settings_file import write_settings

from .cityscape.block import SEASONS, CityBlock, blocks
from .cityscape.chance import Area
from .cityscape.heights import HeightRaster
from .cityscape.shoot import SPLITS, Shoot, make_job, photograph, plan_shoot

CELL = 40.0  # metres: the paper's cells
LEAST_SIZE = 160  # metres; a smaller city has no room for streets and cameras


def make_city(
    folder: Path,
    heights: Path,
    *,
    size: int | None = None,
    corner: tuple[int, int] | None = None,
    center: tuple[float, float] | None = None,
    counts: tuple[int, int, int] = (20_000, 1000, 2000),
    seed: int = 0,
    resolution: float = 0.5,
    photo_size: tuple[int, int] = (128, 256),
    encoder: EncoderSettings | None = None,
    jobs: int = 2,
) -> Settings:
    """Write a city to a folder; files that exist already are kept.

    Args:
        folder: output folder.
        heights: raster of building heights above ground, see `HeightRaster`.
        size: side of the window, metres; by default the largest square.
        corner: south-west corner, metres east and north of the raster's; by default the window is centred.
        center: latitude and longitude of the centre, instead of `corner`.
        counts: numbers of training, validation and test photos.
        seed: seed of everything synthetic.
        resolution: resolution of the map, metres per pixel; 1 divided by an integer.
        photo_size: rows and columns of a photo.
        encoder: encoder settings for jzi.toml.
        jobs: processes, of 1 to 2 GB each at 0.5 m a pixel; 1 runs in a thread of this process.

    Returns:
        The settings of the city, as in its jzi.toml.

    Raises:
        JziError: the heights cannot be used, the window does not fit, or the folder contains another city.
    """
    raster = HeightRaster.open(heights)
    window = raster.window(size, corner, center)
    per_metre = round(1 / resolution)
    if per_metre < 1 or not math.isclose(per_metre * resolution, 1):
        raise ConfigError(f"--resolution is {resolution:g}; it must be 1 m divided by a whole number (1, 0.5, 0.25)")
    if window.width < LEAST_SIZE:
        raise ConfigError(f"a city of {window.width} m has no room for streets; make it {LEAST_SIZE} m or more")
    _check_parameters(folder, {"window": vars(window), "crs": raster.crs, "seed": seed, "resolution": resolution,
                               "photo_size": list(photo_size), "heights": heights.name})  # fmt: skip
    with _workers(jobs) as pool:
        try:
            if not (folder / "streets.tif").exists():  # written last
                _draw_map(folder, raster, window, per_metre, seed, pool)
            with rasterio.open(folder / "streets.tif") as streets:
                street_raster = streets.read(1)
            shoots = [
                plan_shoot(street_raster, window, raster.crs, split, count, seed)
                for split, count in zip(SPLITS, counts, strict=True)
            ]
            del street_raster
            jobs_of_blocks = (
                make_job(raster, core, per_metre, seed, shoots, folder, photo_size) for core in blocks(window)
            )
            pending = [job for job in jobs_of_blocks if job]
            with tqdm(
                total=sum(counts), initial=sum(counts) - sum(len(job.paths) for job in pending), unit="photo"
            ) as bar:
                for future in as_completed([pool.submit(photograph, job) for job in pending]):
                    bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table = pd.concat([_rows(shoot) for shoot in shoots])
    write_whole(folder / "photos.csv", lambda path: table.to_csv(path, index=False))
    settings = Settings(
        pyramid=Pyramid(raster.crs, window.west, window.north, window.width, levels=_levels(window.width)),
        map=MapSettings(["ortho.tif"]),
        queries=QuerySettings("photos.csv"),
        encoder=encoder or EncoderSettings(),
    )
    settings.folder = folder
    if not (folder / "jzi.toml").exists():
        write_settings(settings)
    return settings


def _workers(jobs: int) -> Executor:
    """Return a pool of processes with one thread each, or of one thread of this process for a single job."""
    if jobs == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))


def _levels(size: float) -> int:
    return max(1, math.ceil(math.log(size / CELL, 4) - 1e-9))


def _check_parameters(folder: Path, parameters: dict) -> None:
    note = folder / "city.json"
    if note.exists() and (existing := json.loads(note.read_text())) != parameters:
        raise ConfigError(
            f"{folder} contains another city, made with {existing}, not {parameters}; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, lambda path: path.write_text(json.dumps(parameters, indent=1)))


def _map_of(raster: HeightRaster, per_metre: int, seed: int, core: Area) -> tuple[Area, np.ndarray, np.ndarray]:
    return core, *CityBlock.make(raster, core, per_metre, seed).map()


def _draw_map(folder: Path, raster: HeightRaster, window: Area, per_metre: int, seed: int, pool: Executor) -> None:
    """Write ortho.tif and streets.tif, block by block."""

    def create(path: Path, bands: int, pixels: int) -> rasterio.io.DatasetWriter:
        return rasterio.open(
            path, "w", driver="GTiff", width=window.width * pixels, height=window.height * pixels, count=bands,
            dtype="uint8", crs=raster.crs, transform=from_origin(window.west, window.north, 1 / pixels, 1 / pixels),
            tiled=True, blockxsize=512, blockysize=512, compress="deflate", predictor=2, bigtiff="if_safer",
            sparse_ok=True, **({"photometric": "rgb"} if bands == 3 else {}),
        )  # fmt: skip

    def draw(ortho_path: Path, streets_path: Path) -> None:
        with create(ortho_path, 3, per_metre) as ortho, create(streets_path, 1, 1) as streets:
            for core, photo, cameras in tqdm(_in_order(pool, partial(_map_of, raster, per_metre, seed), blocks(window)),
                                            total=len(blocks(window)), unit="block", desc="map"):  # fmt: skip
                for target, array, pixels in ((ortho, photo, per_metre), (streets, cameras[None], 1)):
                    left, top = (core.west - window.west) * pixels, (window.north - core.north) * pixels
                    target.write(array, window=Window(left, top, array.shape[2], array.shape[1]))
        with rasterio.open(ortho_path, "r+") as ortho:
            factors = [2**i for i in range(1, 12) if ortho.width >> i >= 256]
            ortho.build_overviews(factors, Resampling.average)

    write_whole(
        folder / "streets.tif",
        lambda streets_path: write_whole(folder / "ortho.tif", lambda ortho_path: draw(ortho_path, streets_path)),
    )


def _in_order(pool: Executor, function: partial, areas: list[Area]) -> Iterator:
    """Map like `pool.map`, but with at most five blocks pending: the map of a block is 12 MB."""
    pending = []
    for area in areas:
        pending.append(pool.submit(function, area))
        if len(pending) > 4:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()


def _rows(shoot: Shoot) -> pd.DataFrame:
    cameras = shoot.cameras
    longitude, latitude = shoot.town.lon_lat(cameras.x, cameras.y)
    return pd.DataFrame(
        {
            "id": [f"{shoot.split}-{index:06d}" for index in range(len(shoot))],
            "path": [shoot.path(index) for index in range(len(shoot))],
            "latitude": np.round(latitude, 8),
            "longitude": np.round(longitude, 8),
            "split": shoot.split,
            "heading": np.round(cameras.heading_deg, 2),
            "fov_deg": np.round(cameras.fov_deg, 2),
            "season": np.array(SEASONS)[shoot.season],
            "cloud": np.round(cameras.cloud, 3),
            "sun_azimuth_deg": np.round(cameras.sun_azimuth_deg, 1),
            "sun_elevation_deg": np.round(cameras.sun_elevation_deg, 1),
            "easting": np.round(shoot.town.west + cameras.x, 2),
            "northing": np.round(shoot.town.south + cameras.y, 2),
        }
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--heights", required=True, type=click.Path(path_type=Path), help="Raster of building heights.")
@click.option("--size", type=int, help="Side of the window in metres; default: the largest square.")
@click.option("--window", nargs=2, type=int, help="South-west corner, metres from the raster's; default: centred.")
@click.option("--center", nargs=2, type=float, help="Centre of the window, LAT LON, instead of --window.")
@click.option("--photos", default=20_000, show_default=True, help="Training photos; 300000 at full size.")
@click.option("--val", default=1000, show_default=True, help="Validation photos.")
@click.option("--test", default=2000, show_default=True, help="Test photos.")
@click.option("--seed", default=0, show_default=True)
@click.option("--resolution", default=0.5, show_default=True, help="Metres per pixel of the map.")
@click.option(
    "--photo-size", nargs=2, type=int, default=(128, 256), show_default=True, help="Rows and columns of a photo."
)
@click.option(
    "--encoder", default="facebook/dinov2-base", show_default=True, help="Encoder in jzi.toml: an id or a folder."
)
@click.option("--image-size", default=384, show_default=True, help="Image size in jzi.toml.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes, of 1 to 2 GB each.")
def main(
    folder: Path,
    heights: Path,
    size: int | None,
    window: tuple[int, int] | None,
    center: tuple[float, float] | None,
    photos: int,
    val: int,
    test: int,
    seed: int,
    resolution: float,
    photo_size: tuple[int, int],
    encoder: str,
    image_size: int,
    jobs: int,
) -> None:
    """Build a city in FOLDER from the heights of its buildings."""
    start = time.perf_counter()
    try:
        if window and center:
            raise ConfigError("--window and --center both set the position of the window; pass only one of them")
        name = str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder
        make_city(
            folder,
            heights,
            size=size,
            corner=window,
            center=center,
            counts=(photos, val, test),
            seed=seed,
            resolution=resolution,
            photo_size=photo_size,
            encoder=EncoderSettings(name, image_size),
            jobs=jobs,
        )
    except JziError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(f"{folder}: {photos + val + test} photos, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
