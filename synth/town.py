"""A synthetic town (curved streets, districts, houses, trees, water), and its map and photos on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from jzi.errors import ConfigError
from jzi.store.disk.files import write_whole
from jzi.synth.buildings import build, cut_lots
from jzi.synth.canvas import Canvas
from jzi.synth.greenery import park_cars, plant
from jzi.synth.ground import paint_ground, paint_yards, weather
from jzi.synth.landmarks import raise_landmarks
from jzi.synth.photos import photo_paths, take_photos
from jzi.synth.render import orthophoto
from jzi.synth.scene import Town
from jzi.synth.streets import OPEN, lay_streets

__all__ = ["Town", "make_town", "write_town"]

MIN_SIZE_M = 200.0


def make_town(seed: int, size_m: float = 1280.0, resolution: float = 0.5) -> Town:
    """Make a square town; equal arguments give equal towns.

    Args:
        seed: of the town.
        size_m: side in metres, at least `MIN_SIZE_M`.
        resolution: metres per pixel of its rasters.

    Raises:
        ConfigError: the town is too small for streets.
    """
    _check_size(size_m)
    rng = np.random.default_rng(seed)
    plan = lay_streets(rng, size_m, resolution)
    canvas = Canvas.blank(plan.kind.shape[0], resolution)
    paint_ground(rng, canvas, plan)
    for index, style in enumerate(plan.styles):
        lots = cut_lots(rng, plan, index, resolution)
        if lots.count:
            paint_yards(rng, canvas, plan, style, lots)
            build(rng, canvas, style, lots)
    raise_landmarks(rng, canvas, plan)
    weather(rng, canvas)
    plant(rng, canvas, plan)
    park_cars(rng, canvas, plan)
    street = (plan.kind != OPEN) & (canvas.height > -0.5)
    return Town(scene=canvas.scene(), street=street, street_deg=plan.street_deg())


def _check_size(size_m: float) -> None:
    if size_m < MIN_SIZE_M:
        raise ConfigError(f"a town of {size_m:g} m has no room for streets: make it {MIN_SIZE_M:g} m or more")


def write_town(
    folder: Path,
    seed: int,
    photos: int = 4096,
    *,
    size_m: float = 1280.0,
    resolution: float = 0.5,
    height_px: int = 112,
    width_px: int = 224,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a town's orthophoto and geotagged photos; existing files are kept.

    An interrupted run is resumed at the first missing file and gives the same bytes as an uninterrupted one. The town
    is made only if a file is missing.

    Args:
        folder: receives `ortho.tif` and `photos/<id>.jpg`, each complete or absent, and `town.json` with the arguments.
        seed: of the town.
        photos: number of photos.
        size_m: side of the town in metres.
        resolution: metres per pixel of the orthophoto.
        height_px: rows of a photo.
        width_px: columns of a photo.
        progress: called with the number of photos completed since the last call, as `tqdm.update` expects; the first
            call, before the town is made, reports the existing ones.

    Raises:
        ConfigError: the town is too small for streets, or the folder holds another one.
    """
    recipe = {
        "seed": seed,
        "size_m": size_m,
        "resolution": resolution,
        "height_px": height_px,
        "width_px": width_px,
    }
    note = folder / "town.json"
    if note.exists() and (existing := json.loads(note.read_text())) != recipe:
        raise ConfigError(f"{folder} holds another town, made with {existing}, not {recipe}: choose another folder")
    _check_size(size_m)
    folder.mkdir(parents=True, exist_ok=True)
    if not note.exists():
        write_whole(note, lambda path: path.write_text(json.dumps(recipe)))
    ortho, paths = folder / "ortho.tif", photo_paths(folder / "photos", photos)
    kept = sum(path.exists() for path in paths)
    if progress is not None and kept:
        progress(kept)
    if kept == photos and ortho.exists():
        return
    town = make_town(seed, size_m, resolution)
    if not ortho.exists():
        _write_orthophoto(ortho, town)
    take_photos(folder / "photos", town, seed, photos, height_px, width_px, progress)


def _write_orthophoto(path: Path, town: Town) -> None:
    bands = orthophoto(town.scene).permute(2, 0, 1).numpy()
    north = town.south + bands.shape[1] * town.scene.resolution
    partial = path.with_suffix(".partial")
    with rasterio.open(
        partial,
        "w",
        driver="GTiff",
        width=bands.shape[2],
        height=bands.shape[1],
        count=3,
        dtype="uint8",
        crs=town.crs,
        transform=from_origin(town.west, north, town.scene.resolution, town.scene.resolution),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="deflate",
        predictor=2,
        photometric="rgb",
    ) as raster:
        raster.write(bands)
    partial.replace(path)
