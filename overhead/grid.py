"""North-up pixels in a CRS, and their size on the ground."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from jzi.encode.rasters.raster import GDAL_ERRORS
from jzi.errors import ImageryError
from jzi.store.geometry.cell_grid import Bounds

#: Metres of a degree of latitude.
DEGREE_M = 111_195.0


@dataclass(frozen=True)
class Grid:
    """North-up pixels in a CRS.

    Attributes:
        crs: any text that rasterio reads.
        west: west edge, units of the CRS.
        north: north edge.
        x_size: width of a pixel, units of the CRS.
        y_size: height of a pixel, positive.
        width: columns.
        height: rows.
        col: column of its first pixel in the grid that it was cut from, whose tiles begin at 0.
        row: row of its first pixel there.
    """

    crs: str
    west: float
    north: float
    x_size: float
    y_size: float
    width: int
    height: int
    col: int = 0
    row: int = 0

    @property
    def transform(self) -> Affine:
        """Pixel (column, row) to x, y."""
        return Affine(self.x_size, 0.0, self.west, 0.0, -self.y_size, self.north)

    @property
    def bounds(self) -> Bounds:
        """Its extent, units of the CRS."""
        south, east = self.north - self.height * self.y_size, self.west + self.width * self.x_size
        return Bounds(self.west, south, east, self.north)

    @property
    def label(self) -> str:
        """The CRS in a few words."""
        return crs_label(CRS.from_user_input(self.crs))

    def cut(self, bounds: Bounds) -> Grid | None:
        """The pixels that a rectangle touches; None if there are none."""
        slack = 1e-6  # of a pixel, from coordinates that were computed
        col = max(0, math.floor((bounds.west - self.west) / self.x_size + slack))
        row = max(0, math.floor((self.north - bounds.north) / self.y_size + slack))
        stop_col = min(self.width, math.ceil((bounds.east - self.west) / self.x_size - slack))
        stop_row = min(self.height, math.ceil((self.north - bounds.south) / self.y_size - slack))
        if col >= stop_col or row >= stop_row:
            return None
        return replace(
            self, west=self.west + col * self.x_size, north=self.north - row * self.y_size,
            width=stop_col - col, height=stop_row - row, col=self.col + col, row=self.row + row,
        )  # fmt: skip

    def window_bounds(self, window: Window) -> Bounds:
        """Extent of a window of pixels, units of the CRS."""
        west, north = self.west + window.col_off * self.x_size, self.north - window.row_off * self.y_size
        return Bounds(west, north - window.height * self.y_size, west + window.width * self.x_size, north)

    def gsd_m(self, latitude: float) -> float:
        """Metres on the ground per pixel at a latitude (degrees), of the wider side of a pixel."""
        across, down = metres_per_unit(CRS.from_user_input(self.crs), latitude)
        return max(self.x_size * across, self.y_size * down)


def crs_label(crs: CRS) -> str:
    """EPSG code, name, or definition of a CRS, in a few words."""
    code = crs.to_epsg()
    if code:
        return f"EPSG:{code}"
    name = re.match(r'\w+\["([^"]+)"', crs.to_wkt())
    return name[1] if name else crs.to_string()[:60]


def metres_per_unit(crs: CRS, latitude: float) -> tuple[float, float]:
    """Metres on the ground per unit of a CRS, along x and y, at a latitude (degrees).

    Web Mercator stretches the ground by 1 / cos(latitude); other projected CRSs are taken to be true to scale.

    Raises:
        ImageryError: the CRS is neither geographic nor projected.
    """
    shrink = max(math.cos(math.radians(latitude)), 1e-3)
    if crs.is_geographic:
        return DEGREE_M * shrink, DEGREE_M
    try:
        factor = float(crs.linear_units_factor[1])
    except (*GDAL_ERRORS, ValueError) as error:
        raise ImageryError("the CRS of the imagery has no unit of length: give imagery in a projected CRS") from error
    if crs.to_epsg() in (3857, 3785, 900913) or "+proj=merc" in crs.to_proj4():
        factor *= shrink
    return factor, factor
