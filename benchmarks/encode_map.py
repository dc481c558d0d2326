"""Encoding a map: against the bare forward pass of the encoder, and what is read against what is in the file.

    python -m benchmarks.encode_map                 # DINOv2-base, 384 px, 4369 tiles of a 24 576 px raster: for a GPU
    python -m benchmarks.encode_map --image-size 84 --levels 3 --side 4096 --repeats 3           # for two cores

The bare forward pass, a GeoTIFF with tiles and overviews and the same one in strips without overviews take turns, so
that all see the same machine; medians over the turns are printed. The bare pass encodes as many tiles, which are in
memory already. "Cut only" makes the tiles and encodes none: where that is not much faster than the bare pass, the
encoder is not what `encode-map` waits for. Without a GPU the same cores cut and encode: tiles per second of processor
time tell then what cutting costs. Bytes are what the process asked the system for (Linux only); the page cache holds
the file, as it does after `encode-map` has fingerprinted it. The rasters are not compressed.
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
from rasterio.enums import Resampling
from rasterio.transform import from_bounds
from rasterio.windows import Window
from transformers import Dinov2Config, Dinov2Model

from jzi.encode.encode_map import encode_map
from jzi.encode.encoder import Encoder
from jzi.encode.imagery import Imagery
from jzi.encode.prefetch import reader_threads
from jzi.encode.tiles import TileRenderer
from jzi.store.cache import FeatureCache
from jzi.store.pyramid import Pyramid, TileKey

MODELS = {"tiny": (192, 6, 3), "small": (384, 12, 6), "base": (768, 12, 12)}  # width, layers, heads
LAYOUTS = {
    "tiles, overviews": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "strips": {"tiled": False, "blockysize": 1},
}
#: Rows written at once.
BAND = 512


def write_raster(path: Path, pyramid: Pyramid, side: int, profile: dict[str, Any], overviews: bool) -> Path:
    """A square GeoTIFF of random colours, 16 pixels wide each, over the whole area."""
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
    """What this process has asked the system to read so far; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(lines[0].split()[1])  # rchar


def bare(encoder: Encoder, tiles: int, batch: int) -> Callable[[], dict[str, float]]:
    """As many tiles as the map has, from memory."""
    images = np.random.default_rng(0).integers(0, 256, (batch, encoder.image_size, encoder.image_size, 3), np.uint8)

    def run() -> dict[str, float]:
        for start in range(0, tiles, batch):
            embedding = encoder.encode_tiles(images[: tiles - start])
        encoder.to_storage(embedding)
        return {}

    return run


def cut(path: Path, pyramid: Pyramid, encoder: Encoder) -> Callable[[], dict[str, float]]:
    """All tiles, without encoding them."""

    def run() -> dict[str, float]:
        with Imagery([path], pyramid) as imagery:
            for _ in TileRenderer(imagery, encoder.image_size).render([TileKey(0, 0, 0)]):
                pass
        return {}

    return run


def through(path: Path, pyramid: Pyramid, encoder: Encoder, batch: int, folder: Path) -> Callable[[], dict[str, float]]:
    """What `jzi encode-map` does, into a new cache."""
    info, raster = encoder.info, path.stat().st_size

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as place, Imagery([path], pyramid) as imagery:
            cache = FeatureCache.create(Path(place) / "features.zarr", pyramid, info)
            before = bytes_read()
            encode_map(cache, encoder, imagery, batch_size=batch)
            return {"read": (bytes_read() - before) / raster}

    return run


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="base", show_default=True)
@click.option("--image-size", default=384, show_default=True)
@click.option("--levels", default=4, show_default=True)
@click.option("--side", default=24_576, show_default=True, help="Of the raster, pixels.")
@click.option("--batch", default=32, show_default=True, help="Tiles to a forward pass.")
@click.option("--repeats", default=3, show_default=True, help="Turns.")
def main(model: str, image_size: int, levels: int, side: int, batch: int, repeats: int) -> None:
    """Measure."""
    width, layers, heads = MODELS[model]
    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 518}
    encoder = Encoder(Dinov2Model(Dinov2Config(**shape)), name=model, image_size=image_size)
    pyramid = Pyramid.around(38.8936, -77.0116, 10_000.0, levels=levels)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    click.echo(
        f"DINOv2-{model}, {image_size} px, {pyramid.tile_count} tiles, batch {batch}, raster of {side} px; {name}, "
        f"{reader_threads()} reader threads, torch {torch.__version__}, GDAL {rasterio.__gdal_version__}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kinds = {"bare forward pass": bare(encoder, pyramid.tile_count, batch)}
        for layout, profile in LAYOUTS.items():
            path = write_raster(folder / f"{layout.split(',')[0]}.tif", pyramid, side, profile, "overviews" in layout)
            click.echo(f"{layout}: {path.stat().st_size / 1e6:.0f} MB")
            kinds[f"{layout}: cut only"] = cut(path, pyramid, encoder)
            kinds[layout] = through(path, pyramid, encoder, batch, folder)
        found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        for turn in range(repeats + 1):  # the first warms up
            for kind, run in kinds.items():
                began, worked = time.perf_counter(), time.process_time()
                read = run().get("read", 0.0)
                seconds, worked = time.perf_counter() - began, time.process_time() - worked
                if turn:
                    found[kind].append((pyramid.tile_count / seconds, pyramid.tile_count / worked, read))
    click.echo(f"\n{'':<28}{'tiles/s':>10}{'of bare':>9}{'tiles/CPU s':>13}{'of bare':>9}{'bytes read / file':>19}")
    reference = [median(values) for values in zip(*found["bare forward pass"], strict=True)]
    for kind, turns in found.items():
        rate, per_cpu, read = (median(values) for values in zip(*turns, strict=True))
        row = f"{kind:<28}{rate:>10.1f}{rate / reference[0]:>9.3f}{per_cpu:>13.1f}{per_cpu / reference[1]:>9.3f}"
        click.echo(row + (f"{read:>19.2f}" if read else ""))


if __name__ == "__main__":
    main()
