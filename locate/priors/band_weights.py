"""Weights of cells in bands from a circle, a region or a raster; see `jzi.locate.priors.prior_weights`.

Weights are float32, and an array of them is the only one of all cells: 257 MB for a state with 64 million.
"""

from __future__ import annotations

import math

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds
from shapely.affinity import translate
from shapely.geometry import Polygon, mapping
from shapely.geometry.base import BaseGeometry

from jzi.errors import BandsError
from jzi.locate.points.bands import columns_at
from jzi.store.geometry.bands import RADIUS, BandGrid, haversine
from jzi.store.geometry.pyramid import WGS84, geodesic_distance
from jzi.store.geometry.region import Region, scanlines

#: Lines of a cell along which the share of it that a polygon covers is measured.
LINES = 8

#: Smallest weight of a cell that a polygon touches.
LEAST = 1 / 64

#: Rows of cells that are computed at once.
STRIP = 64

#: Pixels to a cell, along a row, of a raster of weights that is resampled for a strip of rows: a cell takes the pixels
#: that are nearest to it, which are off by up to half of one.
FINE = 4

#: Corners of a circle's outline, and radius in metres and latitude in degrees beyond which centres of cells are
#: compared with the circle instead.
CORNERS, LARGE_CIRCLE, POLAR = 360, 1e6, 89.0


def covered(grid: BandGrid, region: Region) -> NDArray[np.float32]:
    """(row, col) share of each cell that a region covers, and at least `LEAST` where it touches a cell.

    Raises:
        BandsError: the region touches no cell.
    """
    weight = np.zeros(grid.shape, np.float32)
    touched = region.cells(grid, "touch")
    height, whole = grid.cell_m / RADIUS, grid.shape[1]
    for start in range(int(touched.row.min()), int(touched.row.max()) + 1, STRIP):
        stop = min(start + STRIP, grid.rows)
        line = np.arange((stop - start) * LINES)  # from south to north
        latitude = (grid.bands[stop - 1] - 0.5 + (line + 0.5) / LINES) * height
        at, west, east = scanlines(region.edges, latitude)
        row = stop - 1 - at // LINES
        steps = np.zeros((stop - start, whole + 2))
        for sign, longitude in ((1, west), (-1, east)):
            for turn in (0.0, 2 * math.pi):  # the second for longitudes beyond the antimeridian
                col = columns_at(grid, row, longitude + turn)
                first = np.floor(col).astype(np.int64)
                np.add.at(steps, (row - start, first), sign * (first + 1 - col))
                np.add.at(steps, (row - start, first + 1), sign * (col - first))
        share = steps[:, :whole].cumsum(1) / LINES
        share[share < 1e-9] = 0.0  # rounding of sums
        least = LEAST * touched.mask(slice(start, stop), slice(0, whole))
        weight[start:stop] = np.minimum(1.0, np.maximum(share, least))
    return weight


def around(grid: BandGrid, latitude: float, longitude: float, within: float) -> NDArray[np.float32]:
    """(row, col) share of each cell within a distance of a position; zeros if there is no such cell."""
    weight = np.zeros(grid.shape, np.float32)
    outline = _outline(latitude, longitude, within)
    if outline is not None:
        region = Region.of([mapping(outline)], "the circle")
        south, north = np.degrees((grid.bands[[-1, 0]] + (-0.5, 0.5)) * grid.cell_m / RADIUS)
        if outline.bounds[3] < south or outline.bounds[1] > north or not _touches(grid, region):
            return weight
        weight = covered(grid, region)
    else:
        for start in range(0, grid.rows, STRIP):
            row = np.arange(start, min(start + STRIP, grid.rows))[:, None]
            col = np.arange(grid.shape[1])
            inside = col < grid.count[row]
            center = grid.positions(row, np.minimum(col, grid.count[row] - 1))
            distance = haversine(latitude, longitude, *center)
            close = inside & (abs(distance - within) <= 0.01 * within)  # the sphere is off by less
            distance[close] = geodesic_distance(latitude, longitude, *(each[close] for each in center))
            weight[start : start + STRIP] = inside & (distance <= within)
    return weight


def _touches(grid: BandGrid, region: Region) -> bool:
    try:
        return bool(region.cells(grid, "touch").count)
    except BandsError:
        return False


def _outline(latitude: float, longitude: float, within: float) -> BaseGeometry | None:
    """A circle in longitude and latitude, cut at the antimeridian; None if it is too large or contains a pole."""
    if within > LARGE_CIRCLE or abs(latitude) + math.degrees(within / 6.35e6) > POLAR:
        return None
    azimuth = np.linspace(0, 360, CORNERS, endpoint=False)
    ones = np.ones(CORNERS)
    east, north, _ = WGS84.fwd(longitude * ones, latitude * ones, azimuth, within * ones)
    east = longitude + (np.asarray(east) - longitude + 180) % 360 - 180
    circle, world = Polygon(np.stack([east, north], 1)), shapely.box(-180, -90, 180, 90)
    return shapely.union_all([translate(circle, turn).intersection(world) for turn in (-360, 0, 360)])


def mean_of(grid: BandGrid, source: rasterio.DatasetReader) -> tuple[NDArray[np.float32], bool]:
    """(row, col) mean of a raster's first band in each cell, and whether none of its weights is negative or infinite.

    A strip of rows is resampled to the equidistant cylindrical projection that is true to scale in its middle.
    """
    weight, usable = np.zeros(grid.shape, np.float32), True
    _, south, _, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds, densify_pts=99)
    longitude = (grid.west + grid.east) / 2
    for start in range(0, grid.rows, STRIP):
        rows = np.arange(start, min(start + STRIP, grid.rows))
        limits = np.degrees((grid.bands[rows[[-1, 0]]] + (-1.0, 1.0)) * grid.cell_m / RADIUS)
        if limits[0] > north or limits[1] < south:
            continue
        true = grid.bands[rows[len(rows) // 2]] * grid.cell_m / RADIUS
        scale = RADIUS * math.cos(true) / (grid.cell_m / FINE)  # pixels to a radian of longitude
        col = np.arange(grid.shape[1])
        center = (grid.first[rows, None] + col) * grid.step[rows, None]  # runs on beyond the antimeridian
        inside = col < grid.count[rows, None]
        west = math.floor((center.min() - math.radians(longitude)) * scale) - FINE
        width = math.ceil((np.where(inside, center, -np.inf).max() - math.radians(longitude)) * scale) + FINE - west
        crs = f"+proj=eqc +lat_ts={math.degrees(true):.12g} +lon_0={longitude:.12g} +R={RADIUS:.0f} +units=m +type=crs"
        north_m = (grid.bands[start] + 0.5) * grid.cell_m
        transform = Affine(grid.cell_m / FINE, 0, west * grid.cell_m / FINE, 0, -grid.cell_m, north_m)

        def resampled(how: Resampling) -> NDArray[np.float64]:
            strip = np.zeros((len(rows), width), np.float64)  # noqa: B023 - called in this turn of the loop
            reproject(
                rasterio.band(source, 1),
                strip,
                dst_transform=transform,  # noqa: B023
                dst_crs=crs,  # noqa: B023
                dst_nodata=np.nan,  # of 0, rasterio takes the nodata value of the source instead
                resampling=how,
            )
            return np.asarray(np.nan_to_num(strip, nan=0.0, posinf=np.inf, neginf=-np.inf))

        lowest, mean, highest = (resampled(how) for how in (Resampling.min, Resampling.average, Resampling.max))
        usable &= bool((lowest >= 0).all() and np.isfinite(highest).all())
        before = np.concatenate([np.zeros((len(rows), 1)), np.where(np.isfinite(mean), mean, 0.0).cumsum(1)], 1)
        pixel = np.rint((center - math.radians(longitude)) * scale - FINE / 2 - west).astype(np.int64)
        pixel = np.clip(pixel, 0, width - FINE)
        cells = (np.take_along_axis(before, pixel + FINE, 1) - np.take_along_axis(before, pixel, 1)) / FINE
        weight[rows] = np.where(inside & (cells > 1e-12 * before[:, -1:]), cells, 0.0)
    return weight, usable
