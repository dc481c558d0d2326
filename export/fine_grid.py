"""Probabilities of metres: those of the windows of refined candidates, as a GeoTIFF and as overlays of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

from jzi.export.files import write_file
from jzi.locate.answer.fix import FineGrid
from jzi.locate.answer.location import Location
from jzi.store.geometry.cell_grid import Bounds

#: Longest side of the GeoTIFF, pixels; where windows are further apart, its pixels are coarser than theirs.
MAX_PIXELS = 8192

#: Side of the blocks of the GeoTIFF, pixels; a block without probability is not written.
BLOCK = 256


def refined_name(path: Path) -> Path:
    """The file of metres beside the file of cells: `heat.tif` has `heat.refined.tif`."""
    return path.with_name(f"{path.stem}.refined{path.suffix}")


def grids_of(location: Location) -> list[FineGrid]:
    """The windows of a location's refined candidates; empty if there is none."""
    return [grid for each in location.candidates if each.fix for grid in each.fix.grids]


def grid_bounds(grid: FineGrid) -> Bounds:
    """The rectangle of a window in the area's CRS."""
    rows, cols = grid.probability.shape
    return Bounds(grid.west, grid.north - rows * grid.pixel, grid.west + cols * grid.pixel, grid.north)


def write_fine_heatmap(path: Path, locations: Sequence[Location]) -> None:
    """Write the probability of every pixel of the windows as a GeoTIFF, one band per photo; 0 outside of windows.

    Pixels are as large as those of the windows, or larger where these are too far apart; the sum of a band is the
    probability of the windows of its photo either way. The file is sparse.

    Args:
        path: file to write.
        locations: located photos of one area; at least one has a refined candidate.

    Raises:
        ExportError: the file cannot be written.
    """
    grids = [grids_of(location) for location in locations]
    first = next(each for photo in grids for each in photo)
    bounds = [grid_bounds(each) for photo in grids for each in photo]
    west, south = min(each.west for each in bounds), min(each.south for each in bounds)
    east, north = max(each.east for each in bounds), max(each.north for each in bounds)
    pixel = max(first.pixel, max(east - west, north - south) / (MAX_PIXELS - 1))
    west -= (west - first.west) % pixel  # the first window's pixels are pixels of the file
    north += (first.north - north) % pixel
    width, height = math.ceil((east - west) / pixel), math.ceil((north - south) / pixel)
    profile = {"driver": "GTiff", "width": width, "height": height, "count": len(locations), "dtype": "float32"}
    profile |= {"crs": locations[0].posterior.area.crs, "transform": from_origin(west, north, pixel, pixel)}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "interleave": "band"}
    profile["SPARSE_OK"] = True

    def write(file: Path) -> None:
        with rasterio.open(file, "w", **profile) as raster:
            for band, (location, photo) in enumerate(zip(locations, grids, strict=True), 1):
                raster.set_band_description(band, Path(location.photo).name)
                for block, values in _blocks(photo, west, north, pixel, (height, width)).items():
                    col, row = block[1] * BLOCK, block[0] * BLOCK
                    part = values[: height - row, : width - col].astype(np.float32)
                    raster.write(part, band, window=Window(col, row, part.shape[1], part.shape[0]))

    write_file(path, write)


def _blocks(
    grids: Sequence[FineGrid], west: float, north: float, pixel: float, shape: tuple[int, int]
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Blocks of pixels by their row and column; each pixel of a window counts where its centre lies."""
    blocks: dict[tuple[int, int], NDArray[np.float64]] = {}
    for grid in grids:
        row, col = np.nonzero(grid.probability > 0)
        down = np.floor((north - grid.north + (row + 0.5) * grid.pixel) / pixel).astype(int).clip(0, shape[0] - 1)
        right = np.floor((grid.west - west + (col + 0.5) * grid.pixel) / pixel).astype(int).clip(0, shape[1] - 1)
        key = (down // BLOCK) * (shape[1] // BLOCK + 1) + right // BLOCK
        for each in np.unique(key):
            inside = key == each
            number = (int(each) // (shape[1] // BLOCK + 1), int(each) % (shape[1] // BLOCK + 1))
            block = blocks.setdefault(number, np.zeros((BLOCK, BLOCK)))
            np.add.at(block, (down[inside] % BLOCK, right[inside] % BLOCK), grid.probability[row, col][inside])
    return blocks


def fine_shares(location: Location) -> list[tuple[NDArray[np.float64], Bounds]]:
    """(row, col) square roots of the probability relative to the greatest of all windows, and bounds of each window.

    Args:
        location: location of a photo.
    """
    grids = grids_of(location)
    densities: list[Any] = [each.probability / each.pixel**2 for each in grids]
    greatest = max((float(each.max()) for each in densities), default=0.0)
    return [
        (np.sqrt(each / max(greatest, 1e-300)), grid_bounds(grid)) for each, grid in zip(densities, grids, strict=True)
    ]
