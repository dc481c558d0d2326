"""The area of a map, computed from its rasters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jzi.encode.rasters.raster import Raster, RasterOptions
from jzi.store.geometry.pyramid import Pyramid


def square_around(
    rasters: Sequence[str], options: RasterOptions, *, grid: int = 4, levels: int | None = None
) -> Pyramid:
    """Return the smallest square, in whole metres, that contains all rasters.

    Args:
        rasters: paths of the rasters.
        options: how they are read.
        grid: g; a tile has g x g children.
        levels: L; by default the fewest whose cells are at most 40 m.

    Raises:
        ImageryError: a raster cannot be used.
    """
    opened = [Raster(path, options) for path in rasters]
    west, south, east, north = _union(opened, "EPSG:4326")
    pyramid = Pyramid.around((south + north) / 2, (west + east) / 2, 1.0, grid=grid, levels=1)
    west, south, east, north = _union(opened, pyramid.crs)
    latitude, longitude = pyramid.unproject((west + east) / 2, (south + north) / 2)
    size = math.ceil(max(east - west, north - south))
    return Pyramid.around(float(latitude), float(longitude), float(size), grid=grid, levels=levels)


def _union(rasters: list[Raster], crs: str) -> tuple[float, float, float, float]:
    bounds = np.array([raster.bounds_in(crs) for raster in rasters])
    west, south = bounds[:, :2].min(0)
    east, north = bounds[:, 2:].max(0)
    return west, south, east, north
