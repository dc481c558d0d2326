"""The area whose imagery is wanted: a rectangle of longitudes and latitudes, or polygons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio.warp

from jzi.encode.rasters.raster import GDAL_ERRORS
from jzi.errors import ConfigError, ImageryError
from jzi.overhead.grid import DEGREE_M, Grid
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import Region

#: Northernmost latitude of web map tiles, degrees.
MERCATOR_MAX = 85.0511


@dataclass(frozen=True)
class Area:
    """A rectangle of longitudes and latitudes.

    Attributes:
        bounds: west, south, east and north, degrees (WGS 84).
        geometry: polygons in it, of shapely, longitude and latitude in degrees; None for the whole of it.
    """

    bounds: Bounds
    geometry: Any = None

    @classmethod
    def of_bbox(cls, west: float, south: float, east: float, north: float, margin_m: float = 0.0) -> Self:
        """From west, south, east and north, degrees.

        Raises:
            ConfigError: it is not a rectangle on earth.
        """
        given = f"--bbox {west:g} {south:g} {east:g} {north:g}"
        if not all(map(math.isfinite, (west, south, east, north))) or max(abs(west), abs(east)) > 180:
            raise ConfigError(f"{given} is not on earth: give west, south, east and north in degrees")
        if max(abs(south), abs(north)) > 90:
            swapped = " (latitude and longitude are swapped)" if max(abs(west), abs(east)) <= 90 else ""
            raise ConfigError(f"{given} is not on earth{swapped}: give west, south, east and north in degrees")
        if south >= north:
            raise ConfigError(f"{given} has its south at or above its north: give west, south, east and north")
        if west >= east:
            raise ConfigError(
                f"{given} has its west at or beyond its east: give west, south, east and north, and the two sides of "
                "the 180th meridian one by one"
            )
        return cls(Bounds(west, south, east, north)).widened(margin_m)

    @classmethod
    def of_region(cls, file: Path, margin_m: float = 0.0) -> Self:
        """From the polygons of a GeoJSON file.

        Raises:
            ConfigError: the file cannot be read or has no polygon.
            BandsError: a polygon crosses itself, or has no area.
        """
        geometry = Region.read(file).geometry
        bounds = Bounds(*geometry.bounds)
        if margin_m:
            # in degrees, of longitude at the middle latitude
            scale = math.cos(math.radians((bounds.south + bounds.north) / 2))
            from shapely import affinity

            flat = affinity.scale(geometry, scale, 1.0, origin=(0, 0)).buffer(margin_m / DEGREE_M)
            geometry = affinity.scale(flat, 1 / scale, 1.0, origin=(0, 0))
            bounds = cls(bounds).widened(margin_m).bounds
        return cls(bounds, geometry)

    @classmethod
    def of_pyramid(cls, pyramid: Pyramid, margin_m: float = 0.0) -> Self:
        """The rectangle around the square of a working directory."""
        return cls.around(pyramid.bounds, pyramid.crs, "the area").widened(margin_m)

    @classmethod
    def of_grid(cls, grid: Grid) -> Self:
        """The rectangle around pixels.

        Raises:
            ImageryError: their CRS cannot be transformed.
        """
        return cls.around(grid.bounds, grid.crs, grid.label)

    @classmethod
    def around(cls, bounds: Bounds, crs: str, label: str) -> Self:
        """The rectangle around one of a CRS.

        Raises:
            ImageryError: the CRS cannot be transformed.
        """
        try:
            return cls(Bounds(*rasterio.warp.transform_bounds(crs, "EPSG:4326", *bounds, densify_pts=21)))
        except (*GDAL_ERRORS, ValueError) as error:
            raise ImageryError(f"{label} cannot be transformed to longitude and latitude") from error

    def widened(self, margin_m: float) -> Self:
        """The rectangle with a margin on all sides, metres."""
        west, south, east, north = self.bounds
        up = margin_m / DEGREE_M
        across = up / max(math.cos(math.radians(max(abs(south), abs(north)))), 1e-3)
        wide = Bounds(
            max(west - across, -180.0), max(south - up, -90.0), min(east + across, 180.0), min(north + up, 90.0)
        )
        return type(self)(wide, self.geometry)

    @property
    def latitude(self) -> float:
        """Of the middle, degrees."""
        return (self.bounds.south + self.bounds.north) / 2

    @property
    def longitude(self) -> float:
        """Of the middle, degrees."""
        return (self.bounds.west + self.bounds.east) / 2

    def __str__(self) -> str:
        west, south, east, north = self.bounds
        return f"longitude {west:.5f} to {east:.5f}, latitude {south:.5f} to {north:.5f}"

    def bounds_in(self, crs: str) -> Bounds:
        """The rectangle around it in a CRS.

        Raises:
            ImageryError: the CRS is not defined there.
        """
        try:
            bounds = Bounds(*rasterio.warp.transform_bounds("EPSG:4326", crs, *self.bounds, densify_pts=21))
        except (*GDAL_ERRORS, ValueError):
            bounds = Bounds(math.inf, 0, 0, 0)
        if not np.isfinite(bounds).all() or bounds.west >= bounds.east or bounds.south >= bounds.north:
            raise ImageryError(f"the area ({self}) cannot be transformed to the CRS of the imagery: give another area")
        return bounds

    @cached_property
    def _prepared(self) -> Any:
        import shapely.prepared

        return shapely.prepared.prep(self.geometry)

    def touches(self, bounds: Bounds, crs: str) -> bool:
        """Whether a rectangle of a CRS reaches into the polygons; True where that cannot be computed."""
        if self.geometry is None:
            return True
        import shapely

        try:
            around = rasterio.warp.transform_bounds(crs, "EPSG:4326", *bounds, densify_pts=21)
        except (*GDAL_ERRORS, ValueError):
            return True
        return bool(self._prepared.intersects(shapely.box(*around)))
