"""Measure map encoding against the bare forward pass of the encoder, and bytes read against the file size.

    python -m benchmarks.encode_map                 # DINOv2-base, 384 px, 4369 tiles of a 24 576 px raster, on a GPU
    python -m benchmarks.encode_map --image-size 84 --levels 3 --side 4096 --repeats 3           # on two cores
    python -m benchmarks.encode_map --model small --image-size 224 --photos 64 --levels 2 --side 2048       # photos too

The bare forward pass, a tiled GeoTIFF with overviews and the same raster in strips without overviews are measured in
alternation, so changes in machine load affect all alike; medians over the rounds are printed. The bare pass encodes the
same number of tiles from memory. "Cut only" renders the tiles without encoding them; if it is not much faster than the
bare pass, rendering limits `encode-map`. Without a GPU the same cores render and encode, and tiles per second of CPU
time show the cost of rendering. Bytes are those requested from the system (Linux only); the file is in the page cache,
as it is after `encode-map` has fingerprinted it. The rasters are not compressed.

With `--photos`, that many JPEGs of `PHOTO_SIZE` are encoded into a cache too, against the bare pass of their squares;
a rate is of squares per second then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_bounds
from rasterio.windows import Window

from jzi.benchmarks.device import device_option
from jzi.encode.encode_map import encode_map
from jzi.encode.encode_queries import encode_queries
from jzi.encode.encoders.dinov2 import Dinov2, Dinov2Config
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.prefetch import reader_threads
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import TileRenderer
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.photos.photo_table import PhotoTable, read_photo_table

MODELS = {"tiny": (192, 6, 3), "small": (384, 12, 6), "base": (768, 12, 12)}  # width, layers, heads
LAYOUTS = {
    "tiles, overviews": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "strips": {"tiled": False, "blockysize": 1},
}
#: Rows written per call.
BAND = 512

#: Latitude and longitude of the centre of the area, degrees.
CENTRE = (38.8936, -77.0116)

#: Width and height of photos, pixels: what street-level photos are often published at.
PHOTO_SIZE = (2048, 1536)


def write_raster(path: Path, pyramid: Pyramid, side: int, profile: dict[str, Any], overviews: bool) -> Path:
    """Write a square GeoTIFF of random colours, in squares of 16 pixels, over the whole area."""
    bounds, rng = pyramid.bounds, np.random.default_rng(0)
    transform = from_bounds(bounds.west, bounds.south, bounds.east, bounds.north, side, side)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, width=side, height=side, dtype="uint8", crs=pyramid.crs,
        transform=transform, photometric="rgb", BIGTIFF="IF_SAFER", **profile,
    ) as file:  # fmt: skip
        for row in range(0, side, BAND):
            rows = min(BAND, side - row)
            coarse = rng.integers(0, 256, (3, -(-rows // 16), -(-side // 16)), np.uint8)
            band = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)[:, :rows, :side]
            file.write(band, window=Window(0, row, side, rows))
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2**power for power in range(1, max(2, side.bit_length() - 8))], Resampling.average)
    return path


def bytes_read() -> int:
    """Return the bytes that this process has read so far; 0 if the system does not report them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(lines[0].split()[1])  # rchar


def forward_pass(encoder: Encoder, tiles: int, batch: int) -> Callable[[], dict[str, float]]:
    """Return a function that encodes as many tiles as the map has, from memory, with torch's own threads."""
    images = np.random.default_rng(0).integers(0, 256, (batch, encoder.image_size, encoder.image_size, 3), np.uint8)

    @torch.inference_mode()
    def run() -> dict[str, float]:
        for start in range(0, tiles, batch):
            pixels = encoder.normalise(encoder.to_unit(torch.from_numpy(images[: tiles - start])))
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=encoder.device.type == "cuda"):
                embedding = encoder.family.embed(encoder.model, pixels)
        encoder.to_storage(embedding)
        return {}

    return run


def render_only(path: Path, pyramid: Pyramid, encoder: Encoder) -> Callable[[], dict[str, float]]:
    """Return a function that renders all tiles without encoding them."""

    def run() -> dict[str, float]:
        with Imagery([path], pyramid) as imagery:
            for _ in TileRenderer(imagery, encoder.image_size).render([TileKey(0, 0, 0)]):
                pass
        return {}

    return run


def full_encoding(
    path: Path, pyramid: Pyramid, encoder: Encoder, batch: int, folder: Path
) -> Callable[[], dict[str, float]]:
    """Return a function that encodes the map into a new cache, as `jzi encode-map` does."""
    info, raster = encoder.info, path.stat().st_size

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as temporary, Imagery([path], pyramid) as imagery:
            cache = FeatureCache.create(Path(temporary) / "features.zarr", pyramid, info)
            before = bytes_read()
            encode_map(cache, encoder, imagery, batch_size=batch)
            return {"read": (bytes_read() - before) / raster}

    return run


def write_photos(folder: Path, count: int) -> PhotoTable:
    """Write JPEGs of smooth random colours, and a table with positions in the area."""
    folder.mkdir()
    rng, (latitude, longitude) = np.random.default_rng(0), CENTRE
    rows = ["path,latitude,longitude"]
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize(PHOTO_SIZE)
        image.save(folder / f"{number}.jpg", quality=90)
        rows.append(f"{number}.jpg,{latitude},{longitude + 1e-5 * number}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return read_photo_table(folder / "photos.csv")


def photo_encoding(
    table: PhotoTable, pyramid: Pyramid, encoder: Encoder, batch: int, folder: Path
) -> Callable[[], dict[str, float]]:
    """Return a function that encodes the photos into a new cache, as `jzi encode-queries` does."""

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            cache = FeatureCache.create(Path(temporary) / "features.zarr", pyramid, encoder.info)
            encode_queries(cache, encoder, table, batch_size=batch)
            return {}

    return run


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="base", show_default=True)
@click.option("--image-size", default=384, show_default=True)
@click.option("--levels", default=4, show_default=True)
@click.option("--side", default=24_576, show_default=True, help="Side of the raster, pixels.")
@click.option("--batch", default=32, show_default=True, help="Tiles per forward pass.")
@click.option("--repeats", default=3, show_default=True, help="Rounds.")
@click.option("--photos", default=0, show_default=True, help="Photos to encode too.")
@device_option
def main(model: str, image_size: int, levels: int, side: int, batch: int, repeats: int, photos: int) -> None:
    """Measure and print the table."""
    width, layers, heads = MODELS[model]
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518)
    encoder = Encoder(Dinov2(config), name=model, image_size=image_size)
    pyramid = Pyramid.around(*CENTRE, 10_000.0, levels=levels)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    click.echo(
        f"DINOv2-{model}, {image_size} px, {pyramid.tile_count} tiles, batch {batch}, raster of {side} px; {device}, "
        f"{reader_threads()} reader threads, torch {torch.__version__}, GDAL {rasterio.__gdal_version__}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {"bare forward pass": forward_pass(encoder, pyramid.tile_count, batch)}
        for layout, profile in LAYOUTS.items():
            path = write_raster(folder / f"{layout.split(',')[0]}.tif", pyramid, side, profile, "overviews" in layout)
            click.echo(f"{layout}: {path.stat().st_size / 1e6:.0f} MB")
            runs[f"{layout}: cut only"] = render_only(path, pyramid, encoder)
            runs[layout] = full_encoding(path, pyramid, encoder, batch, folder)
        images = dict.fromkeys(runs, pyramid.tile_count)
        if photos:
            table, bare = write_photos(folder / "photos", photos), "bare pass of photos"
            runs[bare] = forward_pass(encoder, 2 * photos, 2 * batch)
            runs["encode-queries"] = photo_encoding(table, pyramid, encoder, batch, folder)
            images |= {bare: 2 * photos, "encode-queries": 2 * photos}
        results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
        for round_number in range(repeats + 1):  # the first is a warm-up
            for name, run in runs.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                read = run().get("read", 0.0)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
                if round_number:
                    results[name].append((images[name] / seconds, images[name] / cpu_seconds, read))
    click.echo(f"\n{'':<28}{'tiles/s':>10}{'of bare':>9}{'tiles/CPU s':>13}{'of bare':>9}{'bytes read / file':>19}")
    for name, rounds in results.items():
        if name.startswith("bare"):
            reference = [median(values) for values in zip(*rounds, strict=True)]
        rate, per_cpu, read = (median(values) for values in zip(*rounds, strict=True))
        row = f"{name:<28}{rate:>10.1f}{rate / reference[0]:>9.3f}{per_cpu:>13.1f}{per_cpu / reference[1]:>9.3f}"
        click.echo(row + (f"{read:>19.2f}" if read else ""))


if __name__ == "__main__":
    main()
