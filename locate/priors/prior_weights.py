"""Weights of the cells from what a user gives as a prior: a circle, a region, a raster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.features import bounds as geometry_bounds
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform_bounds, transform_geom

from jzi.errors import BandsError, ConfigError, first_line
from jzi.locate.priors import band_weights
from jzi.locate.ranges import DISTANCE
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import CellGrid, off_earth, swap_hint
from jzi.store.geometry.pyramid import WGS84, Pyramid, as_pyramid, geodesic_distance
from jzi.store.geometry.region import Region

#: (row, col) weights of cells.
Weights = NDArray[np.floating[Any]]

#: Samples per side of a cell, by which the covered share of a cell is measured.
SAMPLES = 8

#: Maximum number of samples of a region, 64 MB; a region of more cells has fewer samples per cell.
MAX_SAMPLES = 2**26

#: Number of corners of a circle's outline; its distance from the circle is then at most 0.004 % of the radius.
CORNERS = 360

#: Radius above which centres of cells are compared with the circle instead, as projections distort its outline, metres.
LARGE_CIRCLE = 1e6


@dataclass(frozen=True)
class Prior:
    """What a user gives as a prior; several parts are multiplied.

    Attributes:
        near: latitude and longitude of the centre of a circle, degrees (WGS 84).
        within: radius of the circle, metres.
        region: GeoJSON polygons, from `jzi.store.geometry.geojson`.
        region_name: name of their file.
        raster: a raster of weights.

    Raises:
        ConfigError: only one of `near` and `within` is given, or one is out of range.
    """

    near: tuple[float, float] | None = None
    within: float | None = None
    region: tuple[dict[str, Any], ...] = ()
    region_name: str = "region"
    raster: Path | None = None

    def __post_init__(self) -> None:
        if (self.near is None) != (self.within is None):
            raise ConfigError("near and within belong together, a position and a distance in metres: give both")
        if self.near is not None and self.within is not None:
            check_circle(*self.near, self.within)

    def __bool__(self) -> bool:
        return self.near is not None or bool(self.region) or self.raster is not None

    def weight(self, area: CellGrid) -> Weights:
        """(row, col) weight of each cell, 0..1; float32 for cells in bands.

        Args:
            area: the cells.

        Raises:
            ConfigError: a part gives no cell of the area any weight, or the raster cannot be used.
        """
        parts: list[Callable[[], Weights]] = []
        if self.near is not None and self.within is not None:
            parts.append(partial(near, area, *self.near, self.within))
        if self.region:
            parts.append(partial(region, area, self.region, self.region_name))
        if self.raster is not None:
            parts.append(partial(raster, area, self.raster))
        weight = parts[0]() if parts else np.ones(area.shape, np.float32 if isinstance(area, BandGrid) else np.float64)
        for part in parts[1:]:
            weight *= part()
        return weight

    def to_dict(self) -> dict[str, Any]:
        """What was given, as plain values for JSON."""
        values = {
            "near": None if self.near is None else list(self.near),
            "within_m": self.within,
            "region": self.region_name if self.region else None,
            "raster": None if self.raster is None else str(self.raster),
        }
        return {name: value for name, value in values.items() if value is not None}


def check_circle(latitude: float, longitude: float, within: float) -> None:
    """Raise a ConfigError if the position is not on earth, or the distance is out of range."""
    if wrong := off_earth(latitude, longitude):
        raise ConfigError(f"near {wrong}")
    DISTANCE.check("within", within)


def near(area: CellGrid, latitude: float, longitude: float, within: float) -> Weights:
    """(row, col) share of each cell that lies within a distance of a position, measured as by `region`.

    The cell that contains the position has a weight however small the circle is.

    Args:
        area: the cells.
        latitude: degrees (WGS 84).
        longitude: degrees.
        within: metres.

    Raises:
        ConfigError: no cell is within the distance, or a number is out of range.
    """
    check_circle(latitude, longitude, within)
    weight: Weights
    if isinstance(area, BandGrid):
        weight = band_weights.around(area, latitude, longitude, within)
    else:
        pyramid = as_pyramid(area)
        outline = _outline(pyramid, latitude, longitude, within)
        if outline is None:
            row, col = (values.ravel() for values in np.indices(area.shape))
            distance = geodesic_distance(latitude, longitude, *pyramid.unproject(*pyramid.cell_centers(row, col)))
            weight = np.asarray(distance <= within, np.float64).reshape(area.shape)
        else:
            weight = _covered(pyramid, [outline])
    row, col = area.cells_at(latitude, longitude)
    if row[0] >= 0:
        weight[row, col] = np.maximum(weight[row, col], 1 / SAMPLES**2)
    if not weight.any():
        others = ": give latitude, longitude of a position on the map, or a greater distance"
        hint = swap_hint(area, latitude, longitude) or others
        raise ConfigError(f"no cell of the map is within {within:g} m of {latitude:g} {longitude:g}{hint}")
    return weight


def region(area: CellGrid, polygons: Sequence[dict[str, Any]], name: str = "region") -> Weights:
    """(row, col) share of each cell that polygons cover, measured at `SAMPLES` x `SAMPLES` points.

    A cell that a polygon touches has a weight however small the polygon is. Edges are straight in the area's CRS, for
    cells in bands in longitude and latitude, where shares are measured along `SAMPLES` lines.

    Args:
        area: the cells.
        polygons: GeoJSON geometries.
        name: name of the region in errors.

    Raises:
        ConfigError: the polygons cannot be projected, or touch no cell.
    """
    if isinstance(area, BandGrid):
        try:
            return band_weights.covered(area, Region.of(polygons, name))
        except BandsError as error:
            raise ConfigError(str(error)) from error
    pyramid = as_pyramid(area)
    try:
        weight = _covered(pyramid, [transform_geom("EPSG:4326", pyramid.crs, polygon) for polygon in polygons])
    except (ValueError, TypeError, KeyError, CPLE_BaseError, RasterioError) as error:
        raise ConfigError(f"{name} has a polygon that cannot be used: {first_line(error)}") from error
    if not weight.any():
        raise ConfigError(f"{name} does not touch the map: give polygons on the map")
    return weight


def raster(area: CellGrid, file: Path) -> Weights:
    """(row, col) mean of a raster of weights (its first band) in each cell, divided by the greatest.

    Pixels without data count as 0 where a cell has no others. Of a raster with overviews the coarsest with pixels of at
    most half a cell is read.

    Args:
        area: the cells.
        file: any raster that GDAL reads.

    Raises:
        ConfigError: the raster cannot be read, has negative or infinite weights, or gives no cell of the area any.
    """
    mean: Weights
    try:
        level = _overview(area, file)
        with rasterio.open(file, **({} if level is None else {"overview_level": level})) as source:
            if isinstance(area, BandGrid):
                mean, usable = band_weights.mean_of(area, source)
            else:
                pyramid = as_pyramid(area)
                lowest, mean, highest = (
                    _resample(pyramid, source, how) for how in (Resampling.min, Resampling.average, Resampling.max)
                )
                usable = not ((lowest < 0).any() or np.isinf(highest).any())
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as a raster of weights: {first_line(error)}") from error
    if not usable:
        raise ConfigError(
            f"{file} has a weight that is negative or infinite: weights are 0 or more; mark pixels without as nodata"
        )
    if not mean.any():
        raise ConfigError(f"{file} has no weight above 0 on the map: give a raster that overlaps the map")
    mean /= mean.max()
    return mean


def _outline(pyramid: Pyramid, latitude: float, longitude: float, within: float) -> dict[str, Any] | None:
    """A circle as a polygon in the area's CRS; None if it is too large for the projection."""
    longitudes, latitudes = (np.full(CORNERS, value) for value in (longitude, latitude))
    azimuth = np.linspace(0, 360, CORNERS, endpoint=False)
    longitudes, latitudes, _ = WGS84.fwd(longitudes, latitudes, azimuth, np.full(CORNERS, within))
    x, y = pyramid.project(latitudes, longitudes)
    if within > LARGE_CIRCLE or not np.isfinite([x, y]).all() or max(np.ptp(x), np.ptp(y)) > 40 * within:
        return None
    corners = [*zip(x.tolist(), y.tolist(), strict=True)]
    return {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}


def _covered(pyramid: Pyramid, polygons: list[dict[str, Any]]) -> NDArray[np.float64]:
    """(row, col) share of each cell that polygons in the area's CRS cover; at least one sample where they touch it.

    Raises:
        ValueError: a polygon is not valid.
    """
    share, size = np.zeros(pyramid.shape), pyramid.cell_size
    bounds = np.array([geometry_bounds(polygon) for polygon in polygons])
    if not np.isfinite(bounds).all():
        raise ValueError("it lies outside of the range of the area's CRS")
    (west, south), (east, north) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    top, bottom = np.clip([(pyramid.north - north) // size, (pyramid.north - south) // size + 1], 0, len(share))
    left, right = np.clip([(west - pyramid.west) // size, (east - pyramid.west) // size + 1], 0, len(share))
    rows, cols = slice(int(top), int(bottom)), slice(int(left), int(right))
    height, width = share[rows, cols].shape
    if not height * width:
        return share

    def burn(samples: int, all_touched: bool) -> NDArray[np.uint8]:
        transform = from_origin(pyramid.west + left * size, pyramid.north - top * size, size / samples, size / samples)
        shape = height * samples, width * samples
        return np.asarray(rasterize(polygons, shape, transform=transform, all_touched=all_touched, dtype="uint8"))

    samples = int(np.clip(np.sqrt(MAX_SAMPLES / (height * width)), 1, SAMPLES))
    covered = burn(samples, False).reshape(height, samples, width, samples).mean((1, 3))
    share[rows, cols] = np.maximum(covered, burn(1, True) / samples**2)
    return share


def _overview(area: CellGrid, file: Path) -> int | None:
    """Index of the coarsest overview with pixels of at most half a cell; None for the raster itself."""
    with rasterio.open(file) as source:
        if source.crs is None:
            raise ValueError("it has no CRS")
        west, _, east, _ = transform_bounds(area.crs, source.crs, *area.bounds)
        pixels_per_cell = (east - west) / abs(source.res[0]) / area.shape[1]
        usable = [index for index, factor in enumerate(source.overviews(1)) if factor <= pixels_per_cell / 2]
    return usable[-1] if usable else None


def _resample(pyramid: Pyramid, source: rasterio.DatasetReader, resampling: Resampling) -> NDArray[np.float64]:
    weight = np.zeros(pyramid.shape, np.float64)
    reproject(
        rasterio.band(source, 1),
        weight,
        dst_transform=from_origin(pyramid.west, pyramid.north, pyramid.cell_size, pyramid.cell_size),
        dst_crs=pyramid.crs,
        dst_nodata=np.nan,  # of 0, rasterio takes the nodata value of the source instead
        resampling=resampling,
    )
    return np.asarray(np.nan_to_num(weight, nan=0.0, posinf=np.inf, neginf=-np.inf))
